#!/usr/bin/env python3
"""Trains the bundled base model from scratch: a small Llama that can read slots.

A language model of billions of parameters can unroll several tokens out of one input vector; one of a few million cannot,
unless it has met the task. So one set of weights, without LoRA (the encoder is the model itself, fed with memory
tokens), is trained on several things at once:

  lm    the next token of prose, with passages that come again (copying from the context is to be learnt)
  qa    <eos><|user|>context\\n\\nprompt<|assistant|>answer<eos>
  ae    text -> slots -> the text                 cont  text -> slots -> what follows
  ft    context -> slots -> answer to a prompt
  find  text -> slots -> what follows a few words of it, several times (finding a place by what stands there)

Prompts are those of the instruction data and, two batches of five, blanks to fill in: a sentence of the context (or of what
was cut out of it) without one of its names or words, which is the answer. Then the model is frozen, and `icae pretrain`
and `icae finetune` train an adapter on it as on any other base.

Slots are proportional and their positions spread (docs/formats.md). Matrices are optimised by Muon, the rest by AdamW.

    tools/train_base.py --data TEXTS --out RUN --minutes 60            # TEXTS: prose-*.jsonl.zst, instruct.jsonl.zst
    tools/train_base.py --data TEXTS --out RUN --minutes 60 --resume   # goes on
    tools/train_base.py --data TEXTS --out RUN --minutes 9 --device cuda --positions 32768 --workers 6 --threads 8 --short 0.1
    tools/train_base.py --data TEXTS --out RUN --start OTHER --mix .5 .05 .1 .1 .25 --compile   # from the weights of another run
    tools/train_base.py --data TEXTS --out RUN --start MODEL --measure                           # a model on the held-out part

RUN gets a Hugging Face folder, icae.safetensors (memory embeddings; LoRA with B = 0), log.jsonl, and train.pt for --resume.
Needs torch, numpy, tokenizers, safetensors, and zstdcat.
"""
import argparse
import json
import math
import os
import shutil
import subprocess
import time

os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from tokenizers import Tokenizer

SPECIAL = ["<|endoftext|>", "<|user|>", "<|assistant|>", "<|pad|>"]
EOS, USER, ASSISTANT, PAD = range(4)  # <|endoftext|> is bos and eos
AE, LM, FT = -3, -2, -1               # rows of the memory embeddings, counted from the end
BF16 = torch.bfloat16
KINDS = ("stories", "encyclopaedia", "textbooks")


# ---------------------------------------------------------------- text
def read_jsonl(path):
    out = subprocess.run(["zstdcat", path], capture_output=True, check=True).stdout
    for line in out.splitlines():
        yield json.loads(line)


