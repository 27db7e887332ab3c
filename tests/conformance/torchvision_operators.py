"""Import torchvision, which timm needs, even if it was built for another PyTorch, such as a CUDA build with a CPU one.

In this case its compiled library does not load, and importing its Python code fails at the first operator of that
library. Declaring the operators is sufficient: they are used by detection models, and no Vision Transformer calls them.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any

_POOLINGS = ("roi_align", "roi_pool", "ps_roi_align", "ps_roi_pool", "deform_conv2d")
_OTHERS = ("nms", "qnms", "qroi_align", "_interpolate_bilinear2d_aa")

_declared: list[Any] = []  # a declaration is valid as long as its library object exists


def import_torchvision() -> None:
    """Import torchvision; declare its operators by name if its library does not load.

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
            del sys.modules[name]  # the modules imported before the error
        importlib.import_module("torchvision")
