"""Layers of a model that are replaced, added or removed are trained, checked, saved and loaded, or refused at once."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from bare_vit import images, model, shaken
from contract import assert_close, assert_same_bits, normal

from minivit import (
    SGD,
    AdamW,
    Engine,
    Layer,
    Parameter,
    UserError,
    ViT,
    ViTConfig,
    gradcheck_layer,
    gradcheck_model,
    initializers,
    layers,
    load_model,
    ops,
    save_model,
)
from minivit.arrays import Array
from minivit.ops.attention import ALL
from minivit.train.recipe import Recipe
from minivit.train.step import TrainStep

D, CLASSES = 6, 7
LABELS = np.array([0, 4, 2, 6])
X = images(4)


class RMSNorm(Layer):
    """A norm of a user's own, without a bias."""

    def __init__(self, dim: int = D) -> None:
        self.weight = Parameter((dim,), lambda generator, shape: 1.0 + generator.random(shape))

    def forward(self, x: Array, rng: Any = None, keep: bool = True) -> tuple[Array, Any]:
        r = 1.0 / np.sqrt((x * x).mean(axis=-1, keepdims=True) + 1e-6)
        return x * r * self.weight.value, (x, r) if keep else None

    def backward(self, dy: Array, cache: Any) -> Array:
        x, r = cache
        x_hat = x * r
        self.weight.add_grad((dy * x_hat).sum(axis=tuple(range(dy.ndim - 1))))
        d = dy * self.weight.value
        dx: Array = r * (d - x_hat * (d * x_hat).mean(axis=-1, keepdims=True))
        return dx


class Mix(Layer):
    """Takes the place of attention or of a block: a linear map, without the arguments that only those take."""

    def __init__(self) -> None:
        self.map = layers.Linear(D, D)

    def forward(self, x: Array, rng: Any = None, keep: bool = True) -> tuple[Array, Any]:
        return self.map.forward(x, keep=keep)

    def backward(self, dy: Array, cache: Any) -> Array:
        return self.map.backward(dy, cache)


class Doubling(Layer):
    """Doubles the result of the class beside it; its forward pass takes no queries."""

    def forward(self, x: Array, rng: Any = None, keep: bool = True) -> tuple[Array, Any]:
        y, cache = super().forward(x, rng, keep)
        return 2.0 * y, cache

    def backward(self, dy: Array, cache: Any) -> Array:
        return super().backward(2.0 * dy, cache)


def doubled(kind: type[Layer], *sizes: int) -> Any:
    """Return a layer of a user's own subclass of `kind`."""
    return ready(type("Doubled", (Doubling, kind), {})(*sizes))


def attention_with(forward: Any) -> Any:
    """Return attention of a user's own whose forward pass has the arguments of `forward`."""
    return ready(type("OfSignature", (layers.Attention,), {"forward": forward})(D, 2))


def any_names(self: Any, x: Array, rng: Any = None, keep: bool = True, **others: Any) -> tuple[Array, Any]:
    return layers.Attention.forward(self, x, rng, keep, **others)


def queries_last(self: Any, x: Array, rng: Any = None, keep: bool = True, queries: slice = ALL) -> tuple[Array, Any]:
    return layers.Attention.forward(self, x, rng, keep, queries)


def queries_by_name(
    self: Any, x: Array, rng: Any = None, keep: bool = True, *, queries: slice = ALL
) -> tuple[Array, Any]:
    return layers.Attention.forward(self, x, rng, keep, queries)


class Slope(Layer):
    """An activation without parameters."""

    def forward(self, x: Array, rng: Any = None, keep: bool = True) -> tuple[Array, Any]:
        return 2.0 * x, () if keep else None

    def backward(self, dy: Array, cache: Any) -> Array:
        return 2.0 * dy


def ready(layer: Layer) -> Any:
    return layer.initialize(seed=1, dtype="float64")


