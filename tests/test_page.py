#!/usr/bin/env python3
"""Tests the page of `icae serve` in a real headless Chromium, against a real server with the bundled model.

    test_page.py PATH/TO/icae [--pictures FOLDER]

Exit status 77 (the test counts as skipped) if there is no Chromium. Every test also demands that the page asked no
other host for anything, that its console stayed empty (no exception, no violation of its security policy), and that
nothing makes it wider than the window.
"""

from __future__ import annotations

import argparse
import base64
import json
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

import browser
from advise import advise

HERE = Path(__file__).resolve().parent
TEXT = (HERE.parent / "demo/article.txt").read_text()
RESTORED = "!$('restore').hidden && / in |before/.test($('verdict').textContent)"
SHOWN = "location.hash.startsWith('#ctx_') && !$('context').hidden"


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Server:
    """`icae serve` on a port of its own, which it keeps when it is started again."""

    def __init__(self, program: str, folder: Path, *options: str):
        self.port, self.folder = free_port(), folder
        self.base = f"http://127.0.0.1:{self.port}"
        self.command = [program, "serve", "--port", str(self.port), "--store", str(folder / "store.db"), *options]
        self.start()

    def start(self) -> None:
        with open(self.folder / "log", "ab") as log:
            self.process = subprocess.Popen(self.command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        for _ in range(600):
            try:
                urllib.request.urlopen(self.base + "/healthz", timeout=5).close()
                return
            except OSError:
                if self.process.poll() is not None:
                    break
                time.sleep(0.1)
        raise AssertionError(f"the server does not start: {(self.folder / 'log').read_text()[-2000:]}")

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise AssertionError("the server does not end") from None

    def ask(self, path: str, body: str | None = None) -> dict:
        kind = {"Content-Type": "text/plain"} if body is not None else {}
        request = urllib.request.Request(self.base + path, body.encode() if body is not None else None, kind)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)


def expect(what: str, value, wanted) -> None:
    assert value == wanted, f"{what}: {value!r:.500}, expected {wanted!r:.500}"


def text_of(b: browser.Browser, name: str) -> str:
    return b.run(f"$('{name}').textContent")


def compress(b: browser.Browser, text: str, exact: bool = False) -> str:
    """Compresses by the page and returns the id of the context."""
    b.run("location.hash = '#new'")
    b.wait("!$('new').hidden")
    b.run(f"$('exact').checked = {str(exact).lower()}; $('text').value = ''; $('text').focus()")
    b.write_text(text)
    b.run("$('go').click()")
    b.wait(SHOWN + " && $('working').hidden")
    return b.run("location.hash.slice(1)")


def refuse(b: browser.Browser, path: str, status: int, message: str, wait: int | None = None) -> None:
    """The next request whose address has this path is answered with an error in the server's form."""
    body = json.dumps({"error": {"message": message, "type": "server_error", "param": None, "code": None}})
    headers = [{"name": "Content-Type", "value": "application/json"}]
    if wait:
        headers.append({"name": "Retry-After", "value": str(wait)})
    b.answer_next(f"*{path}*", responseCode=status, responseHeaders=headers, body=base64.b64encode(body.encode()).decode())


# ---- the tests: each gets a page that was just loaded ------------------------------------------------


def test_compress(b: browser.Browser, server: Server) -> None:
    expect("heading", text_of(b, "new-title"), "Compress a text")
    b.wait("$('model').textContent === " + json.dumps(server.ask("/v1/models")["data"][0]["id"]))
    id = compress(b, TEXT)
    context, report = server.ask(f"/v1/contexts/{id}"), server.ask(f"/v1/contexts/{id}/fidelity")
    expect("bytes of the text", context["text_bytes"], len(TEXT.encode()))
    expect("figures", b.run("$('figures').querySelector('dd').firstChild.data"),
           f"{context['tokens']:,} → {context['slots']:,}")
    expect("what was made is timed", b.run("[...$('figures').querySelectorAll('dt')].map(t => t.textContent)"),
           ["Tokens → slots", "Stored", "Fidelity", "Time"])
    expect("bars", b.run("$('chart').children.length"), len(report["segments"]))
    expect("rows", b.run("$('rows').children.length"), len(report["segments"]))
    doubtful = report["doubtful"]
    assert text_of(b, "doubtful").startswith(f"{len(doubtful):,} doubtful token" if doubtful else "No token"), "doubtful"
    expect("the list shows it as the current one", b.run("document.querySelector('#list a[aria-current]').hash"), f"#{id}")
    expect("focus", b.run("document.activeElement.id"), "name")
    b.run("history.back()")                                    # the browser's own buttons work
    b.wait("!$('new').hidden")


