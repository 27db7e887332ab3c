"""Recording a run: the weights of some steps, statistics by layer, and warnings in words.

    steps/          the weights of every N-th step (`WatchOptions.keep_every`)
    watch.jsonl     statistics of every N-th step (`WatchOptions.every`): see `minivit.train.layer_statistics`
    tensorboard/    metrics and statistics, for TensorBoard

A recorded step waits for the device, and no other step does. Nothing that is recorded changes a bit of the run: the
parameters are read, and activations are those of a trace. After a kill, what was recorded after the checkpoint is
removed, and recorded again. A symptom is warned of once in a run; the lines have the keys of those that were.
"""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self

from minivit.arrays import Array, on_device_of, to_host
from minivit.data.dataset import Dataset
from minivit.errors import UserError
from minivit.files import append_text, atomic_write, remove_leftovers
from minivit.nn.model import Model
from minivit.train.layer_statistics import activation_statistics, parameter_statistics, total
from minivit.train.records import lines_of
from minivit.train.run_folder import RunFolder
from minivit.train.step import TrainStep
from minivit.train.symptoms import Watched, symptoms
from minivit.train.tensorboard import TensorBoard
from minivit.train.watch_options import WatchOptions

_IMAGES = 2  # of a batch, for the statistics of activations: their tokens are many, and a trace takes time
_HISTORY = 8  # lines that `symptoms` compares


class Watch:
    """Records what `options` ask for, into the folder of a run.

    Parameters
    ----------
    run : RunFolder
        Where it is recorded.
    dataset : Dataset
        Gives the kept weights their class names, mean and deviation.
    train_step : TrainStep
        The training step, with the model, the optimiser and the images.
    options : WatchOptions
        What is recorded.
    total_steps : int
        The steps of the run.

    Attributes
    ----------
    loss : float
        The loss of the last step whose metrics were read.
    """

    def __init__(
        self, run: RunFolder, dataset: Dataset, train_step: TrainStep, options: WatchOptions, total_steps: int
    ) -> None:
        self.options, self.loss = options, 0.0
        self._run, self._dataset, self._train_step, self._total_steps = run, dataset, train_step, total_steps
        assert isinstance(train_step.engine.model, Model)  # as all models of run folders
        self._model = train_step.engine.model
        self._tensorboard = TensorBoard(run.path / "tensorboard") if options.tensorboard else None
        self._lines: list[dict[str, Any]] = []  # the last ones of watch.jsonl
        self._checksum, self._said = "", set[str]()

    def __enter__(self) -> Self:
        """Return the object."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Complete the files of TensorBoard."""
        if self._tensorboard:
            self._tensorboard.close()

    def begin(self) -> None:
        """Begin the records of a new run."""
        if self._tensorboard:
            self._tensorboard.begin([], [])
        if self.options.keeps(0, self._total_steps):
            self._run.keep_step(self._model, self._dataset, 0)

    def go_on(self, step: int, metrics: list[dict[str, Any]]) -> None:
        """Go on from the checkpoint of `step`: remove what was recorded later. `metrics` are those before it."""
        kept: dict[int, Path] = {}
        with suppress(UserError):  # no step was kept
            kept = self._run.kept_steps()
        for number, folder in kept.items():
            remove_leftovers(folder)
            if number > step:
                shutil.rmtree(folder, ignore_errors=True)
        if step not in kept and self.options.keeps(step, self._total_steps):
            self._run.keep_step(self._model, self._dataset, step)
        lines = [line for line in self._run.watched() if line["step"] <= step]
        if (path := self._run.path / "watch.jsonl").exists():
            text, self._checksum = lines_of(lines)
            atomic_write(path, lambda file: file.write(text.encode()))
        self._lines = lines[-_HISTORY:]
        self._said = {key for line in lines for key in line.get("symptoms", ())}
        if self._tensorboard:
            self._tensorboard.begin(metrics, lines)

    @contextmanager
    def step(self, number: int, samples: Array) -> Iterator[bool]:
        """Record step `number`, from 1, which is taken in the block on the images with the indices `samples`.

        Yields whether the step is recorded; if so, its metrics must be read in the block.
        """
        watches, keeps = self.options.watches(number), self.options.keeps(number, self._total_steps)
        before: Array | None = None
        scale = 1.0
        if watches:
            values = self._model.parameters.store.values
            with on_device_of(values):
                before = values.copy()
            if (loss_scale := self._train_step.grad_scaler.loss_scale) is not None:
                scale = float(to_host(loss_scale))
        yield watches or keeps
        if before is not None:
            parameters = parameter_statistics(self._model, before, scale)
            del before
            self._log(number, samples, parameters)
        if keeps:
            self._run.keep_step(self._model, self._dataset, number)

    def _log(self, number: int, samples: Array, parameters: dict[str, dict[str, float | None]]) -> None:
        """Write the line of a step, and warn of what it shows."""
        engine, optimizer = self._train_step.engine, self._train_step.optimizer
        values = self._model.parameters.store.values
        some = min(_IMAGES, engine.micro_batch or _IMAGES)
        images, _, _ = self._train_step.data_loader.batch(samples, number - 1, values.dtype)
        line: dict[str, Any] = {
            "step": number,
            "loss": self.loss,
            "learning_rate": optimizer.lr,
            "gradient_norm": total(parameters.values(), "gradient"),
            "parameters": parameters,
            "activations": activation_statistics(self._model, images[:some]),
        }
        self._lines = [*self._lines[1 - _HISTORY :], line]
        groups = [group.name for group in optimizer.groups if group.lr]
        watched = Watched(self._model, groups, self._run.recipe, engine.dtype)
        found = {key: words for key, words in symptoms(self._lines, watched).items() if key not in self._said}
        self._said.update(found)
        line["warnings"], line["symptoms"] = list(found.values()), list(found)
        text, self._checksum = lines_of([line], self._checksum)
        append_text(self._run.path / "watch.jsonl", text)
        if self._tensorboard:
            self._tensorboard.add_step(line)
        for words in found.values():
            warnings.warn(words, UserWarning, stacklevel=2)

    def epoch_ended(self, metrics: Mapping[str, Any]) -> None:
        """Record the metrics of an epoch."""
        if self._tensorboard:
            self._tensorboard.add_epoch(metrics)
