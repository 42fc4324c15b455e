#!/usr/bin/env python3
"""Tests `icae serve` over HTTP: a real server with the bundled model on loopback.

    test_serve.py PATH/TO/icae [NAME...]

Names choose tests. OpenAI's own client is run by the Python that has it: ICAE_PYTHON, build/client (tools/openai-client.sh) or this one.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time

from advise import advise
from served import ROOT, Contract, Postgres, Server, run

TEXT = (ROOT / "demo/article.txt").read_text()
SHORT = "The old lighthouse stood at the end of the long pier."
QUESTION = "What is this about?"
ICAE = ""


def threads(jobs: list) -> list:
    """Runs functions at the same time; their results, in order."""
    results: list = [None] * len(jobs)

    def do(i: int) -> None:
        try:
            results[i] = jobs[i]()
        except Exception as error:
            results[i] = error

    running = [threading.Thread(target=do, args=(i,)) for i in range(len(jobs))]
    for t in running:
        t.start()
    for t in running:
        t.join()
    for r in results:
        if isinstance(r, Exception):
            raise r
    return results


def cli(*arguments: str, text: str | None = None) -> str:
    return subprocess.run([ICAE, *arguments], check=True, capture_output=True, text=True, input=text).stdout


def wait_for(condition, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)


# ---- the main job --------------------------------------------------------------------------------------


def test_contract(s: Server) -> None:
    """Every endpoint once, and errors; what comes back is what docs/openapi.yaml says."""
    try:
        contract = Contract()
    except ImportError:
        print("        (no PyYAML: answers are not checked against docs/openapi.yaml)")
        return
    c = s.context(TEXT, "?name=A+fable")
    path, name = f"/v1/contexts/{c['id']}", "/v1/contexts/{id}"
    stream = {"Accept": "text/event-stream"}
    chat = {"messages": [{"role": "user", "content": QUESTION}], "icae": {"contexts": [c["id"]]}, "max_tokens": 5}
    plain = {"prompt": "Once upon", "max_tokens": 3, "logprobs": 2}
    everything = [
        ("GET", "/", "/", None, {}, 200), ("GET", "/healthz", "/healthz", None, {}, 200),
        ("GET", "/metrics", "/metrics", None, {}, 200), ("GET", "/v1/models", "/v1/models", None, {}, 200),
        ("POST", "/v1/chat/completions", "/v1/chat/completions", chat, {}, 200),
        ("POST", "/v1/chat/completions", "/v1/chat/completions", chat | {"stream": True, "n": 2}, {}, 200),
        ("POST", "/v1/chat/completions", "/v1/chat/completions",
         chat | {"stream": True, "logprobs": True, "top_logprobs": 2, "stream_options": {"include_usage": True}}, {}, 200),
        ("POST", "/v1/chat/completions", "/v1/chat/completions", {}, {}, 400),
        ("POST", "/v1/completions", "/v1/completions", plain, {}, 200),
        ("POST", "/v1/completions", "/v1/completions", plain | {"stream": True}, {}, 200),
        ("POST", "/v1/completions", "/v1/completions", b"x", {"Content-Type": "text/html"}, 415),
        ("POST", "/v1/contexts", "/v1/contexts", {"text": SHORT, "name": None, "ttl": 1000}, {}, 201),
        ("POST", "/v1/contexts", "/v1/contexts", {"text": SHORT + "!"}, stream, 200),
        ("POST", "/v1/contexts", "/v1/contexts", {"text": ""}, {}, 400),
        ("GET", "/v1/contexts?limit=2", "/v1/contexts", None, {}, 200),
        ("GET", "/v1/contexts?limit=0", "/v1/contexts", None, {}, 400),
        ("GET", path, name, None, {}, 200), ("GET", path + "0", name, None, {}, 404),
        ("GET", path + "/slots", name + "/slots", None, {}, 200),
        ("GET", path + "/text", name + "/text", None, {}, 200),
        ("GET", path + "/text?max_tokens=20", name + "/text", None, stream, 200),
        ("GET", path + "/fidelity", name + "/fidelity", None, {}, 200),
        ("POST", path + "/append", name + "/append", {"text": "More."}, {}, 200),
        ("DELETE", path, name, None, {}, 200), ("DELETE", path, name, None, {}, 404),
    ]
    for method, at, documented, body, headers, status in everything:
        answer = s.call(method, at, body, headers)
        assert answer.status == status, f"{method} {at}: {answer.status} {answer.body[:300]!r}"
        contract.answer(documented, method, answer)
        assert answer.headers["X-Request-Id"]
    assert {d for _, _, d, *_ in everything} == set(contract.document["paths"]), "an endpoint was left out"


def test_contexts(s: Server) -> None:
    """A text becomes a context; it is what the command makes of it, and the command reads it."""
    c = s.context(TEXT)
    assert c["text_bytes"] == len(TEXT.encode()) and c["text_sha256"] == hashlib.sha256(TEXT.encode()).hexdigest()
    assert c["fidelity"]["accuracy"] > 0.9 and c["slots"] < c["tokens"] / 3
    again = s.post("/v1/contexts", TEXT, Content_Type="text/plain; charset=utf-8")
    assert again.status == 200 and again.json["id"] == c["id"], "the same text is the same context"
    slots = s.get(f"/v1/contexts/{c['id']}/slots")
    path = s.folder / "x.icae"
    path.write_bytes(slots.body)
    assert json.loads(cli("info", str(path), "--json"))["slots"] == c["slots"]
    # what the server says about it is what the command says
    said = s.say(QUESTION, icae={"contexts": [c["id"]]})
    assert said == cli("ask", str(path), QUESTION, "--max-tokens", "24", "--compute", "f32").rstrip("\n")
    assert said == s.say([{"type": "icae_context", "id": c["id"]}, {"type": "text", "text": QUESTION}])
    text = s.get(f"/v1/contexts/{c['id']}/text").body.decode()
    assert text == cli("restore", str(path), "--compute", "f32", "-o", "-")
    pieces = s.get(f"/v1/contexts/{c['id']}/text", Accept="text/event-stream").events()
    assert "".join(d["text"] for n, d in pieces if n == "text") == text and pieces[-1][0] == "done"
    assert pieces[-1][1]["tokens"] == c["tokens"]
    # the file goes back in
    s.call("DELETE", f"/v1/contexts/{c['id']}").good()
    s.get(f"/v1/contexts/{c['id']}").bad(404, c["id"])
    back = s.post("/v1/contexts?name=back", slots.body, Content_Type="application/vnd.icae").good()
    assert back["name"] == "back" and back["text_sha256"] == c["text_sha256"]
    assert s.get(f"/v1/contexts/{back['id']}/slots").body == slots.body
    report = s.get(f"/v1/contexts/{back['id']}/fidelity").good()
    assert sum(g["tokens"] for g in report["segments"]) == c["tokens"] and report["measured"]
    s.call("DELETE", f"/v1/contexts/{back['id']}").good()


def test_exact(s: Server) -> None:
    """An exact context gives the very bytes, also of text that the model cannot know."""
    text = SHORT + " \u00e9\u4f60\u597d \U0001f40b \t  x7Q\r\n" + "zq" * 20
    c = s.post("/v1/contexts", {"text": text, "exact": True, "int8": True}).good()
    assert c["exact"] and c["dtype"] == "int8"
    assert s.get(f"/v1/contexts/{c['id']}/text").body == text.encode()
    events = s.get(f"/v1/contexts/{c['id']}/text", Accept="text/event-stream").events()
    assert "".join(d["text"] for n, d in events if n == "text") == text and events[-1][1]["exact"] is True


def test_refine(s: Server) -> None:
    """Refined slots hold a strange text better; they are other slots than those of the same text as it comes."""
    text = "e3b0c44298fc1c149afb, \u5317\u4eac Stra\u00dfe; [7,0.25] qwfpgjluy arstdhneio zxcvbkm ZXCVBKM = 0x7fffe1c0 ~/.profile"
    plain, refined = (s.post("/v1/contexts", {"text": text, "refine": n}).good() for n in (0, 6))
    assert refined["id"] != plain["id"] and refined["fidelity"]["loss"] < plain["fidelity"]["loss"]
    assert s.get(f"/v1/contexts/{plain['id']}/slots").body != s.get(f"/v1/contexts/{refined['id']}/slots").body
    again = s.post("/v1/contexts?refine=6", text, Content_Type="text/plain", Accept="text/event-stream").events()
    assert {d["stage"] for n, d in again if n == "progress"} >= {"compress", "refine", "check"}
    assert again[-1][1]["id"] == refined["id"]
    s.post("/v1/contexts", {"text": text, "refine": 101}).bad(400, param="refine")
    s.post("/v1/contexts?refine=-1", text, Content_Type="text/plain").bad(400, param="refine")


def test_append(s: Server) -> None:
    """New segments behind the old slots, which stay bit for bit; at the same time by two, both are there."""
    c = s.post("/v1/contexts", {"text": TEXT}).good()
    path = f"/v1/contexts/{c['id']}"
    before = s.get(path + "/slots").body
    longer = s.post(path + "/append", SHORT, Content_Type="text/plain").good()
    assert longer["id"] == c["id"] and longer["segments"] > c["segments"] and not longer["exact"]
    digest = hashlib.sha256((c["text_sha256"] + hashlib.sha256(SHORT.encode()).hexdigest()).encode()).hexdigest()
    assert longer["text_sha256"] == digest

    def tensor(file: bytes) -> bytes:
        size = struct.unpack("<Q", file[:8])[0]
        first, last = json.loads(file[8:8 + size])["slots"]["data_offsets"]
        return file[8 + size + first:8 + size + last]

    assert tensor(s.get(path + "/slots").body).startswith(tensor(before))
    text = s.get(path + "/text").body.decode()
    assert TEXT[60:160] in text and "lighthouse" in text
    threads([lambda i=i: s.post(path + "/append", f"Number {i} came. ", Content_Type="text/plain").good() for i in range(4)])
    assert s.get(path).good()["text_bytes"] == len(TEXT.encode()) + len(SHORT) + 4 * len("Number 0 came. ")
    s.call("DELETE", path).good()


def test_progress(s: Server) -> None:
    """A long compression tells how far it is, and a stream beside it goes on."""
    events = s.post("/v1/contexts", TEXT * 8, Content_Type="text/plain", Accept="text/event-stream").events()
    progress = [d for n, d in events if n == "progress"]
    assert [d["stage"] for d in progress[:1]] == ["waiting"] and len(progress) > 4, progress
    for stage in ("compress", "check"):
        done = [d["done"] for d in progress if d["stage"] == stage]
        assert done and done == sorted(done), (stage, done)
    assert events[-1][0] == "done" and events[-1][1]["tokens"] == progress[-1]["total"]
    failed = s.post("/v1/contexts", {"text": "x", "rate": 3.7}, Accept="text/event-stream").bad(400, "rate")
    assert failed


def test_pages(s: Server) -> None:
    """The list, the newest first, page by page, each context once, while others come and go."""
    ids = [s.context(f"{SHORT} {i}", f"?name=n{i}&check=false")["id"] for i in range(9)]
    first = s.get("/v1/contexts?limit=4").good()
    assert [c["id"] for c in first["data"]] == ids[:4:-1][:4] and first["has_more"]
    s.call("DELETE", f"/v1/contexts/{first['last_id']}").good()
    s.context(SHORT + " later", "?check=false")
    seen = [c["id"] for c in first["data"]]
    while first["has_more"]:
        first = s.get(f"/v1/contexts?limit=4&after={first['last_id']}").good()
        seen += [c["id"] for c in first["data"]]
    assert [i for i in seen if i in ids] == ids[::-1] and len(seen) == len(set(seen))


# ---- replies -------------------------------------------------------------------------------------------


def test_streams(s: Server) -> None:
    """Streamed is what whole is: text, usage, log-probabilities, several replies, stop texts."""
    c = s.context(TEXT)
    settings = {"icae": {"contexts": [c["id"]]}, "n": 2, "temperature": 0.9, "seed": 5, "logprobs": True, "top_logprobs": 3}
    s.say(QUESTION, icae=settings["icae"])  # who reads the slots first reads them in other pieces: last bits may differ
    whole = s.chat(QUESTION, **settings).good()
    stream = s.chat(QUESTION, stream=True, stream_options={"include_usage": True}, **settings)
    for i in range(2):
        assert stream.streamed(i) == whole["choices"][i]["message"]["content"]
        pieces = [x for _, d in stream.events() if d != "[DONE]" for ch in d["choices"] if ch["index"] == i
                  for x in (ch["logprobs"] or {"content": []})["content"]]
        assert pieces == whole["choices"][i]["logprobs"]["content"]
    assert whole["choices"][0]["message"] != whole["choices"][1]["message"], "replies have seeds of their own"
    usage = stream.events()[-2][1]["usage"]
    for count in ("prompt_tokens", "completion_tokens", "icae"):
        assert usage[count] == whole["usage"][count]
    assert usage["icae"]["slots"] == c["slots"] and usage["icae"]["context_tokens"] == c["tokens"]
    assert usage["prompt_tokens"] == usage["icae"]["slots"] + usage["icae"]["text_tokens"]
    assert usage["prompt_tokens_details"]["cached_tokens"] >= c["slots"], "the slots have been read before"
    best = whole["choices"][0]["logprobs"]["content"][0]
    assert len(best["top_logprobs"]) == 3 and best["top_logprobs"][0]["logprob"] >= best["logprob"]
    assert s.chat(QUESTION, **settings).good()["choices"] == whole["choices"], "the same seed, the same replies"
    # stop texts, also across tokens, are not part of the reply, streamed or not
    said = s.say("Tell me a story.", max_tokens=40)
    stop = said[7:12]
    for streamed in (False, True):
        answer = s.chat("Tell me a story.", max_tokens=40, stop=[stop, "\u4f60"], stream=streamed)
        text = answer.streamed() if streamed else answer.good()["choices"][0]["message"]["content"]
        assert text == said[:said.index(stop)], (text, said)
    assert s.chat("Tell me a story.", max_tokens=2).good()["choices"][0]["finish_reason"] == "length"


def test_completions(s: Server) -> None:
    """Plain continuation is the command's, over a context, too."""
    prompt = "Once upon a time"
    r = s.post("/v1/completions", {"prompt": [prompt], "temperature": 0, "max_tokens": 12, "echo": True, "logprobs": 1}).good()
    (s.folder / "p.txt").write_text(prompt)
    made = cli("continue", str(s.folder / "p.txt"), "--max-tokens", "12", "--compute", "f32").rstrip("\n")
    choice = r["choices"][0]
    assert choice["text"] == prompt + made and len(choice["logprobs"]["tokens"]) == 12 and r["usage"]["completion_tokens"] == 12
    # several prompts: n replies to each, in their order, as they are alone
    ask = {"temperature": 0.9, "seed": 3, "n": 2, "max_tokens": 6, "echo": True}
    alone = [s.post("/v1/completions", ask | {"prompt": p}).good() for p in (prompt, "The old man")]
    both = s.post("/v1/completions", ask | {"prompt": [prompt, "The old man"]}).good()
    assert [c["index"] for c in both["choices"]] == [0, 1, 2, 3]
    texts = [c["text"] for c in both["choices"]]
    assert texts == [c["text"] for one in alone for c in one["choices"]]
    assert both["usage"]["prompt_tokens"] == sum(one["usage"]["prompt_tokens"] for one in alone)
    stream = s.post("/v1/completions", ask | {"prompt": [prompt, "The old man"], "stream": True})
    assert [stream.streamed(i) for i in range(4)] == texts
    c = s.context(TEXT)
    (s.folder / "c.icae").write_bytes(s.get(f"/v1/contexts/{c['id']}/slots").body)
    over = s.post("/v1/completions", {"prompt": " And", "temperature": 0, "icae": {"contexts": [c["id"]]}}).good()
    assert over["usage"]["icae"]["slots"] == c["slots"] and over["usage"]["completion_tokens"] == 16


