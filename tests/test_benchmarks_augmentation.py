"""The command benchmarks.augmentation."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import augmentation
from benchmarks.recipes import noise
from benchmarks.report import records_table
from minivit.train.recipe import Recipe
from minivit.train.step import DataLoader


def test_the_cost_of_augmentation_is_a_share_of_the_step(tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "augmentation.json"
    sizes = ["--set", "depth=1", "embed_dim=4", "num_heads=1", "--threads", "1", "--batch-size", "6", "--steps", "9"]
    augmentation.main([*sizes, "--json", str(out)])
    rows = json.loads(out.read_text())["augmentations"]
    assert [row["augmentation"] for row in rows] == list(augmentation.AUGMENTATIONS)
    assert all(0 < row["ms a batch"] < row["ms a step"] for row in rows)
    assert rows[0]["ms a batch"] < rows[-1]["ms a batch"]
    printed = capsys.readouterr().out
    assert "depth=1 embed_dim=4 num_heads=1, batch 6, 1 workers" in printed
    assert records_table(rows) in printed


def test_each_augmentation_of_the_benchmark_changes_the_images() -> None:
    dataset = noise((64, 32, 32, 3), 10)
    batches = []
    for changes in augmentation.AUGMENTATIONS.values():
        recipe = Recipe("noise", "vit_mini_patch4_32", batch_size=64, **changes)
        images, *_ = DataLoader(dataset, np.arange(64), recipe, np).batch(np.arange(64), 3, np.dtype("float32"))
        batches.append(images.tobytes())
    assert len(set(batches)) == len(batches)
