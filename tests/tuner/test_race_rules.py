# SPDX-License-Identifier: Apache-2.0
"""The rule of a race: who is timed how often, who drops, who wins, what it is reckoned to take."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence

import pytest

from warmup_plugin.tuner.race.counts import Counts, first_counts, last_counts
from warmup_plugin.tuner.race.rules import FEWEST, Verdict, race

OWN = Counts(3, 10, 5.0)
FAILS = float("inf")


class Clock:
    """Measures true times, with noise by the launch; notes what it was asked."""

    def __init__(self, ms: Sequence[float], noise: float = 0.0, seed: int = 0) -> None:
        self.ms, self.noise = ms, noise
        self.rng = random.Random(seed)  # noqa: S311  # no secret
        self.asked: list[tuple[int, Counts]] = []

    def measure(self, place: int, counts: Counts) -> float:
        self.asked.append((place, counts))
        return self.ms[place] * (1 + self.rng.gauss(0, self.noise / counts.timed**0.5))

    def run(self, candidates: int | None = None, own: Counts = OWN) -> Verdict:
        """Race the first so many; the others are defaults beside them."""
        number = len(self.ms) if candidates is None else candidates
        first = [self.measure(place, first_counts(own)) for place in range(number)]
        self.asked.clear()
        return race(first, own, self.measure, beside=range(number, len(self.ms)))


def spread(number: int, step: float = 0.01) -> list[float]:
    """Times that lie that far apart, in no order."""
    found = [0.1 * (1 + step * place) for place in range(number)]
    random.Random(1).shuffle(found)  # noqa: S311  # no secret
    return found


@pytest.mark.parametrize("number", [FEWEST, 50, 149, 150, 920])
def test_exact_times_have_the_fastest_win(number: int) -> None:
    """As in a sweep, however close the second is; and twice the same."""
    ms = spread(number, step=1e-5)
    verdict = Clock(ms).run()
    assert verdict.winner == ms.index(min(ms))
    assert verdict.tied == (verdict.winner,)
    assert verdict.noise < 1e-12
    assert verdict.confidence == 1
    assert Clock(ms).run() == verdict


def test_equal_times_go_to_the_first() -> None:
    """FlashInfer's order decides, as where it sweeps."""
    assert Clock([0.2, *[0.1] * 30]).run().winner == 1


def test_ties_go_to_the_first_and_are_told() -> None:
    """What the noise cannot tell apart, and 2 % at most."""
    firsts = Counter(Clock([0.1] * 40, noise=0.05, seed=seed).run().winner for seed in range(200))
    assert sum(count for place, count in firsts.items() if place < 20) > 120
    verdicts = [Clock(spread(40, 1e-4), noise=0.3, seed=seed).run() for seed in range(50)]
    for verdict in verdicts:
        assert verdict.winner == verdict.tied[0] == min(verdict.tied)
        times = [verdict.times[place] for place in verdict.tied]
        assert max(times) <= min(times) * 1.02
    assert max(len(verdict.tied) for verdict in verdicts) > 1


def test_a_candidate_drops_only_beyond_the_noise() -> None:
    """3 standard errors in round 1: with much noise more are timed again than with little."""

    def timed_again(noise: float) -> int:
        clock = Clock(spread(920, 0.002), noise=noise)
        clock.run()
        return len({place for place, counts in clock.asked if counts == OWN})

    assert 4 <= timed_again(0.001) < timed_again(0.08)


def test_at_least_two_others_and_each_default_never_drop() -> None:
    """However slow they are: the default once in each round."""
    clock = Clock([0.1, *[1.0] * 199, 5.0])
    verdict = clock.run(200)
    finals = {place for place, counts in clock.asked if counts == last_counts(OWN, 0.1)}
    assert len(finals) >= 3
    assert [counts.repeat for place, counts in clock.asked if place == 200] == [2, 10, 10]
    assert verdict.times[200] == 5.0
    assert verdict.winner == 0


