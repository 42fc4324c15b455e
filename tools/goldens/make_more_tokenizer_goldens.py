"""Writes the golden tokenizer cases beyond those of make_tokenizer_goldens.py: other forms of tokenizer.json.

    python make_more_tokenizer_goldens.py OUTPUT_FOLDER [NAME ...]

The corpus is the text of Python's help pages and the test strings themselves, so that no other file is needed.
"""

from __future__ import annotations

import argparse
import json
import unicodedata
from collections.abc import Callable
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer

from make_tokenizer_goldens import (FRAGMENTS, QWEN2_SPLIT, STRINGS, WORD_MARK, bos_template, bpe_from_sentencepiece,
                                    byte_level, help_lines, mixed_strings, save_tokenizer, sentencepiece_bpe,
                                    sentencepiece_decoder, special, write_cases)

VOCAB = 700
GPT4O_SPLIT = "|".join([
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"\p{N}{1,3}", r" ?[^\s\p{L}\p{N}]+[\r\n/]*", r"\s*[\r\n]+", r"\s+(?!\S)", r"\s+"])

# Where the flags of added tokens and the ends of sections matter.
MORE_STRINGS = [
    "<<0>>", " <<0>> ", "<<0>>a", "a<<0>>", "a <<0>> b", "a  <<1>>  b", "\n<<1>>\n", "\t<<2>>\tx", "<<2>>\n\n\nx",
    "<<3>>x<<4>>", "x<<3>>", "<<3>> x", "x <<3>>", "x <<3>> y", "x_<<3>>_y", "1<<3>>2", ".<<3>>.", "\xe9<<3>>",
    "\u4e2d<<3>>", "<<4>><<4>>", "<<4>> <<4>>", "<<4>>  <<3>>  <<2>>", "<<0>><<1>><<2>><<3>><<4>>", "<<1>> <<1>> <<1>>",
    " \u2581<<1>>\u2581 ", "<<1>>\xa0<<1>>", "<<1>>\u3000x", "<<2>>!", "(<<2>>)", "a<<2>>b<<2>>c",
    "keep KEEP Keep keeper", "x keep y", "keep", " keep ", "keep.keep", "\u017feep", "cafe\u0301 keep\u0301",
    "  two leading, two trailing  ", "\u2003wide\u2003", "tabs\t\there", "a1b22c333d4444", "x,y;z", "\xbfqu\xe9?",
    "\u2026\u3002\uff01",
    "\u01c5 \u01c4 \u01c6", "XMLHttpRequest iPhone NASA's DON'Ts", "\u0410\u0411\u0412\u0433\u0434 \u03a3\u03c3\u03c2",
    "a\u0301b\u0308C\u0327", "\ufb03 \u2460 \uff21\uff22 \u3392 \u00bd", "e\u0301\u0302 \u1100\u1161\u11a8",
]


def corpus() -> list[str]:
    strings = [line for text in STRINGS if "<<" not in text for line in text.split("\n") if line.strip()]
    return help_lines() + strings * 8


def spm(lines: list[str], **options) -> BPE:
    return bpe_from_sentencepiece(sentencepiece_bpe(lines, VOCAB, **options))


def make_gemma(lines: list[str]) -> Tokenizer:
    """Gemma: no prefix, every space a mark, split behind each mark; runs of line breaks are added tokens."""
    breaks = ["\n\n", "\n\n\n"]
    names = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<start_of_turn>", "<end_of_turn>"]
    tokenizer = Tokenizer(spm(lines, pad_id=0, eos_id=1, bos_id=2, unk_id=3, pad_piece="<pad>", eos_piece="<eos>",
                              bos_piece="<bos>", control_symbols=names[4:], user_defined_symbols=breaks,
                              add_dummy_prefix=False))
    tokenizer.normalizer = normalizers.Replace(" ", WORD_MARK)
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence([decoders.Replace(WORD_MARK, " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens(special(*names))
    tokenizer.add_tokens([AddedToken(name, normalized=False) for name in breaks])
    tokenizer.post_processor = bos_template("<bos>", 2)
    return tokenizer


def make_phi3(lines: list[str]) -> Tokenizer:
    """Phi-3: Llama-2's form, most added tokens take the white space behind them, nothing is added around a text."""
    tokenizer = Tokenizer(spm(lines))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(WORD_MARK), normalizers.Replace(" ", WORD_MARK)])
    tokenizer.decoder = sentencepiece_decoder()
    tokenizer.add_special_tokens(special("<unk>", "<s>"))
    tokenizer.add_tokens([AddedToken("</s>", normalized=False, rstrip=True)])
    tokenizer.add_special_tokens(special("<|endoftext|>"))
    tokenizer.add_special_tokens(special("<|assistant|>", "<|system|>", "<|end|>", "<|user|>", rstrip=True))
    tokenizer.post_processor = processors.TemplateProcessing(single="$A", pair="$A $B:1", special_tokens=[])
    return tokenizer


def legacy_form(lines: list[str], normalized: bool) -> Tokenizer:
    tokenizer = Tokenizer(spm(lines))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(WORD_MARK), normalizers.Replace(" ", WORD_MARK)])
    tokenizer.decoder = sentencepiece_decoder()
    tokenizer.add_special_tokens([AddedToken(name, normalized=normalized, special=True)
                                  for name in ("<unk>", "<s>", "</s>")])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> <s>:1 $B:1 </s>:1", special_tokens=[("<s>", 1), ("</s>", 2)])
    return tokenizer


