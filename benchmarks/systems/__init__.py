"""The systems that are measured, one file each; a system is called ``module`` or ``module:variant``.

prepare(task, variant)    returns a `Step`: a training step or a prediction, ready to be timed
versions()                returns the versions of what the system uses, by name
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.memory import peak_bytes
from minivit.arrays import Array

_TIMM = ("torch", "torchvision", "timm")
REQUIRES: dict[str, tuple[str, ...]] = {  # packages, by system or by module
    "minivit": (),
    "limit": (),
    "pytorch:plain": ("torch",),
    "pytorch:timm": _TIMM,
    "pytorch:compile-plain": ("torch",),
    "pytorch:compile-timm": _TIMM,
    "pytorch:bf16": ("torch",),
    "pytorch:kept": ("torch",),
    "jax": ("jax", "optax"),
    "onnx:plain": ("onnxruntime", "torch", "onnx", "onnxscript"),
    "onnx:timm": ("onnxruntime", *_TIMM, "onnx", "onnxscript"),
}


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
    """Return the module and the variant of a system; the variant is empty where none is named.

    Raises ValueError where there is no such system, and ImportError where a package that it needs is missing.
    """
    name, _, variant = system.partition(":")
    requires(system)
    return importlib.import_module(f"benchmarks.systems.{name}"), variant


def requires(system: str) -> tuple[str, ...]:
    """Return the packages that a system needs; raise ValueError where there is no such system."""
    for name in (system, system.partition(":")[0]):
        if name in REQUIRES:
            return REQUIRES[name]
    raise ValueError(f"there is no system {system!r}; there are {', '.join(REQUIRES)}")


def missing(system: str) -> list[str]:
    """Return the packages that a system needs and that are not installed."""
    return [package for package in requires(system) if importlib.util.find_spec(package) is None]
