"""Pre-training: the command, its files, how it is resumed, and what reads its encoder."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import TINY, Minivit, assert_refused
from PIL import Image
from small_run import RECIPE, Killed, Listener, bits, figures_drawn, kill, make_dataset, run_at, tensors, train

import minivit
from minivit import Engine, Key, UserError, ViT, get_config, load_model, masked_model
from minivit.cli import main
from minivit.nn.pretraining import TASKS
from minivit.train.recipe import Recipe
from minivit.train.run_folder import RunFolder
from minivit.weights import load_masked_model
from minivit.weights.masked import MASKED

SHORT = (*TINY, "--epochs", 2, "--batch-size", 8, "--warmup-epochs", 0.5)
OPTIONS: dict[str, dict[str, Any]] = {
    "mpp": {"target": "pixels"},
    "mae": {"ratio": 0.5, "decoder_dim": 8, "decoder_depth": 1},
    "simmim": {},
}


def recipe(task: str, **fields: Any) -> Recipe:
    return replace(RECIPE, label_smoothing=0.0, task=task, task_options=OPTIONS[task], **fields)


@pytest.fixture(scope="module")
def finished(squares: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of two epochs."""
    path = tmp_path_factory.mktemp("runs") / "finished"
    with figures_drawn():
        assert main(["pretrain", str(squares), *map(str, SHORT), "--run", str(path)]) == 0
    return path


@pytest.fixture
def pretrained(finished: Path, cli: Minivit) -> Path:
    """A copy of the finished run in the working folder."""
    return Path(shutil.copytree(finished, "pretrained"))


# The command


@pytest.mark.parametrize("task", TASKS)
def test_a_run_of_each_task_says_what_it_learns_and_what_to_do_next(cli: Minivit, squares: Path, task: str) -> None:
    said = cli("pretrain", squares, *SHORT, "--task", task)
    assert said.status == 0, said
    assert not said.err
    masked = {"mpp": 8, "mae": 12, "simmim": 10}[task]
    assert f"{masked} of the 16 patches of an image are predicted" in said.out
    assert "labels are not read" in said.out
    assert said.out.count("epoch ") == 2
    assert "accuracy" not in said.out
    assert re.search(r"^test loss \d+\.\d+ on 10 images", said.out, re.MULTILINE)
    assert f"minivit train {squares} --init runs/squares-pretrain-1" in said.out
    assert f"minivit probe runs/squares-pretrain-1 {squares}" in said.out


def test_the_object_of_json_has_losses_and_no_accuracy(cli: Minivit, squares: Path) -> None:
    values = cli("pretrain", squares, *SHORT, "--run", "here", "--json").json()
    assert values["test_accuracy"] is None
    assert values["best_val_accuracy"] is None
    assert values["test_loss"] > 0
    assert values["test_images"] == 10
    lines = [json.loads(line) for line in Path("here/metrics.jsonl").read_text().splitlines()]
    assert all("train_loss" in line and "train_accuracy" not in line and "val_accuracy" not in line for line in lines)


def test_the_run_folder_has_the_encoder_the_whole_model_and_pictures(pretrained: Path) -> None:
    encoder, whole = load_model(pretrained), load_masked_model(pretrained / "best" / MASKED)
    assert encoder.config.num_classes == 0
    for name, parameter in encoder.parameters.items():
        np.testing.assert_array_equal(parameter.value, whole.encoder.parameters[name].value)
    for picture in ("curves.png", "reconstructions.png"):
        with Image.open(pretrained / picture) as image:
            assert image.width > 300


def test_the_encoder_is_fine_tuned_and_probed(cli: Minivit, pretrained: Path, squares: Path) -> None:
    said = cli("train", squares, "--init", pretrained, "--epochs", 1, "--json")
    assert said.status == 0, said
    assert said.json()["test_images"] == 10
    probes = cli("probe", pretrained, squares, "--shots", 1, "--json").json()["probes"]
    assert 0 <= probes[0]["accuracy"] <= 1


def test_runs_and_info_show_the_task(cli: Minivit, pretrained: Path) -> None:
    assert "(mae)" in cli("runs", pretrained).out
    assert cli("runs", pretrained, "--json").json()["runs"][0]["task"] == "mae"
    said = cli("info", pretrained).out
    assert "mae" in said
    assert "10 test images" in said


