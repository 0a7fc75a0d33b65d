# SPDX-License-Identifier: Apache-2.0
"""A stand-in for an S3 server that keeps a list of its requests."""

from __future__ import annotations

import http.server
from typing import Any, ClassVar


class CountingServer(http.server.BaseHTTPRequestHandler):
    """As much of S3 as one host's publication and reads need; keeps a list of the requests."""

    objects: ClassVar[dict[str, bytes]] = {}
    asked: ClassVar[list[str]] = []
    #: Every request is denied.
    refuses: ClassVar[bool] = False

    def do_GET(self) -> None:
        """Return an object, or 404."""
        data = self.objects.get(self.path)
        self._answer("GET", 404 if data is None else 200, data or b"")

    def do_PUT(self) -> None:
        """Keep one."""
        self.objects[self.path] = self.rfile.read(int(self.headers["Content-Length"]))
        self._answer("PUT", 200, b"")

    def _answer(self, verb: str, status: int, data: bytes) -> None:
        self.asked.append(f"{verb} {'/'.join(self.path.split('/')[3:5])}")
        self.send_response(403 if self.refuses else status)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("ETag", '"e"')
        self.send_header("Last-Modified", "Sun, 29 Nov 2026 20:00:00 GMT")
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_arguments: Any) -> None:
        """Say nothing."""
