"""The state of a training run in one file: what a resumed run needs to go on in the same bits."""

from __future__ import annotations

import json
from pathlib import Path

from minivit.arrays import Array, namespace, to_backend, to_host
from minivit.errors import UserError
from minivit.files import parse_json
from minivit.nn.model import Model
from minivit.train.averaging import Averaging
from minivit.train.optimizers import Optimizer
from minivit.train.recipe import Recipe
from minivit.train.state import TrainState
from minivit.weights import read_tensors, write_tensors


def save_checkpoint(
    path: Path,
    recipe: Recipe,
    model: Model,
    optimizer: Optimizer,
    state: TrainState,
    fingerprint: str,
    averaging: Averaging,
) -> None:
    """Write the checkpoint; `fingerprint` is that of the data set.

    Raises
    ------
    RunError
        The file cannot be written; an existing file is not changed.
    """
    tensors = {"values": to_host(model.parameters.store.values), **optimizer.state(), **averaging.state()}
    about = {
        "progress": state.to_json(),
        "parameters": _layout(model),
        "recipe": json.dumps(recipe.to_dict()),
        "data": fingerprint,
    }
    write_tensors(path, tensors, about)


def load_checkpoint(
    path: Path, recipe: Recipe, model: Model, optimizer: Optimizer, fingerprint: str, averaging: Averaging
) -> TrainState:
    """Set the model, the optimiser and the average to those of the checkpoint, and return its state.

    Raises
    ------
    UserError
        The file is missing, damaged or belongs to another model, or was written with another recipe or other data.
    """
    tensors, about = read_tensors(path)
    if about.get("parameters") != _layout(model) or "values" not in tensors:
        raise UserError(f"{path} is the checkpoint of another model than the one in recipe.json")
    values = model.parameters.store.values
    try:
        begun = Recipe.from_dict(parse_json(about.get("recipe", ""), "its recipe"))
        changed = _changed_fields(begun, recipe, model)
        state = TrainState.from_json(about.get("progress", ""))
        for name, vector in tensors.items():
            _expect_like(name, vector, values)
    except ValueError as error:
        raise UserError(f"{path} is damaged: {error}; bring it back, or begin a new run") from error
    if changed:
        raise UserError(
            f"{path.parent.parent / 'recipe.json'} was changed since the run was begun: {', '.join(changed)}; "
            "put it back, or begin a new run"
        )
    if about.get("data") != fingerprint:
        raise UserError(f"{path} was trained on other images than {recipe.dataset} has now; begin a new run")
    values[...] = to_backend(tensors.pop("values"), namespace(values))
    averaging.load_state(tensors.pop("average", None), state.averaged)
    optimizer.load_state(tensors, state.step)
    return state


def _changed_fields(begun: Recipe, now: Recipe, model: Model) -> list[str]:
    """Return the fields of the recipe that differ from those of the checkpoint, `begun`.

    A field that an older version of minivit did not have counts as its default. The path of the data set is left out:
    the images may have moved, and their fingerprint shows whether they are the same. So are the epochs, of which a run
    may be given more, and what NaN does.
    """
    # Through JSON: it has lists in place of tuples.
    before, after = (json.loads(json.dumps(recipe.resolved(model).to_dict())) for recipe in (begun, now))
    return [name for name in after if name not in ("dataset", "epochs", "on_nan") and before[name] != after[name]]


def _layout(model: Model) -> str:
    return json.dumps([[name, list(parameter.shape)] for name, parameter in model.parameters.items()])


def _expect_like(name: str, vector: Array, values: Array) -> None:
    if vector.shape != values.shape or vector.dtype != values.dtype:
        raise UserError(
            f"its {name} has {vector.size} numbers of {vector.dtype}; this model needs {values.size} of {values.dtype}"
        )
