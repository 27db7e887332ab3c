"""`minivit prepare`: a folder that stands for the data set in every command."""

from __future__ import annotations

import io
import shlex
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import TINY, Minivit, assert_refused, save_squares, weights

from minivit.data.on_demand import Stored

OPTIONS = (*TINY, "--epochs", "2", "--lr", "0.002")


def test_a_run_on_prepared_images_has_the_bits_of_one_on_the_folder(
    cli: Minivit, squares: Path, run_folder: Path
) -> None:
    said = cli("prepare", squares, "out", *TINY)
    assert said.status == 0
    wrote, following = said.out.splitlines()[-2:]
    assert wrote == "wrote out: 24 training and 10 test images of 8 x 8 x 1, 0 MB"
    assert following == shlex.join(["next:", "minivit", "train", "out", *TINY]).replace("'next:'", "next:")
    for stream in ("--stream", "--no-stream"):
        assert cli("train", "out", *OPTIONS, stream, "--run", f"run{stream}").status == 0
        assert weights(Path(f"run{stream}")) == weights(run_folder)


def test_a_run_on_a_folder_that_is_streamed_has_the_same_bits(cli: Minivit, squares: Path, run_folder: Path) -> None:
    assert cli("train", squares, *OPTIONS, "--stream", "--run", "run").status == 0
    assert weights(Path("run")) == weights(run_folder)


def test_prepared_images_are_evaluated_and_predicted(cli: Minivit, squares: Path, run_folder: Path) -> None:
    assert cli("prepare", squares, "out", *TINY).status == 0
    results = [
        cli("eval", run_folder, "--dataset", path, *stream, "--json").json()
        for path, stream in ((squares, []), (squares, ["--stream"]), ("out", ["--stream"]))
    ]
    assert results[0]["accuracy"] == results[1]["accuracy"] == results[2]["accuracy"]
    assert results[0]["loss"] == results[1]["loss"] == results[2]["loss"]
    assert cli("augment", "digits", "--dataset", "out").status == 0


def test_the_object_of_json(cli: Minivit, squares: Path) -> None:
    values = cli("prepare", squares, "out", *TINY, "--json").json()
    assert values["out"] == "out"
    assert (values["training_images"], values["validation_images"], values["test_images"]) == (24, 0, 10)
    assert (values["image_size"], values["channels"], values["bytes"]) == ([8, 8], 1, 128 + 34 * 8 * 8)


def test_the_validation_part_is_counted_apart(cli: Minivit, tmp_path: Path) -> None:
    data = save_squares(tmp_path / "data")
    shutil.copytree(data / "test", data / "val")
    (data / "val" / "left" / "0.png").unlink()
    said = cli("prepare", data, "out", *TINY)
    assert "wrote out: 24 training, 9 validation and 10 test images of 8 x 8 x 1" in said.out
    assert "data: 24 training, 9 validation and 10 test images" in cli("train", "out", *TINY, "--epochs", 1).out
    values = cli("prepare", data, "other", *TINY, "--json").json()
    assert (values["training_images"], values["validation_images"], values["test_images"]) == (24, 9, 10)


def test_the_recipe_is_that_of_the_folder(cli: Minivit, squares: Path) -> None:
    said = cli("prepare", squares, "out")
    assert said.status == 0
    size = np.load("out/images.npy").shape[1]
    assert said.out.splitlines()[-2].startswith(f"wrote out: 24 training and 10 test images of {size} x {size} x 1")
    recipes = [cli("train", path, "--epochs", 1, "--run", run).err for path, run in ((squares, "a"), ("out", "b"))]
    lines = [[line for line in said.splitlines() if "parameters" in line] for said in recipes]
    assert lines[0] == lines[1]


def test_a_named_data_set_is_prepared_for_its_own_recipe(cli: Minivit) -> None:
    said = cli("prepare", "digits", "out")
    following = said.out.splitlines()[-1]
    assert following == "next: minivit train out --recipe digits"
    given = ("--epochs", 1, "--set", "depth=1")
    trained = cli(*following.split()[2:], *given, "--run", "a")
    assert (trained.status, "warning: the images" in trained.err) == (0, False)
    assert cli("train", "digits", *given, "--run", "b").status == 0
    assert weights(Path("a")) == weights(Path("b"))
    assert cli("prepare", "digits", "large", "--set", "img_size=16").status == 0
    assert np.load("large/images.npy").shape == (1797, 16, 16, 1)


def test_a_run_is_no_data_set(cli: Minivit, run_folder: Path) -> None:
    for command in (["prepare", run_folder, "out"], ["lr-find", run_folder]):
        assert_refused(cli(*command), 2, "is a run, not a data set; give images")


def test_a_run_whose_images_are_lost_says_how_it_goes_on(
    cli: Minivit, squares: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cli("prepare", squares, "out", *TINY).status == 0
    read, count = Stored.read, [0]

    def lost(source: Stored, index: Any) -> Any:
        count[0] += 1
        if count[0] == 3:
            Path("out/images.npy").rename("away.npy")
        return read(source, index)

    monkeypatch.setattr(Stored, "read", lost)
    given = ("train", "out", *TINY, "--epochs", 4, "--batch-size", 8, "--run", "run")
    said = cli(*given, "--stream")
    assert_refused(said, 1, "No such file", "To continue from the last checkpoint: minivit train out --run", "--stream")
    Path("away.npy").rename("out/images.npy")
    assert cli("train", "out", "--run", "run", "--stream", "--resume").status == 0


def test_prepared_images_are_prepared_in_another_size(cli: Minivit, squares: Path) -> None:
    assert cli("prepare", squares, "out", *TINY).status == 0
    said = cli("prepare", "out", "small", *TINY, "--set", "img_size=4")
    assert "prepared with size (8, 8) and not (4, 4)" in said.err
    assert np.load("small/images.npy").shape == (34, 4, 4, 1)


@pytest.mark.parametrize("out", ["file", "full"])
def test_what_is_there_is_not_overwritten(cli: Minivit, squares: Path, out: str) -> None:
    Path("file").write_text("kept")
    Path("full").mkdir()
    Path("full/kept").touch()
    assert_refused(
        cli("prepare", squares, out), 2, f"{out} exists already and is not an empty folder; give another one"
    )
    assert Path("file").read_text() == "kept"
    assert [path.name for path in Path("full").iterdir()] == ["kept"]


def test_an_image_that_cannot_be_read_leaves_nothing(cli: Minivit, tmp_path: Path) -> None:
    save_squares(tmp_path / "photos")
    (tmp_path / "photos" / "train" / "left" / "0.png").write_bytes(b"no image")
    assert_refused(cli("prepare", "photos", "out", *TINY), 2, "0.png cannot be read", "--skip-bad")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photos"]
    said = cli("prepare", "photos", "out", *TINY, "--skip-bad")
    assert said.status == 0
    assert "left out images that cannot be read (1)" in said.err


class FullDisk(io.FileIO):
    def write(self, _: object) -> int:
        raise OSError(28, "No space left on device")


def test_a_full_disk_is_one_line(cli: Minivit, squares: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = Path.open

    def full(path: Path, mode: str = "r", *others: Any, **more: Any) -> Any:
        is_written = mode == "wb" and path.name == "images.npy"
        return FullDisk(path, "w") if is_written else opened(path, mode, *others, **more)

    monkeypatch.setattr(Path, "open", full)
    assert_refused(cli("prepare", squares, "out", *TINY), 1, "cannot write", "out: No space left", "free some space")
    assert not [*Path().iterdir()]
