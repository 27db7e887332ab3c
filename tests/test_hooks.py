"""Hooks read and replace the result of a layer and the gradient of its input; an observer sees every call of an op."""

from __future__ import annotations

import copy
import gc
import pickle
import threading
from typing import Any

import numpy as np
import pytest
from contract import assert_close, assert_same_bits, normal
from small_vit import batch, model

from minivit import Key, Layer, Parameter, ViT, gradcheck_layer, layers, ops
from minivit.arrays import Array
from minivit.nn import hooks
from minivit.ops import OpCall, registry


class Calls(list[tuple[str, Layer, Array, Array]]):
    """Records the arguments of hooks."""

    def forward(self, layer: Layer, x: Array, y: Array) -> None:
        self.append(("forward", layer, x, y))

    def backward(self, layer: Layer, dx: Array, dy: Array) -> None:
        self.append(("backward", layer, dx, dy))


def mlp() -> layers.MLP:
    return layers.MLP(6, 10).initialize(0, "float64")


X = normal(np.zeros((2, 5, 6)))


def test_hooks_receive_inputs_results_and_gradients() -> None:
    layer, calls = mlp(), Calls()
    layer.fc2.register_forward_hook(calls.forward)
    layer.fc2.register_backward_hook(calls.backward)
    y, cache = layer.forward(X)
    dx = layer.backward(normal(y), cache)
    hidden, _ = ops.gelu(layer.fc1(X), keep=False)
    forward, backward = calls
    assert forward[:2] == ("forward", layer.fc2)
    assert backward[:2] == ("backward", layer.fc2)
    assert_same_bits(forward[2:], [hidden, y])
    assert_same_bits(backward[3:], [normal(y)])
    with ops.reference_only():
        plain = mlp()
        assert_same_bits([plain.backward(normal(y), plain.forward(X)[1])], [dx])
        assert_same_bits([backward[2]], [normal(y) @ plain.fc2.weight.value.T])


def test_hooks_replace_results_and_gradients() -> None:
    """The hooks of one layer are called in the order of their registration, each with what the one before returned."""
    layer = mlp()
    layer.fc1.register_forward_hook(lambda layer, x, y: y + 1)
    layer.fc1.register_forward_hook(lambda layer, x, y: 2 * y)
    layer.fc1.register_backward_hook(lambda layer, dx, dy: dx + 1)
    layer.fc1.register_backward_hook(lambda layer, dx, dy: 3 * dx)
    plain = mlp()
    with ops.reference_only():
        h, cache = plain.act.forward(2 * (plain.fc1(X) + 1))
        expected = plain.fc2(h)
        dh = plain.act.backward(plain.fc2.backward(normal(expected), plain.fc2.forward(h)[1]), cache)
        dx = 3 * (dh @ plain.fc1.weight.value.T + 1)
    y, cache = layer.forward(X)
    assert_close([y, layer.backward(normal(y), cache)], [expected, dx], 1e-14)


def test_a_removed_hook_is_not_called() -> None:
    layer, calls = mlp(), Calls()
    handle = layer.register_forward_hook(calls.forward)
    other = layer.register_forward_hook(calls.forward)
    layer(X)
    assert len(calls) == 2
    handle.remove()
    handle.remove()
    layer(X)
    assert len(calls) == 3
    with layer.act.register_backward_hook(calls.backward) as inner:
        assert isinstance(inner, hooks.HookHandle)
    other.remove()
    y, cache = layer.forward(X)
    layer.backward(y, cache)
    assert len(calls) == 3


def test_hooks_are_freed_with_their_layers() -> None:
    """Hooks of a layer that no longer exists cost other layers nothing."""
    gc.collect()
    before = hooks._count
    layer = mlp()
    layer.fc1.register_forward_hook(lambda layer, x, y: None)
    assert hooks._count == before + 1
    del layer
    gc.collect()
    assert hooks._count == before


def test_the_hook_of_a_subclass_is_called_once() -> None:
    class Shifted(layers.Linear):
        def forward(self, x: Array, rng: Key | None = None, keep: bool = True) -> tuple[Array, Any]:
            y, cache = super().forward(x, rng, keep)
            return y + 1, cache

        def backward(self, dy: Array, cache: Any) -> Array:
            return super().backward(dy, cache)

    layer, calls = Shifted(6, 3).initialize(0, "float64"), Calls()
    layer.register_forward_hook(calls.forward)
    layer.register_backward_hook(calls.backward)
    y, cache = layer.forward(X)
    layer.backward(y, cache)
    assert [call[0] for call in calls] == ["forward", "backward"]
    assert_same_bits(calls[0][3:], [y])


