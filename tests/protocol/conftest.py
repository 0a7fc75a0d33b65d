# SPDX-License-Identifier: Apache-2.0
"""What the tests of the protocol have in common: the explorer, children, and a count at the end.

Test folders are no packages, so `explorer.py` is loaded by its path.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.protocol.explorer import Explored

_FOLDER = Path(__file__).parent
_NAME = "protocol_explorer"
EXPLORED = pytest.StashKey[list["Explored"]]()

#: No wait of these tests is longer; what takes this long hangs.
BOUND_S = 20.0


def load_explorer() -> Any:
    """Return the module `explorer.py`."""
    if _NAME not in sys.modules:
        spec = importlib.util.spec_from_file_location(_NAME, _FOLDER / "explorer.py")
        assert spec is not None
        assert spec.loader is not None
        module = sys.modules[_NAME] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules[_NAME]


@pytest.fixture
def explore(request: pytest.FixtureRequest) -> Callable[..., Explored]:
    """Explore all schedules of a program: ``explore(program, faults=1, kinds=("kill",))``."""
    explorer = load_explorer()
    counts = request.config.stash.setdefault(EXPLORED, [])

    def run(program: Any, **options: Any) -> Explored:
        explored: Explored = explorer.Explorer(program, **options).run()
        counts.append(explored)
        return explored

    return run


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Say how much of the protocol was explored."""
    if counts := config.stash.get(EXPLORED, []):
        states = sum(explored.states for explored in counts)
        transitions = sum(explored.transitions for explored in counts)
        runs = sum(explored.runs for explored in counts)
        terminalreporter.write_line(
            f"protocol: {len(counts)} explorations, {states} states, {transitions} transitions, "
            f"{runs} runs of the real code"
        )