CHANGES: dict[str, Callable[[ViT], object]] = {
    "a norm": lambda vit: setattr(vit.blocks[0], "norm1", ready(RMSNorm())),
    "the last norm": lambda vit: setattr(vit, "norm", ready(RMSNorm())),
    "an activation": lambda vit: setattr(vit.blocks[1].mlp, "act", Slope()),
    "an attribute": lambda vit: setattr(vit.blocks[1].norm2, "eps", 0.1),
    "attention in the last block": lambda vit: setattr(vit.blocks[-1], "attn", ready(Mix())),
    "attention of a subclass": lambda vit: setattr(vit.blocks[-1], "attn", doubled(layers.Attention, D, 2)),
    "attention that takes any names": lambda vit: setattr(vit.blocks[-1], "attn", attention_with(any_names)),
    "attention that takes queries alone": lambda vit: setattr(vit.blocks[-1], "attn", attention_with(queries_last)),
    "attention that takes named queries": lambda vit: setattr(vit.blocks[-1], "attn", attention_with(queries_by_name)),
    "a block of a subclass": lambda vit: vit.blocks.__setitem__(2, doubled(layers.EncoderBlock, D, 2, 24)),
    "a block": lambda vit: vit.blocks.__setitem__(0, ready(Mix())),
    "the last block": lambda vit: vit.blocks.__setitem__(2, ready(Mix())),
    "one block more": lambda vit: vit.blocks.append(ready(layers.EncoderBlock(D, 2, 24))),
    "one block less": lambda vit: vit.blocks.pop(1),
    "a wider MLP": lambda vit: setattr(vit.blocks[2], "mlp", ready(layers.MLP(D, 31))),
    "one MLP twice": lambda vit: setattr(vit.blocks[2], "mlp", vit.blocks[0].mlp),
    "a head of more classes": lambda vit: setattr(vit, "head", ready(layers.Linear(D, 9))),
    "a parameter": lambda vit: setattr(vit.head, "bias", ready(layers.Linear(D, CLASSES)).bias),
    "values of one block": lambda vit: vit.blocks[0].initialize(seed=8, dtype="float64"),
}


def by_hand(vit: ViT) -> tuple[Array, Array, list[Array]]:
    """Return loss, logits and all gradients of one step without an engine."""
    vit.zero_grad()
    logits, cache = vit.forward(X)
    loss, loss_cache = ops.cross_entropy(logits, LABELS)
    vit.backward(ops.cross_entropy_backward(1.0, loss_cache), cache)
    return loss, logits, [parameter.grad.copy() for parameter in vit.parameters.values()]


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_model_is_computed_as_it_is_by_engines_from_before(change: str) -> None:
    vit = shaken(model())
    engines = [Engine(vit, threads, 1) for threads in (1, 2)]
    for engine in engines:
        engine.loss_and_gradients(X, LABELS)
    before = engines[0].predict(X)
    CHANGES[change](vit)
    with ops.reference_only():
        loss, logits, gradients = by_hand(vit)
    assert logits.shape != before.shape or np.abs(logits - before).max() > 1e-6
    assert_close(by_hand(vit)[2], gradients, 1e-9)
    for engine in engines:
        assert_close([engine.predict(X), engine.loss_and_gradients(X, LABELS)], [logits, loss], 1e-9)
        assert_close([parameter.grad for parameter in vit.parameters.values()], gradients, 1e-9)
        engine.close()


