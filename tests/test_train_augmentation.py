"""The augmentation of a run: its fields are checked, its strength has a schedule, and a run resumes to its bits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_run import RECIPE, Killed, Listener, bits, kill, make_dataset, run_at, train

from minivit.data import augment, normalize
from minivit.data.images import Decoding
from minivit.errors import UserError
from minivit.nn.presets import get_config
from minivit.random import Key
from minivit.train.advice import unlikely_settings
from minivit.train.augmentation import Augmentation
from minivit.train.recipe import Recipe
from minivit.train.trainer import Trainer

STRONG: dict[str, Any] = {
    "auto_augment": "trivial", "color_jitter": 0.3, "erase_prob": 0.5, "mixup_alpha": 0.8, "cutmix_alpha": 1.0,
    "mix_prob": 0.8, "augment_ramp": 0.5, "augment_off_epochs": 1,
}  # fmt: skip
MANY = replace(RECIPE, **STRONG)


@pytest.mark.parametrize("threads", [1, 2])
def test_a_killed_run_ends_in_the_same_bits(tmp_path: Path, threads: int) -> None:
    whole, killed = run_at(tmp_path / "whole", MANY), run_at(tmp_path / "killed", MANY)
    train(whole, make_dataset(), Listener())
    with pytest.raises(Killed):
        train(killed, make_dataset(), Listener(6, kill), checkpoint_seconds=0, threads=threads)
    train(killed, make_dataset(), Listener(), resume=True, threads=threads)
    assert bits(killed) == bits(whole)


@pytest.mark.parametrize(
    "fields",
    [
        {"auto_augment": "trivial"},
        {"auto_augment": "rand"},
        {"auto_augment": "rand", "rand_ops": 3},
        {"auto_augment": "rand", "rand_magnitude": 20},
        {"color_jitter": 0.4},
        {"erase_prob": 0.5},
        {"mixup_alpha": 0.2},
        {"cutmix_alpha": 1.0},
        {"cutmix_alpha": 1.0, "mix_prob": 0.5},
        {"mixup_alpha": 1.0, "cutmix_alpha": 1.0},
        {"crop_padding": 0, "resized_crop": (0.5, 1.0)},
        {"auto_augment": "trivial", "augment_ramp": 2.0},
        {"auto_augment": "trivial", "augment_off_epochs": 2},
    ],
    ids=str,
)
def test_each_field_changes_the_images_or_the_labels(tmp_path: Path, fields: dict[str, Any]) -> None:
    batches = []
    without = {name: value for name, value in fields.items() if name == next(iter(fields))}
    if len(fields) == 1 or "crop_padding" in fields:
        without = {}
    for number, chosen in enumerate((fields, without)):
        trainer = Trainer(run_at(tmp_path / str(number), replace(RECIPE, **chosen)), make_dataset(), threads=1)
        steps = [trainer.data_loader.batch(trainer.train_index[:8], step, np.dtype("float32")) for step in range(12)]
        batches.append([(images.tobytes(), labels.tobytes()) for images, labels, _ in steps])
    assert batches[0] != batches[1]


def test_in_the_last_epochs_there_are_crops_and_flips_alone(tmp_path: Path) -> None:
    dataset = make_dataset()
    trainer = Trainer(run_at(tmp_path / "run", MANY), dataset, threads=1)
    samples, dtype = trainer.train_index[:8], np.dtype("float32")
    pixels = dataset.train_images[samples]
    for step in range(trainer.total_steps):
        images, labels, _ = trainer.data_loader.batch(samples, step, dtype)
        plain = augment(pixels, Key(MANY.seed, step, samples), crop_padding=MANY.crop_padding, flip=MANY.flip)
        is_plain = (images == normalize(plain, dataset.mean, dataset.std, dtype)).all()
        assert is_plain == (step >= 2 * trainer.steps_per_epoch), step
        if is_plain:
            np.testing.assert_array_equal(labels, dataset.train_labels[samples])


def test_the_strength_grows_linearly_and_ends() -> None:
    recipe = replace(RECIPE, epochs=5, augment_ramp=2.0, augment_off_epochs=1)
    strengths = [Augmentation(recipe, 4).strength(step) for step in range(20)]
    assert strengths == [*(k / 8 for k in range(1, 9)), *[1.0] * 8, *[0.0] * 4]
    assert [Augmentation(RECIPE, 4).strength(step) for step in range(12)] == [1.0] * 12


def test_the_labels_of_mixed_images_sum_to_one(tmp_path: Path) -> None:
    recipe = replace(RECIPE, cutmix_alpha=1.0, mixup_alpha=1.0)
    trainer = Trainer(run_at(tmp_path / "run", recipe), make_dataset(), threads=1)
    for step in range(6):
        _, labels, _ = trainer.data_loader.batch(trainer.train_index[:7], step, np.dtype("float32"))
        assert labels.shape == (7, 2)
        np.testing.assert_allclose(labels.sum(axis=1), 1, rtol=1e-6)


def test_images_that_are_resized_when_they_are_read_are_augmented(tmp_path: Path) -> None:
    dataset = make_dataset().resized(Decoding((6, 6)))
    trainer = Trainer(run_at(tmp_path / "run", replace(MANY, augment_ramp=0.0)), dataset, threads=1)
    plain = Trainer(run_at(tmp_path / "plain", RECIPE), dataset, threads=1)
    (images, labels, _), (before, _, _) = (
        of.data_loader.batch(of.train_index[:8], 0, np.dtype("float32")) for of in (trainer, plain)
    )
    assert images.shape == before.shape == (8, 6, 6, 1)
    assert (images != before).any()
    assert labels.shape == (8, 2)


def test_the_place_of_nan_is_found_in_mixed_images(tmp_path: Path) -> None:
    trainer = Trainer(run_at(tmp_path / "run", replace(RECIPE, mixup_alpha=1.0)), make_dataset(), threads=1)
    trainer.model.parameters["blocks.1.mlp.fc1.weight"].value[0, 0] = np.nan
    trainer._step(trainer.train_index[:8])
    [step] = trainer.train_step.metrics.read()
    assert step.stopped
    assert "blocks.1.mlp.fc1" in trainer.train_step.where_not_finite(step)


def test_augmentation_that_is_off_in_all_epochs_is_said() -> None:
    config = get_config(RECIPE.model, **RECIPE.model_options)
    off = replace(MANY, augment_off_epochs=3)
    [words] = unlikely_settings(off, config, 120)
    assert words == "augmentation is off in the last 3 of 3 epochs, which are all; use a smaller --augment-off-epochs"
    assert not list(unlikely_settings(MANY, config, 120))
    assert not list(unlikely_settings(replace(RECIPE, augment_off_epochs=3), config, 120))


def test_an_image_is_the_same_in_any_batch_where_nothing_mixes(tmp_path: Path) -> None:
    recipe = replace(MANY, mixup_alpha=0.0, cutmix_alpha=0.0)
    trainer = Trainer(run_at(tmp_path / "run", recipe), make_dataset(), threads=1)
    dtype, index = np.dtype("float32"), trainer.train_index[:9]
    whole = trainer.data_loader.batch(index, 3, dtype)[0]
    np.testing.assert_array_equal(trainer.data_loader.batch(index[4:6], 3, dtype)[0], whole[4:6])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"auto_augment": "auto"}, "auto_augment is 'auto'; expected one of trivial, rand"),
        ({"rand_magnitude": 31}, "rand_magnitude is 31; expected a whole number, at least 0 and at most 30"),
        ({"rand_ops": -1}, "rand_ops is -1; expected a whole number, at least 0"),
        ({"color_jitter": 1.5}, "color_jitter is 1.5; expected a number, at least 0 and at most 1"),
        ({"erase_prob": -0.1}, "erase_prob is -0.1; expected a number, at least 0 and at most 1"),
        ({"mixup_alpha": 5.0}, "mixup_alpha is 5.0; expected a number, at least 0 and at most 4"),
        ({"cutmix_alpha": float("nan")}, "cutmix_alpha is nan; expected a number"),
        ({"mix_prob": 2}, "mix_prob is 2; expected a number, at least 0 and at most 1"),
        ({"augment_ramp": "long"}, "augment_ramp is 'long'; expected a number"),
        ({"augment_off_epochs": 0.5}, "augment_off_epochs is 0.5; expected a whole number"),
        ({"resized_crop": (0.5,), "crop_padding": 0}, r"resized_crop is \[0.5\]; expected two numbers, or none"),
        ({"resized_crop": (0.9, 0.5), "crop_padding": 0}, "expected two numbers, or none"),
        ({"resized_crop": (0.0, 0.5), "crop_padding": 0}, "expected a list of numbers above 0 and at most 1"),
        ({"resized_crop": (0.5, 1.0)}, "resized_crop and crop_padding are two crops; a run has one of them"),
    ],
)
def test_what_does_not_fit_a_field_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        replace(RECIPE, **fields)


def test_colours_need_1_or_3_channels(tmp_path: Path) -> None:
    dataset = make_dataset()
    two = replace(dataset, train_images=dataset.train_images.repeat(2, axis=3),
                  test_images=dataset.test_images.repeat(2, axis=3), mean=(0.5,) * 2, std=(0.25,) * 2)  # fmt: skip
    with pytest.raises(UserError, match="auto_augment and color_jitter need images of 1 or 3 channels, not of 2"):
        Trainer(run_at(tmp_path / "run", replace(RECIPE, auto_augment="rand")), two)


def test_a_recipe_of_an_earlier_version_augments_as_before() -> None:
    values = {name: value for name, value in RECIPE.to_dict().items() if name not in STRONG}
    assert Recipe.from_dict(values) == RECIPE
    assert Augmentation(RECIPE, 4).is_plain
