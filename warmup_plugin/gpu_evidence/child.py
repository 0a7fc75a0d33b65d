# SPDX-License-Identifier: Apache-2.0
"""A child of the measurement: one way of starting, op after op.

``python -m warmup_plugin.gpu_evidence.child SPEC`` (JSON). Owns how FlashInfer is started alone and
with this package, and what is noted of it. Says what it does in JSON lines on the descriptor that
the parent gave it, since compilers and libraries write to the others. An op that fails is a row
with the reason; where it has left the device unusable, the child ends, and the parent starts
another for the rest.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import flashinfer
import torch
from flashinfer.autotuner import AutoTuner

import warmup_plugin
from warmup_plugin.engines.embedded.config import resolve
from warmup_plugin.engines.embedded.count_calls import count_calls, tuning_functions
from warmup_plugin.gpu_evidence import facts, timing
from warmup_plugin.gpu_evidence.ops import OPS, Op, Prepare, for_capability
from warmup_plugin.gpu_evidence.spec import Spec
from warmup_plugin.identity import Identity
from warmup_plugin.kernel_warmup import warm_up


def main(argv: Sequence[str]) -> None:
    """Do what the specification says."""
    spec = Spec.from_json(argv[0])

    def say(**line: Any) -> None:
        os.write(spec.talk, json.dumps(line).encode() + b"\n")

    ops: Sequence[Op] = (resolve(spec.stand_in)() if spec.stand_in else None) or OPS
    if spec.way == "ops":
        say(facts=facts.find(), names=_names(ops) if torch.cuda.is_available() else [])
        return
    by_name = {op.name: op for op in ops}
    for name in spec.names:
        say(begins=name)
        try:
            row = _Start(spec, by_name[name]).row()
        except Exception as error:  # noqa: BLE001  # whatever an op raises is what is told of it
            row = {"error": f"{type(error).__name__}: {error}"[:400]}
        say(ends=name, row=row)
        AutoTuner.get().clear_cache()
        torch.cuda.synchronize()  # raises for ever after a kernel has failed: the child ends
        torch.cuda.empty_cache()


def _names(ops: Sequence[Op]) -> list[str]:
    return [op.name for op in for_capability(ops, torch.cuda.get_device_capability())]


class _Start:
    """One op, started in one way."""

    def __init__(self, spec: Spec, op: Op) -> None:
        self._spec, self._op = spec, op
        self._folder = Path(spec.folder)
        self._saved = self._folder / f"alone-{op.name.replace(' ', '-')}.json"

    def row(self) -> dict[str, Any]:
        """Return what there is to tell of it."""
        torch.manual_seed(0)
        AutoTuner.get().clear_cache()
        prepare = self._op.make()
        # Once on defaults: what FlashInfer compiles for the op as a whole is in no way's seconds.
        build_s, _ = _timed(lambda: self._forward(prepare))
        start = self._alone if self._spec.way == "alone" else self._ours
        with count_calls(**tuning_functions()) as counts:
            seconds, told = _timed(lambda: start(prepare))
        found = {
            "seconds": seconds,
            "build_s": build_s,
            "timed": counts["profile_single_kernel"],
            "synthesised": counts["prepare_input_tensors"],
            "served": self._serve(prepare),
            **told,
        }
        if self._spec.way == "warm":
            found["again"] = self._measure(prepare)
        return found

    def _forward(self, prepare: Prepare) -> None:
        for batch in self._spec.batches:
            prepare(batch)()

    def _alone(self, prepare: Prepare) -> dict[str, Any]:
        with flashinfer.autotune(True):
            self._forward(prepare)
        AutoTuner.get().save_configs(str(self._saved))
        return {"entries": _entries(self._saved)}

    def _ours(self, prepare: Prepare) -> dict[str, Any]:
        report = warm_up(
            lambda: self._forward(prepare),
            identity=Identity.of(model={"op": self._op.name}, dtype="bfloat16"),
            cache_root=self._folder / "root",
            engine=("gpu_evidence", warmup_plugin.__version__),
        )
        return {
            "entries": _entries(Path(report.path)) if report.path else {},
            "tasks": dict(report.tasks),
            "agreement": report.agreement,
            "told": [*report.warnings, *report.unshared.values(), *report.passed_through.values()],
        }

    def _serve(self, prepare: Prepare) -> list[list[Any]]:
        with _noting() as found:
            for batch in self._spec.served:
                found.append(batch)
                prepare(batch)()
        served, batch = [], 0
        for item in found:
            if isinstance(item, int):
                batch = item
            else:
                served.append([batch, *item])
        return served

    def _measure(self, prepare: Prepare) -> dict[str, dict[str, float]]:
        tuner = AutoTuner.get()

        def alone() -> None:
            tuner.clear_cache()
            if not tuner.load_configs(str(self._saved)):
                raise RuntimeError("FlashInfer does not load the table that it has saved")

        ways: dict[str, Callable[[], object]] = {
            "ours": lambda: None, "default": tuner.clear_cache, "alone": alone,
            "alone again": alone,
        }  # fmt: skip
        return timing.measure(prepare, self._spec.served, ways)


def _timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Return the seconds until the device has done the work, and what it returned."""
    began = time.monotonic()
    found = work()
    torch.cuda.synchronize()
    return time.monotonic() - began, found


def _entries(path: Path) -> dict[str, Any]:
    found = json.loads(path.read_text(encoding="utf-8"))
    return {key: value[:2] for key, value in found.items() if not key.startswith("_")}


@contextmanager
def _noting() -> Iterator[list[Any]]:
    """Note what every `choose_one` of the body answers: [op, runner class, tactic]."""
    tuner, found = AutoTuner.get(), list[Any]()
    choose_one = tuner.choose_one

    def noted(custom_op: str, *args: Any, **kwargs: Any) -> Any:
        runner, tactic = choose_one(custom_op, *args, **kwargs)
        found.append(
            [custom_op, type(runner).__name__, json.loads(json.dumps(tactic, default=str))]
        )
        return runner, tactic

    tuner.choose_one = noted
    try:
        yield found
    finally:
        del tuner.choose_one


if __name__ == "__main__":
    main(sys.argv[1:])
