"""Recipes by name: that of each data set, those of published documents, and files of users."""

from __future__ import annotations

import re
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_run import Listener, run_at, train

from minivit import UserError
from minivit.data import Dataset
from minivit.nn.presets import get_config
from minivit.train.recipe import Recipe
from minivit.train.recipes import folder_recipe, load_recipe, recipe_names

DATA_SETS = {"cifar10", "cifar10-30min", "cifar10-60min", "cifar10-gpu", "cifar100", "digits"}
DATA_SETS |= {"folder", "folder-large", "folder-small"}
DOCUMENTS = {"labml", "lightning-tutorial", "paper-finetune", "paper-pretrain"}


def test_there_is_a_recipe_for_each_data_set_and_document() -> None:
    assert set(recipe_names()) == DATA_SETS | DOCUMENTS | {"finetune", "layer", "pretrain"}


@pytest.mark.parametrize("name", sorted(DATA_SETS | DOCUMENTS))
def test_the_header_of_a_recipe_is_its_command_and_what_was_measured(name: str) -> None:
    text = (resources.files("minivit.train.recipes") / f"{name}.toml").read_text(encoding="utf-8")
    header = text.partition("\n\n")[0]
    assert header.startswith("# minivit train ")
    assert name not in DOCUMENTS or f"--recipe {name}" in header.splitlines()[0]
    assert max(map(len, text.splitlines())) <= 120
    if name in DOCUMENTS:
        assert "What differs: " in header
        assert "Not measured: " in header


@pytest.mark.parametrize("name", sorted(DOCUMENTS))
def test_a_recipe_of_a_document_is_a_recipe(name: str) -> None:
    assert load_recipe("photos", name).dataset == "photos"


def photos(count: int = 40) -> Dataset:
    """Return noise of 32 x 32 pixels in two classes."""
    images = np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
    labels = np.arange(count) % 2
    return Dataset("photos", images, labels, images[:6], labels[:6], ("a", "b"), (0.5,) * 3, (0.25,) * 3)


@pytest.mark.parametrize("name", recipe_names())
def test_the_model_of_a_recipe_trains_when_it_is_made_small(name: str, tmp_path: Path) -> None:
    named = load_recipe("photos", name)
    config = get_config(named.model, **named.model_options)
    small: dict[str, Any] = {"img_size": 32, "in_chans": 3, "depth": 1, "embed_dim": 8 * config.num_heads}
    small |= {"representation_size": 16} if config.representation_size else {}
    small |= {"patch_size": 8}
    one_step: dict[str, Any] = {
        "augment_off_epochs": 0,
        "epochs": 1,
        "batch_size": 40,
        "warmup_epochs": 0.0,
        "warmup_steps": 0,
        "swa_start": 0.0,
    }
    recipe = load_recipe("photos", name, model_options=small, micro_batch=20, **one_step)
    listener = Listener()
    result = train(run_at(tmp_path / "run", recipe), photos(), listener)
    assert len(listener.reports) == 1
    assert np.isfinite(listener.reports[0].loss)
    assert np.isfinite(result["test_loss"])


