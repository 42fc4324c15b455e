#!/usr/bin/env python3
"""Makes tests/data/eval/metrics.jsonl.gz: text pairs and what the reference packages say of them.

Needs sacrebleu and rouge-score (pip install sacrebleu rouge-score); the tests themselves need no
Python. SQuAD's exact match and F1 are computed here by the definitions of its evaluation script,
version 2. Texts are drawn from word lists below, so that the file is the same on every machine.

    python3 tools/make_metric_goldens.py > /dev/null
"""
import collections
import gzip
import json
import pathlib
import random
import re
import string
import sys

import sacrebleu
from rouge_score import rouge_scorer

WORDS = """the a an of in on to and but or ship lamp river keeper storm Anna Berlin Dr. Smith e.g. U.S. don't
well-known state-of-the-art 3 14 1,284.5 40% $5.00 1912 3-4 x-ray café naïve Straße Ångström İstanbul K 東京 привет
https://example.org/a_b?c=d&e me@example.org snake_case camelCase call() a::b "quoted" 'single' (brackets) [square]
{curly} a/b and/or &amp; &quot; &lt;tag&gt; <skipped> semi; colon: what? stop! comma, full. ... -- – — … “curly” ’s
A.B.C. 1.5.2 .5 5. ,5 5, 10-20 -7 +3 #1 @home ^up ~tilde `tick` back\\slash | pipe = equal _under_ THE An a.m. 'a'
x² ½ € 20€ £3 ªbc µm № 😀 e\u0301 \u00a0 \u2003 \u3000 zero\u200bwidth tab\tbed ΟΔΟΣ οδος ÉCOLE école""".split(" ")
WORDS = [w for chunk in WORDS for w in chunk.split("\n") if w]


def text(rng, n):
    out = []
    for _ in range(n):
        out.append(rng.choice(WORDS))
        out.append(rng.choice([" "] * 18 + ["  ", "\n", "-\n", ", ", ". ", ""]))
    return "".join(out)


def spoil(rng, s, rate):
    words, out = s.split(" "), []
    for w in words:
        x = rng.random()
        if x < rate / 3:
            continue
        out.append(rng.choice(WORDS) if x < 2 * rate / 3 else w)
        if x > 1 - rate / 3:
            out.append(rng.choice(WORDS))
    return " ".join(out)


def normalize(s):
    s = "".join(c for c in s.lower() if c not in set(string.punctuation))
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", s, flags=re.UNICODE).split())


def squad(gold, pred):
    g, p = normalize(gold).split(), normalize(pred).split()
    exact = int(normalize(gold) == normalize(pred))
    if not g or not p:
        return exact, float(g == p)
    same = sum((collections.Counter(g) & collections.Counter(p)).values())
    if same == 0:
        return exact, 0.0
    precision, recall = same / len(p), same / len(g)
    return exact, 2 * precision * recall / (precision + recall)


def main():
    rng = random.Random(20230706)
    pairs = [("", ""), ("", "a"), ("a", ""), ("The", "a"), ("-", "-\n"), ("x", "x"), ("x y z", "x y z"),
             ("one two three four", "one two three four"), ("one two three four five", "one two three four six"),
             ("the cat", "The cat."), ("U.S.", "US"), ("a b c d", "d c b a"), ("  spaced  ", "spaced"),
             ("line-\nbreak", "linebreak"), ("ends-", "ends-\n"), ("1,000", "1000"), ("..", ". ."), ("5-4", "5 - 4")]
    while len(pairs) < 500:
        reference = text(rng, rng.choice([1, 2, 3, 4, 5, 8, 12, 20, 30]))
        rate = rng.choice([0, 0.1, 0.2, 0.4, 0.8, 1])
        pairs.append((spoil(rng, reference, rate) if rate < 1 else text(rng, rng.randint(1, 20)), reference))
    rouge = rouge_scorer.RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=False)
    lines = []
    for candidate, reference in pairs:
        r = rouge.score(reference, candidate)
        exact, f1 = squad(reference, candidate)
        lines.append({
            "candidate": candidate, "reference": reference,
            "bleu": sacrebleu.sentence_bleu(candidate, [reference]).score / 100,
            "rouge": [[r[k].precision, r[k].recall, r[k].fmeasure] for k in ("rouge1", "rouge2", "rougeL")],
            "exact": exact, "f1": f1})
    corpus = []
    for first in range(0, 500, 25):
        some = pairs[first:first + 25]
        corpus.append(sacrebleu.corpus_bleu([c for c, _ in some], [[r for _, r in some]]).score / 100)
    whole = sacrebleu.corpus_bleu([c for c, _ in pairs], [[r for _, r in pairs]]).score / 100
    short = sacrebleu.corpus_bleu(["a b c", "d e"], [["a b x", "d e"]]).score / 100
    head = {"sacrebleu": sacrebleu.__version__, "rouge-score": "0.1.2", "corpus_of_25": corpus, "corpus": whole,
            "short_corpus": short}
    folder = pathlib.Path(__file__).resolve().parent.parent / "tests" / "data" / "eval"
    body = "".join(json.dumps(x, ensure_ascii=False) + "\n" for x in [head] + lines)
    (folder / "metrics.jsonl.gz").write_bytes(gzip.compress(body.encode(), 9, mtime=0))
    print(len(lines), "pairs,", len(body), "bytes of text", file=sys.stderr)


if __name__ == "__main__":
    main()
