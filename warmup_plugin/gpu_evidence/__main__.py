# SPDX-License-Identifier: Apache-2.0
"""The command: ``python -m warmup_plugin.gpu_evidence``.

Owns options, files and the exit status: 0 where every law held of every op that could be compared,
1 where one is broken or nothing could be compared, 2 where there is no CUDA device.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from warmup_plugin.gpu_evidence import page, run
from warmup_plugin.gpu_evidence.spec import Spec
from warmup_plugin.gpu_evidence.verdict import Verdict, judge
from warmup_plugin.settings import Settings

_BATCHES = (1, 64, 1024)
_SERVED = (1, 16, 48, 256, 1024)
HELD, BROKEN, NO_DEVICE = 0, 1, 2


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print the section, write the files; return the exit status."""
    options = _parser().parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="gpu-evidence-") as folder:
        spec = Spec("ops", folder, 0, batches=_BATCHES, served=_SERVED, stand_in=options.stand_in)
        try:
            result = _measure(spec, options)
        except run.NoAnswerError as error:
            _say(str(error))
            return BROKEN
    if result is None:
        _say("no CUDA device: nothing is measured")
        return NO_DEVICE
    verdicts = {name: judge(result["ops"][name], result["margin"]) for name in result["names"]}
    result["verdicts"] = {name: asdict(found) for name, found in verdicts.items()}
    text = page.section(result, verdicts)
    options.json.write_text(json.dumps(result, indent=1), encoding="utf-8")
    options.markdown.write_text(text, encoding="utf-8")
    _say(text)
    _say(f"{_summary(verdicts)}; {options.json}, {options.markdown}")
    compared = [found for found in verdicts.values() if not found.why_not]
    return HELD if compared and not any(found.broken for found in compared) else BROKEN


def _measure(spec: Spec, options: argparse.Namespace) -> dict[str, Any] | None:
    clock = run.Clock(options.seconds, options.op_seconds, time.monotonic())
    found = run.find_ops(spec, clock)
    if not found["names"]:
        return None
    names = [name for name in found["names"] if options.only in name]
    ops: dict[str, dict[str, Any]] = {name: {} for name in names}
    for way in ("alone", "cold", "warm"):
        # What FlashInfer alone cannot do here, or not in time, is not tried with this package.
        able = [name for name in names if all("error" not in row for row in ops[name].values())]
        able = [name for name in able if way == "alone" or ops[name].get("alone", {}).get("timed")]
        _say(f"{way}: {len(able)} ops, {clock.spent:.0f} of {clock.seconds:.0f} s spent")
        for name, row in run.measure(replace(spec, way=way), able, clock).items():
            ops[name][way] = row
    return {
        "schema": 1, "facts": found["facts"], "names": names, "ops": ops,
        "stand_in": spec.stand_in, "batches": spec.batches, "served": spec.served,
        "margin": Settings.from_env().margin, "seconds": clock.spent,
    }  # fmt: skip


def _summary(verdicts: dict[str, Verdict]) -> str:
    compared = [found for found in verdicts.values() if not found.why_not]
    broken = sum(bool(found.broken) for found in compared)
    return f"{len(compared)} of {len(verdicts)} ops compared, laws broken by {broken}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m warmup_plugin.gpu_evidence",
        description="Compare FlashInfer alone with warmup-plugin, cold and warm, on the first GPU.",
    )
    add = parser.add_argument
    add("--seconds", type=float, default=480.0, help="the budget of the whole run (480)")
    add("--op-seconds", type=float, default=100.0, help="the limit of one op in one way (100)")
    add("--only", default="", help="only ops with this in their name")
    add("--json", type=Path, default=Path("gpu-evidence.json"), help="what is written as JSON")
    add("--markdown", type=Path, default=Path("gpu-evidence.md"), help="the section of the page")
    add("--stand-in", default="",
        help="module:function or file.py:function that poses as a GPU, to try this command "
             "without one; what it writes says so")  # fmt: skip
    return parser


def _say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
