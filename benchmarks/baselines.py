"""The baselines that minivit is compared with, and the bars: how much faster, or smaller, it is to be."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.systems.limit import layouts
from benchmarks.systems.minivit import ABLATIONS
from benchmarks.workloads import GPU_WORKLOADS, WORKLOADS, Workload

OURS = "minivit"
_CPUINFO = Path("/proc/cpuinfo")


@dataclass(frozen=True)
class Baseline:
    """One or several systems, of which the fastest counts."""

    title: str
    systems: tuple[str, ...] = ()  # names for `benchmarks.systems`; those of the limit depend on the workload
    trains: bool = True  # all can predict
    against: str = OURS  # the system that it is compared with


BASELINES: dict[str, Baseline] = {
    "eager": Baseline("PyTorch eager", ("pytorch:plain", "pytorch:timm")),
    "eager-kept": Baseline("PyTorch eager, freed pages kept", ("pytorch:kept",)),
    "compile": Baseline("torch.compile", ("pytorch:compile-plain", "pytorch:compile-timm")),
    "bf16": Baseline("PyTorch bf16 autocast", ("pytorch:bf16",)),
    "jax": Baseline("JAX jit", ("jax",)),
    "onnx": Baseline("ONNX Runtime", ("onnx:plain", "onnx:timm"), trains=False),
    "limit": Baseline("limit"),
}
ABLATED: dict[str, Baseline] = {
    name: Baseline(ablation.title, (f"minivit:{name}",), against=f"minivit:{ablation.against}".removesuffix(":"))
    for name, ablation in ABLATIONS.items()
    if name
}


@dataclass(frozen=True)
class Bar:
    """What a ratio is to reach: the baseline's time, or its memory, over minivit's."""

    workload: str
    baseline: str
    at_least: float
    aim: float
    measure: str = "time"  # or "memory"


BARS = (
    Bar("train-tiny", "eager", 1.0, 1.3),
    Bar("train-tiny", "compile", 0.95, 1.2),
    Bar("train-tiny", "jax", 1.8, 2.3),
    Bar("train-tiny", "limit", 0.78, 0.85),
    Bar("train-tiny-1024", "eager", 2.0, 2.6),
    Bar("train-tiny-1024", "eager", 20.0, 30.0, "memory"),
    Bar("train-w96", "eager", 1.2, 2.0),
    Bar("train-w96", "compile", 1.0, 1.5),
    Bar("train-w96", "limit", 0.68, 0.75),
    Bar("train-w64", "eager", 1.1, 1.8),
    Bar("train-w64", "limit", 0.58, 0.70),
    Bar("predict-224", "eager", 0.95, 1.3),
    Bar("predict-224", "onnx", 1.1, 1.5),
    Bar("predict-one", "eager", 0.65, 1.0),
    Bar("predict-one", "onnx", 0.8, 1.0),
    Bar("start-up", "timm", 4.0, 8.0),
    Bar("gpu-train-tiny", "eager", 1.0, 1.6),  # in bf16, on an H200, as those below
    Bar("gpu-train-tiny", "compile", 0.9, 1.2),
    Bar("gpu-train-base", "eager", 0.9, 1.1),
    Bar("gpu-predict-224", "compile", 0.9, 1.1),
)

_LARGE = 512  # images a step: beyond, a step of a baseline takes many seconds
_WITHOUT_BAR = ("limit", "eager-kept")  # measured there too


def bars_of(workload: Workload, baseline: str) -> list[Bar]:
    """Return the bars of a workload against a baseline; a workload that was changed has none."""
    if workload != (WORKLOADS | GPU_WORKLOADS).get(workload.name, workload):
        return []
    return [bar for bar in BARS if (bar.workload, bar.baseline) == (workload.name, baseline)]


def usual_baselines(workload: Workload) -> list[str]:
    """Return the baselines that a workload is measured against: for large batches, those with a bar; else all."""
    if workload.batch_size > _LARGE:
        return [name for name in BASELINES if name in _WITHOUT_BAR or bars_of(workload, name)]
    return [name for name in BASELINES if impossible(name, workload) is None]


def impossible(baseline: str, workload: Workload) -> str | None:
    """Return why a baseline cannot run a workload here, or None."""
    if workload.trains and baseline in BASELINES and not BASELINES[baseline].trains:
        return "it does not train"
    if baseline == "bf16" and not (_CPUINFO.exists() and "amx_bf16" in _CPUINFO.read_text()):
        return "this processor has no matrix unit for bfloat16 (AMX)"
    return None


def systems_of(baseline: str, workload: Workload, threads: int) -> Sequence[str]:
    """Return the systems of a baseline for a workload."""
    return (BASELINES | ABLATED)[baseline].systems or [f"limit:{layout}" for layout in layouts(workload, threads)]
