"""minivit on a CPU or a GPU: the engine, and AdamW on training. The variants are ablations: the step without one gain.

"" is the step as it is. The kernel of a whole block contains GELU and layer norm, so the ablations of these two kernels
are compared with "block", where that kernel is off too; it calls attention as an op.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, replace
from typing import Any, TypeAlias
from unittest import mock

import minivit
from benchmarks.systems import Step
from benchmarks.workloads import BETAS, EPS, LR, WEIGHT_DECAY, Task
from minivit import ViT, ops
from minivit.arrays import Array, backend, synchronize, to_backend, to_host
from minivit.engine import engine as engine_module
from minivit.engine import worker_pool
from minivit.engine.machine import keeping_freed_pages
from minivit.ops.attention import ALL

Change: TypeAlias = Callable[[], AbstractContextManager[Any]]  # while the context lasts, the gain is missing


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
    "pages": Ablation("freed pages given back", _instead(engine_module, "keeping_freed_pages", nullcontext)),
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
        changes.enter_context(keeping_freed_pages())
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
    step = Step(run, to_host, lambda: synchronize(xp), close=changes.close, on_gpu=True)
    if hasattr(xp, "get_default_memory_pool"):  # the stand-in for CuPy in the tests has none
        pool = xp.get_default_memory_pool()
        step = replace(step, memory=lambda: {"peak_bytes": pool.total_bytes()}, release=pool.free_all_blocks)
    return step


def _whole_batch(model: ViT, task: Task, optimizer: Any) -> Array:
    if optimizer is None:
        return model(task.images)
    model.zero_grad()
    logits, cache = model.forward(task.images)
    loss, loss_cache = ops.cross_entropy(logits, task.labels)
    model.backward(ops.cross_entropy_backward(1.0, loss_cache), cache, release=True)
    optimizer.step()
    return loss