def make_tokenizer(texts, vocab):
    from tokenizers import Regex, decoders, models, pre_tokenizers, processors, trainers
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
    """Token ids of one part of the corpus: prose (documents behind EOS each) and rows of (context, prompt, answer)."""

    def __init__(self, data, out, vocab, part=""):
        files = [os.path.join(data, f"prose-{k}{part}.jsonl.zst") for k in KINDS]
        path = os.path.join(out, "tokenizer.json")
        if not os.path.exists(path):
            make_tokenizer((r["text"] for f in files for i, r in enumerate(read_jsonl(f)) if i % 4 == 0), vocab).save(path)
        self.tok = Tokenizer.from_file(path)
        self.gap, self.blank = self.encode("\n\n"), self.encode("Fill in the blank: ")
        pieces = [self.tok.id_to_token(i) for i in range(self.tok.get_vocab_size())]
        self.ends = np.array([p.lstrip("Ġ")[:1] in ".!?" and p != "Ġ" for p in pieces])      # may end a sentence
        self.word = np.array([p[:1] == "Ġ" and p[1:2].isalnum() for p in pieces])            # begins a word
        self.name = np.array([p[:1] == "Ġ" and (p[1:2].isupper() or p[1:2].isdigit()) for p in pieces])
        self.inner = np.array([p[:1].isalnum() and p[:1] != "Ġ" and i >= len(SPECIAL) for i, p in enumerate(pieces)])
        self.prose = self.cached(out, "prose" + part, lambda: self.flat(files))
        self.rows = self.cached(out, "rows" + part, lambda: self.triples(os.path.join(data, f"instruct{part}.jsonl.zst")))
        self.cuts = self.index(640)

    @staticmethod
    def cached(out, name, make):
        path = os.path.join(out, f"tokens-{name}.npy")
        if not os.path.exists(path):
            np.save(path, make())
        return np.load(path)

    def encode(self, text):
        return np.array(self.tok.encode(text, add_special_tokens=False).ids, dtype=np.int64)

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

    def index(self, longest):
        """Where rows begin and end, the shortest first: neighbours share a batch with little padding."""
        cuts, at = [], 0
        while at < len(self.rows):
            n = self.rows[at:at + 3].astype(np.int64)
            cut = at + 3 + np.concatenate(([0], np.cumsum(n)))
            if 16 <= n[0] <= longest and n[1] <= 64 and n[2] <= 64:
                cuts.append(cut)
            at = int(cut[3])
        return np.array(sorted(cuts, key=lambda c: c[3] - c[0]))

    def row(self, i):
        c, flat = self.cuts[i], self.rows
        return tuple(flat[c[j]:c[j + 1]].astype(np.int64) for j in range(3))

    def window(self, at, n):
        return self.prose[at:at + n].astype(np.int64)

    def fill_in(self, rng, length):
        """A context of prose, one of its sentences with a blank, and what the blank stands for; None if the draw is bad."""
        x = self.window(int(rng.integers(len(self.prose) - length)), length)
        if (x == EOS).any():
            x = x[np.flatnonzero(x == EOS)[-1] + 1:]
        stops = np.flatnonzero(self.ends[x])
        fit = [(a + 1, b + 1) for a, b in zip(stops, stops[1:]) if 8 <= b - a <= 48]
        if not fit:
            return None
        a, b = fit[rng.integers(len(fit))]
        starts = np.flatnonzero((self.name if rng.random() < 0.7 else self.word)[x[a + 1:b]]) + a + 1
        if not len(starts):
            return None
        s = int(starts[rng.integers(len(starts))])
        e = s + 1
        for _ in range(int(rng.choice([1, 2, 3], p=[.6, .3, .1]))):  # words; of a name, words that are names too
            while e < b and self.inner[x[e]]:
                e += 1
            if e + 1 >= b or not self.word[x[e]] or (self.name[x[s]] and not self.name[x[e]]):
                break
            e += 1
        while e < b and self.inner[x[e]]:
            e += 1
        answer = x[s:e]
        again = any((x[i:i + len(answer)] == answer).all() for i in (*range(a), *range(b, len(x) - len(answer))))
        context = np.concatenate((x[:a], x[b:])) if again and rng.random() < 0.6 else x
        if len(context) < 16 or len(answer) > 12:
            return None
        text = (self.tok.decode(x[a:s].tolist()) + " ____" + self.tok.decode(x[e:b].tolist())).strip()
        return context, np.concatenate((self.blank, self.encode(text))), self.encode(self.tok.decode(answer.tolist()).strip())


# ---------------------------------------------------------------- batches
def padded(rows, value, dtype=np.int64):
    out = np.full((len(rows), max(map(len, rows))), value, dtype)
    for r, row in zip(out, rows):
        r[:len(row)] = row
    return out


def targets(rows, width):
    """rows: lists of (place, ids). Flat places in a batch of that width, and the ids wanted there."""
    where = [b * width + at + np.arange(len(ids)) for b, row in enumerate(rows) for at, ids in row]
    return {"where": np.concatenate(where), "want": np.concatenate([ids for row in rows for _, ids in row])}


def spread(L, k):
    return (np.arange(k) + 0.5) * (L / k) - 0.5