@pytest.mark.parametrize("change", CHANGES)
def test_all_parameters_of_a_changed_model_are_trained_and_an_old_optimiser_is_refused(change: str) -> None:
    vit = shaken(model())
    optimizer = SGD(vit)
    CHANGES[change](vit)
    if change not in ("an activation", "an attribute"):
        with pytest.raises(UserError, match=r"layers of the model were replaced .*; make a new SGD"):
            optimizer.step()
    by_hand(vit)
    before = vit.state_dict()
    AdamW(vit.parameters).step()
    assert all((value != before[name]).any() for name, value in vit.state_dict().items())


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_model_is_saved_and_loads_with_the_function_that_builds_it(change: str, tmp_path: Path) -> None:
    vit = shaken(model())
    CHANGES[change](vit)

    def build(config: ViTConfig) -> ViT:
        built = model()
        CHANGES[change](built)
        return built

    save_model(shaken(vit), tmp_path)
    loaded = load_model(tmp_path, "float64", build=build)
    assert_same_bits([loaded(X)], [vit(X)])
    assert_same_bits([copy.deepcopy(vit)(X), vit.astype("float64")(X)], [vit(X)] * 2)
    still_standard = (
        "one block more",
        "one block less",
        "a head of more classes",
        "a parameter",
        "values of one block",
    )
    if change in still_standard:
        assert_same_bits([load_model(tmp_path, "float64")(X)], [vit(X)])
    else:
        with pytest.raises(UserError, match=r"has layers of its own, such as .*: pass load_model\(\.\.\., build=f\)"):
            load_model(tmp_path)
        with pytest.raises(UserError, match=r"has .* as .*, but build returned .* as "):
            load_model(tmp_path, build=ViT)


def test_a_subclass_of_the_model_is_loaded_by_its_class(tmp_path: Path) -> None:
    class Doubled(ViT):
        def forward(self, x: Array, rng: Any = None, keep: bool = True) -> tuple[Array, Any]:
            logits, cache = super().forward(x, rng, keep)
            return 2.0 * logits, cache

    vit = shaken(Doubled(model().config, dtype="float64"))
    save_model(vit, tmp_path)
    assert_same_bits([load_model(tmp_path, "float64", build=Doubled)(X)], [vit(X)])
    with pytest.raises(UserError, match=r"such as Doubled\(.*\) as the model: pass load_model"):
        load_model(tmp_path)
    with pytest.raises(UserError, match=r"build returned a Linear; expected a minivit.ViT"):
        load_model(tmp_path, build=lambda config: layers.Linear(2, 3))  # type: ignore[arg-type, return-value]


def test_the_gradients_of_a_changed_model_are_checked() -> None:
    vit = shaken(model(depth=1))
    CHANGES["a norm"](vit)
    report = gradcheck_model(vit, X[:1], LABELS[:1])
    assert report
    assert any("blocks.0.norm1.weight" in row.full_name for row in report.rows)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda vit: setattr(vit.blocks[0], "norm1", RMSNorm()),
            r"blocks\.0\.norm1\.weight has no value yet: call init",
        ),
        (lambda vit: setattr(vit, "pos_embed", Parameter((1, 7, D), initializers.ones)), "pos_embed has no value yet"),
        (
            lambda vit: setattr(vit.blocks[0], "norm1", RMSNorm().initialize()),
            r"blocks\.0\.norm1\.weight is float32 on numpy and the other .* float64 .*astype\('float64'\)",
        ),
        (lambda vit: vit.blocks.append(np.tanh), r"blocks\[3\] is a ufunc; expected a minivit\.Layer"),
        (lambda vit: setattr(vit, "head", Slope()), r"the head returned an array of shape \(4, 6\); expected \(B, 7\)"),
    ],
)
def test_a_layer_that_cannot_be_used_is_refused_at_once(change: Callable[[ViT], None], message: str) -> None:
    vit = model()
    engine = Engine(vit, 1)
    change(vit)
    uses: list[Callable[[], object]] = [lambda: vit(X), lambda: engine.predict(X)]
    uses.append(lambda: engine.loss_and_gradients(X, LABELS))
    for use in uses:
        with pytest.raises(UserError, match=message):
            use()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda vit: setattr(vit.head, "weight", np.zeros((D, CLASSES))),
            r"values are set by weight\.value\[\.\.\.\] =",
        ),
        (
            lambda vit: setattr(vit, "head", np.tanh),
            "head of ViT holds a Layer and cannot become a ufunc; expected anoth",
        ),
        (lambda vit: setattr(vit, "head", None), "head of ViT holds a Layer and cannot become None; expected another"),
        (lambda vit: setattr(vit.blocks[0], "norm1", RMSNorm), "cannot become the class RMSNorm"),
    ],
)
def test_only_a_layer_takes_the_place_of_a_layer(change: Callable[[ViT], None], message: str) -> None:
    vit = model()
    with pytest.raises(UserError, match=message):
        change(vit)
    assert vit(X).shape == (4, CLASSES)


