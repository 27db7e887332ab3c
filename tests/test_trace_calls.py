"""Layers that are called several times, names that several could have, and what a trace refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bare_vit import shaken
from contract import assert_close, assert_same_bits, normal
from small_vit import batch, model

from minivit import Key, Layer, Parameter, UserError, initializers, layers, ops
from minivit.arrays import Array
from minivit.tracing import Statistics, gradient_flow, load_trace, trace


class Chosen(Layer):
    """Calls layers that are attributes of this one, in a given order; the backward pass goes in the same order."""

    def __init__(self, order: str, **given: Layer) -> None:
        self.order = order
        for name, layer in given.items():
            setattr(self, name, layer)

    def forward(self, x: Array, rng: Key | None = None, keep: bool = True) -> tuple[Array, Any]:
        results = [getattr(self, name).forward(x, rng, keep) for name in self.order.split()]
        return np.sum([y for y, _ in results], axis=0), [cache for _, cache in results]

    def backward(self, dy: Array, cache: Any) -> Array:
        calls = enumerate(zip(self.order.split(), cache, strict=True), start=1)
        return np.sum([getattr(self, name).backward(i * dy, each) for i, (name, each) in calls], axis=0)


def linears(order: str, *names: str) -> Chosen:
    return shaken(Chosen(order, **{name: layers.Linear(6, 6) for name in names}).initialize(0, "float64"))


X = np.random.default_rng(0).standard_normal((2, 6))


@pytest.mark.parametrize("order", ["fc fc fc_2", "fc_2 fc fc", "fc fc_2 fc"])
def test_the_name_of_a_second_call_is_not_that_of_another_layer(order: str) -> None:
    layer = linears(order, "fc", "fc_2")
    found = trace(layer, X, normal(X, 5))
    assert {name for name in found.names if name.startswith("fc")} == {
        "fc", "fc_2", "fc_3", "fc.linear", "fc_2.linear", "fc_3.linear"
    }  # fmt: skip
    weights = {name: getattr(layer, name).weight.value for name in ("fc", "fc_2")}
    for name, of in {"fc": "fc", "fc_2": "fc_2", "fc_3": "fc"}.items():
        assert_close([found[name].y], [X @ weights[of] + getattr(layer, of).bias.value], 1e-14)
    assert_close([found["fc_2"].dweight], [found["fc_2"].x.T @ found["fc_2"].dy], 1e-14)
    assert trace(layer, X, at="fc").names == ["fc", "fc_3"]
    assert trace(layer, X, at="fc.linear").names == ["fc.linear", "fc_3.linear"]
    assert trace(layer, X, at="fc_2").names == ["fc_2"]


def test_an_op_has_not_the_name_of_a_layer() -> None:
    class Both(Layer):
        def __init__(self) -> None:
            self.linear = layers.Linear(6, 6)

        def forward(self, x: Array, rng: Key | None = None, keep: bool = True) -> tuple[Array, Any]:
            y, _ = ops.linear(x, self.linear.weight.value, None)
            return self.linear.forward(2 * y, rng, keep)

    found = trace(Both().initialize(0, "float64"), X)
    assert [found[name].is_op for name in ("linear", "linear_2", "linear.linear")] == [False, True, True]
    assert_same_bits([found["linear"].x], [2 * found["linear_2"].y])


def test_a_layer_called_model_and_the_model_around_it_have_two_records(tmp_path: Path) -> None:
    class Wrapper(Layer):
        def __init__(self, model: Layer) -> None:
            self.model = model
            self.scale = Parameter((1,), initializers.zeros)

        def forward(self, x: Array, rng: Key | None = None, keep: bool = True) -> tuple[Array, Any]:
            y, cache = self.model.forward(x, rng, keep)
            return 2 * y, cache

        def backward(self, dy: Array, cache: Any) -> Array:
            return self.model.backward(2 * dy, cache)

    images, _, _ = batch(2, "float64")
    wrapper = Wrapper(model("float64")).initialize(0, "float64")
    found = trace(wrapper, images, np.ones((2, 7)))
    found.save(tmp_path / "trace.safetensors")
    for each in (found, load_trace(tmp_path / "trace.safetensors")):
        assert (each.root, each[""].name, each[""].kind, each["model"].kind) == ("root", "root", "Wrapper", "ViT")
        assert_same_bits([each[""].y, each["model"].dy], [2 * each["model"].y, 2 * each[""].dy])
        assert list(each[""].parameters) == ["scale"]
        assert "pos_embed" in each["model"].parameters
        assert [row.name for row in each.rows()] == ["model"]
        assert each.rows("root")[0].gradient == each.rows("model")[0].gradient
    zero = trace(wrapper, images, zero="model")
    assert not zero["model"].y.any()
    assert zero[""].x.any()
    assert trace(wrapper, images, at="").names == ["root"]


def test_what_was_changed_in_place_between_two_layers_is_recorded() -> None:
    """Changes that leave the sum, or the exclusive or of all words, as it was."""

    class Between(Layer):
        def __init__(self, change: Any) -> None:
            self.one, self.two, self.change = layers.Linear(6, 6), layers.Linear(6, 6), change

        def forward(self, x: Array, rng: Key | None = None, keep: bool = True) -> tuple[Array, Any]:
            h, _ = self.one.forward(x, rng, keep)
            self.change(h)
            return self.two.forward(h, rng, keep)

    def negate(h: Array) -> None:
        h[50:52, 1] *= -1

    def exchange(h: Array) -> None:
        h[50:52] = h[51:49:-1].copy()

    x = np.random.default_rng(0).standard_normal((200, 6))
    for change in (negate, exchange):
        layer: Any = Between(None).initialize(0, "float64")
        layer.change = change
        found = trace(layer, x)
        expected = found["one"].y.copy()
        change(expected)
        assert_same_bits([found["two"].x], [expected])
        light = trace(layer, x, statistics=True)
        seen = light["two"].statistics["x"].to_dict()
        assert seen == Statistics.of(expected, "x").to_dict()


class NoCache(Layer):
    """Needs nothing for its backward pass."""

    def forward(self, x: Array, rng: Key | None = None, keep: bool = True) -> tuple[Array, Any]:
        return 2 * x, None

    def backward(self, dy: Array, cache: Any) -> Array:
        return 2 * dy


def test_gradients_of_calls_that_cannot_be_told_apart_are_left_out() -> None:
    layer: Any = Chosen("fc fc", fc=NoCache()).initialize(0, "float64")
    dy = normal(X, 5)
    found = trace(layer, X, dy)
    assert [found[name].dy is None and found[name].dx is None for name in ("fc", "fc_2")] == [True, True]
    assert_close([found[""].dx], [6 * dy], 1e-14)
    with pytest.raises(UserError, match="fc, fc_2 are calls of one layer, whose forward pass returns no cache"):
        trace(layer, X, dy, scale={"fc_2": 3})
    assert_close([trace(layer, X, dy, scale={"fc": 3})[""].dx], [18 * dy], 1e-14)


def test_calls_without_a_cache_are_told_apart_by_their_callers() -> None:
    inner: Any = Chosen("act", act=NoCache())
    layer: Any = Chosen("one two", one=inner, two=Chosen("act", act=inner.act)).initialize(0, "float64")
    dy = normal(X, 5)
    found = trace(layer, X, dy)
    assert_same_bits([found["one.act"].dy, found["one.act_2"].dy], [dy, 2 * dy])


def test_an_intervention_on_a_layer_that_is_called_twice_changes_both_calls() -> None:
    layer, dy = linears("fc fc", "fc"), normal(X, 5)
    found = trace(layer, X, dy, zero="fc")
    assert not found["fc"].y.any()
    assert not found["fc_2"].y.any()
    assert_same_bits([found[""].dx], [np.zeros_like(X)])
    found = trace(layer, X, dy, zero="fc_2")
    assert found["fc"].y.any()
    assert not found["fc_2"].y.any()
    found = trace(layer, X, dy, scale={"fc.linear.dy": 0.0})
    assert not found["fc.linear"].dx.any()
    assert not found["fc_2.linear"].dx.any()


def test_labels_need_a_head_and_are_copied() -> None:
    images, labels, _ = batch(2)
    with pytest.raises(UserError, match="the model has no head"):
        trace(model(num_classes=0), images, labels)
    assert trace(model(num_classes=0), images, lambda y: y).loss is None
    found = trace(model(), images, labels)
    before = labels.copy()
    labels[...] = 0
    assert found.labels is not None
    assert_same_bits([found.labels], [before])


@pytest.mark.parametrize("statistics", [False, True])
def test_a_trace_of_complex_numbers_is_not_saved(statistics: bool, tmp_path: Path) -> None:
    images, labels, _ = batch(2)
    vit, images = model("complex128"), images.astype("complex128")
    with pytest.raises(UserError, match=r"is complex128, .* save a trace of model.astype\('float64'\)"):
        trace(vit, images, labels, statistics=statistics).save(tmp_path / "trace.safetensors")


@pytest.mark.parametrize("statistics", [False, True])
def test_the_norm_of_all_gradients_in_a_layer_does_not_depend_on_what_is_recorded(
    statistics: bool, tmp_path: Path
) -> None:
    images, labels, _ = batch(2, "float64")
    vit = model("float64")
    whole = {row.name: row.gradient for row in trace(vit, images, labels).rows("**")}
    vit.zero_grad()
    logits, cache = vit.forward(images)
    vit.backward(ops.cross_entropy_backward(1.0, ops.cross_entropy(logits, labels)[1]), cache)
    for name in ("model", "blocks.0", "blocks.0.attn"):
        of = [p.grad for key, p in vit.parameters.items() if name == "model" or key.startswith(f"{name}.")]
        assert whole[name] == pytest.approx(np.sqrt(sum(float((grad**2).sum()) for grad in of)))
    found = trace(vit, images, labels, ["model", "blocks.*", "blocks.0.attn"], statistics=statistics)
    found.save(tmp_path / "trace.safetensors")
    for each in (found, load_trace(tmp_path / "trace.safetensors")):
        for row in each.rows("**"):
            assert row.gradient == pytest.approx(whole[row.name])
        assert gradient_flow(each).parameters.tolist() == [row.gradient for row in each.rows("blocks.*")]
    assert [row.gradient for row in trace(vit, images, at="blocks.*").rows()] == [None] * 3


def test_a_gradient_that_is_not_finite_is_nan_in_a_saved_trace_too(tmp_path: Path) -> None:
    layer = linears("fc", "fc")
    found = trace(layer, X, np.full((2, 6), np.inf))
    found.save(tmp_path / "trace.safetensors")
    for each in (found, load_trace(tmp_path / "trace.safetensors")):
        assert np.isnan(each.rows("fc")[0].gradient)  # type: ignore[arg-type] # not None


def test_every_call_of_a_block_in_several_places_has_a_row(tmp_path: Path) -> None:
    images, labels, _ = batch(2, "float64")
    vit = model("float64")
    vit.blocks = [vit.blocks[0]] * 3
    names = ["patch_embed", "blocks.0", "blocks.0_2", "blocks.0_3", "norm", "head"]
    found = trace(vit, images, labels)
    found.save(tmp_path / "trace.safetensors")
    for each in (found, load_trace(tmp_path / "trace.safetensors")):
        rows = each.rows()
        assert [row.name for row in rows] == gradient_flow(each).names == names
        assert [row.gradient is None for row in rows] == [False, False, True, True, False, False]
    assert [row.name for row in trace(vit, images).rows()] == names
