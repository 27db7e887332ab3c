"""A trace has every activation and every gradient of one pass, or statistics of them, and changes nothing."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bare_vit import shaken
from contract import assert_close, assert_same_bits, normal
from devices import nothing_crosses
from small_vit import batch, model

import minivit
from minivit import Key, Layer, Parameter, UserError, arrays, layers, ops
from minivit.arrays import Array, to_backend, to_host
from minivit.tracing import Record, Statistics, Trace, trace

N, H, K = 7, 3, 4  # tokens, heads and their width, of the small model


def reference_pass(vit: minivit.ViT, images: Array, labels: Array, key: Key | None) -> tuple[Array, Array, Array]:
    """Return the loss, the gradient of the images and the flat gradients of a pass without kernels."""
    with ops.reference_only():
        vit.zero_grad()
        logits, cache = vit.forward(images, key)
        loss, loss_cache = ops.cross_entropy(logits, labels)
        dimages = vit.backward(ops.cross_entropy_backward(1.0, loss_cache), cache)
    return loss, dimages, vit.parameters.store.gradients.copy()


@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
def test_the_bits_are_those_of_the_references(training: bool) -> None:
    images, labels, key = batch()
    rng = key if training else None
    vit = model()
    loss, dimages, _ = reference_pass(vit, images, labels, rng)
    found = trace(vit, images, labels, rng=rng)
    assert found.loss == loss
    assert_same_bits([found["model"].dx, found[""].x], [dimages, images])
    for name, parameter in vit.parameters.items():
        layer, _, own = name.rpartition(".")
        assert_same_bits([found[layer].parameters[own].grad], [parameter.grad])
        assert_same_bits([found[layer].parameters[own].value], [parameter.value])


@pytest.mark.parametrize("statistics", [False, True])
def test_a_trace_changes_nothing(statistics: bool) -> None:
    images, labels, key = batch()
    vit = model()
    logits, cache = vit.forward(images, key)
    vit.backward(normal(logits), cache)
    values, gradients = vit.parameters.store.values.copy(), vit.parameters.store.gradients.copy()
    generator = np.random.default_rng(4)
    trace(vit, images, labels, rng=generator, statistics=statistics)
    assert generator.integers(1000) == np.random.default_rng(4).integers(1000)
    assert_same_bits([vit.parameters.store.values, vit.parameters.store.gradients], [values, gradients])
    assert_same_bits([vit.forward(images, key)[0]], [logits])
    assert not any(layer.has_hooks for _, layer in vit.named_layers())


def test_a_trace_stays_as_it_is_while_the_model_is_trained() -> None:
    images, labels, _ = batch()
    vit = model()
    found = trace(vit, images, labels)
    before = found["head"].weight.copy(), found["head"].dweight.copy()
    vit.head.weight.value[...] = 0
    vit.zero_grad()
    assert_same_bits([found["head"].weight, found["head"].dweight], before)


def test_every_layer_and_op_has_a_record_in_the_order_of_the_forward_pass() -> None:
    images, labels, _ = batch()
    vit = model()
    found = trace(vit, images, labels)
    # attn_drop only draws the mask of the weights: its forward pass does not run.
    called = {name or "model" for name, layer in vit.named_layers() if not name.endswith("attn_drop")}
    assert called < set(found.names)
    block = found["blocks.1.**"].names
    assert block == [f"blocks.1{name}" for name in (
        "", ".norm1", ".norm1.layer_norm", ".attn", ".attn.qkv", ".attn.qkv.linear", ".attn.attention", ".attn.softmax",
        ".attn.proj", ".attn.proj.linear", ".attn.proj_drop", ".ls1", ".drop_path1", ".norm2", ".norm2.layer_norm",
        ".mlp", ".mlp.fc1", ".mlp.fc1.linear", ".mlp.act", ".mlp.act.gelu", ".mlp.drop1", ".mlp.fc2", ".mlp.fc2.linear",
        ".mlp.drop2", ".ls2", ".drop_path2",
    )]  # fmt: skip
    assert found.names[0] == "model"
    assert found.names[-1] == "cross_entropy"
    assert found["blocks.2"].y.shape == (len(images), N, 12), "all tokens of the last block"
    assert not found["blocks.2"].dy[:, 1:].any(), "the head reads the class token"
    assert found["blocks.2"].dx[:, 1:].all()
    assert [record.name for record in found] == found.names
    assert len(found) == len(found.names)


def test_each_layer_gets_what_the_one_before_it_returned() -> None:
    """The sums at the residual connections are the only other operations in a block."""
    images, labels, _ = batch(dtype="float64")
    found = trace(model("float64"), images, labels)
    block, norm1, norm2 = (found[f"blocks.0{name}"] for name in ("", ".norm1", ".norm2"))
    attn, mlp = found["blocks.0.attn"], found["blocks.0.mlp"]
    assert_same_bits([norm1.y, norm2.y, norm1.x], [attn.x, mlp.x, block.x])
    assert_same_bits([block.y], [block.x + attn.y + mlp.y])
    assert_same_bits([attn.dx, mlp.dx, mlp.dy], [norm1.dy, norm2.dy, block.dy])
    assert_close([attn.dy, block.dx], [block.dy + norm2.dx, block.dy + norm2.dx + norm1.dx], 1e-15)


@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
def test_attention_has_its_inner_quantities_by_head(training: bool) -> None:
    """The formulas of ops/attention.py hold between them."""
    images, labels, key = batch(dtype="float64")
    found = trace(model("float64"), images, labels, rng=key if training else None)
    a, op = found["blocks.1.attn"], found["blocks.1.attn.attention"]
    B = len(images)
    assert a.q.shape == a.k.shape == a.v.shape == a.dq.shape == (B, H, N, K)
    assert a.scores.shape == a.weights.shape == a.dscores.shape == a.dweights.shape == (B, H, N, N)
    mask = op.arguments.get("mask", np.ones(1))
    assert ("mask" in op.arguments) == training
    dy = op.dy.reshape(B, N, H, K).swapaxes(1, 2)
    exponentials = np.exp(a.scores)
    expected = {
        "scores": a.q @ a.k.swapaxes(-1, -2) * K**-0.5,
        "weights": exponentials / exponentials.sum(-1, keepdims=True),
        "dweights": dy @ a.v.swapaxes(-1, -2) * mask,
        "dv": (a.weights * mask).swapaxes(-1, -2) @ dy,
        "dscores": a.weights * (a.dweights - (a.dweights * a.weights).sum(-1, keepdims=True)),
        "dq": a.dscores @ a.k * K**-0.5,
        "dk": a.dscores.swapaxes(-1, -2) @ a.q * K**-0.5,
    }
    for name, array in expected.items():
        assert_close([getattr(a, name)], [array], 1e-12)
        assert_same_bits([getattr(op, name)], [getattr(a, name)])
    y = ((a.weights * mask) @ a.v).swapaxes(1, 2).reshape(B, N, H * K)
    assert_close([op.y], [y], 1e-12)
    assert_same_bits([op.x, op.dx], [op.arguments["qkv"], op.gradients["qkv"]])


FORMS: dict[str, dict[str, Any]] = {
    "relative": {"pos_embed": "relative"},
    "qk_norm": {"qk_norm": True},
    "pooling": {"global_pool": "map", "class_token": False},
}


@pytest.mark.parametrize("form", FORMS)
def test_other_forms_of_attention_have_them_too(form: str) -> None:
    images, labels, _ = batch(dtype="float64")
    found = trace(model("float64", **FORMS[form]), images, labels)
    a = found["attn_pool" if form == "pooling" else "blocks.1.attn"]
    M = 1 if form == "pooling" else a.k.shape[2]
    assert a.scores.shape == a.dweights.shape == (len(images), H, M, a.k.shape[2])
    assert a.q.shape == a.dq.shape
    assert a.v.shape == a.dv.shape
    scores = a.q @ a.k.swapaxes(-1, -2) * K**-0.5
    assert np.allclose(a.scores, scores) == (form != "relative")
    if form == "qk_norm":
        normed = found["blocks.1.attn.q_norm"].y.swapaxes(1, 2)
        assert_same_bits([a.q], [normed])
    if form == "relative":
        assert a.parameters["rel_pos"].grad is not None


def test_norms_and_activations_have_their_inner_quantities() -> None:
    images, labels, _ = batch(dtype="float64")
    found = trace(model("float64"), images, labels)
    norm, act = found["blocks.1.norm2"], found["blocks.1.mlp.act"]
    assert_close([norm.x_hat * norm.weight + norm.bias], [norm.y], 1e-14)
    assert_close([norm.x_hat], [(norm.x - norm.x.mean(-1, keepdims=True)) * norm.inv_std], 1e-14)
    assert_close([act.dx], [act.dy * act.slope], 0)
    assert norm.inv_std.shape == (len(images), N, 1)


@pytest.mark.parametrize("name", ["quick_gelu", "relu", "tanh", "gelu_tanh"])
def test_the_slope_of_an_activation_is_dx_over_dy(name: str) -> None:
    from minivit.nn.activations import activation

    x = np.random.default_rng(0).standard_normal((2, 5))
    found = trace(activation(name).initialize(0, "float64"), x, normal(x, 3))
    assert_close([found["model"].dx], [found["model"].dy * found["model"].slope], 1e-15)


def test_ops_have_arguments_and_gradients_by_name() -> None:
    images, labels, _ = batch()
    found = trace(model(), images, labels)
    op, layer = found["blocks.0.mlp.fc1.linear"], found["blocks.0.mlp.fc1"]
    assert op.is_op
    assert not layer.is_op
    assert (op.kind, layer.kind) == ("linear", "Linear")
    assert list(op.arguments) == list(op.gradients) == ["x", "weight", "bias"]
    assert_same_bits([op.dweight, op.x], [layer.parameters["weight"].grad, layer.x])
    assert found["cross_entropy"].dy == 1
    assert found["cross_entropy"].y == found.loss
    assert_same_bits([found["embed"].gradients["pos_embed"]], [found["model"].dpos_embed])


def test_without_labels_there_are_no_gradients() -> None:
    images, _, _ = batch()
    vit = model()
    found = trace(vit, images)
    assert found.loss is None
    assert found["blocks.0.attn"].dy is found["blocks.0.attn"].dweights is found["blocks.0.attn.qkv"].dweight is None
    assert found["blocks.0.attn.qkv"].parameters["weight"].grad is None
    with ops.reference_only():
        assert_same_bits([found["model"].y], [vit(images)])
    assert "|dy|" in repr(found)


def test_any_layer_and_any_loss_can_be_traced() -> None:
    x = np.random.default_rng(0).standard_normal((2, 5, 6))
    mlp = layers.MLP(6, 10).initialize(0, "float64")
    found = trace(mlp, x, lambda y: 2 * y)
    assert_same_bits([found["model"].dy, found["fc2"].dy], [2 * found["model"].y] * 2)
    assert_same_bits([found["fc1"].dx], [trace(mlp, x, 2 * found["model"].y)["model"].dx])
    images, _, _ = batch()
    vit = model()
    assert trace(vit, images, lambda logits: 0 * logits)["blocks.0"].dy.any() == np.False_


class Doubled(Layer):
    """Calls one layer twice and changes its results in place."""

    def __init__(self) -> None:
        self.fc = layers.Linear(6, 6)

    def forward(self, x: Array, rng: Key | None = None, keep: bool = True) -> tuple[Array, Any]:
        h, cache1 = self.fc.forward(x, rng, keep)
        h *= 3
        y, cache2 = self.fc.forward(h, rng, keep)
        y += 1
        return y, (cache1, cache2)

    def backward(self, dy: Array, cache: Any) -> Array:
        dh = self.fc.backward(dy, cache[1])
        dh *= 3
        return self.fc.backward(dh, cache[0])


def test_a_layer_that_is_called_twice_has_two_records_with_what_it_returned() -> None:
    x = np.random.default_rng(0).standard_normal((2, 6))
    layer = shaken(Doubled().initialize(0, "float64"))
    dy = normal(x, 5)
    found = trace(layer, x, dy)
    weight, bias = layer.fc.weight.value, layer.fc.bias.value
    first, second = found["fc"], found["fc_2"]
    assert_close([first.y, second.x], [x @ weight + bias, 3 * (x @ weight + bias)], 1e-14)
    assert_close([second.y, found["model"].y - 1], [second.x @ weight + bias] * 2, 1e-14)
    dh = dy @ weight.T
    assert_close([second.dx, first.dy, first.dx], [dh, 3 * dh, 3 * dh @ weight.T], 1e-14)
    assert found["fc.linear"].name != found["fc_2.linear"].name
    assert_close([first.dweight], [first.x.T @ first.dy + second.x.T @ second.dy], 1e-14)


def test_patterns_choose_records() -> None:
    images, labels, _ = batch()
    found = trace(model(), images, labels, at=["blocks.*.attn", "head"])
    assert found.names == ["blocks.0.attn", "blocks.1.attn", "blocks.2.attn", "head"]
    assert [w.shape for w in found["blocks.*.attn"].weights] == [(len(images), H, N, N)] * 3
    assert found["blocks.[12].*"].names == ["blocks.1.attn", "blocks.2.attn"]
    assert "head" in found
    assert "norm" not in found


@pytest.mark.parametrize("at", ["blocks.1.atn", "bloks.*.attn"])
def test_a_name_with_a_typo_is_refused_and_the_nearest_suggested(at: str) -> None:
    images, labels, _ = batch(2)
    vit = model()
    with pytest.raises(UserError, match=r"matches no layer or op of this trace; did you mean 'blocks\..\.attn'\?"):
        trace(vit, images, labels, at=at)
    with pytest.raises(UserError, match="did you mean"):
        trace(vit, images, labels)[at]


@pytest.mark.parametrize(
    ("at", "message"),
    [
        ("bloks.*.attn", r"did you mean 'blocks\.\*\.attn'"),
        ("**.sofmax", r"did you mean '\*\*\.softmax'"),
        ("blocks.1.attn.dy", r"is a quantity and no layer or op: give 'blocks.1.attn'"),
        ("blocks.*.attn.weights", r"is a quantity and no layer or op: give 'blocks.\*.attn'"),
    ],
)
def test_a_pattern_with_a_typo_is_answered_with_a_pattern_and_a_quantity_with_its_layer(at: str, message: str) -> None:
    images, labels, _ = batch(2)
    vit = model()
    found = trace(vit, images, labels)
    for ask in (lambda: trace(vit, images, labels, at=at), lambda: found[at], lambda: found.table(at)):
        with pytest.raises(UserError, match=message):
            ask()


def test_what_is_no_name_is_refused() -> None:
    images, labels, _ = batch(2)
    vit = model()
    found = trace(vit, images, labels)
    for wrong in (0, None, ("head",), slice(2)):
        with pytest.raises(UserError, match="has no meaning; expected the name of a layer or op"):
            found[wrong]  # type: ignore[index]
    for ask in (lambda: trace(vit, images, labels, at=3), lambda: found.table([3])):  # type: ignore[arg-type, list-item]
        with pytest.raises(UserError, match="at has 3; expected names"):
            ask()


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([[1], [2, 3]], "labels are lists of different lengths"),
        ([None, 1], r"labels are objects, such as \[None\]"),
        (lambda y: None, "the result of labels(y) is of type NoneType; expected the gradient of the result, float32"),
        (lambda y: y[:1], r"is float32 \(1, 7\); expected the gradient of the result, float32 \(2, 7\)"),
        (lambda y: y.astype(np.float64), "is float64 .* expected the gradient of the result, float32"),
    ],
)
def test_labels_that_are_none_are_refused(labels: Any, message: str) -> None:
    images, _, _ = batch(2)
    with pytest.raises(UserError, match=message.replace("labels(y)", r"labels\(y\)")):
        trace(model(), images, labels)


def test_the_gradient_of_another_layers_result_is_not_broadcast() -> None:
    norm = layers.LayerNorm(4).initialize(0)
    x = np.ones((3, 4), np.float32)
    with pytest.raises(UserError, match=r"labels is float32 \(3, 1\); expected the gradient of the result"):
        trace(norm, x, x[:, :1])


def test_a_layer_that_returns_no_cache_is_named() -> None:
    class NoCache(Layer):
        def forward(self, x: Array, rng: Any = None, keep: bool = True) -> Any:
            return x

    with pytest.raises(TypeError, match=r"forward of model \(NoCache\) returned a ndarray; expected \(y, cache\)"):
        trace(NoCache(), np.ones((2, 3)))


def test_a_complex_model_prints_its_trace() -> None:
    images, labels, _ = batch(2)
    vit = model("float64")
    found = trace(vit.replica(vit.parameters.store.values.astype(complex)), images.astype(complex), labels)
    assert "loss" in repr(found)


def test_what_is_not_finite_is_shown_and_no_warning() -> None:
    images, labels, _ = batch(2)
    found = trace(model(), np.full_like(images, np.inf), labels)
    assert found.table("head").split()[-4:] == ["nan"] * 4
    assert "<td>nan</td>" in found._repr_html_()


def test_a_quantity_that_is_not_there_is_refused_with_those_that_are() -> None:
    images, labels, _ = batch(2)
    vit = model()
    record = trace(vit, images, labels)["head"]
    with pytest.raises(AttributeError, match=r"head \(Linear\) has no 'scores'; it has x, y, dy, dx, weight, dweight"):
        _ = record.scores
    with pytest.raises(AttributeError, match=r"only statistics: use record.statistics\['y'\]"):
        _ = trace(vit, images, labels, statistics=True)["head"].y
    with pytest.raises(UserError, match=r"only statistics: use record.statistics\['weight'\]"):
        _ = trace(vit, images, labels, statistics=True)["head"].parameters


def test_a_trace_prints_a_table_by_depth() -> None:
    images, labels, _ = batch()
    found = trace(model(), images, labels)
    head, columns, *lines = repr(found).splitlines()
    loss = float(np.asarray(found.loss))
    assert head.startswith(f"trace: {len(found)} layers and ops, loss {loss:.4g}, probability of the true")
    assert columns.split() == ["layer", "kind", "|y|", "std", "y", "|dy|", "|dparameters|", "saturated"]
    assert [line.split()[0] for line in lines] == ["patch_embed", "blocks.0", "blocks.1", "blocks.2", "norm", "head"]
    row = found.rows("blocks.0.attn")[0]
    names = [name for name in found.names if name.startswith("blocks.0.attn")]
    squares = [np.square(v.grad).sum() for name in names for v in found[name].parameters.values() if v.grad is not None]
    assert row.gradient == pytest.approx(np.sqrt(np.sum(squares)), rel=1e-6)
    assert "blocks.1.attn.softmax" in found.table("blocks.1.**")
    assert [row.name for row in trace(model(), images).rows()] == [line.split()[0] for line in lines]
    with pytest.raises(UserError, match="did you mean 'head'"):
        found.table("haed")


def test_a_trace_is_shown_in_a_notebook_and_as_a_page(tmp_path: Path) -> None:
    images, labels, _ = batch()
    found = trace(model(), images, labels)
    assert found._repr_html_().count("<tr>") == 1 + len(found.rows())
    found.to_html(tmp_path / "trace.html", title="A < B")
    page = (tmp_path / "trace.html").read_text(encoding="utf-8")
    assert page.count("<details>") == len(found)
    assert "A &lt; B" in page
    assert "aria-label='histogram from" in page
    assert page.count("<table>") == page.count("<div class='wide'><table>")  # which scrolls on a narrow screen
    assert "color-scheme: light dark" in page


def test_hooks_of_the_user_are_called_and_their_results_recorded() -> None:
    images, labels, _ = batch()
    vit = model()
    calls: list[Layer] = []

    def hook(layer: Layer, x: Array, y: Array) -> Array:
        calls.append(layer)
        return 2 * y

    with vit.blocks[1].mlp.register_forward_hook(hook):
        found = trace(vit, images, labels)
    assert calls == [vit.blocks[1].mlp]
    assert_same_bits([found["blocks.1.mlp"].y], [2 * found["blocks.1.mlp.drop2"].y])


def test_traces_of_several_threads_do_not_mix_and_leave_kernels_to_others() -> None:
    images, labels, key = batch()
    vits = [model(), shaken(model(), 0.1)]
    expected = [trace(vit, images, labels) for vit in vits]
    logits = vits[0].forward(images, key)[0]
    found: dict[int, Trace] = {}
    others: list[Array] = []

    def run(i: int) -> None:
        found[i] = trace(vits[i], images, labels)

    def meanwhile() -> None:
        others.append(vits[0].forward(images, key)[0])

    threads = [threading.Thread(target=run, args=(0,)), threading.Thread(target=run, args=(1,))]
    threads.append(threading.Thread(target=meanwhile))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert_same_bits(others, [logits])
    for i in range(2):
        assert found[i].names == expected[i].names
        for record in expected[i]:
            for name, array in record.quantities.items():
                np.testing.assert_array_equal(found[i][record.name].quantities[name], array)


def test_a_trace_on_a_device_copies_nothing_to_the_host() -> None:
    testing_model = model()
    images, labels, _ = batch()
    expected = trace(testing_model, images, labels)
    vit: Any = testing_model.to("strict")
    x, targets = (to_backend(array, arrays.backend("strict")) for array in (images, labels))
    trace(vit, x, targets)  # the first call may copy constants to the device
    with nothing_crosses("strict"):
        found = trace(
            vit, x, targets, scale={"blocks.1.attn.weights": 0.5}, zero=["blocks.0.mlp", "blocks.0.attn.heads.1"]
        )
    assert found.baseline is not None
    for record in expected:
        for name, array in record.quantities.items():
            assert_close([to_host(found.baseline[record.name].quantities[name])], [np.asarray(array)], 2e-5)
    light = trace(vit, x, targets, statistics=True)["blocks.1.attn"].statistics["dq"]
    assert light.norm == pytest.approx(expected["blocks.1.attn"].statistics["dq"].norm)


def test_a_layer_may_take_and_return_what_is_no_array() -> None:
    class Pair(Layer):
        def forward(self, x: Any, rng: Key | None = None, keep: bool = True) -> tuple[Any, Any]:
            return (x, 2 * x), ()

        def backward(self, dy: Any, cache: Any) -> Array:
            return dy[0] + 2 * dy[1]

    found = trace(Pair(), np.ones(3), lambda y: y)
    assert_same_bits([found["model"].dx], [np.full(3, 5.0)])
    assert found["model"].y is None
    assert found.rows() == []
    assert "Pair" not in str(found)


def test_passes_with_arguments_by_name_are_recorded() -> None:
    class Named(Layer):
        def __init__(self) -> None:
            self.fc = layers.Linear(3, 2)

        def forward(self, x: Array, rng: Key | None = None, keep: bool = True) -> tuple[Array, Any]:
            return self.fc.forward(rng=rng, keep=keep, x=x)

        def backward(self, dy: Array, cache: Any) -> Array:
            return self.fc.backward(cache=cache, dy=dy)

    found = trace(Named().initialize(0, "float64"), np.ones((1, 3)), lambda y: y, scale={"fc": 2})
    assert_same_bits([found["model"].y, found["fc"].dy], [2 * found["fc.linear"].y, found["model"].y])


def test_a_record_prints_its_quantities() -> None:
    images, labels, _ = batch()
    record: Record = trace(model(), images, labels)["blocks.0.attn"]
    lines = repr(record).splitlines()
    assert lines[0] == "blocks.0.attn: Attention"
    assert lines[1].startswith("  x: float32 (13, 7, 12) norm ")
    assert "weights" in dir(record)


class Named(Layer):
    """A layer with a parameter that is called like its result."""

    def __init__(self) -> None:
        self.y = Parameter((5,), lambda generator, shape: generator.normal(size=shape))

    def forward(self, x: Array, rng: Any = None, keep: bool = True) -> tuple[Array, Any]:
        return x * self.y.value, x

    def backward(self, dy: Array, cache: Any) -> Array:
        self.y.add_grad((dy * cache).sum(axis=0))
        return dy * self.y.value


def test_a_parameter_that_is_called_like_a_quantity_does_not_take_its_place() -> None:
    layer = Named().initialize(dtype="float64")
    x = np.ones((2, 5))
    record = trace(layer, x, np.full((2, 5), 3.0))["model"]
    assert_same_bits([record.y, record.dy], [layer(x), np.full((2, 5), 3.0)])
    assert_same_bits([record.parameters["y_parameter"].value], [layer.y.value])


class OwnQueries(Layer):
    """Attention with a parameter that is called like its queries."""

    def __init__(self) -> None:
        self.q = Parameter((4, 12), lambda generator, shape: generator.normal(size=shape))

    def forward(self, x: Array, rng: Any = None, keep: bool = True) -> tuple[Array, Any]:
        y, cache = ops.attention(x @ self.q.value, 2, keep=keep)
        return y, (x, cache)

    def backward(self, dy: Array, cache: Any) -> Array:
        x, inner = cache
        dqkv = ops.attention_backward(dy, inner)
        self.q.add_grad(np.einsum("bnd,bnf->df", x, dqkv))
        return dqkv @ self.q.value.T


@pytest.mark.parametrize("statistics", [False, True])
def test_a_parameter_that_is_called_like_an_activation_has_its_own_value_and_gradient(statistics: bool) -> None:
    layer = OwnQueries().initialize(dtype="float64")
    x = np.random.default_rng(0).normal(size=(2, 5, 4))
    with ops.reference_only():
        y, cache = layer.forward(x)
        layer.backward(normal(y), cache)
    found = trace(layer, x, normal(y), statistics=statistics)
    record = found["model"]
    assert record.shapes["q"] == record.shapes["dq"] == (2, 2, 5, 2)
    assert record.statistics["q_parameter"] == Statistics.of(layer.q.value)
    assert found.rows()[0].gradient == pytest.approx(np.linalg.norm(layer.q.grad))
    if not statistics:
        (parameter,) = record.parameters.values()
        assert_same_bits([parameter.value, parameter.grad], [layer.q.value, layer.q.grad])
