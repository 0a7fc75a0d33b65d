# SPDX-License-Identifier: Apache-2.0
"""The command line, typed without options, about a start that vLLM has really made."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from warmup_plugin.engines.vllm import names

pytestmark = [pytest.mark.engine, pytest.mark.multiprocess]

_ASK = "from vllm import envs; print(envs.VLLM_CACHE_ROOT)"


def answer(environ: dict[str, str], *words: str) -> Any:
    """Run a verb without options, but for --json, and return its document."""
    done = subprocess.run(
        [sys.executable, "-m", "warmup_plugin", *words, "--json"],
        env={**os.environ, **environ}, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode in (0, 1), done.stderr
    return json.loads(done.stdout)


def test_it_answers_about_the_last_start(job: Callable[..., Any]) -> None:
    """Where the table lies, why it tuned, where the time went, whether all is well there."""
    engine = job(tp=2)
    cold = engine.start()
    assert sum(cold.timed) > 0
    environ = {"VLLM_CACHE_ROOT": str(engine.root)}

    (row,) = answer(environ, "ls")["tables"]
    assert Path(row["directory"]).is_relative_to(engine.root)
    assert (row["state"], row["engine"]) == ("complete", f"vllm {names.TESTED[0]}")
    last = answer(environ, "explain", "--last")
    assert Path(last["receipt"]).is_relative_to(row["directory"])
    assert last["cause"] in ("first", "adopted")
    assert answer(environ, "report")["report"]["certificate"] == cold.certificate
    findings = answer(environ, "doctor", "--quick")["findings"]
    (place,) = (each for each in findings if each["what"] == "directory")
    assert place["state"] == "good"
    assert place["words"] == f"{engine.root} (VLLM_CACHE_ROOT)"

    engine.start()
    assert answer(environ, "explain", "--last")["cause"] == "warm"
    assert answer(environ, "stats")["warm"] == 1


@pytest.mark.parametrize("has_xdg", [False, True])
def test_the_default_root_is_the_engines(
    tmp_path: Path, has_xdg: bool  # noqa: FBT001  # both environments
) -> None:  # fmt: skip
    """What vLLM itself says of it, without its variable."""
    environ = {name: value for name, value in os.environ.items() if name != "VLLM_CACHE_ROOT"}
    environ |= {"HOME": str(tmp_path), "FLASHINFER_WORKSPACE_BASE": str(tmp_path)}
    environ.pop("XDG_CACHE_HOME", None)
    if has_xdg:
        environ["XDG_CACHE_HOME"] = str(tmp_path / "xdg")
    done = subprocess.run(
        [sys.executable, "-c", _ASK], env=environ, capture_output=True, text=True, check=True,
        timeout=120,
    )  # fmt: skip
    assert done.stdout.splitlines()[-1] == str(names.default_root(environ))
