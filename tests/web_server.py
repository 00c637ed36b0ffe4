"""A local web server that answers as a test wishes, and as much as a download needs like the hub."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar


class Web(BaseHTTPRequestHandler):
    """Serves ``files``; speaks as much of the hub's protocol as a download of one file needs."""

    files: ClassVar[dict[str, tuple[int, bytes]]] = {}
    asked: ClassVar[list[str]] = []

    def _answer(self, body: bool) -> None:
        self.asked.append(self.path)
        code, content = self.files.get(self.path.partition("?")[0], (404, b""))
        self.send_response(code)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", "1" * 40)
        if code == 403:
            self.send_header("X-Error-Code", "GatedRepo")
        self.end_headers()
        if body:
            self.wfile.write(content)

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextmanager
def web(files: dict[str, tuple[int, bytes]]) -> Iterator[str]:
    """The address of a local server with these answers."""
    Web.files, Web.asked = files, []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Web)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
