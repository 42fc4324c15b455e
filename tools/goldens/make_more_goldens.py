"""Writes the golden cases beyond those of make_goldens.py: other families, windows, odd sizes, file forms.

    python make_more_goldens.py OUTPUT_FOLDER [CASE ...]
    python make_more_goldens.py OUTPUT_FOLDER --search FIRST_SEED CASE      # tries seeds, keeps the first good one

The layout is that of make_goldens.py.  A case with shards has model-0000N-of-0000M.safetensors and
model.safetensors.index.json instead of one file.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from transformers.utils import logging

from make_goldens import LLAMA, LLAMA3_ROPE, MISTRAL, QWEN2, QWEN3, VOCAB, Case, open_case, write_case

GOOD_MARGIN = 0.02
FUSED = ("qkv_proj", "o_proj", "gate_up_proj", "down_proj")

GEMMA = {
    "architectures": ["GemmaForCausalLM"], "model_type": "gemma",
    "vocab_size": VOCAB, "hidden_size": 48, "intermediate_size": 136, "num_hidden_layers": 3,
    "num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 40, "hidden_act": "gelu_pytorch_tanh",
    "max_position_embeddings": 8192, "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "rope_scaling": None,
    "attention_bias": False, "attention_dropout": 0.0, "tie_word_embeddings": True,
    "bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 0, "torch_dtype": "float32",
}
PHI3 = {
    "architectures": ["Phi3ForCausalLM"], "model_type": "phi3",
    "vocab_size": VOCAB, "hidden_size": 64, "intermediate_size": 120, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "hidden_act": "silu",
    "max_position_embeddings": 4096, "original_max_position_embeddings": 4096, "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0, "rope_scaling": None, "sliding_window": None, "attention_bias": False,
    "attention_dropout": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0, "tie_word_embeddings": False,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2, "torch_dtype": "float32",
}
ODD = {"hidden_size": 60, "num_attention_heads": 3, "num_key_value_heads": 1, "intermediate_size": 147,
       "num_hidden_layers": 2}


@dataclass
class MoreCase(Case):
    """A case with the form of its files."""

    shards: int = 1
    more_eos: tuple[int, ...] = ()          # config.json lists eos and these


CASES = {
    "gemma": MoreCase({**GEMMA, "num_hidden_layers": 2}, seed=13, embed_std=0.12, output_gain=4.0),
    "gemma-spread-proportional": MoreCase(
        {**GEMMA, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 80,
         "hidden_act": "gelu", "hidden_activation": None, "vocab_size": 323}, seed=3, mem_size=6, length=43,
        lora_targets=("q_proj", "o_proj", "down_proj"), positions="spread", slots="proportional",
        embed_std=0.12, output_gain=4.0),
    "phi3": MoreCase(PHI3, seed=2, lora_targets=("qkv_proj", "gate_up_proj")),
    "phi3-partial-rotary-window": MoreCase(
        {**PHI3, "num_attention_heads": 2, "num_key_value_heads": 2, "hidden_size": 48, "partial_rotary_factor": 0.75,
         "sliding_window": 11}, seed=6, mem_size=5, rate=6, length=53, lora_rank=3, lora_targets=FUSED),
    "mistral-window": MoreCase({**MISTRAL, "sliding_window": 16, "head_dim": None, "num_hidden_layers": 2}, seed=6,
                               mem_size=6, rate=6, length=61),
    "mistral-window-spread": MoreCase(
        {**MISTRAL, "sliding_window": 12, "hidden_size": 48, "num_attention_heads": 4, "num_key_value_heads": 4,
         "head_dim": 20, "num_hidden_layers": 2}, seed=5, mem_size=5, rate=5, length=44, positions="spread"),
    "llama-bias-linear-rope": MoreCase(
        {**LLAMA, "attention_bias": True, "mlp_bias": True, "rope_scaling": {"type": "linear", "factor": 2.5},
         "num_hidden_layers": 2, "num_key_value_heads": 4}, seed=1,
        lora_targets=("k_proj", "o_proj", "up_proj")),
    "llama-odd-f16": MoreCase(
        {**LLAMA, **ODD, "vocab_size": 323, "head_dim": 40, "tie_word_embeddings": True, "torch_dtype": "float16"},
        seed=4, dtype=torch.float16, embed_std=0.2, output_gain=3.0, lora_rank=3),
    "llama-sharded": MoreCase(
        {**LLAMA, "hidden_size": 48, "intermediate_size": 91, "vocab_size": 317, "num_hidden_layers": 2,
         "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 80}, seed=2, mem_size=3, rate=5, length=29,
        shards=3, more_eos=(7, 9)),
    "llama3-rope-spread": MoreCase(
        {**LLAMA, "num_hidden_layers": 2, "head_dim": 32, "num_key_value_heads": 1, "hidden_size": 48,
         "rope_scaling": {**LLAMA3_ROPE, "original_max_position_embeddings": 32}, "rope_theta": 500000.0,
         "tie_word_embeddings": True}, seed=4, embed_std=0.2, output_gain=3.0, positions="spread"),
    "qwen2-window": MoreCase(
        {**QWEN2, "use_sliding_window": True, "sliding_window": 12, "max_window_layers": 1, "num_hidden_layers": 2},
        seed=1, mem_size=6, rate=6, length=61, embed_std=0.2, output_gain=3.0),
    "qwen2-layer-types": MoreCase(
        {**QWEN2, "use_sliding_window": True, "sliding_window": 9, "max_window_layers": 3, "hidden_size": 48,
         "layer_types": ["sliding_attention", "full_attention", "sliding_attention"], "tie_word_embeddings": False,
         "num_key_value_heads": 4, "intermediate_size": 132, "torch_dtype": "bfloat16"}, seed=2, mem_size=5, rate=6,
        length=47, lora_targets=("q_proj", "k_proj", "v_proj", "gate_proj"), dtype=torch.bfloat16),
    "qwen3-window-bias": MoreCase(
        {**QWEN3, "num_hidden_layers": 2, "head_dim": 24, "num_key_value_heads": 1, "attention_bias": True,
         "use_sliding_window": True, "sliding_window": 10, "max_window_layers": 1, "tie_word_embeddings": True,
         "rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}}, seed=58, mem_size=6, rate=6,
        length=61, embed_std=0.2, output_gain=3.0, lora_targets=("q_proj", "o_proj", "down_proj")),
}


def split_weights(folder: Path, count: int) -> None:
    """model.safetensors as `count` files and an index, as Hugging Face writes them."""
    path = folder / "model.safetensors"
    weights = load_file(path)
    names, where = list(weights), {}
    for i in range(count):
        part = names[i * len(names) // count:(i + 1) * len(names) // count]
        file = f"model-{i + 1:05d}-of-{count:05d}.safetensors"
        save_file({name: weights[name] for name in part}, folder / file, metadata={"format": "pt"})
        where |= dict.fromkeys(part, file)
    size = sum(w.numel() * w.element_size() for w in weights.values())
    index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(where.items()))}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
    path.unlink()


def finish_files(folder: Path, case: MoreCase) -> None:
    """Give the files their final form, and see that they still mean the same."""
    if case.more_eos:
        config = {**case.config, "eos_token_id": [case.config["eos_token_id"], *case.more_eos]}
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    if case.shards > 1:
        split_weights(folder, case.shards)
        golden = load_file(folder / "golden.safetensors")
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
        with torch.no_grad():
            logits = model(input_ids=golden["plain.input_ids"][None].long()).logits[0]
        assert torch.equal(logits, golden["plain.logits"])


def window_effect(folder: Path, case: MoreCase) -> float:
    """How much the logits change if the sliding window is switched off; 0 without a window."""
    if not case.config.get("sliding_window"):
        return 0.0
    golden = load_file(folder / "golden.safetensors")
    icae = open_case(folder, case)
    ids = golden["plain.input_ids"][None].long()
    with torch.no_grad():
        mask = torch.ones(ids.shape[1], ids.shape[1]).tril().log()[None, None]
        full = {"full_attention": mask, "sliding_attention": mask} if "layer_types" in icae.base.config else mask
        logits = icae.base(input_ids=ids, attention_mask=full).logits[0]
    return float((logits - golden["plain.logits"]).abs().max())


def make(folder: Path, case: MoreCase) -> float:
    """Make one case; returns its smallest margin."""
    for old in folder.glob("model*"):
        old.unlink()
    facts = write_case(folder, case)
    margin = min(f["smallest_margin"] for f in facts.values() if "smallest_margin" in f)
    effect = window_effect(folder, case)
    finish_files(folder, case)
    distinct = [len(set(facts[k]["ids"])) for k in ("restore", "ask")]
    print(f"{folder.name}: seed {case.seed}, ae loss {facts['ae']['loss']:.4f}, smallest margin {margin:.4f}, "
          f"distinct ids {distinct}, window effect {effect:.2f}, "
          f"{sum(f.stat().st_size for f in folder.iterdir()) / 1e6:.2f} MB", flush=True)
    return margin if min(distinct) > 8 else 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path)
    parser.add_argument("case", nargs="*", choices=[[], *CASES])
    parser.add_argument("--search", type=int, metavar="FIRST_SEED")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    for name in arguments.case or CASES:
        case = CASES[name]
        if arguments.search is None:
            make(arguments.output / name, case)
            continue
        for seed in range(arguments.search, arguments.search + 60):
            if make(arguments.output / name, replace(case, seed=seed)) >= GOOD_MARGIN:
                break


if __name__ == "__main__":
    main()
