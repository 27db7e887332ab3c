"""Training runs and run folders: training images, evaluation, checkpoints, and how a run is resumed."""

import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_run import (
    RECIPE,
    Killed,
    Listener,
    ask_to_stop,
    bits,
    edit_state,
    figures_drawn,
    kill,
    make_dataset,
    read,
    run_at,
    stopped_run,
    train,
)

from minivit import Engine, UserError, ViT, load_model
from minivit.arrays import Array
from minivit.data import normalize
from minivit.train import training
from minivit.train.evaluation import Score, evaluate, score
from minivit.train.interrupt import Interrupted
from minivit.train.recipe import model_config
from minivit.train.run_folder import RunFolder
from minivit.train.run_paths import claimed_run, latest_run_path
from minivit.train.state import TrainState, best_line
from minivit.train.step import DataLoader
from minivit.train.trainer import Trainer


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunFolder, dict[str, Any]]:
    run = run_at(tmp_path_factory.mktemp("runs") / "uninterrupted")
    with figures_drawn():
        return run, train(run, make_dataset(), Listener())


def test_a_run_folder_holds_the_documented_files(uninterrupted: tuple[RunFolder, dict[str, Any]]) -> None:
    run, result = uninterrupted
    files = {str(file.relative_to(run.path)) for file in run.path.rglob("*") if file.is_file()}
    assert files == {
        "recipe.json",
        "metrics.csv",
        "metrics.jsonl",
        "result.json",
        "curves.png",
        "best/model.safetensors",
        "best/config.json",
        "last/model.safetensors",
        "last/config.json",
        "last/training.safetensors",
    }
    assert RunFolder.open(run.path).recipe == replace(RECIPE, reduction_groups=8)
    assert (
        json.loads((run.path / "result.json").read_text()).items()
        >= {k: v for k, v in result.items() if k != "curves"}.items()
    )


def test_every_epoch_has_one_line_of_metrics(uninterrupted: tuple[RunFolder, dict[str, Any]]) -> None:
    run, _ = uninterrupted
    assert [line["epoch"] for line in run.metrics()] == [1, 2, 3]
    assert [line["step"] for line in run.metrics()] == [4, 8, 12]
    for line in run.metrics():
        assert 0 <= line["val_accuracy"] <= 1
        assert line["train_loss"] > 0


def test_the_best_model_is_that_of_the_best_epoch(uninterrupted: tuple[RunFolder, dict[str, Any]]) -> None:
    run, result = uninterrupted
    accuracies = [line["val_accuracy"] for line in run.metrics()]
    assert result["best_val_accuracy"] == max(accuracies)
    assert accuracies[result["best_epoch"] - 1] == max(accuracies)
    dataset = make_dataset()
    with Engine(load_model(run.path / "best"), micro_batch=3) as engine:
        measured = evaluate(engine, dataset.test_images, dataset.test_labels, dataset.mean, dataset.std)
    assert measured.accuracy == result["test_accuracy"]
    assert measured.images == result["test_images"] == 13


def test_step_0_is_saved_before_training(tmp_path: Path) -> None:
    run = run_at(tmp_path / "run")
    with pytest.raises(Killed):
        train(run, make_dataset(), Listener(1, kill))
    trainer = Trainer(run, make_dataset())
    first = trainer.model.state_dict()
    assert trainer.run.load_state(trainer.model, trainer.optimizer, trainer.fingerprint, trainer.averaging).step == 0
    kept = load_model(run.path / "last").state_dict()
    for name, value in trainer.model.state_dict().items():
        np.testing.assert_array_equal(value, first[name])
        np.testing.assert_array_equal(value, kept[name])


