"""The training loop: epochs of steps, a checkpoint now and then, the test set once at the end.

All randomness derives from the recipe's seed, the step and the images' numbers, so a run that was killed and resumed
ends in the same bits as one that was not. On a device the host runs ahead: it reads what steps came to every so often,
and a guard on the device sees to it that nothing is updated from the first loss on that is not finite.
"""

from __future__ import annotations

import math
import time
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any, NoReturn

import numpy as np

from minivit import arrays
from minivit.arrays import Array, on_device_of, to_backend
from minivit.data.augment import normalize
from minivit.data.batches import batches
from minivit.data.dataset import Dataset, split_validation
from minivit.engine import Engine
from minivit.errors import RunError, UserError
from minivit.files import locked
from minivit.inspect.trace import first_non_finite, first_non_finite_parameter
from minivit.runs import Progress, Run
from minivit.train.evaluate import EVALUATION_BATCH, Evaluation, evaluate
from minivit.train.feed import Feed
from minivit.train.interrupt import Interrupt
from minivit.train.memory import image_bytes, room
from minivit.train.reporter import Reporter, StepReport
from minivit.train.schedules import learning_rate
from minivit.train.setup import make_optimizer, model_config
from minivit.train.steps import Steps
from minivit.vit import ViT


class Interrupted(Exception):  # noqa: N818 - it reports no error
    """The user stopped the run; it was saved and can be resumed."""

    def __init__(self, step: int) -> None:
        super().__init__(f"stopped after step {step}")
        self.step = step


