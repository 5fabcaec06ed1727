"""Conditional writes before an S3 server that ignores them: `If-None-Match: *` and `If-Match`, as S3 documents them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

REFUSED = (
    b'<?xml version="1.0" encoding="UTF-8"?><Error><Code>PreconditionFailed</Code>'
    b"<Message>At least one of the pre-conditions you specified did not hold</Message></Error>"
)


@contextmanager
def conditional(upstream: str) -> Iterator[tuple[str, list[str]]]:
    """Serve it; gives the endpoint, and the paths whose writes were refused so far."""
    etags: dict[str, str] = {}
    one_write = threading.Lock()
    refused: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            """Nothing."""

        def _pass_on(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            path = urlsplit(self.path).path
            with one_write:
                there, wanted = etags.get(path), self.headers.get("If-Match")
                if self.command == "PUT" and (
                    (self.headers.get("If-None-Match") == "*" and there is not None)
                    or (wanted is not None and wanted != there)
                ):
                    refused.append(path)
                    self._answer(412, {}, REFUSED)
                    return
                connection = HTTPConnection(urlsplit(upstream).netloc, timeout=20)
                connection.request(self.command, self.path, body, dict(self.headers))
                answer = connection.getresponse()
                data, headers = answer.read(), dict(answer.headers)
                connection.close()
                if self.command == "PUT" and answer.status == 200:
                    etags[path] = headers.get("ETag") or headers["Etag"]
                elif self.command == "DELETE":
                    etags.pop(path, None)
            self._answer(answer.status, headers, data)

        do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _pass_on  # noqa: N815

        def _answer(self, status: int, headers: dict[str, str], data: bytes) -> None:
            self.send_response_only(status)
            length = headers.pop("Content-Length", str(len(data)))
            for name, value in headers.items():
                if name.lower() not in ("connection", "transfer-encoding"):
                    self.send_header(name, value)
            if status != 204:
                self.send_header("Content-Length", length if self.command == "HEAD" else str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", refused
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
