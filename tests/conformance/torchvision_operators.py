"""Lets torchvision, and so timm, import where it was built for another PyTorch, such as a CUDA build beside a CPU one.

Its compiled library does not load then, and its Python part stops at the first operator that the library would have
brought. A declaration is enough to go on: these operators serve detection models, and no Vision Transformer calls one.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any

_POOLINGS = ("roi_align", "roi_pool", "ps_roi_align", "ps_roi_pool", "deform_conv2d")
_OTHERS = ("nms", "qnms", "qroi_align", "_interpolate_bilinear2d_aa")

_declared: list[Any] = []  # a declaration lasts as long as its library object


def import_torchvision() -> None:
    """Import torchvision, with its operators declared by name alone where its library does not load.

    Raises
    ------
    ImportError
        torchvision is not installed.
    """
    try:
        importlib.import_module("torchvision")
    except RuntimeError:  # "operator torchvision::nms does not exist"
        torch = importlib.import_module("torch")
        library = torch.library.Library("torchvision", "FRAGMENT")
        for name in (*_OTHERS, *_POOLINGS, *(f"_{name}_backward" for name in _POOLINGS)):
            library.define(f"{name}(Tensor x) -> Tensor")
        _declared.append(library)
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]  # what was imported before it stopped
        importlib.import_module("torchvision")
