"""`trace`: run a model forward and backward once, and return everything that passed through its layers and ops.

    trace = minivit.trace(model, images, labels)
    trace["blocks.3.attn"].dy                    the gradient of the loss with respect to a layer's result
    trace["blocks.3.attn"].weights               attention's weights (B, H, N, N)
    trace["blocks.*.attn"].dweights              a list, one for each block
    print(trace)                                 a table by depth

The model, its gradients and the random stream stay as they are.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from minivit import ops
from minivit.arrays import Array, namespace, native, on_device_of
from minivit.errors import UserError
from minivit.files import atomic_write
from minivit.nn.layer import Layer
from minivit.nn.model import Model
from minivit.nn.parameters import Parameter
from minivit.nn.vit import ViT
from minivit.ops.interception import intercepted
from minivit.ops.registry import reference_only_here
from minivit.random import Key, RngLike, as_key
from minivit.tracing import html, storage, table
from minivit.tracing.interventions import Interventions
from minivit.tracing.names import ROOT, as_names, matches, root_of, unknown
from minivit.tracing.record import Record, Records, StatisticsOf
from minivit.tracing.snapshots import Snapshots
from minivit.tracing.statistics import Statistics
from minivit.tracing.table import Effect
from minivit.tracing.tracer import Tracer

_EXPECTED = "expected whole numbers (B,), soft targets (B, C), or a function that returns the gradient of the result"

Labels: TypeAlias = Array | Sequence[int] | Callable[[Array], Array]


class Trace:
    """What passed through a model in one forward pass and one backward pass, in the order of the forward pass.

    Attributes
    ----------
    records : dict
        `Record` by name.
    y : Array
        The result of the model: the logits, or the loss of each image.
    labels : Array or None
        The labels, where the loss is the cross-entropy.
    loss : Array or None
        The loss, 0-d: the cross-entropy, or the mean of the losses of the images.
    interventions : str
        What was changed, in words, or "".
    baseline : Trace or None
        With interventions: the same trace without them.
    root : str
        The name of the record of the model itself: "model", or "root" where a layer of the model is called so.
    """

    def __init__(
        self,
        records: Mapping[str, Record],
        y: Array | None = None,
        labels: Array | None = None,
        loss: Array | None = None,
        interventions: str = "",
        baseline: Trace | None = None,
        root: str = ROOT,
    ) -> None:
        self.records = dict(records)
        self.y, self.labels, self.loss = y, labels, loss
        self.interventions = interventions
        self.baseline = baseline
        self.root = root

    @property
    def logits(self) -> Array | None:
        """The result of the model."""
        return self.y

    @property
    def names(self) -> list[str]:
        """The names of all records, in the order of the forward pass."""
        return list(self.records)

    def __getitem__(self, name: str) -> Any:
        """Return the `Record` of a layer or an op, or for a pattern the `Records` of all that match.

        "blocks.3.attn" is a layer, "blocks.3.attn.softmax" an op that it calls, "model" or "" the model itself
        (see `root`). In a pattern "*" stands for one part of a name and "**" for any number of parts.

        Raises
        ------
        UserError
            Nothing has this name.
        """
        if not isinstance(name, str):
            raise UserError(f"trace[{name!r}] has no meaning; expected the name of a layer or op, or a pattern")
        name = name or self.root
        if name in self.records:
            return self.records[name]
        found = Records(record for key, record in self.records.items() if matches(key, name))
        if not found:
            raise unknown(name, self.records)
        return found

    def __contains__(self, name: str) -> bool:
        return (name or self.root) in self.records

    def __iter__(self) -> Iterator[Record]:
        return iter(self.records.values())

    def __len__(self) -> int:
        return len(self.records)

    def __repr__(self) -> str:
        return f"{table.summary(self)}\n{self.table()}"

    def _repr_html_(self) -> str:
        return html.table(self)

    def rows(self, at: str | Sequence[str] | None = None) -> list[table.Row]:
        """Return what `table` shows as numbers: a `Row` for each layer."""
        return table.rows(self.records, at, self.root)

    def table(self, at: str | Sequence[str] | None = None) -> str:
        """Return a table of the norms of results, gradients and parameters' gradients.

        Parameters
        ----------
        at : str or sequence of str, optional
            Patterns of names; by default the parts of the model by depth: the patch embedding, each block, the head.
        """
        return table.text([table.HEADER, *map(table.cells, self.rows(at))])

    def to_html(self, path: str | os.PathLike[str], title: str = "Trace") -> None:
        """Write a page with the table, and every quantity of every layer and op with its histogram."""
        atomic_write(path, lambda file: file.write(html.page(self, title).encode()))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a safetensors file that `minivit.tracing.load_trace` reads; the arrays are called "blocks.3.attn/y"."""
        storage.write(self, path)

    def compare(self) -> list[Effect]:
        """Return what the interventions changed, layer by layer, in comparison with the baseline.

        Raises
        ------
        UserError
            The trace has no interventions, or it was read from a file.
        """
        if self.baseline is None:
            raise UserError(
                "this trace has no baseline: pass zero, scale or replace to minivit.trace; a file does not hold the "
                "baseline"
            )
        return table.effects(self, self.baseline)