def test_a_default_among_the_candidates_may_win_or_not_but_stays() -> None:
    """As in `autotune_v2`, which has it in its own choice."""
    ms = [9.0, *spread(40)]
    clock = Clock(ms)
    first = [clock.measure(place, first_counts(OWN)) for place in range(41)]
    verdict = race(first, OWN, clock.measure, beside=[0])
    assert verdict.times[0] == 9.0
    assert verdict.winner == ms.index(min(ms))
    assert sum(place == 0 for place, _ in clock.asked[41:]) >= 1


def test_the_finals_are_by_turns_in_short_bursts() -> None:
    """Four times FlashInfer's launches, no longer than 5 ms, and never fewer than FlashInfer's."""
    assert last_counts(OWN, 0.1) == Counts(1, 40, 5.0)
    assert last_counts(OWN, 0.2) == Counts(1, 25, 5.0)
    assert last_counts(OWN, 2.0) == Counts(1, 10, 5.0)
    # No more than the host launches within the delay, with a quarter to spare.
    assert last_counts(OWN, 0.1, host_ms=0.2) == Counts(1, 20, 5.0)
    assert last_counts(OWN, 0.1, host_ms=2.0) == Counts(1, 10, 5.0)
    assert last_counts(Counts(3, 10, 0.1, 5), 0.1) == Counts(1, 10, 0.1, 5)
    clock = Clock(spread(40, 0.001), noise=0.1)
    clock.run()
    finals = [place for place, counts in clock.asked if counts.repeat > 10]
    turn = len(set(finals))
    assert sorted(finals[:turn]) == sorted(finals[turn : 2 * turn])


@pytest.mark.parametrize(("number", "most"), [(920, 0.33), (120, 0.55), (50, 0.97), (FEWEST, 1.1)])
def test_what_it_takes(number: int, most: float) -> None:
    """Its share of the sweep's device time, by the reckoning that the receipt has."""
    ms = [0.1 * (1 + 0.01 * place) for place in range(number)]
    clock = Clock(ms, noise=0.06)
    verdict = clock.run()
    assert verdict.share < most
    spent = sum(counts.launches for _, counts in clock.asked)
    assert verdict.launches == 3 * number + spent + 3  # and the one when FlashInfer stores it
    assert verdict.sweep_ms == pytest.approx(sum(5 + 13 * t for t in ms), rel=0.05)


def test_a_slow_host_shortens_the_bursts() -> None:
    """What it takes is asked once, before the finals."""
    clock = Clock(spread(40))
    first = [clock.measure(place, first_counts(OWN)) for place in range(40)]
    race(first, OWN, clock.measure, host_ms=lambda: 0.2)
    assert max(counts.repeat for _, counts in clock.asked) == 20


def failing(ms: Sequence[float], after: int) -> Callable[[int, Counts], float]:
    """A clock on which everything fails after so many measurements."""
    left = [after]

    def measure(place: int, _counts: Counts) -> float:
        left[0] -= 1
        return ms[place] if left[0] >= 0 else FAILS

    return measure


@pytest.mark.parametrize("after", range(0, 120, 7))
def test_failures_at_any_moment_leave_a_winner(after: int) -> None:
    """Whatever fails from then on: one of round 1 wins, which FlashInfer may refuse."""
    ms = [*spread(200), 0.3]
    verdict = race(ms[:200], OWN, failing(ms, after), beside=[200])
    assert 0 <= verdict.winner < 200


def test_what_fails_in_round_1_is_out() -> None:
    """And where few are left, they are timed as FlashInfer would have."""
    clock = Clock([0.3, 0.1, 0.2])
    verdict = race([FAILS] * 20 + [0.3, 0.1, 0.2], OWN, lambda p, c: clock.measure(p - 20, c))
    assert verdict.winner == 21
    assert [counts for _, counts in clock.asked] == [OWN] * 3
    assert race([FAILS, *[0.2] * 20], OWN, lambda _p, _c: 0.2).winner == 1


def test_confidence_is_how_often_it_wins_again() -> None:
    """Half for the better of two alike, nearly one for one that is far ahead."""
    far = Clock([0.1, *[0.2] * 30], noise=0.02).run()
    assert far.confidence > 0.99
    near = [Clock(spread(40, 1e-4), noise=0.1, seed=seed).run() for seed in range(20)]
    assert sum(verdict.confidence for verdict in near) / 20 < 0.9