@pytest.mark.parametrize("name", ["forward", "backward"])
def test_a_pass_cannot_be_replaced_on_the_object(name: str) -> None:
    layer = mlp()
    with pytest.raises(TypeError, match=f"use register_{name}_hook to read or replace its result, or write a subclass"):
        setattr(layer, name, lambda *args: None)


def test_a_hook_in_a_block_gives_the_bits_of_the_references() -> None:
    """Without the hook, the bits are those of before."""
    images, _, key = batch()
    vit = model()

    def results() -> list[Array]:
        logits, cache = vit.forward(images, key)
        vit.zero_grad()
        return [logits, vit.backward(normal(logits), cache), vit.parameters.store.gradients.copy()]

    before = results()
    with ops.reference_only():
        reference = results()
    calls = Calls()
    with vit.blocks[2].mlp.act.register_forward_hook(calls.forward):
        assert_same_bits(results(), reference)
    assert len(calls) == 1
    assert calls[0][3].shape[1] == vit.config.num_tokens, "the last block computes all tokens while it has hooks"
    assert_same_bits(results(), before)
    assert not np.array_equal(before[2], reference[2]), "the kernels round as the references do, so this shows nothing"


def test_hooks_of_another_model_change_nothing() -> None:
    """A model without hooks runs its kernels while another one has hooks."""
    images, _, key = batch()
    vit, other = model(), model()
    expected = vit.forward(images, key)[0]
    with other.register_forward_hook(lambda layer, x, y: 0 * y):
        assert_same_bits([vit.forward(images, key)[0]], [expected])
        assert not other.forward(images, key)[0].any()


def test_copies_have_no_hooks_and_replicas_share_them() -> None:
    layer, calls = mlp(), Calls()
    layer.fc1.register_forward_hook(calls.forward)
    with pytest.warns(UserWarning, match="a copy of a Linear has none of its hooks"):
        copies = copy.copy(layer.fc1), copy.deepcopy(layer)
    for other in (layer.astype("float32"), *copies, layer.to("numpy")):
        other(X.astype(next(iter(other.parameters.values())).value.dtype))
        assert not any(each.has_hooks for _, each in other.named_layers() if each is not layer.fc1)
    assert not calls
    replica = layer.replica()
    replica(X)
    assert calls.pop()[1] is layer.fc1, "a hook is called with the layer that it was registered on"
    with layer.act.register_forward_hook(calls.forward):
        replica(X)
    assert [call[1] for call in calls] == [layer.fc1, layer.act]


def test_a_gradient_check_calls_no_hooks() -> None:
    layer, calls = mlp(), Calls()
    layer.fc1.register_forward_hook(calls.forward)
    assert gradcheck_layer(layer, X).passed
    assert not calls


def observed(vit: ViT, images: Array, key: Key | None) -> tuple[list[OpCall], list[tuple[OpCall, Array, Any]]]:
    calls: list[OpCall] = []
    gradients: list[tuple[OpCall, Array, Any]] = []
    with ops.observe(calls.append, lambda *seen: gradients.append(seen)):
        logits, cache = vit.forward(images, key)
        vit.backward(normal(logits), cache)
    return calls, gradients


def test_an_observer_sees_every_op_and_the_layer_that_called_it() -> None:
    images, _, _ = batch()
    vit = model()
    calls, gradients = observed(vit, images, None)
    block = [("norm1", "layer_norm"), ("attn.qkv", "linear"), ("attn", "softmax"), ("attn", "attention"),
             ("attn.proj", "linear"), ("norm2", "layer_norm"), ("mlp.fc1", "linear"), ("mlp.act", "gelu"),
             ("mlp.fc2", "linear")]  # fmt: skip
    expected = [("patch_embed", "patches"), ("patch_embed.proj", "linear"), ("", "embed")]
    expected += [(f"blocks.{i}.{name}", op) for i in range(3) for name, op in block]
    expected += [("", "pool"), ("norm", "layer_norm"), ("head", "linear")]
    assert [(call.layer, call.op) for call in calls] == expected
    # An op inside an op ends first, in the forward and the backward pass.
    backward = [(call.layer, call.op) for call, _, _ in gradients]
    assert sorted(map(str, backward)) == sorted(map(str, expected))
    assert [name for name in backward if name[1] not in ("softmax", "attention")] == [
        name for name in reversed(expected) if name[1] not in ("softmax", "attention")
    ]


