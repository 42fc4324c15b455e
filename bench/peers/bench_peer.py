"""Speed and memory of the PyTorch reference on a random model, one JSON line per task.

    python bench_peer.py SHAPE [--threads N] [--dtype bf16|f32] [--tasks ...] [--repeats N] [--folder DIR]

Tasks, each in a process of its own so that its peak memory is its own:
  load                 open the model folder (safetensors, in the page cache)
  compress             512 tokens to 128 slots, inference
  restore              128 slots and [AE], then 128 greedy tokens with a key/value cache
  train                one AE step on 512 tokens: encoder, decoder, backward, clip, AdamW; batch 1, dropout on
  train_batched        the same on four such texts, which share every product
  train_mixed          on 16 texts of 16 to 256 tokens; only texts of one length can share a batch, so one by one
  train_checkpointed   the same with gradient checkpointing of both models
A slot stands for four tokens. Speeds are text tokens per second: the 512 compressed or trained on, or the tokens decoded.  The
median of the repeats is given, and the best.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from bench_shapes import SHAPES, weight_shapes

TASKS = ("load", "compress", "restore", "train", "train_batched", "train_mixed", "train_checkpointed")
TEXT_TOKENS, SLOTS, NEW_TOKENS, RANK = 512, 128, 128, 128
BATCHED = [TEXT_TOKENS] * 4
MIXED = [256, 16, 240, 32, 224, 48, 208, 64, 192, 80, 176, 96, 160, 112, 144, 128]
DTYPES = {"bf16": torch.bfloat16, "f32": torch.float32}
STORED = {torch.bfloat16: "BF16", torch.float32: "F32"}
SHARD_BYTES = 4 << 30           # a larger model is written as several files of about this size


def random_weights(config: dict, dtype: torch.dtype):
    """Random weights by name; one matrix serves all layers, so that a large model needs little memory."""
    generator = torch.Generator().manual_seed(0)
    made: dict[str, torch.Tensor] = {}
    for name, size in weight_shapes(config):
        key = name.split(".", 3)[-1] if ".layers." in name else name
        if key not in made:
            made[key] = (torch.ones(size, dtype=dtype) if len(size) == 1 else
                         (torch.randn(size, generator=generator) * 0.02).to(dtype))
        yield name, made[key]


def write_safetensors(path: Path, shapes: dict[str, tuple[int, ...]], dtype: torch.dtype, weights) -> None:
    """The next len(shapes) of `weights`, one tensor after the other, as safetensors would write them."""
    header, end = {"__metadata__": {"format": "pt"}}, 0
    for name, size in shapes.items():
        start, end = end, end + math.prod(size) * dtype.itemsize
        header[name] = {"dtype": STORED[dtype], "shape": list(size), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name in shapes:
            found, weight = next(weights)
            assert found == name
            file.write(weight.view(torch.uint8).numpy().data)


def write_model(folder: Path, shape: str, dtype: torch.dtype) -> None:
    """A folder with config.json and random weights, in several files if it is large, unless it is there already."""
    if (folder / "config.json").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    config = SHAPES[shape]
    shapes = dict(weight_shapes(config))
    names, weights = list(shapes), random_weights(config, dtype)
    count = math.ceil(sum(map(math.prod, shapes.values())) * dtype.itemsize / SHARD_BYTES)
    where = {}
    for i in range(count):
        part = names[i * len(names) // count:(i + 1) * len(names) // count]
        file = "model.safetensors" if count == 1 else f"model-{i + 1:05d}-of-{count:05d}.safetensors"
        write_safetensors(folder / file, {name: shapes[name] for name in part}, dtype, weights)
        where |= dict.fromkeys(part, file)
    if count > 1:
        size = sum(map(math.prod, shapes.values())) * dtype.itemsize
        index = {"metadata": {"total_size": size}, "weight_map": where}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1) + "\n")
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def open_model(folder: Path, dtype: torch.dtype, training: bool):
    """The reference over the model in `folder`; in training its adapter is float32."""
    from transformers.utils import logging
    from torch_icae import Icae, IcaeConfig
    logging.disable_progress_bar()
    config = IcaeConfig(mem_size=SLOTS, rate=TEXT_TOKENS // SLOTS, lora_rank=RANK, lora_dropout=0.05,
                        slots="proportional")
    icae = Icae.from_pretrained(str(folder), config, dtype, torch.float32 if training else dtype)
    return icae.train(training)


def timed(action, repeats: int, warm_up: int = 1) -> list[float]:
    seconds = []
    for i in range(warm_up + repeats):
        start = time.perf_counter()
        action()
        if i >= warm_up:
            seconds.append(time.perf_counter() - start)
    return seconds


def run_compress(icae, text: list[int], repeats: int) -> tuple[int, list[float]]:
    with torch.inference_mode():
        return TEXT_TOKENS, timed(lambda: icae.compress(text), repeats)


def run_restore(icae, text: list[int], repeats: int) -> tuple[int, list[float]]:
    """Decoding alone: the time of a long run less that of a run that stops after its first token."""
    with torch.inference_mode():
        slots = icae.compress(text)
        first = statistics.median(timed(lambda: icae.restore(slots, 1, eos_id=-1), repeats))
        whole = timed(lambda: icae.restore(slots, NEW_TOKENS + 1, eos_id=-1), repeats)
    return NEW_TOKENS, [seconds - first for seconds in whole]


def run_train(icae, lengths: list[int], batched: bool, repeats: int) -> tuple[int, list[float]]:
    optimizer = icae.optimizer(1e-4)
    examples = [icae.ae_example(random_text(icae, length, 1 + i)) for i, length in enumerate(lengths)]
    return sum(lengths), timed(lambda: icae.train_step(optimizer, examples, batched=batched), repeats)


def random_text(icae, length: int, seed: int) -> list[int]:
    return torch.randint(3, icae.vocab, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def run_task(task: str, folder: Path, dtype: torch.dtype, repeats: int) -> dict:
    """Measure one task in this process."""
    import torch_icae                                   # noqa: F401  (before the clock starts)
    from transformers import LlamaForCausalLM           # noqa: F401
    before = peak_memory()
    start = time.perf_counter()
    icae = open_model(folder, dtype, training=task.startswith("train"))
    result = {"load_seconds": round(time.perf_counter() - start, 3)}
    if task != "load":
        if task == "train_checkpointed":
            icae.use_gradient_checkpointing()
        if task in ("compress", "restore"):
            run = run_compress if task == "compress" else run_restore
            tokens, seconds = run(icae, random_text(icae, TEXT_TOKENS, 1), repeats)
        else:
            lengths = {"train_batched": BATCHED, "train_mixed": MIXED}.get(task, [TEXT_TOKENS])
            tokens, seconds = run_train(icae, lengths, task == "train_batched", repeats)
        result["tokens_per_second"] = round(tokens / statistics.median(seconds), 2)
        result["best_tokens_per_second"] = round(tokens / min(seconds), 2)
    result["peak_rss_mb"] = round(peak_memory())
    result["rss_before_load_mb"] = round(before)
    return result


def peak_memory() -> float:
    """Peak resident memory of this process in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--dtype", choices=DTYPES, default="bf16")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=TASKS)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "icae-bench")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    folder = arguments.folder / f"{arguments.shape}-{arguments.dtype}"
    torch.set_num_threads(arguments.threads)
    if arguments.here:
        print(json.dumps(run_task(arguments.tasks[0], folder, DTYPES[arguments.dtype], arguments.repeats)))
        return
    write_model(folder, arguments.shape, DTYPES[arguments.dtype])
    for task in arguments.tasks:
        load = os.getloadavg()[0]
        done = subprocess.run(
            [sys.executable, __file__, arguments.shape, "--here", "--tasks", task, "--threads", str(arguments.threads),
             "--dtype", arguments.dtype, "--repeats", str(arguments.repeats), "--folder", str(arguments.folder)],
            stdout=subprocess.PIPE, text=True, check=True,
            env={**os.environ, "OMP_NUM_THREADS": str(arguments.threads)})
        result = json.loads(done.stdout.splitlines()[-1])
        print(json.dumps({"peer": "pytorch", "shape": arguments.shape, "dtype": arguments.dtype,
                          "threads": arguments.threads, "task": task, **result,
                          "load_average_before": round(load, 2)}), flush=True)


if __name__ == "__main__":
    main()
