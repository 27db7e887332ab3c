"""minivit: a Vision Transformer in NumPy and CuPy, with hand-written, verified backward passes.

import minivit

model = minivit.create_model("vit_tiny_patch4_32", depth=2, dtype="float64")
logits, cache = model.forward(images)
dimages = model.backward(dlogits, cache)
"""

# ruff: noqa: E402
from minivit.errors import RunError, UserError, stop_in_one_line

stop_in_one_line()  # before anything slow is imported

import importlib
import importlib.util
from typing import TYPE_CHECKING

from minivit import layers, ops
from minivit.arrays import to_backend, to_host
from minivit.engine import Engine
from minivit.nn import initializers
from minivit.nn.config import ViTConfig
from minivit.nn.layer import Layer
from minivit.nn.parameters import Parameter
from minivit.nn.presets import PRESETS, create_model, get_config, list_models
from minivit.nn.vit import ViT
from minivit.random import Key
from minivit.train.muon import Muon
from minivit.train.optimizers import SGD, Adam, AdamW
from minivit.weights import load_model, save_model

if TYPE_CHECKING:
    from minivit import testing
    from minivit.checking.checks import gradcheck, gradcheck_layer, gradcheck_model
    from minivit.checking.compare import compare
    from minivit.nn.pretraining import masked_model
    from minivit.tracing.trace import trace
    from minivit.train.fit import fit
    from minivit.train.probe import linear_probe
    from minivit.train.vit_classifier import ViTClassifier as ViTClassifier
    from minivit.weights import load_masked_model, save_masked_model

if importlib.util.find_spec("minivit.kernels"):
    importlib.import_module("minivit.kernels")

__version__ = "0.1.0"

__all__ = [
    "PRESETS",
    "SGD",
    "Adam",
    "AdamW",
    "Engine",
    "Key",
    "Layer",
    "Muon",
    "Parameter",
    "RunError",
    "UserError",
    "ViT",
    "ViTConfig",
    "compare",
    "create_model",
    "fit",
    "get_config",
    "gradcheck",
    "gradcheck_layer",
    "gradcheck_model",
    "initializers",
    "layers",
    "linear_probe",
    "list_models",
    "load_masked_model",
    "load_model",
    "masked_model",
    "ops",
    "save_masked_model",
    "save_model",
    "testing",
    "to_backend",
    "to_host",
    "trace",
]

# Most programs need none of these, which would take half of the time of `import minivit`.
_IMPORTED_ON_USE = {
    "ViTClassifier": "minivit.train.vit_classifier",  # needs scikit-learn, and is not in __all__
    "compare": "minivit.checking",
    "fit": "minivit.train.fit",
    "gradcheck": "minivit.checking",
    "gradcheck_layer": "minivit.checking",
    "gradcheck_model": "minivit.checking",
    "linear_probe": "minivit.train.probe",
    "load_masked_model": "minivit.weights",
    "masked_model": "minivit.nn.pretraining",
    "save_masked_model": "minivit.weights",
    "testing": "minivit.testing",
    "trace": "minivit.tracing",
}


def __getattr__(name: str) -> object:
    if name not in _IMPORTED_ON_USE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(_IMPORTED_ON_USE[name])
    globals()[name] = value = module if name == "testing" else getattr(module, name)
    return value


def __dir__() -> list[str]:
    without = set() if importlib.util.find_spec("sklearn") else {"ViTClassifier"}  # `help` reads all that is listed
    return sorted({*globals(), *_IMPORTED_ON_USE} - without)
