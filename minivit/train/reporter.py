"""Who is told how training goes, and what is told."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

from minivit.nn.vit import ViT
from minivit.train.run_folder import Run


class StepReport(NamedTuple):
    """What a reporter hears after each step."""

    epoch: int
    step: int
    loss: float
    accuracy: float
    learning_rate: float
    images_per_second: float
    seconds_left: float


class Reporter(Protocol):
    """Who is told how training goes: a progress bar, plain lines, a notebook."""

    def started(self, run: Run, model: ViT, first_step: int, total_steps: int, steps_per_epoch: int) -> None:
        """Training begins at `first_step`."""

    def stepped(self, report: StepReport) -> None:
        """A step is done."""

    def epoch_ended(self, metrics: dict[str, Any]) -> None:
        """An epoch is done; `metrics` is its line in metrics.jsonl."""
