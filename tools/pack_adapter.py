#!/usr/bin/env python3
"""Writes an adapter with its values rounded to bf16: half the size, as the bundled ones are.

    tools/pack_adapter.py IN.safetensors OUT.safetensors

Names and metadata stay. Measure what is left of it (`icae eval`). Needs torch and safetensors.
"""
import argparse

import torch
from safetensors import safe_open
from safetensors.torch import save_file


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("input"), ap.add_argument("output")
    args = ap.parse_args()
    with safe_open(args.input, "pt") as f:
        about = f.metadata()
        tensors = {k: f.get_tensor(k).to(torch.bfloat16) for k in f.keys()}
    save_file(tensors, args.output, metadata=about)


if __name__ == "__main__":
    main()