def load_trace(path: str | os.PathLike[str]) -> Trace:
    """Return the trace in a file that `Trace.save` wrote, with its arrays on the host and without its baseline.

    Raises
    ------
    UserError
        The file is not a trace, or it is damaged.
    """
    records, own, about = storage.read(path)
    interventions, root = about.get("interventions", ""), about.get("root", ROOT)
    return Trace(records, own.get("y"), own.get("labels"), own.get("loss"), interventions, root=root)


def trace(
    model: Layer,
    images: Array,
    labels: Labels | None = None,
    at: str | Sequence[str] = "**",
    *,
    rng: RngLike = None,
    statistics: bool = False,
    backward: bool = True,
    label_smoothing: float = 0.0,
    zero: str | Sequence[str] = (),
    scale: Mapping[str, float] | None = None,
    replace: Mapping[str, Array] | None = None,
) -> Trace:
    """Run `model` once, and record what passes through each layer and each op in it.

    Parameters
    ----------
    model : Layer
        A ViT, a model of masked pre-training, or any layer.
    images : Array
        What the model takes, of its dtype: (B, height, width, C), or the input of the layer.
    labels : Array, sequence of int or callable, optional
        Of a ViT: the labels (B,), or soft targets (B, C), for the cross-entropy. Of another layer: the gradient of its
        result. Of both: a function that returns this gradient for the result, so that any loss can be traced. Without
        labels there is no backward pass, unless the model returns the loss of each image (`Model.gives_losses`): then
        it starts from their mean. For such a model `labels` may be the gradient of its result, or a function that
        returns it.
    at : str or sequence of str
        Patterns of the names to record, such as "blocks.*.attn"; all by default.
    rng : Key, seed or generator, optional
        For dropout, as in training; a generator is left as it is. Without it the pass is that of evaluation.
    statistics : bool
        Keep `Statistics` of each array in place of the array. That takes little memory.
    backward : bool
        False leaves the backward pass out; the loss is still computed.
    label_smoothing : float
        For the cross-entropy.
    zero, scale, replace
        Interventions: names of activations and gradients to set to zero, mappings of names to factors or to arrays.
        "blocks.3.attn" is the result of a layer; "blocks.3.attn.dy", "blocks.*.mlp.x", "blocks.3.attn.weights" and
        "blocks.3.attn.heads.2" are other quantities. One that has several is first replaced, then scaled, then set to
        zero. `Trace.baseline` is then the trace without them.

    Returns
    -------
    Trace

    Raises
    ------
    UserError
        A name matches nothing, or an array has another shape or kind of numbers than what it replaces; the gradient
        that `labels` is or returns has another shape or dtype than the result.

    Notes
    -----
    The bits are those of `ops.reference_only`: no kernels run, and the last block computes all tokens. Hooks of the
    model are called. The gradients of the pass are in the trace and not in the model. A model of 16 bits is an
    exception, because its ops have no references. The kernels of single ops run, that of attention on a device keeps no
    weights to record, and the last block computes the class token alone if the head reads nothing else.
    """
    if not isinstance(model, Layer):
        raise UserError(f"trace was given a {type(model).__name__}; expected a model or a layer of minivit")
    layers = [name for name, _ in model.named_layers()]
    root = root_of(layers)
    patterns = [each or root for each in as_names("at", at)]
    with on_device_of(model.parameters.store.values):
        images, xp = native(images), namespace(images)
        key = as_key(copy.deepcopy(rng) if isinstance(rng, np.random.Generator) else rng, len(images), xp)
        changes = Interventions(zero, scale or {}, replace or {}, [name or root for name in layers], root)
        run = _Run(model, images, labels, patterns, key, statistics, backward, label_smoothing)
        result = run(changes)
        if changes:
            result.interventions = str(changes)
            result.baseline = run(Interventions((), {}, {}, ()))
        return result


