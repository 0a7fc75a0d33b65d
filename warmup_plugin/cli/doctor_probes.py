# SPDX-License-Identifier: Apache-2.0
"""What `doctor` tries in child processes: FlashInfer's probe, and whether the hook is live.

Owns these children: each is bounded in time, and what it prints last is its answer. Nothing of
torch, FlashInfer or an engine is imported here.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any, Final

from warmup_plugin.cli.doctor_checks import Finding

_PATIENCE_S: Final = 180.0

_PROBE: Final = """
import json
from warmup_plugin.tuner import compat
found = compat.probe()
print(json.dumps([found.version, found.lack, found.keys_tell_options_apart]))
"""
_HOOK: Final = """
import json
from vllm.plugins import load_general_plugins
load_general_plugins()
import vllm.model_executor.warmup.kernel_warmup as module
print(json.dumps(hasattr(module.flashinfer_autotune, "warmup_plugin")))
"""


def processes() -> Iterator[Finding]:
    """Yield what the children have found out."""
    if importlib.util.find_spec("flashinfer") and importlib.util.find_spec("torch"):
        yield _probe()
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        importlib.metadata.version("vllm")  # a folder of that name on the path is no vLLM
        yield _hook()


def _probe() -> Finding:
    found, error = _answer(_PROBE)
    if error:
        fix = "python -c 'import flashinfer.autotuner' must work in this environment"
        return Finding("probe", "bad", f"FlashInfer cannot be imported: {error}", fix)
    version, lack, tells_apart = found
    if lack:
        return Finding("probe", "bad", lack, "install a release of the support page")
    if not tells_apart:
        words = f"the file keys of FlashInfer {version} cannot tell runner options apart"
        fix = "each rank tunes for itself, at every start; install 0.6.13 or later"
        return Finding("probe", "bad", words, fix)
    return Finding("probe", "good", f"FlashInfer {version} has all that is used of it")


def _hook() -> Finding:
    found, error = _answer(_HOOK)
    if error:
        fix = "python -c 'import vllm' must work in this environment"
        return Finding("hook", "bad", f"vLLM cannot be asked: {error}", fix)
    if not found:
        fix = "vLLM's log says why it was left alone; see also entry point and mode above"
        return Finding("hook", "bad", "vLLM's warm-up is its own: the plugin is not live", fix)
    return Finding("hook", "good", "live: vLLM's warm-up goes through this package")


def _answer(program: str) -> tuple[Any, str]:
    """Return what the program printed last, or why there is no answer."""
    try:
        done = subprocess.run(  # noqa: S603  # this interpreter, with a program from above
            [sys.executable, "-c", program], capture_output=True, text=True, check=False,
            timeout=_PATIENCE_S, env=dict(os.environ),
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return None, f"no answer within {_PATIENCE_S:.0f} s"
    lines = done.stdout.strip().splitlines()
    try:
        return json.loads(lines[-1]) if lines else None, "" if lines else _last(done.stderr)
    except ValueError:
        return None, _last(done.stderr) or lines[-1]


def _last(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1] if lines else "it said nothing"
