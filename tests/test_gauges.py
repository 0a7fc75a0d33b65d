# SPDX-License-Identifier: Apache-2.0
"""Figures as `prometheus_client`'s gauges: the same series as in the file, one for each start.

Each process is a real one, and what is shown is read by the library's own collector.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

SHOW = """
import os, sys
from pathlib import Path
from warmup_plugin.observability import gauges, metrics
from warmup_plugin.observability.report import WarmupReport

place = Path(os.environ["PROMETHEUS_MULTIPROC_DIR"])
def show(state="certified", version="1", session="0", **given):
    report = WarmupReport(
        engine="vllm", engine_version=version, plugin_version="0", flashinfer_version="0",
        rank=0, world_size=1, mode="on", strategy="leader", agreement="certified", **given)
    found = [row._replace(labels=("vllm", "pod-1", "0", session, *row.labels))
             for row in metrics.samples(state, report, 1.0)]
    return found, gauges.show(place, found)
"""
RENDER = """
from warmup_plugin.observability import textfile
found, why = show(tactics_timed=7)
assert not why, why
print(textfile.render(found), end="")
"""
BARE = """
import sys
from warmup_plugin.observability.exposition import Figures
Figures(("e", "1"), None).fail()
assert "prometheus_client" not in sys.modules
"""
COLLECT = """
from prometheus_client import CollectorRegistry, generate_latest, multiprocess
registry = CollectorRegistry()
multiprocess.MultiProcessCollector(registry)
print(generate_latest(registry).decode(), end="")
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where this test's processes keep their values."""
    found = tmp_path / "values"
    found.mkdir()
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(found))
    return found


def run(lines: str) -> str:
    """Run a process that shows figures, or does something else; return what it prints."""
    done = subprocess.run(
        [sys.executable, "-c", lines], check=False, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def shown() -> dict[str, float]:
    """What an engine's server would show, by series."""
    lines = [line for line in run(COLLECT).splitlines() if not line.startswith("#")]
    return {series: float(text) for series, _, text in (line.rpartition(" ") for line in lines)}


def ones(name: str) -> list[str]:
    """The series of a name that are 1."""
    return [series for series, value in shown().items() if f"_{name}{{" in series and value == 1]


def test_the_same_series_as_in_the_file(place: Path) -> None:
    """Names, labels, help and values, after the process has ended; no pid among the labels."""
    file = run(SHOW + RENDER)
    collected = run(COLLECT)
    assert sorted(re.findall(r"^# .*", file, re.MULTILINE)) == sorted(
        re.findall(r"^# .*", collected, re.MULTILINE)
    )
    in_file = dict(line.rsplit(" ", 1) for line in file.splitlines() if line[0] != "#")
    values = {_sorted(series): float(text) for series, text in in_file.items()}
    assert values == {_sorted(series): value for series, value in shown().items()}
    assert len(list(place.iterdir())) == 1


def _sorted(series: str) -> tuple[str, ...]:
    """Return name and labels in an order that both ways have in common."""
    return tuple(sorted(re.split(r"[{},]", series)))


def test_the_next_start_takes_the_place_of_the_last(place: Path) -> None:
    """One series each, whatever the new process is called, and files of the dead are removed."""
    run(SHOW + "show('failed')")
    (first,) = place.iterdir()
    run(SHOW + "show('certified', version='2')")
    (second,) = place.iterdir()
    assert first != second
    (state,) = ones("state")
    assert 'state="certified"' in state
    (info,) = ones("info")
    assert 'engine_version="2"' in info


def test_a_file_of_an_earlier_process_of_ones_id_goes(place: Path) -> None:
    """Ids come again in a container that is restarted."""
    run(SHOW + "show(session='3')")
    (left,) = place.iterdir()
    move = f"os.rename({str(left)!r}, place / f'gauge_mostrecent_{{os.getpid()}}.db')\n"
    run(SHOW + move + "show(session='0')")
    (state,) = ones("state")
    assert 'session="0"' in state


def test_a_second_session_stands_beside_the_first(place: Path) -> None:
    """And one that is tried again says what it runs with now, once."""
    run(SHOW + "show(version='1'); show(version='2'); show(version='9', session='1')")
    assert len(ones("info")) == 2
    assert not [series for series in ones("info") if 'engine_version="1"' in series]
    assert len(list(place.iterdir())) == 1


OTHERS = {
    "gauges of others": (
        "from prometheus_client import Gauge\n"
        "Gauge('theirs', 'x', multiprocess_mode='mostrecent', registry=None).set(1)\n"
    ),
    "a counter": (
        "from prometheus_client import Counter\nCounter('theirs', 'x', registry=None).inc()\n"
    ),
}


@pytest.mark.parametrize("lines", OTHERS.values(), ids=OTHERS)
def test_files_of_others_stay(place: Path, lines: str) -> None:
    """The engine's figures of a process that has ended are the engine's to remove."""
    run(SHOW + lines + "show()")
    before = set(place.iterdir())
    run(SHOW + "show()")
    kept = [path for path in before if path.exists()]
    assert len(kept) == 1
    assert any(series.startswith("theirs") for series in shown())
    assert len(ones("state")) == 1


@pytest.mark.usefixtures("place")
def test_files_of_the_living_stay() -> None:
    """A rank of another job in the same pod."""
    child = subprocess.Popen(
        [sys.executable, "-c", SHOW + "show(session='7'); print(flush=True); input()"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert child.stdin is not None
    assert child.stdout is not None
    with child.stdin, child.stdout:
        child.stdout.readline()
        run(SHOW + "show()")
        assert len(ones("state")) == 2
    child.wait(20)


@pytest.mark.parametrize(
    "content", [b"", b"\1", b"\xff" * 64, b"\x40\0\0\0" + b"\0" * 60], ids=repr
)
def test_damaged_files_stay(place: Path, content: bytes) -> None:
    """Whose they are cannot be told; they end nothing here."""
    path = place / "gauge_mostrecent_999999999.db"
    path.write_bytes(content)
    assert run(SHOW + "print(show()[1])") == "\n"
    assert path.read_bytes() == content


def test_a_library_that_was_imported_too_early_is_told_of(place: Path) -> None:
    """As in a forked worker: the values would be lost without a word."""
    early = (
        "import os; kept = os.environ.pop('PROMETHEUS_MULTIPROC_DIR')\nimport prometheus_client\n"
    )
    late = "os.environ['PROMETHEUS_MULTIPROC_DIR'] = kept\n"
    text = run(early + late + SHOW + "print(show()[1])")
    assert "prometheus_client was imported before PROMETHEUS_MULTIPROC_DIR was set" in text
    assert list(place.iterdir()) == []


TROUBLE = {
    "no library": ("sys.modules['prometheus_client'] = None\n", "client cannot be imported"),
    "no folder": ("place = Path('/proc/none')\n", "No such file or directory"),
    "no space": ("gauges.LEAST_FREE = 2**62\n", "bytes left: must be"),
}  # fmt: skip


@pytest.mark.parametrize(("lines", "reason"), TROUBLE.values(), ids=TROUBLE)
def test_what_is_in_the_way_is_a_reason(place: Path, lines: str, reason: str) -> None:
    """And no exception, and no file that a server would read."""
    assert reason in run(SHOW + lines + "print(show()[1])")
    assert list(place.iterdir()) == []


def test_nothing_is_imported_without_the_variable() -> None:
    """The library is the engine's, and no dependency of ours."""
    environ = {name: text for name, text in os.environ.items() if "PROMETHEUS" not in name}
    subprocess.run([sys.executable, "-c", BARE], check=True, timeout=60, env=environ)
