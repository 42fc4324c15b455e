#!/usr/bin/env python3
"""Adapters between this project, the PyTorch reference and PEFT: trained here, read there, and back.

    tools/check_interchange.py PATH/TO/icae      # in the environment that bench/peers/setup.sh makes

On the small random llama of tests/golden: an adapter trained by `icae pretrain` gives the same slots in
`icae compress`, in the reference and through PEFT; one that PEFT saved (with memory embeddings of the
reference) opens in icae, gives the same slots, and `icae pretrain` goes on from it.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tools/goldens"))

import torch                                            # noqa: E402
from peft import LoraConfig, get_peft_model             # noqa: E402
from safetensors.torch import load_file, save_file      # noqa: E402
from torch_icae import Icae, IcaeConfig                 # noqa: E402
from transformers import AutoModelForCausalLM, AutoTokenizer    # noqa: E402

BASE = ROOT / "tests/golden/llama"
K, RATE, RANK, TARGETS = 8, 4, 4, ["q_proj", "v_proj", "o_proj", "down_proj"]
MEMORY = "memory_token_embed.weight"


def run(*command: object) -> None:
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{command[1]} failed: {done.stderr.strip().splitlines()[-1]}")


def slots_of(icae: str, adapter: Path, text: Path, folder: Path) -> torch.Tensor:
    run(icae, "compress", text, "--model", BASE, "--adapter", adapter, "--compute", "f32", "--rate", RATE,
        "-o", folder / "out.icae")
    return load_file(folder / "out.icae")["slots"].float()


def compare(what: str, ours: torch.Tensor, theirs: torch.Tensor) -> None:
    worst = (ours - theirs).abs().max().item() / theirs.abs().max().item()
    print(f"{what}: {ours.shape[0]} slots, largest difference {worst:.1e} of the largest value")
    if not worst < 5e-3:                                # slots on disk are bf16
        sys.exit("they differ")


def peft_slots(model, memory: torch.Tensor, ids: list[int]) -> torch.Tensor:
    """One segment through PEFT's encoder, memory embeddings behind it; hidden states after the last norm."""
    text = model.get_input_embeddings()(torch.tensor([ids]))
    inputs = torch.cat([text, memory[:K].expand(1, -1, -1)], dim=1)
    with torch.inference_mode():
        return model.base_model.model.model(inputs_embeds=inputs).last_hidden_state[0, -K:]


def fresh_peft():
    base = AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32)
    return get_peft_model(base, LoraConfig(r=RANK, lora_alpha=32, lora_dropout=0.0, target_modules=TARGETS)).eval()


def main() -> None:
    icae = sys.argv[1]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        text = folder / "text.txt"
        text.write_text((ROOT / "demo/article.txt").read_text()[:24])
        tokenizer = AutoTokenizer.from_pretrained(BASE)
        ids = tokenizer.encode(text.read_text(), add_special_tokens=False)
        train = [icae, "pretrain", "--base", BASE, "--data", ROOT / "demo/article.txt", "--preset", "none", "--k", K,
                 "--rate", RATE, "--rank", RANK, "--targets", ",".join(TARGETS), "--compute", "f32", "--steps", 20,
                 "--max-tokens", 32, "--batch", 4, "--warmup", 1, "--lr", "0.01", "--quiet", "--cache", folder / "cache"]
        run(*train, "--out", folder / "run")
        trained = folder / "run/last.safetensors"
        ours = slots_of(icae, trained, text, folder)

        reference = Icae.from_pretrained(str(BASE), IcaeConfig(mem_size=K, rate=RATE, lora_rank=RANK,
                                                               lora_targets=tuple(TARGETS)))
        reference.load_adapter(str(trained))
        with torch.inference_mode():
            compare("trained here, in the reference", ours, reference.compress(ids))

        stored = load_file(trained)
        model = fresh_peft()
        unknown = model.load_state_dict({k.removeprefix("icae."): v for k, v in stored.items() if k != MEMORY},
                                        strict=False).unexpected_keys
        if unknown:
            sys.exit(f"PEFT does not know {unknown[0]}")
        compare("trained here, in PEFT", ours, peft_slots(model, stored[MEMORY], ids))

        model = fresh_peft()
        for parameter in model.parameters():
            if parameter.requires_grad:
                torch.nn.init.normal_(parameter, std=0.05)
        saved = folder / "peft"
        model.save_pretrained(saved)
        tensors = load_file(saved / "adapter_model.safetensors")
        save_file({**tensors, MEMORY: stored[MEMORY]}, saved / "adapter_model.safetensors")
        with_bos = [json.loads((BASE / "config.json").read_text())["bos_token_id"], *ids]   # unless metadata say otherwise
        compare("saved by PEFT, here", slots_of(icae, saved, text, folder), peft_slots(model, stored[MEMORY], with_bos))
        run(*train, "--adapter", saved, "--out", folder / "on")
        first = json.loads((folder / "on/metrics.jsonl").read_text().splitlines()[0])
        print(f"training went on from it: first loss {first.get('ae', first.get('lm')):.3f}")


if __name__ == "__main__":
    main()
