"""Rounds of processes: each system once a round, one after the other, never two at once.

Each round draws its own order, always the same ones, so that no system keeps the same predecessor, whose heat and
caches it would inherit.
"""

from __future__ import annotations

import json
import random
import re
import signal
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).parent.parent
_TRIAL_ROUNDS = 2  # after which the systems of a peer that are clearly slower than its fastest are measured no more
_CLEARLY = 1.10
_RAISED = re.compile(r"[\w.]*(Error|Exception)(:|$)")  # how Python ends a traceback; libraries may add hints below


class WorkerError(Exception):
    """A process failed; the message is the line of its complaint that names the error, or else the last."""


def run_worker(
    system: str,
    work: str,
    options: Sequence[str] = (),
    timeout: float = 1800.0,
    command: Sequence[str] = ("benchmarks.worker",),
) -> dict[str, Any]:
    """Measure a system on a work in a process of its own, ``python -m command ...``; return what it printed.

    Raises
    ------
    WorkerError
        It failed, took longer than `timeout` seconds, or printed something else last.
    """
    whole = [sys.executable, "-m", *command, system, work, *options]
    try:
        done = subprocess.run(whole, cwd=_ROOT, capture_output=True, text=True, timeout=timeout)
    except subprocess.TimeoutExpired as error:
        raise WorkerError(f"it took longer than {timeout:.0f} s") from error
    if done.returncode < 0:
        name = signal.Signals(-done.returncode).name
        raise WorkerError(f"it was ended by {name}{', as where memory runs out' if name == 'SIGKILL' else ''}")
    if done.returncode:
        raise WorkerError(_complaint(done.stderr) or f"exit status {done.returncode}")
    last = (done.stdout.strip().splitlines() or [""])[-1]
    try:
        result: dict[str, Any] = json.loads(last)
    except json.JSONDecodeError as error:
        raise WorkerError(f"it printed {last!r} where its result was due") from error
    return result


def _complaint(stderr: str) -> str:
    lines = [line.strip() for line in stderr.strip().splitlines()]
    raised = [line for line in lines if _RAISED.match(line)]
    return (raised or lines or [""])[-1]


@dataclass
class Outcome:
    """What the rounds of one system gave.

    Parameters
    ----------
    results : list of dict
        What `run_worker` returned, one for each round.
    stopped : str
        Why there are no more of them; empty where all rounds were run.
    """

    results: list[dict[str, Any]] = field(default_factory=list)
    stopped: str = ""

    @property
    def seconds(self) -> list[list[float]]:
        """The seconds of each step of each round."""
        return [result["seconds"] for result in self.results]

    @property
    def median(self) -> float:
        """The median over the rounds of the median seconds of a step."""
        return statistics.median(statistics.median(seconds) for seconds in self.seconds)

    @property
    def best(self) -> float:
        """The seconds of the fastest step."""
        return min(min(seconds) for seconds in self.seconds)

    @property
    def peak_bytes(self) -> float:
        """The median over the rounds of the largest resident memory."""
        return statistics.median(result["peak_bytes"] for result in self.results)


def run_rounds(
    groups: Mapping[str, Sequence[str]],
    rounds: int,
    run: Callable[[str], dict[str, Any]],
    tell: Callable[[str], None] = lambda line: None,
) -> dict[str, Outcome]:
    """Run each system once a round, in an order drawn anew for each; return the outcome of each.

    Parameters
    ----------
    groups : mapping
        A peer's systems, of which the fastest counts: after two rounds those clearly slower are left out.
    rounds : int
        Processes a system.
    run : callable
        Measures a system in a process of its own, or raises WorkerError; then that system is not run again.
    tell : callable
        Gets a line about each process.
    """
    systems = [system for group in groups.values() for system in group]
    outcomes = {system: Outcome() for system in systems}
    draw = random.Random(0)
    for i in range(rounds):
        if i == _TRIAL_ROUNDS:
            _leave_out(groups, outcomes)
        for system in draw.sample(systems, len(systems)):
            outcome = outcomes[system]
            if outcome.stopped:
                continue
            try:
                outcome.results.append(run(system))
            except WorkerError as error:
                outcome.stopped = f"failed: {error}"
                tell(f"round {i + 1} of {rounds}: {system} {outcome.stopped}")
            else:
                milliseconds = 1e3 * statistics.median(outcome.seconds[-1])
                tell(f"round {i + 1} of {rounds}: {system} {milliseconds:.1f} ms")
    return outcomes


def _leave_out(groups: Mapping[str, Sequence[str]], outcomes: Mapping[str, Outcome]) -> None:
    for group in groups.values():
        running = {system: outcomes[system] for system in group if not outcomes[system].stopped}
        fastest = min(running, key=lambda system: running[system].median, default="")
        for outcome in running.values():
            slower = outcome.median / running[fastest].median
            if slower > _CLEARLY:
                outcome.stopped = f"left out after {_TRIAL_ROUNDS} rounds: {slower:.2f} times as long as {fastest}"


def fastest_of(group: Sequence[str], outcomes: Mapping[str, Outcome]) -> str | None:
    """Return the system of a group that took all rounds and is the fastest of these."""
    whole = [system for system in group if outcomes[system].results and not outcomes[system].stopped]
    return min(whole, key=lambda system: outcomes[system].median, default=None)
