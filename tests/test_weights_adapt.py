"""Fine-tuning begins here: weights with another head, and with positions for images of another size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from minivit import ViT, ViTConfig, load_model, save_model
from minivit.errors import UserError
from minivit.weights.adapt import adapted, adapted_config
from minivit.weights.resample import CONVENTIONS, resampled, resampling_matrix
from tests.model_files import foreign, model_of

SIZES: dict[str, Any] = {"num_heads": 3, "act_layer": "gelu", "norm_eps": 1e-6}


def saved(path: Path, **fields: Any) -> ViT:
    model = model_of(**fields)
    save_model(model, path)
    return model


def others(model: ViT, *changed: str) -> dict[str, Any]:
    return {name: value for name, value in model.state_dict().items() if not name.startswith(changed)}


def assert_others_same(model: ViT, expected: ViT, *changed: str) -> None:
    state = others(model, *changed)
    assert state.keys() == others(expected, *changed).keys()
    for name, value in others(expected, *changed).items():
        assert_array_equal(state[name], value)


def test_another_number_of_classes_gives_a_head_of_zeros_and_leaves_the_rest(tmp_path: Path) -> None:
    model = saved(tmp_path, representation_size=8)
    changed = load_model(tmp_path, num_classes=5)
    assert (changed.config.num_classes, changed.config.representation_size) == (5, 0)
    assert changed.parameters["head.weight"].shape == (12, 5)
    assert not any(changed.parameters[name].value.any() for name in ("head.weight", "head.bias"))
    assert_others_same(changed, model, "head.", "pre_logits.")


def test_the_same_number_of_classes_leaves_the_head(tmp_path: Path) -> None:
    model = saved(tmp_path, representation_size=8)
    assert_others_same(load_model(tmp_path, num_classes=7), model)


def test_no_classes_leave_no_head(tmp_path: Path) -> None:
    model = saved(tmp_path)
    changed = load_model(tmp_path, num_classes=0)
    assert changed(np.zeros((2, 10, 21, 2), np.float32)).shape == (2, 12)
    assert_others_same(changed, model, "head.")


def test_a_headless_model_gets_a_head(tmp_path: Path) -> None:
    saved(tmp_path, num_classes=0, representation_size=5, representation_act="tanh")
    changed = load_model(tmp_path, num_classes=4)
    assert changed.parameters["head.weight"].shape == (12, 4)
    assert changed.config.representation_size == 0


@pytest.mark.parametrize("convention", CONVENTIONS)
@pytest.mark.parametrize("fields", [{}, {"no_embed_class": True}, {"reg_tokens": 2}, {"pos_embed_layers": "each"}])
def test_positions_are_resampled_and_those_of_other_tokens_kept(
    tmp_path: Path, convention: str, fields: dict[str, Any]
) -> None:
    model = saved(tmp_path, **fields)
    changed = load_model(tmp_path, img_size=(20, 12), resample=convention)
    assert changed.config.img_size == (20, 12)
    prefix = 0 if fields.get("no_embed_class") else model.config.num_prefix_tokens
    names = [name for name in model.state_dict() if name.startswith("pos_embed")]
    assert len(names) == (2 if "pos_embed_layers" in fields else 1)
    for name in names:
        before, after = model.state_dict()[name][0], changed.state_dict()[name][0]
        assert_array_equal(after[:prefix], before[:prefix])
        expected = resampled(before[prefix:].reshape(2, 7, 12), (4, 4), convention).reshape(16, 12)
        assert_array_equal(after[prefix:], expected)
    assert_others_same(changed, model, "pos_embed")


@pytest.mark.parametrize("kind", ["learn_2d", "learn_2d_concat"])
def test_learned_rows_and_columns_are_resampled_each(tmp_path: Path, kind: str) -> None:
    model = saved(tmp_path, pos_embed=kind)
    changed = load_model(tmp_path, img_size=(20, 12)).state_dict()
    for name, old in (("pos_embed.rows", 2), ("pos_embed.columns", 7)):
        assert_allclose(changed[name], resampling_matrix(old, 4, "timm") @ model.state_dict()[name], rtol=1e-6)


def test_fixed_positions_need_no_resampling(tmp_path: Path) -> None:
    model = saved(tmp_path, pos_embed="sincos_2d")
    changed = load_model(tmp_path, img_size=(20, 12))
    assert_others_same(changed, model)
    assert changed(np.zeros((1, 20, 12, 2), np.float32)).shape == (1, 7)


def test_relative_positions_are_refused_for_another_number_of_tokens(tmp_path: Path) -> None:
    saved(tmp_path, pos_embed="relative")
    with pytest.raises(UserError, match="relative positions of this model are for 15 tokens, and images of 20 x 12 ha"):
        load_model(tmp_path, img_size=(20, 12))


def test_a_file_of_timm_is_square_unless_it_cannot_be(tmp_path: Path) -> None:
    path = foreign(tmp_path, img_size=(20, 12))
    assert_others_same(load_model(path, **SIZES), model_of(img_size=(20, 12)))
    before = model_of(img_size=(20, 12)).state_dict()["pos_embed"]
    after = load_model(path, img_size=(10, 24), **SIZES).state_dict()["pos_embed"]
    expected = resampled(before[0, 1:].reshape(4, 4, 12), (2, 8), "timm")
    assert_array_equal(after[0, 1:], expected.reshape(16, 12))


def test_the_given_size_of_images_says_the_grid_of_a_file_that_is_not_square(tmp_path: Path) -> None:
    path = foreign(tmp_path)
    assert_others_same(load_model(path, img_size=(10, 21), **SIZES), model_of())


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_a_constant_grid_stays_constant(convention: str) -> None:
    for old, new in ((1, 5), (3, 1), (7, 12), (14, 5)):
        assert_allclose(resampling_matrix(old, new, convention).sum(axis=1), 1.0, rtol=1e-6)


def test_the_original_convention_is_linear_and_aligns_corners() -> None:
    grid = np.array([[[0.0], [1.0], [4.0]]])
    assert_allclose(resampled(grid, (1, 5), "google")[0, :, 0], [0.0, 0.5, 1.0, 2.5, 4.0], atol=1e-12)
    assert_array_equal(resampled(np.arange(15.0)[:, None, None], (26, 1), "google")[-1, 0], [14.0])


def test_timms_convention_is_pytorchs_antialiased_bicubic() -> None:
    # torch.nn.functional.interpolate(torch.tensor([[[[1, 2, 4, 8.]]]]), (1, n), mode="bicubic", antialias=True)
    values = np.array([[[1.0], [2.0], [4.0], [8.0]]])
    up = [0.9342107176780701, 1.3529412746429443, 2.252314805984497, 3.5393521785736084, 6.235294342041016, 8.2631581]
    down = [1.5578513145446777, 5.706611633300781]
    assert_allclose(resampled(values, (1, 6), "timm")[0, :, 0], up, rtol=1e-6)
    assert_allclose(resampled(values, (1, 2), "timm")[0, :, 0], down, rtol=1e-6)


def test_a_configuration_that_is_not_changed_is_the_same() -> None:
    config = ViTConfig(img_size=32, representation_size=4)
    assert adapted_config(config, {"num_classes": 1000, "img_size": 32}) == config
    model = model_of()
    assert adapted(model.state_dict(), model.config, model).keys() == model.state_dict().keys()
