"""Errors of the commands: each gives an exit status and one clear line, and no data are lost."""

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import TINY, Minivit, assert_refused, save_squares, weights
from PIL import Image
from strict import strict

import minivit
from minivit.cli import COMMANDS, main
from minivit.train import trainer
from minivit.train.interrupt import Interrupted
from minivit.train.trainer import Trainer
from minivit.weights import read_tensors


def test_an_unknown_command(cli: Minivit) -> None:
    assert_refused(cli("trian", "digits"), 2, "'trian'", "did you mean 'train'", "gradcheck")


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ([], ["COMMAND"]),
        (["train"], ["DATA", "minivit train --help"]),
        (["train", "digits", "--epoch", 3], ["--epoch", "minivit train --help"]),
        (["train", "digits", "--epochs", "many"], ["--epochs", "many"]),
        (["train", "digits", "--epochs", 0], ["epochs is 0", "at least 1"]),
        (["train", "digits", "--lr", "nan"], ["lr is nan"]),
        (["train", "digits", "--validation", 1], ["validation is 1.0"]),
        (["train", "digits", "--seed", -1], ["seed is -1"]),
        (["train", "digits", "--optimizer", "adamax"], ["adamax", "adamw"]),
        (["train", "digits", "--set", "depht=2"], ["depht", "depth"]),
        (["train", "digits", "--set", "depth=two"], ["depth=two", "a whole number"]),
        (["train", "digits", "--set", "depth"], ["FIELD=VALUE"]),
        (["train", "digits", "--set", "img_size=8x8x8"], ["img_size=8x8x8", "pixels"]),
        (["train", "digits", "--set", "img_size=32"], ["img_size", "digits has (8, 8)"]),
        (["train", "digits", "--set", "patch_size=3"], ["8 x 8", "3 x 3", "patch_size that divides"]),
        (["train", "digits", "--model", "vit_tiny_patch16_224"], ["8 x 8", "16 x 16"]),
        (["train", "digits", "--model", "vit_tinny_patch4_32"], ["did you mean 'vit_tiny_patch4_32'"]),
        (["train", "digitz"], ["'digitz'", "did you mean digits"]),
        (["train", "cifar-10"], ["did you mean cifar10"]),
        (["train", "digits", "--resume"], ["no run of digits"]),
        (["train", "digits", "--resume", "--run", "nowhere"], ["nowhere is not a run"]),
        (["train", "digits", "--backend", "tpu"], ["tpu"]),
        (["eval", "nowhere"], ["nowhere"]),
        (["predict", "nowhere", "a.png"], ["nowhere"]),
        (["gradcheck", "atention"], ["'atention'", "did you mean 'attention'"]),
        (["gradcheck", "linear", "--batch", 0], ["--batch is 0"]),
        (["gradcheck", "vit_micro_patch4_8", "--depth", 0], ["depth is 0"]),
        (["info", "vit_smal_patch16_224"], ["did you mean 'vit_small_patch16_224'"]),
    ],
    ids=lambda value: " ".join(map(str, value)),
)
def test_bad_options(cli: Minivit, argv: list[object], words: list[str]) -> None:
    assert_refused(cli(*argv), 2, *words)
    assert not list(Path.cwd().iterdir())


