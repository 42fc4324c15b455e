#!/usr/bin/env bash
# Black-box tests of the command. Usage: test_cli.sh PATH/TO/icae
set -u
icae=$1
[ -x "$icae" ] || { echo "there is no $icae"; exit 1; }
here=$(cd "$(dirname "$0")" && pwd)
export ICAE_DATA=${ICAE_DATA:-$here/small}
unset ICAE_MODEL ICAE_ADAPTER
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work" || exit 1
cp "$here/../demo/article.txt" a.txt

checks=0 failures=0
fail() {
    failures=$((failures + 1))
    echo "FAILED: $*"
    sed 's/^/    out: /' out | head -5
    sed 's/^/    err: /' err | head -5
}
# t WHAT STATUS ARGUMENTS...: runs icae, expects the exit status; output in ./out and ./err
t() {
    local what=$1 expected=$2
    shift 2
    checks=$((checks + 1))
    "$icae" "$@" >out 2>err </dev/null
    local status=$?
    [ $status -eq "$expected" ] || fail "$what: icae $*: exit status $status, expected $expected"
    if grep -qE 'Sanitizer|runtime error' err; then fail "$what: sanitizer report"; fi
}
ok() { # WHAT COMMAND...: the command succeeds
    local what=$1
    shift
    checks=$((checks + 1))
    "$@" >/dev/null 2>&1 || fail "$what: $*"
}
no() {
    local what=$1
    shift
    checks=$((checks + 1))
    if "$@" >/dev/null 2>&1; then fail "$what: not expected: $*"; fi
}
says() { ok "$1" grep -qF -- "$2" err; }  # on stderr
prints() { ok "$1" grep -qF -- "$2" out; } # on stdout
one_line() { ok "$1: one line" test "$(wc -l <err)" -eq 1; }
if command -v python3 >/dev/null 2>&1; then
    is_json() { ok "$1: JSON" python3 -m json.tool out; }
else
    is_json() { ok "$1: JSON" grep -q '^{' out; }
fi

# ---- use ------------------------------------------------------------------------------------------

t "no command" 2
t "version" 0 version
prints "version" "icae 0."
t "--version" 0 --version
t "help" 0 help
prints "help" "compress"
t "--help" 0 --help
for c in compress restore ask chat continue info verify; do
    t "help $c" 0 help $c
    prints "help $c" "usage: icae $c"
    t "$c --help" 0 $c --help
done
t "unknown command" 2 cmpress
says "unknown command" "did you mean \`compress\`"
t "unknown help" 2 help nothing
t "unknown option" 2 compress --chekc a.txt
says "unknown option" "did you mean --check"
t "option before the command" 2 --json compress a.txt
t "no operand" 2 compress
t "too many operands" 2 compress a.txt b.txt
t "missing value" 2 compress a.txt -o
t "not a number" 2 compress a.txt --threads many
t "not a size" 2 compress a.txt --memory 1X
t "not a kind" 2 compress a.txt --compute f64
t "flag with value" 2 compress a.txt --check=1
t "ask without a question" 2 ask a.txt
t "stdin needs -o" 2 compress -

# ---- the main job ---------------------------------------------------------------------------------

t "compress" 0 compress a.txt
prints "compress" "tokens"
ok "default name" test -s a.txt.icae
for i in 1 2 3 4 5 6 7; do cat a.txt; done >long.txt
t "many segments at once" 0 compress long.txt
t "few at a time" 0 compress long.txt -o few.icae --memory 1M
t "many segments, restored" 0 restore long.txt.icae -o many.txt
t "few at a time, restored" 0 restore few.icae -o few.txt
ok "a bound on memory changes slots by rounding at most" cmp many.txt few.txt
t "not even one" 1 compress long.txt -o none.icae --memory 4K
one_line "not even one"
no "not even one: nothing written" test -e none.icae
for i in 1 2 3; do cat long.txt; done >over.txt
t "text over the limit" 1 compress over.txt
says "text over the limit" "has 4096: split the text"
one_line "text over the limit"
no "text over the limit: nothing written" test -e over.txt.icae
t "restore" 0 restore a.txt.icae
says "restore" "fidelity unknown"
t "compress --check" 0 compress a.txt -o c.icae --check
prints "compress --check" "% of"
t "restore checked" 0 restore c.icae
says "restore checked" "right"
cp out restored.txt
t "restore -o" 0 restore c.icae -o r.txt
ok "restore -o" cmp r.txt restored.txt
ok "nothing on stdout with -o" test ! -s out
t "restore --quiet" 0 restore c.icae --quiet
ok "quiet" test ! -s err
t "restore --diff" 0 restore c.icae --diff a.txt
says "diff" "words"
t "diff with a different text" 0 restore c.icae --diff /dev/null
escape=$(printf '\033')
t "restore --color always" 0 restore c.icae --color always
prints "doubt is coloured" "$escape[1;33m"
says "legend" "tokens are doubtful"
sed "s/$escape\[[0-9;]*m//g" out >plain.txt
ok "colours are all that differs" cmp plain.txt restored.txt
t "restore --color auto to a file" 0 restore c.icae --color auto
ok "no colour to a file" cmp out restored.txt
t "not a colour" 2 restore c.icae --color sometimes
one_line "not a colour"
t "--color always -o" 0 restore c.icae --color always -o r.txt
ok "no colour in the text itself" cmp r.txt restored.txt
if command -v script >/dev/null 2>&1; then
    on_terminal() { TERM=xterm "$@" script -qec "'$icae' restore c.icae" /dev/null </dev/null >out 2>err; }
    on_terminal env -u NO_COLOR || fail "restore on a terminal"
    prints "doubt on a terminal" "$escape[1;33m"
    prints "legend on a terminal" "tokens are doubtful"
    on_terminal env NO_COLOR=1 || fail "restore on a terminal, NO_COLOR"
    no "NO_COLOR" grep -qF "$escape[1;33m" out
