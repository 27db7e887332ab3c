"""A trial and its verdict: tests run one after another until the first failure."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from .operators import Mutant

ROOT = Path(__file__).parent.parent.parent


@dataclass(frozen=True)
class Trial:
    """A run of the tests of one op, with a mutant or, for the baseline, without."""

    op: str
    path: str  # of the file that holds the op or its kernel
    limit: float  # seconds
    mutant: Mutant | None = None
    is_equivalent: bool = False  # whether there is a proof that it is equivalent

    @property
    def is_of_cuda(self) -> bool:
        """Whether the mutant is in a CUDA source."""
        return self.path.endswith((".cu", ".cuh"))


@dataclass(frozen=True)
class Verdict:
    """The first test that failed, or None; `late` is whether the time limit was reached."""

    killer: str | None
    seconds: float
    late: bool = False
    compiles: bool = True  # a mutant that does not compile does not count


def first_failure(
    session: pytest.Session, items: Sequence[pytest.Item], before: Callable[[pytest.Item], None] = lambda item: None
) -> str | None:
    """Run the tests up to the first failure, and return its node id or None; call `before` before each test."""
    failures = _Failures()
    session.config.pluginmanager.register(failures)
    try:
        for item, following in itertools.pairwise([*items, None]):
            assert item is not None
            before(item)
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
            if failures.first:
                break
    finally:
        session.config.pluginmanager.unregister(failures)
    return failures.first


class _Failures:
    """A pytest plugin that records the first test that fails."""

    first: str | None = None

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed and self.first is None:
            self.first = report.nodeid
