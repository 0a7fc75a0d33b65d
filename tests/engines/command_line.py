# SPDX-License-Identifier: Apache-2.0
"""The command line, typed without options, about a start that an engine has really made.

Owns what must be answered; the engines' tests name their variable and how the engine is asked.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any


def check_last_start(engine: Any, variable: str, version: str) -> None:
    """Where the table lies, why it tuned, where the time went, whether all is well there.

    ``engine``: a job that has not started yet. ``version``: the engine and its version, as `ls` has
    them.
    """
    cold = engine.start()
    assert sum(cold.timed) > 0
    environ = {variable: str(engine.root)}

    (row,) = _answer(environ, "ls")["tables"]
    assert Path(row["directory"]).is_relative_to(engine.root)
    assert (row["state"], row["engine"]) == ("complete", version)
    last = _answer(environ, "explain", "--last")
    assert Path(last["receipt"]).is_relative_to(row["directory"])
    assert last["cause"] in ("first", "adopted")
    assert _answer(environ, "report")["report"]["certificate"] == cold.certificate
    findings = _answer(environ, "doctor", "--quick")["findings"]
    (place,) = (each for each in findings if each["what"] == "directory")
    assert place["state"] == "good"
    assert place["words"] == f"{engine.root} ({variable})"

    engine.start()
    assert _answer(environ, "explain", "--last")["cause"] == "warm"
    assert _answer(environ, "stats")["warm"] == 1


def _answer(environ: dict[str, str], *words: str) -> Any:
    """Run a verb without options, but for --json, and return its document."""
    done = subprocess.run(
        [sys.executable, "-m", "warmup_plugin", *words, "--json"],
        env={**os.environ, **environ}, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode in (0, 1), done.stderr
    return json.loads(done.stdout)


def environ_without(variable: str, home: Path, *, has_xdg: bool) -> dict[str, str]:
    """Return an environment in which an engine takes its default root."""
    environ = {name: value for name, value in os.environ.items() if name != variable}
    environ |= {"HOME": str(home), "FLASHINFER_WORKSPACE_BASE": str(home)}
    environ.pop("XDG_CACHE_HOME", None)
    if has_xdg:
        environ["XDG_CACHE_HOME"] = str(home / "xdg")
    return environ


def default_root(ask: str, environ: dict[str, str]) -> str:
    """Return what an engine says of its root itself. ``ask``: Python code that prints it last."""
    done = subprocess.run(
        [sys.executable, "-c", ask], env=environ, capture_output=True, text=True, check=True,
        timeout=120,
    )  # fmt: skip
    return done.stdout.splitlines()[-1]