def test_conversation(s: Server) -> None:
    """Turns, system messages, contexts in the midst of a message, contexts twice."""
    c, d = s.context(TEXT), s.context(SHORT)
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": QUESTION},
             {"role": "assistant", "content": "A monkey."},
             {"role": "user", "content": [{"type": "text", "text": "Read this: "}, {"type": "icae_context", "id": d["id"]},
                                          {"type": "icae_context", "id": c["id"]}, {"type": "text", "text": "And now?"}]}]
    usage = s.chat(turns, icae={"contexts": [c["id"]]}).good()["usage"]["icae"]
    assert usage["slots"] == 2 * c["slots"] + d["slots"] and usage["context_tokens"] == 2 * c["tokens"] + d["tokens"]
    assert s.chat([{"role": "user", "content": "One."}, {"role": "user", "content": "Two."}]).good()
    assert s.chat([{"role": "system", "content": "Say something."}]).good()


def test_expand(s: Server) -> None:
    """Segments that are read as text: usage tells them, what is asked elsewhere stays, the command says the same."""
    c, d = s.context(TEXT), s.context(SHORT)
    asked = [{"role": "user", "content": QUESTION}]
    plain = s.chat(asked, icae={"contexts": [c["id"]]}).good()["usage"]
    one = s.chat(asked, icae={"contexts": [c["id"]], "expand": 1}).good()["usage"]
    assert "expanded_tokens" not in plain["icae"] and one["icae"]["expanded_tokens"] > 0
    assert one["icae"]["slots"] < plain["icae"]["slots"] and one["prompt_tokens"] > plain["prompt_tokens"]
    assert one["icae"]["context_tokens"] + one["icae"]["expanded_tokens"] == c["tokens"]
    all_of_it = s.chat(asked, icae={"contexts": [c["id"], d["id"]], "expand": 1000}).good()["usage"]["icae"]
    assert all_of_it["slots"] == 0 and all_of_it["expanded_tokens"] == c["tokens"] + d["tokens"], all_of_it
    again = s.chat(asked, icae={"contexts": [c["id"]]}).good()["usage"]
    assert again["icae"] == plain["icae"] and again["prompt_tokens_details"]["cached_tokens"] > 0
    inside = [{"role": "user", "content": [{"type": "icae_context", "id": c["id"]}, {"type": "text", "text": QUESTION}]}]
    assert s.chat(inside, icae={"expand": 1}).good()["usage"]["icae"]["expanded_tokens"] > 0
    assert "expanded_tokens" not in s.chat(asked, icae={"expand": 3}).good()["usage"]["icae"]
    over = s.post("/v1/completions", {"prompt": [" And", " But"], "temperature": 0, "icae": {"contexts": [c["id"]], "expand": 1}})
    assert over.good()["usage"]["icae"]["expanded_tokens"] > 0
    long = s.chat(TEXT + "\n\n" + QUESTION, icae={"compress_over": 100, "expand": 1}).good()["usage"]["icae"]
    assert long["compressed"]["messages"] == 1 and long["expanded_tokens"] > 0