fi
t "compress --int8" 0 compress a.txt -o i8.icae --int8 --check
prints "int8" "int8      changes the slots by 0."
prints "int8 says what it costs" "% -> "
ok "int8 is smaller" test "$(stat -c %s i8.icae)" -lt "$(stat -c %s c.icae)"
t "restore int8" 0 restore i8.icae
printf 'e3b0c44298fc1c149afb, 北京 Straße; [7,0.25] ΑΒΓ qwfpgjluy arstdhneio zxcvbkm ZXCVBKM = 0x7fffe1c0 ~/.profile' >hard.txt
t "compress --refine" 0 compress hard.txt --refine 6 --check
prints "refining says what was before" "refined   in up to 6 steps; before "
t "info of refined slots" 0 info hard.txt.icae
prints "that they are" "refined   in up to 6 steps"
t "compress --refine --json" 0 compress hard.txt --refine 6 --check --json
cp out refined.json
ok "refining made it better" python3 -c 'import json; r = json.load(open("refined.json")); assert r["fidelity"]["loss"] < r["fidelity_before_refining"]["loss"]'
t "too much refining" 1 compress hard.txt --refine 20000
one_line "too much refining"
t "ask" 0 ask c.icae "Who is it about?" -n 8
t "ask about text" 0 ask a.txt "Who is it about?" -n 8
t "ask about both" 0 ask c.icae a.txt c.icae "Who is it about?" -n 8
t "ask --expand" 0 ask c.icae "Who is it about?" -n 8 --expand 2 --json
cp out expanded.json
t "ask --json" 0 ask c.icae "Who is it about?" -n 8 --json
ok "expanding reads more rows" python3 -c 'import json; a, b = json.load(open("expanded.json")), json.load(open("out")); assert a["prompt_rows"] > b["prompt_rows"] and a["prompt_slots"] < b["prompt_slots"]'
t "continue --expand" 0 continue c.icae -n 8 --expand 1
# what an adapter recommends is done unless told otherwise
python3 "$here/advise.py" advised.safetensors refine=6 expand=2
python3 "$here/advise.py" bad.safetensors refine=20000
t "info of an adapter that recommends" 0 info advised.safetensors
prints "what it recommends" "advised   --refine 6, --expand 2"
t "it refines" 0 compress hard.txt -o advised.icae --adapter advised.safetensors --check
prints "in as many steps" "refined   in up to 6 steps"
ok "these slots are the same" cmp advised.icae hard.txt.icae
t "unless told not to" 0 compress hard.txt -o advised.icae --adapter advised.safetensors --refine 0
no "then it does not" grep -q refined out
t "it expands" 0 ask c.icae "Who is it about?" -n 8 --json --adapter advised.safetensors
ok "as many segments" python3 -c 'import json; a, b = json.load(open("expanded.json")), json.load(open("out")); assert a["prompt_rows"] == b["prompt_rows"] and a["answer"] == b["answer"]'
t "unless told not to" 0 ask c.icae "Who is it about?" -n 8 --json --adapter advised.safetensors --expand 0
ok "then it does not" python3 -c 'import json; a, b = json.load(open("expanded.json")), json.load(open("out")); assert a["prompt_rows"] > b["prompt_rows"]'
t "it expands what it continues" 0 continue c.icae -n 8 --json --adapter advised.safetensors
cp out expanded.json
t "continue --expand --json" 0 continue c.icae -n 8 --json --expand 2
ok "the same" python3 -c 'import json; a, b = json.load(open("expanded.json")), json.load(open("out")); assert a["prompt_rows"] == b["prompt_rows"] > a["prompt_slots"] + 2'
t "a recommendation that cannot be" 1 compress hard.txt --adapter bad.safetensors
one_line "a recommendation that cannot be"
t "ask --expand of less than nothing" 2 ask c.icae "Who?" --expand -1
t "continue" 0 continue c.icae -n 8
t "continue text" 0 continue a.txt -n 8
t "sampling" 0 continue c.icae -n 12 -t 1 --seed 7 --top-k 50 --top-p 0.9 --min-p 0.01
cp out sampled
t "the same seed" 0 continue c.icae -n 12 -t 1 --seed 7 --top-k 50 --top-p 0.9 --min-p 0.01
ok "the same seed gives the same text" cmp out sampled
t "impossible sampling" 1 continue c.icae -n 2 --top-p 3
one_line "impossible sampling"
t "info of slots" 0 info c.icae
t "info of a model" 0 info "$ICAE_DATA/model"
t "info of an adapter" 0 info "$ICAE_DATA/model/icae.safetensors"
t "info of the bundled model" 0 info
t "info of a text" 1 info a.txt
t "verify" 0 verify c.icae
t "verify --text" 0 verify c.icae --text a.txt
prints "verify --text" "very text"
sed 's/Monkey/Donkey/' a.txt >other.txt
t "verify another text" 1 verify c.icae --text other.txt
one_line "verify another text"