@pytest.mark.parametrize("step", [1, 3, 4, 6, 11, 12])
@pytest.mark.parametrize("seconds_between", [0.0, 1e9], ids=["every step", "every epoch"])
def test_a_killed_run_ends_in_the_same_bits(
    tmp_path: Path, uninterrupted: tuple[RunFolder, dict[str, Any]], step: int, seconds_between: float
) -> None:
    run = run_at(tmp_path / "run")
    with pytest.raises(Killed):
        train(run, make_dataset(), Listener(step, kill), checkpoint_seconds=seconds_between, threads=2)
    listener = Listener()
    result = train(run, make_dataset(), listener, resume=True)
    assert listener.started_with[0] == (step - 1 if seconds_between == 0 else 4 * ((step - 1) // 4))
    assert bits(run) == bits(uninterrupted[0])
    assert result["test_accuracy"] == uninterrupted[1]["test_accuracy"]


@pytest.mark.parametrize("step", [1, 4, 7])
def test_a_run_that_is_asked_to_stop_saves_this_step(
    tmp_path: Path, uninterrupted: tuple[RunFolder, dict[str, Any]], step: int
) -> None:
    run = run_at(tmp_path / "run")
    with pytest.raises(Interrupted, match=f"step {step}"):
        train(run, make_dataset(), Listener(step, ask_to_stop), checkpoint_seconds=1e9)
    listener = Listener()
    train(run, make_dataset(), listener, resume=True)
    assert listener.started_with == [step, 12, 4]
    assert bits(run) == bits(uninterrupted[0])


def test_a_run_asked_to_stop_in_its_last_step_is_finished(tmp_path: Path) -> None:
    run = run_at(tmp_path / "run")
    assert train(run, make_dataset(), Listener(12, ask_to_stop)) == run.result()


def test_a_run_can_be_stopped_after_every_step(tmp_path: Path, uninterrupted: tuple[RunFolder, dict[str, Any]]) -> None:
    run = run_at(tmp_path / "run")
    for step in range(1, 12):
        with pytest.raises(Interrupted):
            train(run, make_dataset(), Listener(step, ask_to_stop), resume=step > 1, threads=1 + step % 2)
    train(run, make_dataset(), Listener(), resume=True)
    assert bits(run) == bits(uninterrupted[0])


def test_the_time_of_a_step_includes_the_wait_for_its_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = DataLoader.batches

    def slowly(loader: DataLoader, epoch: int, done: int = 0) -> Iterator[Array]:
        for samples in read(loader, epoch, done):
            time.sleep(0.02)
            yield samples

    monkeypatch.setattr(DataLoader, "batches", slowly)
    result = train(run_at(tmp_path / "run", replace(RECIPE, epochs=1, warmup_epochs=0.5)), make_dataset(), Listener())
    assert result["seconds"] >= 4 * 0.02


def test_the_time_left_counts_images_and_not_full_batches(tmp_path: Path) -> None:
    listener = Listener()
    train(run_at(tmp_path / "run", replace(RECIPE, epochs=2, batch_size=500)), make_dataset(), listener)
    first = listener.reports[0]
    assert first.seconds_left == pytest.approx(28 / first.images_per_second)


def test_resuming_a_finished_run_returns_its_result_again(tmp_path: Path) -> None:
    run = run_at(tmp_path / "run", replace(RECIPE, epochs=1, warmup_epochs=0.5))
    result = train(run, make_dataset(), Listener())
    listener = Listener()
    assert train(run, make_dataset(), listener, resume=True) == result
    assert not listener.reports


@pytest.mark.parametrize("threads", [2, 3])
def test_threads_change_no_bit(tmp_path: Path, uninterrupted: tuple[RunFolder, dict[str, Any]], threads: int) -> None:
    run = run_at(tmp_path / "run")
    train(run, make_dataset(), Listener(), threads=threads)
    one = run_at(tmp_path / "one")
    train(one, make_dataset(), Listener(), threads=1)
    assert bits(run) == bits(one) == bits(uninterrupted[0])


@pytest.mark.parametrize(
    "change",
    [{"seed": 1}, {"micro_batch": 5}, {"micro_batch": 1, "reduction_groups": 2}, {"flip": False}, {"optimizer": "sgd"}],
    ids=str,
)
def test_fields_of_the_recipe_change_the_bits(
    tmp_path: Path, uninterrupted: tuple[RunFolder, dict[str, Any]], change: dict[str, Any]
) -> None:
    run = run_at(tmp_path / "run", replace(RECIPE, **change))
    train(run, make_dataset(), Listener())
    assert bits(run) != bits(uninterrupted[0])


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_every_optimizer_resumes(tmp_path: Path, optimizer: str) -> None:
    runs = [run_at(tmp_path / name, replace(RECIPE, optimizer=optimizer)) for name in ("whole", "stopped")]
    train(runs[0], make_dataset(), Listener())
    with pytest.raises(Interrupted):
        train(runs[1], make_dataset(), Listener(5, ask_to_stop))
    train(runs[1], make_dataset(), Listener(), resume=True)
    assert bits(runs[0]) == bits(runs[1])


def test_each_training_image_is_seen_once_an_epoch_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = Trainer(run_at(tmp_path / "run"), make_dataset())
    steps: list[np.ndarray] = []
    step = Trainer._step

    def spy(self: Trainer, samples: np.ndarray) -> None:
        steps.append(samples)
        step(self, samples)

    monkeypatch.setattr(Trainer, "_step", spy)
    listener = Listener()
    trainer.fit(listener, False, 1e9)
    assert len(trainer.train_index) == 28
    assert len(trainer.validation_index) == 7
    assert [len(samples) for samples in steps] == [8, 8, 8, 4] * 3
    for epoch in range(3):
        seen = np.concatenate(steps[4 * epoch : 4 * epoch + 4])
        np.testing.assert_array_equal(np.sort(seen), trainer.train_index)
    assert not set(trainer.validation_index) & {int(i) for samples in steps for i in samples}
    assert not np.array_equal(np.concatenate(steps[:4]), np.concatenate(steps[4:8]))


def test_the_test_set_is_evaluated_once_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset, measured = make_dataset(), []

    def spy(engine: Any, images: np.ndarray, *rest: Any) -> Score:
        measured.append((np.shares_memory(images, dataset.test_images), len(images)))
        return score(engine, images, *rest)

    monkeypatch.setattr(training, "score", spy)
    train(run_at(tmp_path / "run"), dataset, Listener())
    assert measured == [(False, 7), (False, 7), (False, 7), (True, 13)]


def test_without_validation_images_the_last_epoch_is_the_best(tmp_path: Path) -> None:
    run = run_at(tmp_path / "run", replace(RECIPE, validation=0.0))
    result = train(run, make_dataset(), Listener())
    assert result["best_epoch"] == 3
    assert result["best_val_accuracy"] is None
    assert all("val_loss" not in line for line in run.metrics())
    best, last = (read(run.path / which / "model.safetensors") for which in ("best", "last"))
    assert [name for name, _ in best] == [name for name, _ in last]
    for (_, first), (_, second) in zip(best, last, strict=True):
        np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("batch", [1, 5, 13, 1024])
def test_evaluation_counts_every_image(monkeypatch: pytest.MonkeyPatch, batch: int) -> None:
    monkeypatch.setattr("minivit.train.evaluation.EVALUATION_BATCH", batch)
    dataset = make_dataset()
    model = ViT(model_config(RECIPE, dataset), seed=3)
    with Engine(model) as engine:
        measured = evaluate(engine, dataset.test_images, dataset.test_labels, dataset.mean, dataset.std)
    images = normalize(dataset.test_images, dataset.mean, dataset.std, np.float32)
    logits = model(images).astype(np.float64)
    right = logits.argmax(axis=1) == dataset.test_labels
    shifted = logits - logits.max(axis=1, keepdims=True)
    losses = np.log(np.exp(shifted).sum(axis=1)) - shifted[np.arange(13), dataset.test_labels]
    assert measured.images == measured.confusion.sum() == 13
    assert measured.accuracy == right.mean()
    assert measured.loss == pytest.approx(losses.mean(), rel=1e-5)
    np.testing.assert_array_equal(measured.confusion.sum(axis=1), np.bincount(dataset.test_labels))


def next_run_path(dataset: str, root: Path) -> Path:
    with claimed_run(None, replace(RECIPE, dataset=dataset), root) as run:
        return run.path


def test_runs_are_numbered(tmp_path: Path) -> None:
    assert next_run_path("cifar10", tmp_path) == tmp_path / "cifar10-1"
    assert not list(tmp_path.iterdir())  # a run that did not begin leaves no folder
    with pytest.raises(UserError, match="no run of cifar10"):
        latest_run_path("cifar10", tmp_path)
    for name in ("cifar10-2", "cifar10-10", "cifar10-old", "digits-50", "cifar10-²", "cifar10-99-1"):
        run_at(tmp_path / name)
    (tmp_path / "cifar10-11").mkdir()  # left by a process that was killed before its run began
    assert next_run_path("cifar10", tmp_path) == tmp_path / "cifar10-11"
    assert latest_run_path("cifar10", tmp_path) == tmp_path / "cifar10-10"


@pytest.mark.parametrize(
    ("dataset", "start"),
    [
        ("/somewhere/photos", "photos"),
        ("/somewhere/cifar.tar.gz", "cifar"),
        ("[2024] photos", "[2024] photos"),
        ("a*b?", "a*b?"),
        ("two\nlines\x1b[2J", "two_lines_[2J"),
        ("é" * 200, "é" * 100),
        (".hidden", "images"),
        ("raw\udcff", "raw\udcff"),
    ],
    ids=ascii,
)
def test_runs_are_named_after_any_data_set(tmp_path: Path, dataset: str, start: str) -> None:
    run_at(tmp_path / f"{start}-1", replace(RECIPE, dataset=dataset))
    assert RunFolder.open(tmp_path / f"{start}-1").recipe.dataset == dataset
    assert latest_run_path(dataset, tmp_path) == tmp_path / f"{start}-1"
    assert next_run_path(dataset, tmp_path) == tmp_path / f"{start}-2"


def test_runs_that_begin_at_once_get_folders_of_their_own(tmp_path: Path) -> None:
    with claimed_run(None, RECIPE, tmp_path) as first, claimed_run(None, RECIPE, tmp_path) as second:
        assert (first.path.name, second.path.name) == ("squares-1", "squares-2")
        with pytest.raises(UserError, match="another process is at work"), claimed_run(first.path, RECIPE):
            pass
        assert first.path.exists()
    assert not list(tmp_path.iterdir())


def test_frozen_parameters_stay_as_they_are_and_do_not_count_for_clipping(tmp_path: Path) -> None:
    recipe = replace(RECIPE, freeze=("patch_embed.*", "blocks.0.*", "cls_token", "pos_embed"), clip_norm=1e-3)
    run = Trainer(run_at(tmp_path / "run", recipe), make_dataset(), 1)
    before = run.model.state_dict()
    run.fit(Listener())
    frozen = run.model.parameters.matching(*recipe.freeze)
    for name, value in run.model.state_dict().items():
        assert (value.tobytes() == before[name].tobytes()) == (name in frozen), name
    gradients = run.model.parameters.store.gradients
    assert all(not gradients[parameter.span].any() for parameter in frozen.values())
    assert gradients.any()


def test_freezing_everything_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"freeze \* leaves no parameter to train"):
        Trainer(run_at(tmp_path / "run", replace(RECIPE, freeze=("*",))), make_dataset())


def test_the_mean_and_deviation_of_a_recipe_are_used_and_saved(tmp_path: Path) -> None:
    short = replace(RECIPE, epochs=1, warmup_epochs=0.0)
    run, listener, other = run_at(tmp_path / "run", replace(short, mean=(0.25,), std=(0.5,))), Listener(), Listener()
    train(run, make_dataset(), listener)
    train(run_at(tmp_path / "other", short), replace(make_dataset(), mean=(0.25,), std=(0.5,)), other)
    assert listener.reports[-1].loss == other.reports[-1].loss
    saved = json.loads((run.path / "best" / "config.json").read_text())["pretrained_cfg"]
    assert (saved["mean"], saved["std"]) == ([0.25], [0.5])


@pytest.mark.parametrize("choose_by", ["accuracy", "loss"])
def test_the_best_epoch_is_chosen_by_accuracy_or_by_loss(choose_by: str, tmp_path: Path) -> None:
    run, listener = run_at(tmp_path / "run", replace(RECIPE, epochs=6, lr=0.05, choose_by=choose_by)), Listener()
    result = train(run, make_dataset(), listener)
    sign = 1 if choose_by == "accuracy" else -1
    best = max(listener.epochs, key=lambda line: (sign * line[f"val_{choose_by}"], line["epoch"]))
    assert result["best_epoch"] == best["epoch"]
    assert result["best_val_accuracy"] == best["val_accuracy"]
    assert best_line(run.recipe, run.metrics()) == best_line(run.recipe, run.metrics(), result) == best


@pytest.mark.parametrize(("by", "best"), [("accuracy", 2), ("loss", 1)])
def test_a_larger_accuracy_or_a_smaller_loss_is_better(by: str, best: int) -> None:
    state = TrainState()
    for epoch, (accuracy, loss) in enumerate([(0.5, 1.0), (0.75, 2.0), (0.25, 3.0)], start=1):
        state.choose(epoch, Score(loss, accuracy, 4), by)
    assert state.best_epoch == best


PREFIXES = {
    0: ("patch_embed.*", "blocks.0.*"),  # the class token is trained
    1: ("patch_embed.*", "blocks.0.*", "cls_token", "pos_embed"),
    2: ("patch_embed.*", "blocks.*", "cls_token", "pos_embed"),
}


@pytest.mark.parametrize("first", PREFIXES)
@pytest.mark.parametrize("threads", [1, 2])
def test_the_backward_pass_ends_where_nothing_earlier_is_trained(first: int, threads: int, tmp_path: Path) -> None:
    run = Trainer(run_at(tmp_path / "run", replace(RECIPE, freeze=PREFIXES[first])), make_dataset(), threads)
    assert run.engine.first_block == first
    parameters = run.model.parameters
    run.model.parameters["head.weight"].value[...] = np.random.default_rng(0).normal(size=(8, 2))  # it begins as zeros
    images, labels, key = run.data_loader.batch(run.train_index[:8], 0, np.dtype("float32"))
    with run.engine:
        run.engine.loss_and_gradients(images, labels, key)
        short = {name: parameter.grad.copy() for name, parameter in parameters.items()}
        run.engine.first_block = 0
        run.engine.loss_and_gradients(images, labels, key)
    frozen = parameters.matching(*PREFIXES[first]) if first else {}
    for name, parameter in parameters.items():
        assert parameter.grad.any()
        expected = np.zeros_like(parameter.grad) if name in frozen else parameter.grad
        assert short[name].tobytes() == expected.tobytes(), name


def test_the_checkpoint_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    run = stopped_run(tmp_path / "run")
    edit_state(run, lambda state: [state.pop(name) for name in ("best_loss", "averaged", "scaling")])
    listener = Listener()
    train(run, make_dataset(), listener, resume=True)
    assert listener.started_with[0] == 2
