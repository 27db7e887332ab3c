"""Reporters of a training run: a line for each epoch in a pipe, a live bar on a terminal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

    from minivit.nn.vit import ViT
    from minivit.train.run_folder import RunFolder
    from minivit.train.trainer import StepReport


def duration(seconds: float) -> str:
    """Return seconds as h:mm:ss."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


def percent(share: float) -> str:
    """Return a share of 1 in percent."""
    return f"{100.0 * share:.1f} %"


class LineReporter:
    """A line for each epoch."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.say = say
        self.epochs = 0
        self.latest: StepReport | None = None

    def started(self, run: RunFolder, model: ViT, first_step: int, total_steps: int, steps_per_epoch: int) -> None:
        """Remember how many epochs there are; say where a resumed run goes on."""
        self.epochs = run.recipe.epochs
        if first_step:
            self.say(f"going on after step {first_step:,} of {total_steps:,}")

    def stepped(self, report: StepReport) -> None:
        """Remember the step."""
        self.latest = report

    def epoch_ended(self, metrics: dict[str, Any]) -> None:
        """Print the epoch's line."""
        parts = [f"epoch {metrics['epoch']:>{len(str(self.epochs))}}/{self.epochs}"]
        for part, name in (("train", ""), ("val", "validation ")):
            if f"{part}_loss" in metrics:
                accuracy = percent(metrics[f"{part}_accuracy"])
                parts.append(f"{name}loss {metrics[f'{part}_loss']:.4f}  accuracy {accuracy:>7}")
        parts.append(f"{metrics['images_per_second']:,.0f} images/s")
        if self.latest is not None:
            parts.append(f"{duration(self.latest.seconds_left)} left")
        self.say("  ".join(parts))


class LiveReporter:
    """A bar over the whole run, and the accuracy of the epochs as a small curve."""

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
            bars.TextColumn("[cyan]{task.fields[rate]}[/] images/s"),
            bars.TextColumn("{task.fields[left]} left"),
            console=console,
            expand=True,
        )
        self._task = self._bar.add_task("", epoch=0, epochs=0, loss="-", accuracy="-", rate="-", left="-")
        self._live = Live(self._picture(), console=console, refresh_per_second=8)

    def _picture(self) -> Any:
        from rich.console import Group

        return Group(self._bar, self._curve) if self._curve.plain else self._bar

    def __enter__(self) -> LiveReporter:
        self._live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._live.stop()

    def started(self, run: RunFolder, model: ViT, first_step: int, total_steps: int, steps_per_epoch: int) -> None:
        """Draw the bar, from where a resumed run goes on."""
        epoch = first_step // steps_per_epoch + 1
        self._bar.update(self._task, total=total_steps, completed=first_step, epoch=epoch, epochs=run.recipe.epochs)
        for metrics in run.metrics():
            self._follow(metrics)

    def stepped(self, report: StepReport) -> None:
        """Move the bar."""
        self._bar.update(
            self._task,
            completed=report.step,
            epoch=report.epoch,
            loss=f"{report.loss:.3f}",
            accuracy=percent(report.accuracy),
            rate=f"{report.images_per_second:,.0f}",
            left=duration(report.seconds_left),
        )

    def epoch_ended(self, metrics: dict[str, Any]) -> None:
        """Lengthen the curve."""
        self._follow(metrics)
        self._live.update(self._picture())

    def _follow(self, metrics: dict[str, Any]) -> None:
        from rich.text import Text

        if "val_accuracy" in metrics:
            self._validation.append(metrics["val_accuracy"])
            curve = sparkline(self._validation, self._encoding)
            latest, best = percent(self._validation[-1]), percent(max(self._validation))
            self._curve = Text.assemble(
                "validation accuracy ", (latest, "bold green"), " ", (curve, "green"), (f"  best {best}", "dim")
            )


def sparkline(values: Sequence[float], encoding: str, width: int = 40) -> str:
    """Return values from 0 to 1 as a row of at most `width` blocks, or nothing where the encoding has none."""
    if not encoding.lower().startswith("utf"):
        return ""
    step = max(1.0, len(values) / width)
    chosen = [values[int(i * step)] for i in range(int(len(values) / step))]
    return "".join("▁▂▃▄▅▆▇█"[min(7, int(8 * value))] for value in chosen)
