# SPDX-License-Identifier: Apache-2.0
"""A server's health page is asked directly, and a page that cannot be asked does not answer."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from warmup_plugin.runtime.health_page import answers

LIMIT_S = 10.0


class Page(BaseHTTPRequestHandler):
    """Answers with the status that its path names."""

    def do_GET(self) -> None:
        if self.path == "/no-http":
            self.wfile.write(b"220 mail.example ready\r\n")
            return
        self.send_response(int(self.path[1:]))
        self.end_headers()

    def log_message(self, *_args: object) -> None:
        """Keep it out of the tests' output."""


@pytest.fixture
def server() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), Page) as page:
        thread = threading.Thread(target=page.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{page.server_port}"
        page.shutdown()


@pytest.mark.parametrize(("status", "is_ready"), [(200, True), (204, False), (503, False)])
def test_200_alone_is_ready(server: str, status: int, *, is_ready: bool) -> None:
    assert answers(f"{server}/{status}", LIMIT_S) == is_ready


def test_a_server_of_another_protocol_is_not_ready(server: str) -> None:
    assert not answers(f"{server}/no-http", LIMIT_S)


def test_a_proxy_of_the_environment_is_not_asked(
    server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    assert answers(f"{server}/200", LIMIT_S)


@pytest.mark.parametrize("page", ["http://127.0.0.1:9/health", "no address"])
def test_what_cannot_be_asked_is_not_ready(page: str) -> None:
    assert not answers(page, LIMIT_S)
