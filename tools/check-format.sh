#!/usr/bin/env bash
# Our sources are as clang-format leaves them. Without clang-format there is nothing to say.
cd "$(dirname "$0")/.." || exit 1
if ! command -v clang-format >/dev/null 2>&1; then
    echo "format: skipped, there is no clang-format"
    exit 0
fi
files=$(tools/sources.sh)
bad=$(for f in $files; do clang-format --dry-run -Werror "$f" >/dev/null 2>&1 || echo "$f"; done)
if [ -n "$bad" ]; then
    echo "format: not as clang-format leaves it (make format):"
    echo "$bad"
    exit 1
fi
echo "format: $(echo "$files" | wc -l) files"
