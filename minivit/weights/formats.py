"""All layouts of model files, and which one a file has."""

from __future__ import annotations

import functools

from minivit.arrays import Array
from minivit.errors import UserError, did_you_mean
from minivit.weights.layout import Layout, WeightsFile
from minivit.weights.recognise import beside_others, prefixes, relative_of, whose_layout


@functools.cache
def layouts() -> dict[str, Layout]:
    """Return the layouts by name, in the order in which they are tried.

    They are imported at the first call: that takes as long as a fifth of minivit.
    """
    from minivit.weights.google import Google
    from minivit.weights.huggingface import HuggingFace
    from minivit.weights.labml import Labml
    from minivit.weights.timm import Timm
    from minivit.weights.vit_pytorch import VitPytorch

    return {layout.name: layout for layout in (Timm(), Google(), HuggingFace(), VitPytorch(), Labml())}


def layout_named(name: object) -> Layout:
    """Return the layout called `name`, the argument `format` of `save_model`.

    Raises
    ------
    UserError
        There is none.
    """
    known = layouts()
    if not isinstance(name, str) or name not in known:
        names = ", ".join(map(repr, known))
        raise UserError(f"unknown format {name!r:.40}; expected one of {names}{did_you_mean(str(name), known)}")
    return known[name]


def unwrapped(file: WeightsFile) -> tuple[Layout | None, WeightsFile]:
    """Return the layout of the file, and the file without a prefix that all names have; None and the file as it is."""
    for prefix in prefixes(file.tensors):
        bare = [name.removeprefix(prefix) for name in file.tensors]
        for layout in layouts().values():
            if layout.recognises(bare):
                return layout, file.changed(functools.partial(_without, prefix))
    return None, file


def recognised(file: WeightsFile) -> tuple[Layout, WeightsFile]:
    """Return the layout of the file, and the file with the names of that layout: a common prefix is taken off.

    Raises
    ------
    UserError
        The file has none of the layouts; the message says what it seems to be.
    """
    if words := whose_layout(file.tensors):
        raise UserError(f"{file.path} holds {words}")
    layout, bare = unwrapped(file)
    if layout is not None:
        return layout, bare.changed(layout.prepare)
    if words := beside_others(file.tensors) or relative_of(file.tensors):
        raise UserError(f"{file.path} holds {words}")
    return layouts()["timm"], file  # whose sizes say what is missing


def _without(prefix: str, tensors: dict[str, Array]) -> dict[str, Array]:
    return {name.removeprefix(prefix): value for name, value in tensors.items()}