def test_markup_is_text(b: browser.Browser, server: Server) -> None:
    compress(b, "<img src=x onerror=alert(1)><b>bold</b> " + TEXT)
    expect("name", text_of(b, "name")[:10], "<img src=x")
    b.run("$('restore').click()")
    b.wait(RESTORED)
    expect("no element came of it", b.run("document.querySelectorAll('main img, main b:not(label b), #list img').length"), 0)


def test_restore(b: browser.Browser, server: Server) -> None:
    id = compress(b, TEXT)
    b.run("$('restore').click()")
    b.wait(RESTORED)
    with urllib.request.urlopen(f"{server.base}/v1/contexts/{id}/text", timeout=60) as answer:
        restored = answer.read().decode()
    shown = b.run("[...$('restored').childNodes].filter(n => n.nodeName !== 'DEL').map(n => n.textContent).join('')")
    expect("the words of the restored text", shown.split(), restored.split())
    kept = b.run("[...$('restored').childNodes].filter(n => n.nodeName !== 'INS').map(n => n.textContent).join('')")
    expect("the words of the original", kept.split(), TEXT.split())
    different = restored.split() != TEXT.split()
    expect("differences", b.run("$('restored').querySelectorAll('ins, del').length > 0"), different)
    expect("verdict", text_of(b, "verdict").startswith("Identical"), restored == TEXT)
    if different:
        b.run("$('next').click()")
        expect("the first difference", b.run("document.querySelector('.here') === $('restored').querySelector('ins, del')"), True)


def test_restore_exactly(b: browser.Browser, server: Server) -> None:
    id = compress(b, TEXT, exact=True)
    b.run("$('restore').click()")
    b.wait(RESTORED)
    assert text_of(b, "verdict").startswith("Identical to the original, byte for byte."), text_of(b, "verdict")
    b.open(f"{server.base}/?again#{id}")                        # a tab that never saw the original
    b.wait(SHOWN)
    b.run("$('restore').click()")
    b.wait(RESTORED)
    assert text_of(b, "verdict").startswith("Verified"), text_of(b, "verdict")
    expect("it can be given", b.run("$('original').hidden"), False)
    b.choose("#compare", str(HERE.parent / "demo/article.txt"))
    b.wait("$('verdict').textContent.startsWith('Identical')")


def test_stop(b: browser.Browser, server: Server) -> None:
    compress(b, TEXT * 12)
    b.run("new MutationObserver((_, me) => { me.disconnect(); $('halt').click(); })"
          ".observe($('restored'), { childList: true, subtree: true, characterData: true }); $('restore').click()")
    b.wait(RESTORED)
    assert text_of(b, "verdict").endswith("Stopped before the end."), text_of(b, "verdict")


def test_differences(b: browser.Browser, server: Server) -> None:
    """The comparison alone: whatever is fed, in whatever pieces, both texts can be read off again."""
    script = """(() => {
      let seed = 1;
      const random = n => (seed = (seed * 48271) % 2147483647) % n, made = n => Array.from({ length: n }, () => "w" + random(50)).join(" ");
      for (let round = 0; round < 40; round++) {
        const a = made(1 + random(1500)).split(" "), b = [];
        for (const word of a) { const what = random(20); if (what === 0) continue; b.push(what === 1 ? "new" + random(9) : word); if (what === 2) b.push("more"); }
        if (round % 4 === 3) b.splice(random(b.length), 400, ...made(500).split(" "));
        const text = b.join(" "), place = el("div"), it = new Comparison(a.join(" "), place);
        for (let i = 0; i < text.length;) { const n = 1 + random(700); it.feed(text.slice(i, i + n)); i += n; }
        it.finish(true);
        const read = name => [...place.childNodes].filter(n => n.nodeName !== name).map(n => n.textContent).join(" ").trim().split(/\\s+/).join(" ");
        if (read("DEL") !== text.trim() || read("INS") !== a.join(" ")) return `round ${round}`;
        if (round % 4 < 3 && it.count.same < .8 * a.length) return `round ${round}: only ${it.count.same} of ${a.length} found`;
      }
      return "good";
    })()"""
    expect("random texts", b.run(script), "good")