def raw_batch(rows, gap, context=True):
    """Raw reading of (context, prompt, answer); `rest` is all that comes before the answers."""
    asks = [np.concatenate(([EOS, USER], c, gap, p, [ASSISTANT]) if context else ([EOS, USER], p, [ASSISTANT])) for c, p, _ in rows]
    ids = padded([np.concatenate((q, a)) for q, (_, _, a) in zip(asks, rows)], EOS)
    t = targets([[(len(q) - 1, np.append(a, EOS))] for q, (_, _, a) in zip(asks, rows)], ids.shape[1])
    rest = targets([[(1, q[2:-1])] for q in asks], ids.shape[1])
    return {"ids": ids, **t, "rest_where": rest["where"], "rest_want": rest["want"]}


def slot_batch(samples, slots):
    """samples: (context, rate, head, special, start, tail, wants): slots of the context stand behind `head`, then comes the
    special embedding at position `start` and the tail. wants: (j, ids): what is to be predicted from the j-th place on, the
    special embedding being the first. Rows are padded on the right; under causal attention the padding is never seen."""
    pieces, ids, pos, spans, wants = [], [], [], [], []
    for context, rate, head, _, start, tail, want in samples:
        n, h = len(context), len(head)
        size = math.ceil(n / math.ceil(n / (slots * rate)))
        own = [(context[p:p + size], min(slots, math.ceil(min(size, n - p) / rate))) for p in range(0, n, size)]
        at = [h + i * size + spread(len(piece), k) for i, (piece, k) in enumerate(own)]
        k = sum(k for _, k in own)
        pieces += own
        ids.append(np.concatenate((head, np.full(k + 1, EOS), tail)).astype(np.int64))
        pos.append(np.concatenate((np.arange(h), *at, start + np.arange(1 + len(tail)))))
        spans.append((h, k))
        wants.append([(h + k + j, w) for j, w in want])
    width = max(len(p) + k for p, k in pieces)
    memory = np.concatenate([i * width + len(p) + np.arange(k) for i, (p, k) in enumerate(pieces)])
    which = np.concatenate([np.arange(k) for _, k in pieces])
    ids = padded(ids, EOS)
    B, T = ids.shape
    place = np.concatenate([b * T + h + np.arange(k) for b, (h, k) in enumerate(spans)])
    return {"enc_ids": padded([np.append(p, np.full(k, EOS)) for p, k in pieces], EOS),
            "enc_pos": padded([np.concatenate((np.arange(len(p)), spread(len(p), k))) for p, k in pieces], 0, np.float32),
            "memory": memory, "which": which, "ids": ids, "pos": padded(pos, 0, np.float32), "place": place,
            "mark_place": np.array([b * T + h + k for b, (h, k) in enumerate(spans)]),
            "mark": np.array([s[3] for s in samples]), **targets(wants, T)}


def restoring(x, rate):
    return x, rate, [], AE, -1, x, [(0, np.append(x, EOS))]


def continuing(x, n, rate):
    return x[:n], rate, [], LM, n, x[n:], [(0, x[n:])]


def answering(row, rate):
    c, p, a = row
    return c, rate, [EOS, USER], FT, 2 + len(c), np.concatenate((p, [ASSISTANT], a)), [(len(p) + 1, np.append(a, EOS))]


