# SPDX-License-Identifier: Apache-2.0
"""The examples do what they say, as a reader would run them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parent.parent
CUSTOM_RUNNER = CHECKOUT / "examples" / "custom_runner.py"
ON_RANKS = CHECKOUT / "examples" / "runner_on_ranks.py"
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
LINE = re.compile(
    r"warmup-plugin \S+ \[(?:custom 0|my-runner 1.0), FlashInfer \S+, [12] rank\(s\)\]: "
    r"(\d+) of (\d+) tasks from cache, .*?(\d+) tactics timed in [\d.]+ s; agreement: certified .*"
)


def start(root: Path, *words: str) -> tuple[tuple[int, ...], list[str]]:
    """Run an example; return tasks from cache, tasks, tactics timed; and what else it prints."""
    environ = {
        **os.environ,
        "WARMUP_PLUGIN_CACHE_ROOT": str(root),
        "OMP_NUM_THREADS": "1",  # torchrun sets it, and warns that it does
    }
    done = subprocess.run(
        [sys.executable, *words],
        check=True, capture_output=True, text=True, timeout=100, env=environ,
    )  # fmt: skip
    assert "/proc/self/fd" not in done.stdout + done.stderr  # a table's path that is nobody's
    line, *rest = done.stdout.splitlines()
    found = LINE.fullmatch(line)
    assert found is not None, line
    assert str(root) in line
    return tuple(int(number) for number in found.groups()), rest


@pytest.mark.multiprocess
def test_custom_runner(cache_root: Path) -> None:
    """The first start tunes three buckets of two tactics, the second one nothing."""
    assert start(cache_root, str(CUSTOM_RUNNER)) == ((0, 3, 9), [])  # tactics and the default
    assert start(cache_root, str(CUSTOM_RUNNER)) == ((3, 3, 0), [])


@pytest.mark.multiprocess
def test_runner_on_ranks(cache_root: Path) -> None:
    """Two ranks share three buckets: rank 0's line has its own; then nothing is timed."""
    (cached, tasks, timed), rest = start(cache_root, *TORCHRUN, str(ON_RANKS))
    assert (cached, tasks, timed in {0, 3, 6, 9}) == (0, 3, True)
    assert rest == ["served a default since: nothing"]
    assert start(cache_root, *TORCHRUN, str(ON_RANKS))[0] == (3, 3, 0)


def test_the_page_has_them_as_they_are() -> None:
    """A page on GitHub includes no file; what it shows is what the tests run."""
    page = (CHECKOUT / "docs" / "custom-runner.md").read_text()
    shown = re.findall(r"```python\n(# SPDX.*?)```", page, re.DOTALL)
    assert shown == [CUSTOM_RUNNER.read_text(), ON_RANKS.read_text()]


def test_it_is_short() -> None:
    """Under 40 lines with imports: a runner has no more to do than that."""
    assert len(CUSTOM_RUNNER.read_text().splitlines()) < 40
