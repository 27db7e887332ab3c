"""Whom minivit is measured against, and the bars: how much faster, or smaller, it is to be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.sides.limit import layouts
from benchmarks.works import WORKS, Work

_CPUINFO = Path("/proc/cpuinfo")


@dataclass(frozen=True)
class Peer:
    """What minivit is compared with; the fastest of its systems counts.

    Parameters
    ----------
    title : str
        How a table calls it.
    systems : tuple of str
        Names for `benchmarks.sides`; for the limit, which layouts to try depends on the work.
    trains : bool
        Whether it can train; all can predict.
    """

    title: str
    systems: tuple[str, ...] = ()
    trains: bool = True


PEERS: dict[str, Peer] = {
    "eager": Peer("PyTorch eager", ("pytorch:plain", "pytorch:timm")),
    "eager-kept": Peer("PyTorch eager, freed pages kept", ("pytorch:kept",)),
    "compile": Peer("torch.compile", ("pytorch:compile-plain", "pytorch:compile-timm")),
    "bf16": Peer("PyTorch bf16 autocast", ("pytorch:bf16",)),
    "jax": Peer("JAX jit", ("jax",)),
    "onnx": Peer("ONNX Runtime", ("onnx:plain", "onnx:timm"), trains=False),
    "limit": Peer("limit"),
    "limit-near": Peer("limit, operands near"),
}


@dataclass(frozen=True)
class Bar:
    """What a ratio is to reach: the peer's time, or its memory, over ours."""

    work: str
    peer: str
    at_least: float
    aim: float
    measure: str = "time"  # or "memory"


BARS = (
    Bar("train-tiny", "eager", 1.0, 1.3),
    Bar("train-tiny", "compile", 0.95, 1.2),
    Bar("train-tiny", "jax", 1.8, 2.3),
    Bar("train-tiny", "limit", 0.65, 0.85),
    Bar("train-tiny-1024", "eager", 2.0, 2.6),
    Bar("train-tiny-1024", "eager", 20.0, 30.0, "memory"),
    Bar("train-w96", "eager", 1.2, 2.0),
    Bar("train-w96", "compile", 1.0, 1.5),
    Bar("train-w64", "eager", 1.1, 1.8),
    Bar("predict-224", "eager", 0.95, 1.3),
    Bar("predict-224", "onnx", 1.1, 1.5),
    Bar("predict-one", "eager", 0.65, 1.0),
)

_LARGE = 512  # images a step: beyond, a step of a peer takes many seconds
_BESIDE = ("limit", "eager-kept")  # measured there too, without a bar


def bar_of(work: Work, peer: str, measure: str) -> Bar | None:
    """Return the bar for a work against a peer, if there is one; there is none for a work that was changed."""
    if work != WORKS.get(work.name):
        return None
    return next((bar for bar in BARS if (bar.work, bar.peer, bar.measure) == (work.name, peer, measure)), None)


def usual_peers(work: Work) -> list[str]:
    """Return the peers that a work is measured against: all that can do it; for large batches, those with a bar."""
    if work.batch_size > _LARGE:
        return [name for name in PEERS if name in _BESIDE or bar_of(work, name, "time")]
    return [name for name in PEERS if name != "limit-near" and impossible(name, work) is None]


def impossible(peer: str, work: Work) -> str | None:
    """Return why a peer cannot do a work here, or None."""
    if work.trains and not PEERS[peer].trains:
        return "it does not train"
    if peer == "limit-near" and not work.trains:
        return "the operands of a prediction are near in any case"
    if peer == "bf16" and not (_CPUINFO.exists() and "amx_bf16" in _CPUINFO.read_text()):
        return "this processor has no matrix unit for bfloat16 (AMX)"
    return None


def systems_of(peer: str, work: Work, threads: int) -> Sequence[str]:
    """Return the systems of a peer for a work."""
    if not peer.startswith("limit"):
        return PEERS[peer].systems
    return [f"limit:{layout}{peer.removeprefix('limit')}" for layout in layouts(work, threads)]