def test_the_command_to_continue_names_the_device(cli: Minivit, squares: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(self: Trainer, *_: Any) -> None:
        raise Interrupted(3)

    monkeypatch.setattr(Trainer, "fit", interrupted)
    options = ("--backend", "strict", "--precision", "tf32", "--micro-batch", 4)
    said = cli("train", squares, *TINY, *options, "--run", "here")
    assert said.status == 1
    options_again = "--precision tf32 --backend strict --micro-batch 4"
    assert said.err.endswith(f"To continue: minivit train {squares} --run here {options_again} --resume\n")
    said = cli("train", squares, *TINY, "--micro-batch", 4, "--run", "there")
    assert said.err.endswith(f"To continue: minivit train {squares} --run there --resume\n")


def test_out_of_memory_gives_the_command_that_helps(
    cli: Minivit, squares: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr("minivit.engine.Engine.training_step", full)
        said = cli("train", squares, *TINY, "--backend", "strict", "--batch-size", 16, "--run", "here")
    assert_refused(
        said, 1, "at step 1, taking 16 images at a time. About 8 would fit: --micro-batch 8 cuts", "here/last"
    )
    again = said.err.rpartition(": minivit ")[2]
    assert again == f"train {squares} --run here --backend strict --micro-batch 8 --resume\n"
    assert cli(*again.split()).status == 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--precision", "bfloat16"), ["precision bfloat16 needs a GPU"]),
        (("--precision", "tf32", "--dtype", "float64", "--backend", "strict"), ["float64", "leave it out"]),
        (("--precision", "bfloat16", "--backend", "strict"), ["compute capability 7.5, but bfloat16 needs 8.0"]),
        (("--precision", "double"), ["double", "bfloat16"]),
        (("--micro-batch", -1), ["micro_batch is -1; expected 0 or more"]),
        (("--micro-batch", -1, "--backend", "strict"), ["micro_batch is -1; expected at least 0"]),
        (("--threads", 0), ["threads is 0; expected at least 1"]),
    ],
    ids=str,
)
def test_contradictory_options_are_refused_before_the_images_are_read(
    cli: Minivit, options: tuple[object, ...], words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(*_: Any) -> None:
        raise AssertionError("the images were read")

    monkeypatch.setattr("minivit.cli.train.open_dataset", read)
    monkeypatch.setattr(strict, "compute_capability", lambda: (7, 5), raising=False)
    assert_refused(cli("train", "cifar10", *options), 2, *words)
    assert not list(Path.cwd().iterdir())


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


def test_cupy_that_is_not_installed(cli: Minivit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)
    assert_refused(cli("train", "digits", "--backend", "cupy"), 2, "CuPy", "numpy")


def test_an_empty_class_folder(cli: Minivit, tmp_path: Path) -> None:
    folder = save_squares(tmp_path / "squares", 2)
    (folder / "train" / "empty").mkdir()
    assert_refused(cli("train", folder, *TINY), 2, str(folder / "train" / "empty"))
    assert not (tmp_path / "runs").exists()


def test_a_corrupt_training_image(cli: Minivit, tmp_path: Path) -> None:
    folder = save_squares(tmp_path / "squares", 2)
    file = folder / "train" / "left" / "1.png"
    file.write_bytes(file.read_bytes()[:60])
    assert_refused(cli("train", folder, *TINY), 2, str(file))


def test_the_other_images_are_classified_if_one_cannot_be_read(cli: Minivit, run_folder: Path, squares: Path) -> None:
    good = squares / "test" / "left" / "0.png"
    Path("bad.png").write_bytes(good.read_bytes()[:50])
    said = cli("predict", run_folder, "bad.png", good, "--json")
    assert_refused(said, 2, "bad.png cannot be read as an image")
    assert [prediction["path"] for prediction in said.json()["predictions"]] == [str(good)]
    assert [error["path"] for error in said.json()["errors"]] == ["bad.png"]
    assert_refused(cli("predict", run_folder, "nowhere.png"), 2, "no file nowhere.png")
    assert_refused(cli("predict", run_folder, "."), 2, "is a folder")


def test_an_existing_run_is_kept(cli: Minivit, squares: Path, run_folder: Path) -> None:
    before = weights(run_folder)
    assert_refused(cli("train", squares, "--run", run_folder), 2, str(run_folder), "--resume")
    assert weights(run_folder) == before


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--lr", 0.5], ["lr is 0.002 in the run, 0.5 was asked for"]),
        (["--epochs", 7, "--seed", 1], ["epochs is 2", "seed is 0"]),
        (["--set", "depth=2"], ["model_options"]),
    ],
    ids=lambda value: " ".join(map(str, value)),
)
def test_options_that_differ_from_the_recipe_on_resume(
    cli: Minivit, squares: Path, run_folder: Path, options: list[object], words: list[str]
) -> None:
    assert_refused(cli("train", squares, "--run", run_folder, "--resume", *options), 2, *words)


