"""PyTorch, with SDPA and fused AdamW.

plain, timm                     that model, eager
compile-plain, compile-timm     under torch.compile, on prediction with frozen weights
bf16                            the plain model under autocast
kept                            the plain model in a process that keeps freed pages, as minivit tells glibc to
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from importlib import metadata
from typing import Any

import numpy as np
import torch

from benchmarks.sides.plain_vit import PlainViT
from benchmarks.sides.same_model import check_same_model
from benchmarks.task import BETAS, EPS, LR, WEIGHT_DECAY, Task
from minivit.arrays import Array
from minivit.engine.machine import keep_freed_pages
from minivit.weights.timm import exported


def build(task: Task, variant: str) -> tuple[Any, Any]:
    """Return the model with the task's weights, and the images (B, C, height, width)."""
    from_timm = variant.endswith("timm")
    check_same_model(task.work.config, ("gelu", "gelu_tanh") if from_timm else ("gelu",))
    if from_timm:
        from benchmarks.sides.timm_vit import timm_vit

        model = timm_vit(task.work.config)
    else:
        model = PlainViT(task.work.config)
    state = {name: exported(name, value, task.work.config) for name, value in task.state.items()}
    model.load_state_dict({name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in state.items()})
    return model, torch.from_numpy(np.ascontiguousarray(task.images.transpose(0, 3, 1, 2)))


def prepare(task: Task, variant: str) -> Callable[[], Array]:
    """Return a step of training or a prediction."""
    torch.set_num_threads(task.threads)
    if variant == "kept":
        keep_freed_pages()
    model, images = build(task, variant)
    run = model
    if variant.startswith("compile"):
        run = torch.compile(model, options=None if task.work.trains else {"freezing": True})
    if not task.work.trains:
        model.eval()
        return lambda: _predict(run, images, variant)
    model.train()
    labels = torch.from_numpy(task.labels)
    groups = [
        {"params": [p for name, p in model.named_parameters() if name in task.decay], "weight_decay": WEIGHT_DECAY},
        {"params": [p for name, p in model.named_parameters() if name not in task.decay], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=LR, betas=BETAS, eps=EPS, fused=True)

    def step() -> Array:
        with _precision(variant):
            loss = torch.nn.functional.cross_entropy(run(images), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach().numpy()

    return step


def _predict(run: Any, images: Any, variant: str) -> Array:
    with torch.inference_mode(), _precision(variant):
        return run(images).float().numpy()


def _precision(variant: str) -> AbstractContextManager[Any]:
    return torch.autocast("cpu", torch.bfloat16) if variant == "bf16" else nullcontext()


def versions() -> Mapping[str, str]:
    """Return the versions of PyTorch and timm."""
    found = {"PyTorch": torch.__version__}
    with suppress(metadata.PackageNotFoundError):
        found["timm"] = metadata.version("timm")
    return found
