"""The training loop: epochs of steps, a checkpoint now and then, the test set once at the end.

All randomness derives from the recipe's seed, the step and the images' numbers, so a run that was killed and resumed
ends in the same bits as one that was not.
"""

from __future__ import annotations

import math
import time
from dataclasses import replace
from typing import Any, NoReturn

from minivit.arrays import Array
from minivit.config import ViTConfig
from minivit.data.augment import augment, normalize
from minivit.data.batches import batches, epoch_order
from minivit.data.dataset import Dataset, split_validation
from minivit.engine import Engine
from minivit.errors import RunError, UserError
from minivit.files import locked
from minivit.inspect.trace import first_non_finite, first_non_finite_parameter
from minivit.keys import Key
from minivit.presets import get_config
from minivit.runs import Progress, Run
from minivit.train.evaluate import Evaluation, evaluate
from minivit.train.interrupt import Interrupt
from minivit.train.optim import SGD, Adam, AdamW, Optimizer, clip_gradients
from minivit.train.recipe import Recipe
from minivit.train.reporter import Reporter, StepReport
from minivit.train.schedules import learning_rate
from minivit.vit import ViT


class Interrupted(Exception):  # noqa: N818 - it reports no error
    """The user stopped the run; it was saved and can be resumed."""

    def __init__(self, step: int) -> None:
        super().__init__(f"stopped after step {step}")
        self.step = step


def model_config(recipe: Recipe, dataset: Dataset) -> ViTConfig:
    """Return the recipe's model with the data set's image size, channels and classes.

    Raises
    ------
    UserError
        There is no such model, or the recipe asks for one that the images do not fit.
    """
    _, height, width, channels = dataset.train_images.shape
    fitting = {"img_size": (height, width), "in_chans": channels, "num_classes": len(dataset.class_names)}
    config = get_config(recipe.model, **{**fitting, **recipe.model_options})
    for name, value in fitting.items():
        if getattr(config, name) != value:
            asked = getattr(config, name)
            raise UserError(f"{name} {asked} was asked for, but {dataset.name} has {value}; leave it out")
    return config


def make_optimizer(recipe: Recipe, model: ViT) -> Optimizer:
    """Return the recipe's optimiser for `model`."""
    if recipe.optimizer == "sgd":
        return SGD(model, recipe.lr, recipe.momentum, recipe.weight_decay)
    kind = AdamW if recipe.optimizer == "adamw" else Adam
    return kind(model, recipe.lr, recipe.betas, weight_decay=recipe.weight_decay)


