# SPDX-License-Identifier: Apache-2.0
"""The process in which the fleet is asked.

Owns what is asked, and when: a push waits until the engine serves, and ends where that ends before.
The request for the lease is answered by several lines, as things change; the last one is that of
the publication for which the lease is held, and a parent that goes away meanwhile frees it. Imports
what an action needs when it is asked for, since a start waits for this process. Never imported by
an engine.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from warmup_plugin.fleet.answering import answer_one, answered, end_after, lines, tell
from warmup_plugin.fleet.objects import FleetError, Objects
from warmup_plugin.fleet.pointer import Pointer, Whose, parse_pointer
from warmup_plugin.fleet.pull import Ahead, Pulled, look_ahead, pull
from warmup_plugin.fleet.request import Request, refusal
from warmup_plugin.runtime import health_page

if TYPE_CHECKING:
    from warmup_plugin.fleet.pull import Refuse
    from warmup_plugin.fleet.single_flight import Turn

#: How often a process that waits for an engine to serve looks again.
_LOOK_S: Final = 1.0
#: How long the engine's health page may take to answer, seconds.
_ANSWER_S: Final = 5.0
#: For so long what was read ahead is as good as read now, seconds.
_JUST_S: Final = 1.0
#: Variables of engines and GPUs, which an engine sets as it loads its model: no client reads them.
_NO_CLIENTS: Final = (
    "CUDA_", "FLASHINFER_", "LOCAL_", "MASTER_", "NCCL_", "OMP_", "RANK", "SGLANG_", "SGL_",
    "TORCH", "TRITON_", "VLLM_", "WORLD_",
)  # fmt: skip


#: The store as it was opened ahead, by what it was opened with: certificates are read for it.
_opened: Final[dict[tuple[str, str, float], Objects]] = {}
#: What was read ahead from it, or why it could not be; when that was; by whose it is.
_read: Final[dict[Whose, tuple[Ahead | FleetError, float]]] = {}


def main(parent: int) -> None:
    """Answer one request of the parent's; an empty one is none."""
    answer_one(Request, parent, _begun, _prepare)


def _prepare(request: Request) -> None:
    """Open the store ahead; where it is known whose tables will be asked for, read them, too."""
    objects = _opened[_way(request)] = _objects(request, writes=False)
    whose = request.whose
    if whose is None or _read_of(request) is not None:
        return
    place = Path(request.place) if request.place else None
    found: Ahead | FleetError
    end_after(request.limit_s)
    try:
        found = look_ahead(objects, whose, place, request.table_bytes, refusal(request))
    except FleetError as error:
        found = error
    finally:
        end_after(0)
    _read[whose] = found, time.monotonic()


def _read_of(request: Request) -> Ahead | FleetError | None:
    """Return what was read ahead, where it is what would be read now; None else.

    What the last request before this one has read is as good as new. While a model was loaded,
    another host may have published what was absent, or a store have come up.
    """
    if request.whose not in _read or _is_other(request):
        return None
    found, at = _read[request.whose]
    is_complete = isinstance(found, Ahead) and found.is_complete
    return found if is_complete or time.monotonic() - at < _JUST_S else None


def _objects(request: Request, *, writes: bool) -> Objects:
    """Return the store; the one that was opened ahead where the environment is as it was."""
    if not writes and not _is_other(request) and _way(request) in _opened:
        return _opened[_way(request)]
    return Objects(request.url, request.credentials, timeout_s=request.timeout_s, writes=writes)


def _is_other(request: Request) -> bool:
    """Return whether the environment is another one than what was opened ahead was opened in."""
    return any(not name.startswith(_NO_CLIENTS) for name in request.environ)


def _way(request: Request) -> tuple[str, str, float]:
    return request.url, request.credentials, request.timeout_s


def _begun(request: Request) -> Any:
    return _turn(request) if request.do == "turn" else _once(request)


def _once(request: Request, meanwhile: Callable[[], None] = lambda: None) -> Any:
    """Do what is asked once, a push when the engine serves; ``meanwhile``: as it waits for that."""
    if request.parent and (why := _wait_until_served(request, meanwhile)):
        return {"state": "failed", "reason": why}
    end_after(request.limit_s)
    return _answer(request)


def _turn(request: Request) -> Any:
    """Wait for the turn to tune; hold it until the table is published, or the engine has ended."""
    from warmup_plugin.fleet.single_flight import Asked, Turn, await_turn

    writes, whose = bool(request.holder), request.whose
    objects = _objects(request, writes=writes)
    assert whose is not None
    turn = Turn(objects, whose, request.holder, request.beat_s) if writes else None
    refuse = refusal(request)

    def place() -> Pulled:
        return pull(objects, whose, Path(request.place), request.table_bytes, refuse)

    def pause(seconds: float) -> None:
        end_after(request.limit_s + seconds)
        if _line(request, seconds) is not None:
            os._exit(0)  # nothing is held, and nothing is to be said

    end_after(request.limit_s)
    tasks = frozenset(request.tasks)
    asked = Asked(objects, whose, turn, request.bundle, tasks, place, tell)
    found = await_turn(asked, pause=pause)
    if found["state"] != "held":
        return found
    assert turn is not None
    tell(found)
    return _hold(turn, request)


