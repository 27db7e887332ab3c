"""Whether the model in best/ or last/ of a run folder belongs to that run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from minivit.errors import UserError
from minivit.files import expect_checksum, read_json


def expect_of_run(path: Path, extra: Mapping[str, Any]) -> None:
    """Check a model file in ``best/`` or ``last/`` of a run against the run's recipe.json.

    Parameters
    ----------
    path : Path
        The model file; nothing is checked if it is not in a run folder, or the run has no id.
    extra : mapping
        The values that `save_model` stored in the file: ``run`` is the id of its run.

    Raises
    ------
    UserError
        The recipe was changed or damaged, or the model is of another run.
    """
    folder = path.absolute().parent
    recipe = folder.parent / "recipe.json"
    if folder.name not in ("best", "last") or not recipe.is_file():
        return
    values = read_json(recipe)
    run = expect_checksum(values, recipe, required="id" in values).get("id")
    if run is not None and extra.get("run") != run:
        raise UserError(f"{path} is not a model of the run in {folder.parent}: put the run's own {folder.name}/ back")
