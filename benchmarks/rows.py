"""From the outcomes of a work to the rows of its table: one for minivit, one for each peer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.bars import PEERS, Bar, bar_of
from benchmarks.ratios import FEWEST_ROUNDS, Ratio, ratio_of_times, spread
from benchmarks.rounds import Outcome, fastest_of
from benchmarks.works import Work

OURS = "minivit"


@dataclass(frozen=True)
class Verdict:
    """A bar, and whether it was reached; None where the rounds do not tell."""

    bar: Bar
    reached: bool | None
    aim_reached: bool | None

    def __str__(self) -> str:
        """Return the bar, the aim in brackets, and what became of them."""
        words = {True: "reached", False: "missed", None: "open"}
        word = "aim reached" if self.aim_reached else words[self.reached]
        what = "memory " if self.bar.measure == "memory" else ""
        return f"{what}{self.bar.at_least:g} ({self.bar.aim:g}): {word}"


@dataclass(frozen=True)
class Row:
    """A system's figures.

    Parameters
    ----------
    title : str
        minivit, or the peer, and which of its systems counts.
    system : str
        That system.
    images_per_second, images_per_second_best : float
        Of the median over the rounds, and of the fastest step.
    milliseconds : float
        The median of a step.
    spread : float
        The range of the rounds' medians as a part of their median.
    peak_bytes : float
        The largest resident memory, median over the rounds.
    ratio : Ratio, optional
        The peer's time over ours.
    memory_ratio : float, optional
        The peer's memory over ours; None for ourselves and for the limit, which is no program.
    verdicts : tuple of Verdict
        One for each bar.
    """

    title: str
    system: str
    images_per_second: float
    images_per_second_best: float
    milliseconds: float
    spread: float
    peak_bytes: float
    ratio: Ratio | None = None
    memory_ratio: float | None = None
    verdicts: tuple[Verdict, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        values = dict(vars(self))
        if self.ratio is not None:
            values["ratio"] = vars(self.ratio) | {"noisy": self.ratio.noisy}
        values["verdicts"] = [vars(verdict) | {"bar": vars(verdict.bar)} for verdict in self.verdicts]
        return values


def rows_of(work: Work, groups: Mapping[str, Sequence[str]], outcomes: Mapping[str, Outcome]) -> list[Row]:
    """Return the rows of what ran in all rounds, ours first."""
    ours = outcomes[OURS] if fastest_of([OURS], outcomes) else None
    rows: list[Row] = []
    for name, group in groups.items():
        system = fastest_of(group, outcomes)
        if system is None:
            continue
        outcome = outcomes[system]
        title = PEERS[name].title if name != OURS else OURS
        if len(group) > 1:
            title += f" ({system.partition(':')[2]})"
        figures: dict[str, Any] = {
            "title": title,
            "system": system,
            "images_per_second": work.batch_size / outcome.median,
            "images_per_second_best": work.batch_size / outcome.best,
            "milliseconds": 1e3 * outcome.median,
            "spread": spread(outcome.seconds),
            "peak_bytes": outcome.peak_bytes,
        }
        if name == OURS:
            rows.insert(0, Row(**figures))
        elif ours is None:
            rows.append(Row(**figures))
        else:
            ratio = ratio_of_times(ours.seconds, outcome.seconds)
            memory = None if name.startswith("limit") else outcome.peak_bytes / ours.peak_bytes
            verdicts = _verdicts(work, name, ratio, memory)
            rows.append(Row(**figures, ratio=ratio, memory_ratio=memory, verdicts=verdicts))
    return rows


def _verdicts(work: Work, peer: str, ratio: Ratio, memory: float | None) -> tuple[Verdict, ...]:
    verdicts = []
    if bar := bar_of(work, peer, "time"):
        verdicts.append(Verdict(bar, ratio.reaches(bar.at_least), ratio.reaches(bar.aim)))
    if memory is not None and (bar := bar_of(work, peer, "memory")):
        verdicts.append(Verdict(bar, memory >= bar.at_least, memory >= bar.aim))
    return tuple(verdicts)


def notes_of(groups: Mapping[str, Sequence[str]], outcomes: Mapping[str, Outcome], rows: Sequence[Row]) -> list[str]:
    """Return what a reader of the table has to know: what failed or was left out, and what was too noisy."""
    notes = [
        f"{system}: {o.stopped}" for group in groups.values() for system in group if (o := outcomes[system]).stopped
    ]
    ratios = {row.title: row.ratio for row in rows if row.ratio is not None}
    for title, ratio in ratios.items():
        if ratio.noisy and ratio.interval is not None:
            low, high = ratio.interval
            notes.append(f"{title}: the machine was too noisy to tell the ratio, which lies in {low:.2f} to {high:.2f}")
    if any(ratio.interval is None for ratio in ratios.values()):
        notes.append(
            f"fewer than {FEWEST_ROUNDS} rounds cannot tell how noisy the machine was, nor whether bars are reached"
        )
    return notes
