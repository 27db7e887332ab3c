"""Small training runs on the strict stand-in, and their comparison."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_run import RECIPE, make_dataset, read, run_at

from minivit.train.recipe import Recipe
from minivit.train.run_folder import RunFolder
from minivit.train.trainer import Trainer


def trainer(path: Path, recipe: Recipe = RECIPE, **options: Any) -> Trainer:
    return Trainer(run_at(path, recipe), make_dataset(), **{"backend": "strict", **options})


def assert_same_course(run: RunFolder, other: RunFolder, tolerance: float = 1e-4) -> None:
    """Assert that two runs have the same metrics and parameters up to rounding."""
    assert len(run.metrics()) == len(other.metrics()) == 3
    for one, two in zip(run.metrics(), other.metrics(), strict=True):
        numbers = [name for name in one if "second" not in name and isinstance(one[name], int | float)]
        assert len(numbers) >= 5
        for name in numbers:
            assert one[name] == pytest.approx(two[name], rel=tolerance), name
    for (name, one_value), (_, two_value) in zip(
        *(read(r.path / "last" / "training.safetensors") for r in (run, other)), strict=True
    ):
        scale = np.abs(two_value).max()
        np.testing.assert_allclose(one_value, two_value, atol=20 * tolerance * scale, rtol=0, err_msg=name)