# ---- exact ----------------------------------------------------------------------------------------

exact() { # WHAT FILE
    t "$1: compress --exact" 0 compress "$2" -o x.icae --exact
    t "$1: restore" 0 restore x.icae -o x.out
    ok "$1: byte for byte" cmp "$2" x.out
    t "$1: restore to stdout" 0 restore x.icae
    ok "$1: stdout" cmp "$2" out
}
exact "article" a.txt
says "exact" "SHA-256 verified"
printf 'caf\xe9 \xff\xfe broken \xc3 bytes \x00 and a nul, \xf0\x9f\x98\x80 \r\n\ttail ' >binary
exact "not UTF-8" binary
head -c 300 /dev/urandom >noise
exact "noise" noise
printf 'x' >one
exact "one byte" one
printf '<|endoftext|><|user|> no marks <|assistant|>' >marks
exact "special tokens as text" marks

# ---- input and output -----------------------------------------------------------------------------

"$icae" compress - -o s.icae <a.txt >out 2>err || fail "compress from stdin"
t "restore what came from stdin" 0 restore s.icae
ok "as from a file" cmp out restored.txt
"$icae" compress a.txt -o - >piped.icae 2>err || fail "compress to stdout"
t "restore what went to stdout" 0 restore piped.icae
ok "as through a file" cmp out restored.txt
"$icae" restore - <c.icae >out 2>err || fail "restore from stdin"
ok "restore from stdin" cmp out restored.txt
"$icae" ask - "What?" -n 4 <a.txt >out 2>err || fail "ask about stdin"
t "--json and -o -" 2 compress a.txt -o - --json
t "missing file" 1 compress nothing.txt
one_line "missing file"
says "missing file" "nothing.txt"
t "missing slots" 1 restore nothing.icae
one_line "missing slots"
t "a folder" 1 compress .
: >empty
t "empty text" 1 compress empty
one_line "empty text"
t "empty text to ask" 1 ask empty "What?"
t "output is the input" 1 compress a.txt -o ./a.txt
ok "the input is untouched" cmp a.txt "$here/../demo/article.txt"
t "unwritable folder" 1 compress a.txt -o nowhere/a.icae
one_line "unwritable folder"
t "unwritable text" 1 restore c.icae -o nowhere/a.txt
one_line "unwritable text"
ok "no temporary files" test -z "$(find . -name "*.tmp")"
if [ -e /dev/full ]; then
    for command in "restore c.icae" "info c.icae" "version" "help" "continue c.icae -n 4" "restore c.icae --json"; do
        checks=$((checks + 1))
        "$icae" $command >/dev/full 2>err
        [ $? -eq 1 ] || fail "full disk: $command"
        : >out
        one_line "full disk: $command"
    done
    t "slots to a full disk" 1 compress a.txt -o /dev/full
    t "text to a full disk" 1 restore c.icae -o /dev/full
    one_line "text to a full disk"
fi
for command in "restore c.icae" "info c.icae --json" "continue c.icae -n 50"; do
    checks=$((checks + 1))
    { "$icae" $command 2>err; echo $? >status; } | true
    [ "$(cat status)" -le 1 ] || fail "closed pipe: $command: exit status $(cat status)"
