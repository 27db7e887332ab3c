"""Helpers of the layouts: fields of the configuration from sizes, and what is said of those that were assumed."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import Any

from minivit.errors import UserError, counted
from minivit.weights.layout import WeightsFile

PASS_HEADS = "pass num_heads=... to load_model, or --set num_heads=..."
PASS_SIZE = "pass img_size=(height, width) to load_model, or --set img_size=HEIGHTxWIDTH"


def expect_axes(
    file: WeightsFile, program: str, shapes: Mapping[str, tuple[int, ...]], axes: Mapping[str, int]
) -> None:
    """Raise UserError unless there is a tensor of each name in `axes`, with so many axes.

    `shapes` are those of the file, perhaps under other names; `program` is the program whose layout it is.
    """
    if wrong := [name for name, count in axes.items() if len(shapes.get(name, ())) != count]:
        raise UserError(
            f"{file.path} is not a Vision Transformer of {program}: it has no {', '.join(wrong)} of its shape, but "
            f"{counted(list(shapes), 'tensor')}"
        )


def mlp_ratio(sizes: Mapping[str, Any]) -> float:
    """Return the `mlp_ratio` that gives exactly the hidden width in `sizes`."""
    ratio: float = sizes["hidden_dim"] / sizes["embed_dim"]
    exact = int(sizes["embed_dim"] * ratio) == sizes["hidden_dim"]
    return ratio if exact else math.nextafter(ratio, math.inf)


def square(patches: int) -> int:
    """Return the side of a square of so many patches, or 0 if there is none."""
    side = math.isqrt(patches)
    return side if side * side == patches else 0


def image_pair(size: Any) -> tuple[int, int] | None:
    """Return a size of images as (height, width), or None if it is none."""
    pair = tuple(size) if isinstance(size, list | tuple) else (size, size)
    return pair if len(pair) == 2 and all(type(length) is int and length > 0 for length in pair) else None


def size_of_images(
    file: WeightsFile, patches: int, patch_size: tuple[int, int], given: Any, *said: Any
) -> tuple[int, int]:
    """Return the size of the images of which there are so many patches.

    It is one that the files have `said`, else a square of patches, as timm assumes, else the one that was `given`.

    Raises
    ------
    UserError
        None of them has so many patches, and they are not a square.
    """
    if patches <= 0:
        raise UserError(f"{file.path} has no positions for patches: a tensor is missing, or has another shape")
    P, Q = patch_size
    side = square(patches)
    for pair in map(image_pair, (*said, (side * P, side * Q), given)):
        if pair and (pair[0] % P, pair[1] % Q, pair[0] // P * (pair[1] // Q)) == (0, 0, patches):
            return pair
    raise UserError(f"{file.path} has positions for {patches} patches, not a square; {PASS_SIZE}")


def heads(
    file: WeightsFile, inner: int, embed_dim: int, known: Mapping[str, Any], usual_width: int = 0
) -> tuple[dict[str, int], bool]:
    """Return `num_heads` and `head_dim` for heads that are `inner` wide together, and whether that was assumed.

    They follow from `known`, else from the usual width of a head.

    Raises
    ------
    UserError
        They are unknown, or `inner` cannot be split among them.
    """
    count, width = known.get("num_heads"), known.get("head_dim") or 0
    assumed = count is None and not width
    if count is None and (width or usual_width) and type(width) is int and inner % (width or usual_width) == 0:
        count = inner // (width or usual_width)
    if count is None:
        raise UserError(
            f"{file.path} does not define the number of heads, which are {inner} wide together; {PASS_HEADS}"
        )
    right = type(count) is int and type(width) is int and count > 0 and inner % count == 0
    if not right or width * count not in (0, inner):
        raise UserError(f"{file.path}: its heads are {inner} wide together, which cannot be num_heads={count!r:.40}")
    return {"num_heads": count, "head_dim": 0 if inner == embed_dim else inner // count}, assumed


def warn_of_assumed(file: WeightsFile, assumed: Mapping[str, Any], family: str = "") -> None:
    """Issue a warning that names the assumed fields, which the files do not define."""
    words = ", ".join(f"{name}={value!r}" for name, value in assumed.items())
    if words:
        source = f" ({family})" if family else ""
        warnings.warn(
            f"{file.path}: assumed {words}{source}, which the files do not define; arguments of load_model, or --set, "
            "replace them",
            stacklevel=4,
        )
