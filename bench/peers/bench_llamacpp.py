"""Speed and memory of llama.cpp on the benchmark shapes, one JSON line per storage kind and task.

    python bench_llamacpp.py SHAPE [--threads N] [--kinds F16 BF16 Q8_0 Q4_0] [--tasks load prefill decode]
                             [--prefill N] [--decode N] [--repeats N] [--folder DIR]

Tasks, each in a process of its own so that its peak memory is its own:
  load      open the file (in the page cache) and make a context
  prefill   read N tokens (512) in one batch; logits of the last one only
  decode    add N tokens (128) one by one behind such a batch
The median of the repeats is given, and the best.  The GGUF files hold random weights and are written
on first use; all layers of a file are equal.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import llama_cpp
import numpy as np

from bench_shapes import SHAPES, weight_shapes
from gguf_files import Vocabulary, write_gguf

KINDS = ("F16", "BF16", "Q8_0", "Q4_0")
TASKS = ("load", "prefill", "decode")
PREFILL, DECODE = 512, 128


def placeholder_vocabulary(size: int) -> Vocabulary:
    tokens = ["<unk>", "<s>", "</s>"] + [f"<0x{i:02X}>" for i in range(256)]
    tokens += [f"t{i}" for i in range(len(tokens), size)]
    types = [2, 3, 3] + [6] * 256 + [1] * (size - 259)
    return Vocabulary("llama", [t.encode() for t in tokens], types, 1, 2, scores=[0.0] * size)


def random_weights(config: dict):
    """Random weights by name; one matrix serves all layers."""
    generator = np.random.default_rng(0)
    made: dict[str, np.ndarray] = {}
    for name, size in weight_shapes(config):
        key = name.split(".", 3)[-1] if ".layers." in name else name
        if key not in made:
            made[key] = (np.ones(size, np.float32) if len(size) == 1 else
                         generator.standard_normal(size, np.float32) * np.float32(0.02))
        yield name, made[key]


def write_model(path: Path, config: dict, kind: str) -> None:
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(".part")
        write_gguf(unfinished, config, random_weights(config), kind, placeholder_vocabulary(config["vocab_size"]))
        unfinished.rename(path)


@llama_cpp.llama_log_callback
def ignore_log(level: int, text: bytes, user_data: object) -> None:
    """Takes llama.cpp's messages."""


def feed(context, tokens: np.ndarray) -> None:
    array = (llama_cpp.llama_token * len(tokens))(*tokens.tolist())
    if llama_cpp.llama_decode(context, llama_cpp.llama_batch_get_one(array, len(tokens))):
        raise RuntimeError("llama_decode failed")
    llama_cpp.llama_synchronize(context)


def run_task(path: Path, task: str, threads: int, prefill: int, decode: int, repeats: int) -> dict:
    """Load one file and time one task in this process."""
    llama_cpp.llama_log_set(ignore_log, None)
    llama_cpp.llama_backend_init()
    start = time.perf_counter()
    model = llama_cpp.llama_model_load_from_file(str(path).encode(), llama_cpp.llama_model_default_params())
    options = llama_cpp.llama_context_default_params()
    options.n_ctx, options.n_batch, options.n_ubatch = prefill + decode, prefill, prefill
    options.n_threads = options.n_threads_batch = threads
    context = llama_cpp.llama_init_from_model(model, options)
    result = {"load_seconds": round(time.perf_counter() - start, 3)}
    memory = llama_cpp.llama_get_memory(context)
    vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
    tokens = np.random.default_rng(1).integers(3, vocab, prefill + decode)
    seconds = []
    for _ in range(0 if task == "load" else repeats + 1):
        llama_cpp.llama_memory_clear(memory, True)
        start = time.perf_counter()
        feed(context, tokens[:prefill])
        if task == "decode":
            start = time.perf_counter()
            for i in range(prefill, prefill + decode):
                feed(context, tokens[i:i + 1])
        seconds.append(time.perf_counter() - start)
    if seconds:
        count = prefill if task == "prefill" else decode
        result["tokens_per_second"] = round(count / statistics.median(seconds[1:]), 2)      # the first warms up
        result["best_tokens_per_second"] = round(count / min(seconds[1:]), 2)
    result["peak_rss_mb"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=TASKS)
    parser.add_argument("--prefill", type=int, default=PREFILL, help="tokens of the batch")
    parser.add_argument("--decode", type=int, default=DECODE, help="tokens decoded behind it")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "icae-bench")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    a = parser.parse_args()
    for kind in a.kinds:
        path = a.folder / f"{a.shape}-{kind}.gguf"
        if a.here:
            print(json.dumps(run_task(path, a.tasks[0], a.threads, a.prefill, a.decode, a.repeats)))
            return
        write_model(path, SHAPES[a.shape], kind)
        for task in a.tasks:
            load = os.getloadavg()[0]
            done = subprocess.run(
                [sys.executable, __file__, a.shape, "--here", "--kinds", kind, "--tasks", task, "--threads",
                 str(a.threads), "--prefill", str(a.prefill), "--decode", str(a.decode), "--repeats", str(a.repeats),
                 "--folder", str(a.folder)], stdout=subprocess.PIPE, text=True, check=True)
            print(json.dumps({"peer": "llama.cpp", "shape": a.shape, "kind": kind, "threads": a.threads, "task": task,
                              "prefill": a.prefill, "decode": a.decode, **json.loads(done.stdout.splitlines()[-1]),
                              "load_average_before": round(load, 2)}), flush=True)


if __name__ == "__main__":
    main()
