# SPDX-License-Identifier: Apache-2.0
"""What every request to the process that asks the fleet says, by this start's settings."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from warmup_plugin.fleet import client
from warmup_plugin.tuner import compat, environment

if TYPE_CHECKING:
    from warmup_plugin.settings import Settings


def request_of(
    settings: Settings, do: str, identity: str, place: Path | None, limit_s: float
) -> dict[str, Any]:
    """Return a request for this identity; `fleet/request.py` says what its fields are."""
    return {
        "do": do, "url": settings.fleet, "credentials": settings.fleet_credentials,
        "limit_s": limit_s, "timeout_s": limit_s * client.ONE_REQUEST,
        "table_bytes": settings.table_bytes, "place": str(place or ""),
        "keys": [str(path) for path in settings.fleet_keys],
        "sign_key": str(settings.fleet_signing_key or ""),
        "whose": [compat.version(), environment.architecture(), identity],
    }  # fmt: skip
