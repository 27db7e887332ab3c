"""Errors of a training run: numbers that are not finite, files that do not match, a full disk."""

import errno
import json
import os
from collections.abc import Callable
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
    bits,
    edit_state,
    kill,
    make_dataset,
    run_at,
    stopped_run,
    train,
)

from minivit import AdamW, RunError, UserError, ViT, load_model
from minivit.files import locked, write_json
from minivit.train.diagnostics import first_non_finite, first_non_finite_gradient
from minivit.train.recipe import Recipe, model_config
from minivit.train.run_folder import RunFolder
from minivit.train.trainer import Trainer
from minivit.weights import read_tensors, write_tensors


def test_a_disk_that_fills_up_at_any_write(tmp_path: Path, on_host: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
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
            assert "No space left" in str(error)  # noqa: PT017 - some of these runs raise no error
            assert not list(run.path.rglob("*.tmp"))  # nothing half-written is left
            refused += 1
        writes = -1
        train(run, make_dataset(), Listener(), resume=True)
        assert bits(run) == bits(on_host)
    assert refused > 5


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


@pytest.mark.parametrize(("freeze", "largest"), [((), "cls_token"), (("cls_token",), "pos_embed")])
def test_gradients_whose_norm_alone_overflows_are_not_blamed_on_the_loss(
    tmp_path: Path, freeze: tuple[str, ...], largest: str
) -> None:
    trainer = Trainer(run_at(tmp_path / "run", replace(RECIPE, freeze=freeze)), make_dataset(), 1)

    def enlarge() -> None:
        trainer.model.parameters["head.weight"].value[...] *= 1e21  # the loss and the gradients are below 1e38

    words = "step 6: the forward pass and all gradients are finite, but their norm overflows float32; the largest is in"
    with np.errstate(over="ignore"), pytest.raises(RunError, match=rf"{words} the gradient of {largest}\. "):
        trainer.fit(Listener(5, enlarge), False, 1e9)


def test_an_existing_run_is_refused(tmp_path: Path) -> None:
    run_at(tmp_path / "run")
    with pytest.raises(UserError, match="holds a run already; --resume"):
        run_at(tmp_path / "run")


def test_the_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    run = stopped_run(tmp_path / "run")
    other = RunFolder(run.path, replace(RECIPE, model_options={**SMALL, "depth": 3}))
    with pytest.raises(UserError, match=r"training\.safetensors is the checkpoint of another model"):
        train(other, make_dataset(), Listener(), resume=True)
    other = RunFolder(run.path, replace(RECIPE, optimizer="sgd"))
    with pytest.raises(UserError, match="optimizer"):
        train(other, make_dataset(), Listener(), resume=True)


def edit_recipes(run: RunFolder, edit: Callable[[dict[str, Any]], object]) -> None:
    """Change the recipe in the checkpoint of a run and in recipe.json."""
    path = run.path / "last" / "training.safetensors"
    vectors, about = read_tensors(path)
    recipe = json.loads(about["recipe"])
    edit(recipe)
    write_tensors(path, vectors, {**about, "recipe": json.dumps(recipe)})
    write_json(run.path / "recipe.json", recipe)


@pytest.mark.parametrize("field", ["momentum", "micro_batch", "on_nan", "decay_epochs", "decay_shape", "muon_momentum"])
def test_a_field_that_an_older_version_did_not_have_counts_as_its_default(tmp_path: Path, field: str) -> None:
    """`momentum` has its own default, and the default of `micro_batch` is that of the model."""
    run = run_at(tmp_path / "run", replace(RECIPE, micro_batch=0))
    with pytest.raises(Killed):
        train(run, make_dataset(), Listener(5, kill))
    edit_recipes(run, lambda recipe: recipe.pop(field))
    listener = Listener()
    train(RunFolder.open(run.path), make_dataset(), listener, resume=True)
    assert listener.started_with[0] == 4


def test_a_recipe_that_lost_a_field_is_refused_if_its_default_is_another(tmp_path: Path) -> None:
    run = stopped_run(tmp_path / "run")
    edit_recipes(run, lambda recipe: recipe.pop("flip"))
    with pytest.raises(UserError, match=r"recipe\.json was changed since the run was begun: flip; put it back"):
        train(run, make_dataset(), Listener(), resume=True)


def test_a_checkpoint_without_a_recipe_is_refused(tmp_path: Path) -> None:
    run = stopped_run(tmp_path / "run")
    path = run.path / "last" / "training.safetensors"
    vectors, about = read_tensors(path)
    write_tensors(path, vectors, {name: text for name, text in about.items() if name != "recipe"})
    with pytest.raises(UserError, match=r"training\.safetensors is damaged: .*; bring it back, or begin a new run"):
        train(run, make_dataset(), Listener(), resume=True)


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
        *(({"scaling": [scale, 0]}, "its loss scale is") for scale in (0.0, -4.0, 1e30, True, None, "1")),
        *(({"scaling": [scale, 0]}, "it does not say how far") for scale in (float("inf"), float("nan"))),
        ({"scaling": [1.0, -1]}, "its number of good steps is -1"),
        *(({"step": value}, r"it does not say .*step is .*; expected a whole") for value in ("5", -5, 1.5, None, True)),
        *(({name: "x"}, f"it does not say .*{name} is 'x'") for name in ("best_accuracy", "best_epoch", "seconds")),
        ({"scaling": [1.0, float("inf")]}, "it does not say how far the run was"),
        ({"scaling": []}, "it does not say how far the run was"),
        ({"scaling": None}, "it does not say how far the run was"),
    ],
    ids=str,
)
def test_a_checkpoint_with_an_impossible_state_is_refused(tmp_path: Path, changed: dict[str, Any], words: str) -> None:
    run = stopped_run(tmp_path / "run")
    edit_state(run, lambda state: state.update(changed))
    with pytest.raises(UserError, match=rf"training\.safetensors is damaged: {words}.*; bring it back, or begin a new"):
        train(run, make_dataset(), Listener(), resume=True)


