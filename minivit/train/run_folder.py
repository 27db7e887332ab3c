"""The run folder: everything that a training run writes and reads.

    recipe.json             the recipe
    best/  last/            model.safetensors and config.json: after the best epoch, and at the last checkpoint
    best/masked.safetensors     the whole model of a run of pre-training (also in last/), whose encoder is the model
    last/training.safetensors   the state for a resumed run: parameters, the optimiser's vectors, the other state
    last/epoch.safetensors  the same at the end of the last epoch, with --on-nan rollback
    metrics.jsonl           a line for each epoch; metrics.csv has the same for other programs
    steps/step-000100/      model.safetensors and config.json: the weights after a step, with --keep-every
    watch.jsonl             statistics by layer of some steps, with --watch
    tensorboard/            metrics and statistics for TensorBoard, with --tensorboard
    nan/                    the batch, the weights and a trace of the last NaN; see `minivit.train.nan_dump`
    result.json             the result; it is written when the run is finished
    curves.png              loss and accuracy by epoch
    reconstructions.png     what a masked model predicts, after a run of pre-training

Every file except watch.jsonl and those in tensorboard/ is written under a temporary name, synced and renamed, so that a
killed run leaves whole files. Those two are appended to; a last line of watch.jsonl that was cut is ignored. The JSON
and safetensors files carry checksums, and model files also the id of the run and their step. The state is written
before the models that belong to it: if a kill comes between, the models are written again from the state.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from minivit.data.dataset import Dataset
from minivit.errors import UserError
from minivit.files import (
    expect_checksum,
    locked,
    make_folder,
    read_json,
    remove_leftovers,
    with_checksum,
    write_json,
)
from minivit.nn.masked import MaskedModel
from minivit.nn.model import Model
from minivit.nn.vit import ViT
from minivit.train.averaging import Averaging
from minivit.train.checkpoint import load_checkpoint, save_checkpoint
from minivit.train.optimizers import Optimizer
from minivit.train.recipe import Recipe
from minivit.train.records import read_metrics, read_result, read_watched, write_metrics
from minivit.train.state import TrainState
from minivit.train.watch_options import WatchOptions
from minivit.weights import (
    load_masked_model,
    load_model,
    model_metadata,
    read_tensors,
    save_masked_model,
    save_model,
)
from minivit.weights.masked import MASKED

_ORIGIN = ("id", "data", "extended", "watch")


class RunFolder:
    """The folder of a training run; `create` and `open` return one.

    Parameters
    ----------
    path : Path
        The folder.
    recipe : Recipe
        The recipe of the run.
    """

    def __init__(self, path: Path, recipe: Recipe, origin: Mapping[str, Any] | None = None) -> None:
        self.path = path
        self.recipe = recipe
        # id, data: the fingerprint of the images, extended: earlier numbers of epochs, watch: WatchOptions
        self.origin = dict(origin or {})
        self._is_locked = False

    @classmethod
    def create(cls, path: Path, recipe: Recipe) -> RunFolder:
        """Make a new run folder.

        Raises
        ------
        UserError
            The folder holds a run already, or another process is at work in it.
        RunError
            The folder cannot be made or written to.
        """
        make_folder(path)
        run = cls(path, recipe)
        with run.locked():
            cls.expect_free(path)
            run._write_recipe()
        return run

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """Open an existing run folder.

        Raises
        ------
        UserError
            The folder holds no run, or its recipe cannot be read or was changed.
        """
        if not cls.exists(path):
            raise UserError(f"{path} is not a run: it has no recipe.json; `minivit train` makes one")
        file = path / "recipe.json"
        values = read_json(file)
        values = expect_checksum(values, file, required="id" in values)  # earlier versions wrote neither
        origin: dict[str, Any] = {name: values.pop(name) for name in _ORIGIN if name in values}
        try:
            WatchOptions.from_dict(origin.get("watch", {}))
            return cls(path, Recipe.from_dict(values), origin)
        except UserError as error:
            raise UserError(f"{file} is damaged: {error}") from error

    @staticmethod
    def exists(path: Path) -> bool:
        """Whether the folder holds a run."""
        return (path / "recipe.json").exists()

    @classmethod
    def expect_free(cls, path: Path) -> None:
        """Raise UserError if the folder holds a run."""
        if cls.exists(path):
            raise UserError(f"{path} holds a run already; --resume goes on with it, another --run starts a new one")

    def replaced(self, **fields: Any) -> RunFolder:
        """Return the run with other fields of the recipe; `begin` or `go_on` writes them to recipe.json."""
        run = RunFolder(self.path, replace(self.recipe, **fields), self.origin)
        run._is_locked = self._is_locked
        return run

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the lock of the folder inside the block, if this object does not hold it already.

        Raises
        ------
        UserError
            Another process is at work in the folder.
        """
        if self._is_locked:
            yield
            return
        with locked(self.path):
            self._is_locked = True
            try:
                yield
            finally:
                self._is_locked = False

    def is_as_on_disk(self) -> bool:
        """Whether recipe.json holds this recipe; it does not after `replaced`."""
        return RunFolder.open(self.path).recipe == self.recipe

    def is_extended(self) -> bool:
        """Whether the run has more epochs than in recipe.json."""
        return self.exists(self.path) and self.recipe.epochs > RunFolder.open(self.path).recipe.epochs

    def is_trained_on(self, name: str, dataset: Dataset) -> bool:
        """Whether the run was begun on these images; of a run without their fingerprint, on a data set of this name."""
        data = self.origin.get("data")
        return data == dataset.fingerprint() if data else self.recipe.dataset == name

    def expect_data(self, fingerprint: str) -> None:
        """Raise UserError if the run was begun on other images than those of this fingerprint."""
        if self.origin.get("data", fingerprint) != fingerprint:
            raise UserError(
                f"{self.path} was trained on other images than the dataset {self.recipe.dataset!r} has now: "
                "give the run's own, or begin a new run"
            )

    def begin(self, fingerprint: str) -> None:
        """Write recipe.json of a new run on the data set with this fingerprint; both determine the id of the run."""
        values = {name: value for name, value in self.recipe.to_dict().items() if name != "dataset"}
        self.origin |= {"id": with_checksum(values, fingerprint)["checksum"], "data": fingerprint}
        self._write_recipe()

    def withdraw(self) -> None:
        """Remove what `begin` wrote if no checkpoint could be written, so that the same command begins anew."""
        if not self.has_state():
            (self.path / "recipe.json").unlink(missing_ok=True)
            with suppress(OSError):
                (self.path / "last").rmdir()

    def go_on(self, step: int) -> None:
        """Write recipe.json of a run that continues at `step`, if its epochs, its images' path or its records changed.

        A result.json of fewer epochs is removed.
        """
        before = RunFolder.open(self.path)
        # Before recipe.json is written: a result.json without `epochs`, of an earlier version, has those in it.
        if self.result() is None:
            (self.path / "result.json").unlink(missing_ok=True)
        is_longer = before.recipe.epochs != self.recipe.epochs
        if is_longer:
            extended = {"epochs": before.recipe.epochs, "until_step": step}
            self.origin["extended"] = [*before.origin.get("extended", []), extended]
        is_changed = before.recipe != self.recipe or before.watch_options != self.watch_options
        if is_longer or (is_changed and self.origin.get("id")):
            self._write_recipe()

    @property
    def watch_options(self) -> WatchOptions:
        """What is recorded beside the metrics; `begin` or `go_on` writes it to recipe.json."""
        return WatchOptions.from_dict(self.origin.get("watch", {}))

    @watch_options.setter
    def watch_options(self, options: WatchOptions) -> None:
        self.origin.pop("watch", None)
        if values := options.to_dict():
            self.origin["watch"] = values

    def _write_recipe(self) -> None:
        write_json(self.path / "recipe.json", with_checksum({**self.recipe.to_dict(), **self.origin}))

    def save_model(self, which: str, model: Model, dataset: Dataset, step: int) -> None:
        """Write the model as "best" or "last", with the class names, mean and deviation that prediction needs.

        Of a masked model this is the encoder; the whole model is in ``masked.safetensors`` beside it.
        """
        about = {"class_names": list(dataset.class_names), "mean": list(dataset.mean), "std": list(dataset.std)}
        about |= self.recipe.preprocessing
        if "id" in self.origin:
            about |= {"run": self.origin["id"], "step": step}
        if isinstance(model, MaskedModel):
            del about["class_names"]
            save_masked_model(model, self.path / which / MASKED, extra=about)
            model = model.encoder
        assert isinstance(model, ViT)
        save_model(model, self.path / which / "model.safetensors", extra=about)

    def load_model(self, which: str, dtype: str = "float32", backend: str = "numpy") -> Model:
        """Return the model "best" or "last" of the run; for a run of pre-training, the whole masked model."""
        path = self.path / which
        return (
            load_masked_model(path / MASKED, dtype, backend) if self.recipe.task else load_model(path, dtype, backend)
        )

    def expect_models(self, step: int, best_step: int) -> None:
        """Check the models in the folder before a run goes on from its checkpoint.

        The models of the checkpoint's step are rewritten from the checkpoint, so they may be missing or, after a kill,
        older.

        Parameters
        ----------
        step, best_step : int
            The step of the checkpoint and that of the best epoch so far, 0 if there is none.

        Raises
        ------
        UserError
            A model is damaged, of another run or of another step, or the best model is missing.
        """
        names = ["model.safetensors", *([MASKED] if self.recipe.task else [])]
        places = [
            (which, expected, name) for which, expected in (("last", step), ("best", best_step)) for name in names
        ]
        for which, expected, name in places:
            path = self.path / which / name
            rewritten = expected == step or not expected
            if rewritten and not path.exists():
                continue
            if not path.exists():
                raise UserError(f"{self.path} has lost {which}/{name}; bring it back, or begin a new run")
            read_tensors(path)  # verifies the checksum
            if "id" not in self.origin:
                continue
            about = model_metadata(path)
            if about.get("run") != self.origin["id"] or not (rewritten or about.get("step") == expected):
                raise UserError(f"{path} is not the model of this run after step {expected}: put the original back")

    def save_state(
        self,
        model: Model,
        optimizer: Optimizer,
        state: TrainState,
        fingerprint: str,
        averaging: Averaging,
        of_epoch: bool = False,
    ) -> None:
        """Write everything that a resumed run, or with `of_epoch` a rollback, needs into one file.

        `fingerprint` is that of the data set.
        """
        save_checkpoint(
            self._epoch_path if of_epoch else self._state_path,
            self.recipe,
            model,
            optimizer,
            state,
            fingerprint,
            averaging,
        )

    def keep_step(self, model: Model, dataset: Dataset, step: int) -> None:
        """Write the weights after `step`, from 0, into ``steps/``."""
        self.save_model(f"steps/step-{step:06d}", model, dataset, step)

    def kept_steps(self) -> dict[int, Path]:
        """Return the folders with the weights of kept steps, by step, which `load_model` reads.

        These are the weights that were trained, also where the recipe asks for an average.

        Raises
        ------
        UserError
            The run has kept none.
        """
        folders = (self.path / "steps").glob("step-*/model.safetensors")
        steps = {int(tail): path.parent for path in folders if (tail := path.parent.name[5:]).isdecimal()}
        if not steps:
            raise UserError(
                f"{self.path} has no weights of single steps; a run with `minivit train --keep-every N` keeps them"
            )
        return dict(sorted(steps.items()))

    def watched(self) -> list[dict[str, Any]]:
        """Return the lines of watch.jsonl, oldest first; none if the run was not watched.

        Raises
        ------
        UserError
            The file is damaged.
        """
        return read_watched(self.path / "watch.jsonl")

    def __repr__(self) -> str:
        finished = (self.path / "result.json").exists()
        stage = "finished" if finished else "can be resumed" if self.has_state() else "without a checkpoint"
        return f"RunFolder({str(self.path)!r}, {self.recipe.model}, {self.recipe.epochs} epochs, {stage})"

    @property
    def _state_path(self) -> Path:
        return self.path / "last" / "training.safetensors"

    @property
    def _epoch_path(self) -> Path:
        return self.path / "last" / "epoch.safetensors"

    def has_state(self, of_epoch: bool = False) -> bool:
        """Whether there is a checkpoint from which the run can be resumed, or one of `of_epoch`."""
        return (self._epoch_path if of_epoch else self._state_path).exists()

    def remove_epoch_state(self) -> None:
        """Remove the checkpoint of the end of an epoch, if there is one."""
        self._epoch_path.unlink(missing_ok=True)

    def load_state(
        self, model: Model, optimizer: Optimizer, fingerprint: str, averaging: Averaging, of_epoch: bool = False
    ) -> TrainState:
        """Set the model, the optimiser and the average to the last checkpoint, and return its state.

        With `of_epoch` it is that of the end of the last epoch, for a rollback.

        Temporary files of a writer that was killed are removed from the folder.

        Raises
        ------
        UserError
            The file is missing, damaged or belongs to another model, or was written with another recipe or other data.
        """
        for folder in (self.path, self.path / "best", self.path / "last"):
            remove_leftovers(folder)
        self.origin = RunFolder.open(self.path).origin
        path = self._epoch_path if of_epoch else self._state_path
        return load_checkpoint(path, self.recipe, model, optimizer, fingerprint, averaging)

    def metrics(self) -> list[dict[str, Any]]:
        """Return the metrics of the epochs so far.

        Raises
        ------
        UserError
            The file is damaged.
        """
        return read_metrics(self.path / "metrics.jsonl")

    def metrics_until(self, step: int, steps_per_epoch: int) -> list[dict[str, Any]]:
        """Return the metrics of the epochs that ended at `step` or before.

        Raises
        ------
        UserError
            The metrics of one are missing.
        """
        records = [record for record in self.metrics() if record["step"] <= step]
        if [record["epoch"] for record in records] != list(range(1, step // steps_per_epoch + 1)):
            raise UserError(
                f"{self.path / 'metrics.jsonl'} does not have a line for each epoch before step {step}; "
                "bring the file back, or begin a new run"
            )
        return records

    def write_metrics(self, records: list[dict[str, Any]]) -> None:
        """Write the metrics of all epochs so far."""
        write_metrics(self.path / "metrics.jsonl", records)

    def result(self) -> dict[str, Any] | None:
        """Return the result of a finished run, or None if it is not finished, or was extended since.

        ``run`` and ``curves`` are where the folder is now.

        Raises
        ------
        UserError
            The file is damaged.
        """
        path = self.path / "result.json"
        if not path.exists():
            return None
        result = read_result(path)
        if "epochs" not in result:  # an earlier version of minivit wrote it
            result["epochs"] = RunFolder.open(self.path).recipe.epochs
        if result["epochs"] != self.recipe.epochs:
            return None
        curves = self.path / "curves.png"
        return {**result, "run": str(self.path), "curves": str(curves) if curves.exists() else None}

    @property
    def reconstructions(self) -> Path:
        """The picture of what a masked model predicts, drawn at the end of a run of pre-training."""
        return self.path / "reconstructions.png"

    def write_result(self, result: Mapping[str, Any]) -> None:
        """Write the result, which marks the run as finished."""
        write_json(self.path / "result.json", with_checksum(result))
