"""What is measured on a GPU: the steps, in which precision, beside whom, and the bars."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.bars import Bar
from benchmarks.tables import title_of
from benchmarks.works import Work

PRECISIONS = {"bfloat16": "bf16", "tf32": "float32 (TF32)", "float32": "float32"}

TRAIN_TINY = Work("gpu-train-tiny", "training", "vit_tiny_patch4_32", batch_size=1024)
TRAIN_BASE = Work("gpu-train-base", "training", "vit_base_patch16_224", batch_size=128)
WORKS = {
    work.name: work
    for work in (
        TRAIN_TINY,
        TRAIN_BASE,
        Work("gpu-predict-224", "prediction", "vit_tiny_patch16_224", batch_size=256),
        Work("gpu-predict-32", "prediction", "vit_tiny_patch4_32", batch_size=1024),
        Work("rehearsed-train", "training", "vit_micro_patch4_8", batch_size=16),
        Work("rehearsed-predict", "prediction", "vit_micro_patch4_8", batch_size=16),
    )
}
MEASURED = tuple(name for name in WORKS if name.startswith("gpu"))
REHEARSED = tuple(name for name in WORKS if name.startswith("rehearsed"))

BARS = {  # in bf16, on an H200
    "gpu-train-tiny": (Bar("gpu-train-tiny", "eager", 1.0, 1.6), Bar("gpu-train-tiny", "compile", 0.9, 1.2)),
    "gpu-train-base": (Bar("gpu-train-base", "eager", 0.9, 1.1),),
    "gpu-predict-224": (Bar("gpu-predict-224", "compile", 0.9, 1.1),),
}


@dataclass(frozen=True)
class Job:
    """A work in one of `PRECISIONS`."""

    work: Work
    precision: str

    @property
    def title(self) -> str:
        """The work in words."""
        return f"{title_of(self.work).rpartition(', ')[0]}, {PRECISIONS[self.precision]}"

    @property
    def bars(self) -> tuple[Bar, ...]:
        """What is to be reached."""
        return BARS.get(self.work.name, ()) if self.precision == "bfloat16" else ()
