"""Groups of an optimiser: spans of the flat vector with a learning rate and a weight decay each.

Weight decay applies to matrices only (`Parameter.decay`). For a ViT this is timm's rule, which leaves out parameters of
one dimension, tokens and positions, and big_vision's, which takes the kernels alone.

Layer-wise decay of the learning rate (Clark et al. 2020; Bao et al. 2022) multiplies the rate of a layer by
``layer_decay ** (last - layer)``. The layers are timm's (`timm.optim.param_groups_layer_decay`):

    0              patch embedding, tokens, positions, norm_pre
    i + 1          block i; the norm of all tokens belongs to the last block
    last           the rest: the head, and what stands before it

The names of an encoder in a model for pre-training count without their prefix.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

from minivit.errors import UserError
from minivit.nn.layer import Layer
from minivit.nn.parameters import Parameter, Parameters
from minivit.nn.store import padded
from minivit.ops.update_rules import Group

Trained: TypeAlias = Layer | Mapping[str, Parameter] | Iterable[Parameter]

_STEM = ("patch_embed", "cls_token", "reg_token", "pos_embed", "norm_pre")
_BLOCK = re.compile(r"blocks\.(\d+)\.")
_NORM = (1, 1 << 30)  # after all blocks; it shares the number of the last


def parameter_groups(model: Trained, lr: float, weight_decay: float, layer_decay: float = 1.0) -> list[Group]:
    """Return one group for each parameter of `model`, in the order of the flat vector.

    Parameters
    ----------
    model : Layer, or Parameters, or iterable of Parameter
        The parameters to train. With `layer_decay`, layers are counted among these alone.
    lr : float
        The learning rate; with `layer_decay`, that of the last layer.
    weight_decay : float
        The weight decay of parameters with `Parameter.decay`; others have none.
    layer_decay : float
        The factor of the learning rate from a layer to the one before it, above 0 and at most 1.

    Raises
    ------
    UserError
        `layer_decay` is out of range, or `model` is none of these.
    """
    if not 0.0 < layer_decay <= 1.0:
        raise UserError(f"layer_decay is {layer_decay}; expected a number above 0 and at most 1")
    parameters = sorted(given(model)[1], key=lambda parameter: parameter.span.start)
    layers = layer_numbers([parameter.name for parameter in parameters])
    last = max(layers.values())
    return [
        Group(
            p.span,
            lr * layer_decay ** (last - layers[p.name]),
            weight_decay if p.decay else 0.0,
            p.name,
            p.shape,
            p.parts,
        )
        for p in parameters
    ]


def layer_numbers(names: Iterable[str]) -> dict[str, int]:
    """Return the number of the layer, from 0, that each parameter of a ViT belongs to for layer-wise decay."""
    places = {name: _place(name) for name in names}
    numbers: dict[tuple[int, int], int] = {}
    for place in sorted(set(places.values())):
        numbers[place] = len(set(numbers.values())) - (place == _NORM and bool(numbers))
    return {name: numbers[place] for name, place in places.items()}


def _place(name: str) -> tuple[int, int]:
    name = name.removeprefix("encoder.")
    if name.startswith(_STEM):
        return 0, 0
    if block := _BLOCK.match(name):
        return 1, int(block[1])
    return _NORM if name.startswith("norm") else (2, 0)


def frozen_spans(model: Layer, trained: Sequence[Group]) -> list[slice]:
    """Return the spans of the flat vector with the parameters of `model` that are in no group of `trained`."""
    names = {group.name for group in trained}
    frozen = [group for group in parameter_groups(model, 0.0, 0.0) if group.name not in names]
    itemsize = model.parameters.store.values.dtype.itemsize
    return [group.span for group in merge_neighbours(frozen, itemsize)]


def first_trained_block(trained: Sequence[Group], depth: int) -> int:
    """Return the number of the first block with a parameter in `trained`, `depth` if there is none.

    It is 0 too if a parameter before the blocks is trained.
    """
    kind, number = min(_place(group.name) if group.name else (0, 0) for group in trained)
    return 0 if kind == 0 else min(number, depth) if kind == 1 else depth


def given(model: Any) -> tuple[Layer | None, list[Parameter]]:
    """Return the layer, if `model` is one or the mapping of all its parameters, and the parameters to train.

    Raises
    ------
    UserError
        `model` is something else, or the parameters belong to different models.
    """
    layer = model.layer if isinstance(model, Parameters) else model
    if isinstance(layer, Layer):
        return layer, list(layer.parameters.values())
    try:
        items: Any = (
            [model] if isinstance(model, Parameter) else model.values() if isinstance(model, Mapping) else model
        )
        found = list({id(item): item for item in items}.values())
    except TypeError:
        found = [model]
    wrong = [type(item).__name__ for item in found if not isinstance(item, Parameter)]
    if wrong or not found:
        raise UserError(
            f"an optimiser was given {'no parameters' if not found else f'a {wrong[0]}'}; expected a model, "
            "model.parameters, or a list of some of its parameters such as [model.head.weight]; rates of their own are "
            "given as groups="
        )
    if any(parameter.store is not found[0].store for parameter in found):
        raise UserError("the parameters belong to different models; make one optimiser for each")
    return None, found


def merge_neighbours(groups: Sequence[Group], itemsize: int) -> list[Group]:
    """Return `groups` with neighbouring parameters of one learning rate and decay merged, for elementwise rules.

    Only padding lies between two such parameters. It is zero in the values, the gradients and the state, and an
    elementwise rule keeps it zero.
    """
    merged: list[Group] = []
    previous: Group | None = None
    for group in groups:
        if (
            previous is not None
            and previous.name  # a whole parameter, so that nothing but padding follows it
            and group.span.start == padded(previous.span.stop, itemsize)
            and (group.lr, group.weight_decay) == (previous.lr, previous.weight_decay)
        ):
            merged[-1] = Group(slice(merged[-1].span.start, group.span.stop), group.lr, group.weight_decay)
        else:
            merged.append(group)
        previous = group
    return merged
