# SPDX-License-Identifier: Apache-2.0
"""What `test_explorer.py` runs on the ranks of a real engine: a warm-up, its meeting watched."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from warmup_plugin.coordination.coordinator import Coordinator
from warmup_plugin.engines.embedded.worker import Engine, warm_up_rank


def calls(engine: Engine) -> list[str]:
    """Warm up; return what the steps asked of the meeting, in order."""
    seen: list[str] = []
    under_way: list[str] = []
    for name in (
        "meet", "put", "offer", "expect", "get", "confirm", "note", "take", "close",
    ):  # fmt: skip
        method = _watched(name, getattr(Coordinator, name), seen, under_way)
        setattr(Coordinator, name, method)
    warm_up_rank(engine)
    return seen


def _watched(
    name: str, method: Callable[..., Any], seen: list[str], under_way: list[str]
) -> Callable[..., Any]:
    def call(coordinator: Coordinator, *args: Any, **options: Any) -> Any:
        # What `meet` itself calls is the meeting's own; bodies are asked for by the decision in it.
        decides = coordinator.rank == 0 and under_way == ["meet"]
        if not under_way or (decides and name in ("put", "get")):
            what = {"meet": lambda: args[0].name, "note": lambda: args[0]}.get(name)
            seen.append(f"{name} {what()}" if what is not None else name)
        under_way.append(name)
        try:
            return method(coordinator, *args, **options)
        finally:
            under_way.pop()

    return call