class Trainer:
    """One run: its data, model, optimiser and place.

    Parameters
    ----------
    run, dataset, threads, backend, precision, micro_batch
        See `train`.
    """

    def __init__(
        self,
        run: Run,
        dataset: Dataset,
        threads: int | None = None,
        backend: str = "numpy",
        precision: str | None = None,
        micro_batch: int | None = None,
    ) -> None:
        config = model_config(run.recipe, dataset)
        recipe = replace(run.recipe, micro_batch=run.recipe.micro_batch or config.micro_batch)
        if recipe.crop_padding >= min(config.height, config.width):
            raise UserError(
                f"crop_padding {recipe.crop_padding} could shift images of {config.height} x {config.width} away"
            )
        self._library = arrays.backend(backend)
        on_host = self._library is np
        if on_host and micro_batch is not None:
            raise UserError("on the host the micro-batch is the recipe's: set it there")
        self.run, self.dataset, self.recipe = Run(run.path, recipe), dataset, recipe
        self.backend, self.precision = backend, precision
        self.micro_batch = recipe.micro_batch if on_host else micro_batch
        self.train_index, self.validation_index = split_validation(dataset, recipe.validation, recipe.seed)
        self.steps_per_epoch = -(-len(self.train_index) // recipe.batch_size)
        self.total_steps = self.steps_per_epoch * recipe.epochs
        self.progress = Progress()
        self.fingerprint = dataset.fingerprint()
        self.bytes_per_image = 0
        with self._room("before the first step", 0):
            self.model = ViT(config, seed=recipe.seed, dtype=recipe.dtype, backend=backend)
            self.optimizer = make_optimizer(recipe, self.model)
            self.engine = Engine(self.model, threads, self.micro_batch, precision=precision)
            self.bytes_per_image = image_bytes(config, self.engine.dtype)
            self.feed = Feed(dataset, self.train_index, recipe, self._library)
            self.steps = Steps(self.engine, self.optimizer, self.feed, recipe, precision == "float16", on_host)

    def fit(self, reporter: Reporter, resume: bool, checkpoint_seconds: float) -> dict[str, Any]:
        """Train from the start, or from the last checkpoint, to the end; return the result."""
        if resume and (result := self.run.result()) is not None:
            return result
        values = self.model.parameters.store.peek()
        with locked(self.run.path), Interrupt() as interrupt, on_device_of(values), self.engine:
            self._begin(resume)
            reporter.started(self.run, self.model, self.progress.step, self.total_steps, self.steps_per_epoch)
            self._train(reporter, interrupt, checkpoint_seconds)
            return self._finish()

    def _begin(self, resume: bool) -> None:
        if resume and self.run.has_state():
            self.progress = self.run.load_state(self.model, self.optimizer, self.fingerprint)
            self.steps.guard.go_on_with(self.progress.scaling)
            done = [m for m in self.run.metrics() if m["step"] <= self.progress.step]
            if [m["epoch"] for m in done] != list(range(1, self.progress.step // self.steps_per_epoch + 1)):
                raise UserError(
                    f"{self.run.path / 'metrics.jsonl'} does not have a line for each epoch before step "
                    f"{self.progress.step}; bring the file back, or begin a new run"
                )
            self.run.write_metrics(done)
        elif resume and self.run.metrics():
            raise UserError(f"{self.run.path} has lost last/training.safetensors; bring it back, or begin a new run")
        else:
            self._checkpoint()

    def _train(self, reporter: Reporter, interrupt: Interrupt, checkpoint_seconds: float) -> None:
        progress, recipe = self.progress, self.recipe
        saved = time.monotonic()
        while progress.step < self.total_steps:
            epoch, done = divmod(progress.step, self.steps_per_epoch)
            for samples in list(batches(self.feed.order(epoch), recipe.batch_size))[done:]:
                self._step(samples)
                if self.steps.full:
                    self._hear(reporter)
                if progress.step % self.steps_per_epoch == 0:
                    self._hear(reporter)
                    reporter.epoch_ended(self._end_epoch(epoch + 1))
                    saved = time.monotonic()
                elif interrupt.asked or time.monotonic() - saved >= checkpoint_seconds:
                    self._hear(reporter)
                    self._checkpoint()
                    saved = time.monotonic()
                if interrupt.asked and progress.step < self.total_steps:
                    raise Interrupted(progress.step)

    def _step(self, samples: Array) -> None:
        """Do a step on the images numbered `samples`; `_hear` tells what came of it."""
        progress, recipe = self.progress, self.recipe
        warmup_steps = round(recipe.warmup_epochs * self.steps_per_epoch)
        lr = learning_rate(progress.step, self.total_steps, recipe.lr, warmup_steps, recipe.schedule)
        with self._room(f"at step {progress.step + 1}", len(samples)):
            self.steps.do(progress.step + 1, samples, lr)
        progress.step += 1

    def _hear(self, reporter: Reporter) -> None:
        """Wait for the steps that are under way, and tell what they came to."""
        progress = self.progress
        for step in self.steps.heard():
            if step.stopped:
                self._stop_not_finite(step.number, self.steps.where_not_finite(step))
            progress.add(len(step.samples), step.loss, step.correct, step.seconds)
            rate = progress.epoch_images / progress.epoch_seconds
            reporter.stepped(
                StepReport(
                    epoch=(step.number - 1) // self.steps_per_epoch + 1,
                    step=step.number,
                    loss=progress.epoch_loss / progress.epoch_images,
                    accuracy=progress.epoch_correct / progress.epoch_images,
                    learning_rate=step.lr,
                    images_per_second=rate,
                    seconds_left=(self.total_steps - step.number) * self.recipe.batch_size / rate,
                )
            )

    def _end_epoch(self, epoch: int) -> dict[str, Any]:
        progress, dataset = self.progress, self.dataset
        metrics: dict[str, Any] = {
            "epoch": epoch,
            "step": progress.step,
            "learning_rate": self.optimizer.lr,
            "train_loss": progress.epoch_loss / progress.epoch_images,
            "train_accuracy": progress.epoch_correct / progress.epoch_images,
            "images_per_second": progress.epoch_images / progress.epoch_seconds,
            "seconds": progress.seconds,
            "backend": self.backend,
            "precision": self.precision or self.recipe.dtype,
        }
        self._expect_finite_parameters()
        accuracy = progress.best_accuracy  # without a validation part every epoch is the best so far
        if len(self.validation_index):
            held_out = dataset.train_images[self.validation_index], dataset.train_labels[self.validation_index]
            measured = self._evaluate(self.engine, *held_out, "validation")
            metrics |= {"val_loss": measured.loss, "val_accuracy": measured.accuracy}
            accuracy = measured.accuracy
        if accuracy >= progress.best_accuracy:
            progress.best_accuracy, progress.best_epoch = accuracy, epoch
            self.run.save_model("best", self.model, dataset)
        self.run.write_metrics([*self.run.metrics(), metrics])
        progress.epoch_loss = progress.epoch_seconds = 0.0
        progress.epoch_correct = progress.epoch_images = 0
        self._checkpoint()
        return metrics

    def _expect_finite_parameters(self) -> None:
        if (name := first_non_finite_parameter(self.model)) is not None:
            self._stop_not_finite(self.progress.step, f"the parameter {name} holds NaN or infinity after it")

    def _evaluate(self, engine: Engine, images: Array, labels: Array, part: str) -> Evaluation:
        mean, std = self.dataset.mean, self.dataset.std
        with self._room(f"on the {part} images after step {self.progress.step}", min(len(images), EVALUATION_BATCH)):
            measured = evaluate(engine, images, labels, mean, std)
        if not math.isfinite(measured.loss):
            there = normalize(to_backend(images, self._library), mean, std, self.recipe.dtype)
            where = first_non_finite(engine.model, there, None)
            self._stop_not_finite(self.progress.step, f"on the {part} images after it, {where}")
        return measured

    def _stop_not_finite(self, step: int, where: str) -> NoReturn:
        raise RunError(
            f"training is not finite at step {step}: {where}. The last good checkpoint is in "
            f"{self.run.path / 'last'}; a smaller --lr often helps"
        )

    def _room(self, when: str, images: int) -> AbstractContextManager[None]:
        """Return a context in which a device that runs out of memory for `images` says what would help."""
        tried = min(images, self.micro_batch or images)
        return room(self._library, self.bytes_per_image, tried, when, self.run.path / "last")

    def _checkpoint(self) -> None:
        self._expect_finite_parameters()
        self.progress.scaling = self.steps.guard.scaling() or self.progress.scaling
        self.run.save_model("last", self.model, self.dataset)
        self.run.save_state(self.model, self.optimizer, self.progress, self.fingerprint)

    def _finish(self) -> dict[str, Any]:
        from minivit.inspect.figures import save_curves
        from minivit.weights import load_model

        dataset, progress = self.dataset, self.progress
        best = load_model(self.run.path / "best", dtype=self.recipe.dtype, backend=self.backend)
        with Engine(best, self.engine.threads, self.micro_batch, precision=self.precision) as engine:
            measured = self._evaluate(engine, dataset.test_images, dataset.test_labels, "test")
        result = {
            "run": str(self.run.path),
            "test_accuracy": measured.accuracy,
            "test_loss": measured.loss,
            "test_images": measured.images,
            "best_epoch": progress.best_epoch,
            "best_val_accuracy": progress.best_accuracy if len(self.validation_index) else None,
            "seconds": progress.seconds,
            "images_per_second": len(self.train_index) * self.recipe.epochs / progress.seconds,
        }
        result["curves"] = save_curves(self.run.metrics(), self.run.path / "curves.png")
        self.run.write_result(result)
        return result


def train(
    run: Run,
    dataset: Dataset,
    reporter: Reporter,
    *,
    resume: bool = False,
    threads: int | None = None,
    checkpoint_seconds: float = 60.0,
    backend: str = "numpy",
    precision: str | None = None,
    micro_batch: int | None = None,
) -> dict[str, Any]:
    """Train the model of a run's recipe on a data set.

    Parameters
    ----------
    run : Run
        A new run folder, or one to go on with.
    dataset : Dataset
        The images that the recipe names.
    reporter : Reporter
        Is told of every step and epoch.
    resume : bool
        Go on from the last checkpoint; a finished run returns its result again.
    threads : int, optional
        Worker threads; they change the time and no bit of the result.
    checkpoint_seconds : float
        Longest time between two checkpoints.
    backend : str
        "numpy", "cupy" or, for another device, such as "cupy:1". A run may go on with another one than before.
    precision : str, optional
        On a GPU "float32", "tf32", "bfloat16" or "float16"; see `minivit.precision`. Parameters stay float32.
    micro_batch : int, optional
        Images that a device takes at a time; by default the whole batch. On the host the recipe says it.

    Returns
    -------
    dict
        What result.json holds: `run`, `test_accuracy`, `seconds` of training, `images_per_second` and more.

    Raises
    ------
    Interrupted
        The user asked to stop; the run is saved.
    RunError
        The loss is not finite, a file cannot be written, or a device has too little memory (`OutOfMemoryError`, which
        says what would fit); the last good checkpoint is kept.
    UserError
        There is no such backend or precision here.
    """
    return Trainer(run, dataset, threads, backend, precision, micro_batch).fit(reporter, resume, checkpoint_seconds)
