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

    from warmup_plugin.coordination.kv_client import StoreLink
    from warmup_plugin.coordination.seals import Seal
    from warmup_plugin.early import begin_early
    from warmup_plugin.errors import (
        ForwardError,
        IdentityError,
        InstallError,
        LateError,
        PlacementError,
        RankLostError,
        RefusedError,
        RuleError,
        SessionError,
        SettingError,
        WarmupError,
    )
    from warmup_plugin.identity import Identity
    from warmup_plugin.kernel_warmup import Session, session, warm_up
    from warmup_plugin.observability.report import Agreement, WarmupReport
    from warmup_plugin.observability.report_rows import (
        FileRead,
        FleetAnswer,
        FleetCheck,
        RankStats,
        Span,
        Wait,
        Winner,
    )
    from warmup_plugin.observability.serving import serving_fallbacks
    from warmup_plugin.runtime.process_info import ProcessCard
    from warmup_plugin.settings import (
        FleetCredentials,
        FleetRole,
        ForwardFailure,
        Mode,
        OnHit,
        Settings,
        Strategy,
        Untested,
    )
    from warmup_plugin.steps.options import AnyPath, EngineInfo, Progress, TuningContext
    from warmup_plugin.topology import RankInfo
    from warmup_plugin.tuner.known_ops import KnownOps, known_ops

__all__ = [
    "Agreement",
    "AnyPath",
    "EngineInfo",
    "FileRead",
    "FleetAnswer",
    "FleetCheck",
    "FleetCredentials",
    "FleetRole",
    "ForwardError",
    "ForwardFailure",
    "Identity",
    "IdentityError",
    "InstallError",
    "KnownOps",
    "LateError",
    "Mode",
    "OnHit",
    "PlacementError",
    "ProcessCard",
    "Progress",
    "RankInfo",
    "RankLostError",
    "RankStats",
    "RefusedError",
    "RuleError",
    "Seal",
    "Session",
    "SessionError",
    "SettingError",
    "Settings",
    "Span",
    "StoreLink",
    "Strategy",
    "TuningContext",
    "Untested",
    "Wait",
    "WarmupError",
    "WarmupReport",
    "Winner",
    "begin_early",
    "known_ops",
    "serving_fallbacks",
    "session",
    "warm_up",
]

#: By public name: the module that has it, where that is not `errors`.
_HOMES = {
    "Agreement": "observability.report",
    "AnyPath": "steps.options",
    "EngineInfo": "steps.options",
    "FileRead": "observability.report_rows",
    "FleetAnswer": "observability.report_rows",
    "FleetCheck": "observability.report_rows",
    "FleetCredentials": "settings",
    "FleetRole": "settings",
    "ForwardFailure": "settings",
    "Identity": "identity",
    "KnownOps": "tuner.known_ops",
    "Mode": "settings",
    "OnHit": "settings",
    "ProcessCard": "runtime.process_info",
    "Progress": "steps.options",
    "RankInfo": "topology",
    "RankStats": "observability.report_rows",
    "Seal": "coordination.seals",
    "Session": "kernel_warmup",
    "Settings": "settings",
    "Span": "observability.report_rows",
    "StoreLink": "coordination.kv_client",
    "Strategy": "settings",
    "TuningContext": "steps.options",
    "Untested": "settings",
    "Wait": "observability.report_rows",
    "WarmupReport": "observability.report",
    "Winner": "observability.report_rows",
    "begin_early": "early",
    "known_ops": "tuner.known_ops",
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
