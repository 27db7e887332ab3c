"""minivit on a GPU: images and labels resident, the engine, and AdamW on training."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import metadata
from typing import Any

import numpy as np

import minivit
from benchmarks.gpu_parts.memory import watched_memory
from benchmarks.gpu_parts.step import Step, on_host
from benchmarks.sides.same_model import check_no_dropout
from benchmarks.task import BETAS, EPS, LR, WEIGHT_DECAY, Task
from minivit.arrays import Array, about_backends, namespace, synchronize, to_backend, to_host


def prepare(task: Task, precision: str, backend: str = "cupy") -> Step:
    """Return a step of training or a prediction; on a host there is no precision but float32."""
    check_no_dropout(task.work.config)
    model = minivit.create_model(task.work.preset, backend=backend, **task.work.overrides)
    model.load_state_dict(task.state)
    xp = namespace(model.parameters.store.values)
    engine = minivit.Engine(model, task.threads, precision=None if xp is np else precision)
    images = to_backend(task.images, xp).astype(engine.dtype)
    labels = to_backend(task.labels, xp)
    optimizer = minivit.AdamW(model, LR, BETAS, EPS, WEIGHT_DECAY) if task.work.trains else None

    def run() -> Array:
        if optimizer is None:
            return engine.predict(images)
        loss = engine.loss_and_gradients(images, labels)
        optimizer.step()
        return loss

    pool = xp.get_default_memory_pool() if hasattr(xp, "get_default_memory_pool") else None
    used = [0]

    def memory() -> dict[str, int]:
        if pool is None:
            return on_host()
        if not used[0]:
            with watched_memory(xp) as traffic:  # of one step, which is like the others
                run()
            used[0] = traffic.peak
        return {"peak_bytes": pool.total_bytes(), "peak_used_bytes": used[0]}

    return Step(run, lambda: synchronize(xp), number, memory, lambda: None if pool is None else pool.free_all_blocks())


def number(result: Array) -> float:
    """Return a loss, or the root mean square of logits; waits for the device."""
    host = to_host(result).astype(np.float64)
    return float(np.sqrt((host * host).mean())) if host.ndim else float(host)


def versions() -> Mapping[str, Any]:
    """Return the versions of minivit, NumPy, CuPy and its CUDA, and what the device calls itself."""
    found: dict[str, Any] = {"minivit": minivit.__version__, "NumPy": np.__version__}
    about = about_backends()["cupy"]
    if about["version"]:
        found |= {
            "CuPy": about["version"],
            "CuPy's CUDA": about["cuda_runtime"],
            "the driver's CUDA": about["cuda_driver"],
            "ml_dtypes": metadata.version("ml_dtypes"),
        }
    if about["devices"]:
        device = about["devices"][0]
        found["CuPy's device"] = f"{device['name']}, compute capability {device['compute_capability']}"
    return found
