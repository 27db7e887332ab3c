"""PyTorch on a GPU as its good users write it: SDPA, fused AdamW, TF32 or bf16, images resident, eager or compiled.

In bf16 a model trains under autocast, with float32 parameters, and predicts with parameters of 16 bits.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from benchmarks.gpu_parts.step import Step, on_host
from benchmarks.sides.pytorch import build
from benchmarks.task import BETAS, EPS, LR, WEIGHT_DECAY, Task


def prepare(task: Task, precision: str, mode: str = "", device: str = "cuda") -> Step:
    """Return a step of training or a prediction.

    Parameters
    ----------
    task : Task
        The work.
    precision : str
        "bfloat16", "tf32" or "float32".
    mode : str
        Of torch.compile, such as "default"; empty for eager.
    device : str
        "cuda", or "cpu" for a rehearsal.
    """
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    sixteen_bits = precision == "bfloat16"
    model, images = build(task, "plain")
    model = model.to(device)
    images = images.to(device, torch.bfloat16 if sixteen_bits else torch.float32)
    labels = torch.from_numpy(task.labels).to(device)
    run = _training(model, task, images, labels, mode, sixteen_bits) if task.work.trains else None
    if run is None:
        run = _prediction(model, images, mode, sixteen_bits)
    on_gpu = device == "cuda"

    def memory() -> dict[str, int]:
        if not on_gpu:
            return on_host()
        return {"peak_bytes": torch.cuda.max_memory_reserved(), "peak_used_bytes": torch.cuda.max_memory_allocated()}

    def wait() -> None:
        if on_gpu:
            torch.cuda.synchronize()

    def rest() -> None:
        if on_gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()  # compiling may have taken more than the steps do

    return Step(run, wait, number, memory, rest)


def _training(model: Any, task: Task, images: Any, labels: Any, mode: str, sixteen_bits: bool) -> Any:
    model.train()
    named = dict(model.named_parameters())
    groups = [
        {"params": [p for name, p in named.items() if name in task.decay], "weight_decay": WEIGHT_DECAY},
        {"params": [p for name, p in named.items() if name not in task.decay], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=LR, betas=BETAS, eps=EPS, fused=True)

    def loss_of(images: Any, labels: Any) -> Any:
        return torch.nn.functional.cross_entropy(model(images), labels)

    forward = _compiled(loss_of, mode)

    def run() -> Any:
        with _autocast(images.device.type, sixteen_bits):
            loss = forward(images, labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return run


def _prediction(model: Any, images: Any, mode: str, sixteen_bits: bool) -> Any:
    model = model.eval().requires_grad_(False)
    if sixteen_bits:
        model = model.bfloat16()
    forward = _compiled(model, mode)

    def run() -> Any:
        with torch.inference_mode():
            return forward(images)

    return run


def _compiled(function: Any, mode: str) -> Any:
    return torch.compile(function, mode=mode) if mode else function


def _autocast(device: str, sixteen_bits: bool) -> AbstractContextManager[Any]:
    return torch.autocast(device, torch.bfloat16) if sixteen_bits else nullcontext()


def number(result: Any) -> float:
    """Return a loss, or the root mean square of logits; waits for the device."""
    return float(result.double().square().mean().sqrt()) if result.ndim else float(result)


def versions() -> Mapping[str, Any]:
    """Return the versions of PyTorch, its CUDA and cuDNN, and what the device calls itself."""
    found = {"PyTorch": torch.__version__}
    if torch.cuda.is_available():
        found |= {
            "PyTorch's CUDA": str(torch.version.cuda),
            "cuDNN": str(torch.backends.cudnn.version()),
            "PyTorch's device": torch.cuda.get_device_name(),
        }
    return found
