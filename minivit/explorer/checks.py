"""The gradient check of each layer of a trace, at the very numbers of the trace.

Input and upstream gradient of a check are the layer's own in the trace, x and dy, in float64. A layer is checked with
the parameters that are its own; those of the layers in it are checked there. In a large model the first tokens alone
are checked, and the most expensive layers not at all; the checks say so.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

import numpy as np

from minivit import ops
from minivit.arrays import Array, to_host
from minivit.checking import Report, Row, gradcheck, gradcheck_layer
from minivit.checking.report import Slope
from minivit.engine.machine import single_threaded_blas
from minivit.nn.layer import Layer
from minivit.nn.parameters import Parameter
from minivit.nn.positions import GridPositions, SinCosPositions
from minivit.ops.registry import reference_only_here
from minivit.tracing.names import ROOT
from minivit.tracing.record import Record
from minivit.tracing.trace import Trace

MOST_WORK = 3e11  # of all checks together, in floating-point operations
FEWER_TOKENS = 16  # that are checked where all would be too much work
_PASSES = 30  # about as many forward passes verify the gradient of one array
_OF_A_NUMBER = 100  # operations for each number that a layer takes or returns, such as an exponential
_OF_A_PARAMETER = 10  # to set a parameter before a pass
_TINY = 1e-30  # an upstream gradient of a smaller norm is as good as zero

# Ops that no layer stands for, and their arguments that are no arrays.
_OPS: dict[str, Callable[[Any], dict[str, Any]]] = {
    "softmax": lambda layer: {},
    "embed": lambda layer: {},
    "cross_entropy": lambda layer: {},
    "pool": lambda model: {"mode": model.config.global_pool, "num_prefix_tokens": model.config.first_pooled},
    "patches": lambda layer: {"patch_size": layer.patch_size},
    "unfold": lambda layer: {"kernel": layer.patch_size, "stride": layer.stride},
}


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


@dataclass(frozen=True)
class Subject:
    """A layer, or an op with its further arguments, and its record in a trace.

    Attributes
    ----------
    record
        Holds the input and the upstream gradient of the check.
    layer
        The layer itself, or for an op the layer that calls it.
    tokens
        Number of the first tokens that are checked, or None for all.
    """

    record: Record
    layer: Layer
    tokens: int | None = None

    @property
    def arrays(self) -> dict[str, Array]:
        """The inputs by name: x, or the arguments of the op; floats are float64."""
        given = self.record.arguments if self.record.is_op else {"x": self.record.x}
        return {name: self._part(value) for name, value in given.items()}

    @property
    def upstream(self) -> Array | None:
        """The gradient of the result in the trace, float64; None where it is absent, not finite or zero."""
        if self.record.dy is None:
            return None
        dy = self._part(self.record.dy)
        return dy if np.all(np.isfinite(dy)) and float(np.linalg.norm(dy)) > _TINY else None

    @property
    def own_parameters(self) -> list[str]:
        """The names of the layer's parameters without those of the layers in it."""
        if self.record.is_op:
            return []
        return [name for name, member in self.layer._members() if isinstance(member, Parameter)]

    @property
    def words(self) -> str:
        """What the check is made on, in words."""
        some = "" if self.tokens is None else f"the first {self.tokens} of {self.record.x.shape[1]} tokens of "
        if self.upstream is not None:
            return f"{some}the traced input in float64, with the traced gradient of the result"
        dy = self.record.dy
        why = "is zero"
        if dy is None:
            why = "was not computed"
        elif not np.all(np.isfinite(to_host(dy))):
            why = "is not finite"
        return f"{some}the traced input in float64, with a random gradient of the result: the traced one {why}"

    def _part(self, value: Array) -> Array:
        value = to_host(value)
        value = value.astype(np.float64) if value.dtype.kind == "f" else value
        return value if self.tokens is None else value[:, : self.tokens]

    def check(self, seed: int = 0) -> Report:
        """Run the check, on the host.

        Raises
        ------
        Exception
            What a layer that is not minivit's raises; ValueError where a number is not finite.
        """
        arrays = self.arrays
        if not self.record.is_op:
            layer, own = self.layer.to("numpy").astype(np.float64), self.own_parameters
            return gradcheck_layer(layer, arrays["x"], parameters=own, upstream=self.upstream, directions=1, seed=seed)
        op, options = getattr(ops, self.record.kind), _OPS[self.record.kind](self.layer)
        op_backward = getattr(ops, f"{self.record.kind}_backward")
        places = list(inspect.signature(op).parameters)

        def forward(*values: Array) -> tuple[Array, Any]:
            y, cache = op(**dict(zip(arrays, values, strict=True)), **options)
            return y, cache

        def backward(dy: Array, cache: Any) -> tuple[Any, ...]:
            returned = op_backward(dy, cache)
            gradients = returned if isinstance(returned, tuple) else (returned,)
            named = dict(zip(places, gradients, strict=False))
            return tuple(named[name] for name, value in arrays.items() if value.dtype.kind == "f")

        return gradcheck(
            forward, backward, *arrays.values(), names=list(arrays), upstream=self.upstream, directions=1, seed=seed
        )