def test_a_removed_parameter_leaves_nothing_in_the_vectors() -> None:
    """Its old gradient would otherwise count in the norm by which gradients are clipped."""
    vit = shaken(model())
    by_hand(vit)
    kept = {name: p.grad.copy() for name, p in vit.parameters.items() if not name.startswith("blocks.2")}
    del vit.blocks[2]
    assert list(vit.parameters) == list(kept)
    assert_same_bits([p.grad for p in vit.parameters.values()], list(kept.values()))
    squares = sum(float((gradient**2).sum()) for gradient in kept.values())
    assert float((vit.parameters.store.gradients**2).sum()) == pytest.approx(squares)


def test_a_layer_of_another_model_takes_its_values_along() -> None:
    one, other = shaken(model()), shaken(model(), 0.5)
    one.head = other.head
    weight = other.head.weight.value.copy()
    assert_same_bits([one.parameters["head.weight"].value], [weight])
    SGD(one, lr=0.0).step()
    assert_same_bits([other.parameters["head.weight"].value, other.state_dict()["head.weight"]], [weight] * 2)


def test_a_generator_reaches_layers_of_a_user_in_every_place() -> None:
    seen: list[str] = []

    class Noting(layers.Linear):
        def forward(self, x: Array, rng: Any = None, keep: bool = True) -> tuple[Array, Any]:
            seen.append(rng.place)
            return super().forward(x, rng, keep)

    class NotingNorm(layers.LayerNorm):
        def forward(self, x: Array, rng: Any = None, keep: bool = True) -> tuple[Array, Any]:
            seen.append(rng.place)
            return super().forward(x, rng, keep)

    vit = model(depth=1, qk_norm=True)
    vit.head, vit.blocks[0].mlp.fc1 = ready(Noting(D, CLASSES)), ready(Noting(D, 24))
    vit.blocks[0].attn.k_norm = ready(NotingNorm(D // 2))
    vit.forward(X, rng=np.random.default_rng(0))
    assert seen == ["blocks.0.attn.k_norm", "blocks.0.mlp.fc1", "head"]


@pytest.mark.parametrize("kind", [layers.LayerNorm, RMSNorm, Slope], ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("names", [["q_norm"], ["k_norm"], ["q_norm", "k_norm"]], ids=str)
def test_each_norm_of_queries_or_keys_is_applied_by_itself(names: list[str], kind: Any) -> None:
    attention = shaken(layers.Attention(D, 2).initialize(1, "float64"))
    norms = {name: ready(kind() if kind is Slope else kind(D // 2)) for name in names}
    for name, norm in norms.items():
        setattr(attention, name, norm)
    x = normal(np.empty((2, 5, D)))
    parts = attention.qkv(x).reshape(2, 5, 3, 2, D // 2)
    for i, name in enumerate(("q_norm", "k_norm")):
        parts[:, :, i] = norms[name](parts[:, :, i]) if name in norms else parts[:, :, i]
    h, _ = ops.attention(parts.reshape(2, 5, 3 * D), 2, keep=False)
    assert_close([attention(x)], [attention.proj(h)], 1e-12)
    assert gradcheck_layer(attention, x)


class Shift(Layer):
    """A layer with an array that is no parameter."""

    def __init__(self, value: float = 0.0) -> None:
        self.mean = np.full(D, value)

    def forward(self, x: Array, rng: Any = None, keep: bool = True) -> tuple[Array, Any]:
        return x - self.mean, () if keep else None

    def backward(self, dy: Array, cache: Any) -> Array:
        return dy


def shifted(value: float) -> Any:
    vit: Any = shaken(model())
    vit.blocks[0].norm1 = Shift(value)
    return vit


def test_an_array_that_is_no_parameter_is_followed_by_the_workers_of_an_engine() -> None:
    vit = shifted(0.0)
    with Engine(vit, threads=2, micro_batch=1) as engine:
        engine.predict(X)
        vit.blocks[0].norm1.mean[...] = 0.5
        np.testing.assert_allclose(engine.predict(X), vit(X), rtol=1e-9)


def test_a_model_is_not_loaded_with_other_values_of_an_array_that_is_no_parameter(tmp_path: Path) -> None:
    save_model(shifted(0.5), tmp_path)
    assert load_model(tmp_path, build=lambda config: shifted(0.5))
    with pytest.raises(UserError, match=r"checksum of mean: .* but build returned Shift"):
        load_model(tmp_path, build=lambda config: shifted(0.0))


class Private(Shift):
    """A layer of a user with arrays in a private attribute and in a dict."""

    def __init__(self) -> None:
        super().__init__(0.0)
        self._gain = np.ones(1)
        self.tables = {"gain": [np.ones(1)]}

    def forward(self, x: Array, rng: Any = None, keep: bool = True) -> tuple[Array, Any]:
        return x * self._gain * self.tables["gain"][0], () if keep else None


def test_arrays_in_private_attributes_and_in_dicts_are_followed_by_the_workers_of_an_engine() -> None:
    vit: Any = shaken(model())
    layer = vit.blocks[0].norm1 = Private()
    with Engine(vit, threads=2, micro_batch=1) as engine:
        for array in (layer._gain, layer.tables["gain"][0]):
            engine.predict(X)
            array[...] = 3.0
            np.testing.assert_allclose(engine.predict(X), vit(X), rtol=1e-9)


class Stack(list[Any]):
    """A list of a user's own."""


class Pair(NamedTuple):
    """Two layers."""

    first: Any
    second: Any


def test_layers_in_a_list_of_a_users_own_are_copied_with_the_model() -> None:
    vit: Any = shaken(model())
    vit.blocks = Stack(vit.blocks)
    with Engine(vit, threads=1) as engine:
        engine.loss_and_gradients(X, LABELS)
    assert all(np.any(p.grad) for name, p in vit.parameters.items() if name.startswith("blocks.0.attn"))
    assert type(vit.replica().blocks) is Stack


def test_layers_in_a_named_tuple_are_converted_in_a_copy_alone() -> None:
    class Both(Layer):
        def __init__(self) -> None:
            self.layers = Pair(layers.Linear(3, 3), layers.Linear(3, 3))

    both = Both().initialize(dtype="float64")
    low = both.astype("float32")
    assert [p.value.dtype for p in both.parameters.values()] == [np.dtype("float64")] * 4
    assert [p.value.dtype for p in low.parameters.values()] == [np.dtype("float32")] * 4
    assert type(low.layers) is Pair


class Plain(ViT):
    """A model of a user whose backward pass takes what the interface of layers says, and no more."""

    def backward(self, dy: Array, cache: Any) -> Array:  # type: ignore[override] # the test
        return super().backward(dy, cache)


def test_a_model_whose_backward_pass_takes_no_options_is_trained() -> None:
    found = []
    for kind in (ViT, Plain):
        vit = shaken(kind(model().config, seed=3, dtype="float64"))
        with Engine(vit, threads=1) as engine:
            engine.loss_and_gradients(X, LABELS)
        found.append([vit.parameters.store.gradients.copy()])
    assert_same_bits(*found)


def test_a_model_whose_backward_pass_takes_no_first_block_is_fine_tuned() -> None:
    for kind, first in ((ViT, 3), (Plain, 0)):
        vit = kind(model().config, seed=3)
        engine = Engine(vit, threads=1)
        unread: Any = None
        TrainStep(engine, AdamW([vit.head.weight]), unread, Recipe("arrays", "ViT"))
        assert engine.first_block == first
