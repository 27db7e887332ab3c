"""The training loop and its run folder: what is trained on, what is measured, what is kept, and how a run goes on."""

import errno
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_run import (
    RECIPE,
    SMALL,
    Killed,
    Listener,
    ask_to_stop,
    bits,
    edit_progress,
    kill,
    make_dataset,
    read,
    run_at,
    stopped_run,
)

from minivit import AdamW, Engine, RunError, UserError, ViT, load_model
from minivit.data import normalize
from minivit.files import locked
from minivit.inspect.trace import first_non_finite, first_non_finite_gradient
from minivit.runs import Run, latest_run_path, next_run_path
from minivit.train import loop
from minivit.train.evaluate import Evaluation, evaluate
from minivit.train.interrupt import Interrupted
from minivit.train.loop import Trainer, train
from minivit.train.recipe import Recipe
from minivit.train.setup import model_config
from minivit.weights import read_tensors, write_tensors

pytestmark = pytest.mark.usefixtures("no_curves")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, dict[str, Any]]:
    run = run_at(tmp_path_factory.mktemp("runs") / "undisturbed")
    return run, train(run, make_dataset(), Listener())


def test_a_run_folder_holds_what_it_says(undisturbed: tuple[Run, dict[str, Any]]) -> None:
    run, result = undisturbed
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
    assert Run.open(run.path).recipe == RECIPE
    assert json.loads((run.path / "result.json").read_text()) == result


def test_every_epoch_has_one_line_of_metrics(undisturbed: tuple[Run, dict[str, Any]]) -> None:
    run, _ = undisturbed
    assert [line["epoch"] for line in run.metrics()] == [1, 2, 3]
    assert [line["step"] for line in run.metrics()] == [4, 8, 12]
    for line in run.metrics():
        assert 0 <= line["val_accuracy"] <= 1
        assert line["train_loss"] > 0


def test_the_best_model_is_that_of_the_best_epoch(undisturbed: tuple[Run, dict[str, Any]]) -> None:
    run, result = undisturbed
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
    assert run.load_state(trainer.model, trainer.optimizer, trainer.fingerprint).step == 0
    kept = load_model(run.path / "last").state_dict()
    for name, value in trainer.model.state_dict().items():
        np.testing.assert_array_equal(value, first[name])
        np.testing.assert_array_equal(value, kept[name])