def check_layers(
    model: Layer, trace: Trace, names: Sequence[str] | None = None, *, seed: int = 0, work: float = MOST_WORK
) -> dict[str, Check]:
    """Check the gradients of each layer at the numbers of a trace.

    Parameters
    ----------
    model : Layer
        The model of the trace; it stays as it is.
    trace : Trace
        With arrays. Without a backward pass in it the upstream gradients are random.
    names : sequence of str, optional
        Names of layers and ops in the trace; by default all layers, and the ops that no layer stands for.
    seed : int
        Of the directions.
    work : float
        The largest amount of work, in floating-point operations. Where it is not enough, the first 16 tokens alone are
        checked, and then the layers with the least work alone.

    Returns
    -------
    dict
        The `Check` of each name, in the order of `names`. A layer that cannot be checked has one row, "skipped", whose
        note says why.
    """
    layers = {name or ROOT: layer for name, layer in model.named_layers()}
    if names is None:
        names = [record.name for record in trace if not record.is_op or record.kind in _OPS]
    checks: dict[str, Check] = {}
    subjects: dict[str, Subject] = {}
    for name in names:
        subject = _subject(trace[name], layers)
        if isinstance(subject, str):
            checks[name] = skipped(subject)
        else:
            subjects[name] = subject
    needed = {name: _work(subject, trace) for name, subject in subjects.items()}
    if sum(needed.values()) > work:
        for name in [name for name, subject in subjects.items() if _takes_fewer_tokens(subject)]:
            record = subjects[name].record
            subjects[name] = Subject(record, subjects[name].layer, FEWER_TOKENS)
            needed[name] *= FEWER_TOKENS / record.x.shape[1]
    with single_threaded_blas(), reference_only_here():
        for name in sorted(subjects, key=needed.__getitem__):
            work -= needed[name]
            checks[name] = _checked(subjects[name], seed) if work >= 0 else skipped(_TOO_MUCH)
    return {name: checks[name] for name in names}


_TOO_MUCH = "not checked: the checks of all layers of so large a model take too long; `minivit gradcheck` makes them"


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


def _subject(record: Record, layers: Mapping[str, Layer]) -> Subject | str:
    """Return what is to be checked, or why it cannot be."""
    if record.holds_statistics:
        return "not checked: the trace has statistics and no arrays"
    name = record.name
    if record.is_op:
        if record.kind not in _OPS:
            return f"not checked alone: {record.kind} is checked in the layer that calls it"
        name = name.rpartition(".")[0] or ROOT
    if name not in layers:  # a layer that is called twice is "name_2" then
        name = name.rpartition("_")[0]
    return Subject(record, layers[name]) if name in layers else "not checked: the model has no such layer"


def _checked(subject: Subject, seed: int) -> Check:
    start = time.perf_counter()
    try:
        report = subject.check(seed)
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


def _work(subject: Subject, trace: Trace) -> float:
    """Return about how many floating-point operations a check takes."""
    record = subject.record
    own = subject.own_parameters
    rows = len(record.arguments) if record.is_op else 1 + len(own)
    numbers = _OF_A_NUMBER * (record.x.size + record.y.size)
    if record.is_op:
        return float(rows * _PASSES * numbers)
    parameters = _OF_A_PARAMETER * sum(p.size for p in subject.layer.parameters.values())
    return float(rows * _PASSES * (_flops(subject.layer, record.name, trace) + numbers + parameters))


def _flops(layer: Layer, name: str, trace: Trace) -> int:
    """Return the FLOPs of one forward pass, those of the parts where the layer itself does not know."""
    record = trace.records.get(name)
    own = 0 if record is None else layer.cost(record.x.shape[1:]).flops * len(record.x)
    prefix = "" if name == ROOT else f"{name}."
    parts = ((f"{prefix}{part}", member) for part, member in layer._members() if isinstance(member, Layer))
    return own or sum(_flops(member, part, trace) for part, member in parts)


def _takes_fewer_tokens(subject: Subject) -> bool:
    """Return whether the layer can be run on the first tokens alone; what has positions, or is a user's, cannot."""
    record = subject.record
    if record.is_op or record.x.ndim != 3 or record.y.shape[:2] != record.x.shape[:2]:
        return False
    return record.x.shape[1] > FEWER_TOKENS and not any(
        isinstance(each, GridPositions | SinCosPositions)
        or getattr(each, "rel_pos", None) is not None
        or not type(each).__module__.startswith("minivit.")
        for _, each in subject.layer.named_layers()
    )
