"""minivit beside its peers on a GPU: a process for each side, all prepared at once, then measured in turn.

Compiling takes most of the time and little of the GPU, so that all sides of all works do it together. After that one
process works at a time, while the others wait with little more than their parameters.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, replace
from typing import Any

from benchmarks.gpu_parts.budget import Budget
from benchmarks.gpu_parts.process import Worker
from benchmarks.gpu_parts.works import Job
from benchmarks.rounds import Outcome, WorkerError, run_rounds
from benchmarks.rows import OURS, Row, Verdict, notes_of, rows_of

ROUNDS = 5
_TURN = 1.5  # seconds that a turn takes beside what it measures
_TURN_AT_MOST = 60.0
_FEWEST_SECONDS, _MOST_SECONDS = 20.0, 150.0  # to prepare
_LARGEST_DIFFERENCE = 0.03  # of what two sides compute, relative

Start = Callable[[str, str, str], Any]  # system, work, precision -> what has Worker's methods


@dataclass
class Comparison:
    """A job's figures.

    Parameters
    ----------
    job : Job
        What was measured.
    rows : list of Row
        Ours first.
    notes : list of str
        What a reader has to know.
    failed : list of str
        The systems that failed, and answers that differ.
    prepared : dict
        What each system said when it was prepared, by system.
    outcomes : dict
        Of each system.
    """

    job: Job
    rows: list[Row]
    notes: list[str]
    failed: list[str]
    prepared: dict[str, dict[str, Any]]
    outcomes: dict[str, Outcome]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "work": asdict(self.job.work),
            "precision": self.job.precision,
            "rows": [row.to_dict() for row in self.rows],
            "notes": self.notes,
            "systems": {
                system: {"prepared": self.prepared.get(system), **vars(outcome)}
                for system, outcome in self.outcomes.items()
            },
        }


def compare_all(
    jobs: Sequence[Job],
    systems: Mapping[str, str],
    seconds: float,
    budget: Budget,
    tell: Callable[[str], None],
    start: Start = Worker,
) -> Iterator[Comparison]:
    """Measure jobs, as many as the budget allows; all their processes stand beside each other.

    Parameters
    ----------
    jobs : sequence of Job
        The first are measured first.
    systems : mapping
        By the name of a peer, or ours, its system for `worker`.
    seconds : float
        That each turn measures, at least.
    budget : Budget
        Of the whole command.
    tell : callable
        Gets a line about each turn.
    start : callable
        Begins a process.
    """
    measuring = ROUNDS * len(systems) * (seconds + _TURN)
    jobs = [job for i, job in enumerate(jobs) if budget.allows(job.title, _FEWEST_SECONDS + (i + 1) * measuring)]
    with ExitStack() as stack:
        teams = [stack.enter_context(closing(_Team(job, systems, start, tell))) for job in jobs]
        last = budget.spent + min(_MOST_SECONDS, max(_FEWEST_SECONDS, budget.left - len(jobs) * measuring))
        for team in teams:
            team.await_all(lambda: last - budget.spent)
        for team in teams:
            if budget.allows(team.job.title, measuring):
                groups = {name: [name] for name in systems}
                outcomes = run_rounds(groups, ROUNDS, functools.partial(team.turn, seconds), team.tell)
                yield _compared(team.job, groups, team.prepared, outcomes)
            team.close()


class _Team:
    """The processes of a job, by peer."""

    def __init__(self, job: Job, systems: Mapping[str, str], start: Start, tell: Callable[[str], None]) -> None:
        self.job = job
        self.prepared: dict[str, dict[str, Any]] = {}
        self._failures: dict[str, str] = {}
        self._tell = tell
        self._workers = {name: start(system, job.work.name, job.precision) for name, system in systems.items()}

    def tell(self, line: str) -> None:
        self._tell(f"{self.job.work.name}, {self.job.precision}: {line}")

    def await_all(self, left: Callable[[], float]) -> None:
        """Wait until each is ready, as long as there are seconds left."""
        for name, worker in self._workers.items():
            try:
                said = self.prepared[name] = worker.reply(left())
            except WorkerError as error:
                self._failures[name] = str(error)
            else:
                self.tell(f"{name} is ready, its first step took {said['seconds_to_first']:.0f} s")

    def turn(self, seconds: float, name: str) -> dict[str, Any]:
        """Let one measure, or raise WorkerError."""
        if name in self._failures:
            raise WorkerError(self._failures[name])
        said: dict[str, Any] = self._workers[name].measure(seconds, _TURN_AT_MOST)
        return said

    def close(self) -> None:
        """End all."""
        for worker in self._workers.values():
            worker.close()


def _compared(
    job: Job, groups: Mapping[str, Sequence[str]], prepared: dict[str, dict[str, Any]], outcomes: dict[str, Outcome]
) -> Comparison:
    rows = [_judged(job, row) for row in rows_of(job.work, groups, outcomes)]
    notes = notes_of(groups, outcomes, rows)
    failed = [name for name, outcome in outcomes.items() if outcome.stopped]
    if OURS in prepared:
        ours = prepared[OURS]["answer"]
        for name, said in prepared.items():
            if not abs(said["answer"] - ours) <= _LARGEST_DIFFERENCE * abs(ours):  # neither is NaN
                what = "loss" if job.work.trains else "root mean square of the logits"
                notes.append(f"{name}: its first {what} is {said['answer']:.4g}, ours {ours:.4g}: not the same model")
                failed.append(f"{name} computes something else")
    return Comparison(job, rows, notes, failed, prepared, outcomes)


def _judged(job: Job, row: Row) -> Row:
    if row.ratio is None:
        return row
    ratio, bars = row.ratio, [bar for bar in job.bars if bar.peer == row.system]
    return replace(
        row, verdicts=tuple(Verdict(bar, ratio.reaches(bar.at_least), ratio.reaches(bar.aim)) for bar in bars)
    )
