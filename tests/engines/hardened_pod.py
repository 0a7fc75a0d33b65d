# SPDX-License-Identifier: Apache-2.0
"""An engine's own warm-up in a hardened pod: no temporary directory, a random user, few processes.

The temporary directory is taken away once the ranks have met, since to load and to meet an engine
needs one. Processes and threads are counted together, those of both ranks and of what starts them:
how few an engine comes up with alone is stated for each, and from how many on a session of ours has
what it takes. Between the two it warms up by itself, as alone.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest

from warmup_plugin.engines.embedded.config import resolve

FAULTS = Path(__file__).parents[1] / "faults"
STARTS = Path(__file__).with_name("pod_starts.py")
#: Where Python has a compiler search for cuBLAS, which writes a file: an engine alone ends then.
UNKNOWN = "no_temporary_directory"
#: Where the linker knows it.
KNOWN = "no_temporary_directory+no_search_by_files"
#: More than any start takes; and what the pod of the embedded engine has, less than a group of
#: ranks takes of either engine.
PLENTY, TOO_FEW = 400, 32


@dataclass(frozen=True)
class Limits:
    """With how few processes and threads an engine comes up alone, and from how many on with us.

    ``alone``: a few more than the least that has been seen to do (vLLM 89, SGLang 100): a start
    with one or two less comes up or not, by how its threads begin and end.
    """

    alone: int
    ours: int


@dataclass(frozen=True)
class _Start:
    root: str
    plugin: bool
    fault: str
    processes: int


def in_the_pod(engine: str, known: dict[str, Any], starts: list[_Start]) -> list[dict[str, Any]]:
    """Start there, one after the other; return what each came to."""
    if reason := resolve(f"{FAULTS / 'test_places.py'}:can_confine")():
        pytest.skip(reason)
    out = resolve(f"{FAULTS / 'test_hardened_pod.py'}:in_the_pod")(
        [sys.executable, str(STARTS), engine, "/mnt/run"],
        {"known": known, "starts": [asdict(start) for start in starts]},
        processes=PLENTY, limit_s=500.0,
    )  # fmt: skip
    return [json.loads(line) for line in out.splitlines() if line.startswith("{")]


def is_up(start: dict[str, Any]) -> bool:
    """Return whether all ranks came up."""
    return not start["errors"] and not start["hung"]


def check_certified(engine: str, known: dict[str, Any], limits: Limits) -> None:
    """Start cold, then warm: with us it comes up, certified, where the engine alone never does."""
    alone, *ours = in_the_pod(
        engine, known,
        [_Start("alone", plugin=False, fault=UNKNOWN, processes=PLENTY)]
        + [_Start("ours", plugin=True, fault=UNKNOWN, processes=limits.ours)] * 2,
    )  # fmt: skip
    assert "No usable temporary directory" in str(alone["errors"]), alone
    assert all(is_up(start) for start in ours), ours
    cold, warm = ours
    assert sum(cold["timed"]) > 0
    assert warm["timed"] == [0, 0]
    assert len(cold["certificate"]) == 64
    assert cold["certificate"] == warm["certificate"]


def check_never_worse(engine: str, known: dict[str, Any], limits: Limits) -> None:
    """Start with as few processes as the engine alone needs, cold and warm: more than 32."""
    few = _Start("too few", plugin=False, fault=KNOWN, processes=TOO_FEW)
    alone, ours = (
        [_Start(side, plugin=side == "ours", fault=KNOWN, processes=limits.alone)] * 2
        for side in ("alone", "ours")
    )
    found = in_the_pod(engine, known, [few, *alone, *ours])
    assert not is_up(found[0]), found[0]
    assert [is_up(start) for start in found[1:]] == [True] * 4, found[1:]
