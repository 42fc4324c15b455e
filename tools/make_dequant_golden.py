#!/usr/bin/env python3
"""Makes tests/data/dequant.safetensors: random quantised blocks and the f32 values that gguf-py reads
from them. Developer only (needs gguf, numpy, safetensors); the tests need the file alone.

For each type T: "T.blocks" (U8, blocks x bytes) and "T.values" (F32, blocks x values)."""
import sys

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Q
from safetensors.numpy import save_file

BLOCKS = 12
# Where each type keeps its f16 scales: random bytes there would mostly be NaN or enormous.
SCALES = {Q.Q8_0: [0], Q.Q4_0: [0], Q.Q4_K: [0, 2], Q.Q5_K: [0, 2], Q.Q6_K: [208]}

rng = np.random.default_rng(20240607)
out = {}
for kind, places in SCALES.items():
    values, size = gguf.GGML_QUANT_SIZES[kind]
    blocks = rng.integers(0, 256, (BLOCKS, size), dtype=np.uint8)
    for place in places:
        scale = rng.normal(size=BLOCKS).astype(np.float16)
        scale[0], scale[1], scale[2] = 0, 6e-8, -65504  # zero, the smallest subnormal, the largest
        blocks[:, place:place + 2] = scale.view(np.uint8).reshape(BLOCKS, 2)
    blocks[3, 4:] = 255
    blocks[4, 4:] = 0
    if kind == Q.Q6_K:
        blocks[3:5, 208:] = np.array([1.5, -0.3], np.float16).view(np.uint8).reshape(2, 2)
    out[kind.name + ".blocks"] = blocks
    out[kind.name + ".values"] = gguf.quants.dequantize(blocks, kind).astype(np.float32).reshape(
        BLOCKS, values)
save_file(out, sys.argv[1] if len(sys.argv) > 1 else "tests/data/dequant.safetensors")
