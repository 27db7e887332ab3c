"""The systems that are compared, one file each.

    prepare     a task and a variant -> a function that does one step or one prediction and has ended when it returns:
                the loss before the step (0-d), or the logits (B, classes)
    versions    of what the system uses, by name

A system is called ``side`` or ``side:variant``.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Mapping
from typing import Any, Protocol, cast

from benchmarks.task import Task
from minivit.arrays import Array

REQUIRES: dict[str, tuple[str, ...]] = {  # by side or system
    "minivit": (),
    "limit": (),
    "pytorch:plain": ("torch",),
    "pytorch:timm": ("torch", "torchvision", "timm"),
    "pytorch:compile-plain": ("torch",),
    "pytorch:compile-timm": ("torch", "torchvision", "timm"),
    "pytorch:bf16": ("torch",),
    "pytorch:kept": ("torch",),
    "jax": ("jax", "optax"),
    "onnx:plain": ("onnxruntime", "torch", "onnx", "onnxscript"),
    "onnx:timm": ("onnxruntime", "torch", "torchvision", "timm", "onnx", "onnxscript"),
}


class Side(Protocol):
    """What the module of a side offers."""

    def prepare(self, task: Task, variant: str) -> Callable[[], Array]:
        """Return a function that does one step or one prediction."""

    def versions(self) -> Mapping[str, str]:
        """Return the versions of what the side uses, by name."""


def find_side(system: str) -> tuple[Side, str]:
    """Return the side and the variant that ``side:variant`` names; the variant is empty where none is named.

    Raises
    ------
    ValueError
        There is no such system.
    ImportError
        A package that it needs is missing.
    """
    side, _, variant = system.partition(":")
    requires(system)
    module: Any = importlib.import_module(f"benchmarks.sides.{side}")
    return cast(Side, module), variant


def requires(system: str) -> tuple[str, ...]:
    """Return the packages that a system needs; raise ValueError where there is no such system."""
    for name in (system, system.partition(":")[0]):
        if name in REQUIRES:
            return REQUIRES[name]
    raise ValueError(f"there is no system called {system!r}; there are {', '.join(REQUIRES)}")


def missing(system: str) -> list[str]:
    """Return the packages that a system needs and that are not installed."""
    return [package for package in requires(system) if importlib.util.find_spec(package) is None]