class _Run:
    """The arguments of `trace`; a call runs the model with interventions."""

    def __init__(
        self,
        model: Layer,
        x: Array,
        labels: Labels | None,
        at: list[str],
        rng: Key | None,
        statistics: bool,
        backward: bool,
        label_smoothing: float,
    ) -> None:
        self._model, self._x, self._at, self._rng = model, x, at, rng
        self._statistics, self._backward, self._label_smoothing = statistics, backward, label_smoothing
        if labels is None or callable(labels) or hasattr(labels, "dtype"):
            self._labels: Any = labels
        else:
            try:
                self._labels = namespace(x).asarray(labels)
            except (TypeError, ValueError) as error:
                raise UserError(f"labels are lists of different lengths, or of no numbers; {_EXPECTED}") from error
        if getattr(getattr(self._labels, "dtype", None), "kind", "") == "O":
            raise UserError(f"labels are objects, such as {self._labels.reshape(-1)[:1].tolist()}; {_EXPECTED}")

    def __call__(self, changes: Interventions) -> Trace:
        values = self._model.parameters.store.values
        # The arrays of a trace stay as they are while the model is trained further.
        replica = self._model.replica(None if self._statistics else values.copy())
        tracer = Tracer(replica, self._at, Snapshots(self._statistics), changes)
        labels, loss = self._labels, None
        of_classes = False
        if isinstance(replica, ViT) and labels is not None and not callable(labels):
            of_classes = True
            if not replica.config.num_classes:
                raise UserError(
                    "labels give no loss, because the model has no head (num_classes=0); give a function that returns "
                    "the gradient of the features, or a model with classes"
                )
        # Arrays of 16 bits have no references of ops.
        names = ("EncoderBlock",) if self._x.dtype.itemsize == 2 else ()
        # Overflow and NaN are in the trace; NumPy would warn of them once for each op.
        quiet = np.errstate(over="ignore", invalid="ignore", divide="ignore")
        with reference_only_here(*names), intercepted(tracer), quiet:
            y, cache = replica.forward(self._x, self._rng)
            dy = None
            if of_classes:
                loss, loss_cache = ops.cross_entropy(y, labels, self._label_smoothing)
                dy = ops.cross_entropy_backward(1.0, loss_cache) if self._backward else None
            elif labels is not None:
                dy = labels(y) if callable(labels) else labels
                _expect_gradient(dy, y, "the result of labels(y)" if callable(labels) else "labels")
            elif isinstance(replica, Model) and replica.gives_losses:
                loss = namespace(y).asarray(y.mean())
                dy = namespace(y).full(y.shape, 1 / len(y), y.dtype)
            if goes_back := self._backward and dy is not None:
                own = isinstance(replica, Model) and replica.takes_release
                ends: dict[str, Any] = {"release": True} if own else {}
                replica.backward(dy, cache, **ends)
        changes.check_used(tracer.names, list(replica.parameters))
        for pattern in self._at:
            if not any(matches(name, pattern) for name in (*tracer.names, *tracer.plain_names)):
                raise unknown(pattern, tracer.names)
        called = set(tracer.names)
        inside = {id(parameter): name for name, parameter in replica.parameters.items()}
        grads = {name: parameter.grad for name, parameter in replica.parameters.items()} if goes_back else {}
        gradients = StatisticsOf({k: Statistics.of(v) if self._statistics else v for k, v in grads.items()})
        for name, layer in tracer.layers:
            if goes_back and name in tracer.records and tracer.records[name].has_parameters:
                tracer.records[name].set_gradients(gradients, [inside[id(each)] for each in layer.declared().values()])
            owner, prefix = name, ""
            if name not in called and any(each.startswith(f"{name}.") for each in called):
                # Its parts are called one by one, as those of an encoder.
                owner, prefix = _around(name, called, tracer.root)
            if (record := tracer.records.get(owner)) is not None:
                _add_parameters(record, layer, goes_back, prefix)
        return Trace(tracer.records, y, labels.copy() if of_classes else None, loss, root=tracer.root)


def _expect_gradient(dy: Any, y: Any, what: str) -> None:
    """Raise UserError if `dy` cannot be the gradient of `y`.

    A later layer of the backward pass would broadcast or convert it.
    """
    if not hasattr(y, "dtype"):  # a layer of a user's own may return something else
        return
    if not hasattr(dy, "dtype"):
        raise UserError(
            f"{what} is of type {type(dy).__name__}; expected the gradient of the result, {y.dtype} {y.shape}"
        )
    if dy.shape != y.shape or dy.dtype != y.dtype:
        raise UserError(f"{what} is {dy.dtype} {dy.shape}; expected the gradient of the result, {y.dtype} {y.shape}")


def _around(name: str, called: Collection[str], root: str) -> tuple[str, str]:
    """Return the innermost layer around the layer `name` that is called, and what is before its parameters' names."""
    owner = name.rpartition(".")[0]
    while owner and owner not in called:
        owner = owner.rpartition(".")[0]
    return owner or root, name[len(owner) + bool(owner) :] + "."


def _add_parameters(record: Record, layer: Layer, with_gradients: bool, prefix: str = "") -> None:
    """Add the layer's own parameters, whose names get the `prefix`, and "_parameter" where the pass has this name."""
    for own, parameter in layer._members():
        if isinstance(parameter, Parameter):
            name = prefix + own
            if record.quantities.keys() & {name, f"d{name}"}:
                name = f"{name}_parameter"
            record.argument_names.append(name)
            arrays = {name: parameter.value} | ({f"d{name}": parameter.grad} if with_gradients else {})
            for quantity, array in arrays.items():
                record.put(quantity, Statistics.of(array) if record.holds_statistics else array, array)
