"""A server under test on loopback, and clients of it: HTTP/1.1 by asyncio, just enough of it to measure.

Owns the server's process and its temporary folder. Knows nothing of what is measured.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Response:
    status: int
    headers: dict[str, str]
    body: bytes = b""
    times: list[float] = field(default_factory=list)        # when each event of a stream arrived
    events: list[dict] = field(default_factory=list)

    def json(self) -> dict:
        return json.loads(self.body)


class Client:
    """One connection, kept as long as the server keeps it. A lost response is an exception."""

    def __init__(self, port: int):
        self.port, self.reader, self.writer = port, None, None

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        if self.writer:
            self.writer.close()
        self.reader = self.writer = None

    async def _pieces(self, headers: dict[str, str]) -> AsyncIterator[bytes]:
        if headers.get("transfer-encoding") == "chunked":
            while size := int(await self.reader.readline(), 16):
                yield (await self.reader.readexactly(size + 2))[:-2]
            await self.reader.readline()
        elif "content-length" in headers:
            yield await self.reader.readexactly(int(headers["content-length"]))
        else:
            while piece := await self.reader.read(1 << 16):
                yield piece

    async def request(self, method: str, path: str, body: dict | str | bytes | None = None,
                      accept: str = "application/json") -> Response:
        """Sends and reads to the end. A server may close a connection that idled: then once more on a new one."""
        fresh = self.writer is None
        if fresh:
            self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self.port)
        kind = "application/json" if isinstance(body, dict) else "text/plain"
        data = json.dumps(body).encode() if isinstance(body, dict) else (body or b"")
        data = data.encode() if isinstance(data, str) else data
        head = f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: {accept}\r\n"
        if body is not None:
            head += f"Content-Type: {kind}\r\nContent-Length: {len(data)}\r\n"
        try:
            self.writer.write(head.encode() + b"\r\n" + data)
            first = await self.reader.readline()
            if not first:
                raise ConnectionError("closed without a response")
        except ConnectionError:
            self.close()
            if fresh:
                raise
            return await self.request(method, path, body, accept)
        response = Response(int(first.split()[1]), {})
        while line := (await self.reader.readline()).strip():
            name, value = line.decode().split(":", 1)
            response.headers[name.lower()] = value.strip()
        rest, stream = b"", "event-stream" in response.headers.get("content-type", "")
        async for piece in self._pieces(response.headers):
            if not stream:
                response.body += piece
                continue
            *lines, rest = (rest + piece).split(b"\n")
            now = time.perf_counter()
            for event in (line[5:].strip() for line in lines if line.startswith(b"data:")):
                if event == b"[DONE]":
                    continue
                response.events.append(json.loads(event))
                response.times.append(now)
        if response.headers.get("connection", "").lower() == "close" or "content-length" not in response.headers \
                and response.headers.get("transfer-encoding") != "chunked":
            self.close()
        return response


class Server:
    """A process that serves on a port of loopback; {port} and {folder} in its command are filled in."""

    def __init__(self, command: list[str], environment: dict[str, str] | None = None, folder: Path | None = None):
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            self.port = s.getsockname()[1]
        self.owned = folder is None
        self.folder = folder or Path(tempfile.mkdtemp(prefix="icae-bench-"))
        self.log = open(self.folder / "log", "ab")
        self.process = subprocess.Popen([a.format(port=self.port, folder=self.folder) for a in command], env=environment,
                                        stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log)

    def __enter__(self) -> Server:
        for _ in range(1200):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{self.port}/v1/models", timeout=5).close()
                return self
            except OSError:
                if self.process.poll() is not None:
                    break
                time.sleep(0.05)
        self.__exit__()
        raise SystemExit(f"{self.process.args[0]} does not serve: " + self.said)

    def __exit__(self, *_) -> None:
        self.process.terminate()
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.log.close()
        self.said = (self.folder / "log").read_text(errors="replace")[-2000:]
        if self.owned:
            shutil.rmtree(self.folder, ignore_errors=True)

    def resident(self) -> float:
        """Megabytes of its memory that are its own: not of mapped files."""
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon:")) / 1000
