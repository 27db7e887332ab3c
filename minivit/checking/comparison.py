"""The result of `compare`: one row for each quantity, printed as a table or converted to JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from minivit.checking.evidence import digits_beside
from minivit.checking.tables import dimensions, escaped, html_table, plain, text_table

SameOrNot = Literal["same", "DIFFERS", "not compared"]


@dataclass(frozen=True)
class Quantity:
    """One quantity beside ours: the result `y`, a gradient, or an array in the cache that has the same name in both.

    Attributes
    ----------
    name, shape
        Its name, such as "y" or "dqkv[k]", and the shape of ours.
    error
        Largest |difference| of an element / norm of ours; the norm of a gradient counts as at least 1e-3 of the norm
        of all gradients. Infinite if the shapes differ or a number is not finite.
    index, mine, ours
        The index of the largest difference, and both values there; None if they cannot be compared.
    verdict
        "same", "DIFFERS", or "not compared".
    note
        What is wrong, in words; empty if nothing is, or the numbers do not tell.
    """

    name: str
    shape: tuple[int, ...]
    error: float
    index: tuple[int, ...] | None
    mine: float | None
    ours: float | None
    verdict: SameOrNot
    note: str = ""

    def sentence(self) -> str:
        """Return where the quantity differs and why."""
        if self.mine is None or self.ours is None:
            return f"{self.name}: {self.note}"
        digits = digits_beside(self.mine, self.ours)
        place = f"at {list(self.index)} " if self.index else ""
        words = f"{self.name}: {place}yours is {self.mine:.{digits}g}, ours {self.ours:.{digits}g}"
        return f"{words}. {self.note[:1].upper()}{self.note[1:]}".removesuffix(". ")

    def cells(self) -> tuple[str, ...]:
        """Return the printed cells, in the order of the table's columns."""
        compared = self.verdict != "not compared"
        where = str(list(self.index)) if self.index and self.verdict == "DIFFERS" else ""
        return self.name, dimensions(self.shape), f"{self.error:.1e}" if compared else "-", self.verdict, where


_HEADERS = ("quantity", "shape", "error", "verdict", "worst at")


@dataclass(frozen=True, repr=False)
class Comparison:
    """A user's functions or layer beside ours; ``bool(comparison)`` says whether all quantities are the same.

    Attributes
    ----------
    title
        What was compared.
    quantities
        In the order of the computation: the arrays of the cache, `y`, then the gradients.
    findings
        Violated contracts: a modified argument, a second backward pass that differs, a wrong dtype.
    tolerance
        The largest error of quantities that are the same.
    advice
        What to look at first, or an empty string.
    """

    title: str
    quantities: tuple[Quantity, ...]
    findings: tuple[str, ...] = ()
    tolerance: float = 1e-10
    advice: str = ""

    @property
    def first(self) -> Quantity | None:
        """The first quantity that differs, or None."""
        return next((quantity for quantity in self.quantities if quantity.verdict == "DIFFERS"), None)

    @property
    def passed(self) -> bool:
        """Whether no quantity differs and no contract is violated."""
        return self.first is None and not self.findings

    def __bool__(self) -> bool:
        return self.passed

    def __getitem__(self, name: str) -> Quantity:
        """Return the quantity called `name`."""
        for quantity in self.quantities:
            if quantity.name == name:
                return quantity
        raise KeyError(f"{name!r}; the quantities are {', '.join(quantity.name for quantity in self.quantities)}")

    def raise_if_different(self) -> None:
        """Raise AssertionError with the printed table if a quantity differs or a contract is violated."""
        __tracebackhide__ = True
        if not self.passed:
            raise AssertionError(f"the quantities are not the same\n\n{self}")

    def to_dict(self) -> dict[str, Any]:
        """Return a dict that can be written as JSON; a number that is not finite becomes None."""
        rows = [{key: plain(value) for key, value in asdict(quantity).items()} for quantity in self.quantities]
        first = None if self.first is None else self.first.name
        return {
            "title": self.title,
            "passed": self.passed,
            "first": first,
            "findings": list(self.findings),
            "advice": self.advice,
            "quantities": rows,
        }

    def summary(self) -> str:
        """Return the last line: the first quantity that differs, or the largest error."""
        if self.first is not None:
            return f"The first quantity that differs is {self.first.sentence()}"
        if self.findings:
            return f"The numbers are the same, but: {'; '.join(self.findings)}"
        errors = [quantity.error for quantity in self.quantities if quantity.verdict == "same"]
        left = [quantity.name for quantity in self.quantities if quantity.verdict == "not compared"]
        but = f"; not compared: {', '.join(left)}" if left else ""
        largest = max(errors, default=0.0)
        return f"same: {len(errors)} quantities, largest error {largest:.1e} (tolerance {self.tolerance:.0e}){but}"

    def _ends(self) -> list[str]:
        contracts = [f"contract: {finding}" for finding in self.findings]
        return [*contracts, self.summary(), *filter(None, [self.advice])]

    def __str__(self) -> str:
        lines = text_table(_HEADERS, [quantity.cells() for quantity in self.quantities])
        return "\n".join([self.title, "", *lines, "", *self._ends()])

    def __repr__(self) -> str:
        return f"<{self.title}: {self.summary()}; print it for the table>"

    def _repr_html_(self) -> str:
        """Return the table for a notebook."""
        table = html_table(_HEADERS, [quantity.cells() for quantity in self.quantities])
        below = "".join(f"<p>{escaped(words)}</p>" for words in self._ends())
        return f"<div><p>{escaped(self.title)}</p>{table}{below}</div>"
