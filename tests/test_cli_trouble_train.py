"""Errors of ``minivit train``: one clear line each, and no run and no data are lost."""

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import TINY, Minivit, assert_refused, save_squares, weights
from strict import strict

from minivit import create_model, save_model
from minivit.files import with_checksum, write_json
from minivit.train import trainer
from minivit.train.interrupt import Interrupted
from minivit.train.run_folder import RunFolder
from minivit.train.trainer import Trainer
from minivit.weights import read_tensors


@pytest.mark.parametrize("options", [[], ["--resume"]])
def test_a_run_in_place_of_a_data_set_is_told_how_to_go_on(
    cli: Minivit, run_folder: Path, squares: Path, options: list[str]
) -> None:
    command = f"minivit train {squares} --run {run_folder} --resume"
    assert_refused(cli("train", run_folder, *options), 2, f"is a run, not a data set; to continue it: {command}")


@pytest.mark.filterwarnings("default")
def test_a_recipe_for_fine_tuning_asks_for_weights(cli: Minivit, squares: Path) -> None:
    said = cli("train", squares, *TINY, "--recipe", "finetune", "--run", "here")
    assert "the recipe finetune is for fine-tuning, but the run begins with random parameters: give --init" in said.err


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
        said = cli("train", squares, *TINY, "--backend", "strict", "--batch-size", 16, "--epochs", 2, "--run", "here")
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
        (("--micro-batch", -1), ["micro_batch is -1; expected", "at least 0"]),
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

    monkeypatch.setattr("minivit.cli.training.open_dataset", read)
    monkeypatch.setattr(strict, "compute_capability", lambda: (7, 5), raising=False)
    assert_refused(cli("train", "cifar10", *options), 2, *words)
    assert not list(Path.cwd().iterdir())


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


def test_an_existing_run_is_kept(cli: Minivit, squares: Path, run_folder: Path) -> None:
    before = weights(run_folder)
    assert_refused(cli("train", squares, "--run", run_folder), 2, str(run_folder), "--resume")
    assert weights(run_folder) == before


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--lr", 0.5], ["lr is 0.002 in the run, 0.5 was asked for"]),
        (["--epochs", 7, "--seed", 1], ["seed is 0"]),
        (["--epochs", 1], ["a run of 2 epochs", "longer, not shorter"]),
        (["--set", "depth=2"], ["model_options"]),
        (["--set", "epochs=ten"], ["epochs is 'ten'; expected a whole number"]),
    ],
    ids=lambda value: " ".join(map(str, value)),
)
def test_options_that_differ_from_the_recipe_on_resume(
    cli: Minivit, squares: Path, run_folder: Path, options: list[object], words: list[str]
) -> None:
    assert_refused(cli("train", squares, "--run", run_folder, "--resume", *options), 2, *words)


def test_another_recipe_on_resume_is_compared_as_a_whole(cli: Minivit, squares: Path) -> None:
    Path("one.toml").write_text('model = "vit_micro_patch4_8"\nauto_augment = "trivial"\nepochs = 1\n')
    Path("other.toml").write_text('model = "vit_micro_patch4_8"\n')
    begun = ("train", squares, *TINY, "--run", "here", "--threads", 1)
    assert cli(*begun, "--recipe", "one.toml", "--micro-batch", 2, "--seed", 3).status == 0
    assert cli(*begun, "--recipe", "one.toml", "--resume").status == 0
    said = cli(*begun, "--recipe", "other.toml", "--resume")
    assert_refused(said, 2, "auto_augment is 'trivial' in the run, '' was asked for")


def test_another_dataset_on_resume(cli: Minivit, run_folder: Path) -> None:
    said = cli("train", "digits", "--run", run_folder, "--resume")
    assert_refused(said, 2, "other images than", "dataset", "'digits'")


def test_the_same_options_on_resume(cli: Minivit, squares: Path, run_folder: Path) -> None:
    options = (squares, *TINY, "--epochs", 2, "--lr", 2e-3, "--run", run_folder, "--resume")
    before = weights(run_folder)
    said = cli("train", *options)
    assert said.status == 0
    assert "is finished" in said.out + said.err
    assert weights(run_folder) == before


def test_options_that_change_nothing_on_resume(cli: Minivit, squares: Path) -> None:
    begun = ("train", squares, "--init", "a", "--epochs", 1, "--run", "here", "--threads", 1, "--micro-batch", 0)
    save_model(create_model("vit_micro_patch4_8", num_classes=0, seed=0), "a")
    options = ("--set", "num_heads=4", "--set", "img_size=8")
    assert cli(*begun, *options).status == 0
    assert cli(*begun, *options, "--resume").status == 0
    assert_refused(cli(*begun, "--set", "num_heads=2", "--resume"), 2, "model_options is")


def test_a_validation_part_of_the_images_own_is_used_whatever_is_asked_for(cli: Minivit, tmp_path: Path) -> None:
    folder = save_squares(tmp_path / "squares", 2)
    shutil.copytree(folder / "test", folder / "val")
    said = cli("train", folder, *TINY, "--validation", 0, "--threads", 1)
    assert "--validation has no effect: the images have a validation part of their own" in said.out


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
    write_json("here/recipe.json", with_checksum(recipe))
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
        (lambda run: edit_recipe(run, seed=1), ["recipe.json was changed or damaged", "put the original back"]),
        (lambda run: edit_recipe(run, seed=1, sealed=True), ["recipe.json was changed", ": seed;"]),
        (lambda run: edit_recipe(run, lr=0.1, sealed=True), ["recipe.json was changed", ": lr;"]),
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


