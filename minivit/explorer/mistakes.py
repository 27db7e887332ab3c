"""Typical mistakes in backward passes, applied to a traced model: what the gradients become, and what the check says.

Each is one edited line (edits.py), applied to the first layer of its kind in the model, at the numbers of the trace.
Mistakes of sums over the batch are shown for two images: the traced one and its mirror image.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TypedDict

import numpy as np

from minivit.arrays import Array, namespace
from minivit.checking import Report
from minivit.checking.explain import ELEMENTWISE
from minivit.engine.machine import single_threaded_blas
from minivit.explorer.checks import FEWER_TOKENS, with_fewer_tokens, work_of
from minivit.explorer.edits import EDITS, Edit, Edited
from minivit.explorer.heat_maps import HeatMaps, plane_of
from minivit.explorer.sources import kind_of
from minivit.explorer.subjects import Subject, layers_by_name, subject_of
from minivit.nn.layer import Layer
from minivit.ops.interception import intercepted
from minivit.ops.registry import reference_only_here
from minivit.tracing.names import matches
from minivit.tracing.record import Record
from minivit.tracing.trace import Trace, trace

MOST_WORK = 3e9  # of the check of one mistake, in floating-point operations
_MOST_ARRAYS = 4  # that are shown: dx, and the parameters' gradients that changed most


class MistakenArray(TypedDict):
    """What a mistake makes of one gradient; schema.json describes the fields."""

    array: str
    right: int | None
    wrong: int | None
    difference: int | None
    right_norm: float
    wrong_norm: float
    cosine: float | None
    changed: bool
    error: float


class ArrayVerdict(TypedDict):
    """What the gradient check says of one array."""

    array: str
    error: float
    verdict: str


class Mistake(TypedDict):
    """One mistake; schema.json describes the fields."""

    layer: str
    kind: str
    title: str
    category: str
    before: list[str]
    after: list[str]
    arrays: list[MistakenArray]
    found: bool
    verdict: list[ArrayVerdict]
    sentence: str


@dataclass(frozen=True)
class _Place:
    """Where edits are applied: a layer or op, its right gradients, and what is checked of it."""

    subject: Subject
    right: Mapping[str, Array]
    checked: Subject
    parameters: list[str]


def typical_mistakes(model: Layer, traced: Trace, maps: HeatMaps | None = None) -> tuple[list[Mistake], str]:
    """Apply each typical mistake to the first layer of its kind, and run the gradient check on it.

    Parameters
    ----------
    model : Layer
        The model of the trace; it stays as it is.
    traced : Trace
        With arrays. Without a backward pass in it the upstream gradients are random.
    maps : HeatMaps, optional
        Where the heat maps go; None: norms alone.

    Returns
    -------
    mistakes : list of Mistake
    note : str
        Why mistakes are left out, or "".
    """
    if any(record.holds_statistics for record in traced):
        return [], "typical mistakes are left out: the trace has statistics and no arrays"
    found: list[Mistake] = []
    slow: list[str] = []
    unseen: list[str] = []
    infinite: list[str] = []
    places: dict[str, _Place] = {}
    with single_threaded_blas(), reference_only_here():
        for edit in EDITS:
            subject = _subject(edit, model, traced)
            if subject is None:
                continue
            name = subject.record.name
            if work_of(_few(subject), traced) > MOST_WORK:
                slow.append(name)
                continue
            if name not in places:
                places[name] = _place(subject, model, traced)
            if not all(np.isfinite(gradient).all() for gradient in places[name].right.values()):
                infinite.append(name)
                continue
            try:
                mistake = _applied(edit, places[name], maps)
            except OSError:
                return [], "typical mistakes are left out: the source files of minivit are not installed"
            if mistake is not None and (mistake["found"] or any(array["changed"] for array in mistake["arrays"])):
                found.append(mistake)
            elif mistake is not None:  # such as a mean in place of a sum where there is one token
                unseen.append(name)
    reasons = (("take too long", slow), ("change nothing here", unseen), ("meet NaN or infinity", infinite))
    notes = [f"where they {why}: {', '.join(dict.fromkeys(names))}" for why, names in reasons if names]
    return found, f"typical mistakes are left out {'; '.join(notes)}" if notes else ""


def _subject(edit: Edit, model: Layer, traced: Trace) -> Subject | None:
    """Return the first layer or op to which the edit can be applied, or None."""
    layers = layers_by_name(model)
    for record in traced:
        if record.kind != edit.kind or not matches(record.name, edit.at):
            continue
        if edit.needs and edit.needs not in record.argument_names:
            continue
        subject = subject_of(record, layers)
        # A class of a user's may have the name of one of ours.
        if isinstance(subject, Subject) and (record.is_op or kind_of(type(subject.layer)) == edit.kind):
            return subject
    return None


def _place(subject: Subject, model: Layer, traced: Trace) -> _Place:
    record = subject.record
    if record.kind == "embed" and len(record.x) == 1:
        subject = Subject(_with_mirror_image(model, traced, record.name), subject.layer)
    parameters = ["qkv.weight"] if record.kind == "Attention" else subject.own_parameters
    return _Place(subject, subject.gradients(), _few(subject), parameters)


def _few(subject: Subject) -> Subject:
    """Return the part of a layer that is checked: of few numbers, since each is looked at to explain a mistake then."""
    shape = subject.record.x.shape
    few = max(2, ELEMENTWISE // shape[-1])
    if subject.record.kind == "softmax":
        few = min(few, shape[-2])
        part = slice(None), slice(1), slice(few)
        return replace(subject, part=part, part_words=f"the first {few} of {shape[-2]} queries of one head")
    is_leaf = len(list(subject.layer.named_layers())) == 1
    return with_fewer_tokens(subject, few if is_leaf else FEWER_TOKENS)


def _with_mirror_image(model: Layer, traced: Trace, name: str) -> Record:
    """Return the record of a pass of two images, the traced one and its mirror image."""
    image = traced[""].x[:1]
    xp = namespace(image)
    labels = None if traced.labels is None else xp.concatenate([traced.labels[:1]] * 2)
    record: Record = trace(model, xp.concatenate([image, image[:, :, ::-1]]), labels, at=name)[name]
    return record


def _applied(edit: Edit, place: _Place, maps: HeatMaps | None) -> Mistake | None:
    """Return what the edit does, or None where its line does not run in this layer."""
    edited = Edited(edit)
    try:
        with intercepted(edited):
            wrong = place.subject.gradients()
            report = place.checked.check(place.parameters)
    except ValueError:  # NumPy itself refuses the shapes: such a mistake raises an error by itself
        return None
    if not edited.ran:
        return None
    arrays = [_compared(name, right, wrong[name], place.subject, maps) for name, right in _shown(place.right, wrong)]
    return {
        "layer": place.subject.record.name,
        "kind": edit.kind,
        "title": edit.title,
        "category": edit.category,
        "before": edit.before.splitlines(),
        "after": edit.after.splitlines(),
        "arrays": arrays,
        "found": not report.passed,
        "verdict": [{"array": row.full_name, "error": row.error, "verdict": row.verdict} for row in report.rows],
        "sentence": _sentence(report, place.checked),
    }


def _shown(right: Mapping[str, Array], wrong: Mapping[str, Array]) -> Iterator[tuple[str, Array]]:
    """Yield the gradients that are shown by name: the first, and those that changed most, in their order."""
    first, *others = right
    changes = {name: _error(right[name], wrong[name]) for name in others}
    most = sorted((name for name in others if changes[name]), key=changes.__getitem__)[-_MOST_ARRAYS + 1 :]
    for name, array in right.items():
        if name == first or name in most:
            yield name, array


def _compared(name: str, right: Array, wrong: Array, subject: Subject, maps: HeatMaps | None) -> MistakenArray:
    norms = float(np.linalg.norm(right)), float(np.linalg.norm(wrong))
    comparable = right.shape == wrong.shape and min(norms) > 0
    error = _error(right, wrong)
    # The difference of two maps of 8 bits would be rounding where a mistake changes little.
    difference = wrong - right if right.shape == wrong.shape else None
    indices = [
        None if maps is None or array is None else maps.add(plane_of(array, name, subject.record.kind), array.shape)
        for array in (right, wrong, difference)
    ]
    return {
        "array": name,
        "right": indices[0],
        "wrong": indices[1],
        "difference": indices[2],
        "right_norm": norms[0],
        "wrong_norm": norms[1],
        "cosine": float(np.vdot(right, wrong)) / norms[0] / norms[1] if comparable else None,
        "changed": error != 0,
        "error": error,
    }


def _error(right: Array, wrong: Array) -> float:
    """Return the norm of the difference relative to that of the right gradient; infinite for another shape."""
    if right.shape != wrong.shape:
        return float("inf")
    difference, norm = float(np.linalg.norm(wrong - right)), float(np.linalg.norm(right))
    return difference / norm if norm else difference and float("inf")


def _sentence(report: Report, subject: Subject) -> str:
    """Return what the gradient check says, in words."""
    notes = [f"{row.full_name}: {row.note}" for row in report.rows if row.note and row.verdict == "FAILED"]
    words = ". ".join([report.summary(), *notes, *report.findings])
    return f"{words} (checked on {subject.part_words})" if subject.part else words
