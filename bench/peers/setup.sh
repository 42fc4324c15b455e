#!/bin/sh
# Makes the Python environment of the peers in the folder given, or in build/peers of this repository.
set -u
target=${1:-$(dirname "$0")/../../build/peers}
packages="torch transformers peft safetensors tokenizers sentencepiece gguf numpy"

missing() {
    echo "setup.sh: $1" >&2
    exit 1
}

command -v python3 >/dev/null || missing "python3 is missing"
python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' || missing "Python 3.11 or later is needed"
[ -x "$target/bin/python" ] || python3 -m venv "$target" ||
    missing "python3 -m venv fails; Debian has it in python3-venv"
# The variant of torch for CPUs only is enough; PIP_INDEX_URL and the like choose where packages come from.
"$target/bin/pip" install --quiet $packages || missing "pip cannot install one of: $packages"
command -v c++ >/dev/null && command -v cmake >/dev/null ||
    missing "a C++ compiler or cmake is missing for llama-cpp-python; bench_peer.py works, bench_llamacpp.py does not"
"$target/bin/pip" install --quiet llama-cpp-python ||
    missing "llama-cpp-python does not build; bench_peer.py works, bench_llamacpp.py does not"
echo "$target/bin/python is ready"