def _hold(turn: Turn, request: Request) -> Any:
    """Renew the lease until the engine publishes or ends its part in it, and free it then."""

    def beat() -> None:
        end_after(request.limit_s)
        was_held = turn.is_held
        if _runs(request):
            turn.beat()
        if was_held and not turn.is_held:
            tell({"state": "lost"})

    try:
        while (line := _line(request, min(_LOOK_S, request.beat_s / 2))) is None:
            beat()
        if not line.strip():
            return {"state": "freed"}
        last = msgspec.json.decode(line, type=Request)
        turn.tell_failed(last.tasks)
        return answered(last, lambda asked: _once(asked, beat))
    finally:
        turn.free()


def _line(request: Request, limit_s: float) -> bytes | None:
    """Return the engine's next line, an empty one where it has ended; None where it says nothing.

    A child of the engine may hold the other end of the pipe.
    """
    line = lines.next(limit_s)
    return line if line is not None or os.getppid() == request.parent else b""


def _runs(request: Request) -> bool:
    """Return whether the engine's process is not stopped, as far as this one sees it."""
    from warmup_plugin.runtime.process_info import ProcessCard, view

    return request.engine is None or view(ProcessCard(**request.engine)) != "stopped"


def _answer(request: Request) -> Any:
    writes = request.do in ("push", "sign")
    objects = _objects(request, writes=writes)
    if request.do == "list":
        return {"state": "listed", "rows": _rows(objects)}
    assert request.whose is not None
    place = Path(request.place)
    refuse = refusal(request)
    if request.do == "pull":
        ahead = _read_of(request)
        if isinstance(ahead, FleetError):
            return Pulled(state="failed", reason=str(ahead))
        return pull(objects, request.whose, place, request.table_bytes, refuse, ahead=ahead)
    if request.do == "push":
        return _push(objects, request.whose, place, request, refuse)
    if request.do == "sign":
        return _sign(objects, request.whose, request)
    return _get(objects, request.whose, place, request.table_bytes, refuse)


def _push(objects: Objects, whose: Whose, place: Path, request: Request, refuse: Refuse) -> Any:
    from warmup_plugin.fleet.push import leave_unsigned, push

    if not request.sign_key:
        return push(objects, whose, place, request.table_bytes, refuse=refuse, sign=leave_unsigned)
    from warmup_plugin.fleet.signing import signed

    def sign(pointer: Pointer, whose: Whose) -> Pointer:
        return signed(pointer, whose, request.sign_key)

    return push(objects, whose, place, request.table_bytes, refuse=refuse, sign=sign)


def _sign(objects: Objects, whose: Whose, request: Request) -> Any:
    """Add a signature to the latest bundle of an identity, whichever host has published it."""
    from warmup_plugin.fleet.pointer import render_pointer
    from warmup_plugin.fleet.pull import latest
    from warmup_plugin.fleet.signing import signed
    from warmup_plugin.runtime.safe_json import Miss

    seen = objects.pointer(whose)
    found = latest(objects, whose, request.table_bytes)
    if isinstance(found, Miss):
        return {"state": "failed", "reason": found.reason}
    pointer = signed(found[0], whose, request.sign_key)
    if not objects.swap(whose, render_pointer(pointer), seen):
        return {"state": "failed", "reason": "another host has published meanwhile: look again"}
    return {"state": "signed", "bundle": pointer.bundle}


def _rows(objects: Objects) -> list[dict[str, Any]]:
    """Return every identity of the fleet with what its pointer says."""
    rows = []
    for whose in sorted(objects.all_pointers()):
        seen = objects.pointer(whose)
        found = parse_pointer(seen.data, whose.identity) if seen else None
        row: dict[str, Any] = {"version": whose.version, "arch": whose.arch,
                               "identity": whose.identity}  # fmt: skip
        if isinstance(found, Pointer):
            row["pointer"] = found
        elif found is not None:
            row["fault"] = found.reason
        rows.append(row)
    return rows


def _get(objects: Objects, whose: Whose, place: Path, table_bytes: int, refuse: Refuse) -> Any:
    """Write the latest bundle of an identity to a file, as `pack` would have."""
    from warmup_plugin.fleet.pull import Pulled, latest
    from warmup_plugin.runtime.safe_json import Miss

    found = latest(objects, whose, table_bytes, refuse)
    if isinstance(found, Miss):
        return Pulled(state="absent" if found.kind == "absent" else "refused", reason=found.reason)
    pointer, bundle = found
    place.write_bytes(bundle.data)
    return Pulled(
        state="fetched", bundle=pointer.bundle, generation=pointer.generation,
        entries=pointer.entries, complete=pointer.complete, bytes=len(bundle.data),
    )  # fmt: skip


def _wait_until_served(request: Request, meanwhile: Callable[[], None]) -> str:
    """Return once the engine serves; else why nothing is published."""
    began = time.monotonic()
    while time.monotonic() - began < request.after_s:
        meanwhile()
        time.sleep(min(_LOOK_S, request.after_s))
        if os.getppid() != request.parent:
            return "the engine's process has ended before it served"
    if not request.health:
        return ""
    while not health_page.answers(request.health, _ANSWER_S):
        if os.getppid() != request.parent:
            return "the engine's process has ended before it served"
        if time.monotonic() - began > request.health_limit_s:
            return f"{request.health} did not answer 200 in {request.health_limit_s:.0f} s"
        meanwhile()
        time.sleep(_LOOK_S)
    return ""
