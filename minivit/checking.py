"""The gradient check that explains itself: is a backward pass the gradient of its forward pass?

`gradcheck` takes any pair of functions, `gradcheck_layer` a layer and `gradcheck_model` a whole model with its loss. Each
gradient is proved in float64 by the complex step along random directions and by the order of the Taylor remainder;
code that is not analytic is judged by central differences. float32 gradients are then compared with the proved ones.
The methods are in check_methods.py, the table is in check_report.py.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypedDict, Unpack

import numpy as np

from minivit.arrays import Array, namespace, to_backend, to_host
from minivit.check_methods import EPS, NotAnalyticError, Probe, Taylor, explain, taylor
from minivit.check_report import Report, Row, Slope, Verdict

Forward = Callable[..., tuple[Any, Any]]
Backward = Callable[[Any, Any], Any]
Method = Literal["auto", "complex", "taylor", "central"]

_FLOOR = 1e-3  # a gradient smaller than this part of all the case's gradients is judged on that scale


class Options(TypedDict, total=False):
    """What every check takes; `gradcheck` describes them."""

    seed: int
    tolerance: float
    method: Method
    directions: int
    central_tolerance: float
    float32_tolerance: float
    on_row: Callable[[Row, int], None]


@dataclass(frozen=True)
class _Settings:
    seed: int = 0
    tolerance: float = 1e-11
    method: Method = "auto"
    directions: int = 3
    central_tolerance: float = 1e-6
    float32_tolerance: float = 1e-4
    on_row: Callable[[Row, int], None] = lambda row, total: None


class Differentiable(Protocol):
    """What `gradcheck_layer` needs of a layer; every layer and model of minivit has it."""

    @property
    def parameters(self) -> Mapping[str, Any]: ...
    def zero_grad(self) -> None: ...
    def astype(self, dtype: Any) -> Any: ...


def gradcheck(
    forward: Forward,
    backward: Backward,
    *arrays: Any,
    names: Sequence[str] | None = None,
    **options: Unpack[Options],
) -> Report:
    """Check that `backward` is the gradient of `forward` at `arrays`.

    Parameters
    ----------
    forward
        ``y, cache = forward(*arrays)`` with one real array `y`.
    backward
        ``gradients = backward(dy, cache)`` in the order of the arrays: one array or a tuple. Arrays of integers and
        booleans have no gradient and may be left out; None says that a gradient is not computed, and is not judged.
    arrays
        Where to check: float64 or float32. float32 arrays are checked in float64, and their float32 gradients are then
        compared with the float64 ones in rows of their own.
    names
        What the arrays are called in the table; the parameter names of `forward` by default.
    seed
        Of the upstream gradient and the directions.
    tolerance
        Largest relative error by the complex step (`Row.error` defines it).
    method
        "complex", "taylor" or "central" for that one alone; "auto" judges by complex step and Taylor slope, and by
        central differences where `forward` is not analytic.
    directions
        Random directions for each array.
    central_tolerance, float32_tolerance
        Largest relative error by central differences, and of float32 gradients against float64 ones.
    on_row
        Called with each row when it is there, and the number of rows, for a progress bar.

    Returns
    -------
    Report
        ``report.passed``, ``report.max_error``, ``print(report)``. A wrong gradient never raises: it is a row.

    Raises
    ------
    TypeError
        An argument is not an array of floats, integers or booleans, or forward does not return ``y, cache``.
    ValueError
        An array or the result holds NaN or infinity, the names do not fit, or an option is unknown.
    """
    settings = _settings(options)
    name = getattr(forward, "__name__", type(forward).__name__)
    names = _argument_names(forward, len(arrays)) if names is None else list(names)
    if len(names) != len(arrays):
        raise ValueError(f"got {len(names)} names for {len(arrays)} arrays; give one name for each")
    return _Check(f"gradient check of {name}", forward, backward, arrays, names, {}, settings).report()


def gradcheck_layer(
    layer: Any, *inputs: Any, rng: Any = None, names: Sequence[str] | None = None, **options: Unpack[Options]
) -> Report:
    """Check one layer: the gradients of its inputs and of each of its parameters.

    The layer itself is left as it is; copies of it are run. A parameter with named parts has a row for each part.

    Parameters
    ----------
    layer
        ``y, cache = layer.forward(*inputs, rng=rng)`` and ``layer.backward(dy, cache)``, with ``parameters``,
        ``zero_grad()`` and ``astype(dtype)``.
    inputs
        What forward is given; of the layer's dtype.
    rng
        None for evaluation, or a Key: the same dropout in every evaluation.
    names, options
        As for `gradcheck`.
    """
    copies = _Copies(layer, len(inputs))

    def forward(*arrays: Any) -> tuple[Any, Any]:
        copy = copies.at(arrays)
        y, cache = copy.forward(*arrays[: len(inputs)], rng=rng)
        return y, (copy, cache)

    def backward(dy: Any, state: Any) -> tuple[Any, ...]:
        copy, cache = state
        return copies.gradients(copy, lambda: copy.backward(dy, cache))

    names = _argument_names(layer.forward, len(inputs)) if names is None else names
    return copies.check(f"gradient check of {type(layer).__name__}", forward, backward, inputs, names, options)


def gradcheck_model(
    model: Any, images: Any, labels: Any, rng: Any = None, **options: Unpack[Options]
) -> Report:
    """Check a model with its cross-entropy loss: the gradients of every parameter and of the images.

    Parameters
    ----------
    model
        As for `gradcheck_layer`; it is left as it is. A float32 model is proved on a float64 copy, and its float32
        gradients are then compared with the proved ones.
    images
        (B, height, width, C), of the model's dtype.
    labels
        (B,) integers or (B, C) floats.
    rng
        None for evaluation, or a Key for training mode.
    options
        As for `gradcheck`.
    """
    from minivit.ops import cross_entropy, cross_entropy_backward

    copies = _Copies(model, 1)

    def forward(*arrays: Any) -> tuple[Any, Any]:
        copy = copies.at(arrays)
        logits, cache = copy.forward(arrays[0], rng=rng)
        soft = labels.dtype.kind == "f"
        loss, loss_cache = cross_entropy(logits, labels.astype(logits.real.dtype) if soft else labels)
        return loss, (copy, cache, loss_cache)

    def backward(dloss: Any, state: Any) -> tuple[Any, ...]:
        copy, cache, loss_cache = state
        return copies.gradients(copy, lambda: copy.backward(cross_entropy_backward(dloss, loss_cache), cache))

    title = f"gradient check of {type(model).__name__} with cross-entropy, {len(images)} images"
    return copies.check(title, forward, backward, (images,), ("images",), options)


class _Copies:
    """Copies of a layer, one for each dtype, whose parameters are set from a list of arrays after its inputs."""

    def __init__(self, layer: Any, inputs: int) -> None:
        self.layer = layer
        self.inputs = inputs
        self.parameters: Mapping[str, Any] = layer.parameters
        self.by_dtype: dict[np.dtype[Any], Any] = {}
        self.replaced: list[str] = []

    def at(self, arrays: Sequence[Any]) -> Any:
        """Return the copy of the dtype of `arrays`, holding the parameter values among them."""
        dtype = np.result_type(*(a.dtype for a in arrays if a.dtype.kind in "fc"))
        if dtype not in self.by_dtype:
            self.by_dtype[dtype] = self.layer.astype(dtype)
        copy = self.by_dtype[dtype]
        for parameter, value in zip(copy.parameters.values(), arrays[self.inputs :], strict=True):
            parameter.value[...] = value
        return copy

    def gradients(self, copy: Any, backward: Callable[[], Any]) -> tuple[Any, ...]:
        """Run `backward` and return the gradients of the inputs and the parameters."""
        copy.zero_grad()
        dinputs = _as_tuple(backward())
        missing = (_MISSING,) * (self.inputs - len(dinputs))
        first = [np.array(to_host(parameter.grad)) for parameter in copy.parameters.values()]
        if not self.replaced:
            backward()
            for (name, parameter), gradient in zip(copy.parameters.items(), first, strict=True):
                if not _same(to_host(parameter.grad), 2 * gradient):
                    self.replaced.append(name)
        return (*dinputs[: self.inputs], *missing, *first)

    def check(
        self,
        title: str,
        forward: Forward,
        backward: Backward,
        inputs: Sequence[Any],
        names: Sequence[str],
        options: Options,
    ) -> Report:
        values = [parameter.value for parameter in self.parameters.values()]
        parts = {name: tuple(getattr(parameter, "parts", ())) for name, parameter in self.parameters.items()}
        check = _Check(title, forward, backward, (*inputs, *values), [*names, *self.parameters], parts, _settings(options))
        if self.replaced:
            check.findings.append(
                f"backward must add to a parameter's gradient: run twice, it does not double {', '.join(self.replaced)}"
            )
        return check.report()


_MISSING = object()


@dataclass(frozen=True)
class _Subject:
    """One gradient to be judged: an array, or a named part of it."""

    array: int
    name: str
    where: tuple[Any, ...]


class _Check:
    """One case: the functions at one point, a random upstream, and the gradients that are claimed there."""

    def __init__(
        self,
        title: str,
        forward: Forward,
        backward: Backward,
        arrays: Sequence[Any],
        names: Sequence[str],
        parts: Mapping[str, tuple[str, ...]],
        settings: _Settings,
    ) -> None:
        self.title, self.settings, self.findings = title, settings, list[str]()
        self.forward, self.backward, self.library = forward, backward, namespace(*arrays)
        self.names, self.parts = names, parts
        self.given = [to_host(a) for a in arrays]
        self.floats = [k for k, a in enumerate(self.given) if a.dtype.kind == "f"]
        for name, a in zip(names, self.given, strict=True):
            if a.dtype not in (np.float64, np.float32) and a.dtype.kind not in "iub":
                raise TypeError(f"{name} is {a.dtype}; a gradient is checked for float64 and float32 arrays")
            if not np.all(np.isfinite(a)):
                raise ValueError(f"{name} holds NaN or infinity; a gradient is checked at finite values")
        if not self.floats:
            raise TypeError("no array of floats among the arguments: there is no gradient to check")
        self.points = self._cast(np.float64)
        self.complex_points: list[Array] = []
        self.y, self.upstream, self.gradients = self._run(self.points)

    def report(self) -> Report:
        """Judge every gradient."""
        subjects = self._subjects()
        flawed = {k: self._flaw(k, gradient, self.points[k]) for k, gradient in self.gradients.items()}
        sound = [self.gradients[k] for k, flaw in flawed.items() if not flaw]
        total = float(np.sqrt(sum(np.sum(np.square(gradient)) for gradient in sound)))
        low = [subject for subject in subjects if self.given[subject.array].dtype == np.float32]
        rows: list[Row] = []
        for subject in subjects:
            rows.append(self._row(subject, flawed[subject.array], total))
            self.settings.on_row(rows[-1], len(subjects) + len(low))
        if low:
            rows.extend(self._compare_float32(low, flawed, total, len(subjects) + len(low)))
        wrong = [row.full_name for row in rows if row.verdict == "FAILED" and row.method != "float32"]
        advice = ""
        if self.parts and 1 < len(wrong):
            advice = f"the wrong gradient nearest to the output is that of {wrong[-1]}: begin there"
        if total == 0 and sound:
            advice = "every gradient is zero here, so this check proves little: choose another point"
        return Report(self.title, tuple(rows), tuple(self.findings), self.settings.tolerance, advice)

    def _cast(self, dtype: Any) -> list[Array]:
        return [np.asarray(a, dtype) if a.dtype.kind == "f" else a for a in self.given]

    def _call(self, points: Sequence[Array]) -> tuple[Array, Any]:
        """Run the user's forward on its own kind of arrays, and return the result on the host."""
        result = self.forward(*(to_backend(point, self.library) for point in points))
        if not isinstance(result, tuple) or len(result) != 2:
            raise TypeError(f"forward must return (y, cache), got {type(result).__name__}")
        return to_host(result[0]), result[1]

    def _evaluate(self, k: int, value: Array) -> Array:
        """Return forward's result with array `k` replaced; where that is complex, every float array is."""
        if np.iscomplexobj(value):
            if not self.complex_points:
                self.complex_points = self._cast(np.complex128)
            points = list(self.complex_points)
        else:
            points = list(self.points)
        points[k] = value
        return self._call(points)[0]

    def _run(self, points: list[Array]) -> tuple[Array, Array, dict[int, Any]]:
        """Run forward and backward once with care; what they break is added to the findings.

        Returns the result, the upstream gradient, and what backward returned for each array of floats.
        """
        dtype = np.result_type(*(points[k].dtype for k in self.floats))
        before = [np.array(point) for point in points]
        y, cache = self._call(points)
        if y.dtype.kind != "f":
            raise TypeError(f"forward must return an array of floats for arrays of {dtype}, got {y.dtype}")
        if not np.all(np.isfinite(y)):
            raise ValueError("forward returns NaN or infinity here; a gradient is checked at finite values")
        if y.dtype != dtype:
            self.findings.append(f"forward returns {y.dtype} for {dtype} arguments")
        y = np.array(y)
        upstream = np.random.default_rng(self.settings.seed).standard_normal(y.shape)
        dy = np.asarray(upstream, y.dtype)

        def backward(who: str) -> tuple[Any, ...]:
            upward = to_backend(np.array(dy), self.library)
            gradients = _as_tuple(self.backward(upward, cache))
            if not np.array_equal(to_host(upward), dy):
                self.findings.append(f"{who} writes to dy")
            return tuple(g if g is None or g is _MISSING else np.array(to_host(g)) for g in gradients)

        first = backward("backward")
        if not all(map(np.array_equal, points, before)):
            self.findings.append("forward or backward writes to its arguments")
            points[:] = before
        try:
            if not _all_same(first, backward("the second backward")):
                self.findings.append("a second backward pass on the same cache differs: backward writes to its cache")
            elsewhere = [np.array(point) for point in points]
            if elsewhere[0].dtype.kind == "f":
                elsewhere[0] *= 1 + 2.0**-10
                again = self._call(elsewhere)[0]
                if not _all_same(first, backward("the third backward")):
                    self.findings.append(
                        "backward differs after forward has run elsewhere: it reads state outside its cache"
                    )
                del again
        except Exception as error:
            self.findings.append(f"a second backward pass on the same cache raises {type(error).__name__}: {error}")
        if not np.array_equal(self._call(points)[0], y):
            self.findings.append("forward gives another result for the same arguments: fix its randomness to check it")
        return y, upstream, self._align(first)

    def _align(self, gradients: tuple[Any, ...]) -> dict[int, Any]:
        """Give each array of floats its gradient, whether or not the other arrays were left out."""
        if len(gradients) == len(self.given):
            return {k: gradients[k] for k in self.floats}
        if len(gradients) != len(self.floats):
            self.findings.append(f"backward returns {len(gradients)} gradients for {len(self.floats)} arrays of floats")
        padded = (*gradients, *(_MISSING for _ in self.floats))
        return dict(zip(self.floats, padded, strict=False))

    def _flaw(self, k: int, gradient: Any, point: Array) -> str:
        """Say why a gradient cannot be measured, or nothing."""
        if gradient is _MISSING:
            return "backward returns no gradient for this array"
        if gradient is None:
            return "backward returns None: not differentiable, not judged"
        if gradient.shape != point.shape:
            return f"the gradient has shape {gradient.shape}, the array {point.shape}{_reshaped(gradient, point, self.y)}"
        if not np.all(np.isfinite(gradient)):
            where = [int(i) for i in np.argwhere(~np.isfinite(gradient))[0]]
            return f"the gradient is {gradient[tuple(where)]} at {where}"
        return "" if gradient.dtype == point.dtype else f"the gradient is {gradient.dtype}, the array {point.dtype}"

    def _subjects(self) -> list[_Subject]:
        subjects = []
        for k in self.floats:
            name, whole = self.names[k], self.given[k].shape
            parts = self.parts.get(name, ())
            if not parts:
                subjects.append(_Subject(k, name, (Ellipsis,)))
            elif whole[-1] % len(parts):
                raise ValueError(f"{name} has {len(parts)} parts {parts}, which do not divide its last axis of {whole[-1]}")
            for j, part in enumerate(parts):
                width = whole[-1] // len(parts)
                subjects.append(_Subject(k, f"{name}[{part}]", (Ellipsis, slice(j * width, (j + 1) * width))))
        return subjects

    def _row(self, subject: _Subject, flaw: str, total: float) -> Row:
        gradient, settings = self.gradients[subject.array], self.settings
        point = self.points[subject.array]
        shape = point[subject.where].shape
        if flaw or point[subject.where].size == 0:
            skipped = gradient is None
            verdict: Verdict = "skipped" if skipped else "FAILED" if flaw else "zero"
            return _make_row(subject, shape, error=np.inf if flaw and not skipped else 0.0, verdict=verdict, note=flaw)
        probe = Probe(lambda value: self._evaluate(subject.array, value), point, self.y, self.upstream, subject.where)
        return _judge(probe, gradient[subject.where], total, subject, settings)

    def _compare_float32(
        self, subjects: list[_Subject], flawed: Mapping[int, str], total: float, count: int
    ) -> list[Row]:
        """Compare the gradients in the dtype that was given with the float64 ones."""
        bar, rows = self.settings.float32_tolerance, []
        points = [np.array(a) for a in self.given]
        gradients = self._run(points)[2]
        for subject in subjects:
            k = subject.array
            flaw = flawed[k] or self._flaw(k, gradients[k], points[k])
            shape = points[k][subject.where].shape
            if flaw:
                verdict: Verdict = "skipped" if gradients[k] is None else "FAILED"
                row = _make_row(subject, shape, error=np.inf, verdict=verdict, note=flaw, method="float32")
            else:
                proved, low = self.gradients[k][subject.where], gradients[k][subject.where]
                gap, norm = np.abs(low - proved), float(np.linalg.norm(low.astype(np.float64)))
                scale = max(float(np.linalg.norm(proved)), _FLOOR * total)
                error = _ratio(float(np.linalg.norm(gap)), scale)
                tiny = 64 * float(np.finfo(np.float32).eps) * total
                verdict, note, index = _verdict(norm, float(np.linalg.norm(proved)), error, scale, bar, tiny), "", None
                if verdict == "FAILED":
                    index = tuple(int(i) for i in np.unravel_index(np.argmax(gap), gap.shape))
                    note = f"worst at {list(index)}: {low[index]:.6g} in float32, {proved[index]:.6g} in float64"
                if verdict == "vacuous":
                    note = _vacuous(norm, bar * scale)
                row = Row(*_place(subject.name), shape, norm, error, None, index, verdict, "float32", note)
            rows.append(row)
            self.settings.on_row(row, count)
        return rows


