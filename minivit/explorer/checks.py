"""The gradient check of each layer of a trace, at the very numbers of the trace.

Input and upstream gradient of a check are the layer's own in the trace, x and dy, in float64. A layer is checked with
the parameters that are its own; those of the layers in it are checked there. In a large model the first tokens alone
are checked, and the most expensive layers not at all; the checks say so.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypedDict

import numpy as np

from minivit.arrays import namespace
from minivit.checking import Report, Row
from minivit.checking.report import Slope
from minivit.engine.jobs import done_by_workers
from minivit.engine.machine import single_threaded_blas
from minivit.explorer.layers import shown
from minivit.explorer.subjects import Subject, layers_by_name, subject_of
from minivit.nn.layer import Layer
from minivit.nn.positions import GridPositions, SinCosPositions
from minivit.ops.registry import reference_only_here
from minivit.tracing.trace import Trace

MOST_WORK = 2.5e11  # of all checks together, in floating-point operations
FEWER_TOKENS = 16  # that are checked where all would be too much work
_PASSES = 30  # about as many forward passes verify the gradient of one array
_OF_A_NUMBER = 100  # operations for each number that a layer takes or returns, such as an exponential
_OF_A_PARAMETER = 60  # to set a parameter before a pass
_TOO_MUCH = "not checked: the checks of all layers of so large a model take too long; `minivit gradcheck` makes them"


class CheckedArray(TypedDict):
    """One row of a check; schema.json describes the fields."""

    array: str
    shape: list[int]
    norm: float
    error: float
    slope: Slope
    verdict: str
    method: str
    note: str


class Remainders(TypedDict):
    """The Taylor remainders of one array; schema.json describes the fields."""

    array: str
    h: list[float]
    remainder: list[float]
    slope: Slope


class Check(TypedDict):
    """The gradient check of one layer; schema.json describes the fields."""

    passed: bool
    seconds: float
    input: str
    rows: list[CheckedArray]
    taylor: list[Remainders]


def check_layers(
    model: Layer,
    trace: Trace,
    names: Sequence[str] | None = None,
    *,
    seed: int = 0,
    work: float = MOST_WORK,
    meanwhile: Callable[[], object] = lambda: None,
) -> dict[str, Check]:
    """Check the gradients of each layer at the numbers of a trace, on all cores.

    Parameters
    ----------
    model : Layer
        The model of the trace; it stays as it is.
    trace : Trace
        With arrays. Without a backward pass in it the upstream gradients are random.
    names : sequence of str, optional
        Names of layers and ops in the trace; by default those that the page shows.
    seed : int
        Of the directions.
    work : float
        The largest amount of work, in floating-point operations. Where it is not enough, the first 16 tokens alone are
        checked, and then the layers with the least work alone.
    meanwhile : callable
        Is called once in this process, while others begin to check.

    Returns
    -------
    dict
        The `Check` of each name, in the order of `names`. A layer that cannot be checked has one row, "skipped", whose
        note says why.
    """
    layers = layers_by_name(model)
    if names is None:
        names = shown(trace.records)
    checks: dict[str, Check] = {}
    subjects: dict[str, Subject] = {}
    for name in names:
        subject = subject_of(trace[name], layers)
        if isinstance(subject, str):
            checks[name] = skipped(subject)
        else:
            subjects[name] = subject
    needed = {name: work_of(subject, trace) for name, subject in subjects.items()}
    if sum(needed.values()) > work:
        subjects = {name: with_fewer_tokens(subject) for name, subject in subjects.items()}
        needed = {name: work_of(subject, trace) for name, subject in subjects.items()}
    affordable: list[str] = []
    for name in sorted(subjects, key=needed.__getitem__):
        work -= needed[name]
        if work >= 0:
            affordable.append(name)
        else:
            checks[name] = skipped(_TOO_MUCH)
    affordable.reverse()  # the longest first, so that the workers end together
    on_host = namespace(model.parameters.store.values) is np
    with single_threaded_blas(), reference_only_here():
        done = done_by_workers(
            lambda i: _checked(subjects[affordable[i]], seed), len(affordable), meanwhile, None if on_host else 1
        )
    checks.update(zip(affordable, done, strict=True))
    return {name: checks[name] for name in names}


def skipped(why: str) -> Check:
    """Return the check of a layer that cannot be checked."""
    row = _row("x", note=why, verdict="skipped")
    return {"passed": False, "seconds": 0.0, "input": "none", "rows": [row], "taylor": []}


def rows_of(report: Report) -> list[CheckedArray]:
    """Return the rows of a report, followed by one for each contract that is broken."""
    broken = [_row("contract", note=finding, verdict="FAILED") for finding in report.findings]
    return [*map(_row_of, report.rows), *broken]


def _row_of(row: Row) -> CheckedArray:
    return {
        "array": row.full_name,
        "shape": list(row.shape),
        "norm": row.norm,
        "error": row.error,
        "slope": row.slope,
        "verdict": row.verdict,
        "method": row.method,
        "note": row.note,
    }


def _row(array: str, *, note: str, verdict: str) -> CheckedArray:
    return {
        "array": array,
        "shape": [],
        "norm": 0.0,
        "error": 0.0,
        "slope": None,
        "verdict": verdict,
        "method": "",
        "note": note,
    }


def _checked(subject: Subject, seed: int) -> Check:
    start = time.perf_counter()
    try:
        report = subject.check(subject.own_parameters, seed)
    except Exception as error:  # whatever a layer of a user's own raises
        return skipped(f"not checked: {str(error) or type(error).__name__}")
    taylor: list[Remainders] = []
    for row in report.rows:
        if row.remainders:
            h, rest = zip(*row.remainders, strict=True)
            taylor.append({"array": row.full_name, "h": list(h), "remainder": list(rest), "slope": row.slope})
    return {
        "passed": report.passed,
        "seconds": time.perf_counter() - start,
        "input": subject.words,
        "rows": rows_of(report),
        "taylor": taylor,
    }


def work_of(subject: Subject, trace: Trace) -> float:
    """Return about how many floating-point operations a check takes."""
    record = subject.record
    own = subject.own_parameters
    rows = len(record.arguments) if record.is_op else 1 + len(own)
    numbers = _OF_A_NUMBER * (record.x.size + record.y.size)
    if record.is_op:
        return float(rows * _PASSES * numbers)
    parameters = _OF_A_PARAMETER * sum(p.size for p in subject.layer.parameters.values())
    share = record.x[subject.part].size / record.x.size if subject.part else 1.0
    return rows * _PASSES * (share * (_flops(subject.layer, record.name, trace) + numbers) + parameters)


def _flops(layer: Layer, name: str, trace: Trace) -> int:
    """Return the FLOPs of one forward pass, those of the parts where the layer itself does not know."""
    record = trace.records.get(name)
    own = 0 if record is None or record.x is None else layer.cost(record.x.shape[1:]).flops * len(record.x)
    prefix = "" if name == trace.root else f"{name}."
    parts = ((f"{prefix}{part}", member) for part, member in layer._members() if isinstance(member, Layer))
    return own or sum(_flops(member, part, trace) for part, member in parts)


def with_fewer_tokens(subject: Subject, tokens: int = FEWER_TOKENS) -> Subject:
    """Return the same layer with its first tokens alone, or `subject` where it has no more or needs all.

    Layers with positions, and those of a user, need all tokens.
    """
    record = subject.record
    by_token = not record.is_op and record.x.ndim == 3 and record.y.shape[:2] == record.x.shape[:2]
    if not by_token or record.x.shape[1] <= tokens or any(map(_needs_all, subject.layer.named_layers())):
        return subject
    words = f"the first {tokens} of {record.x.shape[1]} tokens"
    return replace(subject, part=(slice(None), slice(tokens)), part_words=words)


def _needs_all(named: tuple[str, Layer]) -> bool:
    layer = named[1]
    has_positions = isinstance(layer, GridPositions | SinCosPositions) or getattr(layer, "rel_pos", None) is not None
    return has_positions or not type(layer).__module__.startswith("minivit.")
