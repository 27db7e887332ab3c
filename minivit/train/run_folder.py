"""The run folder: everything that a training run writes and reads.

    recipe.json             the recipe
    best/  last/            model.safetensors and config.json: after the best epoch, and at the last checkpoint
    last/training.safetensors   the state for a resumed run: parameters, the optimiser's vectors, the other state
    metrics.jsonl           a line for each epoch
    result.json             the result; it is written when the run is finished
    curves.png              loss and accuracy by epoch

Every file is written under a temporary name, synced and renamed, so that a run killed at any moment leaves whole files.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from minivit.arrays import Array, namespace, to_backend, to_host
from minivit.data.dataset import Dataset
from minivit.errors import UserError
from minivit.files import atomic_write, read_json, remove_leftovers, write_json
from minivit.nn.vit import ViT
from minivit.train.optimizers import Optimizer
from minivit.train.recipe import Recipe
from minivit.train.state import TrainState
from minivit.weights import read_tensors, save_model, write_tensors

# The fields that are read from a line of metrics.jsonl, and from result.json.
_METRICS = {"epoch", "step", "train_loss", "train_accuracy"}
_RESULT = {"run", "test_accuracy", "test_images", "best_epoch", "best_val_accuracy", "seconds", "images_per_second"}


class RunFolder:
    """The folder of a training run; `create` and `open` return one.

    Parameters
    ----------
    path : Path
        The folder.
    recipe : Recipe
        The recipe of the run.
    """

    def __init__(self, path: Path, recipe: Recipe) -> None:
        self.path = path
        self.recipe = recipe

    @classmethod
    def create(cls, path: Path, recipe: Recipe) -> RunFolder:
        """Make a new run folder.

        Raises
        ------
        UserError
            The folder holds a run already.
        RunError
            The folder cannot be made or written to.
        """
        cls.expect_free(path)
        write_json(path / "recipe.json", recipe.to_dict())
        return cls(path, recipe)

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """Open an existing run folder.

        Raises
        ------
        UserError
            The folder holds no run, or its recipe cannot be read.
        """
        if not cls.exists(path):
            raise UserError(f"{path} is not a run: it has no recipe.json; `minivit train` makes one")
        return cls(path, Recipe.from_dict(read_json(path / "recipe.json")))

    @staticmethod
    def exists(path: Path) -> bool:
        """Whether the folder holds a run."""
        return (path / "recipe.json").exists()

    @classmethod
    def expect_free(cls, path: Path) -> None:
        """Raise UserError if the folder holds a run."""
        if cls.exists(path):
            raise UserError(f"{path} holds a run already; --resume goes on with it, another --run starts a new one")

    def save_model(self, which: str, model: ViT, dataset: Dataset) -> None:
        """Write the model as "best" or "last", with the class names, mean and deviation that prediction needs."""
        about = {"class_names": list(dataset.class_names), "mean": list(dataset.mean), "std": list(dataset.std)}
        save_model(model, self.path / which / "model.safetensors", extra=about)

    def save_state(self, model: ViT, optimizer: Optimizer, state: TrainState, fingerprint: str) -> None:
        """Write everything that a resumed run needs into one file; `fingerprint` is that of the data set."""
        tensors = {"values": to_host(model.parameters.store.values), **optimizer.state()}
        about = {
            "progress": state.to_json(),
            "parameters": _layout(model),
            "recipe": json.dumps(self.recipe.to_dict()),
            "data": fingerprint,
        }
        write_tensors(self._state_path, tensors, about)

    @property
    def _state_path(self) -> Path:
        return self.path / "last" / "training.safetensors"

    def has_state(self) -> bool:
        """Whether there is a checkpoint from which the run can be resumed."""
        return self._state_path.exists()

    def load_state(self, model: ViT, optimizer: Optimizer, fingerprint: str) -> TrainState:
        """Set the model and the optimiser to the last checkpoint, and return its state.

        Temporary files of a writer that was killed are removed from the folder.

        Raises
        ------
        UserError
            The file is missing, damaged or belongs to another model, or was written with another recipe or other data.
        """
        for folder in (self.path, self.path / "best", self.path / "last"):
            remove_leftovers(folder)
        path = self._state_path
        tensors, about = read_tensors(path)
        if about.get("parameters") != _layout(model) or "values" not in tensors:
            raise UserError(f"{path} is the checkpoint of another model than the one in recipe.json")
        values = model.parameters.store.values
        try:
            changed = self._changed_fields(about.get("recipe", ""), model)
            state = TrainState.from_json(about.get("progress", ""))
            for name, vector in tensors.items():
                _expect_like(name, vector, values)
        except ValueError as error:
            raise UserError(f"{path} is damaged: {error}; bring it back, or begin a new run") from error
        if changed:
            raise UserError(
                f"{self.path / 'recipe.json'} was changed since the run was begun: {', '.join(changed)}; "
                "put it back, or begin a new run"
            )
        if about.get("data") != fingerprint:
            raise UserError(f"{path} was trained on other images than {self.recipe.dataset} has now; begin a new run")
        values[...] = to_backend(tensors.pop("values"), namespace(values))
        optimizer.load_state(tensors, state.step)
        return state

    def _changed_fields(self, text: str, model: ViT) -> list[str]:
        """Return the fields of the recipe that differ from those of the checkpoint, which `text` holds as JSON.

        A field that an older version of minivit did not have counts as its default. The path of the data set is left
        out: the images may have moved, and their fingerprint shows whether they are the same.
        """
        recipes = Recipe.from_dict(json.loads(text)), self.recipe
        begun, now = (json.loads(json.dumps(recipe.resolved(model.config).to_dict())) for recipe in recipes)
        return [name for name in now if name != "dataset" and begun[name] != now[name]]

    def metrics(self) -> list[dict[str, Any]]:
        """Return the metrics of the epochs so far.

        Raises
        ------
        UserError
            The file is damaged.
        """
        path = self.path / "metrics.jsonl"
        if not path.exists():
            return []
        try:
            records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        except ValueError as error:
            raise UserError(f"{path} is damaged: {error}") from error
        for number, record in enumerate(records, start=1):
            if not (isinstance(record, dict) and record.keys() >= _METRICS):
                raise UserError(f"{path} is damaged: line {number} is not the metrics of an epoch")
        return records

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
        text = "".join(json.dumps(record) + "\n" for record in records)
        atomic_write(self.path / "metrics.jsonl", lambda file: file.write(text.encode()))

    def result(self) -> dict[str, Any] | None:
        """Return the result of a finished run, or None if it is not finished.

        Raises
        ------
        UserError
            The file is damaged.
        """
        path = self.path / "result.json"
        if not path.exists():
            return None
        result = read_json(path)
        if missing := sorted(_RESULT - result.keys()):
            raise UserError(
                f"{path} is not the result of a run: it lacks {', '.join(missing)}; remove it and --resume anew"
            )
        return result

    def write_result(self, result: Mapping[str, Any]) -> None:
        """Write the result, which marks the run as finished."""
        write_json(self.path / "result.json", dict(result))


def _layout(model: ViT) -> str:
    return json.dumps([[name, list(parameter.shape)] for name, parameter in model.parameters.items()])


def _expect_like(name: str, vector: Array, values: Array) -> None:
    if vector.shape != values.shape or vector.dtype != values.dtype:
        raise UserError(
            f"its {name} has {vector.size} numbers of {vector.dtype}; this model needs {values.size} of {values.dtype}"
        )


def next_run_path(dataset: str, root: Path = Path("runs")) -> Path:
    """Return the first free ``runs/NAME-1``, ``runs/NAME-2``, ... for a data set."""
    return root / f"{_short(dataset)}-{max(_numbers(dataset, root), default=0) + 1}"


def latest_run_path(dataset: str, root: Path = Path("runs")) -> Path:
    """Return the newest of the folders named by `next_run_path`.

    Raises
    ------
    UserError
        There is none.
    """
    numbers = _numbers(dataset, root)
    if not numbers:
        raise UserError(f"there is no run of {dataset} in {root} to resume; name its folder with --run")
    return root / f"{_short(dataset)}-{max(numbers)}"


def _short(dataset: str) -> str:
    return Path(dataset).resolve().name.split(".")[0] or "images"


def _numbers(dataset: str, root: Path) -> list[int]:
    folders = root.glob(f"{_short(dataset)}-*")
    return [int(tail) for folder in folders if (tail := folder.name.rpartition("-")[2]).isdigit()]
