#!/usr/bin/env python3
"""Trains the bundled base model from scratch: a small Llama that can read slots.

A language model of billions of parameters can unroll several tokens out of one input vector; one of a few million cannot,
unless it has met the task. So one set of weights, without LoRA (the encoder is the model itself, fed with memory
tokens), is trained on several things at once:

  lm    the next token of prose, with passages that come again (copying from the context is to be learnt)
  qa    <eos><|user|>context\\n\\nprompt<|assistant|>answer<eos>
  ae    text -> slots -> the text                 cont  text -> slots -> what follows
  ft    context -> slots -> answer to a prompt

Then it is frozen, and `icae pretrain` and `icae finetune` train an adapter on it as on any other base.

Slots are proportional and their positions spread (docs/formats.md). Matrices are optimised by Muon, the rest by AdamW.

    tools/train_base.py --data TEXTS --out RUN --minutes 60            # TEXTS: prose-*.jsonl.zst, instruct.jsonl.zst
    tools/train_base.py --data TEXTS --out RUN --minutes 60 --resume   # goes on; --layers 6 grows a model of 4

RUN gets a Hugging Face folder, icae.safetensors (memory embeddings; LoRA with B = 0), log.jsonl, and train.pt for --resume.
Needs torch, numpy, tokenizers, safetensors, and zstdcat.
"""
import argparse
import json
import math
import os
import subprocess
import time

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F

SPECIAL = ["<|endoftext|>", "<|user|>", "<|assistant|>", "<|pad|>"]
EOS, USER, ASSISTANT, PAD = range(4)  # <|endoftext|> is bos and eos
BF16 = torch.bfloat16


# ---------------------------------------------------------------- text
def read_jsonl(path):
    out = subprocess.run(["zstdcat", path], capture_output=True, check=True).stdout
    for line in out.splitlines():
        yield json.loads(line)


