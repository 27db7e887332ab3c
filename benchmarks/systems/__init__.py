"""The systems that are measured, one file each; a system is called ``module`` or ``module:variant``.

prepare(task, variant)    returns a `Step`: a training step or a prediction, ready to be timed
versions()                returns the versions of what the system uses, by name
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import threadpoolctl

from benchmarks.memory import peak_bytes
from minivit.arrays import Array


def host_memory() -> dict[str, int]:
    """Return the peak memory of this process and its children."""
    return {"peak_bytes": peak_bytes()}


def _nothing() -> None:
    pass


@dataclass(frozen=True)
class Step:
    """A training step or a prediction.

    `run` returns the loss before the step (0-d) or the logits (B, classes); on a GPU perhaps before the device has
    finished, and so it is timed over several steps at once.
    """

    run: Callable[[], Any]
    to_host: Callable[[Any], Array] = np.asarray  # makes a NumPy array of what `run` returned
    wait: Callable[[], object] = _nothing  # for the device
    memory: Callable[[], dict[str, int]] = host_memory  # `peak_bytes`; on a GPU the most that was taken from the driver
    release: Callable[[], object] = _nothing  # gives unused memory back to the driver
    close: Callable[[], object] = _nothing  # undoes what `prepare` changed in this process
    on_gpu: bool = False


def find_system(system: str) -> tuple[Any, str]:
    """Return the module and the variant of a system; raise ValueError where there is no such system."""
    name, _, variant = system.partition(":")
    if importlib.util.find_spec(f"benchmarks.systems.{name}") is None:
        raise ValueError(f"there is no system {system!r}")
    return importlib.import_module(f"benchmarks.systems.{name}"), variant


def versions() -> dict[str, str]:
    """Return the versions of the libraries that this process has imported, and of NumPy's BLAS."""
    names = ("minivit", "numpy", "cupy", "torch", "timm", "jax", "jaxlib", "optax", "onnxruntime")
    found = {name: sys.modules[name].__version__ for name in names if name in sys.modules}
    blas = threadpoolctl.ThreadpoolController().select(user_api="blas").info()
    of_numpy = [b for b in blas if "numpy" in b["filepath"]] or blas
    texts = [" ".join(filter(None, (b["internal_api"], b["version"], b.get("architecture")))) for b in of_numpy]
    return found | {"BLAS": ", ".join(texts) or "unknown"}
