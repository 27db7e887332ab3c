"""Processes that measure, and rounds: each system once a round, one after the other, never two at once.

Each round draws its own order, the same ones every time, so that no system always inherits the caches of the same one.
"""

import json
import os
import queue
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.workloads import Workload

_ROOT = Path(__file__).parent.parent
_TRIAL_ROUNDS = 2  # after which the systems of a baseline that are clearly slower than its fastest are left out
_CLEARLY = 1.10
_PATIENCE = 10.0  # seconds for a process to end


class WorkerError(Exception):
    """A process failed; the message is its error."""


class Worker:
    """A process ``python -m command ...`` that replies in lines of JSON, as `benchmarks.worker` does."""

    def __init__(self, *command: str, environment: Mapping[str, str] | None = None) -> None:
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self._stderr}
        variables = {**(environment or {}), **os.environ}
        whole = [sys.executable, "-m", *command]
        self._process: Any = subprocess.Popen(whole, cwd=_ROOT, env=variables, text=True, **pipes)
        self._replies: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    def _listen(self) -> None:
        with self._process.stdout as lines:
            for line in lines:
                self._replies.put(line)
        self._replies.put("")  # the process has ended

    def reply(self, timeout: float) -> dict[str, Any]:
        """Return the next reply, or raise WorkerError: for an error, the process's end, or after `timeout` seconds."""
        try:
            line = self._replies.get(timeout=max(0.0, timeout))
        except queue.Empty:
            self._process.kill()
            raise WorkerError(f"it took longer than {timeout:.0f} s") from None
        if not line:
            raise WorkerError(self._end())
        said: dict[str, Any] = json.loads(line)
        if "error" in said:
            raise WorkerError(said["error"])
        return said

    def measure(self, seconds: float, timeout: float) -> dict[str, Any]:
        """Let it measure for about `seconds`, and return its reply as `reply` does."""
        try:
            print(seconds, file=self._process.stdin, flush=True)
        except OSError:
            raise WorkerError(self._end()) from None
        return self.reply(timeout)

    def close(self) -> None:
        """End the process: by the end of its input, or by force where it does not end soon."""
        with suppress(OSError):
            self._process.stdin.close()
        try:
            self._process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._listener.join()
        self._stderr.close()

    def _end(self) -> str:
        """Return how the process ended, with the last line that it wrote to standard error."""
        status = self._process.wait(_PATIENCE)
        if status < 0:
            name = signal.Signals(-status).name
            return f"it was ended by {name}{', as where memory runs out' if name == 'SIGKILL' else ''}"
        self._stderr.seek(0)
        lines = self._stderr.read().decode(errors="replace").strip().splitlines()
        return f"it ended with status {status}{': ' + lines[-1].strip() if lines else ''}"


def start_worker(system: str, workload: Workload, threads: int | None = None, **environment: str) -> Worker:
    """Return a process that prepares a system for a workload, on so many processors; all by default."""
    options = [] if threads is None else ["--threads", str(threads)]
    return Worker("benchmarks.worker", system, json.dumps(asdict(workload)), *options, environment=environment)


def run_worker(
    system: str, workload: Workload, seconds: float, threads: int | None = None, timeout: float = 1800.0
) -> dict[str, Any]:
    """Measure a system in a process of its own; return its two replies as one dict, or raise WorkerError."""
    deadline = time.monotonic() + timeout
    with closing(start_worker(system, workload, threads)) as worker:
        prepared = worker.reply(timeout)
        return prepared | worker.measure(seconds, deadline - time.monotonic())


@dataclass
class Outcome:
    """The rounds of one system."""

    results: list[dict[str, Any]] = field(default_factory=list)  # the replies of its processes, one for each round
    stopped: str = ""  # why there are no more of them; empty where all rounds were run

    @property
    def seconds(self) -> list[list[float]]:
        """The seconds of each step of each round."""
        return [result["seconds"] for result in self.results]

    @property
    def median(self) -> float:
        """The median over the rounds of the median seconds of a step."""
        return statistics.median(statistics.median(seconds) for seconds in self.seconds)

    @property
    def peak_bytes(self) -> float:
        """The median over the rounds of the peak memory."""
        return statistics.median(result["peak_bytes"] for result in self.results)


def run_rounds(
    groups: Mapping[str, Sequence[str]],
    rounds: int,
    run: Callable[[str], dict[str, Any]],
    tell: Callable[[str], object],
    after_round: Callable[[int, dict[str, Outcome]], object] = lambda rounds, outcomes: None,
) -> dict[str, Outcome]:
    """Run each system once a round, in an order drawn anew for each; return the outcome of each.

    `groups` are the systems of each baseline, of which the fastest counts: after two rounds those clearly slower are
    left out. `run` measures a system, or raises WorkerError; then that system is not run again. `tell` takes a line
    about each process, `after_round` the number of rounds so far and the outcomes.
    """
    outcomes = {system: Outcome() for group in groups.values() for system in group}
    draw = random.Random(0)
    for i in range(rounds):
        if i == _TRIAL_ROUNDS:
            _leave_out(groups, outcomes)
        for system in draw.sample([*outcomes], len(outcomes)):
            outcome = outcomes[system]
            if outcome.stopped:
                continue
            try:
                outcome.results.append(run(system))
            except WorkerError as error:
                outcome.stopped = f"failed: {error}"
            last = outcome.stopped or f"{1e3 * statistics.median(outcome.seconds[-1]):.1f} ms"
            tell(f"round {i + 1} of {rounds}: {system} {last}")
        after_round(i + 1, outcomes)
    return outcomes


def _leave_out(groups: Mapping[str, Sequence[str]], outcomes: Mapping[str, Outcome]) -> None:
    for group in groups.values():
        fastest = fastest_of(group, outcomes) or ""
        for outcome in (outcomes[system] for system in group if not outcomes[system].stopped):
            slower = outcome.median / outcomes[fastest].median
            slowest = max(map(statistics.median, outcomes[fastest].seconds))
            if slower > _CLEARLY and min(map(statistics.median, outcome.seconds)) > slowest:
                outcome.stopped = f"left out after {_TRIAL_ROUNDS} rounds: {slower:.2f} times as long as {fastest}"


def fastest_of(group: Sequence[str], outcomes: Mapping[str, Outcome]) -> str | None:
    """Return the system of a group that took all rounds and is the fastest of these."""
    whole = [system for system in group if outcomes[system].results and not outcomes[system].stopped]
    return min(whole, key=lambda system: outcomes[system].median, default=None)
