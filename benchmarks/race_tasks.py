# SPDX-License-Identifier: Apache-2.0
"""Simulated candidates for `race.py`, their true times and a device that measures them.

Calibrated on sgl-project/sglang#35343 (gpt-oss-120b, four GB300, ``trtllm_fp4_block_scale_moe``):
920 candidates a task up to 256 tokens and 50 at 4096; one candidate's time differs by 3.5, 2.9, 1.2
and 0.7 % between ranks at 1, 8, 16 and 256 tokens, and 5, 25, 28 and 10 candidates lie within that
of the best. FlashInfer runs each 3 + 10 times behind a delay of 5 ms; a launch is taken for 0.1 ms.
The noise is normal and independent from launch to launch. The rules that race are the package's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from warmup_plugin.tuner.race.counts import Counts, first_counts
from warmup_plugin.tuner.race.rules import Verdict, race

#: FlashInfer's own counts, and what one launch of the best candidate takes, in milliseconds.
OWN, LAUNCH_MS = Counts(3, 10, 5.0), 0.1
#: Where FlashInfer's default lies: slower than the best by so much.
DEFAULT = 1.1


@dataclass(frozen=True)
class Kind:
    """A kind of task: candidates, how many lie within the noise of the best, and the noise.

    ``noise`` is the standard deviation of a measurement of FlashInfer's own length.
    """

    candidates: int
    near: int
    noise: float

    def true_times(self, rng: Any) -> Any:
        """Return the times of a task's candidates over the best one's; none is over 20."""
        gap = rng.exponential(size=self.candidates) ** 2
        spread = self.noise / (-np.log(1 - self.near / self.candidates)) ** 2
        times = 1 + spread * gap
        return np.minimum(times - times.min() + 1, 20)


class Device:
    """Measures candidates; ``pace``: how much slower it is, ``drift``: by the minute."""

    def __init__(
        self, times: Any, noise: float, rng: Any, *, pace: float = 1.0, drift: float = 0.0
    ) -> None:
        self._ms = times * LAUNCH_MS * pace
        self._launch_noise = noise * np.sqrt(OWN.repeat)
        self._rng, self._drift, self.clock_ms = rng, drift, 0.0

    def measure(self, place: int, counts: Counts) -> float:
        """Return the mean of some launches, and let the time pass that they take."""
        slower = 1 + self._drift * self.clock_ms / 60_000
        error = self._launch_noise / np.sqrt(counts.timed)
        ms = float(self._ms[place] * slower * (1 + self._rng.normal(0, error)))
        self.clock_ms += counts.cost_ms(ms)
        return ms

    def look(self, candidates: int, counts: Counts) -> list[float]:
        """Measure each of the first candidates once, as `measure` does."""
        base = self._ms[:candidates]
        began = self.clock_ms + np.cumsum(counts.delay_ms + counts.launches * base)
        error = self._launch_noise / np.sqrt(counts.timed)
        slower = 1 + self._drift * began / 60_000
        times = base * slower * (1 + self._rng.normal(0, error, candidates))
        self.clock_ms = float(began[-1])
        return list(times.tolist())

    def sweep(self, candidates: int) -> int:
        """Return FlashInfer's choice: the fastest of one measurement each."""
        times = self.look(candidates, OWN)
        return times.index(min(times))

    def race(self, candidates: int) -> Verdict:
        """Return the package's, which races the default beside them."""
        return race(
            self.look(candidates, first_counts(OWN)), OWN, self.measure, beside=[candidates]
        )


@dataclass(frozen=True)
class Figures:
    """What many tasks of one kind came to; regret is the winner's true time over the best, less 1.

    ``agree``: the share of tasks in which two starts chose alike.
    """

    share: float
    sweep_regret: float
    sweep_p95: float
    race_regret: float
    race_p95: float
    sweep_agree: float
    race_agree: float
    confidence: float


def measure(kind: Kind, tasks: int, seed: int, *, pace: float = 1.0, drift: float = 0.0) -> Figures:
    """Race and sweep each of so many tasks twice; only the race's device is slow or drifts."""
    rng = np.random.default_rng(seed)
    swept, raced, shares, confident = [], [], [], []
    alike = [0, 0]
    for _ in range(tasks):
        times = kind.true_times(rng)
        choices = [Device(times, kind.noise, rng).sweep(kind.candidates) for _ in range(2)]
        entrants = np.append(times, DEFAULT)
        found = [
            Device(entrants, kind.noise, rng, pace=pace, drift=drift).race(kind.candidates)
            for _ in range(2)
        ]
        winners = [verdict.winner for verdict in found]
        swept += [times[place] - 1 for place in choices]
        raced += [times[place] - 1 for place in winners]
        shares += [verdict.share for verdict in found]
        confident += [verdict.confidence for verdict in found]
        alike[0] += choices[0] == choices[1]
        alike[1] += winners[0] == winners[1]
    return Figures(
        float(np.mean(shares)), float(np.mean(swept)), float(np.quantile(swept, 0.95)),
        float(np.mean(raced)), float(np.quantile(raced, 0.95)), alike[0] / tasks, alike[1] / tasks,
        float(np.mean(confident)),
    )  # fmt: skip
