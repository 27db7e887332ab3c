"""What is told of a run: of a step to who listens, of an epoch in metrics.jsonl, of the whole in result.json."""

from __future__ import annotations

from typing import Any

from minivit.errors import UserError
from minivit.train.evaluate import Evaluation
from minivit.train.reporter import StepReport
from minivit.train.run_folder import Run
from minivit.train.state import Progress
from minivit.train.step import Outcome


def step_report(
    step: Outcome, progress: Progress, steps_per_epoch: int, total_steps: int, batch_size: int
) -> StepReport:
    """Return what a reporter hears of a step that `progress` counts already."""
    rate = progress.epoch_images / progress.epoch_seconds
    return StepReport(
        epoch=(step.number - 1) // steps_per_epoch + 1,
        step=step.number,
        loss=progress.epoch_loss / progress.epoch_images,
        accuracy=progress.epoch_correct / progress.epoch_images,
        learning_rate=step.lr,
        images_per_second=rate,
        seconds_left=(total_steps - step.number) * batch_size / rate,
    )


def epoch_metrics(epoch: int, progress: Progress, lr: float) -> dict[str, Any]:
    """Return what the training part of an epoch came to, at its last learning rate."""
    return {
        "epoch": epoch,
        "step": progress.step,
        "learning_rate": lr,
        "train_loss": progress.epoch_loss / progress.epoch_images,
        "train_accuracy": progress.epoch_correct / progress.epoch_images,
        "images_per_second": progress.epoch_images / progress.epoch_seconds,
        "seconds": progress.seconds,
    }


def metrics_until(run: Run, step: int, steps_per_epoch: int) -> list[dict[str, Any]]:
    """Return the lines of metrics.jsonl for the epochs that were done after `step`.

    Raises
    ------
    UserError
        One is missing.
    """
    done = [line for line in run.metrics() if line["step"] <= step]
    if [line["epoch"] for line in done] != list(range(1, step // steps_per_epoch + 1)):
        raise UserError(
            f"{run.path / 'metrics.jsonl'} does not have a line for each epoch before step {step}; "
            "bring the file back, or begin a new run"
        )
    return done


def run_result(progress: Progress, test: Evaluation, images: int, validated: bool) -> dict[str, Any]:
    """Return what a run came to that took `images` through its steps, `validated` or not."""
    return {
        "test_accuracy": test.accuracy,
        "test_loss": test.loss,
        "test_images": test.images,
        "best_epoch": progress.best_epoch,
        "best_val_accuracy": progress.best_accuracy if validated else None,
        "seconds": progress.seconds,
        "images_per_second": images / progress.seconds,
    }
