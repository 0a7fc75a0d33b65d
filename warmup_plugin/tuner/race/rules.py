# SPDX-License-Identifier: Apache-2.0
"""The rule of a race: who is timed again, how long, who drops, who wins. Pure.

    round 1   every candidate, with few launches behind a short delay
    round 2   who can still win, as FlashInfer times; left out below `_TWO_CUTS` candidates
    round 3   the finalists by turns, in passes of longer bursts; who cannot win any more drops

A candidate drops where its time is further from the best than the noise of both explains. Noise is
what repeated measurements of this task have differed by, so equal times give the same winner on
every rank and in every run. Defaults that are no candidates take part in each round and never drop.
Among those that the noise cannot tell apart the first in FlashInfer's order wins (`_TIED`).
Knows nothing of FlashInfer: `measure` is told which candidate, and with which counts (`counts.py`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import median

import msgspec

from warmup_plugin.tuner.race.counts import Counts, first_counts, last_counts

#: With fewer candidates there is nothing to gain: FlashInfer sweeps them, or, where so many fail
#: in round 1, those that are left are timed as it would have timed them.
FEWEST = 16
#: Nor where FlashInfer times fewer launches of each: a look is as long then.
SHORTEST = 5
#: From so many candidates on, round 2 stands between the look at all and the finals.
_TWO_CUTS = 150
#: Standard errors of a difference beyond which a candidate is out, after rounds 1, 2 and each pass.
_OUT = (3.0, 2.5, 2.0)
#: How many may be in the finals, and how many are at least, in small and in large races.
_FINALISTS, _LEAST = 8, 4
#: Measurements of FlashInfer's own length that rounds 2 and 3 may take: at least so many, this
#: share of the candidates where that is more, and never more than that share of them.
_ALLOWED, _SHARE, _MOST_SHARE = 42, 0.12, 0.8
#: The part of it that round 2 may take.
_SECOND = 0.4
#: Passes in the finals.
_PASSES, _MOST_PASSES = 2, 10
#: Measurements that are made twice in round 1, to see the noise.
_PAIRS = 8
#: What is taken for the noise of a launch before anything is seen, worth so many observations.
_USUAL, _WORTH = 0.056, 2
#: Tied: nearer than this many standard errors of the difference, and never further than the share.
_TIED, _TIED_SHARE = 0.5, 0.02
_FAILED = math.inf


#: Times one candidate, by its place; infinity where it fails.
Measure = Callable[[int, Counts], float]


class Verdict(msgspec.Struct, frozen=True):
    """How a race came out.

    ``winner`` is a place among the candidates; ``times`` the median of each finalist, defaults
    included, by place; ``samples`` the launches behind the winner's. ``tied`` are the candidates
    that the noise cannot tell from the fastest, in order. ``confidence``: how often the winner, or
    one tied with it, would be the fastest of the finalists again. ``noise``: the standard deviation
    of one measurement of FlashInfer's own length, as a share. ``launches`` and ``device_ms`` are
    what the race took, round 1 included, ``sweep_ms`` what FlashInfer's sweep would have taken.
    """

    winner: int
    times: dict[int, float]
    samples: int
    tied: tuple[int, ...]
    confidence: float
    noise: float
    launches: int
    device_ms: float
    sweep_ms: float

    @property
    def share(self) -> float:
        """Return the share of the sweep's device time that the race took."""
        return self.device_ms / self.sweep_ms


class _Noise(msgspec.Struct):
    """The variance of one launch's time, as a share, from measurements that were made again."""

    squares: float = 0.0
    seen: int = 0

    def note(self, times: Sequence[float], repeat: int) -> None:
        """Take in measurements of one candidate, each the mean of ``repeat`` launches."""
        mean = sum(times) / len(times)
        self.squares += sum((ms / mean - 1) ** 2 for ms in times) * repeat
        self.seen += len(times) - 1

    def error(self, repeat: int) -> float:
        """Return the standard error of the mean of ``repeat`` launches, what is usual included."""
        squares = self.squares + _WORTH * _USUAL**2
        return math.sqrt(squares / (self.seen + _WORTH) / repeat)

    def seen_error(self, repeat: int) -> float:
        """Return the same from what was seen alone: nothing where every time came out twice."""
        return math.sqrt(self.squares / self.seen / repeat) if self.seen else 0.0


class _Race(msgspec.Struct):
    """A race under way: what was measured, and what it has cost."""

    own: Counts
    measure: Measure
    host_ms: Callable[[], float]
    noise: _Noise = msgspec.field(default_factory=_Noise)
    launches: int = 0
    device_ms: float = 0.0
    until_ms: float = 0.0
    sweep_ms: float = 0.0

    def time(self, place: int, counts: Counts) -> float:
        """Measure once more; a candidate that fails is out."""
        ms = self.measure(place, counts)
        self.charge(counts, ms)
        return ms

    def charge(self, counts: Counts, ms: float) -> None:
        self.launches += counts.launches
        self.device_ms += counts.cost_ms(ms) if ms < _FAILED else 0.0


