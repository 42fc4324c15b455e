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
    questions=("What did the Dolphin think the Monkey was?" "Who was shipwrecked?" "Where was the ship going?")
else
    questions=("What is this text about?" "Who is in it?" "What happens first?")
fi
export ICAE_DATA=$here
unset ICAE_MODEL ICAE_ADAPTER
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cp "$source" "$work/$text"
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
printf 'The bundled model is tiny (3 million parameters). It restores text well, but knows little: expect\n'
printf 'its answers and continuations to be wrong.'
[ $# -ge 2 ] || printf ' The text below was held out of its training.'
printf '\n'

step "1. Compress: one slot for four tokens. How much was kept?"
run compress "$text" --check

step "2. Restore the text from its slots alone: missing words and new ones."
run restore "$text.icae" --diff "$text"

step "3. Half as many slots, improved by some steps of gradient descent on this one text."
run compress "$text" --adapter demo/model/icae-8x.safetensors --refine 30 --check -o half.icae

step "4. Ask about the text, from the slots. (The machinery works; this model's answers are mostly wrong.)"
for question in "${questions[@]}"; do
    run ask "$text.icae" "$question" --max-tokens 32
done

step "5. Continue the text, from the slots. (Likewise.)"
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
  icae compress FILE --check --refine 10                       (better slots, for some seconds)
  icae restore FILE.icae --diff FILE
  icae ask FILE.icae "a question" --model MODEL_FOLDER --adapter ADAPTER   (for answers worth reading)
END
