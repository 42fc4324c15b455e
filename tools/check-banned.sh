#!/usr/bin/env bash
# Words and functions that do not belong here.
cd "$(dirname "$0")/.." || exit 1
bad=0
complain() { # WHY LINES
    [ -z "$2" ] && return
    echo "banned: $1:"
    echo "$2" | head -20
    bad=1
}

# Code without comments and strings, with file and line.
code() {
    for f in "$@"; do
        sed -E 's/"([^"\\]|\\.)*"/""/g; s@//.*@@' "$f" |
            awk -v f="$f" '{
                line = $0
                while (1) {
                    if (inside) {
                        i = index(line, "*/"); if (!i) { line = ""; break }
                        line = substr(line, i + 2); inside = 0
                    }
                    i = index(line, "/*"); if (!i) break
                    rest = substr(line, i + 2); j = index(rest, "*/")
                    if (j) line = substr(line, 1, i - 1) " " substr(rest, j + 2)
                    else { kept = substr(line, 1, i - 1); inside = 1; line = kept; break }
                }
                if (line ~ /[^ \t]/) print f ":" NR ":" line
            }'
    done
}

library=$(find src -name '*.[ch]' -o -name '*.inc')
everything=$(tools/sources.sh)

complain "unbounded or locale-bound C functions" \
    "$(code $library $(ls cli/*.[ch] examples/*.c) | grep -E '[^a-zA-Z0-9_](strcpy|strcat|sprintf|vsprintf|gets|strtok|atoi|atol|atof|scanf|tmpnam|alloca)[[:space:]]*\(' |
        grep -vE 'strcpy\([a-z]+, ""\)')" # a literal into an array is seen by the compiler
complain "the library does not print, exit or abort" \
    "$(code $library | grep -E '[^a-zA-Z0-9_](printf|fprintf|puts|putchar|perror|exit|_exit|abort|system)[[:space:]]*\(' | grep -v snprintf)"
complain "all memory of the library comes from ic_alloc" \
    "$(code $(printf '%s\n' $library | grep -vE 'src/base/(memory|json).c') | grep -E '[^a-zA-Z0-9_.>](malloc|calloc|realloc|strdup|strndup)[[:space:]]*\(')"
complain "left over" "$(grep -nEw 'TODO|FIXME|XXX|HACK' $everything)"
complain "tabs or trailing blanks" "$(grep -nE '	|[ 	]+$' $everything)"
# clang-format breaks code at 100 columns; comments and long strings may run a little further.
complain "lines longer than 132 columns" \
    "$(awk 'length($0) > 132 && !/https?:/ {print FILENAME ":" FNR}' $(printf '%s\n' $everything | grep -vE '^(tests|bench|fuzz)/'))"
[ $bad -eq 0 ] && echo "banned: none in $(echo "$everything" | wc -l) files"
exit $bad
