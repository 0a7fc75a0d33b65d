# SPDX-License-Identifier: Apache-2.0
"""`warmup-plugin tune` on this machine: real ranks of the example, their tables, what goes wrong.

On a Ray cluster it is tried beside the engine whose environment has Ray: `tests/engines/vllm`.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from warmup_plugin.cli import tuning

if TYPE_CHECKING:
    from tests.cli.conftest import Ran

Cli = Callable[..., "Ran"]

EXAMPLE = Path(__file__).parents[2] / "examples" / "runner_on_ranks.py"
SERVER = Path(__file__).with_name("tuned_here.py")
COMMAND = [sys.executable, "-m", "warmup_plugin", "tune"]
ONE = {"OMP_NUM_THREADS": "1"}
SLEEP = [sys.executable, "-c", "import time; time.sleep(60)"]
NONE = [sys.executable, "-c", "pass"]

pytestmark = pytest.mark.multiprocess


@pytest.fixture
def port() -> int:
    return tuning.free_port("127.0.0.1")


def started(words: list[object], **env: object) -> str:
    """Run the example under torchrun; return rank 0's line."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [sys.executable, *torchrun, *map(str, words)], check=True, capture_output=True, text=True,
        timeout=100, env={**os.environ, **ONE, **{name: str(v) for name, v in env.items()}},
    )  # fmt: skip
    return done.stdout.splitlines()[0]


def are_gone(pids: Path) -> bool:
    """Say whether these processes have ended, within some seconds."""
    for pid in pids.read_text().split():
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            try:
                os.kill(int(pid), 0)
            except ProcessLookupError:
                break
            time.sleep(0.1)
        else:
            return False
    return True


def test_ranks_that_end_by_themselves(cli: Cli, cache_root: Path, tmp_path: Path) -> None:
    """The archive makes a start elsewhere warm that may not time anything."""
    packed, elsewhere = tmp_path / "tables.tar", tmp_path / "elsewhere"
    words = ["--ranks", 2, "--json", "--", sys.executable, EXAMPLE]
    ran = cli("tune", "-o", packed, *words, WARMUP_PLUGIN_CACHE_ROOT=str(cache_root), **ONE)

    assert ran.code == 0, ran.err
    (row,) = ran.document["identities"]
    assert len(row["files"]) == 3  # identity, table, manifest
    assert cli("unpack", packed, "--root", elsewhere, "-q").code == 0
    line = started(
        [EXAMPLE], WARMUP_PLUGIN_CACHE_ROOT=elsewhere, WARMUP_PLUGIN_MODE="require-complete"
    )
    assert "3 of 3 tasks from cache" in line
    assert "0 tactics timed" in line
    # The next command warms nothing up: what lies there is not its own.
    ran = cli("tune", "-o", packed, "--", *NONE, WARMUP_PLUGIN_CACHE_ROOT=str(cache_root))
    assert (ran.code, "no warm-up of the command" in ran.err) == (1, True)


def test_a_server_is_ended_once_it_is_ready(
    cli: Cli, cache_root: Path, tmp_path: Path, port: int
) -> None:
    """Into a cache root; what has been there before is no table of this start."""
    root, pids = tmp_path / "root", tmp_path / "pids"
    root.mkdir()
    old = cache_root / "flashinfer_autotune" / "0.7.2" / "cpu" / ("0" * 64)
    old.mkdir(parents=True)
    (old / "rank_tp0_pp0_dp0.json").write_text("{}")
    page = f"http://127.0.0.1:{port}/health"
    words = ["--ranks", 2, "--ready", page, "--", sys.executable, SERVER, port, pids]
    ran = cli("tune", "-o", root, *words, WARMUP_PLUGIN_CACHE_ROOT=str(cache_root), **ONE)

    assert ran.code == 0, ran.err
    (table,) = root.glob("flashinfer_autotune/*/*/*/rank_*[0-9].json")
    assert table.parent.name != old.name
    assert len(pids.read_text().split()) == 2
    assert are_gone(pids)


