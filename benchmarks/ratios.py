"""How much faster one system is than another, from interleaved rounds, and whether the machine was too noisy to tell.

The time of a round is the median of its steps. The ratio of medians is the median of the other system's rounds over the
median of ours: above 1 where ours is faster. Its 95 percent interval comes from a bootstrap over the rounds; both
systems' times of the same round stay together, since a spell in which the machine is slow often lasts for both. The
machine was too noisy to tell where the interval is wider than 10 percent of the ratio.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

WIDEST = 0.10
FEWEST_ROUNDS = 5  # for an interval: of fewer, resampling says little
_RESAMPLES = 10_000


@dataclass(frozen=True)
class Ratio:
    """The other system's time over ours."""

    of_medians: float  # of the rounds
    of_bests: float  # of the fastest steps of all
    interval: tuple[float, float] | None  # of the ratio of medians, 95 percent; None where the rounds are too few

    @property
    def noisy(self) -> bool:
        """Whether the interval is too wide."""
        return self.interval is not None and self.interval[1] - self.interval[0] > WIDEST * self.of_medians

    @property
    def interval_text(self) -> str:
        """The interval in words, or nothing."""
        return f"{self.interval[0]:.2f} to {self.interval[1]:.2f}" if self.interval else ""

    def reaches(self, bar: float) -> bool | None:
        """Return whether the ratio of medians is at least `bar`; None where the interval contains it, or is missing."""
        if self.interval is None:
            return None
        low, high = self.interval
        return None if low < bar <= high else low >= bar


def ratio_of_times(ours: Sequence[Sequence[float]], theirs: Sequence[Sequence[float]]) -> Ratio:
    """Return the ratio for the seconds of each step of each round, of which both have as many."""
    if len(ours) != len(theirs):
        raise ValueError(f"{len(ours)} rounds of ours and {len(theirs)} of theirs cannot be compared")
    medians = np.array([[statistics.median(seconds) for seconds in rounds] for rounds in (ours, theirs)])
    least = [min(len(mine), len(other)) for mine, other in zip(ours, theirs, strict=True)]  # of as many steps of both
    bests = [min(min(s[:n]) for s, n in zip(rounds, least, strict=True)) for rounds in (ours, theirs)]
    mine, other = np.median(medians, axis=1)
    return Ratio(float(other / mine), bests[1] / bests[0], _interval(medians))


def _interval(medians: np.ndarray) -> tuple[float, float] | None:
    rounds = medians.shape[1]
    if rounds < FEWEST_ROUNDS:
        return None
    drawn = np.random.default_rng(0).integers(0, rounds, (_RESAMPLES, rounds))
    ours, theirs = np.median(medians[:, drawn], axis=2)
    low, high = np.quantile(theirs / ours, [0.025, 0.975])
    return float(low), float(high)


def spread(rounds: Sequence[Sequence[float]]) -> float:
    """Return the range of the rounds' medians as a part of their median."""
    medians = [statistics.median(seconds) for seconds in rounds]
    return (max(medians) - min(medians)) / statistics.median(medians)
