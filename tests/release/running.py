# SPDX-License-Identifier: Apache-2.0
"""Runs a script of this folder on another FlashInfer than the installed one.

Owns the child process and its import path. A script takes a root and prints JSON as its last line.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

#: Less than a test may take, so that a script that hangs is told of by its own words.
LIMIT_S = 110.0


def run_on(release: Path, script: str, root: Path, *, python: Path | None = None) -> Any:
    """Return what the script has printed. ``release``: the folder that has that FlashInfer.

    ``python``: another environment's interpreter, which finds all that this one does.
    """
    path = os.pathsep.join([str(release), *filter(None, sys.path)])
    done = subprocess.run(
        [str(python or sys.executable), str(Path(__file__).with_name(script)), str(root)],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True, text=True, check=False, timeout=LIMIT_S,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])
