"""A run folder: written and read in one place.

    recipe.json             what the run is to do
    best/  last/            model.safetensors and config.json: after the best epoch, and at the last checkpoint
    last/training.safetensors   all that is needed to go on: parameters, the optimiser's vectors, the place in the run
    metrics.jsonl           a line for each epoch
    result.json             what came out; it is there when the run is finished
    curves.png              loss and accuracy by epoch

Every file is written under a temporary name, synced and renamed: a run killed at any moment leaves whole files.
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
from minivit.train.state import Progress
from minivit.weights import read_tensors, save_model, write_tensors

# What others read from a line of metrics.jsonl, and from result.json.
_METRICS = {"epoch", "step", "train_loss", "train_accuracy"}
_RESULT = {"run", "test_accuracy", "test_images", "best_epoch", "best_val_accuracy", "seconds", "images_per_second"}


class Run:
    """A run folder.

    Parameters
    ----------
    path : Path
        The folder; see `create` and `open`.
    recipe : Recipe
        What the run is to do.
    """

    def __init__(self, path: Path, recipe: Recipe) -> None:
        self.path = path
        self.recipe = recipe

    @classmethod
    def create(cls, path: Path, recipe: Recipe) -> Run:
        """Make a new run folder.

        Raises
        ------
        UserError
            There is a run already.
        RunError
            The folder cannot be made or written to.
        """
        cls.expect_free(path)
        write_json(path / "recipe.json", recipe.to_dict())
        return cls(path, recipe)

    @classmethod
    def open(cls, path: Path) -> Run:
        """Return the run in a folder.

        Raises
        ------
        UserError
            There is none, or its recipe cannot be read.
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
        """Write the model as "best" or "last", with what prediction needs: class names, mean and deviation."""
        about = {"class_names": list(dataset.class_names), "mean": list(dataset.mean), "std": list(dataset.std)}
        save_model(model, self.path / which / "model.safetensors", extra=about)

    def save_state(self, model: ViT, optimizer: Optimizer, progress: Progress, data: str) -> None:
        """Write all that is needed to go on from here, in one file; `data` is the data set's fingerprint."""
        tensors = {"values": to_host(model.parameters.store.values), **optimizer.state()}
        about = {
            "progress": progress.to_json(),
            "parameters": _layout(model),
            "recipe": json.dumps(self.recipe.to_dict()),
            "data": data,
        }
        write_tensors(self.path / "last" / "training.safetensors", tensors, about)

    def has_state(self) -> bool:
        """Whether there is a checkpoint to go on from."""
        return (self.path / "last" / "training.safetensors").exists()

    def load_state(self, model: ViT, optimizer: Optimizer, data: str) -> Progress:
        """Set the model and the optimiser to the last checkpoint, and return its place in the run.

        What a killed writer left in the folder is removed.

        Raises
        ------
        UserError
            The file is missing, damaged or belongs to another model, or was written with another recipe or other data.
        """
        for folder in (self.path, self.path / "best", self.path / "last"):
            remove_leftovers(folder)
        path = self.path / "last" / "training.safetensors"
        tensors, about = read_tensors(path)
        if about.get("parameters") != _layout(model) or "values" not in tensors:
            raise UserError(f"{path} is the checkpoint of another model than the one in recipe.json")
        begun, now = json.loads(about.get("recipe", "{}")), json.loads(json.dumps(self.recipe.to_dict()))
        begun.setdefault("reduction_groups", now["reduction_groups"])  # a run that is older than this field
        # The images may have moved; whether they are the same is the next question.
        if changed := [name for name in now if name != "dataset" and begun.get(name) != now[name]]:
            raise UserError(
                f"{self.path / 'recipe.json'} says otherwise than when the run was begun: {', '.join(changed)}; "
                "put it back, or begin a new run"
            )
        if about.get("data") != data:
            raise UserError(f"{path} was trained on other images than {self.recipe.dataset} has now; begin a new run")
        values = model.parameters.store.values
        try:
            progress = Progress.from_json(about.get("progress", ""))
            for name, vector in tensors.items():
                _expect_like(name, vector, values)
        except UserError as error:
            raise UserError(f"{path} is damaged: {error}; bring it back, or begin a new run") from error
        values[...] = to_backend(tensors.pop("values"), namespace(values))
        optimizer.load_state(tensors, progress.step)
        return progress

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

    def write_metrics(self, records: list[dict[str, Any]]) -> None:
        """Write the metrics of all epochs so far."""
        text = "".join(json.dumps(record) + "\n" for record in records)
        atomic_write(self.path / "metrics.jsonl", lambda file: file.write(text.encode()))

    def result(self) -> dict[str, Any] | None:
        """Return what the finished run came to, or None.

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
                f"{path} is not what a run came to: it lacks {', '.join(missing)}; remove it and --resume anew"
            )
        return result

    def write_result(self, result: Mapping[str, Any]) -> None:
        """Mark the run as finished."""
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
    """Return the newest of the folders that `next_run_path` named.

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
