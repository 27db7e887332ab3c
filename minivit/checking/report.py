"""The result of a gradient check: one row for each gradient, printed as a table or converted to JSON."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from minivit.checking.tables import dimensions, escaped, html_table, plain, text_table
from minivit.errors import count_of

if TYPE_CHECKING:
    from rich.console import Console

Verdict = Literal["ok", "zero", "vacuous", "skipped", "FAILED"]
Slope = float | Literal["linear"] | None

_HEADERS = ("layer", "gradient of", "shape", "norm", "error", "slope", "method", "verdict", "worst index")
_RIGHT_ALIGNED = ("norm", "error", "slope")
_STYLES = {"ok": "green", "zero": "cyan", "vacuous": "yellow", "skipped": "yellow", "FAILED": "bold red"}


def dotted(layer: str, name: str) -> str:
    """Return the name of an array in a layer; that of an argument alone has the layer ""."""
    return f"{layer}.{name}" if layer else name


@dataclass(frozen=True)
class Row:
    """The verdict on one gradient.

    Attributes
    ----------
    layer, name, shape
        The layer that holds the array, the array's name and its shape; ``weight[q]`` is a named part of ``weight``.
    norm
        Euclidean norm of the gradient that the backward pass returned.
    error
        Largest |difference| over the random directions / max(`norm`, 1e-3 of the norm of all gradients); infinite if
        the gradient could not be measured.
    slope
        Order in h at which the Taylor remainder falls; "linear" if the remainder is only rounding; None if the method
        does not use it.
    worst_index
        Index of the element with the largest error, of a large array that of the largest error found; None if the row
        passed or was not explained.
    verdict
        "ok"; "zero": the gradient and its numerical value are both zero up to rounding; "vacuous": the tolerance is
        larger than the gradient, so that any gradient would pass, or some elements at kinks were not tested;
        "skipped": backward returned None; "FAILED".
    method
        "complex" step, "taylor" remainder, "central" differences, or "float32": comparison with the float64 gradient.
    note
        Explanation of the result; empty if there is nothing to explain.
    remainders
        Pairs of h and the Taylor remainder at h, largest h first; empty if the method does not use it.
    """

    layer: str
    name: str
    shape: tuple[int, ...]
    norm: float
    error: float
    slope: Slope
    worst_index: tuple[int, ...] | None
    verdict: Verdict
    method: str
    note: str = ""
    remainders: tuple[tuple[float, float], ...] = field(default=(), repr=False)

    @property
    def full_name(self) -> str:
        """The names of the layer and of the array, joined by a dot."""
        return dotted(self.layer, self.name)

    def cells(self) -> tuple[str, ...]:
        """Return the printed cells, in the order of the table's columns."""
        slope = "-" if self.slope is None else self.slope if isinstance(self.slope, str) else f"{self.slope:.2f}"
        measured = self.verdict != "skipped"
        return (
            self.layer,
            self.name,
            dimensions(self.shape),
            f"{self.norm:.2e}" if measured else "-",
            f"{self.error:.1e}" if measured else "-",
            slope,
            self.method if measured else "-",
            self.verdict,
            "" if self.worst_index is None else str(self.worst_index),
        )


