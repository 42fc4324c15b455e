#!/usr/bin/env python3
"""Our speed beside the peers', measured in turn on the same machine, shapes and threads.

    bench/run.py [--shapes tiny15m small110m llama1b] [--tasks eval compress decode prefill load train …] [--threads 2]
                 [--build build] [--peers build/peers] [--models build/bench-models] [--repeats 5] [--rounds 2]

Prints one JSON line a comparison and a table at the end. `ours` and `peer` are medians of the rounds (tokens a
second; seconds for load, MB for memory; higher is better except for those two), `ratio` the median of the rounds'
ours / peer, since a machine drifts, `share_of_limit` ours against the machine (see bench_icae.c, bench_train.c). The peers need their own Python environment:
bench/peers/setup.sh makes it; without it only our own numbers are printed. Model files with random
weights are written on first use. `eval` has no shape: the model of tests/small measures 200 texts of 512 tokens
(bench_eval.c); its "peer" is restoring them one by one.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
INFERENCE, TRAINING = ["compress", "decode", "prefill", "load"], ["train", "train-batch", "train-mixed"]
# for each name: the peer, what to run there, and the field of its result
COMPARISONS = {
    "compress": [("pytorch", ["--tasks", "compress"], "tokens_per_second")],
    "decode": [("pytorch", ["--tasks", "restore"], "tokens_per_second"),
               ("llama.cpp", ["--tasks", "decode", "--prefill", "129"], "tokens_per_second")],
    "prefill": [("llama.cpp", ["--tasks", "prefill"], "tokens_per_second")],
    "load": [("llama.cpp", ["--tasks", "load"], "load_seconds")],
    "train": [("pytorch", ["--tasks", "train"], "tokens_per_second"),
              ("pytorch", ["--tasks", "train_checkpointed"], "tokens_per_second")],
    "train-batch": [("pytorch", ["--tasks", "train_batched"], "tokens_per_second")],
    "train-mixed": [("pytorch", ["--tasks", "train_mixed"], "tokens_per_second")],
}


def last_json(command: list[str]) -> dict | None:
    small = {**os.environ, "ICAE_DATA": str(ROOT / "tests" / "small")}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=small)
    lines = done.stdout.strip().splitlines()
    return json.loads(lines[-1]) if done.returncode == 0 and lines else None


def ours(options, shape: str, task: str) -> dict | None:
    model = options.models / f"{shape}-bf16"
    train = {"train": "one", "train-batch": "batch", "train-mixed": "mixed"}
    program = options.build / ("bench_train" if task in train else "bench_icae")
    return last_json([str(program), str(model), train.get(task, task), str(options.threads), str(options.repeats)])


def peer(options, shape: str, name: str, arguments: list[str]) -> dict | None:
    python = options.peers / "bin" / "python"
    if not python.exists():
        return None
    script = HERE / "peers" / {"pytorch": "bench_peer.py", "llama.cpp": "bench_llamacpp.py"}[name]
    kinds = ["--kinds", "BF16"] if name == "llama.cpp" else []
    return last_json([str(python), str(script), shape, *kinds, *arguments, "--threads", str(options.threads),
                      "--folder", str(options.models), "--repeats", str(options.repeats)])


def median(results: list[dict], field: str) -> float:
    return statistics.median(r[field] for r in results)


def compare(options, shape: str, name: str, peer_name: str, peer_arguments: list[str], field: str) -> list[dict]:
    rounds = [(ours(options, shape, name), peer(options, shape, peer_name, peer_arguments))
              for _ in range(options.rounds)]           # in turn, so that a drifting machine hits both
    mine, both = [m for m, _ in rounds if m], [(m, t) for m, t in rounds if m and t]
    if not mine:
        return []
    speed, unit = ("first_token_seconds", "s") if name == "load" else ("tokens_per_second", "tokens/s")
    against = " ".join([peer_name, *(a for a in peer_arguments[1:] if a != "--prefill")])
    lines = []
    for suffix, my_key, their_key, unit in (("", speed, field, unit), ("-memory", "peak_rss_mb", "peak_rss_mb", "MB")):
        line = {"name": f"{name}{suffix}/{shape}", "against": against, "ours": median(mine, my_key), "unit": unit}
        if both:
            line["peer"] = median([t for _, t in both], their_key)
            line["ratio"] = round(statistics.median(m[my_key] / t[their_key] for m, t in both), 3)
        if unit == "tokens/s" and mine[0].get("share_of_limit"):
            line["share_of_limit"] = round(median(mine, "share_of_limit"), 3)
        print(json.dumps(line), flush=True)
        lines.append(line)
    return lines


def evaluation(options) -> list[dict]:
    """Restoration in an evaluation against one text and one token after the other."""
    program = options.build / "bench_eval"
    runs = [last_json([str(program), "200", "512", str(options.threads)]) for _ in range(options.rounds)]
    runs = [r for r in runs if r]
    if not runs:
        return []
    lines = [{"name": "eval/small", "against": "one by one", "ours": median(runs, "tokens_per_second"),
              "peer": median(runs, "one_by_one"), "ratio": round(median(runs, "ratio"), 3), "unit": "tokens/s"},
             {"name": "eval-whole/small", "against": "one by one", "ours": median(runs, "seconds"), "peer":
              median(runs, "seconds") * median(runs, "whole_ratio"), "ratio": round(1 / median(runs, "whole_ratio"), 3),
              "unit": "s"},
             {"name": "eval-memory/small", "against": "-", "ours": median(runs, "peak_rss_mb"), "unit": "MB"}]
    for line in lines:
        print(json.dumps(line), flush=True)
    return lines


def write_models(options, shape: str) -> bool:
    """The folder of random weights, by the peers' own writer."""
    folder = options.models / f"{shape}-bf16"
    if (folder / "config.json").exists():
        return True
    python = options.peers / "bin" / "python"
    if not python.exists():
        print(f"{folder} is missing and there is no {python} to write it: run bench/peers/setup.sh", file=sys.stderr)
        return False
    code = (f"import sys; sys.path.insert(0, {str(HERE / 'peers')!r}); import torch; from pathlib import Path; "
            f"from bench_peer import write_model; write_model(Path({str(folder)!r}), {shape!r}, torch.bfloat16)")
    return subprocess.run([str(python), "-c", code]).returncode == 0


