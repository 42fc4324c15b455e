#!/usr/bin/env python3
"""Makes the seeds in fuzz/corpus/{safetensors,gguf,pt,json,request}: small good files and hostile ones.
Developer only; the .pt seeds are copies of tests/data/*.pt. Needs nothing beyond Python."""
import json
import os
import shutil
import struct
import zipfile

root = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..")


def put(kind, name, data):
    folder = os.path.join(root, "fuzz/corpus", kind)
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, name), "wb") as f:
        f.write(data)


# ---- safetensors ----

def tensor(dtype, shape, begin, end):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def st(header, data=b"", size=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if size is None else size) + text + data


good = {"__metadata__": {"format": "pt", "k": "128"}, "w": tensor("F32", [2, 3], 0, 24),
        "b": tensor("BF16", [3], 24, 30), "s": tensor("I64", [], 30, 38),
        "e": tensor("U8", [0, 4], 38, 38), "m": tensor("BOOL", [2], 38, 40)}
put("safetensors", "good", st(good, bytes(range(40))))
put("safetensors", "padded", st(json.dumps(good).encode() + b"   ", bytes(40)))
put("safetensors", "empty", st({}))
put("safetensors", "truncated", st(good, bytes(39)))
put("safetensors", "trailing", st(good, bytes(41)))
put("safetensors", "header_huge", st({}, size=2**63 - 1))
put("safetensors", "header_long", st({}, size=1000))
put("safetensors", "overlap", st({"a": tensor("F32", [1], 0, 4), "b": tensor("F32", [1], 2, 6)}, bytes(6)))
put("safetensors", "hole", st({"a": tensor("F32", [1], 4, 8)}, bytes(8)))
put("safetensors", "overflow", st({"a": tensor("F32", [2**32, 2**32], 0, 0)}))
put("safetensors", "beyond", st({"a": tensor("F32", [1], 2**53 - 4, 2**53)}, bytes(4)))
put("safetensors", "negative", st({"a": tensor("F32", [-1], -4, 0)}, bytes(4)))
put("safetensors", "dtype", st({"a": tensor("F8_E4M3", [1], 0, 1)}, bytes(1)))
put("safetensors", "twice", st(b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},'
                               b'"a":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}', bytes(2)))
put("safetensors", "deep", st(b"[" * 3000 + b"]" * 3000))

# ---- GGUF ----

U32, F32, BOOL, STRING, ARRAY, U64 = 4, 6, 7, 8, 9, 10


def s(text):
    return struct.pack("<Q", len(text)) + text


def head(version, tensors, values):
    return b"GGUF" + struct.pack("<IQQ", version, tensors, values)


def gt(name, dims, kind, offset):
    return s(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)


def pad(data, extra):
    return data + bytes(-len(data) % 32) + bytes(i & 255 for i in range(extra))


values = [s(b"general.architecture") + struct.pack("<I", STRING) + s(b"llama"),
          s(b"general.alignment") + struct.pack("<II", U32, 32),
          s(b"llama.rope.freq_base") + struct.pack("<If", F32, 1e4),
          s(b"flag") + struct.pack("<IB", BOOL, 1),
          s(b"big") + struct.pack("<IQ", U64, 2**40),
          s(b"words") + struct.pack("<IIQ", ARRAY, STRING, 3) + s(b"a") + s(b"") + s("ü".encode()),
          s(b"scores") + struct.pack("<IIQ2f", ARRAY, F32, 2, 1.0, -2.0)]
tensors = [gt(b"w", [32, 2], 8, 0), gt(b"n", [4], 0, 96), gt(b"q", [256], 14, 128)]
body = b"".join(values) + b"".join(tensors)
put("gguf", "good", pad(head(3, 3, 7) + body, 338))
put("gguf", "version2", pad(head(2, 3, 7) + body, 338))
put("gguf", "truncated", pad(head(3, 3, 7) + body, 337))
put("gguf", "vocabulary_only", head(3, 0, 7) + b"".join(values))
put("gguf", "counts", head(3, 2**64 - 1, 2**64 - 1))
put("gguf", "array", head(3, 0, 1) + s(b"a") + struct.pack("<IIQ", ARRAY, U32, 2**62))
put("gguf", "strings", head(3, 0, 1) + s(b"a") + struct.pack("<IIQ", ARRAY, STRING, 2) + s(b"x") +
    struct.pack("<Q", 2**64 - 8))
put("gguf", "nested", head(3, 0, 1) + s(b"a") + struct.pack("<IIQ", ARRAY, ARRAY, 0))
put("gguf", "key", head(3, 0, 1) + struct.pack("<Q", 2**64 - 1) + bytes(8))
put("gguf", "alignment", head(3, 0, 1) + s(b"general.alignment") + struct.pack("<II", U32, 3))
put("gguf", "overlap", pad(head(3, 2, 0) + gt(b"v", [16], 0, 0) + gt(b"w", [8], 0, 32), 96))
put("gguf", "overflow", pad(head(3, 1, 0) + gt(b"w", [2**62, 4], 0, 0), 64))
put("gguf", "offset", pad(head(3, 1, 0) + gt(b"w", [8], 0, 2**64 - 32), 64))
put("gguf", "type", pad(head(3, 1, 0) + gt(b"w", [32], 3, 0), 64))
put("gguf", "rank", pad(head(3, 1, 0) + gt(b"w", [1] * 5, 0, 0), 64))

