"""`minivit probe`: the accuracy of classifiers of frozen features."""

from __future__ import annotations

from pathlib import Path

import pytest
from command_line import TINY, Minivit, assert_refused, weights
from PIL import Image

from minivit import create_model, save_model


def test_a_run_is_probed(cli: Minivit, squares: Path, run_folder: Path) -> None:
    before = weights(run_folder)
    said = cli("probe", run_folder, squares, "--shots", 1, 5, "all", "--draws", 2)
    assert said.status == 0
    heading, row, last = said.out.splitlines()[-3:]
    assert heading.split("  ")[0] == "layer"
    assert "1 a class" in heading
    assert "all images" in heading
    assert row.startswith("head   least-squares")
    assert row.count("+-") == 2
    assert last.endswith("on the 10 test images of squares")
    assert weights(run_folder) == before


def test_the_object_of_json_has_every_draw(cli: Minivit, squares: Path, run_folder: Path) -> None:
    given = ("--shots", 2, "all", "--draws", 3, "--layers", "all", "--kinds", "knn", "linear", "--out", "layers.png")
    values = cli("probe", run_folder, squares, *given, "--json").json()
    depth = 1 + max(int(row["layer"]) for row in values["probes"] if row["layer"] != "head")
    assert len(values["probes"]) == (depth + 1) * 2 * 2
    assert {len(row["accuracies"]) for row in values["probes"]} == {1, 3}
    assert (values["dataset"], values["random"]) == ("squares", False)
    with Image.open("layers.png") as image:
        assert image.width > 300


def test_what_is_asked_for_twice_is_probed_once(cli: Minivit, squares: Path, run_folder: Path) -> None:
    given = ("--shots", 5, "05", 5, "--layers", "head", "0", "head", "--kinds", "knn", "knn", "--json")
    probes = cli("probe", run_folder, squares, *given).json()["probes"]
    assert [(row["layer"], row["kind"], row["shots"]) for row in probes] == [("head", "knn", 5), ("0", "knn", 5)]


def test_random_parameters_take_the_place_of_those_of_the_model(cli: Minivit, squares: Path, run_folder: Path) -> None:
    given = (run_folder, squares, "--shots", 5, "--json")
    trained, random, again = (cli("probe", *given, *more).json() for more in ([], ["--random"], ["--random"]))
    assert random["probes"] == again["probes"]
    assert random["random"] is True
    assert random["probes"] != trained["probes"]


def test_a_prepared_or_streamed_data_set_and_a_model_without_head_are_probed(
    cli: Minivit, squares: Path, run_folder: Path
) -> None:
    assert cli("prepare", squares, "out", *TINY).status == 0
    given = ("--shots", 5, "--json")
    results = [
        cli("probe", run_folder, data, *more, *given).json()["probes"]
        for data, more in ((squares, []), (squares, ["--stream"]), ("out", ["--stream"]))
    ]
    assert results[0] == results[1] == results[2]
    model = create_model("vit_micro_patch4_8", in_chans=1, num_classes=0)
    save_model(model, "encoder/model.safetensors", extra={"mean": [0.5], "std": [0.5]})
    assert cli("probe", "encoder", squares, "--shots", 5).status == 0


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--shots", "13"], "class left has 12 images, fewer than the 13 shots"),
        (["--shots", "some"], "--shots some: expected whole numbers of at least 1, or all"),
        (["--layers", "9"], "there is no layer '9'"),
        (["--out", "x.pdf"], "--out is x.pdf; expected a file .png or .svg"),
        (["--draws", "0"], "draws is 0"),
    ],
)
def test_what_cannot_be_probed_is_one_line(
    cli: Minivit, squares: Path, run_folder: Path, more: list[str], words: str
) -> None:
    assert_refused(cli("probe", run_folder, squares, *more), 2, words)
