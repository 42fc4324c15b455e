#!/usr/bin/env python3
"""Speed and memory of `icae serve`, over HTTP on loopback.

    bench/serve.py [streams overhead first shared idle mixed list] [--shape small110m] [--threads 2] [--build build]
                   [--peers build/peers] [--models build/bench-models] [--llama-server PATH] [--repeats 5]

  streams   decoding: 16 concurrent streams against one, and against llama.cpp's server (continuous batching, same file)
  overhead  what streaming over HTTP costs a token: a reply streamed against the same reply whole
  first     time to the first token on cached slots against that on the raw text of 512 tokens
  shared    16 streams over one context of 512 slots: what they take of memory, and time to the first token of one more
  idle      memory of 1,000 idle keep-alive connections
  mixed     10,000 requests of all kinds from 64 clients: how many were lost, how memory grows after the first 1,000
  list      a page of 100 of a list of 100,000 contexts

Prints one JSON line a comparison and a table at the end, as bench/run.py does. The first four run with random weights of
the shape (a GGUF file and an adapter, written on first use by the peers' Python: bench/peers/setup.sh), the others with
the small model of tests/small. llama.cpp's own server is taken from --llama-server or PATH, else llama-cpp-python's (its [server]
extra); without either there are only our own numbers. Every number of requests and connections is bounded.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import resource
import shutil
import sqlite3
import statistics
import string
import subprocess
import sys
import time
from pathlib import Path

from load import Client, Response, Server
from run import table

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
STREAMS, TOKENS, TEXT = 16, 128, 512
IDLE, REQUESTS, CLIENTS, CONTEXTS = 1000, 10000, 64, 100000
median = statistics.median


# ---- what is measured on --------------------------------------------------------------------------------


def write_shape(options) -> tuple[Path, Path] | None:
    """The GGUF file both servers read, and an adapter of random weights for ours."""
    model, adapter = (options.models / f"{options.shape}{end}" for end in ("-BF16.gguf", "-icae.safetensors"))
    if model.exists() and adapter.exists():
        return model, adapter
    python = options.peers / "bin/python"
    if not python.exists():
        print(f"{model} is missing and there is no {python} to write it: run bench/peers/setup.sh", file=sys.stderr)
        return None
    code = (f"import sys; sys.path.insert(0, {str(HERE / 'peers')!r}); from pathlib import Path; "
            "from bench_llamacpp import write_model, SHAPES; from bench_shapes import write_adapter; "
            f"write_model(Path({str(model)!r}), SHAPES[{options.shape!r}], 'BF16'); "
            f"write_adapter(Path({str(adapter)!r}), SHAPES[{options.shape!r}])")
    return (model, adapter) if subprocess.run([str(python), "-c", code]).returncode == 0 else None


def ours(options, *arguments: str, folder: Path | None = None) -> Server:
    return Server([str(options.build / "icae"), "serve", "--port", "{port}", "--store", "{folder}/store.db",
                   "--threads", str(options.threads), *arguments],
                  {**os.environ, "ICAE_DATA": str(ROOT / "tests" / "small")}, folder)


def shaped(options) -> Server | None:
    files = write_shape(options)
    return ours(options, "--model", str(files[0]), "--adapter", str(files[1])) if files else None


def llama(options) -> tuple[str, Server] | None:
    """llama.cpp's server with room for all streams at once; its continuous batching is on by itself."""
    model, rows = write_shape(options)[0], STREAMS * (TOKENS + 64)
    common = ["-m", str(model), "--host", "127.0.0.1", "--port", "{port}", "-t", str(options.threads)]
    if options.llama_server:
        return "llama-server", Server([options.llama_server, *common, "-np", str(STREAMS), "-c", str(rows)])
    python = options.peers / "bin/python"
    if python.exists() and subprocess.run([str(python), "-c", "import llama_cpp.server.app"],
                                          stderr=subprocess.DEVNULL).returncode == 0:
        return "llama-cpp-python", Server([str(python), "-m", "llama_cpp.server", "--model", str(model), "--port", "{port}",
                                           "--n_threads", str(options.threads), "--n_ctx", str(rows)])
    return None


def letters(count: int, seed: int) -> str:
    """As many tokens as letters: the vocabulary of the shapes has only single bytes to spell them with."""
    return "".join(random.Random(seed).choices(string.ascii_lowercase, k=count))


def line(name: str, against: str, mine: float, unit: str, peer: float | None = None, **more) -> dict:
    result = {"name": name, "against": against, "ours": round(mine, 4), "unit": unit}
    if peer is not None:
        result |= {"peer": round(peer, 4), "ratio": round(mine / peer, 3) if peer else None}
    result |= more
    print(json.dumps(result), flush=True)
    return result


