# SPDX-License-Identifier: Apache-2.0
"""A server for `tune`: it warms up as `examples/runner_on_ranks.py` does, then listens on a port.

    python tuned_here.py PORT FILE [RANK]

FILE gets the process id of each rank, a line each. The RANK named ends by itself after it has
warmed up, with status 7.
"""

from __future__ import annotations

import os
import runpy
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

EXAMPLE = Path(__file__).parents[2] / "examples" / "runner_on_ranks.py"


class Health(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_args: Any) -> None:
        """Say nothing."""


def main(port: str, pids: str, ends: str = "") -> None:
    with Path(pids).open("a") as file:
        file.write(f"{os.getpid()}\n")
    runpy.run_path(str(EXAMPLE))
    rank = int(os.environ["RANK"])
    if ends == str(rank):
        sys.exit(7)
    # Those of the other ranks are asked by nobody.
    ThreadingHTTPServer(("127.0.0.1", int(port) + rank), Health).serve_forever()


if __name__ == "__main__":
    main(*sys.argv[1:])