def test_the_paper_fine_tunes_by_plain_sgd_with_momentum_and_clipping() -> None:
    recipe = load_recipe("cifar10", "paper-finetune")
    assert (recipe.optimizer, recipe.momentum, recipe.weight_decay) == ("sgd", 0.9, 0.0)
    assert (recipe.batch_size, recipe.schedule, recipe.clip_norm, recipe.warmup_steps) == (512, "cosine", 1.0, 500)
    steps = recipe.epochs * -(-int(50_000 * (1 - recipe.validation)) // recipe.batch_size)
    assert abs(steps - 10_000) < 100
    assert recipe.learning_rate(499, 96) == recipe.lr


def test_without_a_name_the_data_set_has_its_own() -> None:
    assert load_recipe("digits") == load_recipe("digits", "digits")
    assert load_recipe("photos").model == load_recipe("photos", "folder").model


@pytest.mark.parametrize(
    ("images", "name"),
    [(2, "folder-small"), (4_999, "folder-small"), (5_000, "folder"), (19_999, "folder"), (20_000, "folder-large")],
)
def test_the_number_of_images_chooses_the_recipe_of_a_folder(images: int, name: str) -> None:
    assert folder_recipe(images) == name


def test_options_are_added_to_those_of_the_model() -> None:
    recipe = load_recipe("photos", "lightning-tutorial", lr=0.5, model_options={"depth": 3})
    assert recipe.lr == 0.5
    assert recipe.model_options == {"img_size": 224, "depth": 3}


def test_the_sizes_of_a_recipe_are_left_out_for_another_model() -> None:
    words = "sets conv_stem, embed_dim, num_heads for vit_mini_convstem4_32; vit_tiny_patch4_32 keeps its own"
    with pytest.warns(UserWarning, match=words):
        recipe = load_recipe("cifar10", "cifar10-gpu", model="vit_tiny_patch4_32", model_options={"depth": 3})
    assert recipe.model_options == {"depth": 3}
    own = load_recipe("cifar10", "cifar10-gpu")
    assert load_recipe("cifar10", "cifar10-gpu", model=own.model) == own
    assert own.model_options["embed_dim"] == 256
    other = load_recipe("photos", "lightning-tutorial", model="vit_small_patch16_224")  # not a size of the model
    assert other.model_options == {"img_size": 224}
    pretrained = load_recipe("photos", "pretrain", model="vit_small_patch16_224")
    assert pretrained.model_options == load_recipe("photos", "pretrain").model_options


def test_the_sizes_of_a_recipe_without_a_model_are_those_of_any(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text("[model_options]\ndepth = 3\n")
    recipe = load_recipe("cifar10", str(tmp_path / "mine.toml"), model="vit_tiny_patch4_32")
    assert recipe.model_options == {"depth": 3}


def test_a_field_takes_the_place_of_another_of_the_recipe(tmp_path: Path) -> None:
    asked = load_recipe("cifar10", "paper-finetune", warmup_epochs=1.0)
    assert (asked.warmup_steps, asked.warmup(96)) == (0, 96)
    assert load_recipe("cifar10", "paper-finetune", warmup_steps=50, warmup_epochs=1.0).warmup(96) == 50
    assert load_recipe("digits", resized_crop=(0.5, 1.0)).crop_padding == 0
    (tmp_path / "mine.toml").write_text('model = "vit_nano_patch4_8"\nresized_crop = [0.5, 1.0]\n')
    assert load_recipe("digits", str(tmp_path / "mine.toml"), crop_padding=2).resized_crop == ()


def test_a_recipe_may_be_a_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('model = "vit_nano_patch4_8"\nfreeze = ["patch_embed.*"]\n')
    recipe = load_recipe("digits", str(path))
    assert recipe.freeze == ("patch_embed.*",)
    assert Recipe.from_dict(recipe.to_dict()) == recipe


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("model = ", "mine.toml is not a recipe: "),
        ('model = "m"\ndataset = "digits"', "mine.toml names a data set"),
        ('model = "m"\nepoch = 3', "unknown fields of a recipe: epoch"),
        ('model = "m"\nfreeze = "head.*"', "freeze is 'head.*'; expected a list of patterns of names"),
        ('model = "m"\nlayer_decay = 0.0', "layer_decay is 0.0; expected a number above 0 and at most 1"),
        ('model = "m"\nmean = [0.5]', "mean has 1 numbers and std 0; expected one for each channel"),
        ('model = "m"\nmean = [127.5]\nstd = [0.5]', "mean is [127.5]; expected a list of numbers from 0 to 1"),
        ('model = "m"\nstd = [0.0]\nmean = [0.5]', "std is [0.0]; expected a list of numbers above 0 and at most 1"),
        ('model = "m"\nswa_start = 1', "swa_start is 1; expected at least 0 and below 1"),
        ('model = "m"\nchoose_by = "los"', "choose_by is 'los'; expected one of accuracy, loss; did you mean 'loss'?"),
    ],
)
def test_a_file_that_is_no_recipe_is_refused(text: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(UserError, match=re.escape(words)):
        load_recipe("digits", str(path))


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(UserError, match="there is no recipe 'paper-finetun'; did you mean 'paper-finetune'"):
        load_recipe("digits", "paper-finetun")
