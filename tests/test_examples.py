# SPDX-License-Identifier: Apache-2.0
"""The examples do what they say, as a reader would run them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

CUSTOM_RUNNER = Path(__file__).parent.parent / "examples" / "custom_runner.py"
LINE = re.compile(
    r"warmup-plugin \S+ \[custom 0, FlashInfer \S+, 1 rank\(s\)\]: "
    r"(\d+) of (\d+) tasks from cache, .*?(\d+) tactics timed in [\d.]+ s; agreement: certified .*"
)


def start(root: Path) -> tuple[int, ...]:
    """Run the example; return tasks from cache, tasks, tactics timed."""
    environ = {
        **os.environ,
        "WARMUP_PLUGIN_CACHE_ROOT": str(root),
        "FLASHINFER_LOGGING_LEVEL": "warning",
    }
    done = subprocess.run(
        [sys.executable, str(CUSTOM_RUNNER)],
        check=True, capture_output=True, text=True, timeout=100, env=environ,
    )  # fmt: skip
    (line,) = done.stdout.splitlines()
    found = LINE.fullmatch(line)
    assert found is not None, line
    assert str(root) in line
    return tuple(int(number) for number in found.groups())


@pytest.mark.multiprocess
def test_custom_runner(cache_root: Path) -> None:
    """The first start tunes three buckets of two tactics, the second one nothing."""
    assert start(cache_root) == (0, 3, 9)  # two tactics and the default, three buckets
    assert start(cache_root) == (3, 3, 0)


def test_it_is_short() -> None:
    """Under 40 lines with imports: a runner has no more to do than that."""
    assert len(CUSTOM_RUNNER.read_text().splitlines()) < 40