@pytest.mark.parametrize("rng", [False, True], ids=["evaluation", "training"])
def test_an_observer_sees_the_weights_of_attention_and_their_gradients(rng: bool) -> None:
    images, _, key = batch()
    vit = model()
    calls, gradients = observed(vit, images, key if rng else None)
    (softmax,) = (call for call in calls if (call.layer, call.op) == ("blocks.1.attn", "softmax"))
    (attention,) = (call for call in calls if (call.layer, call.op) == ("blocks.1.attn", "attention"))
    (dweights, dscores), (dy, dqkv) = (
        next((dy, gradient) for seen, dy, gradient in gradients if seen is call) for call in (softmax, attention)
    )
    N = vit.config.num_tokens
    assert softmax.result.shape == dweights.shape == dscores.shape == (len(images), 3, N, N)
    np.testing.assert_allclose(softmax.result.sum(-1), 1, rtol=1e-5)
    assert attention.args[0].shape == dqkv.shape
    assert dy.shape == attention.result.shape
    assert_same_bits([ops.softmax_backward(dweights, softmax.cache)], [dscores])
    mask = attention.args[2]
    assert (mask is not None) == rng
    _, _, v = attention.args[0].reshape(len(images), N, 3, 3, 4).transpose(2, 0, 3, 1, 4)
    weights = softmax.result if mask is None else softmax.result * mask
    assert_close([(weights @ v).swapaxes(1, 2).reshape(attention.result.shape)], [attention.result], 1e-6)


def test_observed_bits_are_those_of_the_references() -> None:
    images, _, key = batch()
    vit = model()
    before = vit.forward(images, key)[0]
    with ops.reference_only():
        reference = vit.forward(images, key)[0]
    with ops.observe(lambda call: None):
        assert_same_bits([vit.forward(images, key)[0]], [reference])
    assert_same_bits([vit.forward(images, key)[0]], [before])
    assert not np.array_equal(before, reference)


def test_an_observer_sees_ops_outside_of_layers_and_those_without_a_backward_function() -> None:
    calls: list[OpCall] = []
    gradients: list[Any] = []
    with ops.observe(calls.append, lambda *seen: gradients.append(seen)):
        y, cache = ops.softmax(X)
        ops.softmax_backward(normal(y), cache)
        ops.softmax_backward(2 * normal(y), cache)
        ops.keep_mask(Key(0, 0, np.arange(2)), (2, 3), 0.5, "float32")
    ops.softmax(X)
    assert [(call.layer, call.op) for call in calls] == [(None, "softmax"), (None, "drawn_mask")]
    assert calls[0].args == (X,)
    assert calls[1].cache is None
    assert [call for call, _, _ in gradients] == [calls[0]] * 2
    assert_same_bits([gradients[1][1]], [2 * normal(y)])


def test_an_observer_sees_the_ops_of_an_engine() -> None:
    from minivit import Engine

    images, labels, key = batch()
    vit = model()
    calls: list[OpCall] = []
    with Engine(vit, 2, 2) as engine:
        expected = engine.predict(images)
        with ops.observe(calls.append):
            engine.loss_and_gradients(images, labels, key)
        assert [call.layer for call in calls if call.op == "cross_entropy"] == [None] * 7
        assert sum((call.layer, call.op) == ("blocks.2.attn", "softmax") for call in calls) == 7
        assert_same_bits([engine.predict(images)], [expected])


def test_a_pickled_layer_has_no_hooks() -> None:
    layer = layers.Dropout(0.5)
    with (
        layer.register_forward_hook(lambda layer, x, y: None),
        pytest.warns(UserWarning, match="a copy of a Dropout has none of its hooks"),
    ):
        other = pickle.loads(pickle.dumps(layer))
    assert other.rate == 0.5
    assert not other.has_hooks