def test_resume_continues_the_newest_run_of_pretraining(cli: Minivit, squares: Path) -> None:
    assert cli("pretrain", squares, *SHORT).status == 0
    said = cli("pretrain", squares, "--resume", "--epochs", 3, "--json")
    assert said.status == 0, said
    assert said.json()["run"] == "runs/squares-pretrain-1"
    assert said.json()["epochs"] == 3


@pytest.mark.parametrize(
    ("task", "option"), [("mpp", ("--mask-ratio", 0.5)), ("mpp", ("--target", "mean")), ("mae", ("--decoder-depth", 2))]
)
def test_an_option_of_the_task_that_changes_nothing_on_resume(
    cli: Minivit, squares: Path, task: str, option: tuple[Any, ...]
) -> None:
    assert cli("pretrain", squares, *SHORT, "--task", task, "--run", "run").status == 0
    said = cli("pretrain", squares, "--run", "run", "--resume", *option)
    assert said.status == 0, said
    assert_refused(cli("pretrain", squares, "--run", "run", "--resume", "--mask-ratio", 0.25), 2, "task_options")


def test_the_same_command_resumes_a_run_of_another_task_than_the_recipes(cli: Minivit, squares: Path) -> None:
    command = ("pretrain", squares, *SHORT, "--recipe", "pretrain", "--task", "simmim", "--run", "run")
    assert cli(*command).status == 0
    said = cli(*command, "--resume")
    assert said.status == 0, said


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--task", "jigsaw"), "'jigsaw' is not one of mpp, mae, simmim"),
        (("--mask-ratio", 0), "ratio is 0.0; expected above 0 and below 1"),
        (("--mask-ratio", 1), "ratio is 1.0; expected above 0 and below 1"),
        (("--task", "simmim", "--decoder-dim", 8), "decoder_dim is not an option of the task simmim, which has ratio"),
        (("--decoder-depth", -1), "decoder_depth is -1; expected a whole number of at least 0"),
        (("--decoder-dim", 0), "decoder_dim is 0; expected a whole number of at least 1"),
        (("--recipe", "digits"), "the recipe digits is for `minivit train`: it has no task"),
        (("--set", "num_classes=3"), "pre-training has no classes; leave num_classes out"),
        (("--model", "vit_mini_convstem4_32", "--set", "patch_size=4"), "use a model without a stem"),
    ],
)
def test_what_cannot_be_used_is_refused(cli: Minivit, squares: Path, options: tuple[Any, ...], words: str) -> None:
    assert_refused(cli("pretrain", squares, *SHORT, *options), 2, words)
    assert not Path("runs").exists()


def test_each_command_goes_on_with_its_own_runs_alone(cli: Minivit, pretrained: Path, squares: Path) -> None:
    said = cli("train", squares, "--run", pretrained, "--resume")
    assert_refused(said, 2, "pretrained is for `minivit pretrain`: it has the task mae")
    assert_refused(cli("train", pretrained), 2, f"minivit pretrain {squares} --run pretrained --resume")
    assert_refused(
        cli("train", squares, "--recipe", "pretrain"),
        2,
        "the recipe pretrain is for `minivit pretrain`: it has the task mae",
    )


def test_a_run_that_lost_its_whole_model_says_so_before_it_goes_on(cli: Minivit, pretrained: Path) -> None:
    run, best = RunFolder.open(pretrained), int(minivit.weights.model_metadata(pretrained)["step"])
    run.expect_models(best + 3, best)
    (pretrained / "best" / MASKED).unlink()
    with pytest.raises(UserError, match=f"pretrained has lost best/{MASKED}; bring it back, or begin a new run"):
        run.expect_models(best + 3, best)
    assert_refused(cli("trace", pretrained), 2, f"there is no file {pretrained / 'best' / MASKED}")


def test_models_of_the_other_kind_are_refused_in_words(tmp_path: Path) -> None:
    model = small_model("mae")
    with pytest.raises(UserError, match="save_model was given a MAE; expected a ViT"):
        minivit.save_model(model, tmp_path)
    with pytest.raises(UserError, match="save_masked_model was given a ViT; save_model writes a ViT"):
        minivit.save_masked_model(model.encoder, tmp_path)
    labels = np.arange(4) % 2
    pixels = np.zeros((4, 8, 8, 1), np.uint8)
    with pytest.raises(UserError, match=r"linear_probe was given a MAE; expected a ViT, such as model\.encoder"):
        minivit.linear_probe(model, pixels, labels, pixels, labels)


