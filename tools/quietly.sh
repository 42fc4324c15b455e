#!/usr/bin/env bash
# Runs a command with one line of its own output: shows all of it only if it fails.
# Usage: tools/quietly.sh WHAT COMMAND...
set -u
what=$1
shift
log=$(mktemp)
trap 'rm -f "$log"' EXIT
[ -t 1 ] && printf '%s ...' "$what"
"$@" >"$log" 2>&1
status=$?
[ -t 1 ] && printf '\r\033[K'
if [ $status -ne 0 ]; then
    cat "$log"
    echo "$what failed" >&2
fi
exit $status
