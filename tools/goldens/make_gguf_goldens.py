"""Writes the GGUF golden case: one small llama in several storage kinds with what each must compute.

    python make_gguf_goldens.py OUTPUT_FOLDER

OUTPUT_FOLDER gets model-KIND.gguf, icae.safetensors, golden.safetensors and golden.json.  For every
kind there are the float32 results of the exactly dequantised weights (the numbers to meet) and the
logits of llama.cpp, which rounds activations too (a plausibility check with a wide tolerance).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import gguf
import llama_cpp
import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from gguf_files import Vocabulary, read_gguf, tensor_kinds, write_gguf
from make_goldens import LLAMA, Case, Golden, add_objective, fill_adapter, fill_base, random_ids, settings
from make_tokenizer_goldens import help_lines, sentencepiece_bpe
from torch_icae import Icae, IcaeConfig

WRITTEN = ("F32", "F16", "BF16", "Q8_0", "Q4_0")        # by gguf-py
QUANTISED = ("Q4_K_M", "Q6_K")                          # by llama.cpp from the F32 file
SEQUENCE = 32
TEXTS = ["", " ", "Hello world", " leading", "two  spaces", "line\nline\n\n", "caf\u00e9 \u4e2d\u6587 \U0001f600",
         "for (i = 0; i < 10; ++i) x[i] += 1;", "The tower stands on a hill above the river.", "<s>not a mark</s>",
         "\ttab", "1234567890", "don't"]

CONFIG = {**LLAMA, "vocab_size": 512, "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2,
          "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512}
CASE = Case(CONFIG, seed=31)


@llama_cpp.llama_log_callback
def ignore_log(level: int, text: bytes, user_data: object) -> None:
    """Takes llama.cpp's messages."""


def sentencepiece_vocabulary(size: int) -> Vocabulary:
    processor = sentencepiece_bpe(help_lines(), size)
    kind = gguf.TokenType
    types = [kind.UNKNOWN if processor.is_unknown(i) else kind.CONTROL if processor.is_control(i)
             else kind.BYTE if processor.is_byte(i) else kind.NORMAL for i in range(size)]
    return Vocabulary("llama", [processor.id_to_piece(i).encode() for i in range(size)], [int(t) for t in types],
                      bos_id=1, eos_id=2, scores=[processor.get_score(i) for i in range(size)])


def random_model(case: Case) -> torch.nn.Module:
    options = {k: v for k, v in case.config.items() if k not in ("architectures", "torch_dtype")}
    config = AutoConfig.for_model(**options)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager").eval()
    fill_base(model, case)
    return model


def open_icae(model: torch.nn.Module, case: Case) -> Icae:
    return Icae(model, IcaeConfig(mem_size=case.mem_size, rate=case.rate, lora_rank=case.lora_rank,
                                  lora_targets=case.lora_targets, eos_id=case.config["eos_token_id"])).eval()


def base_weights(model: torch.nn.Module) -> dict[str, np.ndarray]:
    return {name: parameter.detach().numpy().copy() for name, parameter in model.named_parameters()}


def quantise(source: Path, target: Path, kind: str) -> None:
    """llama.cpp's own quantizer."""
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.nthread = 1
    parameters.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{kind}")
    if llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), parameters):
        raise RuntimeError(f"cannot quantise {source}")


def llamacpp_logits(path: Path, ids: list[int], texts: list[str]) -> tuple[torch.Tensor, list[list[int]]]:
    """Logits of llama.cpp with a float32 cache, and its tokenization of some texts."""
    model = llama_cpp.Llama(str(path), n_ctx=len(ids), n_batch=len(ids), logits_all=True, n_threads=1,
                            n_threads_batch=1, type_k=llama_cpp.GGML_TYPE_F32, type_v=llama_cpp.GGML_TYPE_F32,
                            flash_attn=False, verbose=False)
    model.eval(ids)
    logits = torch.from_numpy(np.array(model.scores[:len(ids)], dtype=np.float32))
    tokens = [model.tokenize(text.encode(), add_bos=True, special=False) for text in texts]
    model.close()
    return logits, tokens


def add_kind(golden: Golden, folder: Path, model: torch.nn.Module, case: Case, kind: str, ids: list[int],
             context: list[int], texts: list[str]) -> None:
    """Everything about one file; leaves its dequantised weights in `model`."""
    path = folder / f"model-{kind}.gguf"
    for name, weight in read_gguf(path, case.config, base_weights(model)).items():
        model.get_parameter(name).data.copy_(torch.from_numpy(weight))
    icae = open_icae(model, case)
    icae.load_adapter(str(folder / "icae.safetensors"))
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids])).logits[0]
        golden.put(f"{kind}.logits", logits)
        golden.put(f"{kind}.slots", icae.compress(context))
    theirs, tokens = llamacpp_logits(path, ids, texts)
    golden.put(f"{kind}.llamacpp_logits", theirs)
    add_objective(golden, icae, f"{kind}.ae", icae.ae_example(context))
    for part in ("context", "before", "after"):
        del golden.tensors[f"{kind}.ae.{part}"]
    golden.facts["tokenization"] = [{"text": t, "ids": i} for t, i in zip(texts, tokens)]
    distance = float((theirs - logits).norm() / logits.norm())
    loss = golden.facts.pop(f"{kind}.ae")["loss"]
    golden.facts[kind] = {"file": path.name, "tensors": tensor_kinds(path), "ae_loss": loss,
                          "llamacpp_relative_l2": distance}
    print(f"{folder.name} {kind}: ae loss {loss:.6f}, llama.cpp differs by {distance:.1e}")


def write_folder(folder: Path, case: Case, vocabulary: Vocabulary, written: tuple[str, ...],
                 quantised: tuple[str, ...], keep: tuple[str, ...],
                 texts: list[str] = TEXTS) -> None:
    """Make the files of all kinds and the golden values of those in `keep`; remove the other files."""
    llama_cpp.llama_log_set(ignore_log, None)
    folder.mkdir(parents=True, exist_ok=True)
    model = random_model(case)
    weights = base_weights(model)
    for kind in written:
        write_gguf(folder / f"model-{kind}.gguf", case.config, weights.items(), kind, vocabulary)
    for kind in quantised:
        quantise(folder / "model-F32.gguf", folder / f"model-{kind}.gguf", kind)

    icae = open_icae(model, case)
    fill_adapter(icae, case)
    icae.save_adapter(str(folder / "icae.safetensors"))
    generator = torch.Generator().manual_seed(case.seed + 2000)
    ids = random_ids(SEQUENCE, icae.vocab, generator)
    context = random_ids(case.length, icae.vocab, generator)
    golden = Golden()
    golden.ids("input_ids", ids)
    golden.ids("context", context)
    golden.facts["icae"] = settings(icae)
    for kind in keep:
        add_kind(golden, folder, model, case, kind, ids, context, texts)
    golden.save(folder)
    for kind in {*written, *quantised} - {*keep}:
        (folder / f"model-{kind}.gguf").unlink()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    write_folder(arguments.output, CASE, sentencepiece_vocabulary(CONFIG["vocab_size"]), WRITTEN, QUANTISED,
                 WRITTEN + QUANTISED)


if __name__ == "__main__":
    main()
