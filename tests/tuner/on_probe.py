# SPDX-License-Identifier: Apache-2.0
"""What `test_probe.py` runs in processes of their own: functions of an engine, for `launch`."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import Any

from flashinfer.autotuner import AutoTuner, get_autotune_process_group

from warmup_plugin.engines.embedded.parallel import tuning_over
from warmup_plugin.engines.embedded.worker import Engine
from warmup_plugin.tuner import compat

sys.path.append(str(Path(__file__).parents[2]))  # after all else: the package stays the wheel's

from tests.tuner import child, toys


class Lacking:
    """FlashInfer as this package would see it if one name had moved; FlashInfer itself is whole.

    ``where``: on its module, on its class or on its tuner.
    """

    def __init__(self, real: Any, at: str, where: str, name: str) -> None:
        vars(self).update(real=real, at=at, where=where, name=name)

    def __getattr__(self, name: str) -> Any:
        # A method is looked up on the object too, and so is missing there if the class has lost it.
        places = ("tuner", "AutoTuner") if self.at == "tuner" else (self.at,)
        if name == self.name and self.where in places:
            raise AttributeError(name)
        if (self.at, name) == ("module", "AutoTuner"):
            return Lacking(self.real.AutoTuner, "AutoTuner", self.where, self.name)
        if (self.at, name) == ("AutoTuner", "get"):
            return lambda: Lacking(self.real.get(), "tuner", self.where, self.name)
        return getattr(self.real, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.real, name, value)

    def __call__(self) -> Any:
        return Lacking(self.real(), "tuner", self.where, self.name)


def without(engine: Engine, where: str, name: str) -> Any:
    """Warm up with a FlashInfer that lacks a name."""
    ours: Any = compat
    ours.fi = Lacking(ours.fi, "module", where, name)
    modes = []

    def forward() -> None:
        modes.append(AutoTuner.get().is_tuning_mode)
        toys.toy_call()

    report = child.warm_unchecked(engine, forward)
    return report, compat.probe(), modes, toys.toy_call(), child.left_behind()


def groups(engine: Engine) -> list[bool]:
    """Where FlashInfer's process group stands, before, during and after an interrupted body."""
    group = engine.tuning_group
    seen = []
    with tuning_over(group):
        with contextlib.suppress(KeyboardInterrupt), compat.no_process_group():
            seen.append(get_autotune_process_group() is None)
            raise KeyboardInterrupt
        seen.append(get_autotune_process_group() is group is not None)
        seen.append(compat.process_group() is group)
    return seen


def capabilities(_engine: Engine) -> Any:
    return compat.probe(), compat.stamp()
