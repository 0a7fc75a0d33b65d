# SPDX-License-Identifier: Apache-2.0
"""A server in the shape of the engines': it warms up, does other things, and only then listens.

    python toy_server.py ROOT MODE RANKS PORT PORT_OF_SLOW_HEALTH FILE

The warm-up is the embedded engine's, on real ranks; the other things stand for the capture of
graphs. The second port answers `/health` as SGLang does, which takes more than a second. FILE gets
the moments, on the monotonic clock: warm-up begun, warm-up over, listening.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
import zlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from warmup_plugin.engines.embedded import EngineConfig, launch

CAPTURE_S = float(os.environ.get("TOY_CAPTURE_S", "4"))
SLOW_HEALTH_S = 1.05
TACTIC_S = 0.002


def slow_timing(rank: int) -> Any:
    """Return a clock for `EngineConfig.timing`: each call of a tactic takes real time."""
    del rank

    def milliseconds(_op: str, _runner: str, batch: int, tactic: Any) -> float:
        time.sleep(TACTIC_S)
        return 1.0 + zlib.crc32(f"{batch} {tactic}".encode()) % 7 / 10

    return milliseconds


def handler(health_s: float) -> type[BaseHTTPRequestHandler]:
    """Return what answers `/health` after so long, and 404 anything else."""

    class Health(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            time.sleep(health_s)
            self.send_response(200 if self.path == "/health" else 404)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_args: Any) -> None:
            """Keep the test's output to itself."""

    return Health


def main(root: str, mode: str, ranks: str, *rest: str) -> None:
    """Warm up, capture, listen."""
    *ports, moments = rest
    told = {"begun": time.monotonic()}
    launch(
        EngineConfig(tp=int(ranks), timing=f"{__file__}:slow_timing"), root=Path(root),
        env={"WARMUP_PLUGIN_MODE": mode}, timeout_s=90.0,
    )  # fmt: skip
    told["over"] = time.monotonic()
    time.sleep(CAPTURE_S)
    told["listening"] = time.monotonic()
    Path(moments).write_text(json.dumps(told))
    for port, health_s in zip(ports, (0.0, SLOW_HEALTH_S), strict=False):
        server = ThreadingHTTPServer(("127.0.0.1", int(port)), handler(health_s))
        threading.Thread(target=server.serve_forever, daemon=True).start()
    threading.Event().wait()


if __name__ == "__main__":
    main(*sys.argv[1:])
