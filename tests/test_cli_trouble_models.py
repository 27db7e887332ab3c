"""Errors of ``minivit eval`` and ``predict``: models, images and devices that do not fit."""

import os
import sys
from pathlib import Path
from typing import Any

import pytest
from command_line import Minivit, assert_refused, save_squares
from PIL import Image

import minivit
from minivit.cli import COMMANDS


class CUBLASError(RuntimeError):
    """CuPy raises an exception of this name."""


TOO_SMALL = [MemoryError("Out of memory allocating 1,024 bytes"), CUBLASError("CUBLAS_STATUS_ALLOC_FAILED")]


@pytest.mark.parametrize("error", TOO_SMALL, ids=str)
@pytest.mark.parametrize("place", ["engine.Engine.predict", "cli.common.load_model"])
def test_the_error_for_too_little_device_memory_says_what_to_do(
    cli: Minivit, squares: Path, run_folder: Path, error: Exception, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(f"minivit.{place}", full)
    image = squares / "test" / "left" / "0.png"
    for argv in (("eval", run_folder), ("predict", run_folder, image)):
        assert_refused(cli(*argv, "--backend", "strict"), 1, "--backend strict has too little", "--backend numpy")
        assert_refused(cli(*argv), 1, f"out of memory: {error}")


def test_too_little_memory_in_another_command(cli: Minivit, monkeypatch: pytest.MonkeyPatch) -> None:
    for error, words in ((TOO_SMALL[1], "out of memory: CUBLAS_STATUS_ALLOC_FAILED"), (MemoryError(), "out of memory")):

        def full(*_: Any, error: Exception = error) -> None:
            raise error

        monkeypatch.setattr(COMMANDS["info"], "run", full)
        said = cli("info")
        assert_refused(said, 1, words)
        assert said.err.endswith(f"{words}\n")


def test_the_other_images_are_classified_if_one_cannot_be_read(cli: Minivit, run_folder: Path, squares: Path) -> None:
    good = squares / "test" / "left" / "0.png"
    Path("bad.png").write_bytes(good.read_bytes()[:50])
    said = cli("predict", run_folder, "bad.png", good, "--json")
    assert_refused(said, 2, "bad.png cannot be read as an image")
    assert [prediction["path"] for prediction in said.json()["predictions"]] == [str(good)]
    assert [error["path"] for error in said.json()["errors"]] == ["bad.png"]
    assert_refused(cli("predict", run_folder, "nowhere.png"), 2, "no file nowhere.png")


def test_eval_converts_the_images_of_a_folder_to_the_channels_of_the_model(
    cli: Minivit, run_folder: Path, tmp_path: Path
) -> None:
    in_grey, in_colour = (save_squares(tmp_path / name / "squares", 2) for name in ("grey", "colour"))
    for file in in_colour.rglob("0.png"):
        Image.open(file).convert("RGB").save(file)
    said, of_grey = (cli("eval", run_folder, "--dataset", each, "--json").json() for each in (in_colour, in_grey))
    assert said == of_grey | {"dataset": said["dataset"]}
    begun = cli("train", in_colour, "--init", run_folder, "--epochs", 1, "--threads", 1, "--json")
    assert begun.status == 0, begun
    assert minivit.load_model(begun.json()["run"]).config.in_chans == 1


def test_eval_of_a_data_set_with_other_channels(cli: Minivit, tmp_path: Path) -> None:
    minivit.save_model(minivit.create_model("vit_micro_patch4_8", in_chans=3), tmp_path / "rgb")
    said = cli("eval", tmp_path / "rgb", "--dataset", "digits")
    assert said.status == 2
    assert "expects images of 3 channels, but digits has 1" in said.err


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no named pipes in folders")
def test_a_pipe_is_refused_as_an_image_without_blocking(cli: Minivit, run_folder: Path) -> None:
    os.mkfifo("pipe.png")
    assert_refused(cli("predict", run_folder, "pipe.png"), 2, "pipe.png", "it is not a regular file")


def test_a_model_for_other_classes(cli: Minivit, run_folder: Path, tmp_path: Path) -> None:
    folder = save_squares(tmp_path / "squares", 2)
    for part in ("train", "test"):
        (folder / part / "left").rename(folder / part / "middle")
    said = cli("eval", run_folder, "--dataset", folder)
    assert_refused(said, 2, "2 classes (left, right)", "2 classes (middle, right)", "left only there, middle only here")


@pytest.mark.filterwarnings("default")
def test_a_model_file_without_class_names_answers_with_class_numbers(cli: Minivit, squares: Path) -> None:
    minivit.save_model(minivit.create_model("vit_micro_patch4_8"), "model.safetensors")
    said = cli("predict", "model.safetensors", squares / "test" / "left" / "0.png", "--json")
    assert said.status == 0
    assert {top["label"] for top in said.json()["predictions"][0]["top"]} <= set("0123456789")
    assert said.err.splitlines() == [
        "minivit: warning: model.safetensors does not say how its images were normalised; assumed: mean [0.5], "
        "std [0.5]"
    ]
    assert_refused(cli("eval", "model.safetensors"), 2, "--dataset")


def test_class_names_that_are_not_those_of_the_head_are_refused(cli: Minivit, squares: Path) -> None:
    about = {"class_names": ["a", "b"], "mean": [0.5], "std": [0.5]}
    minivit.save_model(minivit.create_model("vit_micro_patch4_8"), "model.safetensors", extra=about)
    said = cli("predict", "model.safetensors", squares / "test" / "left" / "0.png")
    assert_refused(said, 2, "2 class names", "10")


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("class_names", 5, "its class_names are 5; expected a list of texts"),
        ("class_names", None, "expected a list of texts"),
        ("class_names", [[]] * 10, "expected a list of texts"),
        ("class_names", "0123456789", "expected a list of texts"),
        ("mean", "x", "its mean is 'x'; expected a list of 1 numbers"),
        ("mean", None, "its mean is None"),
        ("mean", [0.1, 0.2], "expected a list of 1 numbers"),
        ("mean", ["a"], "its mean is ['a']"),
        ("mean", [10**400], "its mean is [1000"),
        ("std", [0], "its std is [0.0]; expected numbers above 0"),
        ("std", [-1], "its std is [-1.0]"),
        ("std", [1e-300], "its std is [1e-300]"),
        ("std", [True], "its std is [True]"),
        ("std", {}, "its std is {}"),
        ("crop_pct", "x", "its crop_pct is 'x'; expected a number from 0.05 to 1"),
        ("crop_pct", 0, "its crop_pct is 0"),
        ("crop_mode", "border", "its crop_mode is 'border'; expected one of center, squash"),
        ("crop_mode", [], "its crop_mode is []"),
        ("interpolation", "random", "its interpolation is 'random'; expected one of nearest, bilinear"),
    ],
)
def test_metadata_of_the_wrong_kind_are_refused(
    cli: Minivit, squares: Path, key: str, value: object, words: str
) -> None:
    about = {"class_names": list("0123456789"), "mean": [0.5], "std": [0.5], key: value}
    minivit.save_model(minivit.create_model("vit_micro_patch4_8", depth=1), "model.safetensors", extra=about)
    assert_refused(cli("predict", "model.safetensors", squares / "test" / "left" / "0.png"), 2, words)