@pytest.mark.parametrize("step", [1, 3, 4, 6, 11, 12])
@pytest.mark.parametrize("seconds_between", [0.0, 1e9], ids=["every step", "every epoch"])
def test_a_killed_run_ends_in_the_same_bits(
    tmp_path: Path, undisturbed: tuple[Run, dict[str, Any]], step: int, seconds_between: float
) -> None:
    run = run_at(tmp_path / "run")
    with pytest.raises(Killed):
        train(run, make_dataset(), Listener(step, kill), checkpoint_seconds=seconds_between)
    listener = Listener()
    result = train(run, make_dataset(), listener, resume=True)
    assert listener.started_with[0] == (step - 1 if seconds_between == 0 else 4 * ((step - 1) // 4))
    assert bits(run) == bits(undisturbed[0])
    assert result["test_accuracy"] == undisturbed[1]["test_accuracy"]


@pytest.mark.parametrize("step", [1, 4, 7])
def test_a_run_that_is_asked_to_stop_saves_this_step(
    tmp_path: Path, undisturbed: tuple[Run, dict[str, Any]], step: int
) -> None:
    run = run_at(tmp_path / "run")
    with pytest.raises(Interrupted, match=f"step {step}"):
        train(run, make_dataset(), Listener(step, ask_to_stop), checkpoint_seconds=1e9)
    listener = Listener()
    train(run, make_dataset(), listener, resume=True)
    assert listener.started_with == [step, 12, 4]
    assert bits(run) == bits(undisturbed[0])


def test_a_run_asked_to_stop_in_its_last_step_is_finished(tmp_path: Path) -> None:
    run = run_at(tmp_path / "run")
    assert train(run, make_dataset(), Listener(12, ask_to_stop)) == run.result()


def test_stopping_again_and_again(tmp_path: Path, undisturbed: tuple[Run, dict[str, Any]]) -> None:
    run = run_at(tmp_path / "run")
    for step in range(1, 12):
        with pytest.raises(Interrupted):
            train(run, make_dataset(), Listener(step, ask_to_stop), resume=step > 1)
    train(run, make_dataset(), Listener(), resume=True)
    assert bits(run) == bits(undisturbed[0])


def test_a_disk_that_fills_up_at_any_write(
    tmp_path: Path, undisturbed: tuple[Run, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    fsync, writes = os.fsync, 0

    def count_down(descriptor: int) -> None:
        nonlocal writes
        writes -= 1
        if writes == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", count_down)
    refused = 0
    for full_at in range(1, 40, 3):
        writes = -1
        run = run_at(tmp_path / f"run{full_at}")
        writes = full_at
        try:
            train(run, make_dataset(), Listener())
        except RunError as error:
            assert "No space left" in str(error)  # noqa: PT017 - some of these runs have room enough
            assert not list(run.path.rglob("*.tmp"))  # nothing half-written is left
            refused += 1
        writes = -1
        train(run, make_dataset(), Listener(), resume=True)
        assert bits(run) == bits(undisturbed[0])
    assert refused > 5


def test_resuming_a_finished_run_prints_its_result_again(tmp_path: Path) -> None:
    run = run_at(tmp_path / "run", replace(RECIPE, epochs=1))
    result = train(run, make_dataset(), Listener())
    listener = Listener()
    assert train(run, make_dataset(), listener, resume=True) == result
    assert not listener.reports


@pytest.mark.parametrize("threads", [2, 3])
def test_threads_change_no_bit(tmp_path: Path, undisturbed: tuple[Run, dict[str, Any]], threads: int) -> None:
    run = run_at(tmp_path / "run")
    train(run, make_dataset(), Listener(), threads=threads)
    one = run_at(tmp_path / "one")
    train(one, make_dataset(), Listener(), threads=1)
    assert bits(run) == bits(one) == bits(undisturbed[0])


@pytest.mark.parametrize("change", [{"seed": 1}, {"micro_batch": 5}, {"flip": False}, {"optimizer": "sgd"}], ids=str)
def test_what_stands_in_the_recipe_changes_bits(
    tmp_path: Path, undisturbed: tuple[Run, dict[str, Any]], change: dict[str, Any]
) -> None:
    run = run_at(tmp_path / "run", replace(RECIPE, **change))
    train(run, make_dataset(), Listener())
    assert bits(run) != bits(undisturbed[0])


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


def test_the_test_set_is_touched_once_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset, measured = make_dataset(), []

    def spy(engine: Any, images: np.ndarray, *rest: Any) -> Evaluation:
        measured.append((np.shares_memory(images, dataset.test_images), len(images)))
        return evaluate(engine, images, *rest)

    monkeypatch.setattr(loop, "evaluate", spy)
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
    monkeypatch.setattr("minivit.train.evaluate.EVALUATION_BATCH", batch)
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


@pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")
def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_checkpoint(tmp_path: Path) -> None:
    run = run_at(tmp_path / "run", replace(RECIPE, lr=1e30))
    listener = Listener()
    with pytest.raises(RunError, match=r"not finite at step \d+: .*blocks\.\d|.*embed") as raised:
        train(run, make_dataset(), listener, checkpoint_seconds=1e9)
    assert f"at step {len(listener.reports) + 1}:" in str(raised.value)
    assert str(run.path / "last") in str(raised.value)
    for value in load_model(run.path / "last").state_dict().values():
        assert np.isfinite(value).all()


def test_a_loss_that_is_not_finite_is_never_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_at(tmp_path / "run")

    def poison() -> None:
        trainer.model.parameters["blocks.1.mlp.fc2.bias"].value[0] = np.nan

    trainer = Trainer(run, make_dataset())
    with pytest.raises(RunError, match=r"step 6: the parameter blocks\.1\.mlp\.fc2\.bias holds NaN"):
        trainer.fit(Listener(5, poison), False, 1e9)
    assert np.isfinite(load_model(run.path / "last").parameters.store.values).all()


def test_an_existing_run_is_refused(tmp_path: Path) -> None:
    run_at(tmp_path / "run")
    with pytest.raises(UserError, match="holds a run already; --resume"):
        run_at(tmp_path / "run")


def test_the_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    run = stopped_run(tmp_path / "run")
    other = Run(run.path, replace(RECIPE, model_options={**SMALL, "depth": 3}))
    with pytest.raises(UserError, match=r"training\.safetensors is the checkpoint of another model"):
        train(other, make_dataset(), Listener(), resume=True)
    other = Run(run.path, replace(RECIPE, optimizer="sgd"))
    with pytest.raises(UserError, match="optimizer"):
        train(other, make_dataset(), Listener(), resume=True)


@pytest.mark.parametrize("keep", [0, 7, 100, -1])
def test_a_truncated_checkpoint_is_refused(tmp_path: Path, keep: int) -> None:
    run = stopped_run(tmp_path / "run")
    file = run.path / "last" / "training.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(UserError, match=r"training\.safetensors"):
        train(run, make_dataset(), Listener(), resume=True)


def longer(tensors: dict[str, Any], name: str) -> None:
    tensors[name] = np.append(tensors[name], np.float32(0))


def in_float64(tensors: dict[str, Any], name: str) -> None:
    tensors[name] = tensors[name].astype(np.float64)


@pytest.mark.parametrize("backend", ["numpy", "strict"])
@pytest.mark.parametrize("damage", [longer, in_float64])
@pytest.mark.parametrize("name", ["values", "m"])
def test_a_checkpoint_with_other_vectors_is_refused(tmp_path: Path, backend: str, damage: Any, name: str) -> None:
    run = stopped_run(tmp_path / "run")
    path = run.path / "last" / "training.safetensors"
    tensors, about = read_tensors(path)
    damage(tensors, name)
    write_tensors(path, tensors, about)
    with pytest.raises(UserError, match=rf"safetensors is damaged: its {name} has .* numbers of float.* this model"):
        train(run, make_dataset(), Listener(), resume=True, backend=backend)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        *(({"scaling": [scale, 0]}, "its loss scale is") for scale in (0.0, -4.0, 1e30, float("inf"), float("nan"))),
        ({"scaling": [1.0, -1]}, "its loss scale is 1 after -1 good steps"),
        ({"scaling": [1.0, float("inf")]}, "it does not say how far the run was"),
        ({"scaling": []}, "it does not say how far the run was"),
        ({"scaling": None}, "it does not say how far the run was"),
    ],
    ids=str,
)
def test_a_checkpoint_with_an_impossible_place_is_refused(tmp_path: Path, changed: dict[str, Any], words: str) -> None:
    run = stopped_run(tmp_path / "run")
    edit_progress(run, lambda progress: progress.update(changed))
    with pytest.raises(UserError, match=rf"training\.safetensors is damaged: {words}.*; bring it back, or begin a new"):
        train(run, make_dataset(), Listener(), resume=True)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"img_size": 8}, "img_size"),
        ({"num_classes": 3}, "num_classes"),
        ({"patch_size": 3}, "cannot be cut into patches"),
    ],
    ids=str,
)
def test_a_model_that_does_not_fit_the_images_is_refused(tmp_path: Path, option: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Trainer(Run(tmp_path, replace(RECIPE, model_options=option)), make_dataset())


def test_runs_are_numbered(tmp_path: Path) -> None:
    assert next_run_path("cifar10", tmp_path) == tmp_path / "cifar10-1"
    with pytest.raises(UserError, match="no run of cifar10"):
        latest_run_path("cifar10", tmp_path)
    for name in ("cifar10-2", "cifar10-10", "cifar10-old", "digits-50"):
        (tmp_path / name).mkdir()
    assert next_run_path("cifar10", tmp_path) == tmp_path / "cifar10-11"
    assert latest_run_path("cifar10", tmp_path) == tmp_path / "cifar10-10"
    assert next_run_path("/somewhere/photos", tmp_path) == tmp_path / "photos-1"


@pytest.mark.parametrize("validation", [0.0, 0.2])
def test_parameters_that_overflow_reach_no_checkpoint(tmp_path: Path, validation: float) -> None:
    """The last step of an epoch has a finite loss and leaves infinite parameters."""
    recipe: dict[str, Any] = {
        "optimizer": "sgd",
        "lr": 1e39,
        "warmup_epochs": 0.0,
        "batch_size": 100,
        "validation": validation,
    }
    run = run_at(tmp_path / "run", replace(RECIPE, **recipe))
    with np.errstate(all="ignore"), pytest.raises(RunError, match=r"not finite at step 1: the parameter .* holds NaN"):
        train(run, make_dataset(), Listener())
    assert not (run.path / "best").exists()
    assert run.metrics() == []
    assert all(np.isfinite(value).all() for value in load_model(run.path / "last").state_dict().values())


def test_other_images_behind_the_same_name_are_noticed(tmp_path: Path) -> None:
    run = run_at(tmp_path / "run")
    with pytest.raises(Killed):
        train(run, make_dataset(), Listener(5, kill))
    with pytest.raises(UserError, match="trained on other images than squares has now"):
        train(run, make_dataset(count=34), Listener(), resume=True)


def test_a_crop_that_could_lose_the_image_is_refused_before_the_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="crop_padding 4 could shift images of 4 x 4 away"):
        Trainer(run_at(tmp_path / "run", replace(RECIPE, crop_padding=4)), make_dataset())


