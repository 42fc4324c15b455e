#!/usr/bin/env python3
"""Adds the LoRA matrices of an adapter that was trained with `icae pretrain --lora both` to the weights of its base.

    tools/merge_adapter.py BASE ADAPTER OUT [--rank 32]

BASE is a Hugging Face folder with one model.safetensors. OUT gets such a folder, in the same types, and icae.safetensors: the
adapter's memory embeddings with fresh LoRA (B = 0), to train on. Needs torch and safetensors.
"""
import argparse
import glob
import os
import shutil

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

PREFIX = "icae.base_model.model."


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("base"), ap.add_argument("adapter"), ap.add_argument("out")
    ap.add_argument("--rank", type=int, default=32, help="of the fresh LoRA")
    args = ap.parse_args()
    with safe_open(args.adapter, "pt") as f:
        about = f.metadata()
        adapter = {k: f.get_tensor(k) for k in f.keys()}
    if about.get("lora") != "both":
        raise SystemExit(f"{args.adapter}: its LoRA is the encoder's alone (metadata lora is not both); the base stays as it is")
    if not os.path.exists(os.path.join(args.base, "model.safetensors")):
        raise SystemExit(f"{args.base}: there is no model.safetensors")
    scale = float(about["alpha"]) / float(about["rank"])
    weights = load_file(os.path.join(args.base, "model.safetensors"))
    fresh = {"memory_token_embed.weight": adapter["memory_token_embed.weight"]}
    draw = torch.Generator().manual_seed(0)
    for name, a in adapter.items():
        if ".lora_A." not in name:
            continue
        b, w = adapter[name.replace("lora_A", "lora_B")], name.removeprefix(PREFIX).replace(".lora_A.default", "")
        weights[w] = (weights[w].float() + scale * b.float() @ a.float()).to(weights[w].dtype)
        fresh[name] = torch.randn(args.rank, a.shape[1], generator=draw) / a.shape[1] ** 0.5
        fresh[name.replace("lora_A", "lora_B")] = torch.zeros(b.shape[0], args.rank)
    os.makedirs(args.out, exist_ok=True)
    for path in glob.glob(os.path.join(args.base, "*.json")):
        shutil.copy(path, args.out)
    save_file(weights, os.path.join(args.out, "model.safetensors"), metadata={"format": "pt"})
    about = {k: v for k, v in about.items() if k not in ("base", "lora")} | {"rank": str(args.rank), "alpha": str(args.rank)}
    save_file(fresh, os.path.join(args.out, "icae.safetensors"), metadata=about)


if __name__ == "__main__":
    main()