class Trainer:
    """One run: its data, model, optimiser and place."""

    def __init__(self, run: Run, dataset: Dataset, threads: int | None = None) -> None:
        config = model_config(run.recipe, dataset)
        recipe = replace(run.recipe, micro_batch=run.recipe.micro_batch or config.micro_batch)
        if recipe.crop_padding >= min(config.height, config.width):
            raise UserError(
                f"crop_padding {recipe.crop_padding} could shift images of {config.height} x {config.width} away"
            )
        self.run, self.dataset, self.recipe = Run(run.path, recipe), dataset, recipe
        self.model = ViT(config, seed=recipe.seed, dtype=recipe.dtype)
        self.optimizer = make_optimizer(recipe, self.model)
        self.engine = Engine(self.model, threads, recipe.micro_batch)
        self.train_index, self.validation_index = split_validation(dataset, recipe.validation, recipe.seed)
        self.steps_per_epoch = -(-len(self.train_index) // recipe.batch_size)
        self.total_steps = self.steps_per_epoch * recipe.epochs
        self.progress = Progress()
        self.fingerprint = dataset.fingerprint()

    def fit(self, reporter: Reporter, resume: bool, checkpoint_seconds: float) -> dict[str, Any]:
        """Train from the start, or from the last checkpoint, to the end; return the result."""
        if resume and (result := self.run.result()) is not None:
            return result
        with locked(self.run.path), Interrupt() as interrupt, self.engine:
            self._begin(resume)
            reporter.started(self.run, self.model, self.progress.step, self.total_steps, self.steps_per_epoch)
            self._train(reporter, interrupt, checkpoint_seconds)
            return self._finish()

    def _begin(self, resume: bool) -> None:
        if resume and self.run.has_state():
            self.progress = self.run.load_state(self.model, self.optimizer, self.fingerprint)
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
            order = self.train_index[epoch_order(len(self.train_index), recipe.seed, epoch)]
            for samples in list(batches(order, recipe.batch_size))[done:]:
                reporter.stepped(self._step(samples))
                if progress.step % self.steps_per_epoch == 0:
                    reporter.epoch_ended(self._end_epoch(epoch + 1))
                    saved = time.monotonic()
                elif interrupt.asked or time.monotonic() - saved >= checkpoint_seconds:
                    self._checkpoint()
                    saved = time.monotonic()
                if interrupt.asked and progress.step < self.total_steps:
                    raise Interrupted(progress.step)

    def _step(self, samples: Array) -> StepReport:
        progress, recipe, dataset = self.progress, self.recipe, self.dataset
        begun = time.perf_counter()
        key = Key(recipe.seed, progress.step, samples)
        pixels = augment(dataset.train_images[samples], key, crop_padding=recipe.crop_padding, flip=recipe.flip)
        images = normalize(pixels, dataset.mean, dataset.std, recipe.dtype)
        labels = dataset.train_labels[samples]
        loss, logits = self.engine.training_step(images, labels, key, recipe.label_smoothing)
        norm = clip_gradients(self.model.parameters.store, recipe.clip_norm or None)
        if not (math.isfinite(loss) and math.isfinite(norm)):
            self._stop_not_finite(progress.step + 1, first_non_finite(self.model, images, key))
        warmup_steps = round(recipe.warmup_epochs * self.steps_per_epoch)
        self.optimizer.lr = learning_rate(progress.step, self.total_steps, recipe.lr, warmup_steps, recipe.schedule)
        self.optimizer.step()
        seconds = time.perf_counter() - begun
        progress.step += 1
        progress.seconds += seconds
        progress.epoch_seconds += seconds
        progress.epoch_images += len(samples)
        progress.epoch_loss += float(loss) * len(samples)
        progress.epoch_correct += int((logits.argmax(axis=1) == labels).sum())
        rate = progress.epoch_images / progress.epoch_seconds
        return StepReport(
            epoch=(progress.step - 1) // self.steps_per_epoch + 1,
            step=progress.step,
            loss=progress.epoch_loss / progress.epoch_images,
            accuracy=progress.epoch_correct / progress.epoch_images,
            learning_rate=self.optimizer.lr,
            images_per_second=rate,
            seconds_left=(self.total_steps - progress.step) * recipe.batch_size / rate,
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
        measured = evaluate(engine, images, labels, mean, std)
        if not math.isfinite(measured.loss):
            where = first_non_finite(engine.model, normalize(images, mean, std, self.recipe.dtype), None)
            self._stop_not_finite(self.progress.step, f"on the {part} images after it, {where}")
        return measured

    def _stop_not_finite(self, step: int, where: str) -> NoReturn:
        raise RunError(
            f"training is not finite at step {step}: {where}. The last good checkpoint is in "
            f"{self.run.path / 'last'}; a smaller --lr often helps"
        )

    def _checkpoint(self) -> None:
        self._expect_finite_parameters()
        self.run.save_model("last", self.model, self.dataset)
        self.run.save_state(self.model, self.optimizer, self.progress, self.fingerprint)

    def _finish(self) -> dict[str, Any]:
        from minivit.inspect.figures import save_curves
        from minivit.weights import load_model

        dataset, progress = self.dataset, self.progress
        best = load_model(self.run.path / "best", dtype=self.recipe.dtype)
        with Engine(best, self.engine.threads, self.recipe.micro_batch) as engine:
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

    Returns
    -------
    dict
        What result.json holds: `run`, `test_accuracy`, `seconds` of training, `images_per_second` and more.

    Raises
    ------
    Interrupted
        The user asked to stop; the run is saved.
    RunError
        The loss is not finite, or a file cannot be written; the last good checkpoint is kept.
    """
    return Trainer(run, dataset, threads).fit(reporter, resume, checkpoint_seconds)
