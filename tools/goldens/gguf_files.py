"""Reading and writing GGUF files from weights under Hugging Face names.

GGUF stores the q and k projections of llama with the rows of every head in another order, because
its rotary embedding turns neighbouring pairs; the other families are stored as they are.  The norm
weights of gemma are stored with the 1 that the model adds to them.  Rope scaling of type llama3 is a
tensor of divisors of the frequencies, that of type linear is a pair of keys.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import gguf
import numpy as np

ARCHITECTURES = {"llama": gguf.MODEL_ARCH.LLAMA, "qwen2": gguf.MODEL_ARCH.QWEN2, "qwen3": gguf.MODEL_ARCH.QWEN3,
                 "phi3": gguf.MODEL_ARCH.PHI3, "gemma": gguf.MODEL_ARCH.GEMMA}


@dataclass
class Vocabulary:
    """The tokenizer part of a GGUF file."""

    model: str                          # "llama" (sentencepiece) or "gpt2" (byte-level)
    tokens: list[bytes]
    types: list[int]
    bos_id: int
    eos_id: int
    scores: list[float] = field(default_factory=list)
    merges: list[str] = field(default_factory=list)
    pre: str = "default"
    add_bos: bool = True
    add_space_prefix: bool | None = None    # None: the key is left out


def permute(weight: np.ndarray, heads: int) -> np.ndarray:
    """From the two halves of each head to neighbouring pairs."""
    half = weight.shape[0] // heads // 2
    return weight.reshape(heads, 2, half, -1).swapaxes(1, 2).reshape(weight.shape)


def unpermute(weight: np.ndarray, heads: int) -> np.ndarray:
    half = weight.shape[0] // heads // 2
    return weight.reshape(heads, half, 2, -1).swapaxes(1, 2).reshape(weight.shape)


def rotary_heads(config: dict, name: str) -> int:
    """The number of heads if the rows of this weight are reordered, else 0."""
    if config["model_type"] != "llama":
        return 0
    if ".q_proj." in name:
        return config["num_attention_heads"]
    return config["num_key_value_heads"] if ".k_proj." in name else 0


def norm_offset(config: dict, name: str) -> float:
    """What the file's norm weights have more than those of Hugging Face."""
    return 1.0 if config["model_type"] == "gemma" and "norm" in name else 0.0


def head_width(config: dict) -> int:
    return config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]


def rope_parameters(config: dict) -> dict:
    newer = config.get("rope_parameters")
    return newer or {"rope_theta": config["rope_theta"], **(config.get("rope_scaling") or {})}


def llama3_divisors(config: dict) -> np.ndarray:
    """What llama3 scaling divides each frequency by."""
    rope, width = rope_parameters(config), head_width(config)
    low, high, original = (rope[k] for k in ("low_freq_factor", "high_freq_factor", "original_max_position_embeddings"))
    divisors = []
    for i in range(0, width, 2):
        wave = 2 * math.pi * rope["rope_theta"] ** (i / width)
        smooth = min(max((original / wave - low) / (high - low), 0.0), 1.0)
        divisors.append(1 / ((1 - smooth) / rope["factor"] + smooth))
    return np.array(divisors, np.float32)


def add_model_keys(writer: gguf.GGUFWriter, config: dict) -> None:
    """The keys that only some models have."""
    rope = rope_parameters(config)
    if config.get("head_dim"):
        writer.add_key_length(config["head_dim"])
        writer.add_value_length(config["head_dim"])
    if config["model_type"] == "phi3" and config.get("sliding_window"):
        writer.add_sliding_window(config["sliding_window"])
    kind = rope.get("rope_type", rope.get("type"))
    if kind == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
    elif kind == "llama3":
        writer.add_tensor("rope_freqs.weight", llama3_divisors(config))


def tensor_names(config: dict) -> gguf.TensorNameMap:
    return gguf.get_tensor_name_map(ARCHITECTURES[config["model_type"]], config["num_hidden_layers"])


def write_gguf(path: Path, config: dict, weights: Iterable[tuple[str, np.ndarray]], kind: str,
               vocabulary: Vocabulary) -> None:
    """Write float32 weights; matrices become `kind` (F32, F16, BF16, Q8_0, Q4_0), vectors stay F32."""
    kind_id = gguf.GGMLQuantizationType[kind]
    writer = gguf.GGUFWriter(path, config["model_type"])
    writer.add_name(path.stem)
    writer.add_file_type(gguf.LlamaFileType[("MOSTLY_" if kind != "F32" else "ALL_") + kind])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_rope_dimension_count(int(head_width(config) * config.get("partial_rotary_factor", 1.0)))
    writer.add_rope_freq_base(rope_parameters(config)["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    add_model_keys(writer, config)

    writer.add_tokenizer_model(vocabulary.model)
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.types)
    if vocabulary.scores:
        writer.add_token_scores(vocabulary.scores)
    if vocabulary.merges:
        writer.add_token_merges(vocabulary.merges)
    writer.add_bos_token_id(vocabulary.bos_id)
    writer.add_eos_token_id(vocabulary.eos_id)
    writer.add_add_bos_token(vocabulary.add_bos)
    if vocabulary.add_space_prefix is not None:
        writer.add_add_space_prefix(vocabulary.add_space_prefix)

    names = tensor_names(config)
    for name, weight in weights:
        heads = rotary_heads(config, name)
        if heads:
            weight = permute(weight, heads)
        stored = names.get_name(name, try_suffixes=(".weight", ".bias"))
        weight = weight + np.float32(norm_offset(config, name))
        if weight.ndim == 1:
            writer.add_tensor(stored, np.ascontiguousarray(weight, np.float32))
        else:
            writer.add_tensor(stored, gguf.quants.quantize(np.ascontiguousarray(weight, np.float32), kind_id),
                              raw_dtype=kind_id)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def read_gguf(path: Path, config: dict, names: Iterable[str]) -> dict[str, np.ndarray]:
    """The exactly dequantised float32 weights under the given Hugging Face names."""
    stored = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    mapping = tensor_names(config)
    weights = {}
    for name in names:
        tensor = stored[mapping.get_name(name, try_suffixes=(".weight", ".bias"))]
        weight = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        heads = rotary_heads(config, name)
        weight = unpermute(weight, heads) if heads else weight
        weights[name] = weight - np.float32(norm_offset(config, name))
    return weights


def tensor_kinds(path: Path) -> dict[str, int]:
    """How many tensors of each storage kind a file has."""
    kinds: dict[str, int] = {}
    for tensor in gguf.GGUFReader(path).tensors:
        kinds[tensor.tensor_type.name] = kinds.get(tensor.tensor_type.name, 0) + 1
    return kinds
