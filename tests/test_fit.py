"""`minivit.fit`: the bits of `minivit train` from arrays, for a ViT and for any other layer, without files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_run import RECIPE, Listener, make_dataset, run_at, train

import minivit
from minivit import Layer, RunError, UserError, ViT
from minivit.data import Dataset
from minivit.train.fit import FitResult
from minivit.train.recipe import Recipe, model_config
from minivit.train.trainer import Trainer
from minivit.weights import load_model

SCALED: dict[str, Any] = {"mean": (0.5,), "std": (0.25,)}  # as of `make_dataset`


def new_model(recipe: Recipe = RECIPE, **options: Any) -> ViT:
    return ViT(model_config(recipe, make_dataset()), seed=recipe.seed, dtype=recipe.dtype, **options)


def fitted(recipe: Any = RECIPE, model: Layer | None = None, **options: Any) -> FitResult:
    dataset = make_dataset()
    model = new_model() if model is None else model
    options = {"threads": 1, **SCALED, **options}
    return minivit.fit(model, dataset.train_images, dataset.train_labels, recipe=recipe, **options)


def values(result: FitResult) -> dict[str, bytes]:
    return {name: value.tobytes() for name, value in result.model.state_dict().items()}


class Wrapped(Layer):
    """A layer that is no ViT, with the function of one."""

    def __init__(self, vit: ViT) -> None:
        self.vit = vit

    def forward(self, x: np.ndarray, rng: Any = None, keep: bool = True) -> tuple[np.ndarray, Any]:
        return self.vit.forward(x, rng, keep)

    def backward(self, dy: np.ndarray, cache: Any) -> np.ndarray:
        return self.vit.backward(dy, cache)


def wrapped(dtype: str) -> Wrapped:
    vit = new_model(replace(RECIPE, dtype=dtype))
    layer = Wrapped(ViT(vit.config)).initialize(0, dtype)
    layer.load_state_dict({f"vit.{name}": value for name, value in vit.state_dict().items()})
    return layer


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"validation": 0.0},
        {"ema_decay": 0.5},
        {"swa_start": 0.5, "choose_by": "loss"},
        {"optimizer": "sgd", "schedule": "onecycle", "freeze": ("blocks.0.*",), "layer_decay": 0.5},
        {"dtype": "float64", "micro_batch": 0, "seed": 7},
        {"optimizer": "muon", "schedule": "wsd", "decay_epochs": 1.0, "decay_shape": "1-sqrt"},
        {"auto_augment": "trivial", "erase_prob": 0.5, "mixup_alpha": 1, "cutmix_alpha": 1, "augment_off_epochs": 1},
        {"resized_crop": (0.5, 1.0), "crop_padding": 0, "auto_augment": "rand", "color_jitter": 0.4, "augment_ramp": 2},
    ],
    ids=str,
)
def test_the_model_and_the_metrics_are_those_of_a_run(tmp_path: Path, changes: dict[str, Any]) -> None:
    recipe = replace(RECIPE, **changes)
    run, reporter = run_at(tmp_path / "run", recipe), Listener()
    best = train(run, make_dataset(), reporter)["best_epoch"]
    expected = load_model(run.path / "best", dtype=recipe.dtype).state_dict()
    found = fitted(recipe, new_model(recipe))
    assert values(found) == {name: value.tobytes() for name, value in expected.items()}
    assert found.best_epoch == best
    for line, epoch in zip(reporter.epochs, found.epochs, strict=True):
        for name, value in epoch._asdict().items():
            assert "second" in name or value == line.get(name)


def test_images_for_validation_are_those_of_a_run_whose_data_set_has_them(tmp_path: Path) -> None:
    dataset = make_dataset()
    index = np.arange(28, 35)
    own = Dataset(**{**vars(dataset), "validation_index": index})
    run = run_at(tmp_path / "run")
    train(run, own, Listener())
    expected = load_model(run.path / "best").state_dict()
    images, labels = dataset.train_images, dataset.train_labels
    held_out = images[28:], labels[28:]
    result = minivit.fit(new_model(), images[:28], labels[:28], recipe=RECIPE, validation=held_out, threads=1, **SCALED)
    assert values(result) == {name: value.tobytes() for name, value in expected.items()}


def test_the_number_of_workers_changes_no_bit() -> None:
    assert values(fitted(threads=2)) == values(fitted())


def test_another_layer_is_trained_as_a_vit_is() -> None:
    """In float64 up to rounding, with the same dropout, whatever the micro-batches are."""
    mixed = replace(RECIPE, mixup_alpha=1.0, cutmix_alpha=1.0)  # the soft targets are sliced with the images
    options: dict[str, Any] = {"recipe": replace(mixed, optimizer="sgd", lr=0.01), "epochs": 2}
    expected = fitted(model=new_model(replace(RECIPE, dtype="float64")), **options)
    for micro_batch in (0, 3):
        layer = wrapped("float64")
        found = fitted(model=layer, micro_batch=micro_batch, **options)
        for name, value in expected.model.state_dict().items():
            np.testing.assert_allclose(layer.parameters[f"vit.{name}"].value, value, rtol=1e-9, atol=1e-12)
        assert [epoch.train_loss for epoch in found.epochs] == pytest.approx(
            [epoch.train_loss for epoch in expected.epochs], rel=1e-9
        )
        assert [epoch.val_accuracy for epoch in found.epochs] == [epoch.val_accuracy for epoch in expected.epochs]


def test_floats_from_0_to_1_are_the_pixels_of_uint8() -> None:
    dataset = make_dataset()
    images = dataset.train_images.astype(np.float32) / 255
    result = minivit.fit(new_model(), images, dataset.train_labels, recipe=RECIPE, threads=1, **SCALED)
    assert values(result) == values(fitted())
    assert np.array_equal(result.predict(images, 1), result.predict(dataset.train_images, 1))


def test_images_are_normalised_as_in_training() -> None:
    """By the statistics of the training images, where the recipe has none."""
    dataset = make_dataset()
    result = fitted(mean=(), std=())
    images = dataset.train_images / 255
    assert result.mean == pytest.approx((images.mean(),))
    assert result.std == pytest.approx((images.std(),))
    x = ((dataset.test_images / 255 - result.mean) / result.std).astype(np.float32)
    np.testing.assert_allclose(result.predict(dataset.test_images, 1), result.model(x), rtol=1e-4, atol=1e-5)


def test_a_recipe_is_given_by_name_or_by_its_fields_or_as_a_whole() -> None:
    """Its model and data set do not matter, and single fields replace those of the recipe."""
    by_fields = fitted({"epochs": 1, "batch_size": 8, "crop_padding": 1})
    whole = Recipe("cifar10", "vit_base_patch16_224", {"depth": 3}, epochs=9, batch_size=8, crop_padding=1)
    assert values(fitted(whole, epochs=1)) == values(by_fields)
    named = fitted("digits", epochs=1)
    assert (named.recipe.lr, named.recipe.epochs, named.recipe.micro_batch) == (6e-3, 1, 32)
    default = fitted(None, epochs=1).recipe  # that of "folder-small", for images of 4 x 4
    assert (default.batch_size, default.crop_padding) == (64, 0)
    assert fitted(None, epochs=1, resized_crop=(0.5, 1.0)).recipe.resized_crop == (0.5, 1.0)
    cropped = fitted("digits", epochs=1, resized_crop=(0.5, 1.0)).recipe  # one crop is in place of the other
    assert (cropped.crop_padding, cropped.resized_crop) == (0, (0.5, 1.0))
    warmed = fitted({"warmup_steps": 500, "epochs": 1, "batch_size": 8}, warmup_epochs=1).recipe
    assert (warmed.warmup_steps, warmed.warmup_epochs) == (0, 1)
    assert fitted(seed=3, epochs=1).recipe.seed == 3
    assert fitted(replace(RECIPE, seed=3), epochs=1).recipe.seed == 3


def test_a_line_is_printed_after_each_epoch_and_no_file_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    fitted()
    assert capsys.readouterr().out == ""
    result = fitted(verbose=True)
    lines = capsys.readouterr().out.splitlines()
    assert lines == [str(epoch) for epoch in result.epochs]
    assert lines[0].startswith("epoch 1: loss ")
    assert "validation" in lines[0]
    assert "FitResult(ViT after epoch" in repr(result)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("as_layer", [False, True])
def test_a_loss_that_is_not_finite_stops_and_leaves_the_last_finite_parameters(as_layer: bool) -> None:
    model = wrapped("float32") if as_layer else new_model()
    stops = pytest.raises(RunError, match=r"not finite at step .*; a smaller lr than 1e\+30 often helps")
    with np.errstate(all="ignore"), stops:
        fitted(model=model, lr=1e30, warmup_epochs=0.0, clip_norm=0.0)
    assert all(np.isfinite(value).all() for value in model.state_dict().values())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"model_options": {}}, "model_options cannot be given to fit"),
        ({"recipe": 3}, "recipe is a int; expected a Recipe, the name"),
        ({"recipe": "cifar"}, "there is no recipe 'cifar'; did you mean 'cifar10'"),
        ({"recipe": {"epoch": 3}}, "unknown fields of a recipe: epoch"),
        ({"epochs": 0}, "epochs is 0; expected"),
        ({"crop_padding": 4}, "crop_padding 4 can shift all of an image of 4 x 4 pixels"),
        (
            {"optimizer": "muon", "freeze": ("blocks.*",)},
            r"no matrix of the blocks or the stem is trained, so that optimizer muon",
        ),
        ({"on_nan": "rollback"}, "on_nan goes back to a checkpoint, which fit does not write"),
        ({"validation": 0.1}, r"validation is not a pair; expected \(images, labels\)"),
        ({"validation": (np.zeros((2, 4, 4, 3), np.uint8), np.zeros(2, int))}, r"expected images \(n, 4, 4, 1\)"),
        ({"mean": (0.5, 0.5), "std": (0.5, 0.5)}, "expected mean and std for 1 channels|images have 1 channels"),
    ],
    ids=str,
)
def test_options_that_do_not_fit_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        fitted(**{"recipe": RECIPE, **options})


@pytest.mark.parametrize(
    ("images", "labels", "words"),
    [
        (np.full((4, 4, 4, 1), 3.0), np.zeros(4, int), r"from 3 to 3; expected uint8, or floats from 0 to 1: use"),
        (np.full((4, 4, 4, 1), np.nan), np.zeros(4, int), "every value must be finite"),
        (np.zeros((4, 4, 4), np.uint8), np.zeros(4, int), r"expected \(B, height, width, C\)"),
        (np.zeros((4, 4, 4, 1), np.int64), np.zeros(4, int), "images are int64; expected uint8 or a float type"),
        (np.zeros((4, 8, 8, 1), np.uint8), np.zeros(4, int), r"this model takes \(B, 4, 4, 1\)"),
        (np.zeros((4, 4, 4, 1), np.uint8), np.zeros(4), "np.unique"),
        (np.zeros((4, 4, 4, 1), np.uint8), np.zeros(3, int), "there are 3 labels for 4 images; give one label"),
        (np.zeros((4, 4, 4, 1), np.uint8), np.full(4, 2), "has the label 2; expected 0 to 1"),
    ],
    ids=str,
)
def test_images_and_labels_that_do_not_fit_are_refused(images: np.ndarray, labels: np.ndarray, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        minivit.fit(new_model(), images, labels, recipe=RECIPE)


def test_images_of_other_channels_are_refused_by_a_prediction() -> None:
    with pytest.raises(UserError, match="images have 3 channels; the model was trained on 1"):
        fitted().predict(np.zeros((2, 4, 4, 3), np.uint8), 1)


def test_a_vit_without_a_head_is_refused() -> None:
    model = minivit.create_model("vit_micro_patch4_8", depth=1, num_classes=0)
    with pytest.raises(UserError, match="the model has no head, and so no classes; make it with num_classes"):
        minivit.fit(model, np.zeros((4, 8, 8, 1), np.uint8), np.arange(4))


def test_a_layer_without_logits_is_refused() -> None:
    with pytest.raises(UserError, match=r"GELU turns one image into .*; expected logits \(1, classes\)"):
        fitted(model=minivit.layers.GELU().initialize())


def test_a_model_on_a_device_is_trained_there_as_in_a_run(tmp_path: Path) -> None:
    trainer = Trainer(run_at(tmp_path / "run"), make_dataset(), backend="strict")
    trainer.fit(Listener())
    best = load_model(trainer.run.path / "best").state_dict()
    result = fitted(model=new_model(backend="strict"))
    assert values(result) == {name: value.tobytes() for name, value in best.items()}
    assert isinstance(result.predict(make_dataset().test_images), np.ndarray)
