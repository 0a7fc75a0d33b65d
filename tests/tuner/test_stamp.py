# SPDX-License-Identifier: Apache-2.0
"""What a process sees of its surroundings, and the slow fields of its stamp."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from warmup_plugin.errors import SessionError
from warmup_plugin.tuner import probe, stamp
from warmup_plugin.tuner.stamp import Lookup, surroundings

Patch = pytest.MonkeyPatch

LIMIT_S = 30.0

OTHERWISE: dict[str, Callable[[Patch, Path], None]] = {
    "a folder for the linker": lambda p, _: p.setenv("LD_LIBRARY_PATH", "/elsewhere"),
    "another compiler": lambda p, _: p.setenv("PATH", f"/elsewhere:{os.environ['PATH']}"),
    "a library loaded first": lambda p, _: p.setenv("LD_PRELOAD", "libcublas.so"),
    "packages of another folder": lambda p, _: p.syspath_prepend("/elsewhere"),
    "another working directory": lambda p, folder: p.chdir(folder),
    "another FlashInfer": lambda p, _: p.setattr(probe, "origin", lambda: ("9", "/elsewhere")),
    "another machine": lambda p, _: p.setattr(stamp, "machine_id", lambda: "another"),
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
    assert stamp._loaded(line % b"m" + b"\n" + line % b"python") == []
    found = stamp._loaded(line % b"cublas" + b"\n" + line.replace(b"7f0", b"6f0") % b"cublas")
    assert found == [b"fe:00 42 /usr/lib/libcublas.so.13"]
    assert stamp._loaded((line % b"cublas").replace(b" 42 ", b" 43 ")) != found


def test_what_cannot_be_told_is_equal_to_nothing(monkeypatch: Patch) -> None:
    """Not even to itself: who has no /proc looks for himself."""

    def fail() -> str:
        raise OSError("planted")

    monkeypatch.setattr(stamp, "machine_id", fail)
    assert surroundings() == ""
    for look in probe.SLOW.values():
        getattr(sys.modules[look[0]], look[1]).cache_clear()
    lookup = Lookup(LIMIT_S)
    lookup.take("")
    assert lookup.taken == ()


def test_a_known_field_is_not_taken() -> None:
    """A process that has looked already has an answer of its own."""
    whole = probe.stamp()
    lookup = Lookup(LIMIT_S)
    lookup.take(surroundings())
    assert lookup.taken == ()
    assert lookup.stamp() == whole


def test_what_is_taken_is_left_out() -> None:
    """And nothing is looked up for it."""
    whole = probe.stamp()
    own = [getattr(sys.modules[module], name) for module, name in probe.SLOW.values()]
    for look in own:
        look.cache_clear()
    lookup = Lookup(LIMIT_S)
    lookup.take(surroundings())
    assert set(lookup.taken) == probe.SLOW.keys()
    assert lookup.stamp() == {n: v for n, v in whole.items() if n not in probe.SLOW}
    assert [look.cache_info().misses for look in own] == [0, 0]


def test_each_field_is_looked_up_once() -> None:
    """On two threads, and FlashInfer's own look is answered by what they have found."""
    whole = probe.stamp()
    own = [getattr(sys.modules[module], name) for module, name in probe.SLOW.values()]
    for look in own:
        look.cache_clear()
    lookup = Lookup(LIMIT_S)
    lookup.begin()
    assert lookup.stamp() == whole
    assert [look.cache_info().misses for look in own] == [1, 1]


def test_a_look_that_fails_fails_as_flashinfers_own(monkeypatch: Patch) -> None:
    """Not on the thread, where nobody would hear of it."""
    module, name = probe.SLOW[probe.BY_PROGRAMS]
    own = getattr(sys.modules[module], name)

    def fail() -> str:
        raise RuntimeError("planted")

    fail.cache_info = own.cache_info  # type: ignore[attr-defined]
    own.cache_clear()
    monkeypatch.setattr(sys.modules[module], name, fail)
    lookup = Lookup(LIMIT_S)
    lookup.begin()
    with pytest.raises(RuntimeError, match="planted"):
        lookup.stamp()


def test_a_look_without_an_end_ends_the_session(monkeypatch: Patch) -> None:
    """A program that hangs, on a dead network file system say: the engine goes on without us."""
    module, name = probe.SLOW[probe.BY_PROGRAMS]
    own, is_over = getattr(sys.modules[module], name), threading.Event()

    def hang() -> str:
        is_over.wait(LIMIT_S)
        return "late"

    hang.cache_info = own.cache_info  # type: ignore[attr-defined]
    own.cache_clear()
    monkeypatch.setattr(sys.modules[module], name, hang)
    lookup = Lookup(0.1)
    lookup.begin()
    with pytest.raises(SessionError, match="cublas_version: FlashInfer has looked it up for 0 s"):
        lookup.stamp()
    is_over.set()
