#!/usr/bin/env bash
# A file includes its own folder's headers, folders to its left, and icae.h:
#   base <- format <- text;  base <- format <- backend <- model <- core <- train, eval, store, serve <- cli
# The command line and the examples stand on icae.h only.
cd "$(dirname "$0")/.." || exit 1

allowed() {
    case $1 in
    base) echo "base" ;;
    format) echo "base format" ;;
    text) echo "base format text" ;;
    backend) echo "base format backend" ;;
    model) echo "base format text backend model" ;;
    core) echo "base format text backend model core" ;;
    store) echo "base format text backend model core store" ;;
    train | eval) echo "base format text backend model core train eval" ;;
    serve) echo "base format text backend model core store serve" ;;
    *) echo "" ;;
    esac
}

bad=0
files=0
while read -r file; do
    folder=${file#src/}
    folder=${folder%%/*}
    may=" $(allowed "$folder") "
    files=$((files + 1))
    while IFS= read -r line; do
        header=$(printf '%s\n' "${line#*:}" | sed 's/[^"]*"\([^"]*\)".*/\1/')
        [ "$header" = icae.h ] && continue
        from=${header%%/*}
        case $header in */*) ;; *) from=$folder ;; esac # a file of the same folder
        case $may in
        *" $from "*) ;;
        *)
            echo "layering: $file:${line%%:*}: $folder must not include $header"
            bad=1
            ;;
        esac
    done < <(grep -nE '^[[:space:]]*#[[:space:]]*include[[:space:]]*"' "$file")
done < <(find src -name '*.[ch]' -o -name '*.inc' -o -name '*.cu' -o -name '*.cuh')

outside=$(grep -nE '^[[:space:]]*#[[:space:]]*include[[:space:]]*"' cli/*.[ch] examples/*.c |
    grep -vE '"(icae|cli)\.h"')
if [ -n "$outside" ]; then
    echo "layering: the command line and the examples stand on icae.h only:"
    echo "$outside"
    bad=1
fi
[ $bad -eq 0 ] && echo "layering: $files files"
exit $bad
