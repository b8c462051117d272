"""An HTTP server that says who it is and what it was sent; stands for one with OpenAI's API."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self


class EchoServer:
    """Serves on a free port while it is entered."""

    def __init__(self, name: str) -> None:
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.dumps(
                    {
                        "server": name,
                        "length": _length_of(self),
                        "destination": self.headers.get("x-gateway-destination-endpoint"),
                    }
                ).encode()
                self.send_response(200)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args: Any) -> None:
                """Says nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.address = f"127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _length_of(request: BaseHTTPRequestHandler) -> int:
    """Reads the body, whose length is told or which comes in chunks."""
    if told := request.headers.get("content-length"):
        return len(request.rfile.read(int(told)))
    length = 0
    while size := int(request.rfile.readline().split(b";")[0], 16):
        length += len(request.rfile.read(size))
        request.rfile.readline()
    request.rfile.readline()
    return length
