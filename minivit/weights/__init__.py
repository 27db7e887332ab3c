"""Model files of minivit and of other programs, read and written without a framework.

`save_model` writes safetensors in timm's layout that include the configuration, so that one rename replaces both model
and configuration. config.json repeats it in timm's terms: ``timm.create_model("local-dir:FOLDER", pretrained=True)``
builds the same model, and so does ``AutoModelForImageClassification.from_pretrained(FOLDER)`` of transformers.

Only this package knows layouts: each has a file that declares how its tensors become parameters.
"""

from minivit.weights.load import load_model, model_metadata
from minivit.weights.masked import load_masked_model, save_masked_model
from minivit.weights.save import save_model
from minivit.weights.source import fingerprint
from minivit.weights.tensors import read_tensors, write_tensors

__all__ = [
    "fingerprint",
    "load_masked_model",
    "load_model",
    "model_metadata",
    "read_tensors",
    "save_masked_model",
    "save_model",
    "write_tensors",
]
