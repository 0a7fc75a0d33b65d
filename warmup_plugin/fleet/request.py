# SPDX-License-Identifier: Apache-2.0
"""What the process of `worker.py` is asked, in one line of JSON.

Owns the request's fields, and which bundles they have refused. What signatures need is imported
where keys are set.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from warmup_plugin.fleet.answering import Asking
from warmup_plugin.fleet.pointer import Pointer, Whose
from warmup_plugin.fleet.pull import Refuse, take_all


class Request(Asking, kw_only=True):
    """What is asked. ``do``: pull into ``place``, push what lies there, list, get, sign, or turn.

    ``limit_s`` is for all of it once an engine serves, ``timeout_s`` for one request. A push waits
    until an engine serves where ``parent`` is its process: ``after_s`` of life, and an answer of
    ``health``, where that is given. A turn is waited for and held for the ``engine``, a
    `ProcessCard`, by its ``holder`` in words, who renews the lease each ``beat_s``; without a
    ``holder`` it is waited for alone. ``bundle``: the latest that the engine knows; ``tasks``:
    those that it lacks, or those that a push has had no result for. ``passed_over``: bundles that
    are not used on this host, each with the reason.
    """

    do: str
    url: str
    credentials: Literal["given", "anonymous", "instance"]
    limit_s: float
    timeout_s: float
    table_bytes: int
    whose: Whose | None = None
    place: str = ""
    keys: tuple[str, ...] = ()
    sign_key: str = ""
    parent: int = 0
    after_s: float = 0.0
    health: str | None = None
    health_limit_s: float = 0.0
    engine: dict[str, Any] | None = None
    holder: str = ""
    beat_s: float = 0.0
    bundle: str = ""
    tasks: tuple[str, ...] = ()
    passed_over: dict[str, str] = msgspec.field(default_factory=dict)


def refusal(request: Request) -> Refuse:
    """Return what says which bundles are not used."""
    by_keys = _refuse_strangers(request)

    def refuse(pointer: Pointer, whose: Whose) -> str:
        return request.passed_over.get(pointer.bundle) or by_keys(pointer, whose)

    return refuse


def _refuse_strangers(request: Request) -> Refuse:
    """Return what says by which keys a bundle must be signed to be used."""
    if not (request.keys or request.sign_key):
        return take_all
    from warmup_plugin.fleet.signing import Keys

    keys = Keys(request.keys)
    if request.sign_key:
        keys.add(request.sign_key)
    return keys.refuse
