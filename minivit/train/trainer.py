"""A training run: epochs of steps, checkpoints, evaluation, and how a run is resumed.

All randomness derives from the recipe's seed, the step and the indices of the images, so that a run that was killed
and resumed ends in the same bits as one that was not. On a device the host does not wait for each step: it reads the
metrics of several steps together, and makes a checkpoint only after such a read.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, Protocol

import numpy as np

from minivit import arrays
from minivit.arrays import Array, on_device_of
from minivit.data.dataset import Dataset
from minivit.engine import AnyEngine, Engine
from minivit.engine.device_step import DEVICE_BATCH
from minivit.errors import RunError, UserError
from minivit.nn.masked import MaskedModel
from minivit.nn.model import Model
from minivit.train.advice import nothing_learnt, unlikely_settings
from minivit.train.diagnostics import NonFinitePlace, NotFiniteError, not_finite_error, not_finite_on_test_error
from minivit.train.evaluation import Score
from minivit.train.initial import begun_model, options_with_head
from minivit.train.interrupt import Interrupt, Interrupted
from minivit.train.memory import explain_out_of_memory, image_bytes
from minivit.train.nan_dump import TRAINING, Batch, dump_in_words
from minivit.train.recipe import initial_model, model_config, normalised
from minivit.train.run_folder import RunFolder
from minivit.train.step import StepMetrics
from minivit.train.training import Training
from minivit.train.watch import Watch
from minivit.train.watch_options import WatchOptions
from minivit.weights.load import OpenedFile

MOST_ROLLBACKS = 5
_DRAWN = 8  # test images whose reconstructions are drawn


class StepReport(NamedTuple):
    """The data for a reporter after each step; loss and accuracy are means over the epoch so far."""

    epoch: int
    step: int
    loss: float
    accuracy: float | None  # None in pre-training
    learning_rate: float
    images_per_second: float
    seconds_left: float


class Reporter(Protocol):
    """Shows the progress of a run: a progress bar, plain lines, a notebook."""

    def started(self, run: RunFolder, model: Model, first_step: int, total_steps: int, steps_per_epoch: int) -> None:
        """Training begins after `first_step` steps."""

    def stepped(self, report: StepReport) -> None:
        """A step is done."""

    def epoch_ended(self, metrics: dict[str, Any]) -> None:
        """An epoch is done; `metrics` is its line in metrics.jsonl."""


class Trainer(Training):
    """Trains the model of a run's recipe on a data set.

    Parameters
    ----------
    run : RunFolder
        A new run folder, or one to resume.
    dataset : Dataset
        The images that the recipe names.
    threads : int, optional
        The number of workers; it changes the time and no bit of the result.
    backend : str
        "numpy", "cupy" or, for another device, such as "cupy:1". A run may be resumed with another one than before.
    precision : str, optional
        On a GPU "float32", "tf32", "bfloat16" or "float16"; see `minivit.arrays.precision`. Parameters stay float32.
    micro_batch : int, optional
        Images that a device takes at a time; by default the whole batch. On the host the recipe sets it.
    start : OpenedFile, optional
        For a recipe with `init`, the file that `begun_with` returned; a run that is resumed does not need it.
    watch : WatchOptions, optional
        What is recorded beside the metrics; by default what the run folder says. It changes no bit of the result.

    Raises
    ------
    UserError
        There is no such backend or precision here, or the images do not fit the recipe.
    OutOfMemoryError
        The device has too little memory for the model and the images.
    """

    engine: Engine
    model: Model

    def __init__(
        self,
        run: RunFolder,
        dataset: Dataset,
        threads: int | None = None,
        backend: str = "numpy",
        precision: str | None = None,
        micro_batch: int | None = None,
        start: OpenedFile | None = None,
        watch: WatchOptions | None = None,
    ) -> None:
        if start is not None:
            run = run.replaced(model_options=options_with_head(run.recipe, start, len(dataset.class_names)))
        config = model_config(run.recipe, dataset)
        dataset = normalised(dataset, run.recipe)
        self._library = arrays.backend(backend)
        on_host = self._library is np
        if on_host and micro_batch is not None:
            raise UserError("on the host the recipe sets the micro-batch; set micro_batch there")
        self.run, self.backend, self.precision = run, backend, precision
        self._learning_is_decided, self._has_start = False, start is not None
        self.fingerprint = dataset.fingerprint()
        self.bytes_per_image = 0
        with self._explain_out_of_memory("before the first step"):
            if start is None:
                model = initial_model(run.recipe, config, dataset, backend)
            else:
                model = begun_model(start, config, dataset.class_names, run.recipe.dtype, backend)
            recipe = run.recipe.resolved(model)
            self.run = run.replaced(micro_batch=recipe.micro_batch, reduction_groups=recipe.reduction_groups)
            self.micro_batch = recipe.micro_batch if on_host else micro_batch
            engine = Engine(model, threads, self.micro_batch, precision, recipe.reduction_groups)
            self.bytes_per_image = image_bytes(config, engine.dtype)
            super().__init__(engine, dataset, recipe)
            self.watch = Watch(self.run, dataset, self.train_step, watch or self.run.watch_options, self.total_steps)

    def fit(self, reporter: Reporter, resume: bool = False, checkpoint_seconds: float = 60.0) -> dict[str, Any]:
        """Train from the start, or from the last checkpoint, to the end.

        Parameters
        ----------
        reporter : Reporter
            Is called after every step and epoch.
        resume : bool
            Start from the last checkpoint; a finished run returns its result again.
        checkpoint_seconds : float
            Longest time between two checkpoints.

        Returns
        -------
        dict
            The content of result.json: `run`, `test_accuracy`, `seconds` of training, `images_per_second` and more.

        Raises
        ------
        Interrupted
            The user stopped the run; it is saved.
        RunError
            The loss is not finite, a file cannot be written, or a device has too little memory (`OutOfMemoryError`,
            which says what would fit); the last good checkpoint is kept.
        """
        if resume and (result := self.run.result()) is not None:
            return result
        values, explained = self.model.parameters.store.values, self._explain_out_of_memory("outside of a step")
        with self.run.locked(), Interrupt() as interrupt, on_device_of(values), self.engine, explained:
            self._begin(resume)
            reporter.started(self.run, self.model, self.state.step, self.total_steps, self.steps_per_epoch)
            with self.watch:
                self._train(reporter, interrupt, checkpoint_seconds)
            return self._finish()

    def _begin(self, resume: bool) -> None:
        if resume and self.run.has_state():
            self._resume()
        elif resume and self.run.metrics():
            raise UserError(f"{self.run.path} has lost last/training.safetensors; bring it back, or begin a new run")
        elif self.recipe.init and not self._has_start:
            raise UserError(f"{self.run.path} has no checkpoint yet; give its initial weights again (--init)")
        else:
            self._start(is_new=not resume)

    def _resume(self) -> None:
        """Set everything to the last checkpoint, and write the models that belong to it."""
        self._go_back()
        self._save_models()
        if self.recipe.on_nan != "rollback":
            self.run.remove_epoch_state()  # a later rollback must not return to one that is older than best/
        elif self.state.step % self.steps_per_epoch == 0 or not self.run.has_state(of_epoch=True):
            self._save_epoch()

    def _start(self, is_new: bool) -> None:
        """Write the first checkpoint; if that fails, a folder that `is_new` is removed."""
        for words in unlikely_settings(self.recipe, self.model.config, self.total_steps):
            warnings.warn(words, stacklevel=4)
        self.run.watch_options = self.watch.options
        self.run.begin(self.fingerprint)
        self.averaging.begin()
        try:
            self._checkpoint()
            self._save_epoch()
            self.watch.begin()
        except RunError:
            if is_new:
                self.run.withdraw()
            raise

    def _go_back(self, of_epoch: bool = False) -> None:
        """Set everything to the last checkpoint, or to that of the end of the last epoch."""
        self.state = self.run.load_state(self.model, self.optimizer, self.fingerprint, self.averaging, of_epoch)
        if self.state.step > self.total_steps:
            raise UserError(
                f"{self.run.path} has {self.state.step} steps already, more than the {self.total_steps} of "
                f"{self.recipe.epochs} epochs"
            )
        self.train_step.grad_scaler.load_state(self.state.scaling)
        metrics = self.run.metrics_until(self.state.step, self.steps_per_epoch)
        self.run.expect_models(self.state.step, self._best_step())
        self.run.watch_options = self.watch.options  # loading the state has read those in recipe.json
        self.run.go_on(self.state.step)
        self.run.write_metrics(metrics)
        self.watch.go_on(self.state.step, metrics)

    def _roll_back(self, error: NotFiniteError) -> None:
        """Go back to the end of the last epoch and halve the learning rate, or raise `error` if that is not asked for.

        The checkpoint of an epoch does not depend on the time, as the last one does: a run that is killed and resumed
        goes back to the same step.
        """
        before = self.state
        if self.recipe.on_nan != "rollback" or before.rollbacks == MOST_ROLLBACKS:
            raise error
        self._go_back(of_epoch=True)
        self.state.rollbacks, self.state.seconds = before.rollbacks + 1, before.seconds
        self._checkpoint()
        warnings.warn(
            f"training was not finite at step {error.step}: {error.words}. Rollback {self.state.rollbacks} of "
            f"{MOST_ROLLBACKS}: it goes on after step {self.state.step} at 1/{2**self.state.rollbacks} of the learning "
            "rate",
            stacklevel=2,
        )

    def _save_epoch(self) -> None:
        """Write the checkpoint to which `_roll_back` returns."""
        if self.recipe.on_nan == "rollback":
            state = self.state
            self.run.save_state(self.model, self.optimizer, state, self.fingerprint, self.averaging, of_epoch=True)

    def _best_step(self) -> int:
        return self.state.best_epoch * self.steps_per_epoch

    def _train(self, reporter: Reporter, interrupt: Interrupt, checkpoint_seconds: float) -> None:
        while self.state.step < self.total_steps:
            try:
                self._train_epoch(reporter, interrupt, checkpoint_seconds)
            except NotFiniteError as error:
                self._roll_back(error)

    def _train_epoch(self, reporter: Reporter, interrupt: Interrupt, checkpoint_seconds: float) -> None:
        """Train to the end of the present epoch."""
        state = self.state
        saved = time.monotonic()
        epoch, done = divmod(state.step, self.steps_per_epoch)
        for samples in self.batches(epoch, done):
            with self.watch.step(state.step + 1, samples) as is_recorded:
                self._step(samples)
                if is_recorded or self.train_step.metrics.full:
                    self._read_metrics(reporter)
            if state.step % self.steps_per_epoch == 0:
                self._read_metrics(reporter)
                reporter.epoch_ended(self._end_epoch(epoch + 1))
            elif interrupt.requested or time.monotonic() - saved >= checkpoint_seconds:
                self._read_metrics(reporter)
                self._checkpoint()
                saved = time.monotonic()
            if interrupt.requested and state.step < self.total_steps:
                raise Interrupted(state.step)

    def _step(self, samples: Array) -> None:
        """Take a step on the images with the indices `samples`; `_read_metrics` reads its metrics."""
        at_once = min(len(samples), self.micro_batch or len(samples))
        with self._explain_out_of_memory(f"at step {self.state.step + 1}", at_once):
            self.take_step(samples)

    def _read_metrics(self, reporter: Reporter) -> None:
        """Wait for the steps since the last call, add their metrics to the state, and report them."""
        for step in self.read_steps():
            self.watch.loss = step.loss
            reporter.stepped(self._report(step))

    def _report(self, step: StepMetrics) -> StepReport:
        state = self.state
        rate = state.epoch_images / state.epoch_seconds
        return StepReport(
            epoch=(step.number - 1) // self.steps_per_epoch + 1,
            step=step.number,
            loss=state.epoch_loss / state.epoch_images,
            accuracy=None if self.gives_losses else state.epoch_correct / state.epoch_images,
            learning_rate=step.lr,
            images_per_second=rate,
            seconds_left=(self.total_steps - step.number) / self.steps_per_epoch * len(self.train_index) / rate,
        )

    def _metrics(self, epoch: int) -> dict[str, Any]:
        metrics = super()._metrics(epoch) | {"backend": self.backend, "precision": self.precision or self.recipe.dtype}
        return metrics | ({"rollbacks": self.state.rollbacks} if self.state.rollbacks else {})

    def _end_epoch(self, epoch: int) -> dict[str, Any]:
        metrics = self.end_epoch(epoch)
        lines = [*self.run.metrics(), metrics]
        self.run.write_metrics(lines)
        self.watch.epoch_ended(metrics)
        self._expect_learning(lines)
        self._checkpoint()
        self._save_epoch()
        return metrics

    def _expect_learning(self, lines: list[dict[str, Any]]) -> None:
        """Warn once, at the end of an epoch, if a classifier has learnt nothing."""
        if not (self._learning_is_decided or self.gives_losses):
            labels, classes = self.dataset.train_labels, len(self.dataset.class_names)
            parts = labels[self.train_index], labels[self.validation_index]
            self._learning_is_decided, words = nothing_learnt(self.recipe, self.steps_per_epoch, lines, *parts, classes)
            if words:
                warnings.warn(words, stacklevel=2)

    def _evaluate(self, engine: AnyEngine, images: Array, labels: Array, part: str) -> Score:
        at_once = min(len(images), self.micro_batch or DEVICE_BATCH)
        with self._explain_out_of_memory(f"on the {part} images after step {self.state.step}", at_once):
            return super()._evaluate(engine, images, labels, part)

    def _not_finite(
        self,
        step: int,
        place: NonFinitePlace,
        engine: AnyEngine,
        batch: Callable[[], Batch | None],
        part: str = TRAINING,
    ) -> NotFiniteError:
        """Write the dump of the step (`minivit.train.nan_dump`), and return the error that stops the run."""
        assert isinstance(engine, Engine)
        step = self._best_step() if part == "test" else step
        study = dump_in_words(self.run, engine, self.dataset, step, place, batch, self.recipe.label_smoothing)
        if part == "test":
            return not_finite_on_test_error(step, place.words, study, self.run.path / "best", self.precision)
        return not_finite_error(step, place.words, study, self.run.path / "last", self.precision, self.state.rollbacks)

    def _explain_out_of_memory(self, when: str, at_once: int = 0) -> AbstractContextManager[None]:
        return explain_out_of_memory(self._library, self.bytes_per_image, at_once, when, self.run)

    def _checkpoint(self) -> None:
        self._expect_finite_parameters()
        self.state.scaling = self.train_step.grad_scaler.state() or self.state.scaling
        self.state.averaged = self.averaging.count
        self.run.save_state(self.model, self.optimizer, self.state, self.fingerprint, self.averaging)
        self._save_models()

    def _save_models(self) -> None:
        """Write last/, and best/ after the best epoch: the models that belong to the state that was just written."""
        step = self.state.step
        with self.averaging.applied():
            for which in ("last", "best") if step and step == self._best_step() else ("last",):
                self.run.save_model(which, self.model, self.dataset, step)

    def _finish(self) -> dict[str, Any]:
        from minivit.train.curves import draw_curves, only_a_figure
        from minivit.train.reconstructions import draw_reconstructions

        state, dataset = self.state, self.dataset
        best = self.run.load_model("best", self.recipe.dtype, self.backend)
        with Engine(best, self.engine.threads, self.micro_batch, precision=self.precision) as engine:
            test = self._evaluate(engine, dataset.test_images, dataset.test_labels, "test")
        result = {
            "run": str(self.run.path),
            "test_accuracy": test.accuracy,
            "test_loss": test.loss,
            "test_images": test.images,
            "best_epoch": state.best_epoch,
            "best_val_accuracy": state.best_accuracy if state.best_accuracy >= 0 else None,
            "seconds": state.seconds,
            "images_per_second": len(self.train_index) * self.recipe.epochs / max(state.seconds, 1e-9),
            "epochs": self.recipe.epochs,
        }
        if isinstance(best, MaskedModel):
            result["best_val_loss"] = state.best_loss
            picture = self.run.reconstructions
            with only_a_figure(picture.name):
                spread = slice(None, None, max(1, len(dataset.test_images) // _DRAWN))  # a folder has class after class
                some = dataset.test_images[spread][:_DRAWN]
                draw_reconstructions(best, some, dataset.mean, dataset.std, picture)
        self.run.write_result(result)
        return {**result, "curves": draw_curves(self.run)}
