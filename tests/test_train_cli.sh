#!/usr/bin/env bash
# Black-box tests of `icae pretrain`, `icae finetune` and `icae plot`: use, bad input, kills, several
# processes. Usage: test_train_cli.sh PATH/TO/icae
set -u
icae=$1
[ -x "$icae" ] || { echo "there is no $icae"; exit 1; }
here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work" || exit 1
export XDG_CACHE_HOME=$work/cache OMP_WAIT_POLICY=passive
unset ICAE_MODEL ICAE_ADAPTER

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
says() { ok "$1" grep -qF -- "$2" err; }
prints() { ok "$1" grep -qF -- "$2" out; }
one_line() { ok "$1: one line" test "$(grep -vc '^see `icae help' err)" -eq 1; }
steps() { sed 's/, "seconds".*//' "$1/metrics.jsonl"; } # what a clock does not decide
same_run() { # WHAT A B: the same bits
    ok "$1: adapter" cmp "$2/last.safetensors" "$3/last.safetensors"
    steps "$2" >a.steps
    steps "$3" >b.steps
    ok "$1: metrics" cmp a.steps b.steps
}

# Text of a few words, drawn by a small generator.
awk 'BEGIN {
    split("the a river house old cold grey walked slowly over under hill and then she he was in it of", w, " ")
    x = 1
    for (d = 0; d < 40; d++) {
        s = ""
        for (i = 0; i < 60; i++) { x = (x * 1103515245 + 12345) % 2147483648; s = s w[int(x / 65536) % 20 + 1] " " }
        print "{\"text\": \"" s "\"}" > "text.jsonl"
        print "{\"context\": \"" substr(s, 1, 80) "\", \"prompt\": \"what?\", \"answer\": \"" w[d % 20 + 1] "\"}" > "ask.jsonl"
    }
}'
base=$here/golden/llama
common=(--base "$base" --data text.jsonl --eval-data text.jsonl --eval-samples 4 --k 4 --rank 2 --max-tokens 32
    --continuation 66 --batch 4 --steps 12 --eval-every 5 --checkpoint-every 1 --threads 1 --warmup 2 --lr 1e-3)

# ---- configuration --------------------------------------------------------------------------------

t "help" 0 help pretrain
t "help of keys" 0 pretrain --help
prints "help of keys" "--max-tokens"
t "print" 0 pretrain --print-config --k 64 --lr=3e-4
prints "print" "k = 64"
prints "print" "lr = 0.0003"
cp out config.toml
t "print of print" 0 pretrain config.toml --print-config
ok "print of print" cmp out config.toml
t "fine-tuning's own defaults" 0 finetune --print-config --preset paper
prints "fine-tuning's own defaults" "lr = 5e-05"
t "paper" 0 pretrain --print-config --preset paper
for line in "lr = 0.0001" "batch = 256" "warmup = 300" "clip = 2" "k = 128" "rank = 128" "lm_weight = 0.5"; do
    prints "paper" "$line"
done
t "unknown key" 2 pretrain --lerning-rate 1 --data text.jsonl
one_line "unknown key"
t "unknown key" 2 pretrain --max-token 1 --data text.jsonl
says "unknown key" 'did you mean "max_tokens"?'
printf 'data = "text.jsonl"\nbatchsize = 3\n' >bad.toml
t "unknown key in a file" 2 pretrain bad.toml
says "unknown key in a file" "bad.toml: line 2: there is no key \"batchsize\""
one_line "unknown key in a file"
t "impossible value" 2 pretrain --k 0 --data text.jsonl
one_line "impossible value"
t "missing value" 2 pretrain --data
one_line "missing value"
t "no data" 2 pretrain --out nothing
says "no data" "no training text"
t "missing configuration" 1 pretrain missing.toml
one_line "missing configuration"

# ---- bad input ------------------------------------------------------------------------------------

