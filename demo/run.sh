#!/usr/bin/env bash
# The whole main job on a small text with the bundled model. Usage: demo/run.sh [PATH/TO/icae [TEXT]]
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
icae=${1:-$here/../build/icae}
case $icae in */*) icae=$(cd "$(dirname "$icae")" && pwd)/${icae##*/} ;; esac
source=${2:-$here/article.txt}
[ -f "$source" ] || { echo "demo: there is no file $source" >&2; exit 1; }
text=$(basename "$source")
case $text in -* | demo) text=text.txt ;; esac
if [ $# -lt 2 ]; then
    held=" The texts below were held out of its training."
    facts=country.txt # such questions the model has learnt to answer
    scores=" (100 such questions: F1 0.59; by the encoder and slots alone 0.43, from the full text 0.71)"
    questions=("What is the capital of Guinea?" "What is the median age in Guinea?"
        "What natural resources does Guinea have?")
else
    held=""
    facts=$text
    scores=""
    questions=("What is this text about?" "Who is in it?" "What happens first?")
fi
export ICAE_DATA=$here
unset ICAE_MODEL ICAE_ADAPTER
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cp "$source" "$work/$text"
[ "$facts" = "$text" ] || cp "$here/$facts" "$work"
ln -s "$here" "$work/demo"
cd "$work"

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
printf 'The bundled model is small (26 million parameters, trained from scratch). It restores text well, and answers\n'
printf 'simple questions on facts; of stories it understands little.%s\n' "$held"

step "1. Compress: one slot for four tokens, improved by some steps of gradient descent. How much was kept?"
run compress "$text" --check

step "2. Restore the text from its slots alone: missing words and new ones."
run restore "$text.icae" --diff "$text"

step "3. Half as many slots, in more steps."
run compress "$text" --adapter demo/model/icae-8x.safetensors --check -o half.icae

step "4. Ask about a text. It is slots; four segments that a question is about are restored from them first, and read.$scores"
[ "$facts" = "$text" ] || run compress "$facts" --check
for question in "${questions[@]}"; do
    run ask "$facts.icae" "$question" --max-tokens 32
done

step "5. Continue the text, from the slots, the last four segments of it restored first. (A small model's prose.)"
run continue "$text.icae" --max-tokens 40 --temperature 0.7 --seed 1

step "6. Exact restoration: a few bytes of corrections beside the slots give the original back."
show compress "$text" -o exact.icae --exact
"$icae" compress "$text" -o exact.icae --exact | sed -n '$p'
run restore exact.icae -o restored.txt
cmp "$text" restored.txt && echo "$text and restored.txt are the same, byte for byte."

step "Try your own:"
cat <<'END'
  make demo TEXT=FILE                       (all of the above on it; English, up to some 2,000 words)
  icae compress FILE --check
  icae compress FILE --check --refine 0                        (slots as the encoder makes them, at once)
  icae restore FILE.icae --diff FILE
  icae ask FILE.icae "a question"
  icae ask FILE.icae "a question" --model MODEL_FOLDER --adapter ADAPTER   (for answers worth reading)
END