def edit_recipe(run: Path, sealed: bool = False, **fields: Any) -> None:
    """Change fields of recipe.json; `sealed` for a checksum that fits."""
    recipe = json.loads((run / "recipe.json").read_text()) | fields
    write_json(run / "recipe.json", with_checksum(recipe) if sealed else recipe)


@pytest.mark.parametrize("head", [0, 6])
def test_a_fine_tuning_that_was_killed_before_its_first_checkpoint_goes_on(
    cli: Minivit, squares: Path, head: int
) -> None:
    body: dict[str, Any] = {"patch_size": 2, "depth": 1, "embed_dim": 8, "num_heads": 2, "representation_size": head}
    save_model(
        create_model("vit_micro_patch4_8", num_classes=5, seed=3, **body), "a", extra={"mean": [0.5], "std": [0.5]}
    )
    command = ("train", squares, "--init", "a/model.safetensors", "--run", "b")
    assert cli(*command, "--epochs", 1).status == 0
    before = weights(Path("b"))
    for path in Path("b").iterdir():
        if path.name != "recipe.json":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert_refused(cli("train", squares, "--run", "b", "--resume"), 2, "give its initial weights again (--init)")
    said = cli(*command, "--resume")
    assert said.status == 0, said
    assert "begins with the weights of a/model.safetensors" in said.out
    assert weights(Path("b")) == before


def test_images_that_have_moved_are_recognised(cli: Minivit, tmp_path: Path) -> None:
    folder = save_squares(tmp_path / "squares")
    options = (*TINY, "--epochs", 2, "--validation", 0.25)
    assert cli("train", folder, *options, "--run", "here").status == 0
    shutil.copytree("here", "finished")
    Path("here/result.json").unlink()
    folder.rename(tmp_path / "moved")
    said = cli("train", "squares", "--run", "here", "--resume")
    assert_refused(said, 2, str(folder), "neither a data set nor", "train NEW-PATH --run here --resume")
    assert_refused(cli("eval", "here"), 2, str(folder), "is gone", "--dataset")
    assert cli("eval", "here", "--dataset", "moved", "--split", "validation").status == 0
    for run in ("here", "finished"):
        assert cli("train", "moved", "--run", run, "--resume").status == 0
        assert RunFolder.open(Path(run)).recipe.dataset == str(tmp_path / "moved")
        assert cli("eval", run, "--split", "validation").status == 0


def test_other_images_are_not_those_that_have_moved(cli: Minivit, squares: Path, run_folder: Path) -> None:
    save_squares(Path("others"), count=13)
    for finished in (True, False):
        here = Path(f"here-{finished}")
        shutil.copytree(run_folder, here)
        if not finished:
            (here / "result.json").unlink()
        said = cli("train", "others", "--run", here, "--resume")
        assert_refused(said, 2, "trained on other images than", "others")
        assert RunFolder.open(here).recipe.dataset == str(squares)


def test_the_split_of_images_that_have_changed_is_not_known(cli: Minivit, tmp_path: Path) -> None:
    folder = save_squares(tmp_path / "squares")
    assert cli("train", folder, *TINY, "--epochs", 1, "--validation", 0.25, "--run", "here").status == 0
    for options in ((), ("--split", "validation"), ("--split", "train", "--set", "img_size=16")):
        said = cli("eval", "here", *options)
        assert (said.status, "have changed" in said.err) == (0, False), said
    (folder / "train" / "left" / "0.png").unlink()
    for split in ("validation", "train"):
        said = cli("eval", "here", "--split", split)
        assert_refused(said, 2, "squares have changed since here was trained on them", "leave --split out")
    said = cli("eval", "here")
    assert said.status == 0
    assert "some of the test images may have been training images" in said.err


def test_the_error_after_ctrl_c_twice_has_the_command_to_continue(
    cli: Minivit, squares: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def twice(self: trainer.Trainer, samples: Any) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(trainer.Trainer, "_step", twice)
    said = cli("train", squares, *TINY, "--run", "here", "--data", "some where")
    assert_refused(said, 1, "stopped at once", "--run here --data 'some where' --resume")


def test_a_loss_that_is_not_finite(cli: Minivit, squares: Path) -> None:
    said = cli("train", squares, *TINY, "--batch-size", 8, "--lr", 1e30, "--run", "here")
    assert_refused(said, 1, "not finite at step ", "shows first in the result of ", "here/last", "--lr")
    for value in read_tensors("here/last/model.safetensors")[0].values():
        assert np.isfinite(value).all()


def test_a_file_in_place_of_the_run_folder(cli: Minivit, squares: Path, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    assert_refused(cli("train", squares, *TINY, "--run", "taken"), 1, "taken")
    assert_refused(cli("train", squares, *TINY, "--run", "taken/run"), 1, "taken")
