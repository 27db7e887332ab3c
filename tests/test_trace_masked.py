"""Traces of models that learn without labels: the loss, names, gradients, attention, files and interventions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from contract import assert_same_bits, normal
from test_masked import FIELDS, MODELS, every_kind, images, key, made

import minivit
from minivit import UserError
from minivit.nn.masked import MaskedModel
from minivit.tracing import Trace, attention_rollout, gradient_flow, load_trace
from minivit.tracing.table import true_probability
from minivit.train.diagnostics import NonFinitePlace, first_non_finite
from minivit.train.layer_statistics import activation_statistics
from minivit.train.nan_dump import Batch, read_batch, write_dump
from minivit.train.run_folder import RunFolder

X = images(3)
KEY = key(3)
ENCODER = ["encoder.patch_embed", "encoder.blocks.0", "encoder.blocks.1", "encoder.norm"]
DECODER = ["decoder_embed", "decoder_blocks.0", "decoder_blocks.1", "decoder_norm", "decoder_pred"]


def gradients_of(found: Trace) -> dict[str, Any]:
    """Return the gradients of all parameters in a trace, by the names that they have in the model."""
    named = {f"{record.name}.{own}": values.grad for record in found for own, values in record.parameters.items()}
    return {name.removeprefix("model."): grad for name, grad in named.items()}


@every_kind
@pytest.mark.parametrize("training", [True, False])
def test_loss_and_gradients_are_those_of_the_model(kind: str, training: bool) -> None:
    model: MaskedModel = made(kind, drop_path_rate=0.2)
    rng = KEY if training else None
    found = minivit.trace(model, X, rng=rng)
    with minivit.ops.reference_only():
        losses, cache = model.forward(X, rng)
        dx = model.backward(np.full(3, 1 / 3), cache)
    assert found.loss is not None
    assert found.labels is None
    assert found.y is not None
    assert found.y.tobytes() == losses.tobytes()
    assert found.loss == losses.mean()
    assert_same_bits([found["model"].dx], [dx])
    gradients = gradients_of(found)
    for name, parameter in model.parameters.items():
        if name.startswith("encoder.head"):
            assert name not in gradients  # it is not called
        else:
            assert_same_bits([gradients[name]], [parameter.grad])
    assert set(gradients) <= set(model.parameters)


@every_kind
def test_the_table_has_the_parts_by_depth(kind: str) -> None:
    found = minivit.trace(made(kind), X)
    assert [row.name for row in found.rows()] == [*ENCODER, *(DECODER if "MAE" in kind else ["head"])]
    assert all(row.gradient is not None for row in found.rows())
    assert gradient_flow(found).names == [row.name for row in found.rows()]
    assert f"loss {float(found.loss or 0):.4g}" in repr(found)
    assert true_probability(found) is None


def test_an_encoder_is_no_layer_of_the_trace_and_its_parameters_are_those_of_the_model() -> None:
    found = minivit.trace(made("MAE"), X)
    assert "encoder" not in found
    assert list(found["model"].parameters) == ["mask_token", "encoder.cls_token", "encoder.pos_embed"]
    assert found["embed"].gradients["pos_embed"].shape == (1, 17, 8)
    assert_same_bits([found["embed"].gradients["pos_embed"]], [found["model"].parameters["encoder.pos_embed"].grad])


def test_of_statistics_the_model_has_those_of_its_encoder_too() -> None:
    found = minivit.trace(made("MAE"), X, statistics=True)
    whole = minivit.trace(made("MAE"), X)
    for name in ("encoder.cls_token", "encoder.pos_embed"):
        assert found["model"].statistics[f"d{name}"] == whole["model"].statistics[f"d{name}"]
    assert found.rows("model")[0].gradient == pytest.approx(whole.rows("model")[0].gradient)


def test_names_and_patterns_find_layers_of_encoder_and_decoder() -> None:
    found = minivit.trace(made("MAE"), X, at=["encoder.blocks.1.attn", "decoder_blocks.*.attn"])
    assert list(found.records) == ["encoder.blocks.1.attn", "decoder_blocks.0.attn", "decoder_blocks.1.attn"]
    assert found["encoder.blocks.1.attn"].weights.shape == (3, 2, 5, 5)  # the class token and 4 of 16 patches
    assert found["decoder_blocks.1.attn"].dweights.shape == (3, 2, 17, 17)
    with pytest.raises(UserError, match="'encoder' matches no layer or op of this trace"):
        minivit.trace(made("MAE"), X, at="encoder")


def test_in_training_each_image_has_its_mask_and_in_evaluation_all_have_one() -> None:
    model = made("MAE")
    index = minivit.trace(model, X, at="take_tokens_2", rng=KEY)["take_tokens_2"].arguments["index"]
    assert_same_bits([index], [model.order(model.key(KEY, X)[1])[:, :12] + 1])
    assert len(np.unique(index, axis=0)) == 3
    index = minivit.trace(model, X, at="take_tokens_2")["take_tokens_2"].arguments["index"]
    assert len(np.unique(index, axis=0)) == 1


@every_kind
def test_a_trace_is_written_and_read(kind: str, tmp_path: Path) -> None:
    found = minivit.trace(made(kind), X)
    found.save(tmp_path / "trace.safetensors")
    again = load_trace(tmp_path / "trace.safetensors")
    assert again.names == found.names
    assert again.loss == found.loss
    assert again["model"].parameters.keys() == found["model"].parameters.keys()
    assert repr(again) == repr(found)


def test_without_a_backward_pass_there_is_a_loss_and_no_gradient() -> None:
    model = made("MAE")
    for statistics in (True, False):
        found = minivit.trace(model, X, statistics=statistics, backward=False)
        assert found.loss == minivit.trace(model, X).loss
        assert not [name for record in found for name in record.quantities if name in ("dy", "dx", "dweight")]
    vit = minivit.ViT(minivit.ViTConfig(**FIELDS | {"num_classes": 3}), dtype="float64")
    found = minivit.trace(vit, X, [0, 1, 2], backward=False)
    assert found.loss == minivit.trace(vit, X, [0, 1, 2]).loss
    assert found["head"].dy is None


def test_the_watch_of_a_run_has_the_statistics_of_all_layers() -> None:
    model = made("MAE")
    found = activation_statistics(model, X)
    assert {"encoder.blocks.0.attn", "decoder_blocks.1.mlp.act", "decoder_pred"} <= set(found)
    assert "saturated" in found["encoder.blocks.0.attn"]


def test_labels_of_a_model_that_gives_losses_are_the_gradient_of_its_result() -> None:
    model = made("SimMIM")
    dy = np.array([0.0, 1.0, 0.0])
    for labels in (dy, lambda y: dy):
        found = minivit.trace(model, X, labels, rng=KEY)
        assert found.loss is None
        assert_same_bits([found["model"].dy], [dy])
        assert not found["model"].dx[0].any()
        assert found["model"].dx[1].any()
    with pytest.raises(UserError, match=r"labels is int64 .* expected the gradient of the result, float64"):
        minivit.trace(model, X, [1, 2, 3])


def test_the_rollout_is_that_of_the_encoder_alone() -> None:
    model = made("MAE")
    with pytest.raises(UserError, match="the model is of type MAE; expected a ViT; give its encoder"):
        attention_rollout(model, X)
    assert attention_rollout(model.encoder, X).shape == (3, 4, 4)


# Those of each kind; all have the encoder's.
CHANGED = ["encoder.blocks.1.attn", "encoder.blocks.0.attn.weights", "encoder.blocks.1.attn.heads.1", "embed.y",
           "encoder.patch_embed", "fill_tokens", "take_tokens", "encoder.blocks.0.mlp.x"]  # fmt: skip
OWN = {
    "SimMIM": ["head.x", "take_tokens_2"],
    "mean": ["head"],
    "pixels": ["head", "patches"],
    "MAE": ["decoder_blocks.0.attn.v", "decoder_embed", "sincos_positions", "sincos_positions.x", "take_tokens_3"],
    "MAE, norm": ["decoder_pred", "take_tokens_2.y"],
}


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind in MODELS for name in CHANGED + OWN[kind]])
def test_the_gradients_are_those_of_the_changed_model(kind: str, name: str) -> None:
    """They equal central differences of the loss along a random direction of all parameters and of the images."""
    model: MaskedModel = made(kind, drop_path_rate=0.2)
    values = model.parameters.store.values
    values += 0.2 * normal(values, 9)
    options: dict[str, Any] = {"rng": KEY, "scale": {name: 0.6}}
    found = minivit.trace(model, X, **options)
    assert found.baseline is not None
    assert found.loss != found.baseline.loss
    direction, dimages = normal(values, 3), normal(X, 4)
    slope = np.sum(found["model"].dx * dimages)
    gradients = gradients_of(found)
    for own, parameter in model.parameters.items():
        if own in gradients:
            slope += np.sum(gradients[own] * direction[parameter.span].reshape(parameter.shape))
    losses = []
    before, step = values.copy(), 1e-6
    for sign in (1, -1):
        values[...] = before + sign * step * direction
        moved = minivit.trace(model, X + sign * step * dimages, at="model", backward=False, **options)
        losses.append(float(moved.loss if moved.loss is not None else np.nan))
    values[...] = before
    assert (losses[0] - losses[1]) / (2 * step) == pytest.approx(slope, rel=2e-6)


def test_a_zeroed_decoder_position_hands_no_gradient_on() -> None:
    found = minivit.trace(made("MAE"), X, zero="sincos_positions")
    assert not found["fill_tokens"].dy[:, 1:].any()
    assert found["fill_tokens"].dy[:, :1].any()


def test_where_a_masked_model_is_not_finite_is_found() -> None:
    model = made("MAE")
    assert first_non_finite(model, [(X, KEY)]) is None
    assert first_non_finite(model, [(X * 1e200, KEY)]) is not None
    model.decoder_pred.weight.value[...] = 1e200  # its square is infinite
    place = first_non_finite(model, [(X, KEY)])
    assert place == ("it shows first in the result of the losses", "")
    model.encoder.blocks[1].mlp.fc1.weight.value[0, 0] = np.nan
    place = first_non_finite(model, [(X, KEY)])
    assert place is not None
    assert place.layer == "encoder.blocks.1.mlp.fc1"


@pytest.mark.parametrize("labels", [None, np.array([1, 2, 0])])
def test_the_images_whose_losses_are_not_finite_are_traced_first(
    labels: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = made("MAE")
    x = X.copy()
    x[1] = np.nan
    monkeypatch.setattr(RunFolder, "save_model", lambda *arguments: None)
    run = RunFolder.__new__(RunFolder)
    run.path = tmp_path
    place = NonFinitePlace("it shows first in the result of decoder_pred", "decoder_pred")
    batch = Batch(x, labels, np.array([7, 8, 9]), KEY)
    dataset: Any = None
    with minivit.Engine(model) as engine:
        folder = write_dump(run, engine, dataset, 3, place, batch, 0.1)
    arrays = read_batch(folder)
    assert arrays["traced"].tolist() == [1, 0, 2]
    assert arrays["labels"].tolist() == ([-1] * 3 if labels is None else [1, 2, 0])
    found = load_trace(folder / "trace.safetensors")
    assert found.names == ["decoder_pred", "decoder_pred.linear"]
    assert np.isnan(found["decoder_pred"].y[0]).all()
    assert np.isfinite(found["decoder_pred"].dy[1:]).all()
