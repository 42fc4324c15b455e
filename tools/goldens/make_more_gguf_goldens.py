"""Writes the golden GGUF cases beyond that of make_gguf_goldens.py: other families, tokenizers and storage kinds.

    python make_more_gguf_goldens.py OUTPUT_FOLDER [CASE ...]

Each case becomes OUTPUT_FOLDER/CASE/ in the layout of the given GGUF case.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import gguf
import torch
from tokenizers import normalizers

from gguf_files import Vocabulary
from make_goldens import LLAMA, LLAMA3_ROPE, QWEN2, QWEN3, Case
from make_gguf_goldens import TEXTS, sentencepiece_vocabulary, write_folder
from make_more_goldens import GEMMA, PHI3
from make_tokenizer_goldens import (LLAMA3_SPLIT, QWEN2_SPLIT, STRINGS, WORD_MARK, byte_level, help_lines, legacy_llama,
                                    regex_splitter, sentencepiece_bpe, special)

VOCAB = 512
MORE_TEXTS = TEXTS + [t for t in STRINGS if t not in TEXTS and "<<" not in t]


def byte_level_vocabulary(pre: str, pattern: str, controls: list[str], user_defined: list[str],
                          **options) -> tuple[Vocabulary, Callable[[str], list[int]]]:
    """A byte-level BPE as GGUF keeps it; the last two control tokens are bos and eos."""
    extra = [*controls, *user_defined]
    tokenizer = byte_level(help_lines(), regex_splitter(pattern), VOCAB - len(extra))
    tokenizer.add_special_tokens(special(*extra))
    tokens = [tokenizer.id_to_token(i) for i in range(VOCAB)]
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    kinds = {**dict.fromkeys(controls, gguf.TokenType.CONTROL),
             **dict.fromkeys(user_defined, gguf.TokenType.USER_DEFINED)}
    types = [int(kinds.get(t, gguf.TokenType.NORMAL)) for t in tokens]
    return (Vocabulary("gpt2", [t.encode() for t in tokens], types, tokens.index(controls[-2]),
                       tokens.index(controls[-1]), pre=pre, merges=[" ".join(pair) for pair in merges], **options),
            lambda text: tokenizer.encode(text, add_special_tokens=False).ids)


def qwen_vocabulary() -> tuple[Vocabulary, Callable[[str], list[int]]]:
    return byte_level_vocabulary("qwen2", QWEN2_SPLIT, ["<|endoftext|>", "<|im_start|>", "<|im_end|>"], ["<tool_call>"],
                                 add_bos=False)


def llama3_vocabulary() -> tuple[Vocabulary, Callable[[str], list[int]]]:
    return byte_level_vocabulary("llama-bpe", LLAMA3_SPLIT, ["<|begin_of_text|>", "<|end_of_text|>"], [])


def sentencepiece(**options) -> tuple[Vocabulary, Callable[[str], list[int]]]:
    tokenizer = legacy_llama(sentencepiece_bpe(help_lines(), VOCAB))
    if options.get("add_space_prefix") is False:
        tokenizer.normalizer = normalizers.Replace(" ", WORD_MARK)
    return (replace(sentencepiece_vocabulary(VOCAB), **options),
            lambda text: tokenizer.encode(text, add_special_tokens=False).ids)


@dataclass
class GgufCase(Case):
    """A case with its vocabulary and storage kinds."""

    vocabulary: object = sentencepiece
    written: tuple[str, ...] = ()           # by gguf-py
    quantised: tuple[str, ...] = ()         # by llama.cpp


WIDE = {**LLAMA, "vocab_size": VOCAB, "hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 1}
SMALL = {"vocab_size": VOCAB, "num_hidden_layers": 2, "max_position_embeddings": 512}

CASES = {
    "gguf-qwen2": GgufCase({**QWEN2, **SMALL, "intermediate_size": 160}, seed=41, embed_std=0.2, output_gain=3.0,
                           vocabulary=qwen_vocabulary, written=("Q8_0",)),
    "gguf-llama-q5k": GgufCase(WIDE, seed=42, quantised=("Q5_K_M",)),
    "gguf-llama3": GgufCase(
        {**LLAMA, **SMALL, "head_dim": 32, "intermediate_size": 160, "tie_word_embeddings": True,
         "rope_theta": 500000.0,
         "rope_scaling": {**LLAMA3_ROPE, "original_max_position_embeddings": 32}}, seed=43, embed_std=0.2,
        output_gain=3.0, vocabulary=llama3_vocabulary, written=("Q4_0",)),
    "gguf-llama-bias-linear": GgufCase(
        {**LLAMA, **SMALL, "attention_bias": True, "rope_scaling": {"type": "linear", "factor": 2.5}}, seed=44,
        written=("F16",), lora_targets=("q_proj", "k_proj", "o_proj", "down_proj")),
    "gguf-qwen3": GgufCase(
        {**QWEN3, **SMALL, "num_key_value_heads": 1, "intermediate_size": 160}, seed=45,
        vocabulary=qwen_vocabulary, written=("Q8_0",)),
    "gguf-gemma": GgufCase(
        {**GEMMA, **SMALL, "hidden_size": 64, "head_dim": 32, "intermediate_size": 160}, seed=46, embed_std=0.12,
        output_gain=4.0, vocabulary=lambda: sentencepiece(add_space_prefix=False), written=("F16",)),
    "gguf-phi3": GgufCase(
        {**PHI3, **SMALL, "intermediate_size": 96, "sliding_window": 256}, seed=47, written=("Q8_0",),
        lora_targets=("qkv_proj", "gate_up_proj")),
}


def differing(encode, vocabulary: Vocabulary, facts: list[dict]) -> list[str]:
    """Texts for which llama.cpp and the library that trained the vocabulary differ."""
    bos = [vocabulary.bos_id] if vocabulary.add_bos else []
    return [f["text"] for f in facts if bos + encode(f["text"]) != f["ids"]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path)
    parser.add_argument("case", nargs="*", choices=[[], *CASES])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for name in arguments.case or CASES:
        case = CASES[name]
        vocabulary, encode = case.vocabulary()
        case.config = {**case.config, "bos_token_id": vocabulary.bos_id, "eos_token_id": vocabulary.eos_id}
        folder = arguments.output / name
        write_folder(folder, case, vocabulary, case.written or ("F32",), case.quantised, case.written + case.quantised,
                     MORE_TEXTS)
        facts = json.loads((folder / "golden.json").read_text())["tokenization"]
        print(f"{name}: tokenized otherwise by llama.cpp: {differing(encode, vocabulary, facts)}")


if __name__ == "__main__":
    main()
