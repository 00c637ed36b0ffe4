"""A server on this machine that speaks chat completions, and misbehaves on request."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answerer = Callable[[dict[str, Any]], str]


@dataclass
class Fault:
    """One answer that is no plain success."""

    status: int = 200
    body: bytes | None = None  # null: the error below
    error: dict[str, Any] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)
    sleep_s: float = 0.0
    cut: int | None = None  # bytes of the body that are sent before the connection closes


def completion(text: str | None, model: str = "test-model-2026-01-01", **message: Any) -> dict[str, Any]:
    """A whole chat completion."""
    finish = message.pop("finish_reason", "stop")
    return {
        "id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": model,
        "choices": [
            {"index": 0, "finish_reason": finish, "message": {"role": "assistant", "content": text, **message}}
        ],
        "usage": {"prompt_tokens": 100, "completion_tokens": 1, "total_tokens": 101},
    }  # fmt: skip


class ChatServer:
    """Answers with ``answer(request)`` after the ``faults``, one for each request, are used up."""

    def __init__(self, answer: Answerer) -> None:
        self.answer = answer
        self.faults: list[Fault] = []
        self.judge: Callable[[dict[str, Any]], Fault | None] = lambda request: None  # a fault that a request deserves
        self.requests: list[dict[str, Any]] = []
        self.keys: list[str] = []
        self.times: list[float] = []
        self.busiest = 0
        self._busy = 0
        self._lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                outer.serve(self)

            def log_message(self, *_: Any) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}/v1"

    def serve(self, handler: BaseHTTPRequestHandler) -> None:
        request = json.loads(handler.rfile.read(int(handler.headers["content-length"])))
        with self._lock:
            self.requests.append(request)
            self.keys.append(handler.headers.get("authorization", ""))
            self.times.append(time.monotonic())
            self._busy += 1
            self.busiest = max(self.busiest, self._busy)
            fault = self.faults.pop(0) if self.faults else self.judge(request)
        try:
            self._answer(handler, request, fault)
        except BrokenPipeError:
            pass  # whoever asked has gone
        finally:
            with self._lock:
                self._busy -= 1

    def _answer(self, handler: BaseHTTPRequestHandler, request: dict[str, Any], fault: Fault | None) -> None:
        fault = fault or Fault(body=json.dumps(completion(self.answer(request))).encode())
        time.sleep(fault.sleep_s)
        body = fault.body if fault.body is not None else json.dumps({"error": fault.error}).encode()
        handler.send_response(fault.status)
        handler.send_header("content-type", "application/json")
        handler.send_header("content-length", str(len(body)))
        for name, value in fault.headers.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(body if fault.cut is None else body[: fault.cut])

    @contextmanager
    def running(self) -> Iterator[ChatServer]:
        thread = threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._http.shutdown()
            self._http.server_close()
            thread.join()