def finding(x, rate, rng):
    """Some words of x, of which each is to be followed by what follows it in x."""
    tail, wants = [], []
    for _ in range(1 + len(x) // 48):
        cue, n = int(rng.integers(3, 10)), int(rng.integers(6, 32))
        i = int(rng.integers(0, max(1, len(x) - cue - n)))
        answer = x[i + cue:i + cue + n]
        tail += [*([USER] if tail else []), *x[i:i + cue], ASSISTANT]
        wants.append((len(tail), answer))
        tail += [*answer, EOS]
    return x, rate, [EOS, USER], FT, 2 + len(x), np.array(tail), wants


class Batches(torch.utils.data.IterableDataset):
    """Endless batches of one sort: "language" is prose; "other" any of the other tasks; "short" short texts to restore."""

    def __init__(self, texts, sort, positions, slots, seed, mix):
        self.texts, self.sort, self.positions, self.slots, self.seed = texts, sort, positions, slots, seed
        self.mix = np.array(mix) / sum(mix)  # shares of ae, cont, ft, qa, find among "other"

    def __iter__(self):
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        info = torch.utils.data.get_worker_info()
        rng = np.random.default_rng([self.seed, info.id if info else 0, len(self.sort)])
        while True:
            name, b = self.language(rng) if self.sort == "language" else self.other(rng, self.sort == "short")
            yield name, {k: torch.from_numpy(np.ascontiguousarray(v)) for k, v in b.items()}

    def draw(self, rng, n, T):
        return [self.texts.window(i, T) for i in rng.integers(len(self.texts.prose) - T, size=n)]

    def language(self, rng):
        """Prose; in one sequence of six a passage comes again."""
        T = int(rng.choice([512, 1024, 2048], p=[.5, .35, .15])) if self.positions > 8192 else 512
        x = np.stack(self.draw(rng, max(2, self.positions // T), T + 1))
        for row in x:
            if rng.random() < 1 / 6:
                n = int(rng.integers(24, 200))
                i = int(rng.integers(0, T - 2 * n))
                j = int(rng.integers(i + n, T + 1 - n))
                row[j:j + n] = row[i:i + n].copy()
        return "lm", {"ids": x[:, :-1], "where": np.arange(x[:, 1:].size), "want": x[:, 1:].ravel()}

    def asked(self, rng):
        """Rows of about the same length, for as many positions as a batch has: instruction data, or blanks to fill in."""
        t = self.texts
        if rng.random() < 0.6:
            i = int(rng.integers(len(t.cuts)))
            n = max(2, self.positions // int(t.cuts[i][3] - t.cuts[i][0] + 24))
            return [t.row(j % len(t.cuts)) for j in range(i, i + n)], ""
        length = int(rng.choice([96, 192, 320, 480]))
        rows = [t.fill_in(rng, length) for _ in range(max(4, self.positions // (length + 64)))]
        rows = [r for r in rows if r]
        return (rows, "-blank") if len(rows) > 1 else self.asked(rng)

    def other(self, rng, short):
        task = 0 if short else rng.choice(5, p=self.mix)
        if task == 0:
            S = int(rng.integers(16, 128)) if short else int(rng.choice([rng.integers(16, 128), rng.integers(128, 320), 512], p=[.5, .4, .1]))
            rate = int(rng.choice([2, 4], p=[.3, .7]) if short else rng.choice([2, 4, 8, 16], p=[.02, .72, .25, .01]))
            n = max(2, int(self.positions / (S * (2 + 2 / rate))))
            return "ae", slot_batch([restoring(x, rate) for x in self.draw(rng, n, S)], self.slots)
        if task == 1:
            S, rate = int(rng.choice([128, 256, 512])), int(rng.choice([4, 8, 16], p=[.6, .3, .1]))
            n = max(2, int(self.positions / (S * (1 + 2 / rate) + 192)))
            return "cont", slot_batch([continuing(x, S, rate) for x in self.draw(rng, n, S + 192)], self.slots)
        if task == 4:
            S, rate = int(rng.choice([rng.integers(24, 128), rng.integers(128, 320)])), int(rng.choice([4, 8], p=[.75, .25]))
            n = max(2, int(self.positions / (S * (1.5 + 2 / rate))))
            return "find", slot_batch([finding(x, rate, rng) for x in self.draw(rng, n, S)], self.slots)
        rows, blank = self.asked(rng)
        if task == 2:
            rate = int(rng.choice([4, 8], p=[.7, .3]))
            return "ft" + blank, slot_batch([answering(r, rate) for r in rows], self.slots)
        return "qa" + blank, raw_batch(rows, self.texts.gap)


# ---------------------------------------------------------------- model
def rope(x, cos, sin):
    a, b = x.chunk(2, -1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)


def attention(q, k, v):
    """Causal; q (B, H, T, K), k and v (B, G, T, K). On a CPU by plain products: PyTorch's own has a slow backward pass there."""
    if q.device.type != "cpu":
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    (B, H, T, K), G = q.shape, k.shape[1]
    q, k, v = q.reshape(B * G, H // G * T, K), k.reshape(B * G, T, K), v.reshape(B * G, T, K)
    s = torch.bmm(q, k.mT).view(B * G, H // G, T, T).float() / math.sqrt(K)
    p = s.masked_fill(torch.ones(T, T, dtype=torch.bool).triu(1), -math.inf).softmax(-1)
    return torch.bmm(p.to(BF16).view(B * G, H // G * T, T), v).view(B, H, T, K)


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
        norm = lambda y, g: F.rms_norm(y, (D,), g.to(BF16), 1e-5)
        heads = lambda y, n: y.view(B, T, n, self.K).transpose(1, 2)
        qk, v = lin(norm(x, self.attn_norm), self.qkv).split([D + self.G * self.K, self.G * self.K], -1)
        q, k = rope(heads(qk, self.H + self.G), cos, sin).split([self.H, self.G], 1)
        y = attention(q, k, heads(v, self.G))
        x = x + lin(y.transpose(1, 2).reshape(B, T, D), self.o)
        g, u = lin(norm(x, self.mlp_norm), self.gate_up).chunk(2, -1)
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
        """e (B, T, D) input embeddings, pos (B or 1, T) real positions -> hidden states (B * T, D) after the final norm."""
        a = pos.float().expand(e.shape[:2])[:, None, :, None] * self.freq
        cos, sin = a.cos().to(BF16), a.sin().to(BF16)
        e = e.to(BF16)
        for layer in self.layers:
            e = layer(e, cos, sin)
        return F.rms_norm(e, e.shape[-1:], self.norm.to(BF16), 1e-5).view(-1, e.shape[-1])

    def put(self, ids, *parts):
        """Embeddings of ids (B, T), of which each (place, rows) of parts replaces some."""
        e = F.embedding(ids, self.embed).to(BF16).view(-1, self.c["dim"])
        for place, rows in parts:
            e = e.index_copy(0, place, rows.to(BF16))
        return e.view(*ids.shape, -1)

    def hidden(self, b):
        """Hidden states of a batch of raw_batch, language or slot_batch."""
        if "memory" not in b:
            ids = b["ids"]
            return self.run(self.put(ids), torch.arange(ids.shape[1], device=ids.device)[None])
        e = self.put(b["enc_ids"], (b["memory"], F.embedding(b["which"], self.memory)))
        z = self.run(e, b["enc_pos"]).index_select(0, b["memory"])
        e = self.put(b["ids"], (b["place"], z), (b["mark_place"], F.embedding(len(self.memory) + b["mark"], self.memory)))
        return self.run(e, b["pos"])

    def logits(self, h):
        return F.linear(h, self.embed.to(BF16)).float()

    def score(self, h, want):
        return F.cross_entropy(self.logits(h), want)

    def loss(self, b):
        h = self.hidden(b)
        loss = self.score(h.index_select(0, b["where"]), b["want"])
        if "rest_where" in b:
            loss = loss + 0.5 * self.score(h.index_select(0, b["rest_where"]), b["rest_want"])
        return loss


# ---------------------------------------------------------------- optimiser
def orthogonal(g):
    """Newton-Schulz iteration towards the nearest orthogonal matrices (Muon); g (matrices, rows, columns)."""
    x, flip = g.to(BF16), g.shape[1] > g.shape[2]
    x = x.mT if flip else x
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(5):
        a = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(a, a, a, beta=-4.7750, alpha=2.0315), x, beta=3.4445)
    return (x.mT if flip else x).float()


class Optimiser:
    """Muon for the matrices of the layers, AdamW for embeddings and norms."""

    def __init__(self, m, lr):
        self.lr = lr
        self.mats = [[getattr(l, n) for l in m.layers] for n in ("qkv", "o", "gate_up", "down")]
        own = {id(p) for ps in self.mats for p in ps}
        self.adam = torch.optim.AdamW([p for p in m.parameters() if id(p) not in own], lr=lr, betas=(0.9, 0.95), weight_decay=0)
        self.mom = [torch.zeros(len(ps), *ps[0].shape, device=ps[0].device) for ps in self.mats]

    @torch.no_grad()
    def step(self, scale):
        for g in self.adam.param_groups:
            g["lr"] = 0.15 * self.lr * scale
        self.adam.step()
        self.adam.zero_grad()
        for ps, b in zip(self.mats, self.mom):
            grad = torch.stack([p.grad for p in ps])
            b.mul_(0.95).add_(grad)
            step = orthogonal(grad.add(b, alpha=0.95)) * max(1, b.shape[1] / b.shape[2]) ** 0.5
            for p, u in zip(ps, step):
                p.mul_(1 - 0.05 * self.lr * scale).add_(u, alpha=-self.lr * scale)
                p.grad = None

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
    adapter = {"memory_token_embed.weight": m.memory.detach().float().cpu().contiguous()}
    draw, rank = torch.Generator().manual_seed(0), c["rank"]
    sizes = {"self_attn.q_proj": (D, D), "self_attn.k_proj": (D, G * K), "self_attn.v_proj": (D, G * K), "self_attn.o_proj": (D, D),
             "mlp.gate_proj": (D, f), "mlp.up_proj": (D, f), "mlp.down_proj": (f, D)}
    for i in range(c["layers"]):
        for n, (inputs, outputs) in sizes.items():
            p = f"icae.base_model.model.model.layers.{i}.{n}."
            adapter[p + "lora_A.default.weight"] = torch.randn(rank, inputs, generator=draw) / math.sqrt(inputs)
            adapter[p + "lora_B.default.weight"] = torch.zeros(outputs, rank)
    save_file(adapter, os.path.join(out, "icae.safetensors"), metadata={
        "k": str(c["slots"]), "rate": "4", "rank": str(rank), "alpha": str(rank), "targets": ",".join(n.split(".")[1] for n in sizes),
        "positions": "spread", "slots": "proportional", "lm_token": "true", "span": "512", "bos": "false"})


def load(m, folder):
    """The weights that export wrote, but for LoRA; of more slots than this model has, the first."""
    from safetensors.torch import load_file
    w = load_file(os.path.join(folder, "model.safetensors"))
    with torch.no_grad():
        memory = load_file(os.path.join(folder, "icae.safetensors"))["memory_token_embed.weight"]
        m.memory.copy_(torch.cat((memory[:m.c["slots"]], memory[-3:])))
        m.embed.copy_(w["model.embed_tokens.weight"]), m.norm.copy_(w["model.norm.weight"])
        for i, l in enumerate(m.layers):
            get = lambda *names: torch.cat([w[f"model.layers.{i}.{n}.weight"] for n in names])
            l.qkv.copy_(get(*(f"self_attn.{n}_proj" for n in "qkv"))), l.o.copy_(get("self_attn.o_proj"))
            l.gate_up.copy_(get("mlp.gate_proj", "mlp.up_proj")), l.down.copy_(get("mlp.down_proj"))
            l.attn_norm.copy_(get("input_layernorm")), l.mlp_norm.copy_(get("post_attention_layernorm"))


# ---------------------------------------------------------------- measuring
@torch.no_grad()
def evaluate(m, texts, samples):
    dev, r = m.embed.device, {}
    windows = lambda n, T: [texts.window(i, T) for i in np.linspace(0, len(texts.prose) - T - 1, n).astype(int)]

    def score(name, b):
        """Loss, share of right tokens, and share of rows that greedy decoding gives right to the last token."""
        rows = np.asarray(b["where"]) // b["ids"].shape[1]
        b = {k: torch.from_numpy(np.ascontiguousarray(v)).to(dev) for k, v in b.items()}
        logits = m.logits(m.hidden(b).index_select(0, b["where"]))
        right = (logits.argmax(-1) == b["want"]).cpu().numpy()
        r[name] = [round(F.cross_entropy(logits, b["want"]).item(), 4), round(float(right.mean()), 4),
                   round(1 - len(np.unique(rows[~right])) / len(np.unique(rows)), 4)]

    x = np.stack(windows(samples, 513))
    score("lm", {"ids": x[:, :-1], "where": np.arange(samples * 512), "want": x[:, 1:].ravel()})
    x = np.stack(windows(samples, 128))
    places = np.arange(samples)[:, None] * 255 + np.arange(127)
    for name, shift in (("first", 0), ("again", 128)):
        score(name, {"ids": np.concatenate((x, x), 1)[:, :-1], "where": (places + shift).ravel(), "want": x[:, 1:].ravel()})
    for S, rate in ((64, 4), (256, 4), (256, 8), (256, 16), (512, 4)):
        score(f"ae{S}/{rate}", slot_batch([restoring(x, rate) for x in windows(samples, S)], m.c["slots"]))
    x = windows(samples, 384)
    places = np.arange(samples)[:, None] * 383 + np.arange(255, 383)
    score("cont", {"ids": np.stack(x)[:, :-1], "where": places.ravel(), "want": np.stack(x)[:, 256:].ravel()})
    for rate in (4, 8):
        score(f"cont/{rate}", slot_batch([continuing(y, 256, rate) for y in x], m.c["slots"]))
    rng = np.random.default_rng(1)
    for rate in (4, 8):
        score(f"find/{rate}", slot_batch([finding(y[:256], rate, rng) for y in x], m.c["slots"]))
    blanks = [b for b in (texts.fill_in(rng, 320) for _ in range(2 * samples)) if b]
    for name, rows in (("qa", [texts.row(i) for i in np.linspace(0, len(texts.cuts) - 1, 4 * samples).astype(int)]), ("blank", blanks)):
        score(name, raw_batch(rows, texts.gap))
        score(name + "-none", raw_batch(rows, texts.gap, False))
        for rate in (4, 8):
            score(f"{name}/{rate}", slot_batch([answering(row, rate) for row in rows], m.c["slots"]))
    return r


# ---------------------------------------------------------------- training
def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for n, d in (("vocab", 4096), ("dim", 512), ("layers", 8), ("heads", 8), ("kv_heads", 4), ("ffn", 1408), ("slots", 8), ("rank", 32),
                 ("positions", 3072), ("batches", 1), ("threads", 2), ("workers", 0), ("seed", 0), ("eval_every", 250), ("eval_samples", 48)):
        ap.add_argument("--" + n.replace("_", "-"), type=int, default=d)
    ap.add_argument("--theta", type=float, default=10000.0)
    ap.add_argument("--lr", type=float, default=0.02)
    ap.add_argument("--short", type=float, default=0.0, help="share of this run with short texts to restore instead of other tasks; 0.3 from scratch, less on a fast machine")
    ap.add_argument("--decay", type=float, default=0.4, help="share of this run in which the learning rate falls to zero; 0: it will be resumed")
    ap.add_argument("--minutes", type=float, default=60)
    ap.add_argument("--language", type=float, default=1, help="batches of prose a step, beside those (--batches) of the other tasks")
    ap.add_argument("--mix", type=float, nargs=5, default=[.45, .08, .14, .13, .2], help="shares of the other tasks: ae cont ft qa find")
    ap.add_argument("--compile", action="store_true", help="layers by torch.compile; half a minute; on 2 cores forward and backward then took 0.89 s instead of 1.24")
    ap.add_argument("--start", help="folder of an earlier run, whose weights this one starts from")
    ap.add_argument("--measure", action="store_true", help="measure what --start names on the held-out part; nothing is trained")
    ap.add_argument("--data", required=True)
    ap.add_argument("--out", required=True)
    ap.add_argument("--device", default="cpu")
    ap.add_argument("--resume", action="store_true")
    args = ap.parse_args()
    t0 = time.time()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    os.makedirs(args.out, exist_ok=True)
    if args.measure:
        shutil.copy(os.path.join(args.start, "tokenizer.json"), args.out)
    texts = None if args.measure else Texts(args.data, args.out, args.vocab)
    held = Texts(args.data, args.out, args.vocab, ".heldout")
    c = {k: getattr(args, k) for k in ("vocab", "dim", "layers", "heads", "kv_heads", "ffn", "slots", "rank", "theta")}
    state, step, spent, seen, dev = os.path.join(args.out, "train.pt"), 0, 0.0, 0, args.device
    saved = torch.load(state, map_location=dev) if args.resume else None
    m = Base(saved["config"] if saved else c).to(dev)
    if args.start:
        load(m, args.start)
    if args.measure:
        return print(json.dumps(evaluate(m, held, args.eval_samples)))
    if args.compile:
        torch._dynamo.config.recompile_limit = 64
        Layer.forward = torch.compile(Layer.forward, dynamic=True)
        Base.score = torch.compile(Base.score, dynamic=True)
    opt = Optimiser(m, args.lr)
    if saved:
        step, spent, seen = saved["step"], saved["minutes"], saved["seen"]
        m.load_state_dict(saved["model"])
        opt.load(saved["opt"])
    print(f"{sum(p.numel() for p in m.parameters()) / 1e6:.1f} M parameters, {len(texts.prose) / 1e6:.1f} M prose tokens, "
          f"{len(texts.cuts)} rows, {time.time() - t0:.0f} s to read", flush=True)
    log = open(os.path.join(args.out, "log.jsonl"), "a")
    stream = {s: iter(torch.utils.data.DataLoader(
        Batches(texts, s, args.positions, m.c["slots"], args.seed + step, args.mix), batch_size=None, num_workers=args.workers,
        prefetch_factor=4 if args.workers else None, pin_memory=dev != "cpu"))
        for s in ("language", "other", *(["short"] if args.short else []))}

    def save():
        torch.save({"model": m.state_dict(), "opt": opt.state(), "step": step, "minutes": spent + (time.time() - t0) / 60,
                    "seen": seen, "config": m.c}, state + ".tmp")
        os.replace(state + ".tmp", state)
        export(m, args.out)

    def measure():
        nonlocal sums
        means = {k: round(v.item() / n, 3) for k, (v, n) in sums.items()}
        minutes = (time.time() - t0) / 60
        r = {"step": step, "minutes": round(spent + minutes, 2), "positions": seen, "positions/s": round((seen - begun) / minutes / 60), "train": means}
        with torch.compiler.set_stance("force_eager"):
            r |= evaluate(m, held, args.eval_samples)
        sums = {}
        print(json.dumps(r), flush=True)
        log.write(json.dumps(r) + "\n")
        log.flush()

    begun, start, sums, last, owed = seen, step, {}, time.time(), 0.0
    while (done := (time.time() - t0) / 60 / args.minutes) < 1:
        falling = 1 if args.decay == 0 else min(1, max(0.02, (1 - done) / args.decay))
        owed += args.language
        sorts = ["language"] * int(owed) + ["short" if done < args.short else "other"] * args.batches
        owed %= 1
        for sort in sorts:
            name, b = next(stream[sort])
            b = {k: v.to(dev, non_blocking=True) for k, v in b.items()}
            loss = m.loss(b)
            loss.backward()
            seen += b["ids"].numel() + (b["enc_ids"].numel() if "enc_ids" in b else 0)
            total, n = sums.get(name, (0, 0))
            sums[name] = total + loss.detach(), n + 1
        torch.nn.utils.clip_grad_norm_(m.parameters(), 2.0)
        opt.step(min(1, (step - start + 1) / 50) * falling)
        step += 1
        if step % args.eval_every == 0:
            measure()
        if time.time() - last > 300:
            save()
            last = time.time()
    measure()
    save()


if __name__ == "__main__":
    main()
