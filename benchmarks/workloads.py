"""The workloads: which model, training or prediction, how many images in a step; and the same data for every system."""

import argparse
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self

import numpy as np

import minivit
from minivit import ViTConfig
from minivit.arrays import Array

LR, BETAS, EPS, WEIGHT_DECAY = 1e-3, (0.9, 0.999), 1e-8, 0.05  # of AdamW

PRECISIONS = {"float32": "float32", "tf32": "float32 (TF32)", "bfloat16": "bf16"}  # and their names in tables


@dataclass(frozen=True)
class Workload:
    """A training step, or a prediction, of a batch of images."""

    name: str
    kind: str  # "training" or "prediction"
    preset: str
    overrides: Mapping[str, Any] = field(default_factory=dict)  # fields of `ViTConfig` that differ from the preset's
    batch_size: int = 1
    device: str = "cpu"  # or "cuda"
    precision: str = "float32"  # one of `PRECISIONS`; on a CPU "float32"

    @property
    def config(self) -> ViTConfig:
        """The sizes of the model, for all systems."""
        return minivit.get_config(self.preset, **self.overrides)

    @property
    def trains(self) -> bool:
        """Whether this is a training step."""
        return self.kind == "training"

    @property
    def title(self) -> str:
        """The workload in words."""
        c = self.config
        sizes = f"width {c.embed_dim}, depth {c.depth}, {c.num_heads} heads, MLP {c.hidden_dim}, {c.num_tokens} tokens"
        what = "training step" if self.trains else "prediction"
        return f"{self.name}: {what}, {sizes}, batch {self.batch_size}, {PRECISIONS[self.precision]}"

    def changed(self, **overrides: Any) -> Self:
        """Return this workload with fields of its model replaced."""
        return replace(self, overrides={**self.overrides, **overrides})


_TINY, _TINY_224 = "vit_tiny_patch4_32", "vit_tiny_patch16_224"
_W96 = {"embed_dim": 96, "depth": 6, "num_heads": 4, "mlp_ratio": 2.0}
_W64 = {"embed_dim": 64, "depth": 4, "num_heads": 8, "mlp_ratio": 2.0}


def _by_name(*workloads: Workload) -> dict[str, Workload]:
    return {workload.name: workload for workload in workloads}


WORKLOADS = _by_name(
    Workload("train-tiny", "training", _TINY, batch_size=128),
    Workload("train-tiny-1024", "training", _TINY, batch_size=1024),
    Workload("train-w96", "training", _TINY, _W96, batch_size=128),
    Workload("train-w64", "training", _TINY, _W64, batch_size=64),
    Workload("predict-224", "prediction", _TINY_224, batch_size=32),
    Workload("predict-one", "prediction", _TINY_224, batch_size=1),
)
GPU_WORKLOADS = _by_name(
    Workload("gpu-train-tiny", "training", _TINY, {}, 1024, "cuda", "bfloat16"),
    Workload("gpu-train-base", "training", "vit_base_patch16_224", {}, 128, "cuda", "bfloat16"),
    Workload("gpu-predict-224", "prediction", _TINY_224, {}, 256, "cuda", "bfloat16"),
    Workload("gpu-predict-32", "prediction", _TINY, {}, 1024, "cuda", "bfloat16"),
)
REHEARSAL = _by_name(  # the GPU benchmark on a CPU
    Workload("rehearsal-train", "training", "vit_micro_patch4_8", batch_size=16),
    Workload("rehearsal-predict", "prediction", "vit_micro_patch4_8", batch_size=16),
)


def workload_named(name: str) -> Workload:
    """Return a workload of `WORKLOADS`, for an option of argparse."""
    if name not in WORKLOADS:
        raise argparse.ArgumentTypeError(f"there is no workload {name!r}; there are {', '.join(WORKLOADS)}")
    return WORKLOADS[name]


@dataclass(frozen=True)
class Task:
    """A workload with its data: what a system is given."""

    workload: Workload
    threads: int  # to use on a CPU
    state: Mapping[str, Array]  # each parameter's value by name, in minivit's layout
    decay: frozenset[str]  # the parameters that weight decay applies to
    images: Array  # (B, height, width, C), float32
    labels: Array  # (B,), int64


def make_task(workload: Workload, threads: int) -> Task:
    """Return the task of a workload; it is the same in every process."""
    model = minivit.create_model(workload.preset, **workload.overrides)
    config = model.config
    generator = np.random.default_rng(0)
    state = model.state_dict()
    for value in state.values():  # no bias is zero and no norm's weight one: a system without them would show
        value += 0.02 * generator.standard_normal(value.shape, dtype=value.dtype)
    shape = (workload.batch_size, config.height, config.width, config.in_chans)
    decay = frozenset(name for name, parameter in model.parameters.items() if parameter.decay)
    images = generator.standard_normal(shape, dtype=np.float32)
    labels = generator.integers(0, config.num_classes, workload.batch_size)
    return Task(workload, threads, state, decay, images, labels)
