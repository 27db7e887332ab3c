"""The commands benchmarks.masked and benchmarks.pretraining."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import TINY, Minivit

from benchmarks import masked, pretraining


def test_each_task_has_a_speed_beside_supervised_training(tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "masked.json"
    sizes = ["--batch-size", "4", "--threads", "1", "--rounds", "1", "--steps", "1"]
    masked.main(["vit_micro_patch4_8", *sizes, "--json", str(out)])
    rows = json.loads(out.read_text())["trainings"]
    assert [row["training"] for row in rows] == ["supervised", "mpp", "mae", "simmim"]
    assert rows[0]["speed"] == "1.00"
    assert "simmim" in capsys.readouterr().out


@pytest.mark.parametrize("options", [["--shares", "0.1"], ["--shares", "1.5", "--epochs", "1"]], ids=str)
def test_shares_that_do_not_fit_are_refused_before_anything_is_trained(options: list[str]) -> None:
    with pytest.raises(SystemExit):
        pretraining.main(["no run", "no data", *options])


def test_a_share_of_the_labels_is_the_same_for_all_models_and_has_all_classes() -> None:
    labels = np.arange(200) % 4
    index = pretraining.drawn(labels, 0.1, 3)
    assert np.bincount(labels[index]).tolist() == [5, 5, 5, 5]
    np.testing.assert_array_equal(index, pretraining.drawn(labels, 0.1, 3))
    assert (index != pretraining.drawn(labels, 0.1, 4)).any()
    assert len(pretraining.drawn(labels, 1.0, 0)) == 200


def test_a_pretrained_encoder_is_compared_with_random_ones(
    cli: Minivit, squares: Path, tmp_path: Path, capsys: Any
) -> None:
    options = (*TINY, "--epochs", 1, "--batch-size", 8, "--warmup-epochs", 0.5, "--run", "run")
    assert cli("pretrain", squares, *options).status == 0
    out = tmp_path / "gain.json"
    few = ["--shares", "0.5", "--epochs", "2", "--draws", "2", "--threads", "1", "--same-time", "1", "--json", str(out)]
    pretraining.main(["run", str(squares), *few])
    (found,) = json.loads(out.read_text())["shares"]
    assert found["images"] == 12
    assert {name: len(values) for name, values in found["accuracies"].items()} == {
        "pre-trained": 2,
        "from scratch": 2,
        "same time": 1,
    }
    assert "gain over from scratch" in capsys.readouterr().out