def test_another_dataset_on_resume(cli: Minivit, run_folder: Path) -> None:
    assert_refused(cli("train", "digits", "--run", run_folder, "--resume"), 2, "dataset", "'digits'")


def test_the_same_options_on_resume(cli: Minivit, squares: Path, run_folder: Path) -> None:
    options = (squares, *TINY, "--epochs", 2, "--lr", 2e-3, "--run", run_folder, "--resume")
    assert cli("train", *options).status == 0


@pytest.mark.parametrize("keep", [0, 100])
def test_a_truncated_checkpoint(cli: Minivit, squares: Path, tmp_path: Path, keep: int) -> None:
    assert cli("train", squares, *TINY, "--epochs", 1, "--run", "here").status == 0
    for name in ("best/model.safetensors", "last/training.safetensors"):
        file = tmp_path / "here" / name
        file.write_bytes(file.read_bytes()[:keep])
    (tmp_path / "here" / "result.json").unlink()
    assert_refused(cli("train", squares, "--run", "here", "--resume"), 2, "training.safetensors")
    assert_refused(cli("eval", "here"), 2, "model.safetensors")
    assert_refused(cli("predict", "here", squares / "test" / "left" / "0.png"), 2, "model.safetensors")


def test_the_checkpoint_of_another_model(cli: Minivit, squares: Path) -> None:
    assert cli("train", squares, *TINY, "--epochs", 1, "--run", "here").status == 0
    Path("here/result.json").unlink()
    recipe = json.loads(Path("here/recipe.json").read_text())
    recipe["model_options"]["depth"] = 2
    Path("here/recipe.json").write_text(json.dumps(recipe))
    said = cli("train", squares, "--run", "here", "--resume")
    assert_refused(said, 2, "training.safetensors", "another model")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"epochs": 3}', '{"dataset": "x", "model": "y", "epochs": "many"}'])
def test_a_damaged_recipe(cli: Minivit, squares: Path, text: str) -> None:
    Path("here").mkdir()
    Path("here/recipe.json").write_text(text)
    assert_refused(cli("train", squares, "--run", "here", "--resume"), 2)
    assert_refused(cli("eval", "here"), 2)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda run: (run / "last" / "training.safetensors").unlink(), ["lost last/training.safetensors"]),
        (lambda run: (run / "metrics.jsonl").unlink(), ["metrics.jsonl", "a line for each epoch"]),
        (lambda run: (run / "metrics.jsonl").write_text(""), ["metrics.jsonl", "a line for each epoch"]),
        (lambda run: (run / "metrics.jsonl").write_text('{"epo'), ["metrics.jsonl is damaged"]),
        (lambda run: (run / "metrics.jsonl").write_text('{"step": 1}'), ["line 1 is not the metrics of an epoch"]),
        (lambda run: (run / "metrics.jsonl").write_text("[1]"), ["line 1 is not the metrics of an epoch"]),
        (lambda run: (run / "result.json").write_text("{}"), ["result.json", "lacks best_epoch", "remove it"]),
        (lambda run: (run / "result.json").write_text("oops"), ["result.json", "not valid JSON"]),
        (lambda run: edit_recipe(run, seed=1), ["recipe.json was changed", ": seed;"]),
        (lambda run: edit_recipe(run, epochs=3, lr=0.1), ["recipe.json was changed", ": epochs, lr;"]),
        (lambda run: (run / "best" / "model.safetensors").unlink(), ["best", "model.safetensors"]),
    ],
)
def test_a_damaged_run_is_refused_and_not_changed(
    cli: Minivit, squares: Path, run_folder: Path, damage: Callable[[Path], object], words: list[str]
) -> None:
    here = Path("here")
    shutil.copytree(run_folder, here)
    (here / "result.json").unlink()
    damage(here)
    before = {path: path.read_bytes() for path in here.rglob("*") if path.is_file()}
    assert_refused(cli("train", squares, "--run", here, "--resume"), 2, *words)
    assert {path: path.read_bytes() for path in here.rglob("*") if path.is_file()} == before


