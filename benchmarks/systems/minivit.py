"""minivit on a CPU or a GPU: the engine, and AdamW on training. The variants are ablations: the step without one gain.

"" is the step as it is. The kernel of a whole block contains GELU and layer norm, so the ablations of these two kernels
are compared with "block", where that kernel is off too; it calls attention as an op.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from importlib import metadata
from typing import Any, TypeAlias
from unittest import mock

import numpy as np
import threadpoolctl

import minivit
from benchmarks.memory import watched_memory
from benchmarks.systems import Step, host_memory
from benchmarks.workloads import BETAS, EPS, LR, WEIGHT_DECAY, Task
from minivit import ViT, ops
from minivit.arrays import Array, about_backends, backend, synchronize, to_backend, to_host
from minivit.engine import engine as engine_module
from minivit.engine import worker_pool
from minivit.engine.machine import keep_freed_pages
from minivit.ops.attention import ALL

# While the context lasts, the gain is missing.
Change: TypeAlias = Callable[[], AbstractContextManager[Any]]


@dataclass(frozen=True)
class Ablation:
    """The step without one gain."""

    title: str
    change: Change = nullcontext  # returns a context without the gain
    threads: int | None = None  # workers; those of the task by default
    micro_batches: float = 1  # factor of the size of micro-batches
    whole_batch: bool = False  # the model's own passes over the whole batch, with threaded BLAS, and no engine
    against: str = ""  # the variant that it is compared with


def _reference(*names: str) -> Change:
    return lambda: ops.reference_only(*names)


def _instead(owner: Any, name: str, value: Any) -> Change:
    return lambda: mock.patch.object(owner, name, value)


ABLATIONS: dict[str, Ablation] = {
    "": Ablation("as it is"),
    "block": Ablation("without the kernel of a block", _reference("EncoderBlock")),
    "attention": Ablation("without the kernel of attention", _reference("attention")),
    "gelu": Ablation(
        "without GELU's (the block's on neither side)", _reference("EncoderBlock", "gelu"), against="block"
    ),
    "layer-norm": Ablation(
        "without layer norm's (likewise)", _reference("EncoderBlock", "layer_norm"), against="block"
    ),
    "kernels": Ablation("without any kernel", _reference()),
    "processes": Ablation("threads instead of processes", _instead(worker_pool, "can_fork", lambda: False)),
    "pages": Ablation("freed pages given back", _instead(engine_module, "keep_freed_pages", lambda: False)),
    "class-token": Ablation("all tokens of the last block", _instead(ViT, "queries", lambda model, i: ALL)),
    "half": Ablation("micro-batches of half the size", micro_batches=0.5),
    "twice": Ablation("micro-batches of twice the size", micro_batches=2),
    "workers": Ablation("one worker", threads=1),
    "whole-batch": Ablation("one worker, whole batch, threaded BLAS", threads=1, whole_batch=True),
}


def prepare(task: Task, variant: str) -> Step:
    """Return a training step or a prediction, without the gain that `variant` names until the step is closed."""
    ablation, workload = ABLATIONS[variant], task.workload
    changes = ExitStack()
    changes.enter_context(ablation.change())
    library = {"cpu": "numpy", "cuda": "cupy"}.get(workload.device, workload.device)
    model = minivit.create_model(workload.preset, backend=library, **workload.overrides)
    model.load_state_dict(task.state)
    optimizer = minivit.AdamW(model, LR, BETAS, EPS, WEIGHT_DECAY) if workload.trains else None
    if ablation.whole_batch:
        keep_freed_pages()
        return Step(lambda: _whole_batch(model, task, optimizer), close=changes.close)
    on_host = library == "numpy"
    micro_batch = max(1, int(ablation.micro_batches * model.config.micro_batch)) if on_host else None
    precision = None if on_host else workload.precision
    engine = minivit.Engine(model, ablation.threads or task.threads, micro_batch, precision)
    changes.callback(engine.close)
    xp = backend(library)
    images = to_backend(task.images, xp).astype(engine.dtype, copy=False)
    labels = to_backend(task.labels, xp)

    def run() -> Array:
        if optimizer is None:
            return engine.predict(images)
        loss = engine.loss_and_gradients(images, labels)
        optimizer.step()
        return loss

    if on_host:
        return Step(run, close=changes.close)
    return _on_gpu(run, xp, changes.close)


def _whole_batch(model: ViT, task: Task, optimizer: Any) -> Array:
    if optimizer is None:
        return model(task.images)
    model.zero_grad()
    logits, cache = model.forward(task.images)
    loss, loss_cache = ops.cross_entropy(logits, task.labels)
    model.backward(ops.cross_entropy_backward(1.0, loss_cache), cache, release=True)
    optimizer.step()
    return loss


def _on_gpu(run: Callable[[], Array], xp: Any, close: Callable[[], object]) -> Step:
    if not hasattr(xp, "get_default_memory_pool"):  # the stand-in for a GPU in the tests
        return Step(run, to_host, lambda: synchronize(xp), host_memory, close=close, on_gpu=True)
    pool, used = xp.get_default_memory_pool(), list[int]()

    def memory() -> dict[str, int]:
        if not used:
            with watched_memory(xp) as traffic:  # of one step, which is like the others
                run()
            used.append(traffic.peak)
        return {"peak_bytes": pool.total_bytes(), "peak_used_bytes": used[0]}

    return Step(run, to_host, lambda: synchronize(xp), memory, pool.free_all_blocks, close, on_gpu=True)


def versions() -> Mapping[str, str]:
    """Return the versions of minivit, NumPy and its BLAS, and of CuPy and CUDA with the device where it is imported."""
    blas = threadpoolctl.ThreadpoolController().select(user_api="blas").info()
    names = [" ".join(filter(None, (b["internal_api"], b["version"], b.get("architecture")))) for b in blas]
    found: dict[str, Any] = {
        "minivit": minivit.__version__,
        "NumPy": np.__version__,
        "BLAS": ", ".join(names) or "unknown",
    }
    if "cupy" in sys.modules:
        about = about_backends()["cupy"]
        found |= {"CuPy": about["version"], "CUDA": about["cuda_runtime"], "CUDA driver": about["cuda_driver"]}
        found |= {"ml_dtypes": metadata.version("ml_dtypes")}
        found["CuPy's device"] = ", ".join(device["name"] for device in about["devices"][:1])
    return found
