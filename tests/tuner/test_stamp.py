# SPDX-License-Identifier: Apache-2.0
"""What a process sees of its surroundings, and the slow fields of its stamp."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flashinfer.autotuner
import pytest

from warmup_plugin.cache.stamps import FINGERPRINT, PACKAGES
from warmup_plugin.coordination.base import Alone
from warmup_plugin.errors import SessionError
from warmup_plugin.runtime.polling import wait_until, within
from warmup_plugin.tuner import compat, environment_stamp
from warmup_plugin.tuner.environment_stamp import Lookup, begin, surroundings

Patch = pytest.MonkeyPatch

LIMIT_S = 30.0

OTHERWISE: dict[str, Callable[[Patch, Path], None]] = {
    "a folder for the linker": lambda p, _: p.setenv("LD_LIBRARY_PATH", "/elsewhere"),
    "another compiler": lambda p, _: p.setenv("PATH", f"/elsewhere:{os.environ['PATH']}"),
    "a library loaded first": lambda p, _: p.setenv("LD_PRELOAD", "libcublas.so"),
    "packages of another folder": lambda p, _: p.syspath_prepend("/elsewhere"),
    "another working directory": lambda p, folder: p.chdir(folder),
    "another FlashInfer": lambda p, _: p.setattr(compat, "origin", lambda: ("9", "/elsewhere")),
    "another machine": lambda p, _: p.setattr(environment_stamp, "machine_id", lambda: "another"),
    "another user": lambda p, _: p.setattr(os, "geteuid", lambda: 12345),
}


@pytest.mark.parametrize("change", OTHERWISE.values(), ids=OTHERWISE)
def test_surroundings_tell_apart(
    change: Callable[[Patch, Path], None], monkeypatch: Patch, tmp_path: Path
) -> None:
    """Whatever the slow fields depend on; what they do not depend on changes nothing."""
    before = surroundings()
    monkeypatch.setenv("WARMUP_PLUGIN_MARGIN", "0.5")
    assert surroundings() == before
    change(monkeypatch, tmp_path)
    assert surroundings() != before
    assert len(before) == len(surroundings()) == 64


def test_a_loaded_library_counts() -> None:
    """It answers the linker before any search; the same one elsewhere in memory is the same."""
    line = b"7f00-7f10 r-xp 00000000 fe:00 42 /usr/lib/lib%s.so.13"
    assert environment_stamp._loaded(line % b"m" + b"\n" + line % b"python") == []
    found = environment_stamp._loaded(
        line % b"cublas" + b"\n" + line.replace(b"7f0", b"6f0") % b"cublas"
    )
    assert found == [b"fe:00 42 /usr/lib/libcublas.so.13"]
    assert environment_stamp._loaded((line % b"cublas").replace(b" 42 ", b" 43 ")) != found


class Coordinator(Alone):
    """This rank among two, in a meeting that counts what is taken."""

    def __init__(self, rank: int, *, others_took: int = 0) -> None:
        super().__init__()
        self.rank, self.size, self._others_took = rank, 2, others_took

    def take(self, name: str) -> int:
        """Count one more, after what others have taken."""
        return super().take(name) + self._others_took


@pytest.fixture
def looks() -> list[Any]:
    """FlashInfer's own functions, which have looked nothing up yet."""
    found: list[Any] = [getattr(sys.modules[module], name) for module, name in compat.SLOW.values()]
    for look in found:
        look.cache_clear()
    return found


def divided(coordinator: Coordinator, theirs: str) -> Lookup:
    lookup = Lookup(LIMIT_S)
    lookup.divide(coordinator, theirs)
    return lookup


def test_what_cannot_be_told_is_equal_to_nothing(monkeypatch: Patch, looks: list[Any]) -> None:
    """Not even to itself: who has no /proc looks for himself."""

    def fail() -> str:
        raise OSError("planted")

    monkeypatch.setattr(environment_stamp, "machine_id", fail)
    assert surroundings() == ""
    lookup = divided(Coordinator(1), "")
    assert not lookup.is_alike
    assert lookup.taken == ()
    assert [look.cache_info().misses for look in looks] == [0, 0], "not before its stamp"


def test_a_stamp_of_another_making_is_read_as_it_is(monkeypatch: Patch, looks: list[Any]) -> None:
    """Where FlashInfer does not use what it is answered, nobody takes anything from others."""
    theirs = surroundings()
    module: Any = flashinfer.autotuner
    collect = module._collect_metadata
    monkeypatch.setattr(module, "_collect_metadata", lambda: {**collect(), "cublas_version": "own"})
    assert surroundings() == ""
    lookup = divided(Coordinator(1, others_took=1), theirs)
    assert not lookup.is_alike
    assert lookup.taken == ()
    assert lookup.stamp()["cublas_version"] == "own"
    assert [look.cache_info().misses for look in looks] == [1, 1]


@pytest.mark.parametrize("field", compat.SLOW)
def test_a_release_without_a_slow_function_divides_nothing(monkeypatch: Patch, field: str) -> None:
    """Its stamp may be made otherwise."""
    module, name = compat.SLOW[field]
    monkeypatch.delattr(sys.modules[module], name)
    assert surroundings() == ""


