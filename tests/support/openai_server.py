"""Somebody else's OpenAI-compatible server: streams the chunks it is told to, over HTTP/1.1."""

import json
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

KEY = "sk-foreign"


@dataclass
class ForeignServer:
    """What it answers, and what it was asked. Without `pieces` each answer is one word a token."""

    num_pieces: int = 4
    tokens_per_piece: int = 1
    pause_s: float = 0.0
    with_usage: bool = True
    models: Sequence[str] = ("some-model", "other-model")
    fail_every: int = 0  # each so many-th request gets a 503
    break_off: bool = False  # no end after the pieces
    garbage: bytes = b""  # an event to send instead
    bodies: list[dict[str, Any]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    most_at_once: int = 0

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._at_once = 0
        foreign = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                if self._is_known():
                    self._answer(200, {"data": [{"id": name} for name in foreign.models]})

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                if not self._is_known():
                    return
                with foreign._lock:
                    foreign.bodies.append(body)
                    foreign.paths.append(self.path)
                    number = len(foreign.bodies)
                    foreign._at_once += 1
                    foreign.most_at_once = max(foreign.most_at_once, foreign._at_once)
                if foreign.fail_every and number % foreign.fail_every == 0:
                    self._answer(503, {"error": {"message": "too busy"}})
                else:
                    self._stream(chat=self.path.endswith("chat/completions"))
                with foreign._lock:
                    foreign._at_once -= 1

            def _is_known(self) -> bool:
                known = self.headers.get("Authorization") == f"Bearer {KEY}"
                if not known:
                    self._answer(401, {"error": {"message": "wrong key"}})
                return known

            def _answer(self, status: int, answer: object) -> None:
                body = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def _stream(self, *, chat: bool) -> None:
                self.send_response(200)
                self.send_header("Transfer-Encoding", "chunked")
                self.end_headers()
                for event in foreign._events(chat):
                    self.wfile.write(b"%x\r\n%b\r\n" % (len(event), event))
                    time.sleep(foreign.pause_s)
                if foreign.break_off:
                    self.close_connection = True
                else:
                    self.wfile.write(b"0\r\n\r\n")

            def log_message(self, format: str, *args: object) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def _events(self, chat: bool) -> list[bytes]:
        if self.garbage:
            return [b"data: " + self.garbage + b"\n\n"]
        chunks: list[dict[str, Any]] = []
        for number in range(self.num_pieces):
            piece = {"delta": {"content": f"w{number} "}} if chat else {"text": f"w{number} "}
            last = number == self.num_pieces - 1 and not self.break_off
            chunks.append({"choices": [{**piece, "finish_reason": "length" if last else None}]})
        events = [b": a comment\n\n", *(b"data: " + json.dumps(chunk).encode() + b"\n\n" for chunk in chunks)]
        if self.break_off:
            return events
        if self.with_usage:
            usage = {"prompt_tokens": 100, "completion_tokens": self.num_pieces * self.tokens_per_piece}
            events.append(b"data: " + json.dumps({"choices": [], "usage": usage}).encode() + b"\n\n")
        return [*events, b"data: [DONE]\n\n"]