def _judge(probe: Probe, gradient: Array, total: float, subject: _Subject, settings: _Settings) -> Row:
    """Measure one gradient by the methods that were asked for, and say what they found."""
    rng = np.random.default_rng([settings.seed, subject.array, len(subject.name)])
    norm = float(np.linalg.norm(gradient))
    scale = max(norm, _FLOOR * total)
    directions = [rng.standard_normal(gradient.shape) for _ in range(settings.directions)]
    claims = [float(np.sum(gradient * d)) for d in directions]

    def error_of(measured: Sequence[float]) -> float:
        return max(_ratio(abs(value - claim), scale) for value, claim in zip(measured, claims, strict=True))

    method, bar, notes, slope = settings.method, settings.tolerance, list[str](), None
    measured: list[float] = []
    judged_by_slope = method in ("auto", "taylor")
    if method in ("auto", "complex"):
        method = "complex"
        try:
            measured = [probe.complex_step(d) for d in directions]
            reason = "the complex step disagrees with central differences" if error_of(measured) > 1e-4 else ""
        except NotAnalyticError as refusal:
            reason = str(refusal)
        if reason and settings.method == "auto":
            central = [probe.central_nearest(d, claim) for d, claim in zip(directions, claims, strict=True)]
            if not measured or error_of(central) <= settings.central_tolerance:
                measured, method, judged_by_slope = central, "central", False
                notes.append(f"not analytic, judged by central differences: {reason}")
        elif not measured:
            notes.append(reason)
            measured = [np.inf]*len(directions)
    elif method == "central":
        measured = [probe.central_nearest(d, claim) for d, claim in zip(directions, claims, strict=True)]
    ...