@dataclass(frozen=True, repr=False)
class Report:
    """The rows of one gradient check, and the contracts that forward or backward violated.

    ``bool(report)`` is ``report.passed``, so that ``assert gradcheck(...)`` fails for a wrong gradient.

    Attributes
    ----------
    title
        What was checked.
    rows
        One row for each array, parameter or named part; a second one for each that is also compared in float32.
    findings
        Violated contracts: a modified argument, a second backward pass that differs, a wrong dtype.
    tolerance
        Largest error that a row measured by the complex step may have.
    advice
        What to look at first, or which other point to check at, or an empty string.
    """

    title: str
    rows: tuple[Row, ...]
    findings: tuple[str, ...] = ()
    tolerance: float = 1e-11
    advice: str = ""

    @property
    def passed(self) -> bool:
        """Whether no row failed and no contract was violated."""
        return not self.findings and all(row.verdict != "FAILED" for row in self.rows)

    def __bool__(self) -> bool:
        return self.passed

    @property
    def max_error(self) -> float:
        """The largest error in float64; comparisons in float32 are left out, since they have their own tolerance."""
        return max((row.error for row in self.rows if row.method != "float32"), default=0.0)

    def raise_if_failed(self) -> None:
        """Raise AssertionError with the printed table if the check did not pass."""
        __tracebackhide__ = True
        if not self.passed:
            raise AssertionError(f"the gradients are not right\n\n{self}")

    def to_dict(self) -> dict[str, Any]:
        """Return a dict that can be written as JSON; a number that is not finite becomes None."""
        rows = [{key: plain(value) for key, value in asdict(row).items()} for row in self.rows]
        summary = {"title": self.title, "passed": self.passed, "max_error": plain(self.max_error)}
        return summary | {"findings": list(self.findings), "rows": rows}

    def summary(self) -> str:
        """Return the last line: the number of gradients and the largest error, or the number of failures."""
        failed = [row.full_name for row in self.rows if row.verdict == "FAILED"]
        warned = sum(1 for row in self.rows if row.note and row.verdict != "FAILED")
        warnings = f"; {count_of(warned, 'note')} above" if warned else ""
        if self.passed:
            verified = [row for row in self.rows if row.verdict in ("ok", "zero") and row.method != "float32"]
            if not verified:
                return f"passed, but nothing was verified{warnings}"
            zero = sum(row.verdict == "zero" for row in verified)
            zeros = f" ({zero} of them zero)" if zero else ""
            bar = f" (tolerance {self.tolerance:.0e})" if all(row.method == "complex" for row in verified) else ""
            gradients = f"{count_of(len(verified), 'gradient')}{zeros}"
            largest = max((row.error for row in verified), default=0.0)
            return f"passed: {gradients}, largest error {largest:.1e}{bar}{warnings}"
        wrong = f"{len(failed)} of {count_of(len(self.rows), 'gradient')} wrong" if failed else ""
        broken = f"{count_of(len(self.findings), 'contract')} broken" if self.findings else ""
        return f"FAILED: {', '.join(filter(None, (wrong, broken)))}{warnings}"

    def print(self, console: Console | None = None) -> None:
        """Print the table: in colour on a terminal, as plain text in a pipe."""
        from rich.console import Console
        from rich.text import Text

        console = console or Console()
        for line, style, word in self._lines():
            text = Text(line, style if not word else "")
            if word:
                text.stylize(style, start := line.rindex(word), start + len(word))
            console.print(text, soft_wrap=True, highlight=False)

    def __repr__(self) -> str:
        failed = ", ".join(dict.fromkeys(row.full_name for row in self.rows if row.verdict == "FAILED"))
        return f"<{self.title}: {self.summary()}{f' ({failed})' if failed else ''}; print it for the table>"

    def _repr_html_(self) -> str:
        """Return the table for a notebook: the same rows, notes and last lines as the printed one."""
        headers, rows = self._columns()
        ends = [*(f"contract: {finding}" for finding in self.findings), self.advice]
        below = "".join(f"<p>{escaped(words)}</p>" for words in ends if words)
        table = html_table(headers, rows, _RIGHT_ALIGNED, [row.note for row in self.rows])
        return f"<div><p>{escaped(self.title)}</p>{table}{below}<p><b>{escaped(self.summary())}</b></p></div>"

    def __str__(self) -> str:
        return "\n".join(line for line, _, _ in self._lines())

    def _lines(self) -> Iterator[tuple[str, str, str]]:
        """Yield each line of the table, its style, and the word that the style applies to; "" is the whole line."""
        headers, rule, *lines = text_table(*self._columns(), _RIGHT_ALIGNED)
        yield self.title, "bold", ""
        yield "", "", ""
        yield headers, "dim", ""
        yield rule, "dim", ""
        for row, line in zip(self.rows, lines, strict=True):
            style = _STYLES[row.verdict]
            yield line, style, row.verdict
            yield from ((f"    {part}", style, "") for part in row.note.split("; ") if part)
        yield "", "", ""
        yield from ((f"contract: {finding}", "bold red", "") for finding in self.findings)
        if self.advice:
            yield self.advice, "", ""
        yield self.summary(), "bold green" if self.passed else "bold red", ""

    def _columns(self) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
        """Return headers and cells without empty columns; only the first row of a layer has the layer's name."""
        cells = [row.cells() for row in self.rows]
        previous = [None, *(layer for layer, *_ in cells)]
        shown = [
            ("" if layer == before else layer, *rest) for (layer, *rest), before in zip(cells, previous, strict=False)
        ]
        kept = [k for k in range(len(_HEADERS)) if any(row[k] for row in shown)]
        return tuple(_HEADERS[k] for k in kept), [tuple(row[k] for k in kept) for row in shown]
