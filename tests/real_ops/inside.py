# SPDX-License-Identifier: Apache-2.0
"""What is done and seen in a process with the GPU in place: tune, warm up, count, ask.

Owns the two ways of tuning, FlashInfer alone and the plugin's, and the looks at the tuner.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from flashinfer.autotuner import AutoTuner

from tests.real_ops.contexts import CONTEXTS
from warmup_plugin import Identity, warm_up
from warmup_plugin.observability.report import WarmupReport
from warmup_plugin.settings import Settings


class ChildFailedError(Exception):
    """What a child raised, as text."""


def alone(forward: Callable[[], object], context: str = "plain") -> None:
    """Tune with FlashInfer alone, from nothing."""
    AutoTuner.get().clear_cache()
    with CONTEXTS[context]():
        forward()


def ours(
    forward: Callable[[], object],
    root: str | Path,
    margin: float = 0.0,
    *,
    race: bool = False,
    **options: Any,
) -> WarmupReport:
    """Warm up with the plugin, with nothing in the tuner."""
    AutoTuner.get().clear_cache()
    given = {"tuning_context": CONTEXTS["plain"], **options}
    return warm_up(
        forward,
        identity=Identity.of(model="real ops", dtype="bfloat16"),
        cache_root=Path(root),
        settings=Settings.from_env(margin=margin, race=race),
        **given,
    )


def entries() -> dict[str, list[Any]]:
    """Return what the tuner holds, as FlashInfer saves it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "saved.json")
        try:
            AutoTuner.get().save_configs(str(path))
        except TypeError:  # a tactic that is no JSON: FlashInfer keeps it in memory only
            return {}
        found: dict[str, list[Any]] = json.loads(path.read_text())
    return {key: value for key, value in found.items() if not key.startswith("_")}


def tasks(root: str | Path) -> list[dict[str, Any]]:
    """Return the stored tasks, as the manifests have them."""
    paths = Path(root).rglob("*.manifest.json")
    return [task for path in paths for task in json.loads(path.read_text())["tasks"].values()]


@contextlib.contextmanager
def serving(found: list[list[Any]], size: Callable[[], int]) -> Iterator[None]:
    """Note every answer of ``choose_one`` in the body: op, batch, runner class, tactic."""
    tuner: Any = AutoTuner.get()
    original = AutoTuner.choose_one

    def choose_one(custom_op: str, runners: Any, *args: Any, **kwargs: Any) -> Any:
        runner, tactic = original(tuner, custom_op, runners, *args, **kwargs)
        plain = json.loads(json.dumps(tactic, default=str))
        found.append([custom_op, size(), type(runner).__name__, plain])
        return runner, tactic

    tuner.choose_one = choose_one
    try:
        yield
    finally:
        del tuner.choose_one


def served(step: Callable[[int], object], sizes: tuple[int, ...]) -> list[list[Any]]:
    """Return what serving gets at each batch, outside any context."""
    found: list[list[Any]] = []
    for size in sizes:
        with serving(found, lambda at=size: at):  # type: ignore[misc]  # mypy cannot infer it
            step(size)
    return found


def in_child(work: Callable[[], Any]) -> Any:
    """Fork, work, and take the result back as JSON: what it tuned and compiled stays there.

    A child that hangs ends with the server's child that made it, whose time is bounded.
    """
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        pid = os.fork()
        if pid == 0:
            try:
                found = {"result": work()}
            except Exception:  # noqa: BLE001  # it is what is sent back
                found = {"error": traceback.format_exc()[-4000:]}
            Path(file.name).write_text(json.dumps(found, default=str))
            os._exit(0)
        os.waitpid(pid, 0)
        text = Path(file.name).read_text()
    found = json.loads(text) if text else {"error": "the process died"}
    if "error" in found:
        raise ChildFailedError(found["error"])
    return found["result"]