def make_legacy_flags(lines: list[str]) -> Tokenizer:
    """Llama's legacy form with bos and eos, and added tokens of every flag."""
    tokenizer = legacy_form(lines, normalized=False)
    tokenizer.add_special_tokens(special("[L]", lstrip=True) + special("[B]", lstrip=True, rstrip=True))
    tokenizer.add_tokens([AddedToken("keep", single_word=True, normalized=False)])
    return tokenizer


def make_normalized_tokens(lines: list[str]) -> Tokenizer:
    """As the first Llama's: special tokens are looked for, and decoded, in their normalised form."""
    tokenizer = legacy_form(lines, normalized=True)
    tokenizer.add_tokens([AddedToken("[two words]", normalized=True), AddedToken("keep", normalized=True)])
    return tokenizer


def make_metaspace_always(lines: list[str]) -> Tokenizer:
    """A Metaspace that splits at marks and marks every section, and the decoder of that name; saved in the old form."""
    tokenizer = Tokenizer(spm(lines))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(WORD_MARK, prepend_scheme="always", split=True)
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(WORD_MARK, "always")])
    tokenizer.add_special_tokens(special("<unk>", "<s>", "</s>", "[INST]", "[/INST]"))
    tokenizer.post_processor = bos_template("<s>", 1)
    return tokenizer


def make_metaspace_never(lines: list[str]) -> Tokenizer:
    """A Metaspace that never prepends, unknown characters not fused and no byte fallback."""
    model = spm(lines, add_dummy_prefix=False, character_coverage=0.995)
    model.fuse_unk, model.byte_fallback = False, False
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(WORD_MARK, prepend_scheme="never", split=True)
    tokenizer.decoder = decoders.Metaspace(WORD_MARK, "never")
    tokenizer.add_special_tokens(special("<unk>", "<s>", "</s>", "[INST]"))
    tokenizer.add_tokens([AddedToken("keep", single_word=True, lstrip=True, rstrip=True, normalized=False)])
    tokenizer.post_processor = bos_template("<s>", 1)
    return tokenizer


def make_byte_prefix(lines: list[str]) -> Tokenizer:
    """ByteLevel with a space put in front, between bos and eos."""
    tokenizer = byte_level(lines, pre_tokenizers.ByteLevel(add_prefix_space=True, use_regex=True), VOCAB)
    tokenizer.add_special_tokens(special("<s>", "</s>", "<|pad|>") + special("<mask>", lstrip=True))
    tokenizer.add_tokens([AddedToken("keep", single_word=True)])
    bos, eos = tokenizer.token_to_id("<s>"), tokenizer.token_to_id("</s>")
    tokenizer.post_processor = processors.Sequence([
        processors.ByteLevel(trim_offsets=True),
        processors.TemplateProcessing(single="<s>:0 $A:0 </s>:0", pair="<s>:0 $A:0 </s>:0 $B:1 </s>:1",
                                      special_tokens=[("<s>", bos), ("</s>", eos)])])
    return tokenizer


def make_splits(lines: list[str]) -> Tokenizer:
    """A sequence of pre-tokenizers with every behaviour of Split before the bytes."""
    split, literal = pre_tokenizers.Split, lambda text, how: pre_tokenizers.Split(text, how)
    steps = [split(Regex(r"[\r\n]"), "isolated"), literal("\t", "removed"), split(Regex(r"[;:]+"), "merged_with_next"),
             split(Regex(r"[_-]"), "merged_with_previous"), split(Regex(r"[=*]"), "contiguous"),
             pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.Punctuation("isolated"),
             split(Regex(r"\p{Han}+|[^\p{Han}]+"), "removed", invert=True),
             pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)]
    tokenizer = byte_level(lines, pre_tokenizers.Sequence(steps), VOCAB)
    tokenizer.add_special_tokens(special("<|endoftext|>", "<|a|>", "<|b|>"))
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    return tokenizer


