"""Training runs and run folders: training images, evaluation, checkpoints, and how a run is resumed."""

import json
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
    kill,
    make_dataset,
    read,
    run_at,
    train,
)

from minivit import Engine, UserError, ViT, load_model
from minivit.data import normalize
from minivit.train import trainer
from minivit.train.evaluation import Evaluation, evaluate
from minivit.train.interrupt import Interrupted
from minivit.train.recipe import model_config
from minivit.train.run_folder import RunFolder, latest_run_path, next_run_path
from minivit.train.trainer import Trainer

pytestmark = pytest.mark.usefixtures("no_curves")


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunFolder, dict[str, Any]]:
    run = run_at(tmp_path_factory.mktemp("runs") / "uninterrupted")
    return run, train(run, make_dataset(), Listener())


def test_a_run_folder_holds_the_documented_files(uninterrupted: tuple[RunFolder, dict[str, Any]]) -> None:
    run, result = uninterrupted
    files = {str(file.relative_to(run.path)) for file in run.path.rglob("*") if file.is_file()}
    assert files == {
        "recipe.json",
        "metrics.jsonl",
        "result.json",
        "curves.png",
        "best/model.safetensors",
        "best/config.json",
        "last/model.safetensors",
        "last/config.json",
        "last/training.safetensors",
    }
    assert RunFolder.open(run.path).recipe == RECIPE
    assert json.loads((run.path / "result.json").read_text()) == result


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
    assert trainer.run.load_state(trainer.model, trainer.optimizer, trainer.fingerprint).step == 0
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
        train(run, make_dataset(), Listener(step, kill), checkpoint_seconds=seconds_between)
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
            train(run, make_dataset(), Listener(step, ask_to_stop), resume=step > 1)
    train(run, make_dataset(), Listener(), resume=True)
    assert bits(run) == bits(uninterrupted[0])


def test_resuming_a_finished_run_returns_its_result_again(tmp_path: Path) -> None:
    run = run_at(tmp_path / "run", replace(RECIPE, epochs=1))
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

    def spy(engine: Any, images: np.ndarray, *rest: Any) -> Evaluation:
        measured.append((np.shares_memory(images, dataset.test_images), len(images)))
        return evaluate(engine, images, *rest)

    monkeypatch.setattr(trainer, "evaluate", spy)
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


def test_runs_are_numbered(tmp_path: Path) -> None:
    assert next_run_path("cifar10", tmp_path) == tmp_path / "cifar10-1"
    with pytest.raises(UserError, match="no run of cifar10"):
        latest_run_path("cifar10", tmp_path)
    for name in ("cifar10-2", "cifar10-10", "cifar10-old", "digits-50"):
        (tmp_path / name).mkdir()
    assert next_run_path("cifar10", tmp_path) == tmp_path / "cifar10-11"
    assert latest_run_path("cifar10", tmp_path) == tmp_path / "cifar10-10"
    assert next_run_path("/somewhere/photos", tmp_path) == tmp_path / "photos-1"