done

# ---- damaged and foreign files --------------------------------------------------------------------

size=$(stat -c %s c.icae)
for n in 0 1 7 8 100 2000 $((size / 2)) $((size - 1)); do
    head -c "$n" c.icae >cut.icae
    t "cut at $n" 1 restore cut.icae
    one_line "cut at $n"
    t "verify cut at $n" 1 verify cut.icae
done
cp c.icae flipped.icae
printf '\xff' | dd of=flipped.icae bs=1 seek=$((size - 50)) conv=notrunc 2>/dev/null
t "a flipped byte" 1 verify flipped.icae
one_line "a flipped byte"
t "text as slots" 1 restore a.txt
t "an adapter as slots" 1 restore "$ICAE_DATA/model/icae.safetensors"
other=$here/golden/llama
if [ -d "$other" ]; then
    t "slots of another base" 1 restore c.icae --model "$other"
    one_line "slots of another base"
    says "slots of another base" "made by base"
    t "an adapter of another base" 1 info "$ICAE_DATA/model/icae.safetensors" --model "$other"
    t "model by environment" 0 info --json
    ICAE_MODEL=$other "$icae" info --json >out 2>err || fail "ICAE_MODEL"
    prints "ICAE_MODEL" "golden/llama"
fi
t "no such model" 1 compress a.txt --model nowhere
one_line "no such model"
t "a text as model" 1 compress a.txt --model a.txt
t "no such adapter" 1 compress a.txt --adapter nowhere.safetensors
t "a rate that was not trained" 1 compress a.txt --rate 5
one_line "a rate that was not trained"

# ---- JSON -----------------------------------------------------------------------------------------

printf 'tab\there "quoted" \\ back\x01slash caf\xc3\xa9 \xff\n' >odd.txt
for arguments in "compress a.txt -o j.icae --check" "compress odd.txt -o k.icae --exact" "restore j.icae" \
    "restore k.icae" "restore j.icae --diff a.txt" "restore j.icae -o j.txt" "info j.icae" "info" \
    "info $ICAE_DATA/model/icae.safetensors" "verify j.icae" "verify j.icae --text a.txt" \
    "ask j.icae What? -n 8" "continue j.icae -n 8"; do
    t "json" 0 $arguments --json
    is_json "$arguments"
    ok "$arguments: nothing on stderr" test ! -s err
done

# ---- conversation ---------------------------------------------------------------------------------

printf 'Who?\n\n/help\n/reset\nWhat?\n/nothing\n/quit\nnot read\n' |
    "$icae" chat c.icae -n 6 >out 2>err || fail "chat"
ok "two replies" test "$(wc -l <out)" -ge 2
says "chat" "/reset"
printf 'Who?\nWhat?\n' | "$icae" chat c.icae a.txt -n 6 --json >out 2>err || fail "chat --json"
ok "one object a reply" test "$(grep -c '"reply"' out)" -eq 2
printf 'Who?\nWhat?\n' | "$icae" chat c.icae -n 6 --expand 2 --json >out 2>err || fail "chat --expand"
ok "chat expands" python3 -c 'import json, sys; a, b = json.JSONDecoder(), open("out").read(); r, n = a.raw_decode(b); assert r["prompt_rows"] > r["prompt_slots"] + 32'
t "chat without input" 0 chat c.icae
t "chat about stdin" 2 chat -

# ---- interrupts -----------------------------------------------------------------------------------

# A shell's background job ignores SIGINT, so these are started by a program that restores it.
if command -v python3 >/dev/null 2>&1; then
    checks=$((checks + 1))
    for _ in $(seq 14); do cat a.txt; done >long.txt
    t "a longer text" 0 compress long.txt -o long.icae
    python3 - "$icae" >out 2>err <<'END' || fail "interrupt"
import signal, subprocess, sys, time

def interrupted(wait, *arguments):
    p = subprocess.Popen([sys.argv[1], *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                         stderr=subprocess.PIPE,
                         preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    time.sleep(wait)
    p.send_signal(signal.SIGINT)
    out, err = p.communicate(timeout=120)
    print(arguments, p.returncode, err.decode())
    return p.returncode, err

code, err = interrupted(0.2, "restore", "long.icae", "-o", "long.out")
assert code in (0, -signal.SIGINT), code  # 0: it was faster than we
code, err = interrupted(2, "chat", "a.txt")
assert code == -signal.SIGINT and b"icae: interrupted" in err, (code, err)
END
    ok "nothing half-written" test -z "$(find . -name "*.tmp")"
fi

echo "$checks checks, $failures failed"
[ $failures -eq 0 ]