def make_tokenizer(texts, vocab):
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    tok = Tokenizer(models.BPE())
    pattern = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
               r"|\s*[\r\n]+|\s+(?!\S)|\s+")
    tok.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(pattern), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tok.decoder = decoders.ByteLevel()
    tok.train_from_iterator(texts, trainers.BpeTrainer(
        vocab_size=vocab, special_tokens=SPECIAL, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    tok.post_processor = processors.TemplateProcessing(single=f"{SPECIAL[0]} $A", special_tokens=[(SPECIAL[0], EOS)])
    return tok


class Texts:
    """Token ids of the corpus: prose (documents behind EOS each), held-out prose, rows of (context, prompt, answer)."""

    def __init__(self, data, out, vocab, longest):
        from tokenizers import Tokenizer
        prose = [os.path.join(data, f"prose-{k}.jsonl.zst") for k in ("stories", "encyclopaedia", "textbooks")]
        path = os.path.join(out, "tokenizer.json")
        if not os.path.exists(path):
            make_tokenizer((r["text"] for f in prose for i, r in enumerate(read_jsonl(f)) if i % 4 == 0), vocab).save(path)
        self.tok = Tokenizer.from_file(path)
        self.gap = np.array(self.tok.encode("\n\n", add_special_tokens=False).ids)
        self.longest = longest
        held = [f.replace(".jsonl", ".heldout.jsonl") for f in prose]
        instruct = os.path.join(data, "instruct.jsonl.zst")
        self.prose = self.cached(out, "prose", lambda: self.flat(prose))
        self.held = self.cached(out, "held", lambda: self.flat(held))
        self.rows = self.split(self.cached(out, "rows", lambda: self.triples(instruct)))
        self.held_rows = self.split(self.cached(out, "held-rows", lambda: self.triples(instruct.replace(".jsonl", ".heldout.jsonl"))))

    @staticmethod
    def cached(out, name, make):
        path = os.path.join(out, f"tokens-{name}.npy")
        if not os.path.exists(path):
            np.save(path, make())
        return np.load(path, mmap_mode="r")

    def ids(self, texts):
        return [np.array(e.ids, dtype=np.uint16) for e in self.tok.encode_batch(texts, add_special_tokens=False)]

    def flat(self, files):
        documents = [d for f in files for d in self.ids([r["text"] for r in read_jsonl(f)])]
        np.random.default_rng(0).shuffle(documents)
        return np.concatenate([np.concatenate(([np.uint16(EOS)], d)) for d in documents])

    def triples(self, path):
        """Each row as its three lengths and then its ids, all in one array."""
        rows = list(read_jsonl(path))
        parts = zip(*(self.ids([r[k] for r in rows]) for k in ("context", "prompt", "response")))
        return np.concatenate([np.concatenate(([len(x) for x in p], *p)).astype(np.uint16) for p in parts])

    def split(self, flat):
        rows, at, flat = [], 0, np.asarray(flat).astype(np.int64)
        while at < len(flat):
            n = flat[at:at + 3]
            cut = at + 3 + np.concatenate(([0], np.cumsum(n)))
            if 16 <= n[0] <= self.longest and n[1] <= 64 and n[2] <= 64:
                rows.append([flat[cut[i]:cut[i + 1]] for i in range(3)])
            at = int(cut[3])
        return rows


# ---------------------------------------------------------------- model
def rms(x, g):
    xf = x.float()
    return (xf * torch.rsqrt(xf.pow(2).mean(-1, keepdim=True) + 1e-5) * g).to(BF16)


def rope(x, cos, sin):
    a, b = x.chunk(2, -1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)


class Layer(nn.Module):
    def __init__(self, c):
        super().__init__()
        D, self.H, self.G = c["dim"], c["heads"], c["kv_heads"]
        self.K = D // self.H
        std = 0.5 / math.sqrt(D)
        p = lambda rows, cols, s: nn.Parameter(torch.randn(rows, cols) * s)
        self.attn_norm, self.mlp_norm = nn.Parameter(torch.ones(D)), nn.Parameter(torch.ones(D))
        self.qkv, self.o = p((self.H + 2 * self.G) * self.K, D, std), p(D, D, std / math.sqrt(2 * c["layers"]))
        self.gate_up, self.down = p(2 * c["ffn"], D, std), p(D, c["ffn"], std / math.sqrt(2 * c["layers"]))

    def forward(self, x, cos, sin):  # x (B, T, D); cos, sin (B or 1, 1, T, K/2)
        B, T, D = x.shape
        lin = lambda y, w: F.linear(y, w.to(BF16))
        heads = lambda y, n: y.view(B, T, n, self.K).transpose(1, 2)
        q, k, v = lin(rms(x, self.attn_norm), self.qkv).split([D, self.G * self.K, self.G * self.K], -1)
        q, k, v = rope(heads(q, self.H), cos, sin), rope(heads(k, self.G), cos, sin), heads(v, self.G)
        k, v = k.repeat_interleave(self.H // self.G, 1), v.repeat_interleave(self.H // self.G, 1)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + lin(y.transpose(1, 2).reshape(B, T, D), self.o)
        g, u = lin(rms(x, self.mlp_norm), self.gate_up).chunk(2, -1)
        return x + lin(F.silu(g) * u, self.down)


class Base(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.c = c
        self.embed = nn.Parameter(torch.randn(c["vocab"], c["dim"]) * 0.04)
        self.memory = nn.Parameter(torch.randn(1, c["dim"]).repeat(c["slots"] + 3, 1) * 0.04)  # memory tokens, AE, LM, FT
        self.layers = nn.ModuleList([Layer(c) for _ in range(c["layers"])])
        self.norm = nn.Parameter(torch.ones(c["dim"]))
        K = c["dim"] // c["heads"]
        self.register_buffer("freq", 1 / c["theta"] ** (torch.arange(0, K, 2) / K), persistent=False)

    def run(self, e, pos):
        """e (B, T, D) input embeddings, pos (B or 1, T) real positions -> hidden states after the final norm."""
        a = pos.float()[:, None, :, None] * self.freq
        cos, sin = a.cos().to(BF16), a.sin().to(BF16)
        e = e.to(BF16)
        for layer in self.layers:
            e = layer(e, cos, sin)
        return rms(e, self.norm)

    def tokens(self, ids):
        return F.embedding(ids, self.embed)

    def logits(self, h):
        return F.linear(h, self.embed.to(BF16)).float()

    def loss(self, h, target):
        """Mean cross-entropy of rows h (.., D) against target (..); a negative target does not count."""
        h, target = h.reshape(-1, h.shape[-1]), target.reshape(-1)
        keep = target >= 0
        return F.cross_entropy(self.logits(h[keep]), target[keep])

    def spread(self, L, k):
        return (torch.arange(k, device=self.embed.device) + 0.5) * (L / k) - 0.5

    def slots(self, ids, rate):
        """ids (B, L), L at most one segment of slots * rate tokens, or several whole ones -> slots (B, ceil(L / rate), D)."""
        B, total = ids.shape
        L = min(total, self.c["slots"] * rate)
        k = math.ceil(L / rate)
        ids = ids.reshape(-1, L)
        e = torch.cat((self.tokens(ids), self.memory[:k].expand(len(ids), -1, -1)), 1)
        pos = torch.cat((torch.arange(L, device=ids.device).float(), self.spread(L, k)))[None]
        return self.run(e, pos)[:, L:].reshape(B, -1, e.shape[-1])

    def grow(self, layers):
        """Deeper by copies of layers, evenly placed, that change nothing yet (their outputs start at zero)."""
        old = list(self.layers)
        self.c = {**self.c, "layers": layers}
        made = []
        for i in range(layers):
            source = i * len(old) // layers
            new = i > 0 and source == (i - 1) * len(old) // layers
            layer = Layer(self.c)
            layer.load_state_dict(old[source].state_dict())
            if new:
                nn.init.zeros_(layer.o), nn.init.zeros_(layer.down)
            made.append(layer)
        self.layers = nn.ModuleList(made)


# ---------------------------------------------------------------- objectives
def lm_loss(m, x):
    T = x.shape[1] - 1
    return m.loss(m.run(m.tokens(x[:, :-1]), torch.arange(T, device=x.device)[None]), x[:, 1:])


def ae_rows(m, x, rate):
    """Hidden rows that predict x (B, L) and the eos after it, teacher forced."""
    B, L = x.shape
    z = m.slots(x, rate)
    k = z.shape[1]
    e = torch.cat((z.float(), m.memory[-3].expand(B, 1, -1), m.tokens(x)), 1)
    pos = torch.cat((m.spread(L, k), torch.arange(-1, L, device=x.device).float()))[None]
    return m.run(e, pos)[:, k:]


def ae_loss(m, x, rate):
    return m.loss(ae_rows(m, x, rate), F.pad(x, (0, 1), value=EOS))


def cont_loss(m, x, y, rate):
    """x (B, L) compressed, y (B, N) what follows; [LM] has position L."""
    B, L, N = x.shape[0], x.shape[1], y.shape[1]
    z = m.slots(x, rate)
    k = z.shape[1]
    e = torch.cat((z.float(), m.memory[-2].expand(B, 1, -1), m.tokens(y[:, :-1])), 1)
    pos = torch.cat((m.spread(L, k), torch.arange(L, L + N, device=x.device).float()))[None]
    return m.loss(m.run(e, pos)[:, k:], y)


def qa_rows(m, rows, gap, context=True):
    """Raw reading. Returns hidden rows (B, T, D), targets of the answers (B, T), targets of all before them (B, T)."""
    dev = m.embed.device
    asks = [[EOS, USER, *(c if context else []), *(gap if context else []), *p, ASSISTANT] for c, p, _ in rows]
    T = max(len(q) + len(a) for q, (_, _, a) in zip(asks, rows))
    ids = torch.full((len(rows), T), EOS, device=dev)
    answers, rest = torch.full((len(rows), T), -1, device=dev), torch.full((len(rows), T), -1, device=dev)
    for b, (q, (_, _, a)) in enumerate(zip(asks, rows)):
        n = len(q)
        ids[b, :n + len(a)] = torch.tensor([*q, *a], device=dev)
        answers[b, n - 1:n + len(a)] = torch.tensor([*a, EOS], device=dev)
        rest[b, 1:n - 2] = ids[b, 2:n - 1]
    return m.run(m.tokens(ids), torch.arange(T, device=dev)[None]), answers, rest


def ft_rows(m, rows, rate):
    """Contexts of any length as slots: <eos><|user|> slots [FT] prompt <|assistant|> answer <eos>. Returns hidden rows and
    targets of the answers. Rows are right-padded; under causal attention the padding is never seen."""
    dev, B = m.embed.device, len(rows)
    L = [len(c) for c, _, _ in rows]
    # encoder: the segments of all contexts, each with its memory tokens and padding after it
    pieces, k, at = [], [0] * B, [[] for _ in rows]  # at[b]: (piece, slots, text offset, length)
    for b, (c, _, _) in enumerate(rows):
        size = math.ceil(L[b] / math.ceil(L[b] / (m.c["slots"] * rate)))
        for p in range(0, L[b], size):
            piece = c[p:p + size]
            j = min(m.c["slots"], math.ceil(len(piece) / rate))
            at[b].append((len(pieces), j, p, len(piece)))
            pieces.append((piece, j))
            k[b] += j
    Te = max(len(c) + j for c, j in pieces)
    ids = torch.full((len(pieces), Te), EOS, device=dev)
    pos = torch.zeros(len(pieces), Te, device=dev)
    mem = torch.full((len(pieces), Te), -1, device=dev)
    for i, (c, j) in enumerate(pieces):
        n = len(c)
        ids[i, :n] = torch.from_numpy(c).to(dev)
        pos[i, :n] = torch.arange(n, device=dev).float()
        mem[i, n:n + j] = torch.arange(j, device=dev)
        pos[i, n:n + j] = m.spread(n, j)
    e = torch.where((mem >= 0)[..., None], m.memory[mem.clamp(min=0)], m.tokens(ids))
    z = m.run(e, pos).reshape(-1, m.c["dim"])  # row i * Te + t
    # decoder
    T = max(4 + k[b] + len(p) + len(a) for b, (_, p, a) in enumerate(rows))
    ids = torch.full((B, T), EOS, device=dev)
    pos = torch.zeros(B, T, device=dev)
    src = torch.full((B, T), -1, device=dev)
    ft = torch.zeros(B, T, dtype=torch.bool, device=dev)
    target = torch.full((B, T), -1, device=dev)
    for b, (_, p, a) in enumerate(rows):
        tail, s = [EOS, *p, ASSISTANT, *a], 2 + k[b]
        ids[b, 1] = USER
        src[b, 2:s] = torch.cat([torch.arange(i * Te + n, i * Te + n + j, device=dev) for i, j, _, n in at[b]])
        ids[b, s:s + len(tail)] = torch.tensor(tail, device=dev)
        ft[b, s] = True
        pos[b, :2] = torch.arange(2.0, device=dev)
        pos[b, 2:s] = torch.cat([2 + p0 + m.spread(n, j) for _, j, p0, n in at[b]])
        pos[b, s:] = 2 + L[b] + torch.arange(T - s, device=dev).float()
        q = s + 1 + len(p)
        target[b, q:q + len(a) + 1] = torch.tensor([*a, EOS], device=dev)
    e = torch.where((src >= 0)[..., None], z[src.clamp(min=0)].float(), m.tokens(ids))
    e = torch.where(ft[..., None], m.memory[-1], e)
    return m.run(e, pos), target


# ---------------------------------------------------------------- optimiser
def orthogonal(g):
    """Newton-Schulz iteration towards the nearest orthogonal matrix (Muon)."""
    x, flip = g.to(BF16), g.shape[0] > g.shape[1]
    x = x.T if flip else x
    x = x / (x.norm() + 1e-7)
    for _ in range(5):
        a = x @ x.T
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return (x.T if flip else x).float()


class Optimiser:
    """Muon for the matrices of the layers, AdamW for embeddings and norms."""

    def __init__(self, m, lr):
        self.lr = lr
        self.mats = [p for l in m.layers for p in (l.qkv, l.o, l.gate_up, l.down)]
        own = {id(p) for p in self.mats}
        self.adam = torch.optim.AdamW([p for p in m.parameters() if id(p) not in own], lr=lr, betas=(0.9, 0.95), weight_decay=0)
        self.mom = [torch.zeros_like(p) for p in self.mats]

    @torch.no_grad()
    def step(self, scale):
        for g in self.adam.param_groups:
            g["lr"] = 0.15 * self.lr * scale
        self.adam.step()
        for p, b in zip(self.mats, self.mom):
            b.mul_(0.95).add_(p.grad)
            u = orthogonal(p.grad.add(b, alpha=0.95))
            p.mul_(1 - 0.05 * self.lr * scale).add_(u, alpha=-self.lr * scale * max(1, p.shape[0] / p.shape[1]) ** 0.5)
            p.grad = None
        self.adam.zero_grad()

    def state(self):
        return {"adam": self.adam.state_dict(), "mom": self.mom}

    def load(self, s):
        self.adam.load_state_dict(s["adam"])
        for b, t in zip(self.mom, s["mom"]):
            b.copy_(t)


# ---------------------------------------------------------------- files
def export(m, out):
    from safetensors.torch import save_file
    c = m.c
    D, K, H, G, f = c["dim"], c["dim"] // c["heads"], c["heads"], c["kv_heads"], c["ffn"]
    bf = lambda t: t.detach().to("cpu", BF16).contiguous().clone()
    w = {"model.embed_tokens.weight": bf(m.embed), "model.norm.weight": bf(m.norm)}
    for i, l in enumerate(m.layers):
        p = f"model.layers.{i}."
        q, k, v = l.qkv.split([D, G * K, G * K])
        g, u = l.gate_up.chunk(2)
        w |= {p + "self_attn.q_proj.weight": bf(q), p + "self_attn.k_proj.weight": bf(k), p + "self_attn.v_proj.weight": bf(v),
              p + "self_attn.o_proj.weight": bf(l.o), p + "mlp.gate_proj.weight": bf(g), p + "mlp.up_proj.weight": bf(u),
              p + "mlp.down_proj.weight": bf(l.down), p + "input_layernorm.weight": bf(l.attn_norm),
              p + "post_attention_layernorm.weight": bf(l.mlp_norm)}
    save_file(w, os.path.join(out, "model.safetensors"), metadata={"format": "pt"})
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": c["vocab"], "hidden_size": D,
              "num_hidden_layers": c["layers"], "num_attention_heads": H, "num_key_value_heads": G, "head_dim": K,
              "intermediate_size": f, "rms_norm_eps": 1e-5, "rope_theta": c["theta"], "max_position_embeddings": 4096,
              "hidden_act": "silu", "tie_word_embeddings": True, "attention_bias": False, "mlp_bias": False,
              "bos_token_id": EOS, "eos_token_id": EOS, "torch_dtype": "bfloat16"}
    with open(os.path.join(out, "config.json"), "w") as file:
        json.dump(config, file, indent=1)
    with open(os.path.join(out, "generation_config.json"), "w") as file:
        json.dump({"bos_token_id": EOS, "eos_token_id": EOS, "pad_token_id": PAD}, file)
    a, r = {"memory_token_embed.weight": m.memory.detach().float().cpu().contiguous()}, 16
    for i in range(c["layers"]):
        for n, rows in (("q", D), ("v", G * K)):
            p = f"icae.base_model.model.model.layers.{i}.self_attn.{n}_proj."
            a[p + "lora_A.default.weight"] = torch.randn(r, D, generator=torch.Generator().manual_seed(i)) / math.sqrt(D)
            a[p + "lora_B.default.weight"] = torch.zeros(rows, r)
    save_file(a, os.path.join(out, "icae.safetensors"), metadata={
        "k": str(c["slots"]), "rate": "4", "rank": str(r), "alpha": "32", "targets": "q_proj,v_proj", "positions": "spread",
        "slots": "proportional", "lm_token": "true", "span": "512", "bos": "false"})


# ---------------------------------------------------------------- measuring
def answers_right(m, h, target):
    """Share of answers that greedy decoding gives to the last token: every teacher-forced choice is right."""
    wrong = (m.logits(h).argmax(-1) != target) & (target >= 0)
    return round(1 - wrong.any(1).float().mean().item(), 4)


@torch.no_grad()
def evaluate(m, texts):
    dev, held, rows = m.embed.device, texts.held, texts.held_rows[:128]
    window = lambda step, n, T: torch.stack([torch.from_numpy(held[i * step:i * step + T].astype(np.int64)) for i in range(n)]).to(dev)
    r = {"lm": lm_loss(m, window(513, 64, 513)).item()}
    x = window(700, 32, 128)
    h = m.run(m.tokens(torch.cat((x, x), 1)[:, :-1]), torch.arange(255, device=dev)[None])
    r["first"], r["again"] = m.loss(h[:, :127], x[:, 1:]).item(), m.loss(h[:, 128:], x[:, 1:]).item()
    for S, rate in ((64, 4), (256, 2), (256, 4), (256, 8), (256, 16), (512, 4)):
        x = window(700, 32, S)
        h = ae_rows(m, x, rate)[:, :-1]
        right = m.logits(h).argmax(-1) == x
        r[f"ae{S}/{rate}"] = m.loss(h, x).item()
        r[f"acc{S}/{rate}"] = right.float().mean().item()
        r[f"prefix{S}/{rate}"] = (right.int().cumprod(1).sum(1) / S).mean().item()
    x = window(700, 32, 256 + 128)
    r["cont"] = cont_loss(m, x[:, :256], x[:, 256:], 4).item()
    T = x.shape[1] - 1
    h = m.run(m.tokens(x[:, :-1]), torch.arange(T, device=dev)[None])
    r["cont_full"] = m.loss(h[:, 255:], x[:, 256:]).item()
    for name, (h, t) in {"full": qa_rows(m, rows, texts.gap)[:2], "none": qa_rows(m, rows, texts.gap, False)[:2],
                         "slots": ft_rows(m, rows, 4)}.items():
        r["qa_" + name], r["em_" + name] = m.loss(h, t).item(), answers_right(m, h, t)
    return {k: round(v, 4) for k, v in r.items()}


# ---------------------------------------------------------------- training
def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for n, d in (("vocab", 1024), ("dim", 256), ("layers", 6), ("heads", 4), ("kv_heads", 2), ("ffn", 704), ("slots", 16),
                 ("rows", 3072), ("threads", 2), ("seed", 0), ("eval_every", 250), ("longest", 640)):
        ap.add_argument("--" + n.replace("_", "-"), type=int, default=d)
    ap.add_argument("--theta", type=float, default=10000.0)
    ap.add_argument("--lr", type=float, default=0.02)
    ap.add_argument("--short", type=float, default=0.0, help="share of this run with short texts and autoencoding only; 0.3 from scratch")
    ap.add_argument("--decay", type=float, default=0.4, help="share of this run in which the learning rate falls to zero; 0: it will be resumed")
    ap.add_argument("--minutes", type=float, default=60)
    ap.add_argument("--data", required=True)
    ap.add_argument("--out", required=True)
    ap.add_argument("--device", default="cpu")
    ap.add_argument("--resume", action="store_true")
    args = ap.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    os.makedirs(args.out, exist_ok=True)
    texts = Texts(args.data, args.out, args.vocab, args.longest)
    prose, rows = texts.prose, texts.rows
    c = {k: getattr(args, k) for k in ("vocab", "dim", "layers", "heads", "kv_heads", "ffn", "slots", "theta")}
    state, step, spent, seen, saved = os.path.join(args.out, "train.pt"), 0, 0.0, 0, None
    if args.resume:
        saved = torch.load(state, map_location=args.device)
        step, spent, seen = saved["step"], saved["minutes"], saved.get("seen", 0)
        m = Base({**c, "layers": saved["config"]["layers"]})
        m.load_state_dict(saved["model"])
        if args.layers > m.c["layers"]:
            m.grow(args.layers)
            saved = None
    else:
        m = Base(c)
    m.to(args.device)
    opt = Optimiser(m, args.lr)
    if saved:
        opt.load(saved["opt"])
    rng = np.random.default_rng([args.seed, step])
    dev, begun, start, ema, t0 = args.device, seen, step, {}, time.time()
    print(f"{sum(p.numel() for p in m.parameters()) / 1e6:.1f} M parameters, {len(prose) / 1e6:.1f} M prose tokens, {len(rows)} rows", flush=True)
    log = open(os.path.join(args.out, "log.jsonl"), "a")

    def draw(n, T):
        return torch.stack([torch.from_numpy(prose[i:i + T].astype(np.int64)) for i in rng.integers(len(prose) - T, size=n)]).to(dev)

    def pick(n):
        return [rows[i] for i in rng.integers(len(rows), size=n)]

    def save():
        torch.save({"model": m.state_dict(), "opt": opt.state(), "step": step, "minutes": spent + (time.time() - t0) / 60,
                    "seen": seen, "config": m.c}, state + ".tmp")
        os.replace(state + ".tmp", state)
        export(m, args.out)

    def language():
        """Prose; in one sequence of six a passage comes again."""
        T = 512
        x = draw(max(2, args.rows // T), T + 1)
        for b in range(len(x)):
            if rng.random() < 1 / 6:
                n = int(rng.integers(24, 200))
                i, j = int(rng.integers(0, T - 2 * n)), 0
                j = int(rng.integers(i + n, T + 1 - n))
                x[b, j:j + n] = x[b, i:i + n].clone()
        return lm_loss(m, x), x.numel()

    def other(early):
        """One of the other tasks; the count is of text tokens."""
        u = 0 if early else rng.random()
        if u < 0.45:
            S = int(rng.choice([32, 64, 128] if early else [64, 128, 256, 512], p=[.4, .4, .2] if early else [.2, .3, .3, .2]))
            rate = int(rng.choice([2, 4] if early else [2, 4, 8, 16], p=[.5, .5] if early else [.05, .5, .35, .1]))
            x = draw(max(2, int(args.rows * 0.6 / S)), S)
            return "ae", ae_loss(m, x, rate), x.numel()
        if u < 0.6:
            S, rate = int(rng.choice([128, 256, 512])), int(rng.choice([4, 8, 16], p=[.6, .3, .1]))
            x = draw(max(2, int(args.rows * 0.6 / (S + 128))), S + 128)
            return "cont", cont_loss(m, x[:, :S], x[:, S:], rate), x.numel()
        picked = pick(max(2, args.rows // 400))
        count = sum(len(c) + len(p) + len(a) for c, p, a in picked)
        if u < 0.8:
            h, t = ft_rows(m, picked, int(rng.choice([4, 8], p=[.75, .25])))
            return "ft", m.loss(h, t), count
        h, t, rest = qa_rows(m, picked, texts.gap)
        return "qa", m.loss(h, t) + 0.5 * m.loss(h, rest), count

    last = time.time()
    while (done := (time.time() - t0) / 60 / args.minutes) < 1:
        falling = 1 if args.decay == 0 else min(1, max(0.02, (1 - done) / args.decay))
        loss, n = language()
        name, part, k = other(done < args.short)
        (loss + part).backward()
        torch.nn.utils.clip_grad_norm_(m.parameters(), 2.0)
        opt.step(min(1, (step - start + 1) / 50) * falling)
        step, seen = step + 1, seen + n + k
        for a, v in (("lm", loss.item()), (name, part.item())):
            ema[a] = v if a not in ema else 0.97 * ema[a] + 0.03 * v
        if step % args.eval_every == 0:
            r = {"step": step, "minutes": round(spent + (time.time() - t0) / 60, 1), "seen": seen,
                 "tokens/s": round((seen - begun) / (time.time() - t0)),
                 **{"train_" + a: round(v, 3) for a, v in ema.items()}, **evaluate(m, texts)}
            print(json.dumps(r), flush=True)
            log.write(json.dumps(r) + "\n")
            log.flush()
        if time.time() - last > 300:
            save()
            last = time.time()
    save()


if __name__ == "__main__":
    main()