def test_advised(s: Server) -> None:
    """What the adapter recommends is done unless a request says otherwise."""
    path = s.folder / "advised.safetensors"
    advise(str(path), refine="6", expand="1")
    a = Server(ICAE, "--adapter", str(path))
    assert [m["icae"][k] for m in a.get("/v1/models").good()["data"] for k in ("refine", "expand")] == [6, 1]
    assert [m["icae"][k] for m in s.get("/v1/models").good()["data"] for k in ("refine", "expand")] == [0, 0]

    def slots(server: Server, query: str) -> bytes:
        return server.get(f"/v1/contexts/{server.context(TEXT, query)['id']}/slots").body

    assert slots(a, "") == slots(s, "?refine=6") != slots(s, "") == slots(a, "?refine=0")
    asked, told = ({"contexts": [server.context(TEXT, "?refine=6")["id"]]} for server in (a, s))
    default, none, same = (server.chat(QUESTION, icae=icae).good() for server, icae in (
        (a, asked), (a, {**asked, "expand": 0}), (s, {**told, "expand": 1})))
    assert default["choices"] == same["choices"] and default["usage"]["icae"]["expanded_tokens"] > 0
    assert "expanded_tokens" not in none["usage"]["icae"]
    a.end()


def test_compress_over(s: Server) -> None:
    """Old messages and a long last one are read as slots, and usage says so; what is short stays as it is."""
    old = [{"role": "user", "content": TEXT}, {"role": "assistant", "content": "I see."}, {"role": "user", "content": SHORT},
           {"role": "assistant", "content": "Yes."}]
    short = s.chat(old + [{"role": "user", "content": QUESTION}], icae={"compress_over": 100}).good()["usage"]
    plain = s.chat(old + [{"role": "user", "content": QUESTION}]).good()["usage"]
    done = short["icae"]["compressed"]
    assert "compressed" not in plain["icae"] and plain["icae"]["slots"] == 0
    assert done["messages"] == 2 and done["slots"] == short["icae"]["slots"] < done["tokens"]
    assert short["prompt_tokens"] < plain["prompt_tokens"] / 2 and short["icae"]["text_tokens"] <= 100 + 10
    long = s.chat(TEXT + "\n\n" + QUESTION, icae={"compress_over": 100}).good()["usage"]["icae"]
    assert long["compressed"]["messages"] == 1 and long["text_tokens"] < 40, long
    assert "compressed" not in s.chat(QUESTION, icae={"compress_over": 100}).good()["usage"]["icae"]


