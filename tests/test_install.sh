#!/usr/bin/env bash
# What `make install` leaves behind, and a program made with it alone. Usage: test_install.sh BUILD SOURCE
set -eu
build=$1 source=$2
root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
DESTDIR=$root cmake --install "$build" >"$root/log"

found() { # PATTERN: the one installed file whose path ends so
    local files
    files=$(find "$root" -path "*/$1" ! -type d)
    [ "$(printf '%s\n' "$files" | grep -c .)" -eq 1 ] || { echo "FAILED: not one $1: $files"; exit 1; }
    printf '%s\n' "$files"
}
for name in bin/icae icae.h icae.pc man1/icae.1 bash-completion/completions/icae _icae icae.fish LICENSE icae.safetensors; do
    found "$name" >/dev/null
done

# As a package's user would: the flags come from pkg-config.
PKG_CONFIG_PATH=$(dirname "$(found icae.pc)")
export PKG_CONFIG_PATH PKG_CONFIG_SYSROOT_DIR=$root
flags=$(pkg-config --cflags --libs icae)
${CC:-cc} -std=c11 -Wall -Werror "$source/examples/ask.c" -o "$root/ask" $flags
LD_LIBRARY_PATH=$(dirname "$(found libicae.so)")
ICAE_DATA=$(dirname "$(dirname "$(found icae.safetensors)")")
export LD_LIBRARY_PATH ICAE_DATA
"$root/ask" "$source/demo/article.txt" "What is this about?" >"$root/answer"
[ -s "$root/answer" ] || { echo "FAILED: the program says nothing"; exit 1; }

# Completion knows every command that the program has.
icae=$(found bin/icae)
commands=$("$icae" help | sed -n 's/^  \([a-z]*\) .*/\1/p')
PATH=$(dirname "$icae"):$PATH
. "$(found bash-completion/completions/icae)"
COMP_WORDS=(icae "") COMP_CWORD=1
_icae
for command in $commands; do
    printf '%s\n' "${COMPREPLY[@]}" | grep -qx "$command" || { echo "FAILED: no completion of $command"; exit 1; }
    [ "$command" = help ] || [ "$command" = version ] ||
        grep -q "^\.B icae $command\|^\.SS $command" "$(found man1/icae.1)" ||
        { echo "FAILED: the man page does not speak of $command"; exit 1; }
done
echo "installed files, a program and completion work"
