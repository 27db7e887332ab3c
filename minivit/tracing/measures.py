"""Measures of a model, as arrays on the host in float64: its filters, its positions, the flow of its gradients.

They take any `ViT`, of any grid, with class and register tokens or without; attention.py has those of attention.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from minivit import ops
from minivit.arrays import Array, to_host
from minivit.errors import UserError, expect_whole
from minivit.nn.conv_stem import ConvStem
from minivit.nn.hybrid_embed import HybridEmbed
from minivit.nn.parameters import Parameter
from minivit.nn.patch_embed import PatchEmbed
from minivit.nn.positions import GridPositions, SinCosPositions
from minivit.nn.vit import ViT
from minivit.ops.sincos_positions import sincos_table
from minivit.tracing.record import Record
from minivit.tracing.table import norm_of
from minivit.tracing.trace import Trace

Floats = NDArray[np.float64]

_ENCODER = "encoder."
_BLOCKS = ("blocks", "decoder_blocks")
_LEFT_OUT = ("pos_drop", "patch_drop", "head_drop")  # of the gradient flow: without effect


class FilterComponents(NamedTuple):
    """The principal components of a model's filters.

    Attributes
    ----------
    components : array
        (count, P, Q, C): images of a patch, of norm 1; the value of the largest magnitude in each is positive.
    explained : array
        (count,): the share of the filters' variance that each explains, in descending order.
    """

    components: Floats
    explained: Floats


def filter_components(model: ViT, count: int = 28) -> FilterComponents:
    """Return the first principal components of the filters of the patch embedding (ViT paper, figure 7, left).

    Each of the D columns of the projection is a filter, an image of P x Q pixels and C channels. Their mean is
    subtracted. Of a stem of convolutions, the filters are those of the first one.

    Parameters
    ----------
    model : ViT
        The model.
    count : int
        The number of components; there are at most P Q C, and at most D.

    Raises
    ------
    UserError
        `count` is less than 1, or the patch embedding is a layer of another kind.
    """
    expect_whole("count", count)
    layer: Any = expect_vit(model).patch_embed
    if isinstance(layer, ConvStem):
        weight, shape = layer.convs[0].conv.weight.value, (3, 3, model.config.in_chans)
    elif isinstance(layer, HybridEmbed):
        conv = layer.backbone.stem.conv
        weight, shape = ops.standardize(conv.weight.value, conv.eps, keep=False)[0], (7, 7, model.config.in_chans)
    elif isinstance(layer, PatchEmbed):
        weight, shape = layer.proj.weight.value, (*layer.patch_size, model.config.in_chans)
    else:
        raise UserError(f"patch_embed is a {type(layer).__name__}; expected a PatchEmbed, a ConvStem or a HybridEmbed")
    filters = expect_finite(host(weight).T, "the filters of patch_embed")  # (D, P Q C)
    _, singular, components = np.linalg.svd(filters - filters.mean(axis=0), full_matrices=False)
    largest = np.take_along_axis(components, np.abs(components).argmax(axis=1)[:, None], axis=1)
    components = components * np.where(largest < 0, -1.0, 1.0)
    variance = singular**2
    explained = variance / (variance.sum() or 1.0)
    return FilterComponents(components[:count].reshape(-1, *shape), explained[:count])


def position_similarity(model: ViT) -> Floats:
    """Return the cosine similarity of the position of each patch with that of each other (figure 7, centre).

    Returns
    -------
    similarity : array
        (rows, columns, rows, columns). A position of zeros has a similarity of 0.

    Raises
    ------
    UserError
        The model has no positions, or relative ones, which belong to distances and not to patches.
    """
    positions = expect_finite(_positions(expect_vit(model)), "the positions")
    norms = np.linalg.norm(positions, axis=1, keepdims=True)
    unit = positions / np.where(norms == 0, 1.0, norms)
    return (unit @ unit.T).reshape(model.config.grid * 2)


def _positions(model: ViT) -> Floats:
    """Return the position of each patch, (patches, D), row by row."""
    config, layer = model.config, model.pos_embed
    rows, columns = config.grid
    held: Any = layer
    if isinstance(held, Parameter):
        return host(held.value)[0, -config.num_patches :]
    if isinstance(held, GridPositions):
        of_rows = np.repeat(host(held.rows.value), columns, axis=0)
        of_columns = np.tile(host(held.columns.value), (rows, 1))
        return np.concatenate([of_rows, of_columns], axis=1) if held.concat else of_rows + of_columns
    if isinstance(held, SinCosPositions):
        return np.asarray(sincos_table(held.grid, config.embed_dim, held.form))
    if config.pos_embed == "relative":
        raise UserError(
            "pos_embed is 'relative': this model has a vector for each distance, and no position of a patch"
        )
    what = "None" if held is None else f"a {type(held).__name__}"
    raise UserError(f"pos_embed is {what}: this model has no positions of patches to compare")


class GradientFlow(NamedTuple):
    """Euclidean norms by depth, in the order of the forward pass.

    Attributes
    ----------
    names : list of str
        The parts of the model: the patch embedding, each block, the norms and the head.
    activations, gradients : array
        The norms of the result of each part, and of the gradient of the loss with respect to it.
    parameters : array
        The norms of the gradients of all parameters in each part; 0 for one without parameters, and for a second call
        of a block, whose gradients count at the first.
    """

    names: list[str]
    activations: Floats
    gradients: Floats
    parameters: Floats


def gradient_flow(trace: Trace) -> GradientFlow:
    """Return how large activations and gradients are by depth, from a trace of a ViT with labels, or of a masked model.

    Parameters
    ----------
    trace : Trace
        ``minivit.trace(model, images, labels)``, also with ``statistics=True``.

    Raises
    ------
    UserError
        The trace has no blocks, or no gradients.
    """
    if not isinstance(trace, Trace):
        raise UserError(
            f"gradient_flow was given a {type(trace).__name__}; expected minivit.trace(model, images, labels)"
        )
    norms: dict[str, tuple[float, float, float]] = {}
    for record in trace:
        name = record.name
        if record.is_op or name == trace.root or name != part_of(name) or record.kind == "Identity":
            continue
        if name.removeprefix(_ENCODER) in _LEFT_OUT:
            continue
        if "dy" not in record.quantities:
            raise UserError("the trace has no gradients: give minivit.trace the labels of the images")
        norms[name] = _norm(record, "y"), _norm(record, "dy"), record.gradient_norm or 0.0
    if not any(name.removeprefix(_ENCODER).startswith("blocks.") for name in norms):
        raise UserError("the trace has no blocks: trace a ViT, with at='**'")
    return GradientFlow(list(norms), *np.array(list(norms.values())).T)


def part_of(name: str) -> str:
    """Return the block, or the layer of the model, that a layer or a parameter is in; also of an encoder in it."""
    encoder = _ENCODER if name.startswith(_ENCODER) else ""
    first, *rest = name.removeprefix(encoder).split(".")
    return encoder + ".".join([first, *rest[: first in _BLOCKS]])


def _norm(record: Record, quantity: str) -> float:
    if record.holds_statistics:
        return norm_of(record.statistics[quantity])
    return float(np.linalg.norm(host(getattr(record, quantity))))


def host(array: Array) -> Floats:
    """Return a copy of an array on the host, in float64."""
    return to_host(array).astype(np.float64)


def expect_vit(model: object) -> ViT:
    """Return the model, or raise UserError if it is something else."""
    if not isinstance(model, ViT):
        own = "; give its encoder" if isinstance(getattr(model, "encoder", None), ViT) else ""
        raise UserError(f"the model is of type {type(model).__name__}; expected a ViT{own}")
    return model


def expect_finite(values: Floats, what: str) -> Floats:
    """Return the values, or raise UserError if one is not finite."""
    if not np.isfinite(values).all():
        raise UserError(f"{what} are not finite: the model is damaged, or its training diverged")
    return values
