"""A part that needs CuPy alone, in a process of its own: python -m benchmarks.gpu_parts.part PART PRECISION

Prints one line of JSON.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
from collections.abc import Callable
from functools import partial
from typing import Any

from benchmarks.gpu_parts import minivit as minivit_side
from benchmarks.gpu_parts.claims import check_claims
from benchmarks.gpu_parts.clock import DeviceClock
from benchmarks.gpu_parts.errors import answered
from benchmarks.gpu_parts.kernels import measure_passes
from benchmarks.gpu_parts.products import measure_products
from benchmarks.gpu_parts.profile import device_work
from benchmarks.gpu_parts.step import Step
from benchmarks.gpu_parts.works import PRECISIONS, TRAIN_BASE, TRAIN_TINY
from benchmarks.task import make_task
from benchmarks.works import Work
from minivit.arrays import backend, dtype_named
from minivit.arrays.precision import tf32
from minivit.engine.machine import cores

WORKS = {work.name: work for work in (TRAIN_TINY, TRAIN_BASE)}  # of which claims are made


def kernels(precision: str) -> Any:
    """Return the bandwidth of each kernel."""
    cupy = backend("cupy")
    return measure_passes(cupy, _dtype(precision), DeviceClock(cupy).seconds)


def products(precision: str) -> Any:
    """Return the rates of products."""
    cupy = backend("cupy")
    with tf32(precision == "tf32"):
        return measure_products(cupy, _dtype(precision), DeviceClock(cupy).seconds)


def claims(precision: str) -> Any:
    """Return the claims' figures, by work."""
    return _of_each_work(precision, lambda step: check_claims(step, backend("cupy")))


def profile(precision: str) -> Any:
    """Return what the device does in a step, by work."""
    importlib.import_module("torch")  # first, so that both use the libraries of CUDA that it brings
    return _of_each_work(precision, device_work)


def _of_each_work(precision: str, figures: Callable[[Step], Any]) -> Any:
    def of(work: Work) -> Any:
        step = minivit_side.prepare(make_task(work, cores()), precision)
        found = figures(step)
        step.rest()
        return found

    return {name: answered(partial(of, work)) for name, work in WORKS.items()}


PARTS: dict[str, Callable[[str], Any]] = {
    "kernels": kernels,
    "products": products,
    "claims": claims,
    "profile": profile,
}


def _dtype(precision: str) -> Any:
    return dtype_named("float32" if precision == "tf32" else precision)


def main() -> None:
    """Measure a part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("precision", choices=PRECISIONS)
    options = parser.parse_args()
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no result
    figures = PARTS[options.part](options.precision)
    print(json.dumps({"figures": figures, "versions": dict(minivit_side.versions())}), file=replies, flush=True)


if __name__ == "__main__":
    main()
