# SPDX-License-Identifier: Apache-2.0
"""Starts SGLang's scheduler processes by `sglang_scheduler.py`, and reads what became of them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

SCRIPT = Path(__file__).with_name("sglang_scheduler.py")


def launch(
    job: Any, tp: int, *options: str, script: Path = SCRIPT, **env: str
) -> tuple[list[str], list[Any], str]:
    """Start the schedulers; return what they said, their receipts and the log."""
    out, log = job.root / "out.json", job.root / "log.txt"
    job.root.mkdir(exist_ok=True)
    for path in job.root.glob("out.json*"):
        path.unlink()
    environ = {**os.environ, "SGLANG_CACHE_DIR": str(job.root), **env}
    command = [sys.executable, str(script), str(job.model), str(tp), str(out), *options]
    with log.open("wb") as sink:
        process = subprocess.Popen(
            command, env=environ, stdout=sink, stderr=sink, start_new_session=True
        )
        try:
            process.wait(150)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    text = log.read_text(errors="replace")
    assert process.returncode == 0, text[-4000:]
    receipts = [json.loads(Path(f"{out}.{rank}").read_text()) for rank in range(tp)]
    return json.loads(out.read_text()), receipts, text
