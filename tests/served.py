"""What the tests of `icae serve` share: a server of their own, a client that speaks HTTP and nothing more, a PostgreSQL of
their own, and a check of answers against docs/openapi.yaml. Only Python's standard library (and PyYAML for the last)."""

from __future__ import annotations

import atexit
import glob
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


class Server:
    """`icae serve` with the bundled model on a free port of loopback."""

    def __init__(self, program: str, *options: str, store: str | None = None, compute: str = "f32", prepare=None):
        self.folder = Path(tempfile.mkdtemp(prefix="icae-serve-"))
        self.store = store or str(self.folder / "store.db")
        self.command = [program, "serve", "--port", "0", "--threads", "2", "--compute", compute,
                        "--store", self.store, "--log", str(self.folder / "log"), *options]
        self.prepare = prepare  # called in the process before it becomes the server
        atexit.register(self.clear)  # what a test that failed has left
        self.start()

    def clear(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def start(self) -> None:
        self.process = subprocess.Popen(self.command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                        stderr=open(self.folder / "errors", "ab"), text=True, preexec_fn=self.prepare)
        self.url = self.process.stdout.readline().strip()
        if not self.url:
            self.process.wait(30)
            raise AssertionError("the server does not start: " + (self.folder / "errors").read_text()[-2000:])
        self.secure = self.url.startswith("https")
        host, port = self.url.split("://")[1].rsplit(":", 1)
        self.address = host.strip("[]"), int(port)

    def log(self) -> list[dict]:
        return [json.loads(line) for line in (self.folder / "log").read_text().splitlines()]

    def stop(self, how: int = signal.SIGTERM) -> int:
        if self.process.poll() is None:
            self.process.send_signal(how)
        try:
            return self.process.wait(60)
        finally:
            self.process.stdout.close()

    def end(self) -> None:
        status = self.stop()
        said = (self.folder / "errors").read_text()
        shutil.rmtree(self.folder)
        assert status == 0, f"the server ended with {status}: {said[-3000:]}"
        assert "Sanitizer" not in said, said[-3000:]

    # ---- requests ----

    def open(self) -> http.client.HTTPConnection:
        if self.secure:
            import ssl
            return http.client.HTTPSConnection(*self.address, timeout=120, context=ssl._create_unverified_context())
        return http.client.HTTPConnection(*self.address, timeout=120)

    def call(self, method: str, path: str, body=None, headers: dict | None = None, connection=None) -> "Answer":
        headers = dict(headers or {})
        if isinstance(body, (dict, list)):
            body = json.dumps(body).encode()
            headers.setdefault("Content-Type", "application/json")
        elif isinstance(body, str):
            body = body.encode()
        own = connection or self.open()
        own.request(method, path, body, headers)
        answer = Answer(own.getresponse())
        if not connection:
            own.close()
        return answer

    def post(self, path: str, body=None, **headers) -> "Answer":
        return self.call("POST", path, body, {k.replace("_", "-"): v for k, v in headers.items()})

    def get(self, path: str, **headers) -> "Answer":
        return self.call("GET", path, None, {k.replace("_", "-"): v for k, v in headers.items()})

    def context(self, text: str, query: str = "", **headers) -> dict:
        return self.post("/v1/contexts" + query, text, Content_Type="text/plain", **headers).good()

    def chat(self, content, **settings) -> "Answer":
        messages = content if isinstance(content, list) and content and "role" in content[0] else \
            [{"role": "user", "content": content}]
        return self.post("/v1/chat/completions", {"temperature": 0, "max_tokens": 24, "messages": messages, **settings})

    def say(self, content, **settings) -> str:
        return self.chat(content, **settings).good()["choices"][0]["message"]["content"]

    def raw(self, data: bytes, wait: float = 10) -> bytes:
        """Bytes as they are, and all that comes back until the server closes or `wait` seconds have passed."""
        with socket.create_connection(self.address, timeout=wait) as s:
            s.sendall(data)
            got = b""
            try:
                while piece := s.recv(65536):
                    got += piece
            except (TimeoutError, ConnectionResetError):
                pass
            return got


class Answer:
    def __init__(self, response: http.client.HTTPResponse):
        self.status, self.headers, self.body = response.status, response.headers, response.read()

    @property
    def json(self):
        return json.loads(self.body)

    def good(self):
        assert self.status in (200, 201), f"{self.status}: {self.body[:500]!r}"
        return self.json

    def bad(self, status: int, says: str = "", param=None, code=None) -> dict:
        """An error in OpenAI's form."""
        assert self.status == status, f"{self.status}, not {status}: {self.body[:500]!r}"
        error = self.json["error"]
        assert set(error) == {"message", "type", "param", "code"} and error["message"], error
        assert says in error["message"], error
        assert param is None or error["param"] == param, error
        assert code is None or error["code"] == code, error
        return error

    def events(self) -> list[tuple[str, object]]:
        """(name, data) of an event stream; data that is not JSON stays text."""
        found = []
        for block in self.body.decode().split("\n\n"):
            lines = [line.split(": ", 1) for line in block.splitlines() if line]
            if lines:
                fields = dict(lines)
                data = fields["data"]
                found.append((fields.get("event", ""), json.loads(data) if data[0] in "{[" and data != "[DONE]" else data))
        return found

    def streamed(self, index: int = 0) -> str:
        """The text of a streamed reply, which must have ended well."""
        events = [data for _, data in self.events()]
        assert events[-1] == "[DONE]", events[-1]
        parts = [c for e in events[:-1] for c in e["choices"] if c["index"] == index]
        return "".join(c["delta"].get("content", "") if "delta" in c else c["text"] for c in parts)


# ---- PostgreSQL ----------------------------------------------------------------------------------------


class Postgres:
    """A server of our own in a temporary folder, reached by a socket there; `found` is false where there is none."""

    def __init__(self):
        folders = sorted(glob.glob("/usr/lib/postgresql/*/bin"), reverse=True)
        self.bin = Path(folders[0]) if folders else None
        self.found = self.bin is not None
        if not self.found:
            return
        self.folder = Path(tempfile.mkdtemp(prefix="icae-pg-"))
        self.as_user = []
        if os.getuid() == 0:  # PostgreSQL does not run as root
            self.as_user = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"]
            shutil.chown(self.folder, "postgres", "postgres")
        self.run("initdb", "-D", self.data, "-U", "icae", "-A", "trust", "-N")
        self.start()
        self.url = f"postgresql://icae@/postgres?host={self.folder}"

    @property
    def data(self) -> str:
        return str(self.folder / "data")

    def run(self, program: str, *arguments: str) -> None:
        subprocess.run([*self.as_user, str(self.bin / program), *arguments], check=True, stdin=subprocess.DEVNULL,
                       stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT, cwd="/tmp")

    def start(self) -> None:
        self.run("pg_ctl", "-D", self.data, "-w", "-l", str(self.folder / "log"), "-o",
                 f"-k {self.folder} -c listen_addresses='' -c shared_buffers=16MB", "start")

    def stop(self) -> None:
        self.run("pg_ctl", "-D", self.data, "-w", "-m", "immediate", "stop")

    def end(self) -> None:
        if self.found:
            self.stop()
            shutil.rmtree(self.folder, ignore_errors=True)


# ---- the contract --------------------------------------------------------------------------------------


class Contract:
    """docs/openapi.yaml: which answers are possible, and what they look like. As much of JSON Schema as it uses."""

    def __init__(self):
        import yaml
        self.document = yaml.safe_load((ROOT / "docs/openapi.yaml").read_text())

    def follow(self, node: dict) -> dict:
        while "$ref" in node:
            target = self.document
            for name in node["$ref"].lstrip("#/").split("/"):
                target = target[name]
            node = target
        return node

    def answer(self, path: str, method: str, answer: Answer) -> None:
        """The answer is one that the document allows there."""
        operation = self.document["paths"][path][method.lower()]
        where = f"{method} {path} {answer.status}"
        assert str(answer.status) in operation["responses"], f"{where}: the document does not know this status"
        content = self.follow(operation["responses"][str(answer.status)])["content"]
        kind = answer.headers["Content-Type"].split(";")[0]
        assert kind in content, f"{where}: {kind} is not one of {list(content)}"
        schema = content[kind]["schema"]
        if kind == "application/json":
            self.check(schema, answer.json, where)
        elif kind == "text/event-stream":
            for name, data in answer.events():
                named = {"done": None, "error": "Error", "progress": "Progress", "text": "TextPiece"}.get(name, "")
                if name == "done":
                    named = {"context": "Context", "context.restored": "Restored"}[data["object"]]
                if data != "[DONE]":
                    self.check(self.document["components"]["schemas"][named] if named else schema, data, where)

    def check(self, schema: dict, value, where: str) -> None:
        schema = self.follow(schema)
        for part in schema.get("allOf", []):
            self.check(part, value, where)
        if "oneOf" in schema:
            wrong = []
            for part in schema["oneOf"]:
                try:
                    self.check(part, value, where)
                except AssertionError as error:
                    wrong.append(str(error))
            assert len(schema["oneOf"]) - len(wrong) == 1, f"{where}: {value!r} fits not one of: {wrong}"
        if "const" in schema:
            assert value == schema["const"], f"{where}: {value!r} is not {schema['const']!r}"
        if "enum" in schema:
            assert value in schema["enum"], f"{where}: {value!r} is none of {schema['enum']}"
        kinds = {"object": dict, "array": list, "string": str, "integer": int, "number": (int, float), "boolean": bool,
                 "null": type(None)}
        if "type" in schema:
            names = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
            fits = any(isinstance(value, kinds[n]) and (n == "boolean" or not isinstance(value, bool)) for n in names)
            assert fits, f"{where}: {value!r} is no {' or '.join(names)}"
        if isinstance(value, str) and "pattern" in schema:
            import re
            assert re.search(schema["pattern"], value), f"{where}: {value!r} is not {schema['pattern']}"
        if isinstance(value, dict):
            for name in schema.get("required", []):
                assert name in value, f"{where}: {name} is missing in {list(value)}"
            for name, part in schema.get("properties", {}).items():
                if name in value:
                    self.check(part, value[name], f"{where}: {name}")
            if "properties" in schema:  # what is not documented must not be there
                for name in value:
                    assert name in schema["properties"], f"{where}: {name} is not documented"
        if isinstance(value, list) and "items" in schema:
            for i, one in enumerate(value):
                self.check(schema["items"], one, f"{where}[{i}]")


def run(tests: list, *arguments) -> int:
    """Runs tests in order, says how each went, and how many failed."""
    import traceback
    failed = 0
    for test in tests:
        start = time.monotonic()
        try:
            test(*arguments)
            print(f"ok      {test.__name__} ({time.monotonic() - start:.1f} s)", flush=True)
        except Exception:
            failed += 1
            print(f"FAILED  {test.__name__}", flush=True)
            traceback.print_exc()
    print(f"{len(tests) - failed} of {len(tests)} tests passed")
    return 1 if failed else 0
