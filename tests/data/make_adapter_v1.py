"""Makes adapter_v1.pt: a tiny adapter in the published v1 layout (a whole state dict whose base is zero).

python make_adapter_v1.py adapter_v1.pt
"""

import sys

import torch

WIDTH, HEADS, KV_HEADS, LAYERS, RANK, MEMORY, VOCABULARY = 8, 2, 1, 2, 2, 4, 16
KV = WIDTH // HEADS * KV_HEADS


def numbered(start: int, rows: int, cols: int) -> torch.Tensor:
    """Values that tell where they belong: start + row / 16 + column / 256."""
    return start + torch.arange(rows)[:, None] / 16 + torch.arange(cols)[None] / 256


state = {
    "memory_token_embed.weight": numbered(100, MEMORY + 3, WIDTH),
    "icae.base_model.model.model.embed_tokens.weight": torch.zeros(VOCABULARY + 1 + MEMORY + 3, WIDTH).half(),
    "icae.base_model.model.model.norm.weight": torch.zeros(WIDTH).half(),
}
for layer in range(LAYERS):
    prefix = f"icae.base_model.model.model.layers.{layer}."
    for i, (name, rows) in enumerate([("q_proj", WIDTH), ("v_proj", KV)]):
        start = 10 * (layer + 1) + 2 * i
        state[f"{prefix}self_attn.{name}.weight"] = torch.zeros(rows, WIDTH).half()
        state[f"{prefix}self_attn.{name}.lora_A.default.weight"] = numbered(start, RANK, WIDTH)
        state[f"{prefix}self_attn.{name}.lora_B.default.weight"] = numbered(start + 1, rows, RANK)
torch.save(state, sys.argv[1])