def test_a_checkpoint_beyond_the_end_of_the_run_is_refused(tmp_path: Path) -> None:
    run = stopped_run(tmp_path / "run")
    edit_state(run, lambda state: state.update(step=1000))
    with pytest.raises(UserError, match="has 1000 steps already, more than the 12"):
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
        Trainer(RunFolder(tmp_path, replace(RECIPE, model_options=option)), make_dataset())


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


def test_other_images_under_the_same_name_are_refused(tmp_path: Path) -> None:
    run = run_at(tmp_path / "run")
    with pytest.raises(Killed):
        train(run, make_dataset(), Listener(5, kill))
    with pytest.raises(UserError, match="trained on other images than squares has now"):
        train(run, make_dataset(count=34), Listener(), resume=True)


def test_a_crop_that_could_lose_the_image_is_refused_before_the_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="crop_padding 4 can shift all of an image of 4 x 4 pixels"):
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
    assert first_non_finite(vit, pieces[:1]) == ("it shows first in the result of blocks.1.norm2", "blocks.1.norm2")
    first = ("it shows first in the result of patch_embed.proj", "patch_embed.proj")
    assert first_non_finite(vit, pieces[::order]) == first
    huge[0, 0, 0, 0] = np.nan
    assert first_non_finite(vit, pieces[::order]) == ("the images themselves hold NaN or infinity", "")


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


@pytest.mark.parametrize(
    "field",
    [
        *({"epochs": value} for value in (1.5, True, None, 10**30, "3")),
        *({"lr": value} for value in ("x", True, None, 1e400)),
        *({"betas": value} for value in (5, [1], [2, 3], ["a", "b"], None)),
        *({"model_options": value} for value in ([1], None, "x")),
        *({"dataset": value} for value in (5, None, "a\0b", "")),
        {"model": [1]}, {"optimizer": [1]}, {"schedule": "cosin"}, {"flip": "no"}, {"seed": "0"}, {"seed": 10**400},
    ],
    ids=lambda value: str(value)[:40],
)  # fmt: skip
def test_a_recipe_of_other_types_is_refused(field: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=f"{next(iter(field))} is .*; expected"):
        Recipe.from_dict({**RECIPE.to_dict(), **field})