def test_a_gradient_that_is_not_finite_is_named_where_the_backward_pass_meets_it_first() -> None:
    vit = ViT(model_config(RECIPE, make_dataset()))
    for parameter in vit.parameters.values():
        parameter.grad[...] = np.nan
    vit.parameters["head.bias"].grad[...] = vit.parameters["head.weight"].grad[...] = 0
    assert first_non_finite_gradient(vit) == "norm.bias"


@pytest.mark.parametrize("order", [1, -1])
def test_the_first_layer_that_is_not_finite_counts_in_whichever_piece(order: int) -> None:
    vit = ViT(model_config(RECIPE, make_dataset()))
    plain, huge = np.zeros((2, 4, 4, 1), np.float32), np.full((1, 4, 4, 1), 3e38, np.float32)
    assert first_non_finite(vit, [(plain, None)]) is None
    vit.parameters["blocks.1.norm2.weight"].value[...] = 3e38
    vit.parameters["patch_embed.proj.weight"].value[...] = 2.0
    pieces = [(plain, None), (huge, None)]
    assert first_non_finite(vit, pieces[:1]) == "it shows first in the result of blocks.1.norm2"
    assert first_non_finite(vit, pieces[::order]) == "it shows first in the result of patch_embed.proj"
    huge[0, 0, 0, 0] = np.nan
    assert first_non_finite(vit, pieces[::order]) == "the images themselves hold NaN or infinity"