def race(
    first: Sequence[float],
    own: Counts,
    measure: Measure,
    *,
    beside: Sequence[int] = (),
    host_ms: Callable[[], float] = float,
) -> Verdict:
    """Race candidates that round 1 has timed, with `first_counts`, in the order of ``first``.

    ``beside``: places that are timed once in each round, whatever comes of them: the defaults.
    Those beyond the candidates' win nothing. ``host_ms``: what the host is seen to take for one
    launch, asked before the finals. At least one candidate has a finite time.
    """
    run, short = _Race(own, measure, host_ms), first_counts(own)
    for ms in first:
        run.charge(short, ms)
    apart = {p: first[p] if p < len(first) else run.time(p, short) for p in beside}
    alive = [place for place, ms in enumerate(first) if ms < _FAILED]
    best = min(first)
    run.sweep_ms = sum(
        own.cost_ms(ms)
        for ms in (*first, *(ms for place, ms in apart.items() if place >= len(first)))
        if ms < _FAILED
    )
    if len(alive) < FEWEST:
        return _swept(run, alive, beside)
    _see_noise(run, first, alive, short)
    allowed = min(max(_ALLOWED, _SHARE * len(alive)), _MOST_SHARE * len(alive))
    run.until_ms = run.device_ms + allowed * own.cost_ms(best)
    most = int(_SECOND * allowed) if len(alive) >= _TWO_CUTS else _small_final(len(alive))
    times = dict(enumerate(first))
    near = _near(times, alive, run.noise.error(short.timed), _OUT[0], most)
    if len(alive) >= _TWO_CUTS:
        times = {place: run.time(place, own) for place in near}
        for place in beside:
            if place not in near:
                run.time(place, own)
        near = _near(times, near, run.noise.error(own.timed), _OUT[1], _FINALISTS)
    return _finals(run, near, apart, times)


def _swept(run: _Race, alive: Sequence[int], beside: Sequence[int]) -> Verdict:
    """Time each that is left once as FlashInfer does; the fastest wins."""
    places = [*alive, *(place for place in beside if place not in alive)]
    passes = {place: [run.time(place, run.own)] for place in places}
    left = [place for place in alive if passes[place][0] < _FAILED] or list(alive)
    return _verdict(run, passes, left, _Noise(), run.own)


def _small_final(candidates: int) -> int:
    """Return how many of few candidates come straight from round 1 into the finals."""
    return min(max(_LEAST, candidates // 12), _FINALISTS)


def _see_noise(run: _Race, first: Sequence[float], alive: Sequence[int], short: Counts) -> None:
    """Time some candidates of round 1 twice, whatever they take: the fastest had luck with it."""
    number = min(_PAIRS, max(3, len(alive) // 8), len(alive))
    for n in range(number):
        place = alive[n * (len(alive) - 1) // max(1, number - 1)]
        again = run.time(place, short)
        if again < _FAILED:
            run.noise.note((first[place], again), short.timed)


def _near(
    times: dict[int, float], places: Sequence[int], error: float, out: float, most: int
) -> list[int]:
    """Return who can be the best after all, at most so many: the fastest; never fewer than few."""
    ordered = sorted((p for p in places if times[p] < _FAILED), key=lambda p: (times[p], p))
    if not ordered:  # all failed in this round: their times before stand
        return sorted(places)[:most]
    limit = times[ordered[0]] * (1 + out * error * math.sqrt(2))
    near = [place for place in ordered if times[place] <= limit]
    return sorted(ordered[: min(max(len(near), _LEAST - 1), max(most, _LEAST - 1))])


def _finals(
    run: _Race, near: list[int], apart: dict[int, float], times: dict[int, float]
) -> Verdict:
    """Time the finalists by turns until one is left, or the allowance is used up.

    With what is ``apart``, whose times in round 1 say how long its burst may be, in the first pass.
    """
    host_ms = run.host_ms()
    burst = last_counts(run.own, min(times[place] for place in near), host_ms)
    passes: dict[int, list[float]] = {place: [] for place in near}
    alive, noise = list(near), _Noise()
    for number in range(1, _MOST_PASSES + 1):
        for place in alive:
            passes[place].append(run.time(place, burst))
        for place, ms in apart.items() if number == 1 else ():
            if place not in near:
                passes[place] = [run.time(place, last_counts(run.own, ms, host_ms))]
        alive = [p for p in alive if passes[p][-1] < _FAILED] or alive
        if number < _PASSES:
            continue
        error = run.noise.error(burst.timed * number)
        means = {place: sum(passes[place]) / number for place in alive}
        limit = min(means.values()) * (1 + _OUT[2] * error * math.sqrt(2))
        alive = [place for place in alive if means[place] <= limit] or alive
        next_ms = sum(burst.cost_ms(means[place]) for place in alive)
        if len(alive) == 1 or run.device_ms + next_ms > run.until_ms:
            break
    for seen in passes.values():
        if len(seen) > 1 and max(seen) < _FAILED:
            noise.note(seen, burst.timed)
    return _verdict(run, passes, alive, noise, burst)


def _verdict(
    run: _Race, passes: dict[int, list[float]], alive: list[int], noise: _Noise, burst: Counts
) -> Verdict:
    medians = {place: median(seen) for place, seen in passes.items() if seen}
    samples = burst.timed * len(passes[alive[0]])
    fastest = min(alive, key=lambda place: (medians[place], place))
    apart = noise.seen_error(samples) * math.sqrt(2)
    limit = medians[fastest] * (1 + min(_TIED_SHARE, _TIED * apart))
    tied = tuple(place for place in sorted(alive) if medians[place] <= limit)
    run.charge(first_counts(run.own), medians[tied[0]])  # FlashInfer times it when it stores it
    others = [medians[place] for place in alive if place not in tied]
    again = math.prod(_less_often(medians[tied[0]], ms, apart) for ms in others)
    return Verdict(
        tied[0], medians, samples, tied, again, noise.seen_error(run.own.timed), run.launches,
        run.device_ms, run.sweep_ms,
    )  # fmt: skip


def _less_often(ms: float, other_ms: float, apart: float) -> float:
    """Return how often one time comes out below another that is seen to be larger."""
    if not apart or other_ms == _FAILED:
        return 1.0
    return 0.5 * (1 + math.erf((other_ms / ms - 1) / apart / math.sqrt(2)))
