"""The systems that are measured, one file each; a system is called ``module`` or ``module:variant``.

Each has a function ``prepare(task, variant)``, which returns a `Step`: a training step or a prediction.
"""

import importlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import threadpoolctl

from benchmarks.memory import peak_bytes
from benchmarks.workloads import Task
from minivit.arrays import Array


@dataclass(frozen=True)
class Step:
    """A training step or a prediction.

    `run` returns the loss before the step (0-d) or the logits (B, classes); on a GPU perhaps before the device has
    finished, and so it is timed over several steps at once.
    """

    run: Callable[[], Any]
    to_host: Callable[[Any], Array] = np.asarray  # makes a NumPy array of what `run` returned
    wait: Callable[[], object] = lambda: None  # for the device
    memory: Callable[[], dict[str, int]] = lambda: {
        "peak_bytes": peak_bytes()
    }  # on a GPU the most taken from the driver
    release: Callable[[], object] = lambda: None  # gives unused memory back to the driver
    close: Callable[[], object] = lambda: None  # undoes what `prepare` changed in this process
    on_gpu: bool = False


def prepare(system: str, task: Task) -> Step:
    """Return the step of a system."""
    name, _, variant = system.partition(":")
    module: Any = importlib.import_module(f"benchmarks.systems.{name}")
    step: Step = module.prepare(task, variant)
    return step


def versions() -> dict[str, str]:
    """Return the versions of the libraries that this process has imported, and of NumPy's BLAS."""
    names = ("minivit", "numpy", "cupy", "torch", "timm", "jax", "jaxlib", "optax", "onnxruntime")
    found = {name: sys.modules[name].__version__ for name in names if name in sys.modules}
    blas = threadpoolctl.ThreadpoolController().select(user_api="blas").info()
    of_numpy = [b for b in blas if "numpy" in b["filepath"]] or blas
    texts = [" ".join(filter(None, (b["internal_api"], b["version"], b.get("architecture")))) for b in of_numpy]
    return found | {"BLAS": ", ".join(texts) or "unknown"}