def test_two_processes_do_not_train_one_run(tmp_path: Path) -> None:
    run = run_at(tmp_path / "run")
    with locked(run.path), pytest.raises(UserError, match="another process is at work in"):
        train(run, make_dataset(), Listener())
    assert train(run, make_dataset(), Listener())["test_images"] == 13


def test_a_validation_loss_that_is_not_finite_names_the_layer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parameters are finite, but so large that a layer overflows where only evaluation sees it."""
    run = run_at(tmp_path / "run", replace(RECIPE, batch_size=100))
    step = AdamW.step

    def leap(self: Any, factor: Any) -> None:
        step(self, factor)
        self._store.values[...] *= np.float32(1e30)

    monkeypatch.setattr(AdamW, "step", leap)
    words = r"not finite at step 1: on the validation images after it, it shows first in the result of blocks\.0\."
    with np.errstate(all="ignore"), pytest.raises(RunError, match=words):
        train(run, make_dataset(), Listener(), threads=1)


@pytest.mark.parametrize("field", [{"epochs": 1.5}, {"flip": "no"}, {"seed": "0"}])
def test_a_recipe_of_other_types_is_refused(field: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=f"{next(iter(field))} is .*; expected"):
        Recipe.from_dict({**RECIPE.to_dict(), **field})
