"""A trace as a table: one row for each layer, with the norms of its result, of its gradient and of its parameters'."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from minivit.arrays import Array, to_host
from minivit.tracing.names import ROOT, as_names, matches, unknown
from minivit.tracing.record import Record, TraceLike
from minivit.tracing.statistics import Statistics

_BY_DEPTH = re.compile(r"[^.]+(\.\d+(_\d+)?)?")  # "patch_embed", "blocks.3", its second call "blocks.3_2"
_ENCODER = "encoder."  # its parts are parts of a model that calls them itself


class Row(NamedTuple):
    """One layer or op.

    Attributes
    ----------
    name, kind : str
        As of its `Record`.
    y, dy : Statistics or None
        Of its result and of the gradient of the loss with respect to the result; None without a backward pass.
    gradient : float or None
        The norm of the gradient of all parameters in it; None if it has none, and for a second call of a layer, whose
        gradient counts at the first. NaN if it is not finite.
    saturated : float or None
        The share of saturated units of the activation or of attention's weights, if it is such a layer.
    """

    name: str
    kind: str
    y: Statistics
    dy: Statistics | None
    gradient: float | None
    saturated: float | None


def rows(records: Mapping[str, Record], at: str | Sequence[str] | None = None, root: str = ROOT) -> list[Row]:
    """Return the rows of the layers and ops that match `at`; by default of the parts of the model, by depth.

    The record of the model itself is called `root`. A layer of a user's own whose result is not an array has no row.
    """
    shown = {name: each for name, each in records.items() if "y" in each.quantities}
    if at is None:
        inside = "" if "encoder" in records else _ENCODER
        parts = [r for r in shown.values() if not r.is_op and _BY_DEPTH.fullmatch(r.name.removeprefix(inside))]
        with_parameters = [each for each in parts if each.name != root and each.has_parameters]
        return list(map(_row, with_parameters or shown.values()))
    patterns = as_names("at", at)
    for pattern in patterns:
        if not any(matches(name, pattern) for name in records):
            raise unknown(pattern, records)
    return [_row(each) for name, each in shown.items() if any(matches(name, p) for p in patterns)]


def _row(record: Record) -> Row:
    found = record.statistics
    inner = found.get("slope", found.get("weights"))
    saturated = None if inner is None else inner.saturated
    return Row(record.name, record.kind, found["y"], found.get("dy"), record.gradient_norm, saturated)


class Effect(NamedTuple):
    """What the interventions changed at one layer or op: the relative changes of its result and of its gradient.

    A change is the norm of the difference over the norm without the interventions; of a trace of statistics, where
    there is no difference, that of the norms. It is None where there is no such quantity, and NaN where a number is not
    finite.
    """

    name: str
    y: float | None
    dy: float | None


def effects(trace: TraceLike, baseline: TraceLike) -> list[Effect]:
    """Return the effect at each layer and op of both traces."""
    common = [(each, baseline.records[each.name]) for each in trace.records.values() if each.name in baseline.records]
    return [Effect(each.name, _relative(each, before, "y"), _relative(each, before, "dy")) for each, before in common]


def _relative(record: Record, before: Record, quantity: str) -> float | None:
    new, old = record.quantities.get(quantity), before.quantities.get(quantity)
    if new is None or old is None:
        return None
    if isinstance(new, Statistics) or isinstance(old, Statistics):
        change = abs(norm_of(record.statistics[quantity]) - norm_of(before.statistics[quantity]))
    else:
        with np.errstate(invalid="ignore"):  # infinity less infinity
            change = norm_of(Statistics.of(new - old))
    norm = norm_of(before.statistics[quantity])
    return change / norm if norm else (math.inf if change else 0.0)


def norm_of(statistics: Statistics) -> float:
    """Return the norm for a table: NaN if an element is not finite, since that of the others would mislead."""
    return statistics.norm if statistics.finite else math.nan


HEADER = ("layer", "kind", "|y|", "std y", "|dy|", "|dparameters|", "saturated")


def cells(row: Row) -> tuple[str, ...]:
    """Return the texts of a row, in the order of `HEADER`."""
    saturated = "" if row.saturated is None else f"{row.saturated:.1%}"
    return (
        row.name,
        row.kind,
        _number(norm_of(row.y)),
        _number(row.y.std if row.y.finite else math.nan),
        _number(None if row.dy is None else norm_of(row.dy)),
        _number(row.gradient),
        saturated,
    )


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def text(lines: Sequence[Sequence[str]]) -> str:
    """Return a table of texts, whose first line is the header: names to the left, numbers to the right."""
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    aligned = [
        "  ".join(
            cell.ljust(w) if i < 2 else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    ]
    return "\n".join(line.rstrip() for line in aligned)


def summary(trace: TraceLike) -> str:
    """Return what the trace is of, in one or two lines: the loss, and what the interventions changed of it."""
    words = [f"{len(trace.records)} layers and ops"]
    if trace.loss is not None:
        words.append(f"loss {float(trace.loss.real):.4g}")
    if (p := true_probability(trace)) is not None:
        words.append(f"probability of the true class {p:.4g}")
    lines = ["trace: " + ", ".join(words)]
    if trace.interventions:
        before = "" if trace.baseline is None else f"; without: {summary(trace.baseline).removeprefix('trace: ')}"
        lines.append(f"with {trace.interventions}{before}")
    return "\n".join(lines)


def true_probability(trace: TraceLike) -> float | None:
    """Return the mean probability of the true class, or None without labels of one class for each image."""
    if trace.y is None or trace.labels is None or trace.labels.ndim != 1:
        return None
    logits, labels = to_host(trace.y).real.astype(float), to_host(trace.labels)
    p = _softmax(logits)
    return float(p[range(len(labels)), labels].mean())


def _softmax(logits: Array) -> Array:
    from minivit import ops

    return ops.softmax(logits, keep=False)[0]
