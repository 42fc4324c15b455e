#!/usr/bin/env bash
# The whole main job on a small text with the bundled model. Usage: demo/run.sh [PATH/TO/icae]
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
icae=${1:-$here/../build/icae}
case $icae in */*) icae=$(cd "$(dirname "$icae")" && pwd)/${icae##*/} ;; esac
export ICAE_DATA=$here
unset ICAE_MODEL ICAE_ADAPTER
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
cp "$here/article.txt" .

bold="" dim="" plain=""
if [ -t 1 ] && [ -z "${NO_COLOR:-}" ]; then
    bold=$'\e[1m' dim=$'\e[2m' plain=$'\e[0m'
fi

# step CAPTION: what follows
step() { printf '\n%s%s%s\n' "$bold" "$1" "$plain"; }
# show ARGUMENTS: shows a command; run shows it and runs it
show() {
    local shown="" word
    for word in "$@"; do
        case $word in *[\ ?]*) shown+=" \"$word\"" ;; *) shown+=" $word" ;; esac
    done
    printf '%s$ icae%s%s\n' "$dim" "$shown" "$plain"
}
run() {
    show "$@"
    "$icae" "$@"
}

printf '%sicae: a text becomes a few memory slots, which the model reads in place of the text.%s\n' \
    "$bold" "$plain"
printf 'The bundled model is tiny (3 million parameters). It restores text well, but knows little: expect\n'
printf 'its answers and continuations to be wrong. The text below was held out of its training.\n'

step "1. Compress: one slot for four tokens. How much was kept?"
run compress article.txt --check

step "2. Restore the text from its slots alone: missing words and new ones."
run restore article.txt.icae --diff article.txt

step "3. Ask about the text, from the slots. (The machinery works; this model's answers are mostly wrong.)"
run ask article.txt.icae "What did the Dolphin think the Monkey was?" --max-tokens 32

step "4. Continue the text, from the slots. (Likewise.)"
run continue article.txt.icae --max-tokens 40 --temperature 0.7 --seed 1

step "5. Exact restoration: a few bytes of corrections beside the slots give the original back."
show compress article.txt -o exact.icae --exact
"$icae" compress article.txt -o exact.icae --exact | sed -n '$p'
run restore exact.icae -o restored.txt
cmp article.txt restored.txt && echo "article.txt and restored.txt are the same, byte for byte."

step "Try your own:"
cat <<'END'
  icae compress FILE --check
  icae restore FILE.icae --diff FILE
  icae ask FILE.icae "a question" --model MODEL_FOLDER --adapter ADAPTER   (for answers worth reading)
END
