#!/usr/bin/env bash
# test_eval_cli.sh ICAE - the commands eval and report from outside, and a judge that is good, biased,
# busy, talking nonsense, broken, refusing, slow or gone. Needs python3 for the stand-in.
set -u
icae=$1
here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
judge_pid=
trap '[ -n "$judge_pid" ] && kill "$judge_pid" 2>/dev/null; rm -rf "$work"' EXIT
cd "$work" || exit 1
failures=0
unset ICAE_JUDGE_KEY

check() { # NAME COMMAND...: the command must succeed
    local name=$1
    shift
    if "$@"; then echo "ok   $name"; else echo "FAIL $name"; failures=$((failures + 1)); fi
}
status() { # WANTED COMMAND...: output to out and err
    local wanted=$1
    shift
    "$@" >out 2>err
    local got=$?
    [ $got -eq "$wanted" ] || { echo "status $got, wanted $wanted: $*"; head -3 err; return 1; }
}
has() { grep -qF -- "$2" "$1" || { echo "$1 lacks: $2"; return 1; }; }

cat >suite.json <<'END'
{"samples": 2, "autoencoding": {"lengths": [32]}, "instruct": {"max_tokens": 4}}
END
eval_() { "$icae" eval --threads 1 --suite suite.json "$@"; }

check "a run" status 0 eval_ -o run
check "names the page" has out run/report.html
check "page" test -s run/report.html
check "figures" has run/report.csv 'autoencoding,By length and rate,1,Samples,2'
check "JSON" status 0 eval_ -o run2 --json
check "JSON is JSON" has out '"kind":"evaluation"'
check "quiet" status 0 eval_ -o run3 -q
check "quiet says nothing" test ! -s out -a ! -s err
check "side by side" status 0 "$icae" report run/report.json run2/report.json -o both.html
check "both are in it" has both.html '<td>run2</td>'
check "no report" status 1 "$icae" report suite.json
check "why not" has err 'suite.json: not the report.json'
check "unknown suite" status 1 "$icae" eval --suite slow -o run4
check "no model name" status 2 "$icae" eval --judge http://127.0.0.1:1
: >empty.txt
check "empty text" status 1 eval_ empty.txt -o run5
check "is said" has err 'nothing to measure'
printf '{"text":"a"}\n{"text"\n' >broken.jsonl
check "malformed line" status 1 eval_ --text broken.jsonl -o run6
check "file and line" has err 'broken.jsonl:2'
check "refined slots" status 0 eval_ --refine 2 -o run8
check "are other settings" has run8/report.json 'refine 2'
check "expanded slots" status 0 eval_ --expand 1 -o run10
check "are other settings, too" has run10/report.json 'expand 1'
check "too much refining" status 1 eval_ --refine 20000 -o run9
check "several adapters" status 0 eval_ --adapters "$here/small/model/icae.safetensors,$here/small/model/icae.safetensors" -o run7
check "are compared" has run7/report.json '"ablations"'

if ! command -v python3 >/dev/null || ! status 0 "$icae" version; then
    echo "skip the judge: no python3"
    exit $((failures > 0))
fi

start() { # MODE: a judge at $url
    rm -f log port
    python3 "$here/judge.py" "$1" log >port &
    judge_pid=$!
    for _ in $(seq 100); do [ -s port ] && break; sleep 0.1; done
    url=http://127.0.0.1:$(cat port)/v1
}
stop() { kill "$judge_pid" 2>/dev/null; wait "$judge_pid" 2>/dev/null; judge_pid=; }
judged() { eval_ --judge "$url" --judge-model wise --judge-timeout 1 "$@"; }
value() { # COLUMN ROW: of the table of pairs
    grep "^instruct,Judged pairs,$2,$1," "${3:-run}/report.csv" | cut -d, -f5
}

start first
check "a judge that always prefers the first" status 0 env ICAE_JUDGE_KEY=secret "$icae" eval --threads 1 --suite suite.json \
    --judge "$url" --judge-model wise -o run
check "ends in ties" test "$(value 'Tie %' 1)" = 100
check "key and model travel" has log '["/v1/chat/completions", "Bearer secret", "wise", 1]'
check "both orders of three pairs" test "$(sort log | wc -l)" -ge 6
n=$(wc -l <log)
check "again, resumed" status 0 judged -o run --resume
check "asks nothing twice" test "$(wc -l <log)" = "$n"
stop

start longer
check "a judge with reasons" status 0 judged -o run
check "all judged" test "$(value Judged 3)" = 2
stop

start crowd
check "several at a time" status 0 judged --judge-parallel 3 -o run
check "all judged" test "$(value Judged 3)" = 2
check "two were asked at once" has log '"wise", 2]'
check "never more than three" test -z "$(grep -E '"wise", ([4-9]|[0-9]{2,})\]' log)"
stop

start limited
check "a busy judge" status 0 judged -o run
check "is asked again" test "$(value Judged 3)" = 2
stop

start nonsense
check "a judge that talks" status 0 judged -o run
check "judges nothing" test "$(value Judged 1)" = 0
check "which is said" has err 'Judged pairs: measured on 0 samples of the 6 asked for'
stop

start broken
check "a judge that is none" status 0 judged -o run
check "judges nothing" test "$(value Judged 1)" = 0
stop

start denied
check "a judge that refuses" status 0 judged -o run
check "is named" has err 'status 401'
check "is asked once" test "$(wc -l <log)" = 1
stop

start moody
check "a judge that goes away" status 0 judged -o run
check "is said" has err 'run again with --resume'
first=$(value Judged 1)
check "what it had judged counts" test "$first" -ge 1
stop
start longer
check "resumed with one that answers" status 0 judged -o run --resume
check "all judged" test "$(value Judged 3)" = 2
stop

url=http://127.0.0.1:1/v1
check "nobody there" status 0 judged -o run
check "is said" has err 'The judge cannot be used'
check "the rest is measured" has run/report.csv 'autoencoding,By length and rate,1,Samples,2'

start slow
check "a slow judge" status 0 judged -o run
check "is not waited for" has err 'The judge cannot be used'
stop

echo "$failures failures"
exit $((failures > 0))
