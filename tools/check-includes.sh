#!/usr/bin/env bash
# Each third-party library is included by one file of the library, or one folder (zlib by two: archives
# need it as well).
cd "$(dirname "$0")/.." || exit 1

# headers (pattern), then the file or folder that may include them
rules='
cJSON|cjson      src/base/json.c
openssl/         src/base/hash.c
zstd\.h          src/base/
zlib\.h          src/base/ src/format/zip.c
pcre2\.h         src/text/regex.c
utf8proc\.h      src/text/unicode.c
oneapi/|dnnl\.h  src/backend/cpu/
cuda|cublas|nccl src/backend/cuda/
mpi\.h           src/train/
sqlite3\.h       src/store/
libpq            src/store/
microhttpd\.h    src/serve/
curl/            src/eval/ src/serve/
'
bad=0
while read -r pattern places; do
    [ -n "$pattern" ] || continue
    for file in $(grep -rlE "^[[:space:]]*#[[:space:]]*include[[:space:]]*<($pattern)" src include cli examples 2>/dev/null); do
        ok=
        for place in $places; do
            case $file in "$place"*) ok=1 ;; esac
        done
        if [ -z "$ok" ]; then
            echo "includes: $file includes <$pattern>, which belongs to $places"
            bad=1
        fi
    done
done <<<"$rules"

# Anything else in angle brackets is the C library's, POSIX's, the compiler's, or a newcomer.
known='assert|complex|ctype|errno|fenv|float|inttypes|iso646|limits|locale|math|setjmp|signal|stdalign|stdarg|stdatomic|stdbool|stddef|stdint|stdio|stdlib|stdnoreturn|string|strings|time|wchar|dirent|fcntl|ftw|getopt|glob|grp|netdb|poll|pthread|pwd|sched|semaphore|spawn|syslog|termios|unistd|sys/[a-z]+|netinet/[a-z]+|arpa/inet|immintrin|cpuid|arm_neon|omp|icae'
third='cjson|cJSON|openssl|zstd|zlib|pcre2|utf8proc|oneapi|dnnl|cuda|cublas|nccl|mpi|sqlite3|libpq|microhttpd|curl'
new=$(grep -rnoE '^[[:space:]]*#[[:space:]]*include[[:space:]]*<[^>]+>' src include cli examples |
    grep -vE "<($known)\.h>" | grep -vE "<($third)")
if [ -n "$new" ]; then
    echo "includes: unknown headers; give them a place in tools/check-includes.sh:"
    echo "$new"
    bad=1
fi
[ $bad -eq 0 ] && echo "includes: each library in its place"
exit $bad