: >empty.jsonl
bad() { # WHAT STATUS MESSAGE ARGUMENTS...
    local what=$1 status=$2 message=$3
    shift 3
    t "$what" "$status" pretrain "${common[@]}" --quiet --out "bad-$checks" "$@"
    says "$what" "$message"
    ok "$what: nothing written" test ! -e "bad-$checks/last.safetensors"
}
sed -n 1p text.jsonl >one.jsonl
t "empty corpus" 1 pretrain --base "$base" --data empty.jsonl --out x -q
says "empty corpus" "empty.jsonl: no usable document"
t "missing corpus" 1 pretrain --base "$base" --data 'no*.jsonl' --out x -q
one_line "missing corpus"
t "a corpus smaller than a batch" 0 pretrain "${common[@]}" --quiet --out small --data one.jsonl --batch 200 --steps 1
bad "k that does not fit" 1 "do not fit into the 2048 positions" --k 3000
bad "rate that does not fit" 1 "do not fit into the 2048 positions" --k 2000 --rate 1000 --max-tokens 2000 --min-tokens 2000
bad "adapter of another base" 1 "golden/qwen3/icae.safetensors" --adapter "$here/golden/qwen3/icae.safetensors"
one_line "adapter of another base"
bad "no memory" 1 "training needs" --memory 1M
one_line "no memory"
printf '{"text": "fine"}\n{"text": 5}\n' >bad.jsonl
bad "strict" 1 "bad.jsonl:2: a value that should be a text is none" --data bad.jsonl --strict
t "bad lines are told" 0 pretrain "${common[@]}" --out told --data bad.jsonl --steps 1
says "bad lines are told" "bad.jsonl:2: a value that should be a text is none"
says "bad lines are told" "1 bad lines skipped"
t "too long for the model" 0 pretrain "${common[@]}" --out long --max-tokens 9999 --steps 1 --batch-tokens 1
says "too long for the model" "max_tokens: 9999 is too long for the model's 2048 positions"

# ---- a run, and all ways to break it --------------------------------------------------------------

t "run" 0 pretrain "${common[@]}" --out whole --json
prints "run" '"step": 12'
says "run" "held-out"
for f in last.safetensors best.safetensors metrics.jsonl checkpoint.safetensors checkpoint.previous.safetensors; do
    ok "run: $f" test -s "whole/$f"
done
ok "run: evaluations" test "$(grep -c '"eval": true' whole/metrics.jsonl)" -eq 3
t "an old run is not overwritten" 1 pretrain "${common[@]}" --out whole
says "an old run is not overwritten" "--resume goes on with it"
t "the adapter works" 0 compress --model "$base" --adapter whole/best.safetensors one.jsonl -o x.icae -q
t "changed configuration" 1 pretrain "${common[@]}" --out whole --resume --lr 0.5 -q
says "changed configuration" "lr 0.001 -> 0.5"
one_line "changed configuration"
t "estimate" 0 pretrain "${common[@]}" --out guess --estimate --json
prints "estimate" '"total"'
ok "estimate writes nothing" test ! -e guess
t "plot" 0 plot whole -o curves.svg
ok "plot" grep -q '</svg>' curves.svg
t "plot of nothing" 1 plot nothing
one_line "plot of nothing"
t "fine-tuning" 0 finetune "${common[@]}" --data ask.jsonl --eval-data ask.jsonl --adapter whole/best.safetensors --out tuned
says "fine-tuning" "answering: loss"
mkdir demo
t "the bundled adapter, beside a folder of the preset's name" 0 finetune --data ask.jsonl --max-tokens 32 --batch 2 --steps 1 --threads 1 --out tuned-bundled
rmdir demo

# kill -9, again and again
"$icae" pretrain "${common[@]}" --out killed -q 2>err &
kills=0
for _ in $(seq 200); do
    sleep "0.$((RANDOM % 35 + 5))"
    if kill -9 $! 2>/dev/null; then kills=$((kills + 1)); fi
    wait $! 2>/dev/null
    "$icae" pretrain "${common[@]}" --out killed --resume -q 2>err &
    if grep -q '"step": 12, "eval"' killed/metrics.jsonl 2>/dev/null || [ $kills -gt 40 ]; then break; fi
done
wait $!
ok "kill -9 ($kills times)" test $? -eq 0
same_run "kill -9 ($kills times)" whole killed

