"""PyTorch on a CPU or a GPU, with SDPA and fused AdamW.

plain, timm                     that model, eager
compile-plain, compile-timm     under torch.compile, on a CPU's prediction with frozen weights
bf16                            the plain model under autocast on a CPU
kept                            the plain model in a process that keeps freed pages, as minivit tells glibc to

In bfloat16 a model trains under autocast, with float32 parameters, and predicts with parameters of 16 bits.
"""

import warnings
from contextlib import ExitStack
from functools import partial
from typing import Any

import numpy as np
import torch

from benchmarks.plain_vit import PlainViT
from benchmarks.systems import Step
from benchmarks.workloads import BETAS, EPS, LR, WEIGHT_DECAY, Task
from minivit import ViTConfig
from minivit.engine.machine import keeping_freed_pages
from minivit.weights.timm import entry

VARIANTS = ("plain", "timm", "compile-plain", "compile-timm", "bf16", "kept")


def timm_vit(config: ViTConfig) -> Any:
    """Return timm's Vision Transformer of the same sizes, in its initial values."""
    from tests.conformance.torchvision_operators import import_torchvision

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of timm and torchvision
        import_torchvision()
        from timm.models.vision_transformer import VisionTransformer
    names = "img_size patch_size in_chans num_classes global_pool class_token embed_dim depth num_heads mlp_ratio"
    return VisionTransformer(
        **{name: getattr(config, name) for name in names.split()},
        norm_layer=partial(torch.nn.LayerNorm, eps=config.norm_eps),
        act_layer=partial(torch.nn.GELU, approximate="tanh" if config.act_layer == "gelu_tanh" else "none"),
    )


def build(task: Task, variant: str) -> tuple[Any, Any]:
    """Return the model with the task's weights, and the images (B, C, height, width)."""
    config = task.workload.config
    model = timm_vit(config) if variant.endswith("timm") else PlainViT(config)
    state = {name: entry(name, value.shape, config).split(value)[0] for name, value in task.state.items()}
    model.load_state_dict({name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in state.items()})
    return model, torch.from_numpy(np.ascontiguousarray(task.images.transpose(0, 3, 1, 2)))


def prepare(task: Task, variant: str) -> Step:
    """Return a training step or a prediction."""
    if variant not in VARIANTS:
        raise ValueError(f"PyTorch has no variant {variant!r}; there are {', '.join(VARIANTS)}")
    workload, on_gpu = task.workload, task.workload.device == "cuda"
    torch.set_num_threads(task.threads)
    torch.set_float32_matmul_precision("high" if workload.precision == "tf32" else "highest")
    changes = ExitStack()
    if variant == "kept":
        changes.enter_context(keeping_freed_pages())
    model, images = build(task, variant)
    model, images = model.to(workload.device), images.to(workload.device)
    sixteen_bits = variant == "bf16" or workload.precision == "bfloat16"
    if workload.precision == "bfloat16":
        images = images.bfloat16()
        model = model if workload.trains else model.bfloat16()
    autocast = partial(torch.autocast, workload.device, torch.bfloat16, enabled=sixteen_bits)
    compiled = variant.startswith("compile")
    if workload.trains:
        run = _training(model.train(), images, task, autocast, compiled)
    else:
        run = _prediction(model.eval().requires_grad_(False), images, autocast, compiled, freeze=not on_gpu)
    if not on_gpu:
        return Step(run, _to_host, close=changes.close)
    return Step(run, _to_host, torch.cuda.synchronize, _memory, _release, on_gpu=True)


def _training(model: Any, images: Any, task: Task, autocast: Any, compiled: bool) -> Any:
    labels = torch.from_numpy(task.labels).to(images.device)
    named = dict(model.named_parameters())
    groups = [
        {"params": [p for name, p in named.items() if name in task.decay], "weight_decay": WEIGHT_DECAY},
        {"params": [p for name, p in named.items() if name not in task.decay], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=LR, betas=BETAS, eps=EPS, fused=True)

    def loss_of(images: Any, labels: Any) -> Any:
        return torch.nn.functional.cross_entropy(model(images), labels)

    forward = torch.compile(loss_of) if compiled else loss_of

    def run() -> Any:
        with autocast():
            loss = forward(images, labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return run


def _prediction(model: Any, images: Any, autocast: Any, compiled: bool, freeze: bool) -> Any:
    forward = torch.compile(model, options={"freezing": True} if freeze else None) if compiled else model

    def run() -> Any:
        with torch.inference_mode(), autocast():
            return forward(images)

    return run


def _to_host(result: Any) -> Any:
    return result.float().cpu().numpy()


def _memory() -> dict[str, int]:
    return {"peak_bytes": torch.cuda.max_memory_reserved()}


def _release() -> None:
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()  # compiling may have taken more than the steps do
