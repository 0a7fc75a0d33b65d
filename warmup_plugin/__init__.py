# SPDX-License-Identifier: Apache-2.0
"""Tune FlashInfer kernels once, start warm everywhere, never hang.

Engines load this package in every process, so importing it imports nothing else: the public names
below are looked up when they are first used.
"""

from __future__ import annotations

__version__ = "0.1.0"

TYPE_CHECKING = False  # to type checkers it is true, as typing's is, whose import takes the longest
if TYPE_CHECKING:
    from typing import Any

    from warmup_plugin.errors import (
        ForwardError,
        IdentityError,
        InstallError,
        LateError,
        PlacementError,
        RankLostError,
        RuleError,
        SessionError,
        SettingError,
        WarmupError,
    )
    from warmup_plugin.identity import Identity
    from warmup_plugin.kernel_warmup import session, warm_up
    from warmup_plugin.observability.report import WarmupReport
    from warmup_plugin.observability.serving import serving_fallbacks
    from warmup_plugin.settings import Settings
    from warmup_plugin.topology import RankInfo
    from warmup_plugin.tuner.known_ops import KnownOps

__all__ = [
    "ForwardError",
    "Identity",
    "IdentityError",
    "InstallError",
    "KnownOps",
    "LateError",
    "PlacementError",
    "RankInfo",
    "RankLostError",
    "RuleError",
    "SessionError",
    "SettingError",
    "Settings",
    "WarmupError",
    "WarmupReport",
    "serving_fallbacks",
    "session",
    "warm_up",
]

_HOMES = {
    "Identity": "identity",
    "KnownOps": "tuner.known_ops",
    "RankInfo": "topology",
    "Settings": "settings",
    "WarmupReport": "observability.report",
    "serving_fallbacks": "observability.serving",
    "session": "kernel_warmup",
    "warm_up": "kernel_warmup",
}


def __getattr__(name: str) -> Any:
    """Import a public name at its first use."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    home = importlib.import_module(f"{__name__}.{_HOMES.get(name, 'errors')}")
    return getattr(home, name)