def test_a_stamp_without_a_slow_field_divides_nothing(monkeypatch: Patch, looks: list[Any]) -> None:
    """As before 0.7, where the function is there and its answer is in no stamp; nobody looks."""
    module: Any = flashinfer.autotuner
    collect = module._collect_metadata

    left_out = "cutlass_dsl_version"  # and not a word of `shorter`

    def shorter() -> dict[str, str]:
        with compat.answering({left_out: ""}):
            return {n: v for n, v in collect().items() if n != left_out}

    monkeypatch.setattr(module, "_collect_metadata", shorter)
    assert surroundings() == ""
    begin(tells=False)
    assert "cutlass_dsl_version" not in Lookup(LIMIT_S).stamp()
    assert [look.cache_info().misses for look in looks] == [1, 0]


def test_a_known_field_is_not_taken() -> None:
    """A process that has looked already has an answer of its own."""
    whole = compat.stamp()
    lookup = divided(Coordinator(1, others_took=1), surroundings())
    assert lookup.taken == ()
    assert lookup.stamp() == whole


#: This rank, how many have come before it, what it takes.
DIVISIONS = {
    "rank 0, first": (0, 0, ()),
    "rank 0, after another": (0, 1, ("cutlass_dsl_version",)),
    "another, first": (1, 0, ("cublas_version",)),
    "another, after one": (1, 1, ("cublas_version", "cutlass_dsl_version")),
}


@pytest.mark.parametrize(("rank", "before", "taken"), DIVISIONS.values(), ids=DIVISIONS)
def test_what_another_looks_up_is_left_out(
    rank: int, before: int, taken: tuple[str, ...], looks: list[Any]
) -> None:
    """And nothing is looked up for it here, not by FlashInfer either."""
    lookup = divided(Coordinator(rank, others_took=before), surroundings())
    assert lookup.is_alike
    assert lookup.taken == taken
    found = lookup.stamp()
    misses = [look.cache_info().misses for look in looks]
    assert misses == [int(field not in taken) for field in compat.SLOW]
    left_out = {*taken, *([PACKAGES] if FINGERPRINT in taken else [])}
    assert found == {name: v for name, v in compat.stamp().items() if name not in left_out}


def test_a_rank_alone_takes_nothing(looks: list[Any]) -> None:
    lookup = Lookup(LIMIT_S)
    lookup.divide(Alone(), "")
    assert lookup.taken == ()
    assert lookup.stamp() == compat.stamp()
    assert [look.cache_info().misses for look in looks] == [1, 1]


def test_others_are_told_what_was_seen_before_the_look(
    monkeypatch: Patch, looks: list[Any]
) -> None:
    """A look may load a library, and what it has found is kept: so is what was seen."""
    monkeypatch.setattr(environment_stamp, "_seen", "")
    before = surroundings()
    assert begin(tells=False) == ""
    assert begin(tells=True) == before
    Lookup(LIMIT_S).stamp()
    monkeypatch.setenv("LD_LIBRARY_PATH", "/elsewhere")
    assert begin(tells=True) == before != surroundings()
    assert looks[0].cache_info().misses == 1


def test_each_field_is_looked_up_once(looks: list[Any]) -> None:
    """On two threads, and FlashInfer's own look is answered by what they have found."""
    begin(tells=False)
    begin(tells=False)
    found = Lookup(LIMIT_S).stamp()
    assert [look.cache_info().misses for look in looks] == [1, 1]
    assert found == compat.stamp()


def test_a_look_that_fails_fails_as_flashinfers_own(monkeypatch: Patch) -> None:
    """Not on the thread, where nobody would hear of it."""
    module, name = compat.SLOW[compat.BY_PROGRAMS]
    own = getattr(sys.modules[module], name)

    def fail() -> str:
        raise RuntimeError("planted")

    fail.cache_info = own.cache_info  # type: ignore[attr-defined]  # as if it remembered
    own.cache_clear()
    monkeypatch.setattr(sys.modules[module], name, fail)
    begin(tells=False)
    with pytest.raises(RuntimeError, match="planted"):
        Lookup(LIMIT_S).stamp()


def test_a_look_without_an_end_ends_the_session(monkeypatch: Patch) -> None:
    """A program that hangs, on a dead network file system say: the engine goes on without us."""
    module, name = compat.SLOW[compat.BY_PROGRAMS]
    own, is_over = getattr(sys.modules[module], name), threading.Event()

    def hang() -> str:
        is_over.wait(LIMIT_S)
        return "late"

    hang.cache_info = own.cache_info  # type: ignore[attr-defined]  # as if it remembered
    own.cache_clear()
    monkeypatch.setattr(sys.modules[module], name, hang)
    begin(tells=False)
    for lost in (Lookup(0.1).stamp, lambda: Lookup(0.1).divide(Coordinator(0), "")):
        with pytest.raises(SessionError, match="cublas_version: FlashInfer has looked it up for"):
            lost()
    is_over.set()
    wait_until(lambda: environment_stamp._under_way is None, within(LIMIT_S))