def make_normalised(lines: list[str]) -> Tokenizer:
    """NFKC, replacements, lower case and stripping before a BPE with unknown tokens fused."""
    steps = [normalizers.NFKC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase(),
             normalizers.Strip(left=True, right=True), normalizers.Replace(" ", WORD_MARK)]
    normalizer = normalizers.Sequence(steps)
    tokenizer = Tokenizer(BPE(unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Digits(individual_digits=False), pre_tokenizers.Split(Regex(WORD_MARK), "merged_with_next")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace(WORD_MARK, " "), decoders.Fuse(),
                                           decoders.Strip(" ", 1, 0)])
    tokenizer.train_from_iterator(lines, BpeTrainer(
        vocab_size=VOCAB, limit_alphabet=200, special_tokens=["<unk>", "<s>"], show_progress=False))
    tokenizer.add_tokens([AddedToken("Keep", normalized=True), AddedToken("Caf\xe9", normalized=False)])
    tokenizer.post_processor = bos_template("<s>", 1)
    return tokenizer


def make_qwen3(lines: list[str]) -> Tokenizer:
    """Qwen2.5 and Qwen3: NFC, their pattern, many added tokens that are not special."""
    pre = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(QWEN2_SPLIT), "isolated", invert=False),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False, trim_offsets=False)])
    tokenizer = byte_level([unicodedata.normalize("NFC", line) for line in lines], pre, VOCAB)
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.decoder = decoders.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)
    tokenizer.post_processor = processors.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)
    tokenizer.add_special_tokens(special("<|endoftext|>", "<|im_start|>", "<|im_end|>"))
    tokenizer.add_tokens([AddedToken(name, normalized=False) for name in ("<think>", "</think>", "<tool_response>")])
    return tokenizer


def make_gpt4o(lines: list[str]) -> Tokenizer:
    """The pattern with letter cases of the newest byte-level tokenizers (Phi-4-mini, Mistral Nemo's is close)."""
    pre = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(GPT4O_SPLIT), "removed", invert=True),
                                   pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer = byte_level(lines, pre, VOCAB, ignore_merges=True)
    tokenizer.add_special_tokens(special("<|endoftext|>", "<|end|>", "<|user|>") + special("<|tag|>", rstrip=True))
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    return tokenizer


MAKERS: dict[str, Callable[[list[str]], Tokenizer]] = {
    "gemma": make_gemma, "phi3": make_phi3, "legacy-flags": make_legacy_flags,
    "normalized-tokens": make_normalized_tokens, "byte-prefix": make_byte_prefix,
    "metaspace-always": make_metaspace_always, "metaspace-never": make_metaspace_never, "splits": make_splits,
    "normalised": make_normalised, "qwen3": make_qwen3, "gpt4o": make_gpt4o}
OLD_MERGES = ("phi3", "legacy-flags", "normalized-tokens", "metaspace-always", "byte-prefix")


def use_old_metaspace(path: Path) -> None:
    """The form before prepend_scheme and split."""
    content = json.loads(path.read_text(encoding="utf-8"))
    content["pre_tokenizer"] = {"type": "Metaspace", "replacement": WORD_MARK, "add_prefix_space": True}
    content["decoder"]["decoders"][1] = {"type": "Metaspace", "replacement": WORD_MARK, "add_prefix_space": True}
    path.write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path)
    parser.add_argument("name", nargs="*", choices=[[], *MAKERS])
    arguments = parser.parse_args()
    lines = corpus()
    for number, (name, make) in enumerate(MAKERS.items()):
        if arguments.name and name not in arguments.name:
            continue
        path = arguments.output / name / "tokenizer.json"
        save_tokenizer(make(lines), path, old_merges=name in OLD_MERGES)
        if name == "metaspace-always":
            use_old_metaspace(path)
        tokenizer = Tokenizer.from_file(str(path))
        fragments = [*FRAGMENTS, "<<2>>", "<<3>>", "keep", " Keep"]
        texts = [*STRINGS, *MORE_STRINGS, *mixed_strings(30, 300 + number, fragments)]
        write_cases(tokenizer, path.with_name("cases.json"), texts, 40, 400 + number)
        print(name, tokenizer.get_vocab_size(), len(texts), sorted(tokenizer.get_added_tokens_decoder()),
              f"{sum(f.stat().st_size for f in path.parent.iterdir()) / 1e3:.0f} kB", flush=True)


if __name__ == "__main__":
    main()
