#!/usr/bin/env bash
# test_store_cli.sh ICAE - `icae store` from outside, on both databases.
set -u
icae=$1
here=$(cd "$(dirname "$0")" && pwd)
export ICAE_DATA=${ICAE_DATA:-$here/small}
work=$(mktemp -d) && chmod 711 "$work"
trap 'bash "$here/postgres.sh" crash "$work/pg" 2>/dev/null; rm -rf "$work"' EXIT
cd "$work" || exit 1
failures=0
check() { # NAME COMMAND...: the command must succeed
    local name=$1
    shift
    if "$@"; then echo "ok   $name"; else echo "FAIL $name"; failures=$((failures + 1)); fi
}
status() { # WANTED ARGUMENTS...: of icae store; output to out and err
    local wanted=$1
    shift
    "$icae" store "$@" >out 2>err </dev/null
    local got=$?
    [ $got -eq "$wanted" ] || { echo "status $got, wanted $wanted: $*"; head -3 err; return 1; }
    if grep -qE 'Sanitizer|runtime error' err; then cat err; return 1; fi
}
has() { grep -qF -- "$2" "$1" || { echo "$1 lacks: $2"; return 1; }; }

"$icae" compress "$here/../demo/article.txt" -o a.icae -q
"$icae" compress "$here/../demo/article.txt" --int8 -o b.icae -q

suite() { # URL
    export ICAE_STORE=$1
    rm -rf all
    check "empty" status 0 ls
    check "put two" status 0 put a.icae b.icae --owner ann
    id=$(head -1 out)
    check "put again" status 0 put a.icae --owner ann
    check "the same id" has out "$id"
    check "named" status 0 put a.icae --name "tea time" --ttl 1000
    check "list" status 0 ls
    check "three" test "$(wc -l <out)" -eq 3
    check "of one owner" status 0 ls --owner ann
    check "two" test "$(wc -l <out)" -eq 2
    check "JSON" status 0 ls --json --name "tea time"
    check "its name" has out '"name": "tea time"'
    check "get" status 0 get "$id" -o back.icae
    check "the very bytes" cmp a.icae back.icae
    check "get to a pipe" status 0 get "$id"
    check "the very bytes there" cmp a.icae out
    check "export" status 0 export all
    check "three files" test "$(find all -name '*.icae' | wc -l)" -eq 3
    check "stats" status 0 stats --json
    check "two stored" has out '"blobs": 2'
    check "another's" status 1 rm "$id" --owner bob
    check "remove" status 0 rm "$id"
    check "is gone" status 1 get "$id" -o back2.icae
    check "is named" has err "$id"
    check "nothing written" test ! -e back2.icae
    check "gc" status 0 gc --quota 1K --json
    check "evicted" has out '"evicted": 2'
    check "empty again" status 0 ls
    check "says nothing" test ! -s out
    check "no slot file" status 1 put "$here/../demo/article.txt"
    check "no verb" status 2
    check "unknown verb" status 2 lss
    check "is guessed" has err 'did you mean `ls`'
    check "too many" status 2 stats x
    check "too few" status 2 get
}
suite "$work/store.db"
check "elsewhere" status 0 ls --store "$work/other.db"
check "no folder" status 1 ls --store "$work/none/other.db"
check "says where" has err none/other.db
if url=$(bash "$here/postgres.sh" start "$work/pg"); then
    suite "$url"
else
    echo "SKIPPED: PostgreSQL: its server programs are not installed (postgresql)"
fi
exit $((failures > 0))