def good(response: Response) -> Response:
    if response.status >= 300 or any("error" in event for event in response.events):
        raise SystemExit(f"the server answers {response.status}: {response.body[:500]!r} {response.events[-1:]}")
    return response


# ---- streams --------------------------------------------------------------------------------------------


async def complete(port: int, prompt: str, tokens: int, **more) -> Response:
    async with Client(port) as client:
        return good(await client.request("POST", "/v1/completions", {
            "model": "any", "prompt": prompt, "max_tokens": tokens, "temperature": 0, "stream": True, **more}))


async def tokens_per_second(port: int, streams: int, seed: int) -> float:
    start = time.perf_counter()
    replies = await asyncio.gather(*(complete(port, letters(8, seed + i), TOKENS, ignore_eos=True, logit_bias={"2": -100},
                                              stream_options={"include_usage": True}) for i in range(streams)))
    usage = [next((e["usage"]["completion_tokens"] for e in reversed(r.events) if e.get("usage")), None) for r in replies]
    made = sum(len(r.events) - 1 if u is None else u for r, u in zip(replies, usage))
    if made < 0.9 * streams * TOKENS:
        print(f"only {made} of {streams * TOKENS} tokens were made", file=sys.stderr)
    return made / (max(r.times[-1] for r in replies) - start)


def measure_streams(options, server: Server) -> dict[int, float]:
    with server:
        asyncio.run(tokens_per_second(server.port, STREAMS, 1))         # warms up
        found = {n: [] for n in (1, STREAMS)}
        for seed in range(options.repeats):
            for n, list in found.items():
                list.append(asyncio.run(tokens_per_second(server.port, n, 100 + seed)))
        return {n: median(list) for n, list in found.items()}


def bench_streams(options) -> list[dict]:
    server = shaped(options)
    if not server:
        return []
    mine, name = measure_streams(options, server), f"streams-{STREAMS}/{options.shape}"
    lines = [line(name, "one stream", mine[STREAMS], "tokens/s", mine[1], wanted=">= 4")]
    peer = llama(options)
    if not peer:
        print("no llama.cpp server here: give --llama-server PATH", file=sys.stderr)
        return lines
    theirs = measure_streams(options, peer[1])
    return lines + [line(name, peer[0], mine[STREAMS], "tokens/s", theirs[STREAMS], wanted=">= 1.2"),
                    line(f"streams-1/{options.shape}", peer[0], mine[1], "tokens/s", theirs[1])]


# ---- the cost of HTTP, and the first token ----------------------------------------------------------------


async def whole(port: int, prompt: str, tokens: int) -> tuple[float, int, str]:
    async with Client(port) as client:
        await client.request("GET", "/healthz")
        start = time.perf_counter()
        reply = good(await client.request("POST", "/v1/completions", {
            "model": "any", "prompt": prompt, "max_tokens": tokens, "temperature": 0})).json()
        return time.perf_counter() - start, reply["usage"]["completion_tokens"], reply["choices"][0]["text"]


async def streamed(port: int, prompt: str, tokens: int) -> tuple[float, int, str]:
    async with Client(port) as client:
        await client.request("GET", "/healthz")
        start = time.perf_counter()
        reply = good(await client.request("POST", "/v1/completions", {
            "model": "any", "prompt": prompt, "max_tokens": tokens, "temperature": 0, "stream": True}))
        seconds = time.perf_counter() - start
    pieces = [e["choices"][0]["text"] for e in reply.events if e["choices"]]
    return seconds, len(pieces), "".join(pieces)


def bench_overhead(options) -> list[dict]:
    """With the small model, whose tokens take least: there the cost shows. The client's own work is in it."""
    differences, per_token = [], []
    with ours(options) as server:
        for seed in range(8 * options.repeats + 1):
            prompt = "Once upon a time there was a " + letters(6, seed)
            a, tokens, text = asyncio.run(whole(server.port, prompt, 400))
            b, pieces, text_streamed = asyncio.run(streamed(server.port, prompt, 400))
            if text != text_streamed:
                raise SystemExit("the streamed reply is not the whole reply")
            if seed and tokens >= 50:                                    # the first warms up
                differences.append((b - a) / tokens)
                per_token.append(a / tokens)
    return [line("http-a-token/small", "the same reply whole", 1e6 * median(differences), "us", wanted="< 100",
                 whole_us=round(1e6 * median(per_token), 1), replies=len(differences))]


async def first_token(port: int, prompt: str, **more) -> float:
    async with Client(port) as client:
        await client.request("GET", "/healthz")
        start = time.perf_counter()
        reply = good(await client.request("POST", "/v1/completions", {
            "model": "any", "prompt": prompt, "max_tokens": 2, "temperature": 0, "stream": True, **more}))
        return next(t for t, e in zip(reply.times, reply.events) if e["choices"]) - start


