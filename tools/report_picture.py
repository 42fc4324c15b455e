#!/usr/bin/env python3
"""Lays some figures of a report of `icae eval` out as one picture (docs/results.png).

    tools/report_picture.py results/report.html docs/results.png

Needs chromium.
"""
import argparse
import html
import os
import re
import subprocess
import tempfile

SHOWN = ("Median BLEU ", "Mean exact match", "Mean loss", "Perplexity of the continuation", "BLEU by kind", "Loss by kind",
         "Seconds for", "Perplexity by decoder")  # how their captions begin
SIZE = "1000,1240"
PAGE = ("<!doctype html><meta charset=utf-8>{style}<style>body{{margin:16px;max-width:none}}"
        ".charts{{display:grid;grid-template-columns:1fr 1fr;gap:12px}}</style><body><div class=charts>{figures}</div>")


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("report"), ap.add_argument("picture")
    args = ap.parse_args()
    with open(args.report, encoding="utf-8") as f:
        report = f.read()
    style = re.search(r"<style>.*?</style>", report, re.S)[0]
    figures = {}
    for figure in re.findall(r"<figure>.*?</figure>", report, re.S):
        caption = re.search(r"<figcaption>(.*?)</figcaption>", figure, re.S)[1]
        figures[html.unescape(re.sub("<.*?>", "", caption))] = figure
    shown = []
    for begin in SHOWN:
        found = [f for caption, f in figures.items() if caption.startswith(begin)]
        if not found:
            raise SystemExit(f"{args.report}: no figure '{begin}…'; it has {', '.join(figures)}")
        shown.append(found[0])
    with tempfile.TemporaryDirectory() as folder:
        page = os.path.join(folder, "page.html")
        with open(page, "w", encoding="utf-8") as f:
            f.write(PAGE.format(style=style, figures="".join(shown)))
        subprocess.run(["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--window-size={SIZE}",
                        f"--screenshot={os.path.abspath(args.picture)}", "file://" + page], check=True, stderr=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
