"""A trace as HTML: a table with bars, and below each layer its quantities with their histograms."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from minivit.tracing.record import TraceLike
from minivit.tracing.statistics import Statistics
from minivit.tracing.table import HEADER, Row, cells, norm_of, rows, summary

_STYLE = """
.trace { font: 13px/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
.trace .wide { overflow-x: auto; }
.trace th, .trace td { white-space: nowrap; }
.trace table { border-collapse: collapse; }
.trace th, .trace td { padding: 1px 10px 1px 0; text-align: right; font-variant-numeric: tabular-nums; }
.trace th:nth-child(-n+2), .trace td:nth-child(-n+2) { text-align: left; }
.trace summary { cursor: pointer; font-weight: 600; }
.trace .bar { display: inline-block; height: 9px; background: #0072b2; }
.trace .gradient { background: #d55e00; }
"""

_PAGE = """
:root { color-scheme: light dark; }
body { font-family: system-ui, sans-serif; max-width: 70em; margin: 1em auto; padding: 0 1em; }
"""


def table(trace: TraceLike, at: str | Sequence[str] | None = None) -> str:
    """Return the table of `Trace.table` as a piece of HTML, with a bar on a logarithmic scale for |y| and |dy|."""
    found = rows(trace.records, at, trace.root)
    forward = _bars([norm_of(row.y) for row in found], "bar")
    backward = _bars([0.0 if row.dy is None else norm_of(row.dy) for row in found], "bar gradient")
    head = "".join(f"<th>{escape(name)}</th>" for name in HEADER)
    head += "".join(f"<th style='text-align:left'>{name}</th>" for name in ("log |y|", "log |dy|"))
    body = "".join(
        f"<tr>{_cells(row)}<td style='text-align:left'>{one}</td><td style='text-align:left'>{other}</td></tr>"
        for row, one, other in zip(found, forward, backward, strict=True)
    )
    title = escape(summary(trace)).replace("\n", "<br>")
    return f"<div class='trace'><style>{_STYLE}</style><p>{title}</p>{_table(head, body)}</div>"


def page(trace: TraceLike, title: str = "Trace") -> str:
    """Return a whole page: the table by depth, and every layer and op with all its quantities."""
    details = []
    for record in trace.records.values():
        lines = "".join(
            f"<tr><td>{escape(name)}</td><td>{_shape(record.quantities[name])}</td>"
            + "".join(f"<td>{value:.4g}</td>" for value in (norm_of(s), s.mean, s.std, s.min, s.max))
            + f"<td>{s.zeros:.1%}</td><td>{histogram(s)}</td></tr>"
            for name, s in record.statistics.items()
        )
        names = ("quantity", "shape", "norm", "mean", "std", "min", "max", "zeros", "histogram")
        head = "".join(f"<th>{name}</th>" for name in names)
        details.append(
            f"<details><summary>{escape(record.name)} <small>{escape(record.kind)}</small></summary>"
            f"{_table(head, lines)}</details>"
        )
    return (
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width'>"
        f"<title>{escape(title)}</title><style>{_PAGE}</style></head><body>"
        f"<h1>{escape(title)}</h1>{table(trace)}<div class='trace'><h2>Every layer and op</h2>{''.join(details)}</div>"
        "</body></html>\n"
    )


def _table(head: str, body: str) -> str:
    """Return a table that scrolls sideways where the page is narrower."""
    return f"<div class='wide'><table><tr>{head}</tr>{body}</table></div>"


def histogram(s: Statistics, width: int = 160, height: int = 24) -> str:
    """Return the histogram of statistics as SVG."""
    most = max(s.counts) or 1
    step = width / len(s.counts)
    bars = "".join(
        f"<rect x='{i * step:.1f}' y='{height - height * count / most:.1f}' width='{step:.1f}' "
        f"height='{height * count / most:.1f}'/>"
        for i, count in enumerate(s.counts)
        if count
    )
    label = f"histogram from {s.min:.3g} to {s.max:.3g}"
    return f"<svg width='{width}' height='{height}' fill='#0072b2' role='img' aria-label='{label}'>{bars}</svg>"


def _cells(row: Row) -> str:
    return "".join(f"<td>{escape(cell)}</td>" for cell in cells(row))


def _shape(value: object) -> str:
    return f"{value.size:,} elements" if isinstance(value, Statistics) else escape(str(getattr(value, "shape", "")))


def _bars(norms: list[float], kind: str) -> list[str]:
    """Return bars whose lengths are linear in the logarithm of `norms`, over at least three powers of ten."""
    logs = [math.log10(norm) if norm > 0 and math.isfinite(norm) else None for norm in norms]
    known = [log for log in logs if log is not None] or [0.0]
    low = min(*known, max(known) - 3)
    widths = [None if log is None else 2 + 90 * (log - low) / (max(known) - low) for log in logs]
    return ["" if width is None else f"<span class='{kind}' style='width:{width:.0f}px'></span>" for width in widths]
