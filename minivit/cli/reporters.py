"""The progress of a training run: one line per epoch in a pipe, a live progress bar on a terminal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

    from minivit.nn.model import Model
    from minivit.train.run_folder import RunFolder
    from minivit.train.trainer import StepReport


def duration(seconds: float) -> str:
    """Return a duration as h:mm:ss."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


def percent(share: float) -> str:
    """Return a fraction as a percentage."""
    return f"{100.0 * share:.1f} %"


class LineReporter:
    """Prints one line per epoch."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.say = say
        self.epochs = 0
        self.latest: StepReport | None = None

    def started(self, run: RunFolder, model: Model, first_step: int, total_steps: int, steps_per_epoch: int) -> None:
        """Say what the lines hold, and at which step a resumed run continues."""
        self.epochs = run.recipe.epochs
        what = "loss" if model.gives_losses else "loss and accuracy"
        self.say(f'each epoch: {what} ("val": of validation images), images/s')
        if first_step:
            self.say(f"continuing after step {first_step:,} of {total_steps:,}")

    def stepped(self, report: StepReport) -> None:
        """Store the report of the step."""
        self.latest = report

    def epoch_ended(self, metrics: dict[str, Any]) -> None:
        """Print the line of the epoch."""
        left = [] if self.latest is None else [f"{duration(self.latest.seconds_left)} left"]
        self.say("  ".join([epoch_line(metrics, self.epochs), *left]))


def epoch_line(metrics: dict[str, Any], epochs: int) -> str:
    """Return losses and accuracies of an epoch, and its images per second, in at most 66 columns."""
    parts = [f"epoch {metrics['epoch']:>{len(str(epochs))}}/{epochs}"]
    for part, name in (("train", "loss"), ("val", "val")):
        if f"{part}_loss" in metrics:
            accuracy = metrics.get(f"{part}_accuracy")  # pre-training has none
            words = "" if accuracy is None else f" {percent(accuracy):>7}"
            parts.append(f"{name} {metrics[f'{part}_loss']:.4f}{words}")
    parts.append(f"{metrics['images_per_second']:,.0f}/s")
    return "  ".join(parts)


class LiveReporter:
    """Prints one line per epoch above a progress bar of the run and a small curve of the validation accuracy."""

    def __init__(self, console: Console) -> None:
        from rich import progress as bars
        from rich.live import Live
        from rich.text import Text

        self._encoding = console.encoding
        self._validation: list[float] = []
        self._curve = Text()
        self._bar = bars.Progress(
            bars.TextColumn("epoch [bold]{task.fields[epoch]}[/]/{task.fields[epochs]}"),
            bars.BarColumn(bar_width=None),
            bars.TextColumn("loss [bold]{task.fields[loss]}[/]"),
            bars.TextColumn("accuracy [bold green]{task.fields[accuracy]}[/]"),
            bars.TextColumn("[cyan]{task.fields[rate]}[/]/s"),
            bars.TextColumn("{task.fields[left]} left"),
            console=console,
            expand=True,
        )
        self._task = self._bar.add_task("", epoch=0, epochs=0, loss="-", accuracy="-", rate="-", left="-")
        self._console, self._epochs = console, 0
        self._live = Live(self._content(), console=console, refresh_per_second=8)

    def _content(self) -> Any:
        from rich.console import Group

        return Group(self._bar, self._curve) if self._curve.plain else self._bar

    def __enter__(self) -> LiveReporter:
        self._live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._live.stop()

    def started(self, run: RunFolder, model: Model, first_step: int, total_steps: int, steps_per_epoch: int) -> None:
        """Draw the bar, at the step at which a resumed run continues."""
        self._epochs = run.recipe.epochs
        epoch = min(first_step // steps_per_epoch + 1, self._epochs)
        self._bar.update(self._task, total=total_steps, completed=first_step, epoch=epoch, epochs=self._epochs)
        for metrics in run.metrics():
            self._add_to_curve(metrics)

    def stepped(self, report: StepReport) -> None:
        """Advance the bar."""
        self._bar.update(
            self._task,
            completed=report.step,
            epoch=report.epoch,
            loss=f"{report.loss:.3f}",
            accuracy="-" if report.accuracy is None else percent(report.accuracy),
            rate=f"{report.images_per_second:,.0f}",
            left=duration(report.seconds_left),
        )

    def epoch_ended(self, metrics: dict[str, Any]) -> None:
        """Print the line of the epoch above the bar, and extend the curve."""
        self._console.print(epoch_line(metrics, self._epochs), soft_wrap=True)
        self._add_to_curve(metrics)
        self._live.update(self._content())

    def _add_to_curve(self, metrics: dict[str, Any]) -> None:
        from rich.text import Text

        if "val_accuracy" in metrics:
            self._validation.append(metrics["val_accuracy"])
            curve = sparkline(self._validation, self._encoding)
            latest, best = percent(self._validation[-1]), percent(max(self._validation))
            self._curve = Text.assemble(
                "validation accuracy ", (latest, "bold green"), " ", (curve, "green"), (f"  best {best}", "dim")
            )


def sparkline(values: Sequence[float], encoding: str, width: int = 32) -> str:
    """Return values from 0 to 1 as at most `width` block characters, or "" if the encoding does not have them."""
    if not encoding.lower().startswith("utf"):
        return ""
    step = max(1.0, len(values) / width)
    chosen = [values[int(i * step)] for i in range(int(len(values) / step))]
    return "".join("▁▂▃▄▅▆▇█"[min(7, int(8 * value))] for value in chosen)