def bench_first(options) -> list[dict]:
    server = shaped(options)
    if not server:
        return []
    slots, raw = [], []
    with server:
        async def compress() -> str:
            async with Client(server.port) as client:
                made = good(await client.request("POST", "/v1/contexts?check=false", letters(TEXT - 1, 7))).json()
                return made["id"]
        id = asyncio.run(compress())
        for seed in range(4 * options.repeats + 1):
            question = letters(8, 1000 + seed)
            slots.append(asyncio.run(first_token(server.port, question, icae={"contexts": [id]})))
            raw.append(asyncio.run(first_token(server.port, letters(TEXT, seed) + question)))
    return [line(f"first-token/{options.shape}", f"raw text of {TEXT} tokens", median(slots[1:]), "s", median(raw[1:]),
                 wanted="<= 0.3")]


def bench_shared(options) -> list[dict]:
    server = shaped(options)
    if not server:
        return []

    async def compress() -> dict:
        async with Client(server.port) as client:
            return good(await client.request("POST", "/v1/contexts?check=false", letters(4 * TEXT - 1, 7))).json()

    async def measure() -> tuple[float, float, list[float]]:
        context = await compress()
        over = {"icae": {"contexts": [context["id"]]}}
        first = [await first_token(server.port, letters(8, seed), **over) for seed in range(4 * options.repeats + 1)]
        before = server.resident()
        streams = [asyncio.create_task(complete(server.port, letters(8, i), TOKENS, logit_bias={"2": -100}, **over))
                   for i in range(STREAMS)]
        most = before
        while not all(s.done() for s in streams):
            most = max(most, server.resident())
            await asyncio.sleep(0.02)
        await asyncio.gather(*streams)
        return most - before, before, first[1:]
    with server:
        growth, before, first = asyncio.run(measure())
    return [line(f"shared-memory-of-{STREAMS}/{options.shape}", "before they came", growth, "MB", resident_before=before),
            line(f"shared-first-token/{options.shape}", "", 1e3 * median(first), "ms")]


# ---- connections, requests, lists ---------------------------------------------------------------------------


def bench_idle(options) -> list[dict]:
    async def idle() -> tuple[float, float]:
        clients = [Client(server.port) for _ in range(IDLE)]
        for client in clients[:50]:                                      # what any load makes is not theirs
            await client.request("GET", "/v1/models")
            client.close()
        await asyncio.sleep(1)
        before = server.resident()
        for client in clients:
            good(await client.request("GET", "/v1/models"))
        await asyncio.sleep(1)
        after = server.resident()
        kept = sum(not client.reader.at_eof() for client in clients)
        if kept < IDLE:
            raise SystemExit(f"only {kept} of {IDLE} connections were kept")
        for client in clients:
            client.close()
        return before, after
    with ours(options, "--max-connections", str(IDLE + 50)) as server:
        before, after = asyncio.run(idle())
    return [line(f"idle-connections-{IDLE}", "none", after - before, "MB", wanted="< 64", resident_before=before)]


async def mixed(server: Server) -> dict:
    """All kinds of requests, each answer checked for being whole; a refusal with Retry-After is tried again."""
    counts = {"answered": 0, "refused": 0, "lost": 0}
    memory, started, dice, pending = [], time.perf_counter(), random.Random(5), iter(range(REQUESTS))
    story = (ROOT / "demo/article.txt").read_text()
    shared = [(await post(server.port, f"{i}. {story}"))["id"] for i in range(8)]

    async def one(client: Client, i: int) -> Response:
        kind, id = dice.random(), dice.choice(shared)
        if kind < 0.35:
            return await client.request("GET", "/v1/contexts?limit=20")
        if kind < 0.50:
            return await client.request("GET", f"/v1/contexts/{id}")
        if kind < 0.60:
            made = await client.request("POST", "/v1/contexts?check=false", f"Text {i}. {story[:100]}")
            return await client.request("DELETE", f"/v1/contexts/{made.json()['id']}") if made.status == 201 else made
        if kind < 0.70:
            return await client.request("GET", f"/v1/contexts/{id}/fidelity")
        if kind < 0.75:
            return await client.request("GET", f"/v1/contexts/{id}/text?max_tokens=16")
        body = {"messages": [{"role": "user", "content": f"Question {i}?"}], "max_tokens": 8, "icae": {"contexts": [id]},
                "stream": kind < 0.90}
        return await client.request("POST", "/v1/chat/completions", body)

    async def work() -> None:
        async with Client(server.port) as client:
            for i in pending:
                while True:
                    try:
                        response = await one(client, i)
                    except (OSError, ValueError, asyncio.IncompleteReadError) as error:
                        counts["lost"] += 1
                        print(f"request {i}: {error!r}", file=sys.stderr)
                        client.close()
                        break
                    if response.status in (429, 503) and "retry-after" in response.headers:
                        counts["refused"] += 1
                        await asyncio.sleep(float(response.headers["retry-after"]))
                        continue
                    good(response)
                    counts["answered"] += 1
                    break
                if counts["answered"] % 1000 == 0:
                    memory.append(server.resident())
    await asyncio.gather(*(work() for _ in range(CLIENTS)))
    return {**counts, "seconds": time.perf_counter() - started, "memory": memory}