# ---- JSON ----

texts = {
    "config": '{"model_type": "llama", "rope_scaling": null, "tie": false, "eps": 1e-05, "n": [1, 2.5, -3]}',
    "escapes": r'["\u00fc\ud83d\ude00\"\\\/\b\f\n\r\t", ""]', "scalar": " -0.5e+3 ", "bom": "\ufeff[1]",
    "duplicates": '{"a": 1, "a": 2}', "empty": "", "open": '{"a": [1, {"b": "', "zero": r'["\u0000"]',
    "surrogate": r'["\ud800"]', "trailing": "[1] [2]", "control": '["a\nb"]', "deep": "[" * 250 + "]" * 250,
    "deep_enough": '{"a":' * 200 + "1" + "}" * 200, "very_deep": "[" * 15000, "number": "[1e999, -1e-999, 00, 1.e5]",
}
for name, text in texts.items():
    put("json", name, text.encode())
put("json", "broken_utf8", b'["\xff\xfe\xed\xa0\x80", "\xc3"]')

# ---- torch.save ----

source = os.path.join(root, "tests/data")
os.makedirs(os.path.join(root, "fuzz/corpus/pt"), exist_ok=True)
for name in os.listdir(source):
    if name.endswith(".pt"):
        shutil.copyfile(os.path.join(source, name), os.path.join(root, "fuzz/corpus/pt", name[:-3]))
with open(os.path.join(source, "good.pt"), "rb") as f:
    whole = f.read()
put("pt", "truncated", whole[:-30])
put("pt", "end_only", whole[-22:])
for name in ["good", "state_dict", "bad_system", "bad_bomb"]:
    with zipfile.ZipFile(os.path.join(source, name + ".pt")) as z:
        put("pt", name + "_pickle", z.read(next(n for n in z.namelist() if n.endswith("/data.pkl"))))

# ---- requests: see fuzz/fuzz_request.c for the first byte ----

everything = {"model": "icae", "messages": [
    {"role": "system", "content": "Be brief."}, {"role": "developer", "content": [{"type": "text", "text": "Please."}]},
    {"role": "user", "content": [{"type": "icae_context", "id": "ctx_" + "0" * 32}, {"type": "text", "text": "\u00e9\U0001f40b?"}]},
    {"role": "assistant", "content": "Yes."}, {"role": "user", "content": "And now?"}],
    "temperature": 0.5, "top_p": 0.9, "n": 2, "max_tokens": 10, "max_completion_tokens": 9, "stop": ["a", "b"], "seed": 5,
    "stream": True, "stream_options": {"include_usage": True}, "logprobs": True, "top_logprobs": 3, "user": "x", "other": [1],
    "icae": {"contexts": ["ctx_" + "f" * 32], "compress_over": 100, "top_k": 5, "min_p": 0.1, "colour": 3}}
plain = {"prompt": "Once upon", "max_tokens": 3, "logprobs": 2, "echo": True, "stop": "x"}
wrong = [{}, {"messages": []}, {"messages": [7]}, {"messages": [{"role": "robot"}]}, {"messages": [{"role": "user"}]},
         {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, {"messages": [{"role": "assistant", "content": "x"}]},
         plain | {"prompt": ["a", "b"]}, plain | {"n": 9}, plain | {"n": 1e300}, plain | {"temperature": "hot"}, plain | {"stop": [""]},
         plain | {"icae": {"contexts": ["x"] * 65}}, plain | {"seed": -0.5}]
put("request", "chat", b"\0" + json.dumps(everything).encode())
put("request", "plain", b"\1" + json.dumps(plain).encode())
for i, one in enumerate(wrong):
    put("request", f"wrong_{i}", (b"\1" if "prompt" in one else b"\0") + json.dumps(one).encode())
put("request", "deep", b"\0" + b'{"messages":' + b"[" * 300)
put("request", "many", b"\0" + b'{"a":[' + b"[]," * 3000 + b"1]}")
put("request", "zero", b'\1{"prompt":"a\\u0000b"}')
put("request", "no_utf8", b'\1{"prompt":"\xff"}')
query = b"a name\x004.5\x00true\x00\x000\x00600\x00"
put("request", "text_json", b"\4" + query + b'{"text":"Some text.","name":"n","rate":2,"check":false,"exact":true,"int8":true,"ttl":9}')
put("request", "text_plain", b"\5" + query + "Some text \u00e9.".encode())
put("request", "text_file", b"\6" + b"-\0" * 6 + b"\x10\0\0\0\0\0\0\0{}")
put("request", "text_type", b"\7" + b"-\0" * 6 + b"<p>")
put("request", "text_bad_query", b"\5" + b"-\x000x10\x00maybe\x00-\x00-\x00" + b"9" * 30 + b"\0x")
