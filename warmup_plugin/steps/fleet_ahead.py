# SPDX-License-Identifier: Apache-2.0
"""Tells the process that asks the fleet, ahead of time, what rank 0 is going to ask for.

Owns the guess, and when it is made: as the model begins to load, where the host has kept a look at
its environment, and again as the ranks meet. The guess may be wrong: the process has then read some
objects in vain, and is asked as without it. No function here raises.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from warmup_plugin.fleet import client
from warmup_plugin.identity import Identity
from warmup_plugin.steps.fleet_place import foreseen_place
from warmup_plugin.steps.fleet_request import request_of
from warmup_plugin.steps.open_decision import foreseen_factors
from warmup_plugin.tuner import environment, environment_stamp

if TYPE_CHECKING:
    from warmup_plugin.identity import Factors
    from warmup_plugin.settings import Settings


class Roots(NamedTuple):
    """The settings of a warm-up, and where its files lie; `Options` has all of it, too."""

    settings: Settings
    cache_root: Path | None
    engine_cache_root: Path | None


def read_with_loading(worker: client.Worker, identity: Identity, roots: Roots) -> None:
    """Have the process read what a warm-up of this identity asks for, where a look is kept."""
    with contextlib.suppress(Exception):  # the engine loads its model all the same
        folder = environment_stamp.folder_of(*roots)
        stamp = environment_stamp.foreseen(folder)
        if stamp is not None:
            found = identity.with_factors(**environment.factors(stamp))
            announce(worker, {**found.factors}, roots)


def announce(worker: client.Worker, factors: Factors, roots: Roots) -> None:
    """Have the process read what a warm-up asks for; ``factors``: the environment's included."""
    with contextlib.suppress(Exception):  # `Fleet.ask` says what is wrong, if it is wrong then
        settings = roots.settings
        if settings.strategy == "per_rank":
            return
        identity = Identity(foreseen_factors(factors)).digest
        place = foreseen_place(roots, identity)
        worker.announce(request_of(settings, "pull", identity, place, settings.fleet_wait_s))