@pytest.mark.parametrize(
    ("ends", "said"),
    [("1", "rank 1 ended with status 7"), ("0", "rank 0 ended with status 7")],
    ids=["another rank ends", "the server ends"],
)
def test_a_rank_that_fails_ends_the_others(
    cli: Cli, cache_root: Path, tmp_path: Path, port: int, *, ends: str, said: str
) -> None:
    """At once, and nothing is written."""
    packed, pids = tmp_path / "tables.tar", tmp_path / "pids"
    page = f"http://127.0.0.1:{port + 10}/never"
    words = ["--ranks", 2, "--limit", 60, "--ready", page]
    words += ["--", sys.executable, SERVER, port, pids, ends]
    ran = cli("tune", "-o", packed, *words, WARMUP_PLUGIN_CACHE_ROOT=str(cache_root), **ONE)

    assert ran.code == 1
    assert said in ran.err
    assert not packed.exists()
    assert are_gone(pids)


WRONG = [
    pytest.param(["--limit", 1, "--", *SLEEP], 1, "has not ended within 1 s", id="too long"),
    pytest.param(["--", *NONE], 1, "no warm-up of the command has left a table", id="no warm-up"),
    pytest.param(
        ["--ready", "http://127.0.0.1:1/", "--", *NONE], 1, "status 0, before it was ready",
        id="no server",
    ),
    pytest.param(["--", "no-such-program"], 1, "no-such-program: No such file", id="no program"),
    pytest.param(["--ranks", 0, "--", *NONE], 2, "--ranks 0: must be at least 1", id="no rank"),
    pytest.param(["--ray", "auto", "--", *NONE], 1, "warmup-plugin[ray]", id="no Ray"),
]  # fmt: skip


@pytest.mark.parametrize(("words", "code", "said"), WRONG)
def test_what_goes_wrong(
    cli: Cli, cache_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *,
    words: list[object], code: int, said: str,
) -> None:  # fmt: skip
    monkeypatch.setitem(sys.modules, "ray", None)
    packed = tmp_path / "tables.tar"
    ran = cli("tune", "-o", packed, *words, WARMUP_PLUGIN_CACHE_ROOT=str(cache_root))

    assert ran.code == code
    assert said in ran.err
    assert len(ran.err.splitlines()) == 1
    assert not packed.exists()


def test_what_a_command_has_started_ends_with_it(cli: Cli, tmp_path: Path) -> None:
    """As a rank of an engine that does not hear of its parent's end."""
    pids = tmp_path / "pids"
    starts = f"import subprocess; p = subprocess.Popen({SLEEP!r})"
    starts += f"; open({str(pids)!r}, 'w').write(str(p.pid))"
    words = ["--", sys.executable, "-c", starts]
    root = str(tmp_path / "root")
    ran = cli("tune", "-o", tmp_path / "t.tar", *words, WARMUP_PLUGIN_CACHE_ROOT=root)

    assert ran.code == 1
    assert are_gone(pids)


def test_switched_off_nothing_is_tuned(cli: Cli, tmp_path: Path) -> None:
    ran = cli("tune", "-o", tmp_path / "t.tar", "--", *NONE, WARMUP_PLUGIN_MODE="read-only")

    assert ran.code == 2
    assert "WARMUP_PLUGIN_MODE is 'read-only'" in ran.err


def test_sigterm_takes_the_command_along(cache_root: Path, tmp_path: Path) -> None:
    """As where a pod is ended, whose first process `tune` is."""
    pids = tmp_path / "pids"
    says = f"import os, time; open({str(pids)!r}, 'w').write(f'{{os.getpid()}}\\n'); time.sleep(60)"
    process = subprocess.Popen(
        [*COMMAND, "-o", str(tmp_path / "t.tar"), "--", sys.executable, "-c", says],
        env={**os.environ, "WARMUP_PLUGIN_CACHE_ROOT": str(cache_root)},
    )
    try:
        deadline = time.monotonic() + 60
        while not pids.exists() or not pids.read_text():
            assert time.monotonic() < deadline
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 143
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        process.wait()
    assert are_gone(pids)
