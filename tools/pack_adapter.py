#!/usr/bin/env python3
"""Writes an adapter as the bundled ones are: its values rounded to bf16 (half the size), and with what pays.

    tools/pack_adapter.py IN.safetensors OUT.safetensors [--refine N] [--expand N]

--refine and --expand are what `icae` and its server do unless told otherwise (docs/formats.md). Names and other
metadata stay. Measure what is left of it (`icae eval`). Needs torch and safetensors.
"""
import argparse

import torch
from safetensors import safe_open
from safetensors.torch import save_file


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("input"), ap.add_argument("output")
    ap.add_argument("--refine", type=int, metavar="N", help="steps that slots are refined in")
    ap.add_argument("--expand", type=int, metavar="N", help="segments that are read as text again")
    args = ap.parse_args()
    with safe_open(args.input, "pt") as f:
        about = dict(f.metadata(), **{k: str(v) for k, v in (("refine", args.refine), ("expand", args.expand)) if v is not None})
        tensors = {k: f.get_tensor(k).to(torch.bfloat16) for k in f.keys()}
    save_file(tensors, args.output, metadata=about)


if __name__ == "__main__":
    main()
