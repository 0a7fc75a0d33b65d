# SPDX-License-Identifier: Apache-2.0
"""The process that will ask the fleet, begun before the session that asks.

Owns the one that waits in this process, idle, until rank 0's first session takes it. It ends by
itself where the engine's process does, and where nothing is asked for an hour. A child that is
forked meanwhile closes its pipes. Without one a session begins its own, so nothing here raises.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from warmup_plugin.fleet import client, location

if TYPE_CHECKING:
    from warmup_plugin.settings import Settings

#: Modules that the process needs where bundles are signed; it imports them before it is asked.
_SIGNING: Final = (
    "warmup_plugin.fleet.signing", "cryptography.hazmat.primitives.asymmetric.ed25519",
    "cryptography.hazmat.primitives.serialization",
)  # fmt: skip
#: The process that waits; never more than one.
_waiting: Final[list[client.Worker]] = []


def begin(settings: Settings) -> client.Worker | None:
    """Return the one that waits, begun where there was none; None where no fleet would be asked."""
    if _waiting:
        return _waiting[0]
    if settings.fleet is None:
        return None
    place = location.parse(settings.fleet)
    if location.lacking(place, settings.fleet_credentials, os.environ):
        return None
    has_keys = bool(settings.fleet_keys or settings.fleet_signing_key)
    worker = client.Worker(also=_SIGNING if has_keys else ())
    limit_s = settings.fleet_wait_s
    worker.announce({
        "do": "pull", "url": settings.fleet, "credentials": settings.fleet_credentials,
        "limit_s": limit_s, "timeout_s": limit_s * client.ONE_REQUEST,
        "table_bytes": settings.table_bytes,
    })  # fmt: skip
    _waiting.append(worker)
    return worker


def taken() -> client.Worker | None:
    """Return the one that waits, now the caller's; None without one."""
    if not _waiting:
        return None
    worker = _waiting.pop()
    if worker.waits:
        return worker
    worker.close()
    return None


def _forget() -> None:
    """In a forked child: end nothing that is the parent's, and keep none of its pipes open."""
    while _waiting:
        _waiting.pop().forget()


os.register_at_fork(after_in_child=_forget)
