# SPDX-License-Identifier: Apache-2.0
"""What the rows of one op add up to, and the laws they must not break.

Owns the laws. Pure. A law holds of every op that FlashInfer alone could tune here:

1. Each start ends without an exception.
2. A warm start times no tactic and synthesises no input, or the report says which tasks it left to
   FlashInfer.
3. A warm start serves what the cold one did.
4. What serves is no slower than with FlashInfer alone, re-measured, but for the margin and for
   noise: three times what two measurements of FlashInfer's own table differ by, 5 % at least.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Row = Mapping[str, Any]

_LEAST_NOISE, _NOISE_FACTOR = 0.05, 3.0


@dataclass(frozen=True)
class Verdict:
    """One op. ``why_not``: why there is nothing to compare; ``broken``: the laws it breaks.

    ``equal``: look-ups that serve what FlashInfer alone serves, of ``asked``. ``ratio`` and
    ``worst``: time over FlashInfer alone's, median and largest of all batches; ``gain``: the
    default's over ours, median; ``noise``: FlashInfer alone's over itself, the largest difference.
    """

    broken: tuple[str, ...] = ()
    why_not: str = ""
    equal: int = 0
    asked: int = 0
    ratio: float = 0.0
    worst: float = 0.0
    gain: float = 0.0
    noise: float = 0.0


def judge(ways: Mapping[str, Row], margin: float) -> Verdict:
    """Return the verdict over the rows of "alone", "cold" and "warm"; a missing one was not run."""
    alone, cold, warm = (ways.get(name, {}) for name in ("alone", "cold", "warm"))
    if why := _why_not(alone, "FlashInfer alone"):
        return Verdict(why_not=why)
    if not alone["timed"]:
        return Verdict(why_not="FlashInfer alone times nothing of it here")
    for name, row in (("the cold start", cold), ("the warm start", warm)):
        if "error" in row:
            return Verdict(broken=(f"{name}: {row['error']}",))
        if why := _why_not(row, name):
            return Verdict(why_not=why)
    equal = sum(a == b for a, b in zip(alone["served"], cold["served"], strict=True))
    ratios, slow = _compare(warm["again"], margin)
    return Verdict(
        broken=(*_not_warm(cold, warm), *slow), equal=equal, asked=len(alone["served"]), **ratios
    )


def _why_not(row: Row, name: str) -> str:
    if "error" in row:
        return f"{name}: {row['error']}"
    return "" if row else f"{name}: not tried, the seconds were over"


def _not_warm(cold: Row, warm: Row) -> list[str]:
    found = []
    if (warm["timed"] or warm["synthesised"]) and not warm["told"]:
        counts = f"{warm['timed']} tactics timed, {warm['synthesised']} inputs synthesised"
        found.append(f"a warm start: {counts}, and the report does not say why")
    differing = [
        f"{ours[0]}: {ours[1:]}, {before[1:]} before"
        for ours, before in zip(warm["served"], cold["served"], strict=True)
        if ours != before
    ]
    if differing:
        found.append(f"a warm start serves otherwise at {'; '.join(differing[:3])}")
    return found


def _compare(again: Mapping[str, Mapping[str, float]], margin: float) -> tuple[Any, list[str]]:
    """Return the figures of the second measurement, and where ours is slower than it may be."""
    ratios, gains, noises, slow = [], [], [], []
    for batch, times in again.items():
        if not all(0 < ms < float("inf") for ms in times.values()):
            slow.append(f"batch {batch}: impossible times {times}")
            continue
        alone = min(times["alone"], times["alone again"])
        noise = abs(times["alone"] - times["alone again"]) / alone
        ratio = times["ours"] / alone
        bound = (1 + max(_LEAST_NOISE, _NOISE_FACTOR * noise)) / (1 - margin)
        if ratio > bound:
            slow.append(f"batch {batch}: {ratio:.2f} of FlashInfer alone's time, bound {bound:.2f}")
        ratios.append(ratio)
        gains.append(times["default"] / times["ours"])
        noises.append(noise)
    if not ratios:
        return {}, slow
    figures = {
        "ratio": statistics.median(ratios), "worst": max(ratios),
        "gain": statistics.median(gains), "noise": max(noises),
    }  # fmt: skip
    return figures, slow