# SIGTERM and SIGINT: everything is kept
"$icae" pretrain "${common[@]}" --out stopped --steps 100000 --checkpoint-every 0 --schedule constant >out 2>err &
pid=$!
for _ in $(seq 100); do
    grep -q '"step": 3' stopped/metrics.jsonl 2>/dev/null && break
    sleep 0.1
done
t "locked" 1 pretrain "${common[@]}" --out stopped -q
says "locked" "is in use by another run (process $pid)"
kill -TERM $pid
wait $pid
ok "SIGTERM: exit status" test $? -eq 143
ok "SIGTERM: checkpoint" test -s stopped/checkpoint.safetensors
t "resume after SIGTERM" 0 pretrain "${common[@]}" --out stopped --schedule constant --steps "$(($(wc -l <stopped/metrics.jsonl) + 1))" --resume
says "resume after SIGTERM" "going on from step"

# ---- several processes ----------------------------------------------------------------------------

# Every number of two metrics files agrees to 1e-6 relative.
close_to() {
    awk -v b="$2" 'BEGIN { RS = "[ ,:{}\n]+" }
        FNR == NR { x[FNR] = $0; n = FNR; next }
        $0 != x[FNR] { d = $0 - x[FNR]; s = x[FNR] < 0 ? -x[FNR] : x[FNR]; if (d < 0) d = -d; if (!(d <= 1e-6 * s)) exit 1 }
        END { exit FNR != n }' "$1" "$2"
}
if command -v mpirun >/dev/null && ldd "$(dirname "$icae")"/libicae.so 2>/dev/null | grep -q libmpi; then
    mpi=(env ASAN_OPTIONS=detect_leaks=0 mpirun --oversubscribe) # Open MPI leaks by itself
    [ "$(id -u)" -eq 0 ] && mpi+=(--allow-run-as-root)
    export OMPI_MCA_btl_vader_single_copy_mechanism=none
    "$icae" pretrain "${common[@]}" --dropout 0 --batch 12 --out one -q >out 2>err
    steps one >one.steps
    for n in 2 3; do
        timeout 120 "${mpi[@]}" -n $n "$icae" pretrain "${common[@]}" --dropout 0 --batch $((12 / n)) --out "ranks$n" -q >out 2>err
        ok "$n processes" test $? -eq 0
        steps "ranks$n" >many.steps
        ok "$n processes equal one" close_to one.steps many.steps
    done
    # an error of all is told once, by all
    timeout 60 "${mpi[@]}" -n 2 "$icae" pretrain "${common[@]}" --out mpi-bad --data missing.jsonl -q >out 2>err
    ok "an error ends all" test $? -ne 0
    says "an error ends all" "missing.jsonl"
    ok "an error is told once" test "$(grep -c missing.jsonl err)" -eq 1
    # the first tells it; another that ended first, with a failure, would have the launcher end the first unheard
    checks=$((checks + 1))
    OMPI_COMM_WORLD_RANK=1 "$icae" pretrain "${common[@]}" --out mpi-bad --data missing.jsonl -q >out 2>err ||
        fail "only the first process fails"
    ok "only the first process tells" test ! -s err
    # one process dies: the run ends within seconds, and goes on with as many or fewer
    "${mpi[@]}" -n 2 "$icae" pretrain "${common[@]}" --dropout 0 --batch 6 --out dies --steps 100000 --schedule constant -q >out 2>err &
    launcher=$!
    for _ in $(seq 200); do
        grep -q '"step": 4' dies/metrics.jsonl 2>/dev/null && break
        sleep 0.1
    done
    holder=$(cat dies/lock)
    for p in $(ps -o pid= --ppid $launcher); do
        [ "$p" -ne "$holder" ] && kill -9 "$p" && break
    done
    begin=$SECONDS
    wait $launcher
    ok "a dead process ends the run" test $? -ne 0
    ok "within seconds" test $((SECONDS - begin)) -le 10
    t "it can be resumed" 0 pretrain "${common[@]}" --dropout 0 --batch 12 --schedule constant --out dies --resume \
        --steps "$(($(wc -l <dies/metrics.jsonl) + 2))"
    says "it can be resumed" "going on from step"
else
    echo "no MPI here: several processes are not tested"
fi

echo "$checks checks, $failures failures"
[ $failures -eq 0 ]
