#!/usr/bin/env python3
"""Computes the scores of an evaluation again, with the reference packages, from the texts that it recorded.

Needs sacrebleu and rouge-score. RUN is the folder that `icae eval -o RUN` wrote, TEXT the files and folders that it
read, in the same order. Sentence and corpus BLEU, ROUGE-1/2/L, exact match and F1 of every record, and the means
in report.json, must agree to 1e-6.

    python3 tools/check_metrics.py RUN TEXT...
"""
import collections
import gzip
import json
import math
import pathlib
import subprocess
import sys

import sacrebleu
from rouge_score import rouge_scorer

from make_metric_goldens import squad

LIMIT = 1e-6


def read(path):
    if path.suffix == ".zst":
        return subprocess.run(["zstd", "-dc", path], check=True, stdout=subprocess.PIPE).stdout.decode()
    return gzip.open(path, "rt").read() if path.suffix == ".gz" else path.read_text()


def questions(paths):
    """In the order in which icae eval numbers them."""
    for path in paths:
        if path.is_dir():
            yield from questions(sorted(p for p in path.iterdir() if not p.name.startswith((".", "README", "LICENSE"))))
        elif ".jsonl" in path.name:
            for line in read(path).split("\n"):
                record = json.loads(line) if line.strip() else {"text": ""}
                if not isinstance(record.get("text"), str):
                    yield record.get("answer", record.get("response"))


class Check:
    def __init__(self):
        self.worst, self.count = collections.Counter(), collections.Counter()

    def equal(self, what, ours, theirs):
        self.worst[what] = max(self.worst[what], abs(ours - theirs))
        self.count[what] += 1


def check_restored(check, records, report):
    """Sentence BLEU of each; corpus BLEU of every row of the table."""
    cells = collections.defaultdict(list)
    for key, r in records.items():
        if key.startswith("ae|") and "bleu" in r:
            _, system, texts, length, rate, _ = key.split("|")
            theirs = sacrebleu.sentence_bleu(r["restored"], [r["reference"]], smooth_method="exp").score / 100
            check.equal("sentence BLEU", r["bleu"], theirs)
            if not texts:
                cells[system, int(length), float(rate)].append(r)
    for section in report["sections"]:
        for table in section["items"]:
            if section["id"] != "autoencoding" or table.get("title") != "By length and rate":
                continue
            names = [c["name"] for c in table["columns"]]
            for row in (dict(zip(names, r)) for r in table["rows"]):
                if not row["Samples"]:
                    continue
                key = min((k for k in cells if k[:2] == (row["System"], row["Tokens"])),
                          key=lambda k: abs(k[2] - row["Rate"]))
                pairs = cells[key]
                corpus = sacrebleu.corpus_bleu([r["restored"] for r in pairs], [[r["reference"] for r in pairs]])
                check.equal("corpus BLEU", row["BLEU corpus"], corpus.score / 100)
                check.equal("mean BLEU", row["BLEU mean"], math.fsum(r["bleu"] for r in pairs) / len(pairs))


def check_answers(check, records, answers):
    scorer = rouge_scorer.RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=False)
    for key, r in records.items():
        if key.startswith("qa|") and "rouge1" in r:
            reference = answers[int(key.rsplit("|", 1)[1])]
            for name, score in scorer.score(reference, r["answer"]).items():
                check.equal(name, r[name], score.fmeasure)
            exact, f1 = squad(reference, r["answer"])
            check.equal("exact match", r["exact"], exact)
            check.equal("F1", r["f1"], f1)


def main():
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    run = pathlib.Path(sys.argv[1])
    lines = [json.loads(line) for line in (run / "records.jsonl").read_text().split("\n")[1:] if line]
    records = {line["key"]: line["value"] for line in lines}
    check = Check()
    check_restored(check, records, json.loads((run / "report.json").read_text()))
    check_answers(check, records, list(questions([pathlib.Path(p) for p in sys.argv[2:]])))
    for what, count in check.count.items():
        print(f"{what}: {count} compared, largest difference {check.worst[what]:.1e}")
    sys.exit(not check.count or max(check.worst.values()) > LIMIT)


if __name__ == "__main__":
    main()
