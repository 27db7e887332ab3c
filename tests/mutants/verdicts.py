"""A trial and its verdict: tests run one after another until one fails."""

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
    """The tests of one op, run with a mutant or, as the baseline, without."""

    op: str
    path: str  # of the file that holds the op or its kernel
    limit: float  # seconds
    mutant: Mutant | None = None
    is_equivalent: bool = False  # as its proof says

    @property
    def is_of_cuda(self) -> bool:
        """Whether the mutant is one of a CUDA source."""
        return self.path.endswith((".cu", ".cuh"))


@dataclass(frozen=True)
class Verdict:
    """The test that failed first, or None; `late` says that the time ran out."""

    killer: str | None
    seconds: float
    late: bool = False
    compiles: bool = True  # what does not is no mutant


def first_failure(
    session: pytest.Session, items: Sequence[pytest.Item], before: Callable[[pytest.Item], None] = lambda item: None
) -> str | None:
    """Run the tests, `before` each of them that function, up to the first that fails, and return its node id."""
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
    """A pytest plugin that notes the first test that fails."""

    first: str | None = None

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed and self.first is None:
            self.first = report.nodeid