def test_ask(b: browser.Browser, server: Server) -> None:
    id = compress(b, TEXT)
    b.run("$('question').focus()")
    for question in ("What is this about?", "And who?"):
        b.write_text(question)
        b.key("Enter")
        b.wait("!$('send').hidden && $('talk').lastElementChild.querySelector('small')")
        assert "token" in b.run("$('talk').lastElementChild.querySelector('small').textContent")
    expect("both questions and answers", b.run("$('talk').children.length"), 4)
    expect("focus stays", b.run("document.activeElement.id"), "question")
    body = {"messages": [{"role": "user", "content": "What is this about?"}], "icae": {"contexts": [id]}, "temperature": 0}
    request = urllib.request.Request(server.base + "/v1/chat/completions", json.dumps(body).encode(),
                                     {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        wanted = json.load(answer)["choices"][0]["message"]["content"]
    expect("the answer", b.run("talks.get(current.id)[1].content"), wanted)
    b.run("$('forget').click()")
    expect("cleared", b.run("talks.has(current.id)"), False)
    b.run("$('expand').click(); $('question').focus()")
    b.write_text("And who?")
    b.key("Enter")
    b.wait("!$('send').hidden && $('talk').lastElementChild.querySelector('small')")
    assert "read as text" in b.run("$('talk').lastElementChild.querySelector('small').textContent")
    b.run("$('expand').click()")


def test_list(b: browser.Browser, server: Server) -> None:
    for i in range(25):
        server.ask(f"/v1/contexts?check=false&name=number+{i}", f"Text number {i}.")
    b.open(f"{server.base}/?fresh")
    b.wait("$('list').childElementCount === 20")
    b.run("$('more').click()")
    b.wait("$('list').childElementCount > 20 && $('more').hidden")
    expect("focus is on the first new one", b.run("document.activeElement === $('list').children[20].firstChild"), True)
    expect("no context twice", b.run("new Set([...$('list').querySelectorAll('a')].map(a => a.hash)).size"),
           b.run("$('list').childElementCount"))
    b.run("$('list').querySelector('a').click()")
    b.wait(SHOWN)
    expect("fidelity was not measured", b.run("$('kept').hidden"), True)


def test_delete_and_upload(b: browser.Browser, server: Server) -> None:
    id = compress(b, "Here today. " + TEXT)
    b.run("$('download').click()")
    folder = Path(b.folder)
    for _ in range(200):
        files = list(folder.glob("*.icae"))
        if files:
            break
        b.wait("true")
        time.sleep(0.05)
    assert files and files[0].stat().st_size > 1000, "the download"
    b.run("$('delete').click()")
    expect("asked first", b.run("$('sure').open"), True)
    expect("the safe button has the focus", b.run("document.activeElement.textContent"), "Keep it")
    b.key("Escape")
    b.wait("!$('sure').open")
    server.ask(f"/v1/contexts/{id}")                            # still there
    b.run("$('delete').click(); $('sure').querySelector('.danger').click()")
    b.wait("!$('new').hidden && ![...$('list').querySelectorAll('a')].some(a => a.hash === '#" + id + "')")
    try:
        server.ask(f"/v1/contexts/{id}")
        raise AssertionError("the context is still there")
    except urllib.error.HTTPError as error:
        expect("status", error.code, 404)
    b.choose("#upload", str(files[0]))
    b.wait(SHOWN + " && $('working').hidden")
    expect("the same text", b.run("current.text_bytes"), len(("Here today. " + TEXT).encode()))
    expect("fidelity came with the file", b.run("$('kept').hidden"), False)
    files[0].unlink()


def test_keyboard(b: browser.Browser, server: Server) -> None:
    """Everything by keys alone: each stop has a name and a visible ring."""
    def walk(target: str, limit: int = 60) -> None:
        for _ in range(limit):
            b.key("Tab")
            stop = b.run("(e => ({ id: e.id, name: (e.getAttribute('aria-label') || e.labels?.[0]?.textContent || e.textContent || '').trim(),"
                         " ring: ((e.closest('.file') ?? e).matches(':focus-visible, .file:focus-within') && getComputedStyle(e.closest('.file') ?? e).outlineStyle) }))(document.activeElement)")
            assert stop["name"], f"a stop without a name: {stop}"
            assert stop["ring"] == "solid", f"a stop without a ring: {stop}"
            if stop["id"] == target:
                return
        raise AssertionError(f"Tab never reaches {target}")
    b.key("Tab")
    expect("the first stop", b.run("document.activeElement.className"), "skip")
    b.key("Enter")
    expect("the content", b.run("document.activeElement.id"), "main")
    walk("text")
    b.write_text(TEXT)
    walk("go")
    b.key("Enter")
    b.wait(SHOWN + " && $('working').hidden")
    walk("question")
    b.write_text("What is this?")
    b.key("Enter")
    b.wait("!$('send').hidden && $('talk').lastElementChild.querySelector('small')")
    walk("restore")
    b.key(" ")
    b.wait(RESTORED)
    b.run("$('delete').focus()")
    b.key("Enter")
    b.key("Tab")
    b.key("Enter")
    b.wait("!$('sure').open && !$('new').hidden")
    b.wait("document.activeElement.id === 'new-title'")


def test_errors(b: browser.Browser, server: Server) -> None:
    said = "$('notice').hidden ? '' : $('notice').textContent"
    for status, sentence, wait in ((409, "made by another model", None), (413, "larger than the server takes", None),
                                   (429, "Try again in 7 seconds.", 7), (503, "not available", 7),
                                   (507, "The store is full: nothing was kept.", None), (500, "The server failed.", None)):
        b.run("location.hash = '#new'; $('text').value = 'A text.'")
        refuse(b, "/v1/contexts?", status, f"the server's own words {status}", wait)
        b.run("$('go').click()")
        b.wait("!$('notice').hidden && $('working').hidden")
        told = b.run(said)
        assert sentence in told and f"own words {status}" in told, f"{status}: {told}"
        expect("the text is not lost", b.run("$('text').value"), "A text.")
    b.run("$('again').click()")                                 # the obstacle is gone: the same button goes on
    b.wait(SHOWN)
    b.run("location.hash = '#ctx_0123456789abcdef0123456789abcdef'")
    b.wait("!$('notice').hidden")
    assert "This context is gone" in b.run(said), b.run(said)
    b.complaints = [c for c in b.complaints if "status of 4" not in c and "status of 5" not in c]


def test_server_gone(b: browser.Browser, server: Server) -> None:
    id = compress(b, TEXT)
    server.stop()
    b.run("$('question').value = 'Are you there?'; $('send').click()")
    b.wait("!$('notice').hidden && !$('send').hidden")
    assert "The server does not answer." in text_of(b, "notice"), text_of(b, "notice")
    expect("the question is not lost", b.run("$('question').value"), "Are you there?")
    expect("lamp", b.run("document.querySelector('.lamp').className"), "lamp down")
    server.start()
    b.wait("document.querySelector('.lamp').className === 'lamp up' && $('notice').hidden")
    b.run("$('send').click()")
    b.wait("$('talk').lastElementChild.querySelector('small')")
    expect("the context is still there", b.run("current.id"), id)
    b.complaints = [c for c in b.complaints if "ERR_CONNECTION" not in c and "ERR_EMPTY" not in c]


def test_narrow(b: browser.Browser, server: Server) -> None:
    compress(b, TEXT * 5)
    for width in (320, 390, 768, 1280):
        b.show(width, 800)
        expect(f"nothing sticks out at {width}", b.run("document.documentElement.scrollWidth"), width)
    b.show(1280, 900)


def test_token(b: browser.Browser, server: Server) -> None:
    """Against a server that asks for one, and whose adapter recommends expanding."""
    b.wait("$('token').open")
    b.write_text("wrong")
    b.key("Enter")
    b.wait("$('token').open && $('token-why').textContent.includes('did not accept')")
    b.write_text("a-good-token-0123456789")
    b.key("Enter")
    b.wait("!$('token').open && $('model').textContent.length > 0 && !$('none').hidden")
    compress(b, TEXT)
    expect("what the adapter recommends", b.run("[$('expand').checked, segments]"), [True, 2])
    b.complaints = [c for c in b.complaints if "status of 401" not in c]


def pictures(b: browser.Browser, server: Server, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    id = compress(b, TEXT * 8)
    b.run("$('question').value = 'What is this about?'; $('send').click()")
    b.wait("!$('send').hidden && $('talk').lastElementChild.querySelector('small')")
    b.run("$('restore').click()")
    b.wait(RESTORED)
    for where in (id, "new"):
        b.run(f"if (location.hash !== '#{where}') location.hash = '#{where}'")
        b.wait("$('context').hidden" if where == "new" else SHOWN)
        for name, width, height in (("wide", 1280, 900), ("phone", 390, 844)):
            for dark in (False, True):
                b.show(width, height, dark)
                b.picture(str(folder / f"{where[:3]}-{name}-{'dark' if dark else 'light'}.png"))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("icae")
    parser.add_argument("--pictures", type=Path, help="also write pictures of the page here")
    parser.add_argument("--only", help="run only the tests whose names contain this")
    options = parser.parse_args()
    program = browser.find()
    if not program:
        print("skipped: there is no Chromium here (Debian: apt-get install chromium)")
        return 77
    tests = [(name[5:], test) for name, test in globals().items() if name.startswith("test_")]
    failed = 0
    with tempfile.TemporaryDirectory(prefix="icae-page-") as work:
        tokens = Path(work) / "tokens"
        tokens.write_text("tester a-good-token-0123456789\n")
        tokens.chmod(0o600)
        advised = Path(work) / "advised.safetensors"
        advise(str(advised), expand="2")
        for folder, chosen, flags in (("open", [t for t in tests if t[0] != "token"], []),
                                      ("closed", [t for t in tests if t[0] == "token"], ["--tokens", str(tokens), "--adapter", str(advised)])):
            (Path(work) / folder).mkdir()
            chosen = [t for t in chosen if not options.only or options.only in t[0]]
            if not chosen and not (options.pictures and folder == "open"):
                continue
            server, b = Server(options.icae, Path(work) / folder, *flags), browser.Browser(program)
            try:
                b.show(1280, 900)
                for name, test in chosen:
                    b.complaints, b.addresses = [], []
                    start = time.monotonic()
                    try:
                        b.open(f"{server.base}/?{name}")
                        test(b, server)
                        expect("complaints in the console", b.complaints, [])
                        expect("sticks out", b.run("document.documentElement.scrollWidth > innerWidth"), False)
                        strangers = [a for a in b.addresses if not a.startswith((server.base, "data:", "blob:"))]
                        expect("requests to others", strangers, [])
                        print(f"ok      {name} ({time.monotonic() - start:.1f} s)", flush=True)
                    except (AssertionError, RuntimeError, OSError, ValueError) as error:
                        failed += 1
                        print(f"FAILED  {name}: {error}\n        console: {b.complaints}", flush=True)
                if options.pictures and folder == "open":
                    b.open(f"{server.base}/?pictures")
                    pictures(b, server, options.pictures)
            finally:
                b.close()
                if server.process.poll() is None:
                    server.stop()
        if failed:
            for log in Path(work).glob("*/log"):
                print(f"---- {log.parent.name}\n{log.read_text()[-3000:]}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
