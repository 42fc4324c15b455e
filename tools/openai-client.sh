#!/usr/bin/env bash
# Gives the server's tests OpenAI's Python client, in an environment of its own: tools/openai-client.sh FOLDER
# Touches no network when it is there. Where it cannot be had, its test is skipped with a notice, and this succeeds.
set -u
folder=$1

for python in "${ICAE_PYTHON:-}" "$folder/bin/python" python3; do
    [ -n "$python" ] && "$python" -c 'import openai' 2>/dev/null && exit 0
done
python3 -m venv "$folder" && timeout 300 "$folder/bin/pip" install -q --retries 1 --timeout 20 openai && exit 0
rm -rf "$folder"
echo "icae: OpenAI's Python client could not be installed; its test will be skipped" >&2