def test_a_whole_run_is_loaded_by_its_folder(pretrained: Path) -> None:
    model = minivit.load_masked_model(pretrained)
    assert model.task == "mae"
    assert model.encoder.config.num_classes == 0


def test_an_encoder_has_no_head_whatever_its_configuration_says() -> None:
    model = masked_model("mae", "vit_micro_patch4_8")
    assert model.config.num_classes == 0
    assert not [name for name in model.parameters if name.startswith("encoder.head")]


def test_a_pretrained_encoder_has_no_classes_to_evaluate(cli: Minivit, pretrained: Path) -> None:
    assert_refused(cli("eval", pretrained), 2, "pretrained has no head, and so no classes")


def test_the_run_is_traced_without_labels(cli: Minivit, pretrained: Path) -> None:
    said = cli("trace", pretrained, "--json")
    assert said.status == 0, said
    values = said.json()
    assert values["loss"] > 0
    assert values["labels"] == []
    assert values["probability"] is None
    names = [layer["name"] for layer in values["layers"]]
    assert "encoder.blocks.0" in names
    assert "decoder_blocks.0" in names
    assert "loss" in cli("trace", pretrained, "--zero", "encoder.blocks.0.attn").out
    assert_refused(cli("trace", pretrained, "--label", 0), 2, "a model of masked pre-training has no classes")


def test_what_a_run_that_met_nan_leaves_is_traced(cli: Minivit, squares: Path) -> None:
    said = cli("pretrain", squares, *SHORT, "--lr", 1e30, "--clip-norm", 0, "--run", "burst")
    assert said.status == 1
    assert "training is not finite at step" in said.err
    assert "nan" in cli("trace", "burst/nan").out


@pytest.mark.usefixtures("pages_without_checks")
def test_the_page_of_a_run_shows_what_was_seen(cli: Minivit, pretrained: Path) -> None:
    said = cli("inspect", pretrained, "--json")
    assert said.status == 0, said
    assert said.json()["layers"] > 10
    assert '"seen"' in Path("page.html").read_text(encoding="utf-8")


# The run


@pytest.mark.parametrize("task", TASKS)
def test_a_run_that_was_stopped_ends_in_the_bits_of_one_that_was_not(tmp_path: Path, task: str) -> None:
    whole, stopped = run_at(tmp_path / "whole", recipe(task)), run_at(tmp_path / "stopped", recipe(task))
    train(whole, make_dataset(), Listener())
    with pytest.raises(Killed):
        train(stopped, make_dataset(), Listener(7, kill), checkpoint_seconds=0.0)
    train(RunFolder.open(stopped.path), make_dataset(), Listener(), resume=True, threads=2)
    assert bits(stopped) == bits(whole)
    assert f"/best/{MASKED}/mask_token" in tensors(whole)


def test_the_pictured_images_are_spread_over_the_test_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Any] = []
    monkeypatch.setattr(
        "minivit.train.reconstructions.draw_reconstructions", lambda _, pixels, *rest: drawn.append(pixels)
    )
    data = make_dataset(test=19)
    train(run_at(tmp_path / "run", recipe("mae", epochs=1, warmup_epochs=0.5)), data, Listener())
    np.testing.assert_array_equal(drawn[0], data.test_images[[0, 2, 4, 6, 8, 10, 12, 14]])


def test_a_picture_that_cannot_be_drawn_costs_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any) -> None:
        raise ValueError("no fonts")

    monkeypatch.setattr("minivit.train.reconstructions.draw_reconstructions", fail)
    run = run_at(tmp_path / "run", recipe("mae", epochs=1, warmup_epochs=0.5))
    with pytest.warns(UserWarning, match=r"reconstructions\.png could not be drawn \(no fonts\); the run itself"):
        result = train(run, make_dataset(), Listener())
    assert result["test_loss"] > 0


# The engine