def forget(options, shape: str) -> None:
    """Drop a shape's files from the page cache, so that each program gets the pages that its own reading makes."""
    for path in [*(options.models / f"{shape}-bf16").glob("*"), *options.models.glob(f"{shape}-*.gguf")]:
        file = os.open(path, os.O_RDONLY)
        os.fsync(file)
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(file)


def table(lines: list[dict]) -> None:
    print(f"\n{'name':28} {'against':28} {'ours':>10} {'peer':>10} {'ratio':>7} {'of limit':>9}")
    for r in lines:
        cells = [f"{r[k]:.2f}" if isinstance(r.get(k), (int, float)) else "-"
                 for k in ("ours", "peer", "ratio", "share_of_limit")]
        print(f"{r['name']:28} {r['against']:28} {cells[0]:>10} {cells[1]:>10} {cells[2]:>7} {cells[3]:>9}  {r['unit']}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", help="default: small110m llama1b, and tiny15m for training")
    parser.add_argument("--tasks", nargs="+", choices=["eval", *COMPARISONS], default=["eval", *COMPARISONS])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--build", type=Path, default=ROOT / "build")
    parser.add_argument("--peers", type=Path, default=ROOT / "build/peers")
    parser.add_argument("--models", type=Path, default=ROOT / "build/bench-models")
    options = parser.parse_args()
    lines = evaluation(options) if "eval" in options.tasks else []
    for shape in options.shapes or ["tiny15m", "small110m", "llama1b"]:
        names = [n for n in options.tasks if n in TRAINING or n in INFERENCE and (options.shapes or shape != "tiny15m")]
        if not names:
            continue
        if not write_models(options, shape):
            return 1
        forget(options, shape)
        for name in names:
            for comparison in COMPARISONS[name]:
                lines += compare(options, shape, name, *comparison)
    table(lines)
    return 0 if lines else 1


if __name__ == "__main__":
    sys.exit(main())
