#!/usr/bin/env bash
# Checks that what the build needs is here, and installs what is missing with apt (Debian, Ubuntu).
# Touches no network when everything is there. With --tests also what only tests need; without it they are skipped.
set -u
cd "$(dirname "$0")/.." || exit 1

missing=()
need_command() { # COMMAND PACKAGE
    command -v "$1" >/dev/null 2>&1 || missing+=("$2")
}
need_library() { # PKG-CONFIG-NAME PACKAGE
    command -v pkg-config >/dev/null 2>&1 && pkg-config --exists "$1" || missing+=("$2")
}

# A C compiler that can link a program (libc6-dev comes with gcc's recommendations only).
works() { echo 'int main(void){return 0;}' | "$1" -x c - -o /dev/null 2>/dev/null; }
works "${CC:-cc}" || missing+=(gcc libc6-dev)
need_command cmake cmake
command -v ninja >/dev/null 2>&1 || command -v make >/dev/null 2>&1 || missing+=(ninja-build)
need_command pkg-config pkg-config
need_library libcjson libcjson-dev
need_library libpcre2-8 libpcre2-dev
need_library libutf8proc libutf8proc-dev
need_library libcrypto libssl-dev
need_library libzstd libzstd-dev
need_library zlib zlib1g-dev
need_library sqlite3 libsqlite3-dev
need_library libpq libpq-dev
need_library libmicrohttpd libmicrohttpd-dev
need_library cmocka libcmocka-dev
# oneDNN 2.6 brings no pkg-config file.
found_dnnl=
for folder in /usr/include /usr/local/include ${CPATH:+${CPATH//:/ }} ${CMAKE_PREFIX_PATH:+${CMAKE_PREFIX_PATH//[:;]//include }/include}; do
    [ -e "$folder/oneapi/dnnl/dnnl.h" ] && found_dnnl=1
done
[ -n "$found_dnnl" ] || missing+=(libdnnl-dev)
if [ "${1:-}" = --tests ]; then
    ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || need_command initdb postgresql
    command -v chromium >/dev/null 2>&1 || command -v google-chrome >/dev/null 2>&1 || missing+=(chromium)
    need_command python3 python3
    python3 -c 'import yaml' 2>/dev/null || missing+=(python3-yaml)
    python3 -c 'import ensurepip' 2>/dev/null || missing+=(python3-venv)
    need_command curl curl
    need_command openssl openssl
    need_library libcurl libcurl4-openssl-dev
    need_library ompi-c libopenmpi-dev
    need_command mpirun openmpi-bin
fi

[ ${#missing[@]} -eq 0 ] && exit 0

become=()
if [ "$(id -u)" -ne 0 ]; then
    if command -v sudo >/dev/null 2>&1 && { [ -t 0 ] || sudo -n true 2>/dev/null; }; then
        become=(sudo)
    else
        echo "icae: not root, and no sudo: run as root: apt-get install ${missing[*]}" >&2
        exit 1
    fi
fi
if ! command -v apt-get >/dev/null 2>&1; then
    echo "icae: no apt-get here: install what these Debian packages hold, then run make again: ${missing[*]}" >&2
    exit 1
fi
echo "installing: ${missing[*]}"
export DEBIAN_FRONTEND=noninteractive
install() { "${become[@]}" apt-get install -y --no-install-recommends "${missing[@]}"; }
{ install || { "${become[@]}" apt-get update && install; }; } >/tmp/icae-install.$$ 2>&1
status=$?
if [ $status -ne 0 ]; then
    tail -5 /tmp/icae-install.$$ >&2
    echo "icae: apt-get could not install them; run yourself: apt-get install ${missing[*]}" >&2
fi
rm -f /tmp/icae-install.$$
exit $status
