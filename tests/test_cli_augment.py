"""`minivit augment`: a contact sheet of what a recipe does to training images."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from command_line import TINY, Minivit, assert_refused
from PIL import Image

GAP = 4
CIFAR10 = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def tiles_of(path: Path, rows: int, columns: int) -> np.ndarray:
    """Return the tiles (rows, columns, height, width, ...) of a sheet."""
    with Image.open(path) as image:
        sheet = np.asarray(image)
    sheet = np.pad(sheet, ((0, GAP), (0, GAP), *((0, 0),) * (sheet.ndim - 2)), constant_values=255)
    height, width = sheet.shape[0] // rows, sheet.shape[1] // columns
    tiles = sheet.reshape(rows, height, columns, width, *sheet.shape[2:]).swapaxes(1, 2)
    assert (tiles[:, :, -GAP:] == 255).all()
    return tiles[:, :, :-GAP, :-GAP]


def test_a_sheet_shows_images_as_they_are_and_at_steps_of_the_run(cli: Minivit, squares: Path) -> None:
    options = ("--crop-padding", 0, "--no-flip", "--auto-augment", "trivial", "--augment-ramp", 30)
    size = ("--rows", 3, "--columns", 5, "--out", "sheet.png")
    said = cli("augment", "digits", "--dataset", squares, *options, "--augment-off-epochs", 2, *size)
    assert said.status == 0
    assert "3 training images of squares, as they are and at 5 steps" in said.out
    tiles = tiles_of(Path("sheet.png"), 3, 6)
    assert tiles.shape[2:4] == (64, 64)  # images of 8 x 8, enlarged
    assert (tiles[:, 0] != tiles[:, 2]).any()
    np.testing.assert_array_equal(tiles[:, 0], tiles[:, 5])  # the last epochs are without


def test_the_object_of_json_names_epochs_and_strengths(cli: Minivit, squares: Path) -> None:
    said = cli("augment", "folder", "--dataset", squares, "--epochs", 4, "--columns", 4, "--batch-size", 100,
               "--augment-ramp", 2, "--augment-off-epochs", 1, "--json")  # fmt: skip
    values = said.json()
    assert values["sheet"] == "augment.png"
    assert values["epochs"] == [1, 2, 3, 4]
    assert values["strengths"] == [0.5, 1.0, 1.0, 0.0]


def test_a_recipe_of_a_data_set_that_is_not_on_disk_is_shown_on_digits(
    cli: Minivit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MINIVIT_DATA", str(tmp_path / "none"))
    monkeypatch.setattr("pooch.os_cache", lambda name: tmp_path / name)
    said = cli("augment", "cifar10", "--crop-padding", 2)
    assert said.status == 0
    assert "cifar10 is not on disk; the images are the digits" in said.out
    assert tiles_of(Path("augment.png"), 8, 11).shape[:2] == (8, 11)


def test_damaged_images_of_the_recipes_data_set_are_left_out(cli: Minivit, tmp_path: Path) -> None:
    for part in ("train", "test"):
        for number, name in enumerate(CIFAR10):
            (folder := tmp_path / "cifar10" / part / name).mkdir(parents=True)
            Image.new("RGB", (32, 32), (number, 0, 0)).save(folder / "a.png")
    (tmp_path / "cifar10" / "train" / "cat" / "b.png").write_bytes(b"not an image")
    assert_refused(cli("augment", "cifar10", "--data", tmp_path), 2, "--skip-bad")
    assert cli("augment", "cifar10", "--data", tmp_path, "--skip-bad", "--rows", 2).status == 0


def test_a_folder_that_was_given_is_not_replaced_by_the_digits(cli: Minivit, tmp_path: Path) -> None:
    assert_refused(cli("augment", "cifar10", "--data", tmp_path), 2, "cifar10 is not in")
    (tmp_path / "cifar-10-python.tar.gz").write_text("no archive")
    assert_refused(cli("augment", "cifar10", "--data", tmp_path), 2, "cannot be read as a tar archive of CIFAR")


def test_a_recipe_in_a_file_is_shown(cli: Minivit, squares: Path) -> None:
    Path("mine.toml").write_text('model = "vit_micro_patch4_8"\nresized_crop = [0.3, 0.9]\ncutmix_alpha = 1.0\n')
    assert cli("augment", "mine.toml", "--dataset", squares, "--rows", 1).status == 0
    tiles = tiles_of(Path("augment.png"), 1, 11)
    assert (tiles[:, 0] != tiles[:, 1]).any()


@pytest.mark.parametrize("recipe", ["finetune", "lightning-tutorial", "paper-finetune", "paper-pretrain"])
def test_the_recipe_of_a_model_of_large_images_is_shown(cli: Minivit, recipe: str) -> None:
    assert cli("augment", recipe, "--rows", 1, "--columns", 2).status == 0


def test_bad_arguments_are_refused(cli: Minivit, squares: Path) -> None:
    assert_refused(cli("augment", "cifar11"), 2, "there is no recipe 'cifar11'", "did you mean 'cifar10'")
    assert_refused(cli("augment", "digits", "--out", "sheet.jpg"), 2, "expected a file .png")
    assert_refused(cli("augment", "digits", "--rows", 0), 2, "rows is 0")
    assert_refused(cli("augment", "digits", "--columns", -1), 2, "columns is -1")
    assert_refused(cli("augment", "digits", "--crop-padding", 8), 2, "can shift all of an image of 8 x 8 pixels")
    assert_refused(cli("augment", "digits", "--mixup-alpha", 9), 2, "mixup_alpha is 9.0; expected", "at most 4")


def test_train_takes_the_options_and_keeps_them_in_the_recipe(cli: Minivit, squares: Path) -> None:
    options = {"resized_crop": [0.5, 1.0], "auto_augment": "rand", "rand_ops": 1, "rand_magnitude": 5,
               "color_jitter": 0.1, "erase_prob": 0.2, "mixup_alpha": 0.5, "cutmix_alpha": 0.7, "mix_prob": 0.9,
               "augment_ramp": 0.5, "augment_off_epochs": 1, "crop_padding": 0}  # fmt: skip
    given = [
        text
        for name, value in options.items()
        for text in (f"--{name.replace('_', '-')}", *(value if isinstance(value, list) else [value]))
    ]
    assert cli("train", squares, *TINY, *given, "--epochs", 2, "--run", "here", "--threads", 1).status == 0
    recipe = json.loads(Path("here/recipe.json").read_text())
    assert {name: recipe[name] for name in options} == options
    assert cli("train", squares, *given, "--run", "here", "--resume").status == 0


def test_one_crop_takes_the_place_of_the_other(cli: Minivit, squares: Path) -> None:
    recipes = ("crop_padding = 2\n", "resized_crop = [0.5, 1.0]\n")
    options = (["--resized-crop", 0.5, 1], ["--crop-padding", 2])
    for number, (text, option) in enumerate(zip(recipes, options, strict=True)):
        Path("mine.toml").write_text('model = "vit_micro_patch4_8"\n' + text)
        run = ["--recipe", "mine.toml", "--run", f"run{number}", "--threads", 1, "--epochs", 1, *option]
        assert cli("train", squares, *TINY, *run).status == 0
    first, second = (json.loads(Path(f"run{number}/recipe.json").read_text()) for number in (0, 1))
    assert (first["resized_crop"], first["crop_padding"]) == ([0.5, 1.0], 0)
    assert (second["resized_crop"], second["crop_padding"]) == ([], 2)