@pytest.mark.parametrize("task", TASKS)
def test_the_bits_do_not_depend_on_the_number_of_workers(task: str) -> None:
    images = np.random.default_rng(0).standard_normal((11, 8, 8, 1)).astype(np.float32)
    key = Key(0, 0, np.arange(11))
    found = []
    for threads in (1, 2):
        model = small_model(task)
        with Engine(model, threads, 2) as engine:
            loss, losses = engine.training_step(images, rng=key)
            found.append([loss, losses, model.parameters.store.gradients.copy(), engine.predict(images)])
    for one, other in zip(*found, strict=True):
        np.testing.assert_array_equal(one, other)
    assert found[0][1].shape == (11, 1)


@pytest.mark.parametrize("task", TASKS)
def test_the_engine_returns_the_loss_and_the_gradients_of_the_whole_batch(task: str) -> None:
    images = np.random.default_rng(0).standard_normal((6, 8, 8, 1))
    key = Key(0, 0, np.arange(6))
    model = small_model(task, "float64")
    losses, cache = model.forward(images, key)
    model.backward(np.full(6, 1 / 6), cache)
    expected = model.parameters.store.gradients.copy()
    with Engine(model, 1, 4) as engine:
        loss = engine.loss_and_gradients(images, rng=key)
    np.testing.assert_allclose(loss, losses.mean(), rtol=1e-12)
    np.testing.assert_allclose(model.parameters.store.gradients, expected, rtol=1e-9, atol=1e-12)


def small_model(task: str, dtype: str = "float32") -> Any:
    fields = {"patch_size": 2, "depth": 2, "embed_dim": 8, "num_heads": 2, "in_chans": 1, "num_classes": 0}
    return masked_model(task, get_config("vit_micro_patch4_8", **fields), 1, dtype, **OPTIONS[task])


def test_a_model_with_logits_needs_labels() -> None:
    model = ViT(get_config("vit_micro_patch4_8"))
    with (
        Engine(model, 1) as engine,
        pytest.raises(UserError, match="labels is None; a model that returns"),
    ):
        engine.loss_and_gradients(np.zeros((2, 8, 8, 1), np.float32))


# Without files


def test_fit_trains_a_masked_model_without_labels() -> None:
    images = make_dataset().train_images
    model = masked_model("mae", get_config("vit_micro_patch4_8", img_size=4, patch_size=2, num_classes=0))
    result = minivit.fit(model, images, epochs=3, batch_size=8, seed=0, lr=3e-3)
    assert result.epochs[-1].train_loss < result.epochs[0].train_loss
    assert result.epochs[-1].train_accuracy is None
    assert "accuracy" not in str(result.epochs[-1])
    assert result.predict(images).shape == (len(images), 1)


def test_fit_validates_a_masked_model_on_images_alone() -> None:
    images = make_dataset().train_images
    model = masked_model("simmim", get_config("vit_micro_patch4_8", img_size=4, patch_size=2))
    for validation in (images[:5], (images[:5], None)):
        result = minivit.fit(model, images[5:], epochs=1, batch_size=8, validation=validation, warmup_epochs=0.5)
        assert result.epochs[0].val_loss is not None
        assert result.epochs[0].val_accuracy is None


def test_fit_refuses_means_beside_those_of_the_model() -> None:
    images, config = make_dataset().train_images, get_config("vit_micro_patch4_8", img_size=4, patch_size=2, in_chans=1)
    with pytest.raises(UserError, match="mean and std are those of the model"):
        minivit.fit(masked_model("mpp", config, target="pixels"), images, mean=(0.1,), std=(0.2,))


def test_a_model_of_mean_pooling_has_a_norm_of_its_tokens() -> None:
    config = get_config("vit_micro_patch4_8", class_token=False, global_pool="avg")
    assert "encoder.norm.weight" in masked_model("simmim", config).parameters
    assert "encoder.fc_norm.weight" in masked_model("simmim", replace(config, fc_norm=True)).parameters


def test_fit_refuses_what_needs_labels() -> None:
    model = masked_model("simmim", get_config("vit_micro_patch4_8", img_size=4, patch_size=2))
    with pytest.raises(UserError, match="mixup_alpha cannot be used with the task simmim"):
        minivit.fit(model, make_dataset().train_images, mixup_alpha=0.5)


def test_fit_asks_for_labels_where_the_model_reads_them() -> None:
    model = ViT(get_config("vit_micro_patch4_8", img_size=4, patch_size=2))
    with pytest.raises(UserError, match="a ViT needs labels"):
        minivit.fit(model, make_dataset().train_images)
