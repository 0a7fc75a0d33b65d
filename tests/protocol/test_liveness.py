# SPDX-License-Identifier: Apache-2.0
"""What is seen of a process from outside: real ones, stopped, killed and replaced."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from msgspec.structs import replace

from warmup_plugin.runtime import process_info
from warmup_plugin.runtime.polling import wait_until, within
from warmup_plugin.runtime.process_info import ProcessCard, own_card, view
from warmup_plugin.topology import machine_id

if TYPE_CHECKING:
    from tests.protocol.conftest import Child

#: Prints its card, then each line it is given again.
SHOWS_CARD = """
    import json, sys
    from warmup_plugin.runtime.process_info import own_card
    print(json.dumps(own_card().to_json()), flush=True)
    for line in sys.stdin:
        print(line.strip(), flush=True)
"""


def card_of(process: Child) -> ProcessCard:
    return ProcessCard(**json.loads(process.line()))


def test_this_process_runs() -> None:
    """So does its own card say."""
    assert view(own_card()) == "runs"
    assert own_card() == own_card()
    assert ProcessCard(**json.loads(json.dumps(own_card().to_json()))) == own_card()


def test_a_process_stopped_woken_and_killed(child: Callable[..., Child]) -> None:
    """Seen at once; also before its parent has taken notice of its end."""
    other = child(SHOWS_CARD)
    card = card_of(other)
    assert view(card) == "runs"
    other.send(signal.SIGSTOP)
    wait_until(lambda: view(card) == "stopped", within(5.0))
    other.send(signal.SIGCONT)
    wait_until(lambda: view(card) == "runs", within(5.0))
    assert other.ask("awake") == "awake"
    other.send(signal.SIGKILL)
    wait_until(lambda: view(card) == "gone", within(5.0))  # a zombie: nobody has waited for it
    assert (stat := process_info._stat(card.pid))[0] == "Z"
    assert stat[1] == card.started
    other.end()
    assert view(card) == "gone"


def test_a_process_id_that_was_given_out_again_is_another_process() -> None:
    """The kernel's start time tells the two apart."""
    assert view(replace(own_card(), started=own_card().started - 1)) == "gone"


@pytest.mark.parametrize("place", ["another machine/4026531836", ""])
def test_a_process_of_another_place_is_unseen(place: str) -> None:
    """Whatever process has that id here."""
    assert view(replace(own_card(), place=place)) == "unseen"


def test_another_pid_namespace_is_another_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """A container with the host's /proc finds other processes there under its ids: no place."""
    card = own_card()
    with monkeypatch.context() as patched:
        patched.setattr(os, "getpid", lambda: 1)
        inside = own_card()
        assert inside.place == f"{machine_id()}/process 1"
        assert view(card) == "unseen"
    assert view(inside) == "unseen"


def test_a_process_may_have_any_name(child: Callable[..., Child]) -> None:
    """Brackets and letters that look like a state are no state."""
    other = child(
        """
    import ctypes
    ctypes.CDLL(None).prctl(15, b") Z 1 2 (", 0, 0, 0)  # PR_SET_NAME
        """
        + SHOWS_CARD
    )
    assert view(card_of(other)) == "runs"


def test_a_fork_is_another_process(child: Callable[..., Child]) -> None:
    """Its card is its own, and its parent's is still its parent's."""
    other = child(
        """
        import json, os
        from warmup_plugin.runtime.process_info import own_card, view
        ours, (reader, writer) = own_card(), os.pipe()
        if os.fork() == 0:
            os.write(writer, json.dumps([own_card().to_json(), view(ours)]).encode())
            os._exit(0)
        theirs, seen = json.loads(os.read(reader, 4096))
        print(theirs["pid"] != ours.pid, theirs["place"] == ours.place, seen)
        """
    )
    assert other.line() == "True True runs"


@pytest.mark.parametrize("text", ["", "1 (cut off", "1 (short) R 1 2", None])
def test_a_process_that_ends_while_it_is_looked_at(text: str | None) -> None:
    """Whatever is read of it then, it is gone."""
    with pytest.MonkeyPatch.context() as patched:

        def read_text(*_arguments: object, **_options: object) -> str:
            if text is None:
                raise ProcessLookupError
            return text

        patched.setattr(Path, "read_text", read_text)
        assert process_info._stat(1) == ("X", -1)
