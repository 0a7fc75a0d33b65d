# SPDX-License-Identifier: Apache-2.0
"""Every private name of FlashInfer that is used is there, and a release without one is not used.

The same on the other releases is in `tests/release`.
"""

from __future__ import annotations

import _thread
import ctypes.util
import json
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import flashinfer
import flashinfer.autotuner
import pytest
import torch
from flashinfer.autotuner import AutoTuner

from warmup_plugin.tuner import behaviour, compat
from warmup_plugin.tuner.behaviour import LAWS
from warmup_plugin.tuner.compat import REQUIRED, SLOW
from warmup_plugin.tuner.library_search import bearing_failed_searches
from warmup_plugin.tuner.proven import PROVEN

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.tuner.conftest import Children

PLACES = {"module": flashinfer.autotuner, "AutoTuner": AutoTuner}


@pytest.mark.parametrize(("where", "name"), REQUIRED, ids=[".".join(row) for row in REQUIRED])
def test_required_names_are_there(where: str, name: str) -> None:
    assert hasattr(PLACES.get(where) or AutoTuner(), name)


@pytest.mark.parametrize(("module", "name"), SLOW.values(), ids=SLOW)
def test_what_looks_slow_fields_up_is_there(module: str, name: str) -> None:
    """And remembers the answer: else no rank could tell whether it is known."""
    assert hasattr(getattr(sys.modules[module], name), "cache_info")


def test_slow_fields_are_fields_of_the_stamp() -> None:
    assert SLOW.keys() <= compat.stamp().keys()


def test_what_the_main_release_can_do() -> None:
    assert compat.probe() == compat.Capabilities(
        version=flashinfer.__version__,
        missing=(),
        keys_tell_options_apart=True,
        fields_without_extras=4,
        fields_with_extras=4,
    )


def test_the_main_release_is_proven() -> None:
    """By its source: what it does has been tried, here."""
    assert compat.tried(AutoTuner()) == compat.probe()
    assert PROVEN.get(compat.sources_digest()) == (4, 4), compat.sources_digest()


def test_a_release_that_is_not_proven_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once in a process, and with the same outcome."""
    known, calls = compat.probe(), list[object]()

    def tried(own: object) -> compat.Capabilities:
        calls.append(own)
        return known

    monkeypatch.setattr(compat, "PROVEN", {})
    monkeypatch.setattr(compat, "tried", tried)
    compat.probe.cache_clear()
    assert [compat.probe(), compat.probe()] == [known, known]
    assert len(calls) == 1
    compat.probe.cache_clear()


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
def test_a_law_that_cannot_be_tried_is_broken(
    law: Callable[[compat.Keys], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a release raises is the reason, in one line; the engine's own tuning is used then."""

    def fails(*_arguments: object, **_options: object) -> NoReturn:
        raise ZeroDivisionError("planted")

    for name in ("own_tuner", "options_given"):
        monkeypatch.setattr(compat, name, fails)
    monkeypatch.setattr(behaviour, "LAWS", (law,))
    (said,) = behaviour.broken(compat.Keys(compat.Capabilities("9", (), True, 4, 4)))
    assert said == f"{law.__name__.replace('_', ' ')}: ZeroDivisionError: planted"
    found = compat.Capabilities("9", (), True, 4, 4, unproven=(said,))
    assert not found.can_record
    assert found.lack == f"FlashInfer 9 is not one that this package knows: {said}"


def test_the_probe_leaves_the_processes_tuner_alone() -> None:
    """It asks tuners of its own, and what it puts in place of others' it takes away again."""
    tuner = AutoTuner.get()
    group, capturing = compat.process_group(), torch.cuda.is_current_stream_capturing
    before = {name: repr(value) for name, value in vars(tuner).items()}
    compat.tried(AutoTuner())
    assert compat.process_group() is group
    assert torch.cuda.is_current_stream_capturing is capturing
    assert {name: repr(value) for name, value in vars(tuner).items()} == before


@pytest.mark.multiprocess
@pytest.mark.parametrize(("where", "name"), REQUIRED, ids=[".".join(row) for row in REQUIRED])
def test_a_release_without_a_name_tunes_unguarded(
    children: Children, where: str, name: str
) -> None:
    """Reported by name; FlashInfer tunes inside the forward, and nothing of ours touches it."""
    report, found, modes, served, left = children.one("on_probe:without", where=where, name=name)
    assert found.missing == (f"{where}.{name}",)
    assert not found.can_record
    assert report.agreement == "unguarded"
    assert report.reason == f"FlashInfer {flashinfer.__version__} has no {where}.{name}"
    assert any(f"{where}.{name}" in warning for warning in report.warnings)
    assert (report.path, report.published, left) == ("", (), [])
    is_tuned = name != "autotune"
    assert modes == [is_tuned]
    assert (served[1] != -1) == is_tuned
    assert not list(children.root.rglob("rank_*"))


@pytest.mark.multiprocess
def test_unguarded_ranks_meet_afterwards(children: Children) -> None:
    results = children.ranks("on_probe:without", tp=2, where="AutoTuner", name="search_cache")
    assert [report.agreement for report, *_ in results] == ["unguarded", "unguarded"]


@pytest.mark.multiprocess
def test_the_process_group_is_taken_away_and_put_back(children: Children) -> None:
    """Also after an interrupt."""
    assert children.ranks("on_probe:groups", tp=2) == [[True, True, True]] * 2