def test_openai_client(s: Server) -> None:
    """OpenAI's own Python client, unchanged."""
    pythons = (os.environ.get("ICAE_PYTHON"), str(ROOT / "build/client/bin/python"), sys.executable)
    python = next((p for p in pythons if p and shutil.which(p) and
                   not subprocess.run([p, "-c", "import openai"], capture_output=True).returncode), None)
    if not python:
        print("        SKIPPED: no openai package (tools/openai-client.sh build/client)")
        return
    c = s.context(TEXT)
    program = """
import sys, openai
url, context = sys.argv[1:]
client = openai.OpenAI(base_url=url + "/v1", api_key="nobody-checks-it", max_retries=0)
assert [m.id for m in client.models.list()] == ["icae"]
ask = dict(model="icae", messages=[{"role": "user", "content": "What is this about?"}], temperature=0, max_tokens=24,
           extra_body={"icae": {"contexts": [context]}})
whole = client.chat.completions.create(**ask, logprobs=True, top_logprobs=2)
stream = client.chat.completions.create(**ask, stream=True, stream_options={"include_usage": True})
text = ""
for chunk in stream:
    text += chunk.choices[0].delta.content or "" if chunk.choices else ""
assert text == whole.choices[0].message.content and chunk.usage.total_tokens == whole.usage.total_tokens
assert len(whole.choices[0].logprobs.content) == whole.usage.completion_tokens
plain = client.completions.create(model="icae", prompt="Once upon a time", max_tokens=5, n=2, seed=1, logprobs=2)
assert len(plain.choices) == 2 and len(plain.choices[0].logprobs.tokens) == 5
for wrong, kind in [(dict(n=1000), openai.BadRequestError), (dict(extra_body={"icae": {"contexts": ["ctx_00"]}}), openai.NotFoundError)]:
    try:
        client.chat.completions.create(**{**ask, **wrong})
        raise SystemExit("no error")
    except kind as error:
        assert error.body["message"]
print(text)
"""
    done = subprocess.run([python, "-c", program, s.url, c["id"]], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.rstrip("\n") == s.say(QUESTION, icae={"contexts": [c["id"]]})


def test_curl(s: Server) -> None:
    """curl, streaming."""
    c = s.context(TEXT)
    body = json.dumps({"messages": [{"role": "user", "content": QUESTION}], "stream": True, "temperature": 0,
                       "icae": {"contexts": [c["id"]]}, "max_tokens": 24})
    done = subprocess.run(["curl", "-sSN", "--fail", s.url + "/v1/chat/completions", "-H", "Content-Type: application/json",
                           "-d", body], capture_output=True, text=True, check=True)
    lines = [line for line in done.stdout.splitlines() if line]
    assert lines[-1] == "data: [DONE]" and all(line.startswith("data: ") for line in lines)
    text = "".join(json.loads(line[6:])["choices"][0]["delta"].get("content", "") for line in lines[:-1])
    assert text == s.say(QUESTION, icae={"contexts": [c["id"]]})


def test_many_at_once(s: Server) -> None:
    """Sixteen streams at a time, long and short, with compressions beside them: each is what it is alone."""
    c = [s.context(TEXT), s.context(SHORT)]
    asks = [dict(content=f"{QUESTION} {i}", icae={"contexts": [c[i % 2]["id"]]} if i % 3 else {}, stream=True,
                 max_tokens=8 + 5 * i, temperature=0.8 if i % 2 else 0, seed=i) for i in range(16)]
    alone = [s.chat(**a).streamed() for a in asks]
    together = threads([lambda a=a: s.chat(**a).streamed() for a in asks] +
                       [lambda i=i: s.context(f"{TEXT} {i}") for i in range(3)])[:16]
    assert together == alone


def test_prefixes(_: Server) -> None:
    """Replies that share the keys and values of a context, also while they are put out, are those that share nothing."""
    def replies(prefixes: str) -> tuple[list, dict]:
        s = Server(ICAE, "--prefixes", prefixes)
        c = [s.context(TEXT), s.context(TEXT[::-1][:600])]
        ask = lambda i: s.chat(f"{QUESTION} {i}", icae={"contexts": [c[i % 2]["id"]]}, max_tokens=24,  # noqa: E731
                               temperature=0.8 if i % 4 else 0, seed=i, n=1 + i % 3).good()["choices"]
        made = [ask(0)] + threads([lambda i=i: ask(i) for i in range(1, 16)])
        metrics = dict(line.split() for line in s.get("/metrics").body.decode().splitlines() if line.startswith("icae_prefix_"))
        s.end()
        return made, {name: int(value) for name, value in metrics.items()}
    alone, none = replies("1")
    shared, both = replies("64M")
    assert shared == alone and none["icae_prefix_bytes"] == 0 and both["icae_prefix_hits_total"] == 14, (none, both)
    in_turn, one = replies(str(both["icae_prefix_bytes"] - 1))
    assert in_turn == alone and 0 < one["icae_prefix_bytes"] < both["icae_prefix_bytes"], one


# ---- what is refused -----------------------------------------------------------------------------------


def test_bad_requests(s: Server) -> None:
    """Wrong values are named; nothing of it harms the server."""
    ask = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 3}
    for change, param in [
            ({"n": 9}, "n"), ({"n": 0}, "n"), ({"n": 1.5}, "n"), ({"n": "1"}, "n"), ({"max_tokens": 0}, "max_tokens"),
            ({"max_tokens": 10 ** 9}, "max_tokens"), ({"max_completion_tokens": -1}, "max_completion_tokens"),
            ({"temperature": 2.1}, "temperature"), ({"temperature": "hot"}, "temperature"), ({"top_p": -1}, "top_p"),
            ({"stop": ["a"] * 5}, "stop"), ({"stop": ""}, "stop"), ({"stop": 7}, "stop"), ({"stream": "yes"}, "stream"),
            ({"logprobs": 3}, "logprobs"), ({"top_logprobs": 3}, "top_logprobs"), ({"seed": 0.5}, "seed"),
            ({"messages": []}, "messages"), ({"messages": "Hello"}, "messages"), ({"messages": [7]}, "messages[0].role"),
            ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role"),
            ({"messages": [{"role": "user"}]}, "messages[0].content"),
            ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content"),
            ({"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]}, "messages[1].content"),
            ({"messages": [{"role": "system", "content": [{"type": "icae_context", "id": "ctx_00"}]}]}, "messages[0].content"),
            ({"icae": 3}, "icae"), ({"icae": {"contexts": "ctx_00"}}, "icae.contexts"),
            ({"icae": {"contexts": [1]}}, "icae.contexts"), ({"icae": {"compress_over": 0}}, "icae.compress_over"),
            ({"icae": {"expand": -1}}, "icae.expand"), ({"icae": {"expand": "2"}}, "icae.expand"),
            ({"stream_options": []}, "stream_options"), ({"model": 7}, "model")]:
        s.post("/v1/chat/completions", ask | change).bad(400, param=param)
    s.post("/v1/completions", {}).bad(400, param="prompt")
    for prompt, n in (([], 1), (["a", 7], 1), ([[1, 2]], 1), (["a"] * 9, 1), (["a"] * 3, 3), ({"a": 1}, 1)):
        s.post("/v1/completions", {"prompt": prompt, "n": n}).bad(400, param="prompt")
    s.chat("word " * 6000).bad(400, "positions", code="context_length_exceeded")
    for unknown in ("ctx_00", "ctx_" + "f" * 32, "../../etc/passwd", "x", "ctx_" + "0" * 500):
        s.chat("Hello", icae={"contexts": [unknown]}).bad(404, code="context_not_found")
        s.get("/v1/contexts/" + unknown.replace("/", "%2f")).bad(404)
    for change, param in [({"text": ""}, "text"), ({"text": 3}, "text"), ({}, "text"), ({"text": "x", "rate": 0}, "rate"),
                          ({"text": "x", "check": "no"}, "check"), ({"text": "x", "ttl": -5}, "ttl"),
                          ({"text": "x", "name": "n" * 300}, "name"), ({"text": "x", "name": "a\nb"}, "name")]:
        s.post("/v1/contexts", change).bad(400, param=param)
    s.post("/v1/contexts?exact=maybe", "text", Content_Type="text/plain").bad(400, param="exact")
    s.post("/v1/contexts", b"", Content_Type="text/plain").bad(400)
    s.post("/v1/contexts", b"PK\3\4 not slots", Content_Type="application/vnd.icae").bad(400)
    s.get("/v1/contexts?after=me").bad(400, param="after")
    s.get("/v1/nothing").bad(404, "/v1/nothing")
    assert s.call("PUT", "/v1/models").headers["Allow"] == "GET"
    s.call("DELETE", "/v1/chat/completions").bad(405)
    s.post("/v1/chat/completions", ask | {"response_format": {"type": "text"}, "icae": {"colour": 3}}).good()
    wait_for(lambda: any(line.get("ignored") == "response_format,icae.colour" for line in s.log()))  # a line follows the answer


def test_hostile_bodies(s: Server) -> None:
    """Not JSON, not UTF-8, too deep, too many values, wrong types: 400 or 415, and a line that says where."""
    post = lambda body, kind="application/json": s.post("/v1/chat/completions", body, Content_Type=kind)  # noqa: E731
    post(b"").bad(400)
    post(b"{").bad(400, "line 1")
    post(b"[]").bad(400, "object")
    post(b'{"messages":[{"role":"user","content":"\xff\xfe"}]}').bad(400, "UTF-8 at byte 39")
    post(b'{"messages":"\xed\xa0\x80"}').bad(400, "UTF-8")
    post(b'{"messages":"a\\u0000b"}').bad(400)
    post(b'{"a":' + b"[" * 100000 + b"]" * 100000 + b"}").bad(400)
    post(b'{"a":' + b"[" * 300 + b"]" * 300 + b"}").bad(400, "nested")
    post(b'{"a":[' + b"[]," * 200000 + b"1]}").bad(400, "values")
    post(b'{"messages":[],"messages":[]} {"').bad(400)
    post(b"{}", "text/plain").bad(415)
    post(b"{}", "application/jsonx; charset=utf-8").bad(415)
    s.post("/v1/contexts", b"a\xff", Content_Type="text/plain").bad(400, "UTF-8 at byte 1")
    s.post("/v1/contexts", b"a", Content_Type="image/png").bad(415, "image/png")
    s.call("POST", "/v1/contexts", b"a").bad(415)
    assert s.get("/healthz").good()["status"] == "ok"


def test_hostile_bytes(s: Server) -> None:
    """What is no HTTP, or half of it, or pretends to be longer than it is."""
    for data in (b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n", b"hello\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"GET\r\n\r\n", b"POST /v1/completions HTTP/1.1\r\nHost: x\r\n"
                 b"Content-Length: -5\r\n\r\n", b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999999\r\n\r\n"):
        got = s.raw(data, 5)
        assert not got or got.split(b" ", 2)[1][:1] in b"45", (data, got[:100])
    big = s.raw(b"GET / HTTP/1.1\r\nHost: x\r\nX-Big: " + b"a" * 100000 + b"\r\n\r\n", 5)
    assert not big or b" 431 " in big[:40] or b" 413 " in big[:40], big[:60]
    for half in (b"GE", b"GET / HTTP/1.1\r\nHost: x\r\n", b"POST /v1/contexts HTTP/1.1\r\nHost: x\r\nContent-Type: text/plain\r\n"
                 b"Content-Length: 100\r\n\r\nhalf of it"):
        with socket.create_connection(s.address) as one:
            one.sendall(half)
    too_big = b"POST /v1/contexts HTTP/1.1\r\nHost: x\r\nContent-Type: text/plain\r\nContent-Length: 999999999\r\n\r\n"
    assert b" 413 " in s.raw(too_big + b"x" * 1000, 5)[:40]
    chunked = b"POST /v1/contexts HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: text/plain\r\n" \
              b"Transfer-Encoding: chunked\r\n\r\n"
    piece = b"10000\r\n" + b"x" * 65536 + b"\r\n"
    assert b" 413 " in s.raw(chunked + piece * 24 + b"0\r\n\r\n", 10)[:40]  # the limit of this server is 1 MiB
    s.post("/v1/contexts", b"x" * (1 << 20) + b"y", Content_Type="text/plain").bad(413, "1048576")
    assert s.get("/healthz").good()["status"] == "ok"


def test_other_model(s: Server) -> None:
    """Slots of another model are refused by both their names, at the door and from the store."""
    c = s.context(SHORT)
    file = s.get(f"/v1/contexts/{c['id']}/slots").body
    size = struct.unpack("<Q", file[:8])[0]
    head, data = json.loads(file[8:8 + size]), file[8 + size:]
    about = head.pop("__metadata__") | {"base": "ab" * 32}

    def build() -> bytes:
        text = json.dumps({"__metadata__": about, **head}).encode()
        return struct.pack("<Q", len(text)) + text + data

    # a changed file is a damaged file
    s.post("/v1/contexts", build(), Content_Type="application/vnd.icae").bad(400, "checksum")
    h = hashlib.sha256()  # as docs/formats.md has it
    for key in sorted(about):
        if key != "checksum":
            h.update(f"{key}\0{about[key]}\0".encode())
    for name in sorted(head):
        first, last = head[name]["data_offsets"]
        shape = ",".join(map(str, head[name]["shape"]))
        h.update(f"{name}\0{head[name]['dtype']}\0{shape}\0".encode() + data[first:last])
    about["checksum"] = h.hexdigest()
    error = s.post("/v1/contexts", build(), Content_Type="application/vnd.icae").bad(409, code="other_model")
    assert c["base"][:12] in error["message"] and ("ab" * 6) in error["message"], error
    # from the store, where another program has put it
    (s.folder / "other.icae").write_bytes(build())
    id = cli("store", "put", str(s.folder / "other.icae"), "--store", s.store).split()[-1]
    error = s.chat(QUESTION, icae={"contexts": [id]}).bad(409, code="other_model")
    assert c["base"][:12] in error["message"] and ("ab" * 6) in error["message"], error
    s.get(f"/v1/contexts/{id}/text").bad(409)
    assert s.get(f"/v1/contexts/{id}").good()["base"] == "ab" * 32


# ---- clients -------------------------------------------------------------------------------------------


def restoring(c: dict) -> bytes:
    return f"GET /v1/contexts/{c['id']}/text HTTP/1.1\r\nHost: x\r\nAccept: text/event-stream\r\n\r\n".encode()


def begin_long(s: Server) -> socket.socket:
    """A stream that goes on for a second or more, begun and not read further: 3,500 tokens of restored text."""
    c = s.context(TEXT * 14, "?check=false")
    one = socket.create_connection(s.address, timeout=60)
    one.sendall(restoring(c))
    assert one.recv(15) == b"HTTP/1.1 200 OK"
    return one


def read_until(one: socket.socket, *ends: bytes) -> bytes:
    """What comes up to one of `ends`, or till the server closes."""
    got = b""
    while not any(end in got for end in ends) and (piece := one.recv(65536)):
        got += piece
    return got


def test_gone(s: Server) -> None:
    """A client that goes away frees its place at once."""
    busy = [begin_long(s) for _ in range(4)]
    wait_for(lambda: s.get("/healthz").good()["running"] == 4)
    for one in busy:
        one.close()
    wait_for(lambda: s.get("/healthz").good()["running"] == 0, 20)
    wait_for(lambda: sum(1 for line in s.log() if line.get("gone") and line.get("path", "").endswith("/text")) >= 4, 20)
    # a compression, too
    text = (TEXT * 14).encode()
    with socket.create_connection(s.address) as one:
        one.sendall(b"POST /v1/contexts HTTP/1.1\r\nHost: x\r\nContent-Type: text/plain\r\nContent-Length: "
                    + str(len(text)).encode() + b"\r\n\r\n" + text)
    wait_for(lambda: any(line.get("gone") and line.get("path") == "/v1/contexts" for line in s.log()), 20)
    assert s.get("/healthz").good()["waiting"] == 0


def test_keep_alive(s: Server) -> None:
    """Many requests over one connection; a request behind another on it."""
    one = s.open()
    for _ in range(50):
        assert s.call("GET", "/v1/models", connection=one).status == 200
    one.close()
    request = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
    last = b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    assert s.raw(request * 3 + last).count(b'"status":"ok"') == 4


# ---- servers with settings of their own ----------------------------------------------------------------


def idle(s: Server) -> None:
    wait_for(lambda: (lambda load: load["running"] == load["waiting"] == 0)(s.get("/healthz").good()))


def test_queue(_: Server) -> None:
    """What does not fit in the queue is told to come again; those who wait take turns, and who goes leaves."""
    s = Server(ICAE, "--sequences", "2", "--queue", "2")
    c = s.context(TEXT * 14, "?check=false")
    all_at_once = [socket.create_connection(s.address, timeout=120) for _ in range(12)]
    for one in all_at_once:  # each works for a second or more: two are at work, two wait
        one.sendall(restoring(c))
    begun = threads([lambda one=one: read_until(one, b"event: text", b"}}") for one in all_at_once])
    refused = [answer for answer in begun if answer.startswith(b"HTTP/1.1 429")]
    assert refused and all(b'"queue_full"' in r and int(r.split(b"\r\nRetry-After: ")[1].split()[0]) >= 1 for r in refused), begun
    taken = [answer for answer in begun if answer.startswith(b"HTTP/1.1 200 OK") and b"event: text" in answer]
    assert len(taken) >= 4 and len(taken) + len(refused) == 12, begun  # who waited has come in
    assert s.get("/v1/models").status == 200, "what needs no place is answered all the same"
    for one in all_at_once:
        one.close()
    idle(s)
    s.chat("Hello").good()
    s.end()
    s = Server(ICAE, "--sequences", "1", "--queue", "29")
    c = s.context(TEXT * 14, "?check=false")
    many = [socket.create_connection(s.address, timeout=120) for _ in range(30)]
    for one in many:  # half a minute of work, so most of them wait
        one.sendall(restoring(c))
    wait_for(lambda: s.get("/healthz").good()["waiting"] >= 20)
    for one in many:
        one.close()
    idle(s)
    wait_for(lambda: sum(1 for line in s.log() if line.get("gone") and not line.get("tokens")) >= 20)  # they left the queue
    s.end()


def test_tokens(_: Server) -> None:
    """Who has no token is let in nowhere but to the page; each has contexts and bounds of its own."""
    import tempfile
    with tempfile.NamedTemporaryFile("w") as file:
        file.write("# name token\nann  secret-of-ann-0123456789\nbob\tsecret-of-bob-0123456789 - 2\nfew secret-of-few-0123456789 3\n")
        file.flush()
        s = Server(ICAE, "--tokens", file.name)
        ann, bob, few = ({"Authorization": f"Bearer secret-of-{n}-0123456789"} for n in ("ann", "bob", "few"))
        for wrong in ({}, {"Authorization": "Bearer secret-of-ann-012345678"}, {"Authorization": "Basic YTpi"},
                      {"Authorization": "secret-of-eve-0123456789"}):
            for path in ("/v1/models", "/v1/contexts", "/metrics"):
                answer = s.call("GET", path, headers=wrong)
                answer.bad(401, code="invalid_api_key")
                assert answer.headers["WWW-Authenticate"] == "Bearer"
        assert s.get("/").status == 200 and s.get("/healthz").status == 200
        mine = s.context(SHORT, **ann)
        s.call("GET", f"/v1/contexts/{mine['id']}", headers=ann).good()
        s.call("GET", f"/v1/contexts/{mine['id']}", headers=bob).bad(404)
        s.call("DELETE", f"/v1/contexts/{mine['id']}", headers=bob).bad(404)
        assert s.call("GET", "/v1/contexts", headers=bob).good()["data"] == []
        chat = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 2, "icae": {"contexts": [mine["id"]]}}
        s.call("POST", "/v1/chat/completions", chat, bob).bad(404)
        s.call("POST", "/v1/chat/completions", chat, ann).good()
        for i in range(2):
            s.context(f"{SHORT} {i}", **bob)
        s.post("/v1/contexts", SHORT, Content_Type="text/plain", **bob).bad(429, code="context_limit")
        for _ in range(3):
            s.call("GET", "/v1/models", headers=few).good()
        limited = s.call("GET", "/v1/models", headers=few)
        limited.bad(429, code="rate_limit")
        assert 1 <= int(limited.headers["Retry-After"]) <= 20
        assert not any("secret" in json.dumps(line) for line in s.log()), "tokens are not logged"
        s.end()


def test_start(_: Server) -> None:
    """What cannot be served is refused with one line before anything listens."""
    def refused(says: str, *options: str) -> None:
        done = subprocess.run([ICAE, "serve", "--port", "0", "--store", "none", *options], capture_output=True, text=True,
                              timeout=60)
        assert done.returncode == 1 and says in done.stderr and done.stderr.count("\n") == 1, (options, done.stderr)

    refused("token", "--host", "0.0.0.0")
    refused("token", "--host", "::")
    refused("no-such-host.invalid", "--host", "no-such-host.invalid")
    refused("/nowhere/tokens", "--tokens", "/nowhere/tokens")
    refused("line 1", "--tokens", str(ROOT / "demo/article.txt"))
    refused("both", "--cert", "/etc/passwd")
    refused("PEM", "--cert", "/etc/passwd", "--key", "/etc/passwd")
    refused("range", "--sequences", "100000")
    s = Server(ICAE, "--host", "0.0.0.0", "--insecure")
    other = Server.__new__(Server)
    other.__dict__.update(s.__dict__, address=("127.0.0.1", s.address[1]))
    assert other.get("/healthz").status == 200
    port = s.address[1]
    done = subprocess.run([ICAE, "serve", "--port", str(port), "--store", "none"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and str(port) in done.stderr
    s.end()


def test_tls(_: Server) -> None:
    """A certificate and its key make it https."""
    import tempfile
    with tempfile.TemporaryDirectory() as folder:
        cert, key = f"{folder}/cert.pem", f"{folder}/key.pem"
        subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
                        "-keyout", key, "-out", cert, "-subj", "/CN=localhost", "-days", "1"], check=True, capture_output=True)
        s = Server(ICAE, "--cert", cert, "--key", key)
        assert s.url.startswith("https://")
        c = s.context(SHORT)
        assert s.chat("Hello", icae={"contexts": [c["id"]]}, stream=True).streamed() is not None
        assert b"200" not in s.raw(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n", 3)[:20]
        s.end()


def test_origins(s: Server) -> None:
    """Pages from elsewhere may call only if they are listed."""
    assert "Access-Control-Allow-Origin" not in s.get("/v1/models", Origin="http://" + ":".join(map(str, s.address))).headers
    s.get("/v1/models", Origin="http://evil.example").bad(403)
    listed = Server(ICAE, "--cors", "https://app.example")
    answer = listed.call("OPTIONS", "/v1/chat/completions", headers={"Origin": "https://app.example",
                                                                     "Access-Control-Request-Method": "POST"})
    assert answer.status == 204 and answer.headers["Access-Control-Allow-Origin"] == "https://app.example"
    assert "Authorization" in answer.headers["Access-Control-Allow-Headers"]
    assert listed.get("/v1/models", Origin="https://app.example").status == 200
    assert "Access-Control-Allow-Origin" not in listed.get("/v1/models", Origin="https://other.example").headers
    listed.end()
    page = s.get("/")
    policy = page.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy and policy.count("'sha256-") == 2, policy


def test_slow_clients(_: Server) -> None:
    """Who is silent, or sends a request byte by byte, is cut; who works is not."""
    s = Server(ICAE, "--timeout", "1")
    silent = socket.create_connection(s.address, timeout=30)
    drip = socket.create_connection(s.address, timeout=30)
    drip.sendall(b"POST /v1/contexts HTTP/1.1\r\nHost: x\r\nContent-Type: text/plain\r\nContent-Length: 1000\r\n\r\n")
    cut = {"silent": False, "drip": False}
    end = time.monotonic() + 30
    drip.setblocking(False)
    silent.setblocking(False)
    while not all(cut.values()) and time.monotonic() < end:
        time.sleep(0.2)
        for name, one in (("silent", silent), ("drip", drip)):
            try:
                cut[name] |= one.recv(100) == b""
            except BlockingIOError:
                pass
            except ConnectionError:
                cut[name] = True
        try:
            drip.sendall(b"x")
        except OSError:
            cut["drip"] = True
    assert all(cut.values()), cut
    assert s.chat("Tell me a story.", max_tokens=60, stream=True).streamed()
    s.end()


def test_drain(_: Server) -> None:
    """SIGTERM lets running replies finish and takes no new ones; what takes too long is cut, in time."""
    s = Server(ICAE, "--drain", "60")
    one = begin_long(s)
    wait_for(lambda: s.get("/healthz").good()["running"] == 1)
    s.process.send_signal(signal.SIGTERM)
    assert b"event: done" in read_until(one, b"event: done") and s.process.wait(60) == 0
    try:
        socket.create_connection(s.address, timeout=2).close()
        raise AssertionError("it still listens")
    except ConnectionError:
        pass
    s.end()
    s = Server(ICAE, "--drain", "0.1")
    one = begin_long(s)
    start = time.monotonic()
    status = s.stop()
    assert status == 0 and time.monotonic() - start < 20
    rest = read_until(one, b"event: done")
    assert b"event: text" in rest and b'"code":"stopped"' in rest and b"event: done" not in rest
    s.end()


# ---- stores --------------------------------------------------------------------------------------------


def kill_loop(store: str | None, rounds: int) -> None:
    """kill -9 at any instant: what was acknowledged is there, whole, and nothing else is half there."""
    s = Server(ICAE, store=store)
    kept: dict[str, str] = {}
    for i in range(rounds):
        done = threading.Event()

        def post(j: int) -> None:
            while not done.is_set():
                try:
                    text = f"{SHORT} Round {i}, client {j}, {time.monotonic()}."
                    answer = s.post("/v1/contexts?check=false", text, Content_Type="text/plain")
                    if answer.status == 201:
                        kept[answer.json["id"]] = text
                    if j == 0 and answer.status == 201 and len(kept) % 3 == 0:
                        kept.pop(answer.json["id"])  # from here on nobody knows whether it is there
                        s.call("DELETE", f"/v1/contexts/{answer.json['id']}")
                except (OSError, ValueError, http.client.HTTPException):
                    return  # killed

        clients = [threading.Thread(target=post, args=(j,)) for j in range(3)]
        for t in clients:
            t.start()
        before = len(kept)
        wait_for(lambda: len(kept) > before + 2, 60)
        time.sleep(0.003 * (i * 7 % 10))
        s.stop(signal.SIGKILL)
        done.set()
        for t in clients:
            t.join()
        s.start()
        there: set = set()
        page = s.get("/v1/contexts?limit=100").good()
        while True:
            there |= {c["id"] for c in page["data"]}
            if not page["has_more"]:
                break
            page = s.get(f"/v1/contexts?limit=100&after={page['last_id']}").good()
        lost = set(kept) - there
        assert not lost, f"acknowledged, and gone after kill -9: {lost}"
        for id in there:
            assert s.get(f"/v1/contexts/{id}/slots").status == 200, "a stored context is damaged"
    for id, text in list(kept.items())[-3:]:
        assert s.get(f"/v1/contexts/{id}").good()["text_sha256"] == hashlib.sha256(text.encode()).hexdigest()
    s.end()


def test_kill_sqlite(_: Server) -> None:
    kill_loop(None, 6)


def test_full(_: Server) -> None:
    """A store that is full says 507 and keeps nothing of it."""
    s = Server(ICAE, "--quota", "100K")
    answers = [s.post("/v1/contexts?check=false", f"{TEXT} {i}", Content_Type="text/plain") for i in range(5)]
    assert answers[0].status == 201 and answers[-1].status == 507
    answers[-1].bad(507, code="storage_full")
    stored = [a for a in answers if a.status == 201]
    assert len(s.get("/v1/contexts").good()["data"]) == len(stored)
    s.call("DELETE", f"/v1/contexts/{stored[0].json['id']}").good()
    s.context(f"{TEXT} again", "?check=false")
    s.end()


def test_disk_full(_: Server) -> None:
    """The same when the disk is: what was stored is there, and there is room again after a removal."""
    import resource

    def small() -> None:  # files of this server may not grow beyond 300 KB
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, resource.RLIM_INFINITY))
    s = Server(ICAE, "--log", "none", prepare=small)
    kept = []
    for i in range(200):
        answer = s.post("/v1/contexts?check=false", f"{TEXT} {i}", Content_Type="text/plain")
        if answer.status != 201:
            break
        kept.append(answer.json["id"])
    answer.bad(507, code="storage_full")
    assert kept and [c["id"] for c in s.get("/v1/contexts?limit=100").good()["data"]] == kept[::-1]
    assert s.chat(QUESTION, icae={"contexts": [kept[0]]}).good()
    assert s.get("/healthz").status == 200
    s.end()


def test_expiry(_: Server) -> None:
    """What has expired is gone at once, and its row soon; what is being appended to stays."""
    import sqlite3
    s = Server(ICAE, "--gc", "1")
    lasting = s.context(SHORT)
    brief = s.context(SHORT + " Not for long.", "?ttl=1")
    wait_for(lambda: s.get(f"/v1/contexts/{brief['id']}").status == 404)
    rows = lambda: sqlite3.connect(s.store).execute("SELECT id FROM icae_contexts").fetchall()  # noqa: E731
    wait_for(lambda: rows() == [(lasting["id"],)])
    wait_for(lambda: any(line["event"] == "gc" and line["expired"] == 1 for line in s.log()))
    s.post(f"/v1/contexts/{lasting['id']}/append", {"text": "More."}).good()
    assert sqlite3.connect(s.store).execute("SELECT COUNT(*) FROM icae_holds").fetchone() == (0,), "the hold was released"
    s.end()


def test_postgres(_: Server) -> None:
    """Two servers over one PostgreSQL; the database goes and comes back; kill -9."""
    database = Postgres()
    if not database.found:
        print("        (no PostgreSQL here)")
        return
    try:
        a, b = threads([lambda: Server(ICAE, store=database.url), lambda: Server(ICAE, store=database.url)])  # both migrate
        c = a.context(TEXT)
        assert b.get(f"/v1/contexts/{c['id']}").good()["text_sha256"] == c["text_sha256"]
        assert b.say(QUESTION, icae={"contexts": [c["id"]]}) == a.say(QUESTION, icae={"contexts": [c["id"]]})
        threads([lambda i=i: (a, b)[i % 2].post(f"/v1/contexts/{c['id']}/append", f"Number {i}. ", Content_Type="text/plain").good()
                 for i in range(4)])
        assert a.get(f"/v1/contexts/{c['id']}").good()["text_bytes"] == len(TEXT.encode()) + 4 * len("Number 0. ")
        database.stop()
        a.get(f"/v1/contexts/{c['id']}").bad(503, code="store_unavailable")
        a.post("/v1/contexts", SHORT, Content_Type="text/plain").bad(503)
        assert a.get("/healthz").status == 503
        assert a.chat("Hello").good(), "what needs no context is answered"
        database.start()
        wait_for(lambda: a.get("/healthz").status == 200)
        assert a.get(f"/v1/contexts/{c['id']}").good()["id"] == c["id"]
        b.call("DELETE", f"/v1/contexts/{c['id']}").good()
        a.chat(QUESTION, icae={"contexts": [c["id"]]}).bad(404)
        a.end()
        b.end()
        kill_loop(database.url, 3)
    finally:
        database.end()


TESTS = [test_contract, test_contexts, test_exact, test_append, test_progress, test_pages, test_streams, test_completions,
         test_conversation, test_expand, test_advised, test_compress_over, test_openai_client, test_curl, test_many_at_once, test_prefixes, test_bad_requests,
         test_hostile_bodies, test_hostile_bytes, test_other_model, test_gone, test_keep_alive, test_queue, test_tokens,
         test_start, test_tls, test_origins, test_slow_clients, test_drain, test_kill_sqlite, test_full, test_disk_full,
         test_expiry, test_postgres]


def main() -> int:
    global ICAE
    ICAE = sys.argv[1]
    chosen = [t for t in TESTS if not sys.argv[2:] or t.__name__ in sys.argv[2:]]
    s = Server(ICAE, "--max-body", "1M")
    failed = run(chosen, s)
    s.end()
    return failed


if __name__ == "__main__":
    sys.exit(main())