async def post(port: int, text: str) -> dict:
    async with Client(port) as client:
        return good(await client.request("POST", "/v1/contexts", text)).json()


def bench_mixed(options) -> list[dict]:
    with ours(options) as server:
        found = asyncio.run(mixed(server))
    return [line(f"mixed-lost-of-{REQUESTS}", f"{CLIENTS} clients", found["lost"], "requests", wanted="0",
                 refused_and_tried_again=found["refused"]),
            line(f"mixed-{REQUESTS}", f"{CLIENTS} clients", REQUESTS / found["seconds"], "requests/s"),
            line("mixed-memory-at-the-end", "after 1,000", found["memory"][-1], "MB", found["memory"][0],
                 each_1000=[round(m, 1) for m in found["memory"]])]


def bench_list(options) -> list[dict]:
    """The rows are copies of one real context, made in the database while no server runs."""
    server = ours(options)
    server.owned = False
    with server:
        asyncio.run(post(server.port, "A text that many contexts hold."))
    try:
        fill(server.folder / "store.db")
        seconds = []

        async def walk() -> int:
            seen, after = 0, ""
            async with Client(again.port) as client:
                while True:
                    start = time.perf_counter()
                    page = good(await client.request("GET", f"/v1/contexts?limit=100{after}"))
                    seconds.append(time.perf_counter() - start)
                    page = page.json()
                    seen, after = seen + len(page["data"]), f"&after={page['last_id']}"
                    if not page["has_more"]:
                        return seen
        with ours(options, folder=server.folder) as again:
            seen = asyncio.run(walk())
        if seen < CONTEXTS:
            raise SystemExit(f"the pages show {seen} of {CONTEXTS} contexts")
    finally:
        shutil.rmtree(server.folder, ignore_errors=True)
    seconds.sort()
    return [line(f"list-page-of-{CONTEXTS}", "", 1e3 * median(seconds), "ms", wanted="< 10",
                 slowest_of_100=round(1e3 * seconds[len(seconds) * 99 // 100], 2), pages=len(seconds))]


def fill(path: Path) -> None:
    """Copies the one context and its slot file (but for its bytes, which no list reads) under new names."""
    db = sqlite3.connect(path)
    (id,) = db.execute("SELECT id FROM icae_contexts").fetchone()
    columns = {t: [c[1] for c in db.execute(f"PRAGMA table_info({t})")] for t in ("icae_blobs", "icae_contexts")}

    def copy(table: str, **changed: str) -> None:
        wanted = ", ".join(changed.get(c, c) for c in columns[table])
        db.execute(f"WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {CONTEXTS}) "
                   f"INSERT INTO {table} SELECT {wanted} FROM {table}, n")
    hexadecimal = len(id) - len("ctx_")
    copy("icae_blobs", key="printf('%064x', i)", text_sha256="printf('%064x', i)", bytes="zeroblob(500)")
    copy("icae_contexts", id=f"printf('ctx_%0{hexadecimal}x', i)", blob="printf('%064x', i)", name="'Text number ' || i")
    db.commit()
    db.close()


def main() -> int:
    benches = {name[6:]: value for name, value in globals().items() if name.startswith("bench_")}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("benches", nargs="*", metavar="BENCH", help=" ".join(benches))
    parser.add_argument("--shape", default="small110m")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--build", type=Path, default=ROOT / "build")
    parser.add_argument("--peers", type=Path, default=ROOT / "build/peers")
    parser.add_argument("--models", type=Path, default=ROOT / "build/bench-models")
    parser.add_argument("--llama-server", default=shutil.which("llama-server"))
    options = parser.parse_args()
    unknown = [name for name in options.benches if name not in benches]
    if unknown:
        parser.error(f"there is no {unknown[0]}; there are {' '.join(benches)}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    lines = [line for name in options.benches or benches for line in benches[name](options)]
    table(lines)
    return 0 if lines else 1


if __name__ == "__main__":
    sys.exit(main())
