"""What is checked: a layer or an op, at the numbers that it has in a trace."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from minivit import ops
from minivit.arrays import Array, to_host
from minivit.checking import Options, Report, gradcheck, gradcheck_layer
from minivit.checking.backward_passes import random_upstream
from minivit.nn.attention import Attention
from minivit.nn.corrupted import SimMIM
from minivit.nn.encoder_block import EncoderBlock
from minivit.nn.layer import Layer
from minivit.nn.model import Model
from minivit.nn.parameters import Parameter
from minivit.nn.vit import ViT
from minivit.tracing.names import root_of
from minivit.tracing.record import Record

_TINY = 1e-30  # an upstream gradient of a smaller norm is as good as zero


def _patch_size(layer: Any) -> tuple[int, int]:
    """Return the sides of the patches of a patch embedding, or of a model of masked pre-training."""
    return (layer.config.patch_height, layer.config.patch_width) if isinstance(layer, Model) else layer.patch_size


# Ops that no layer stands for, and their arguments that are not arrays, read from the layer that calls them.
OPS: dict[str, Callable[[Any], dict[str, Any]]] = {
    "softmax": lambda layer: {},
    "embed": lambda layer: {},
    "cross_entropy": lambda layer: {},
    "pool": lambda model: {"mode": model.config.global_pool, "num_prefix_tokens": model.config.first_pooled},
    "patches": lambda layer: {"patch_size": _patch_size(layer)},
    "unfold": lambda layer: {"kernel": layer.patch_size, "stride": layer.stride},
    "take_tokens": lambda model: {},
    "fill_tokens": lambda model: {},
    "sincos_positions": lambda model: {"grid": model.config.grid, "form": "mae"},
    "pixel_error": lambda model: {"power": 1 if isinstance(model, SimMIM) else 2},
    "token_cross_entropy": lambda model: {},
}


@dataclass(frozen=True)
class Subject:
    """A layer or an op, and its record in a trace with arrays. Everything is computed in float64, on the host.

    Attributes
    ----------
    record
        Holds the input and the upstream gradient.
    layer
        The layer itself, or for an op the layer that calls it.
    part, part_words
        Which part of the input and of the result is used, and this part in words; all by default.
    """

    record: Record
    layer: Layer
    part: tuple[slice, ...] = ()
    part_words: str = ""

    @property
    def arrays(self) -> dict[str, Array]:
        """The inputs by name: x, or the arguments of the op."""
        given = self.record.arguments if self.record.is_op else {"x": self.record.x}
        return {name: self._part(value) for name, value in given.items()}

    @property
    def upstream(self) -> Array | None:
        """The upstream gradient in the trace; None where it is absent, not finite or zero.

        A last block that computed the class token alone has the gradient of that token; that of the others is zero.
        """
        if self.record.dy is None:
            return None
        dy, shape = to_host(self.record.dy), self.record.x.shape
        if not self.record.is_op and isinstance(self.layer, Attention | EncoderBlock) and dy.shape != shape:
            whole = np.zeros(shape, dy.dtype)
            whole[:, : dy.shape[1]] = dy
            dy = whole
        dy = self._part(dy)
        return dy if np.all(np.isfinite(dy)) and float(np.linalg.norm(dy)) > _TINY else None

    @property
    def own_parameters(self) -> list[str]:
        """The names of the layer's parameters without those of the layers in it.

        Those of a ViT, such as the class token, are arguments of its op `embed`, and are checked there.
        """
        if self.record.is_op or isinstance(self.layer, ViT):
            return []
        return [name for name, member in self.layer._members() if isinstance(member, Parameter)]

    @property
    def words(self) -> str:
        """What the check is made on, in words."""
        some = f"{self.part_words} of " if self.part else ""
        if self.upstream is not None:
            return f"{some}the traced input in float64, with the traced upstream gradient"
        why = "is zero"
        if self.record.dy is None:
            why = "was not computed"
        elif not np.all(np.isfinite(to_host(self.record.dy))):
            why = "is not finite"
        return f"{some}the traced input in float64, with a random upstream gradient, because the traced one {why}"

    def check(self, parameters: Sequence[str] = (), seed: int = 0) -> Report:
        """Run the gradient check of the inputs and of some parameters.

        Raises
        ------
        Exception
            What a layer that is not minivit's raises; ValueError where a number is not finite.
        """
        arrays, names = list(self.arrays.values()), list(self.arrays)
        if self.record.is_op:
            functions = self._functions()
            return gradcheck(*functions, *arrays, names=names, upstream=self.upstream, directions=1, seed=seed)
        options: Options = {"upstream": self.upstream, "directions": 1, "seed": seed}
        return gradcheck_layer(self._copy(), *arrays, parameters=parameters, keep_constants=True, **options)

    def gradients(self) -> dict[str, Array]:
        """Return dx, and the gradients of all parameters, or those of an op's arguments: "dx", "qkv.dweight"."""
        arrays = self.arrays
        if self.record.is_op:
            forward, backward = self._functions()
            y, cache = forward(*arrays.values())
            floats = [name for name, value in arrays.items() if value.dtype.kind == "f"]
            return {f"d{name}": d for name, d in zip(floats, backward(self._dy(y), cache), strict=True)}
        layer = self._copy()
        y, cache = layer.forward(arrays["x"])
        found = {"dx": layer.backward(self._dy(y), cache)}
        for name, parameter in layer.parameters.items():
            prefix, dot, last = name.rpartition(".")
            found[f"{prefix}{dot}d{last}"] = parameter.grad
        return found

    def _part(self, value: Array) -> Array:
        value = to_host(value)
        value = value.astype(np.float64) if value.dtype.kind == "f" else value
        return value[self.part] if self.part else value

    def _dy(self, y: Array) -> Array:
        return random_upstream(0, y.shape) if self.upstream is None else self.upstream

    def _copy(self) -> Layer:
        return self.layer.to("numpy").astype(np.float64)

    def _functions(self) -> tuple[Callable[..., tuple[Array, Any]], Callable[[Array, Any], tuple[Any, ...]]]:
        """Return the op as a function of its arrays, and its backward function."""
        kind, arrays = self.record.kind, self.arrays
        op, op_backward = getattr(ops, kind), getattr(ops, f"{kind}_backward")
        options, arguments = OPS[kind](self.layer), list(inspect.signature(op).parameters)

        def forward(*values: Array) -> tuple[Array, Any]:
            y, cache = op(**dict(zip(arrays, values, strict=True)), **options)
            return y, cache

        def backward(dy: Array, cache: Any) -> tuple[Any, ...]:
            returned = op_backward(dy, cache)
            gradients = returned if isinstance(returned, tuple) else (returned,)
            named = dict(zip(arguments, gradients, strict=False))
            return tuple(named[name] for name, value in arrays.items() if value.dtype.kind == "f")

        forward.__name__ = kind
        return forward, backward


def subject_of(record: Record, layers: Mapping[str, Layer]) -> Subject | str:
    """Return what is to be checked for a record, or why it cannot be; `layers` are those of the model by name."""
    if record.holds_statistics:
        return "not checked: the trace has statistics and no arrays"
    if record.x is None or record.y is None:  # between layers of a user's own
        return "not checked: its input or result is not an array"
    name = record.name
    if record.is_op:
        if record.kind not in OPS:
            return f"not checked alone: {record.kind} is checked in the layer that calls it"
        name = name.rpartition(".")[0] or next(iter(layers))
    layer = layer_of(name, layers)
    return Subject(record, layer) if layer is not None else "not checked: the model has no such layer"


def layer_of(name: str, layers: Mapping[str, Layer]) -> Layer | None:
    """Return the layer of a call in a trace, or None; the second call of a layer is named "name_2"."""
    return layers.get(name, layers.get(name.rpartition("_")[0]))


def layers_by_name(model: Layer) -> dict[str, Layer]:
    """Return the layers of a model by their names in a trace; the first is the model itself."""
    named = dict(model.named_layers())
    return {name or root_of(named): layer for name, layer in named.items()}
