"""The features of a frozen model: what its head reads, and the pooled tokens that enter and leave its blocks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from minivit import ops
from minivit.arrays import Array, namespace, on_device_of, to_backend, to_host
from minivit.data.batches import batches
from minivit.data.dataset import ProgressCallback
from minivit.engine.device_step import DEVICE_BATCH
from minivit.engine.machine import cores, keeping_freed_pages, single_threaded_blas
from minivit.engine.threads import on_threads
from minivit.errors import UserError
from minivit.nn.vit import ViT
from minivit.ops.augment import channel_scale, normalized

HEAD = "head"  # the features that the head reads
_ROUND = 16  # micro-batches of each thread between two reports of the progress


def layer_names(model: ViT) -> list[str]:
    """Return the names of all features in order: "0" for the input of the first block, "1" ... , and "head"."""
    return [*map(str, range(len(model.blocks) + 1)), HEAD]


def frozen_features(
    model: ViT,
    images: Array,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    layers: Sequence[str] = (HEAD,),
    threads: int | None = None,
    progress: ProgressCallback | None = None,
) -> dict[str, NDArray[np.float32]]:
    """Return the features (n, D) of images for each of `layers`, computed in evaluation.

    Parameters
    ----------
    model : ViT
        Is not changed. Its head is not used.
    images : Array
        (n, height, width, C) uint8 on the host, or `OnDemandImages`.
    mean, std : tuple of float
        Of each channel, for pixels from 0 to 1.
    layers : sequence of str
        "head" for what the head reads: the pooled vector after its norm. "3" for the tokens after block 3, pooled as
        the model pools, without a norm; "0" for those before the first block. A model with attention pooling takes the
        mean of its patch tokens there.
    threads : int, optional
        By default the machine's cores. On a device there is one.
    progress : callable, optional
        Called as progress("features", done, total).

    Raises
    ------
    UserError
        There is no such layer, or the images do not fit the model.
    """
    if unknown := [name for name in layers if name not in layer_names(model)]:
        raise UserError(f"there is no layer {unknown[0]!r}; expected 0 to {len(model.blocks)}, or {HEAD!r}")
    values = model.parameters.store.values
    library = namespace(values)
    on_host = library is np
    micro_batch = model.micro_batch if on_host else DEVICE_BATCH
    workers = (threads or cores()) if on_host else 1
    found: dict[str, NDArray[np.float32]] = {}

    def compute(part: NDArray[np.int64]) -> None:
        with on_device_of(values):
            pixels = to_backend(np.asarray(images[part]), library)
            x = normalized(pixels, scale, shift, values.dtype)
            for name, features in _features(model, x, set(layers)).items():
                if name not in found:
                    found[name] = np.empty((len(images), features.shape[1]), np.float32)
                found[name][part] = to_host(features)

    with on_device_of(values):
        model.check_images(to_backend(np.zeros((1, *images.shape[1:]), values.dtype), library))
        scale, shift = channel_scale(mean, std, values.dtype, library)
    parts = list(batches(np.arange(len(images)), micro_batch))
    with keeping_freed_pages(), single_threaded_blas():
        compute(parts[0])  # makes the arrays, before there are threads
        for start in range(1, len(parts), _ROUND * workers):
            some = parts[start : start + _ROUND * workers]

            def work(number: int, some: list[NDArray[np.int64]] = some) -> None:
                for part in some[number::workers]:
                    compute(part)

            on_threads(work, min(workers, len(some)))
            if progress is not None:
                progress("features", int(some[-1][-1]) + 1, len(images))
    return found


def _features(model: ViT, x: Array, layers: set[str]) -> dict[str, Array]:
    found = {}
    blocks = {name: len(model.blocks) if name == HEAD else int(name) for name in layers - {"0"}}
    if "0" in layers:
        found["0"] = _pooled(model, model.embed(x, None, keep=False)[0])
    if blocks:
        numbers = sorted({*blocks.values()})
        tokens = model.get_intermediate_layers(x, [number - 1 for number in numbers], return_prefix_tokens=None)
        after = dict(zip(numbers, tokens, strict=True))
        for name, number in blocks.items():
            y = after[number]
            found[name] = model.forward_head(model.norm(y), pre_logits=True) if name == HEAD else _pooled(model, y)
    return found


def _pooled(model: ViT, x: Array) -> Array:
    config = model.config
    mode = "avg" if model.attn_pool is not None else config.global_pool
    return ops.pool(x, mode, config.first_pooled, keep=False)[0]