@pytest.mark.parametrize("returned", [np.zeros((2, 5, 7)), np.zeros((2, 5, 6), np.float32), 3.0], ids=str)
def test_a_hook_that_returns_another_shape_or_dtype_is_refused(returned: Any) -> None:
    layer = mlp()
    layer.register_forward_hook(lambda layer, x, y: returned)
    with pytest.raises(TypeError, match=r"a hook of a MLP returned .*; expected None or float64"):
        layer(X)


def test_after_a_hook_that_raises_everything_is_as_before() -> None:
    images, _, key = batch()
    vit = model()
    expected = vit.forward(images, key)[0]

    def failing(layer: Layer, x: Array, y: Array) -> None:
        raise RuntimeError("stop here")

    with vit.blocks[1].register_forward_hook(failing), pytest.raises(RuntimeError, match="stop here"):
        vit.forward(images, key)
    assert_same_bits([vit.forward(images, key)[0]], [expected])


def test_a_hooked_pass_leaves_the_kernels_of_other_threads_alone() -> None:
    images, _, key = batch()
    vit, other = model(), model()
    expected = vit.forward(images, key)[0]
    results: list[Array] = []

    def meanwhile(layer: Layer, x: Array, y: Array) -> None:
        thread = threading.Thread(target=lambda: results.append(vit.forward(images, key)[0]))
        thread.start()
        thread.join()

    with other.blocks[0].register_forward_hook(meanwhile):
        other.forward(images, key)
    assert_same_bits(results, [expected])


def test_blocks_of_reference_only_may_end_in_any_order() -> None:
    """Blocks of two threads may overlap."""
    first, second = ops.reference_only("gelu"), ops.reference_only("softmax")
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert registry.disabled_kernels() == {"softmax"}
    second.__exit__(None, None, None)
    assert registry.disabled_kernels() == frozenset()


def test_the_passes_of_a_mixin_have_hooks_too() -> None:
    class Doubling:
        def forward(self, x: Array, rng: Key | None = None, keep: bool = True) -> tuple[Array, Any]:
            return 2 * x, () if keep else None

        def backward(self, dy: Array, cache: Any) -> Array:
            return 2 * dy

    class Doubled(Doubling, Layer):
        pass

    layer, calls = Doubled(), Calls()
    layer.register_forward_hook(calls.forward)
    layer.register_backward_hook(calls.backward)
    layer.backward(*layer.forward(X))
    assert [call[0] for call in calls] == ["forward", "backward"]


class Constant(Layer):
    """A layer without an input."""

    def __init__(self) -> None:
        self.w = Parameter((3,), lambda generator, shape: np.ones(shape))

    def forward(self, rng: Any = None, keep: bool = True) -> tuple[Array, Any]:  # type: ignore[override] # no input
        return self.w.value, None


def test_a_layer_without_an_input_is_observed() -> None:
    layer, seen = Constant().initialize(), []
    with ops.observe(lambda call: seen.append(call)):
        y, _ = layer.forward()
    assert y.shape == (3,)
    assert seen == []


def test_a_hook_may_read_what_is_no_array_and_cannot_replace_it() -> None:
    class Twice(Layer):
        """Returns its input as a pair."""

        def forward(self, x: Any, rng: Key | None = None, keep: bool = True) -> tuple[Any, Any]:
            return (x, 2 * x), ()

        def backward(self, dy: Any, cache: Any) -> Any:
            return dy[0] + 2 * dy[1]

    class Sum(Twice):
        """Adds a pair."""

        def forward(self, x: Any, rng: Key | None = None, keep: bool = True) -> tuple[Any, Any]:
            return x[0] + x[1], ()

        def backward(self, dy: Any, cache: Any) -> Any:
            return dy, dy

    seen: list[Any] = []
    for layer, given in ((Twice(), X), (Sum(), (X, X))):
        layer.register_forward_hook(lambda layer, x, y: seen.append(y))
        layer.register_backward_hook(lambda layer, dx, dy: seen.append(dx))
        y, cache = layer.forward(given)
        assert_same_bits([y], [seen[-1]]) if hasattr(y, "dtype") else assert_same_bits(y, seen[-1])
        layer.backward(y, cache)
    assert [type(each) for each in seen] == [tuple, np.ndarray, np.ndarray, tuple]
    layer = Twice()
    layer.register_forward_hook(lambda layer, x, y: x)
    with pytest.raises(TypeError, match=r"a hook of a Twice returned a ndarray; expected None, because .* is a tuple"):
        layer.forward(X)