def test_file_keys_are_flashinfers() -> None:
    """Built here, looked up there."""
    keys = compat.Keys(compat.probe())
    for extras in ((), ("fp8", True, 3)):
        expected = AutoTuner._get_cache_key(
            "op", compat.ToyRunner(extras), ((3, 1),), flashinfer.autotuner.TuningConfig(), extras
        ).file_key
        assert keys.file_key("op", "ToyRunner", ((3, 1),), extras) == expected
    assert keys.legacy_key("op", "R", ((3, 1),)) == "('op', 'R', ((3, 1),))"


def test_three_field_keys_where_the_release_has_no_others() -> None:
    """As 0.6.12's."""
    keys = compat.Keys(compat.Capabilities("0.6.12", (), False, 3, 3))
    assert keys.file_key("op", "R", ((3, 1),), ("fp8",)) == "('op', 'R', ((3, 1),))"


def test_the_stamp_has_no_gaps() -> None:
    """What FlashInfer cannot tell reads "unknown", never null."""
    stamp = compat.stamp()
    assert stamp["flashinfer_version"] == flashinfer.__version__
    assert {type(value) for value in stamp.values()} == {str}
    assert "" not in stamp.values()


@pytest.fixture
def without_records(monkeypatch: pytest.MonkeyPatch) -> AutoTuner:
    """The process's tuner, with nothing of other products; what a test gives it is gone after."""
    tuner = AutoTuner.get()
    monkeypatch.setattr(tuner, "_namespaced_records", {})
    monkeypatch.setattr(tuner, "_dirty_namespaces", set())
    return tuner


def test_one_path_is_not_saved_to(without_records: AutoTuner, tmp_path: Path) -> None:
    """All others are, and that one again afterwards."""
    left, other = tmp_path / "left.json", tmp_path / "other.json"
    with compat.saving_all_but(left):
        without_records.save_configs(str(left))
        without_records.save_configs(str(other))
        assert not left.exists()
        assert other.exists()
    without_records.save_configs(str(left))
    assert left.exists()
    assert "save_configs" not in vars(without_records)


def test_what_others_have_to_save_stays_to_be_saved(
    without_records: AutoTuner, tmp_path: Path
) -> None:
    """Records of another product reach the file that they are for, and no other."""
    path, theirs = tmp_path / "unused.json", tmp_path / "theirs.json"
    without_records.publish_namespaced_records("theirs", {"a": 1})
    with compat.saving_all_but(path):
        without_records.save_configs(str(path))
    assert not path.exists()
    without_records.save_configs(str(theirs))
    assert "theirs" in theirs.read_text()


@pytest.mark.parametrize("lack", ["memfd", "proc", "descriptors", "nothing"])
def test_flashinfer_opens_bytes_without_a_file_system(
    lack: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where there are no anonymous files, no /proc, or no descriptor to be had."""

    def fails(*_args: object, **_options: object) -> NoReturn:
        raise OSError(24, "too many open files")

    if lack == "memfd":
        monkeypatch.delattr("os.memfd_create")
    elif lack in ("proc", "descriptors"):
        monkeypatch.setattr("os.open" if lack == "proc" else "os.memfd_create", fails)
    monkeypatch.setattr("tempfile.mkstemp", fails)
    monkeypatch.setattr("tempfile.mkdtemp", fails)
    tuner = AutoTuner()
    document = json.dumps({"_metadata": compat.stamp(), "a key": ["Toy", 3]}).encode()
    with compat.as_file(document) as path:
        assert tuner.load_configs(path)
        assert not path.startswith(tempfile.gettempdir())
    assert compat.loaded(tuner) == {"a key": ("Toy", 3)}
    assert not Path(path).exists()
    assert "open" not in vars(sys.modules[AutoTuner.__module__])


def test_other_files_are_opened_as_ever(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delattr("os.memfd_create")
    (tmp_path / "theirs.json").write_text("[1]")
    with compat.as_file(b"{}"):
        module = sys.modules[AutoTuner.__module__]
        with module.open(tmp_path / "theirs.json") as file:
            assert json.load(file) == [1]


@pytest.mark.parametrize("left", [0, 6])
def test_no_search_where_no_process_can_be_started(
    monkeypatch: pytest.MonkeyPatch, left: int
) -> None:
    """The compiler that Python has search for it would wait for seconds to start others.

    Six are enough for the search, and too few once a session's threads are started, too.
    """
    searched, few, own = list[str](), iter(range(left)), _thread.start_new_thread
    monkeypatch.setattr(ctypes.util, "find_library", searched.append)

    def start(function: Callable[..., object], arguments: tuple[()]) -> None:
        if next(few, None) is None:
            raise RuntimeError("can't start new thread")
        own(function, arguments)

    with bearing_failed_searches():
        ctypes.util.find_library("cublas")
        monkeypatch.setattr(_thread, "start_new_thread", start)
        assert ctypes.util.find_library("cuda") is None
    assert searched == ["cublas"]


def test_a_search_that_cannot_be_made_finds_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a temporary directory Python's own raises; FlashInfer then asks elsewhere."""

    def fails(_name: str) -> NoReturn:
        raise FileNotFoundError(2, "No usable temporary directory")

    monkeypatch.setattr(ctypes.util, "find_library", fails)
    with bearing_failed_searches():
        assert ctypes.util.find_library("cublas") is None
        with bearing_failed_searches():
            pass
        assert ctypes.util.find_library("cublas") is None
        look = sys.modules[AutoTuner.__module__]._get_cublas_version
        assert look.__wrapped__()
    assert ctypes.util.find_library is fails
