"""Tables of the results of a check, as text and as HTML."""

from __future__ import annotations

import html
import itertools
import math
from collections.abc import Sequence
from typing import Any

from minivit.errors import printable


def text_table(headers: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[str] = ()) -> list[str]:
    """Return the lines of a table: the headers, a rule, and the rows; the columns in `right` are aligned right."""
    widths = [max(map(len, column)) for column in zip(headers, *rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        columns = zip(headers, cells, widths, strict=True)
        return "  ".join(cell.rjust(n) if header in right else cell.ljust(n) for header, cell, n in columns).rstrip()

    return [line(headers), "  ".join("-" * width for width in widths), *map(line, rows)]


def html_table(
    headers: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[str] = (), notes: Sequence[str] = ()
) -> str:
    """Return a table for a notebook; a row that has a note is followed by a row with its parts, divided at "; "."""
    align = ["right" if header in right else "left" for header in headers]

    def line(tag: str, cells: Sequence[str]) -> str:
        pairs = zip(cells, align, strict=True)
        inside = "".join(f'<{tag} style="text-align:{side}">{escaped(cell)}</{tag}>' for cell, side in pairs)
        return f"<tr>{inside}</tr>"

    lines = []
    for row, note in itertools.zip_longest(rows, notes, fillvalue=""):
        lines.append(line("td", row))
        if note:
            parts = "<br>".join(map(escaped, note.split("; ")))
            lines.append(f'<tr><td></td><td colspan="{len(headers) - 1}" style="text-align:left">{parts}</td></tr>')
    return f"<table><thead>{line('th', headers)}</thead><tbody>{''.join(lines)}</tbody></table>"


def escaped(text: str) -> str:
    """Return a text for HTML, without control characters."""
    return html.escape(printable(text))


def dimensions(shape: tuple[int, ...]) -> str:
    """Return a shape as it is printed in a table."""
    return " x ".join(map(str, shape)) if shape else "scalar"


def plain(value: Any) -> Any:
    """Return a field of a result for JSON: a number that is not finite becomes None, a tuple a list."""
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    return list(value) if isinstance(value, tuple) else value
