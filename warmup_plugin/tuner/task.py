# SPDX-License-Identifier: Apache-2.0
"""A recorded tuning call and its tasks.

Owns what identifies a task: custom op, the set of runner classes with each runner's cache key
extras, mapped profile. One task has several possible file keys, one per runner, because
FlashInfer's key holds the runner's class. The order of the runners is no part of it: some ops
order, or choose, them by the batch. Extras that are this rank's own number (twins,
`KnownOps.twin_fields`) or that follow the batch are replaced by the field's name, so that ranks and
calls which differ in nothing else hold one task. Where extras follow the batch, FlashInfer finds a
winner again at the very size alone, so each size of a bucket that is met is a task (`bucket_id`).
"""

from __future__ import annotations

import enum
import functools
import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal

import msgspec
import torch

from warmup_plugin.cache.table import Tactic
from warmup_plugin.tuner.compat import Options

Shapes = tuple[tuple[int, ...], ...]
Switches = tuple[tuple[str, str], ...]
#: ``default`` is known, without a winner: nothing is tuned or stored. ``refused``: the entry that
#: answers it cannot be used; as good as missing, on every rank. ``unshared``: each rank tunes it
#: for itself, at every start.
State = Literal["known", "default", "missing", "unshared", "refused"]

#: How many further runners with the same key and other numbers are kept to compare candidates.
MOST_RIVALS = 3


class Call(msgspec.Struct, eq=False, weakref=True):
    """One intercepted ``choose_one``, as it was at that moment.

    ``inputs`` holds stand-ins and clones (`capture.py`), ``config`` the effective tuning config
    with the engine's bucket overrides applied. ``runners`` stand in the order of the call;
    ``places`` leads from the order of a task's keys (`canonical`) to them.
    """

    op: str
    runners: list[Any]
    places: list[int]
    config: Any
    inputs: list[Any]
    kwargs: dict[str, Any]
    options: Options
    inference: bool
    stream: Any
    width: int


class Task(msgspec.Struct, eq=False, weakref=True):
    """One recorded call at one bucket. ``keys`` are its file keys, in the order of `canonical`.

    Where the agreed table answers it: ``served``, what the tuner served in the survey, as (runner
    class, tactic), and whether the table says so too. Of a task that a vouched table answers no
    call is kept: the copies of a thousand calls are a third of a warm survey. ``switches``:
    `options_of` its runners. ``firsts``: the places in ``keys`` of the runners that stood first in
    some call, whose defaults serve where nothing is tuned. ``bucket_id``: what tasks at several
    sizes of one bucket have in common, empty where a bucket is one task; ``sized``: the places of
    the keys that hold the size and are no other task's; ``met``: the place in which this rank met
    the task.
    """

    id: str
    op: str
    keys: tuple[str, ...]
    shapes: Shapes
    buckets: tuple[int, ...]
    call: Call | None
    state: State
    reason: str = ""
    served: tuple[str, Tactic] | None = None
    is_agreed: bool = False
    rivals: tuple[Call, ...] = ()
    switches: Sequence[Switches] = ()
    firsts: frozenset[int] = frozenset()
    bucket_id: str = ""
    sized: frozenset[int] = frozenset()
    met: int = 0

    def recorded(self) -> Call:
        """Return the call, of a task that is to be replayed."""
        assert self.call is not None, f"{self.label}: no call was kept"
        return self.call

    def recorded_buckets(self) -> tuple[int, ...]:
        """Return the sizes of the dynamic dimensions of the recorded call, one per spec."""
        call = self.recorded()
        specs, inputs = call.config.dynamic_tensor_specs, call.inputs
        first = ((spec.input_idx[0], spec.dim_idx[0]) for spec in specs)
        sizes = (tuple(getattr(inputs[index], "shape", (0,)))[dim] for index, dim in first)
        return tuple(sizes)

    @property
    def at(self) -> str:
        """Return the buckets in words."""
        return "x".join(map(str, self.buckets)) or "fixed"

    @property
    def label(self) -> str:
        """Return a short name for people: op and buckets."""
        return f"{self.op} @ {self.at}"


