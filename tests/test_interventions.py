"""Interventions change activations and gradients; the gradients are those of the changed function."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from contract import assert_close, assert_same_bits, normal
from small_vit import batch, model

from minivit import Layer, UserError, ViT
from minivit.arrays import Array
from minivit.tracing import Trace, load_trace, trace

IMAGES, LABELS, KEY = batch(3, "float64")
B, N, H, K, D = 3, 7, 3, 4, 12


def traced(vit: ViT | None = None, **options: Any) -> Trace:
    return trace(vit or model("float64"), IMAGES, LABELS, **options)


# Each of them with the shape that it has.
ACTIVATIONS: dict[str, tuple[int, ...]] = {
    "blocks.1": (B, N, D), "blocks.1.attn": (B, N, D), "blocks.1.mlp.x": (B, N, D), "blocks.0.norm1.y": (B, N, D),
    "blocks.1.attn.q": (B, H, N, K), "blocks.1.attn.k": (B, H, N, K), "blocks.1.attn.v": (B, H, N, K),
    "blocks.1.attn.scores": (B, H, N, N), "blocks.1.attn.weights": (B, H, N, N), "blocks.1.attn.heads.2": (B, N, K),
    "blocks.1.attn.softmax": (B, H, N, N), "blocks.1.attn.softmax.x": (B, H, N, N), "patch_embed": (B, 6, D),
    "blocks.1.attn.attention.x": (B, N, 3 * D), "blocks.1.mlp.act.gelu": (B, N, 48), "norm.layer_norm.x": (B, D),
    "blocks.*.attn.weights": (B, H, N, N), "**.norm2": (B, N, D), "embed.y": (B, N, D),
}  # fmt: skip
KINDS = ("zero", "scale", "replace")
CORE = ("blocks.1.attn", "blocks.1.mlp.x", "blocks.1.attn.q", "blocks.1.attn.weights", "blocks.1.attn.heads.2")
EACH = [(name, kind, False) for name in ACTIVATIONS for kind in (KINDS if name in CORE else ("scale",))]
EACH += [(name, "scale", True) for name in CORE]


def options_of(kind: str, name: str, shape: tuple[int, ...]) -> dict[str, Any]:
    array = 0.5 + np.abs(normal(np.zeros(shape), 7)) / 9
    value: dict[str, Any] = {"zero": name, "scale": {name: 0.6}, "replace": {name: array}}
    return {kind: value[kind]}


@pytest.mark.parametrize(("name", "kind", "training"), EACH)
def test_the_gradients_are_those_of_the_changed_function(name: str, kind: str, training: bool) -> None:
    """They equal central differences of the loss along a random direction of all parameters and of the images."""
    vit = model("float64")
    options = options_of(kind, name, ACTIVATIONS[name]) | {"rng": KEY if training else None}
    found = traced(vit, **options)
    values = vit.parameters.store.values
    direction = normal(values, 3)
    dimages = normal(IMAGES, 4)
    gradients = {layer.name + "." + own: v.grad for layer in found for own, v in layer.parameters.items()}
    slope = np.sum(found["model"].dx * dimages)
    for parameter_name, parameter in vit.parameters.items():
        grad = gradients[parameter_name if "." in parameter_name else f"model.{parameter_name}"]
        slope += np.sum(grad * direction[parameter.span].reshape(parameter.shape))
    losses = []
    before = values.copy()
    for step in (1e-5, -1e-5):
        values[...] = before + step * direction
        changed = trace(vit, IMAGES + step * dimages, LABELS, at="head", **options).loss
        losses.append(float(np.asarray(changed)))
    assert (losses[0] - losses[1]) / 2e-5 == pytest.approx(slope, rel=1e-6, abs=1e-9)
    assert found.baseline is not None
    assert found.loss != found.baseline.loss


@pytest.mark.parametrize("kind", ["zero", "replace"])
@pytest.mark.parametrize("name", [name for name in CORE if "heads" not in name])
def test_the_record_has_the_changed_activation_and_the_gradient_of_the_loss_in_it(name: str, kind: str) -> None:
    found = traced(**options_of(kind, name, ACTIVATIONS[name]))
    owner, _, quantity = name.rpartition(".")
    owner, quantity = (owner, quantity) if quantity in ("x", "y", "q", "k", "v", "scores", "weights") else (name, "y")
    value, gradient = getattr(found[owner], quantity), getattr(found[owner], f"d{quantity}")
    if kind == "zero":
        assert not value.any()
    elif kind == "replace":
        assert_same_bits([value], [options_of(kind, name, value.shape)["replace"][name]])
    assert gradient.shape == value.shape
    assert gradient.any()


def test_zero_of_a_branch_leaves_the_residual_connection() -> None:
    found = traced(zero="blocks.1.attn")
    block = found["blocks.1"]
    assert_same_bits([found["blocks.1.norm2"].x], [block.x])
    assert found["blocks.1.attn"].dy.any()
    assert not found["blocks.1.attn"].dx.any()
    assert not found["blocks.1.attn.qkv"].dweight.any()
    assert found.interventions == "blocks.1.attn = 0"
    assert_same_bits([found.baseline["blocks.1.attn"].y], [traced()["blocks.1.attn"].y])  # type: ignore[index]  # there is a baseline


def test_zero_of_a_head_is_zero_of_its_rows_of_proj() -> None:
    vit = model("float64")
    found = traced(vit, zero="blocks.1.attn.heads.2")
    vit.blocks[1].attn.proj.weight.value[2 * K : 3 * K] = 0
    expected = traced(vit)
    assert_close([found[""].y, found["blocks.0"].dy], [expected[""].y, expected["blocks.0"].dy], 1e-14)
    weights = found["blocks.1.attn"].dweights
    assert not weights[:, 2].any()
    assert weights[:, :2].any()


@pytest.mark.parametrize("name", ["dy", "dx", "dq", "dk", "dv", "dweights", "dscores", "dheads.1"])
def test_an_intervention_on_a_gradient_changes_it_alone(name: str) -> None:
    found = traced(zero=f"blocks.1.attn.{name}")
    before = found.baseline
    assert before is not None
    assert found.loss == before.loss
    assert_same_bits([found["blocks.2"].dx], [before["blocks.2"].dx])
    assert not np.array_equal(found["blocks.0"].dy, before["blocks.0"].dy)
    if "heads" not in name:
        assert not getattr(found["blocks.1.attn"], name).any()
    kept = {"dx": "qkv", "dq": "proj", "dk": "proj", "dv": "proj", "dweights": "proj", "dscores": "proj"}.get(name)
    if kept is not None:
        assert_same_bits([found[f"blocks.1.attn.{kept}"].dweight], [before[f"blocks.1.attn.{kept}"].dweight])


def test_a_gradient_can_be_scaled_and_replaced() -> None:
    dy = normal(np.zeros((B, N, D)))
    found = traced(scale={"blocks.1.mlp.dx": 2}, replace={"blocks.2.attn.dy": dy})
    assert found.baseline is not None
    assert_same_bits([found["blocks.2.attn"].dy, found["blocks.2.attn.proj"].dy], [dy, dy])
    assert_close([found["blocks.1.norm2"].dy], [2 * found["blocks.1.mlp.fc1"].dx], 0)


def test_an_activation_of_another_image_is_patched_in() -> None:
    """With all tokens after a block replaced, the rest of the model sees the other image alone."""
    vit = model("float64")
    other = trace(vit, IMAGES[::-1].copy(), LABELS)
    found = traced(vit, replace={"blocks.1": other["blocks.1"].y})
    assert_same_bits([found[""].y], [other[""].y])
    assert not found["blocks.1"].dx.any()


def test_what_changed_is_compared_layer_by_layer(tmp_path: Path) -> None:
    found = traced(scale={"blocks.1.mlp": 0.5})
    effects = {effect.name: effect for effect in found.compare()}
    assert effects["blocks.0"].y == 0
    assert effects["blocks.1.mlp"].y == pytest.approx(0.5)
    assert effects["blocks.2"].y > 0  # type: ignore[operator]  # not None
    assert effects["blocks.0"].dy > 0  # type: ignore[operator]  # not None
    first, second, *_ = repr(found).splitlines()
    assert second.startswith("with blocks.1.mlp * 0.5; without: ")
    assert f"loss {float(np.asarray(found.loss)):.4g}" in first
    with pytest.raises(UserError, match="no baseline: pass zero, scale or replace"):
        traced().compare()
    found.save(tmp_path / "trace.safetensors")
    again = load_trace(tmp_path / "trace.safetensors")
    assert again.interventions == found.interventions
    assert repr(again).splitlines()[:2] == [first, "with blocks.1.mlp * 0.5"]
    with pytest.raises(UserError, match="a file does not hold the baseline"):
        again.compare()
    light = {effect.name: effect for effect in traced(scale={"blocks.1.mlp": 0.5}, statistics=True).compare()}
    assert light["blocks.1.mlp"].y == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"zero": "blocks.1.atn"}, "did you mean 'blocks.1.attn'"),
        ({"zero": "blocks.1.atn.weights"}, "did you mean 'blocks.1.attn'"),
        ({"zero": "blocks.1.norm1.x_hat"}, "cannot be changed; expected one of x, y, dx, dy; of attention also q"),
        ({"zero": "blocks.1.mlp.scores"}, "changed nothing: blocks.1.mlp has no scores"),
        ({"zero": "blocks.1.attn.heads.3"}, "blocks.1.attn has no heads.3; it has .*heads.0, heads.1, heads.2, y"),
        ({"zero": "blocks.1.attn.heads.-1"}, "blocks.1.attn has no heads.-1; it has"),
        ({"zero": "cls_token"}, "'cls_token' is a parameter and cannot be changed"),
        ({"zero": ["blocks.1", 3]}, "zero has 3; expected names"),
        ({"zero": 3}, "zero has 3; expected names"),
        ({"scale": {3: 0.5}}, "scale has 3; expected names"),
        ({"scale": {"blocks.1": 10**400}}, "larger than any float64"),
        ({"replace": {"blocks.1": np.zeros((B, N, D), complex)}}, "dtype complex128; blocks.1.y has dtype float64"),
        ({"replace": {"blocks.1": np.full((B, N, D), "0")}}, "dtype <U1; blocks.1.y has dtype float64"),
        ({"scale": {"blocks.1": "half"}}, r"scale\['blocks.1'\] is 'half'; expected a number"),
        ({"scale": ["blocks.1"]}, "scale is a list; expected a mapping"),
        ({"replace": {"blocks.1": 0.5}}, r"replace\['blocks.1'\] is a float; expected an array"),
        ({"replace": {"blocks.1.attn": np.zeros((B, D))}}, r"has shape \(3, 12\); .*attn.y has shape \(3, 7, 12\)"),
    ],
)
def test_what_cannot_be_done_is_refused(options: Mapping[str, Any], message: str) -> None:
    vit = model("float64")
    before = vit.parameters.store.values.copy()
    with pytest.raises(UserError, match=message):
        traced(vit, **options)
    assert_same_bits([vit.parameters.store.values], [before])
    with pytest.raises(UserError, match=r"blocks.1.attn has no dy in a trace without labels"):
        trace(vit, IMAGES, zero="blocks.1.attn.dy")


def test_the_gradient_of_the_loss_can_be_changed() -> None:
    half, plain = traced(scale={"cross_entropy.dy": 0.5}), traced()
    assert_same_bits([half["blocks.0"].dy], [0.5 * plain["blocks.0"].dy])
    loss = traced(scale={"cross_entropy": 0.5})
    assert_same_bits(
        [loss["cross_entropy"].y, loss["blocks.0"].dy], [0.5 * plain["cross_entropy"].y, half["blocks.0"].dy]
    )
    light = model("float32")
    changed = trace(light, IMAGES.astype(np.float32), LABELS, scale={"cross_entropy.dy": 1.0})
    assert changed["blocks.0"].dy.dtype == np.float32


def test_numbers_of_numpy_are_factors() -> None:
    numbers = np.float32(2), 2
    one, other = (traced(scale={"blocks.1": number})["head"].y for number in numbers)
    assert_same_bits([one], [other])


@pytest.mark.parametrize("statistics", [False, True])
def test_an_intervention_that_overflows_is_shown_as_not_finite(statistics: bool) -> None:
    found = traced(scale={"blocks.0": 1e308}, statistics=statistics)
    assert not found["blocks.1"].statistics["y"].finite
    assert found.table("blocks.1").split()[-4:] == ["nan"] * 4
    effect = next(effect for effect in found.compare() if effect.name == "blocks.1")
    assert effect.y is not None
    assert np.isnan(effect.y)


def test_a_layer_whose_name_is_a_quantity_is_the_layer() -> None:
    """Attention pooling has a layer called q; the queries by head are reached by the name of the op."""
    vit = model("float64", global_pool="map", class_token=False)
    layer, op = (traced(vit, zero=f"attn_pool{name}.q") for name in ("", ".cross_attention"))
    assert not layer["attn_pool.q"].y.any()
    assert op["attn_pool.q"].y.any()
    assert not op["attn_pool"].q.any()


def test_a_layer_of_a_users_own_is_changed_too() -> None:
    class Double(Layer):
        def forward(self, x: Array, rng: Any = None, keep: bool = True) -> tuple[Array, Any]:
            return 2 * x, ()

        def backward(self, dy: Array, cache: Any) -> Array:
            return 2 * dy

    vit = model("float64")
    vit.blocks[1].mlp.act = Double()  # type: ignore[assignment]
    found = traced(vit, scale={"blocks.1.mlp.act.x": 3})
    act = found["blocks.1.mlp.act"]
    assert_same_bits([act.y, found["blocks.1.mlp.fc1"].dy], [2 * act.x, 3 * act.dx])
    assert_close([act.x], [3 * found["blocks.1.mlp.fc1"].y], 0)