def edit_recipe(run: Path, **fields: Any) -> None:
    recipe = json.loads((run / "recipe.json").read_text())
    (run / "recipe.json").write_text(json.dumps(recipe | fields))


def test_images_that_were_moved(cli: Minivit, tmp_path: Path) -> None:
    folder = save_squares(tmp_path / "squares")
    assert cli("train", folder, *TINY, "--epochs", 1, "--validation", 0, "--run", "here").status == 0
    Path("here/result.json").unlink()
    moved = folder.rename(tmp_path / "moved")
    assert_refused(cli("train", "squares", "--run", "here", "--resume"), 2, str(folder), "neither a data set nor")
    edit_recipe(Path("here"), dataset=str(moved))
    assert cli("train", "moved", "--run", "here", "--resume").status == 0


def test_the_error_after_ctrl_c_twice_has_the_command_to_continue(
    cli: Minivit, squares: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def twice(self: trainer.Trainer, samples: Any) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(trainer.Trainer, "_step", twice)
    said = cli("train", squares, *TINY, "--run", "here", "--data", "some where")
    assert_refused(said, 1, "stopped at once", "--run here --data 'some where' --resume")


def test_eval_of_images_with_other_channels(cli: Minivit, run_folder: Path, tmp_path: Path) -> None:
    folder = save_squares(tmp_path / "squares", 2)
    for file in folder.rglob("0.png"):
        Image.open(file).convert("RGB").save(file)
    assert_refused(cli("eval", run_folder, "--dataset", folder), 2, "images of 1 channels, but squares has 3")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no named pipes in folders")
def test_a_pipe_is_refused_as_an_image_without_blocking(cli: Minivit, run_folder: Path) -> None:
    os.mkfifo("pipe.png")
    assert_refused(cli("predict", run_folder, "pipe.png"), 2, "pipe.png", "it is not a file")


def test_a_process_without_standard_output(cli: Minivit, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", None)
        status = main(["info", "--json"])
    assert status == 0


def test_a_model_for_other_classes(cli: Minivit, run_folder: Path, tmp_path: Path) -> None:
    folder = save_squares(tmp_path / "squares", 2)
    for part in ("train", "test"):
        (folder / part / "left").rename(folder / part / "middle")
    said = cli("eval", run_folder, "--dataset", folder)
    assert_refused(said, 2, "2 classes (left, right)", "2 classes (middle, right)")


def test_a_model_file_without_class_names(cli: Minivit, squares: Path) -> None:
    minivit.save_model(minivit.create_model("vit_micro_patch4_8"), "model.safetensors")
    said = cli("predict", "model.safetensors", squares / "test" / "left" / "0.png")
    assert_refused(said, 2, "class_names, mean, std")
    assert_refused(cli("eval", "model.safetensors"), 2, "--dataset")
    about = {"class_names": ["a", "b"], "mean": [0.5], "std": [0.5]}
    minivit.save_model(minivit.create_model("vit_micro_patch4_8"), "model.safetensors", extra=about)
    said = cli("predict", "model.safetensors", squares / "test" / "left" / "0.png")
    assert_refused(said, 2, "names 2 classes", "10")


def test_a_loss_that_is_not_finite(cli: Minivit, squares: Path) -> None:
    said = cli("train", squares, *TINY, "--batch-size", 8, "--lr", 1e30, "--run", "here")
    assert_refused(said, 1, "not finite at step ", "shows first in the result of ", "here/last", "--lr")
    for value in read_tensors("here/last/model.safetensors")[0].values():
        assert np.isfinite(value).all()


def test_a_file_in_place_of_the_run_folder(cli: Minivit, squares: Path, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    assert_refused(cli("train", squares, *TINY, "--run", "taken"), 1, "taken")
    assert_refused(cli("train", squares, *TINY, "--run", "taken/run"), 1, "taken")


def test_an_unexpected_error(cli: Minivit, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise KeyError("surprise")

    monkeypatch.setattr(COMMANDS["info"], "run", fail)
    assert_refused(cli("info"), 1, "unexpected KeyError: 'surprise'", "--debug")
    said = cli("info", "--debug")
    assert said.status == 1
    assert "Traceback" in said.err
