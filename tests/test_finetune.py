"""A run that begins with the weights of a file: its model, its images, and how it is resumed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from PIL import Image
from small_run import RECIPE, Killed, Listener, bits, kill, make_dataset, run_at, train

from minivit import Engine, UserError, create_model, load_model, save_model
from minivit.arrays import Array
from minivit.data.images import Decoding
from minivit.data.on_demand import OnDemandImages, Resized, as_on_demand
from minivit.train.evaluation import evaluate
from minivit.train.initial import begun_with
from minivit.train.recipe import Recipe, model_config
from minivit.train.run_folder import RunFolder
from minivit.train.trainer import Trainer
from minivit.weights import fingerprint, model_metadata
from minivit.weights.preprocessing import order_of_classes

BODY: dict[str, Any] = {"patch_size": 2, "depth": 2, "embed_dim": 8, "num_heads": 2}
IMAGES = {"mean": [0.4], "std": [0.3], "crop_pct": 0.9, "crop_mode": "squash", "interpolation": "bilinear"}


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """Return the file of a model of 5 classes for images of 4 x 4 pixels."""
    save_model(create_model("vit_micro_patch4_8", img_size=4, num_classes=5, seed=3, **BODY), tmp_path, extra=IMAGES)
    return tmp_path / "model.safetensors"


def recipe(**fields: Any) -> Recipe:
    changed: dict[str, Any] = {"model_options": {}, "epochs": 2, **fields}
    return replace(RECIPE, **changed)


def test_the_recipe_has_the_model_of_the_weights_their_preprocessing_and_their_fingerprint(weights: Path) -> None:
    begun, _ = begun_with(recipe(), weights)
    assert (begun.model, begun.model_options) == ("vit_micro_patch4_8", {"img_size": 4, "in_chans": 1, **BODY})
    assert begun.init == fingerprint(weights)
    assert (begun.mean, begun.std, begun.preprocessing) == ((0.4,), (0.3,), {k: IMAGES[k] for k in begun.preprocessing})


def test_what_the_recipe_says_of_images_comes_before_what_the_weights_say(weights: Path) -> None:
    begun, _ = begun_with(recipe(mean=(0.1,), std=(0.2,), crop_pct=1.0, crop_mode="center"), weights)
    assert (begun.mean, begun.crop_pct, begun.crop_mode, begun.interpolation) == ((0.1,), 1.0, "center", "bilinear")


def test_training_begins_with_the_weights_and_a_head_of_zeros(weights: Path, tmp_path: Path) -> None:
    begun, start = begun_with(recipe(), weights)
    model = Trainer(run_at(tmp_path / "run", begun), make_dataset(), 1, start=start).model
    assert model.config.num_classes == 2
    before, after = load_model(weights).state_dict(), model.state_dict()
    assert not after.pop("head.weight").any()
    assert not after.pop("head.bias").any()
    for name, value in after.items():
        assert_array_equal(value, before[name])


def test_a_head_with_a_hidden_layer_is_replaced_as_a_whole(tmp_path: Path) -> None:
    model = create_model("vit_micro_patch4_8", img_size=4, num_classes=5, representation_size=6, **BODY)
    save_model(model, tmp_path, extra=IMAGES)
    begun, start = begun_with(recipe(), tmp_path)
    train(run := run_at(tmp_path / "run", begun), make_dataset(), Listener(), start=start)
    for trained in (load_model(run.path), Trainer(RunFolder.open(run.path), make_dataset(), 1).model):
        assert (trained.config.num_classes, trained.config.representation_size) == (2, 0)


def test_a_head_of_as_many_classes_is_kept(tmp_path: Path) -> None:
    save_model(create_model("vit_micro_patch4_8", img_size=4, num_classes=2, seed=3, **BODY), tmp_path, extra=IMAGES)
    begun, start = begun_with(recipe(), tmp_path)
    model = Trainer(run_at(tmp_path / "run", begun), make_dataset(), 1, start=start).model
    assert_array_equal(model.state_dict()["head.weight"], load_model(tmp_path).state_dict()["head.weight"])


IDS = [f"n{number:08}" for number in range(1000)]
WORDS = [f"lemma {number}" for number in range(1000)]


def test_only_a_thousand_wordnet_ids_are_not_compared_with_names() -> None:
    assert order_of_classes(WORDS, IDS) == list(range(1000))
    assert order_of_classes(IDS, WORDS) is None
    assert order_of_classes([*IDS[1:], "n12345678"], IDS) is None
    assert order_of_classes(WORDS[:2], IDS[:2]) is None


def test_the_order_of_classes_is_that_of_their_names() -> None:
    assert order_of_classes(["b", "c", "a"], ["a", "b", "c"]) == [2, 0, 1]
    assert order_of_classes(["Ga\u0308rten", "b"], ["b", "G\u00e4rten"]) == [1, 0]  # an accent in two Unicode forms
    assert order_of_classes(["a", "a"], ["a", "a"]) == [0, 1]
    assert order_of_classes(["a", "a", "b"], ["b", "a", "a"]) is None
    assert order_of_classes(["a", "b"], ["a"]) is None


@pytest.mark.parametrize(
    ("names", "is_kept"),
    [
        (["left", "right"], True),
        (["up", "down"], False),
    ],
)
def test_a_head_of_as_many_other_classes_is_replaced(names: list[str], is_kept: bool, tmp_path: Path) -> None:
    model = create_model("vit_micro_patch4_8", img_size=4, num_classes=2, seed=3, **BODY)
    model.head.weight.value[...] = model.head.bias.value[...] = 1
    save_model(model, tmp_path, extra={**IMAGES, "class_names": names})
    begun, start = begun_with(recipe(), tmp_path)
    begun_model = Trainer(run_at(tmp_path / "run", begun), make_dataset(), 1, start=start).model
    after = begun_model.state_dict()
    for name, value in after.items():
        before = load_model(tmp_path).state_dict()[name]
        assert_array_equal(value, before if is_kept or not name.startswith("head.") else np.zeros_like(before))


def test_a_head_of_the_same_classes_is_put_into_their_order(tmp_path: Path) -> None:
    model = create_model("vit_micro_patch4_8", img_size=4, num_classes=2, seed=3, **BODY)
    model.head.bias.value[...] = 1, 2
    save_model(model, tmp_path, extra={**IMAGES, "class_names": ["right", "left"]})
    begun, start = begun_with(recipe(), tmp_path)
    after = Trainer(run_at(tmp_path / "run", begun), make_dataset(), 1, start=start).model.state_dict()
    assert_array_equal(after["head.bias"], [2, 1])
    assert_array_equal(after["head.weight"], model.head.weight.value[:, ::-1])


def test_the_head_of_imagenet_is_kept_for_folders_that_are_named_by_wordnet_ids(tmp_path: Path) -> None:
    model = create_model("vit_micro_patch4_8", img_size=4, num_classes=1000, seed=3, **BODY)
    save_model(model, tmp_path, extra={**IMAGES, "class_names": WORDS})
    begun, start = begun_with(recipe(), tmp_path)
    dataset = replace(make_dataset(), class_names=tuple(IDS))
    begun_model = Trainer(run_at(tmp_path / "run", begun), dataset, 1, start=start).model
    assert_array_equal(begun_model.state_dict()["head.weight"], load_model(tmp_path).state_dict()["head.weight"])


def test_the_files_of_a_run_keep_the_preprocessing_of_the_weights(weights: Path, tmp_path: Path) -> None:
    begun, start = begun_with(recipe(), weights)
    train(run := run_at(tmp_path / "run", begun), make_dataset(), Listener(), start=start)
    for which in ("best", "last"):
        about = model_metadata(run.path / which)
        assert {key: about[key] for key in IMAGES} == IMAGES


@pytest.mark.parametrize("img_size", [4, 8])
def test_a_run_is_resumed_without_the_weights_and_ends_in_the_same_bits(
    weights: Path, tmp_path: Path, img_size: int
) -> None:
    begun, start = begun_with(recipe(model_options={"img_size": img_size}), weights)
    dataset = make_dataset() if img_size == 4 else make_dataset().resized(Decoding((8, 8), **RESIZING))
    train(whole := run_at(tmp_path / "whole", begun), dataset, Listener(), start=start)
    killed = run_at(tmp_path / "killed", begun)
    with pytest.raises(Killed):
        train(killed, dataset, Listener(6, kill), start=start)
    weights.unlink()
    train(RunFolder.open(killed.path), dataset, Listener(), resume=True)
    assert bits(killed) == bits(whole)


RESIZING: dict[str, Any] = {"interpolation": "bilinear", "fit": "squash"}


def test_a_run_without_a_checkpoint_needs_its_weights_again(weights: Path, tmp_path: Path) -> None:
    begun, _ = begun_with(recipe(), weights)
    with pytest.raises(UserError, match="has no checkpoint yet; give its initial weights again"):
        train(run_at(tmp_path / "run", begun), make_dataset(), Listener(), resume=True)


def test_a_number_of_classes_that_is_asked_for_is_not_ignored(weights: Path) -> None:
    begun, _ = begun_with(recipe(model_options={"num_classes": 7}), weights)
    with pytest.raises(UserError, match=r"num_classes 7 was asked for, but .* has 2; leave it out"):
        model_config(begun, make_dataset())


def test_a_named_model_that_the_weights_are_not_of_is_refused(weights: Path) -> None:
    with pytest.raises(UserError, match=r"of vit_tiny_patch4_32: .*depth 12 and 2.*leave --model out"):
        begun_with(recipe(), weights, "vit_tiny_patch4_32")


def test_images_of_other_channels_than_those_of_the_weights_are_refused(tmp_path: Path) -> None:
    save_model(create_model("vit_micro_patch4_8", img_size=4, in_chans=3, **BODY), tmp_path, extra=IMAGES)
    begun, start = begun_with(recipe(), tmp_path)
    with pytest.raises(UserError, match="the weights are of a model with in_chans 3, but squares has 1"):
        Trainer(run_at(tmp_path / "run", begun), make_dataset(), start=start)


def test_a_run_of_another_model_than_the_weights_is_refused(weights: Path, tmp_path: Path) -> None:
    begun, start = begun_with(recipe(), weights)
    other = replace(begun, model_options=begun.model_options | {"depth": 1})
    with pytest.raises(UserError, match=r"the run's model differs from the weights in .*: depth 1 and 2"):
        Trainer(run_at(tmp_path / "run", other), make_dataset(), start=start)


@pytest.mark.parametrize("channels", [1, 3])
def test_images_are_resized_when_they_are_read_and_only_those(channels: int) -> None:
    source = np.random.default_rng(0).integers(0, 256, (40, 6, 4, channels), dtype=np.uint8)
    images = OnDemandImages(Resized(source, Decoding((9, 8), None, 0.75, "bilinear", "squash")))
    assert (images.shape, images.ndim, len(images)) == ((40, 9, 8, channels), 4, 40)
    pixels = np.asarray(images)
    for i in (0, 7, 39):
        image = Image.fromarray(source[i] if channels == 3 else source[i, :, :, 0])
        resized = image.resize((10, 12), Image.Resampling.BILINEAR).crop((1, 2, 9, 11))
        assert_array_equal(pixels[i], np.asarray(resized).reshape(9, 8, channels))
    chosen = images[np.array([39, 7])]
    assert as_on_demand(chosen) is not None
    assert_array_equal(np.asarray(chosen), pixels[[39, 7]])


def test_the_bits_of_a_batch_do_not_depend_on_when_images_are_resized(weights: Path, tmp_path: Path) -> None:
    begun, start = begun_with(recipe(model_options={"img_size": 8}), weights)
    dataset = make_dataset().resized(Decoding((8, 8), **RESIZING))
    eager = replace(dataset, train_images=np.asarray(dataset.train_images), test_images=np.asarray(dataset.test_images))
    batches = []
    for name, images in (("lazy", dataset), ("eager", eager)):
        trainer = Trainer(run_at(tmp_path / name, begun), images, 1, start=start)
        order = trainer.data_loader.order(0)
        batches.append(trainer.data_loader.batch(order[:8], 0, np.dtype("float32")))
    for lazy, early in zip(batches[0][:2], batches[1][:2], strict=True):
        assert_array_equal(lazy, early)


def test_images_of_two_channels_cannot_be_resized() -> None:
    with pytest.raises(UserError, match="images of 2 channels cannot be resized"):
        Resized(np.zeros((1, 2, 2, 2), np.uint8), Decoding((4, 4)))


def test_a_device_trains_on_images_that_the_host_resizes(weights: Path, tmp_path: Path) -> None:
    begun, start = begun_with(recipe(model_options={"img_size": 8}), weights)
    dataset = make_dataset().resized(Decoding((8, 8), **RESIZING))
    losses = []
    for backend in ("numpy", "strict"):
        listener = Listener()
        train(run_at(tmp_path / backend, begun), dataset, listener, start=start, backend=backend)
        losses.append([report.loss for report in listener.reports])
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)


def test_large_images_are_evaluated_in_smaller_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    model = create_model("vit_micro_patch4_8", img_size=256, patch_size=128, depth=1, embed_dim=8, num_heads=1)
    counts: list[int] = []
    with Engine(model, 1) as engine:
        predict = engine.predict

        def counted(images: Array) -> Array:
            counts.append(len(images))
            return predict(images)

        monkeypatch.setattr(engine, "predict", counted)
        images = OnDemandImages(Resized(np.zeros((300, 8, 8, 1), np.uint8), Decoding((256, 256))))
        measured = evaluate(engine, images, np.zeros(300, np.int64), (0.5,), (0.5,))  # type: ignore[arg-type]  # read on demand
    assert measured.images == 300
    assert counts == [256, 44]