class Extras(msgspec.Struct, frozen=True):
    """A runner's cache key extras: as they are, and with this rank's own numbers named.

    ``follows_batch``: some of them are another at another batch, and named in ``neutral``.
    """

    real: tuple[Any, ...]
    neutral: str
    is_twin: bool
    follows_batch: bool = False


def name_fields(
    real: tuple[Any, ...], own: Mapping[int, tuple[str, int]], batch: Collection[int] = ()
) -> Extras:
    """Replace each field that holds this rank's own number, or follows the batch, by a name.

    ``own``: index in the extras -> (name, this rank's number). ``batch``: indices.
    """
    named = list(real)
    for index, (name, number) in own.items():
        if index < len(real) and type(real[index]) is int and real[index] == number:
            named[index] = f"<{name}>"
    is_twin = named != list(real)
    for index in batch:
        named[index] = "<batch>"
    return Extras(real, str(tuple(named)), is_twin, follows_batch=bool(batch))


def canonical(named: Sequence[tuple[str, Extras]]) -> list[int]:
    """Return the places of a call's runners in an order that all ranks and calls share."""
    return sorted(range(len(named)), key=lambda place: (named[place][0], named[place][1].neutral))


class TaskIds:
    """The ids of one call's tasks, 32 hex digits, equal on every rank that holds the same task.

    The pipeline stage is no part of them: stages with one file key have one entry in any table, and
    what else a twin's key holds (sizes, types, layouts) is equal or it is no twin.
    """

    def __init__(self, op: str, runners: Sequence[tuple[str, Extras]]) -> None:
        common = json.dumps([op, sorted([name, extras.neutral] for name, extras in runners)])
        self._common = hashlib.sha256(f"{common[:-1]}, ".encode())

    def at(self, profile: Shapes) -> str:
        """Return the id of the task at this mapped profile; the rest has been hashed once."""
        found = self._common.copy()
        # A list of lists of whole numbers is its own JSON.
        found.update(f"{[[*shape] for shape in profile]}]".encode())
        return found.hexdigest()[:32]


def options_of(runner: Any) -> Switches:
    """Return the runner's switches: what must be equal wherever one file key is used.

    Flags, names, enums and dtypes. Not integers and floats: sizes, scales and counters differ
    between calls that a key joins on purpose; those are compared by their candidates instead.
    """
    kinds = (bool, str, enum.Enum, torch.dtype)
    return tuple(
        sorted((name, repr(v)) for name, v in _state(runner).items() if isinstance(v, kinds))
    )


def numbers_of(runner: Any) -> tuple[tuple[str, float], ...]:
    """Return the runner's plain numbers, by which two runners of one key may still differ."""
    state = _state(runner).items()
    numbers = [(name, v) for name, v in state if type(v) in (int, float)]
    return tuple(sorted(numbers))


def may_differ(ours: Sequence[Any], theirs: Sequence[Any]) -> bool:
    """Return whether two runner lists of one key may still have other candidates.

    Their plain numbers differ, and FlashInfer's memory, which holds the hash, tells them apart.
    """
    in_order = (sorted(runners, key=lambda r: type(r).__name__) for runners in (ours, theirs))
    pairs = zip(*in_order, strict=True)
    return any(numbers_of(a) != numbers_of(b) and hash(a) != hash(b) for a, b in pairs)


def _state(runner: Any) -> dict[str, Any]:
    attributes, derived = getattr(runner, "__dict__", {}), _derived(type(runner))
    # FlashInfer leaves the same names out of a runner's hash (`TunableRunner.__hash__`).
    return {
        name: v for name, v in attributes.items()
        if not name.endswith("_cache") and name not in derived
    }  # fmt: skip


#: By name: FlashInfer makes some of its runner classes anew for each call.
_known_derived: dict[str, frozenset[str]] = {}


def _derived(kind: type) -> frozenset[str]:
    """Return the attributes that a class computes at the first look: no state of their own."""
    name = f"{kind.__module__}.{kind.__qualname__}"
    if (found := _known_derived.get(name)) is None:
        members = (item for base in kind.__mro__ for item in vars(base).items())
        cached = (n for n, member in members if isinstance(member, functools.cached_property))
        found = _known_derived[name] = frozenset(cached)
    return found
