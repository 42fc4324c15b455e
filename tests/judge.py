#!/usr/bin/env python3
"""A stand-in for a judge on loopback: judge.py MODE LOG; prints its port.

MODE: first (always A: pure position bias), longer (prefers the longer answer), limited (429 with
Retry-After 0 the first time that something is asked), nonsense, broken (no JSON), error (500 always), denied (401),
slow (never answers in time), moody (fails for good after 5 requests), crowd (keeps the second request waiting
until another comes, then judges as longer). Every request is a line of LOG; its last value is how many were
being answered.
"""
import http.server
import json
import sys
import threading
import time

mode, log = sys.argv[1:3]
count = 0
inside = 0
seen = set()
lock = threading.Condition()


class Judge(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        global count, inside
        with lock:
            count += 1
            inside += 1
            number = count
            lock.notify_all()
            if mode == "crowd" and number == 2:
                lock.wait_for(lambda: inside > 1, 20)
        try:
            self.answer(number)
        finally:
            with lock:
                inside -= 1

    def answer(self, number):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with lock, open(log, "a") as f:
            f.write(json.dumps([self.path, self.headers.get("Authorization"), body["model"], inside]) + "\n")
        text = body["messages"][1]["content"]
        a, b = text.split("Answer A: ")[1].split("\n\nWhich answer")[0].split("\n\nAnswer B: ")
        status, verdict = 200, "A"
        if mode in ("longer", "crowd"):
            verdict = "**A**" if len(a) > len(b) else "Answer B" if len(b) > len(a) else "tie."
        elif mode == "limited" and text not in seen:
            status = 429
            seen.add(text)
        elif mode == "nonsense":
            verdict = "As a language model I find both answers charming."
        elif mode == "error" or (mode == "moody" and number > 5):
            status = 500
        elif mode == "denied":
            status = 401
        elif mode == "slow":
            time.sleep(3)
        reply = json.dumps({"choices": [{"message": {"role": "assistant", "content": verdict}}]})
        if mode == "broken":
            reply = "<html>not what you think</html>"
        try:
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            if status in (429, 500):
                self.send_header("Retry-After", "0")
            self.end_headers()
            self.wfile.write(reply.encode())
        except BrokenPipeError:
            pass

    def log_message(self, *args):
        pass


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Judge)
print(server.server_address[1], flush=True)
server.serve_forever()
