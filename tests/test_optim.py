"""Optimisers against their formulas in plain float64 NumPy; clipping, groups and state."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from contract import assert_close, assert_same_bits, normal

from minivit import SGD, Adam, AdamW, Layer, Muon, Parameter, UserError, ViT, ViTConfig, initializers, layers
from minivit.arrays import Array, to_backend, to_host
from minivit.nn.store import FlatStore
from minivit.ops import update_rules
from minivit.train import Group
from minivit.train.groups import merge_neighbours, parameter_groups
from minivit.train.optimizers import Optimizer, clip_gradients

STEPS = 5


class Pair(Layer):
    """A matrix that decays and a bias that does not, of sizes that leave gaps in the flat vector."""

    def __init__(self) -> None:
        self.weight = Parameter((5, 7), initializers.normal(1.0), decay=True)
        self.bias = Parameter((3,), initializers.normal(1.0))


def pair(dtype: str = "float64") -> Pair:
    return Pair().initialize(seed=1, dtype=dtype)


def set_gradients(layer: Layer, seed: int, scale: float = 1.0) -> None:
    for number, parameter in enumerate(layer.parameters.values()):
        parameter.grad[...] = scale * normal(parameter.value, 10 * seed + number)


def sgd(p: Array, gradients: list[Array], lr: float, decay: float, momentum: float) -> Array:
    b = np.zeros_like(p)
    for g in gradients:
        b = momentum * b + (g + decay * p)
        p = p - lr * b
    return p


def adam(p: Array, gradients: list[Array], lr: float, decay: float, betas: tuple[float, float], eps: float) -> Array:
    m, v = np.zeros_like(p), np.zeros_like(p)
    for t, gradient in enumerate(gradients, start=1):
        g = gradient + decay * p
        m = betas[0] * m + (1 - betas[0]) * g
        v = betas[1] * v + (1 - betas[1]) * g**2
        p = p - lr * (m / (1 - betas[0] ** t)) / (np.sqrt(v / (1 - betas[1] ** t)) + eps)
    return p


def adamw(p: Array, gradients: list[Array], lr: float, decay: float, betas: tuple[float, float], eps: float) -> Array:
    m, v = np.zeros_like(p), np.zeros_like(p)
    for t, g in enumerate(gradients, start=1):
        m = betas[0] * m + (1 - betas[0]) * g
        v = betas[1] * v + (1 - betas[1]) * g**2
        p = p - lr * ((m / (1 - betas[0] ** t)) / (np.sqrt(v / (1 - betas[1] ** t)) + eps) + decay * p)
    return p


BETAS = {"betas": (0.8, 0.95), "eps": 1e-3}
RULES: dict[str, tuple[Callable[..., Optimizer], Callable[..., Array], dict[str, Any]]] = {
    "SGD": (SGD, sgd, {"momentum": 0.7}),
    "SGD without momentum": (SGD, sgd, {"momentum": 0.0}),
    "Adam": (Adam, adam, BETAS),
    "AdamW": (AdamW, adamw, BETAS),
}


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("decay", [0.0, 0.3])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-14), ("float32", 1e-6)])
def test_the_update_is_the_formula_and_biases_do_not_decay(
    name: str, decay: float, dtype: str, tolerance: float
) -> None:
    make, rule, options = RULES[name]
    layer = pair(dtype)
    before = layer.state_dict()
    gradients: dict[str, list[Array]] = {"weight": [], "bias": []}
    optimizer = make(layer, lr=0.1, weight_decay=decay, **options)
    for step in range(STEPS):
        set_gradients(layer, step)
        for parameter_name, kept in gradients.items():
            kept.append(layer.parameters[parameter_name].grad.astype("float64"))
        optimizer.step()
    assert optimizer.steps == STEPS
    for parameter_name, kept in gradients.items():
        decays = decay if parameter_name == "weight" else 0.0
        expected = rule(before[parameter_name].astype("float64"), kept, 0.1, decays, **options)
        value = layer.parameters[parameter_name].value
        assert value.dtype == dtype
        assert_close([value], [expected], tolerance)


def test_defaults_are_those_of_the_papers() -> None:
    layer = pair()
    optimizer = AdamW(layer)
    assert (optimizer.lr, optimizer.betas, optimizer.eps) == (1e-3, (0.9, 0.999), 1e-8)
    assert [group.weight_decay for group in parameter_groups(layer, 1e-3, 0.05)] == [0.05, 0.0]
    assert {group.weight_decay for group in optimizer.groups} == {0.05, 0.0}
    assert {group.weight_decay for group in Adam(layer).groups} == {0.0}
    assert SGD(layer).momentum == 0.9


@pytest.mark.parametrize("make", [SGD, Adam, AdamW, Muon])
def test_only_matrices_decay(make: Callable[..., Optimizer]) -> None:
    """With zero gradients, biases, norms, tokens and positions keep their bits, and matrices shrink."""
    vit = ViT(ViTConfig(img_size=4, patch_size=2, embed_dim=6, depth=2, num_heads=2, num_classes=7))
    for seed, parameter in enumerate(vit.parameters.values()):
        parameter.value[...] = normal(parameter.value, seed)
    before = vit.state_dict()
    optimizer = make(vit, lr=0.1, weight_decay=0.5)
    vit.zero_grad()
    optimizer.step()
    for name, parameter in vit.parameters.items():
        if name.endswith("weight") and "norm" not in name:
            assert not (parameter.value == before[name]).any(), name
            assert np.linalg.norm(parameter.value) < np.linalg.norm(before[name])
        else:
            assert (parameter.value == before[name]).all(), name


def test_every_parameter_is_updated_and_gaps_stay_zero() -> None:
    vit = ViT(ViTConfig(img_size=4, patch_size=2, embed_dim=6, depth=2, num_heads=2, num_classes=7))
    before = vit.state_dict()
    optimizer = AdamW(vit)
    set_gradients(vit, 0)
    optimizer.step()
    used = np.zeros(vit.parameters.store.values.size, bool)
    for name, parameter in vit.parameters.items():
        used[parameter.span] = True
        assert not (parameter.value == before[name]).any(), name
    assert not vit.parameters.store.values[~used].any()


def test_there_is_a_group_for_each_parameter_with_its_name_shape_and_parts() -> None:
    vit = ViT(ViTConfig(img_size=4, patch_size=2, embed_dim=6, depth=2, num_heads=2, num_classes=7))
    groups = {group.name: group for group in AdamW(vit, lr=0.1, weight_decay=0.5).groups}
    assert groups.keys() == vit.parameters.keys()
    for name, parameter in vit.parameters.items():
        decay = 0.5 if parameter.decay else 0.0
        assert groups[name] == (parameter.span, 0.1, decay, name, parameter.shape, parameter.parts)
    assert groups["blocks.1.attn.qkv.weight"].parts == ("q", "k", "v")
    assert groups["blocks.1.attn.qkv.weight"].shape == (6, 18)


def test_merged_groups_are_long_spans_with_a_decay_each() -> None:
    vit = ViT(ViTConfig(img_size=4, patch_size=2, embed_dim=6, depth=2, num_heads=2, num_classes=7))
    groups = merge_neighbours(parameter_groups(vit, 0.1, 0.5), itemsize=4)
    assert all(one.weight_decay != other.weight_decay for one, other in itertools.pairwise(groups))
    assert all(one.span.stop <= other.span.start for one, other in itertools.pairwise(groups))


def test_only_neighbours_of_one_rate_and_decay_are_merged() -> None:
    """They are merged only after a whole parameter, which only padding follows."""
    one, two, three = (
        Group(slice(0, 40), 0.1, 0.5, "w"),
        Group(slice(64, 70), 0.1, 0.5),
        Group(slice(128, 130), 0.1, 0.5),
    )
    assert merge_neighbours([one, two, three], itemsize=4) == [Group(slice(0, 70), 0.1, 0.5), three]
    for other in (two._replace(lr=0.2), two._replace(weight_decay=0.0), two._replace(span=slice(128, 130))):
        assert merge_neighbours([one, other], itemsize=4) == [one, other]


def test_a_rule_for_matrices_receives_one_group_for_each_parameter() -> None:
    class Normalized(Optimizer):
        """Moves each matrix by its gradient over the norm of the whole matrix, and nothing else."""

        elementwise = False

        def _update(self, values: Array, gradients: Array, groups: tuple[Group, ...], options: dict[str, Any]) -> None:
            for group in groups:
                if len(group.shape) == 2:
                    matrix, g = (vector[group.span].reshape(group.shape) for vector in (values, gradients))
                    matrix -= group.lr * options["lr_scale"] * g / np.linalg.norm(g)

    vit = ViT(ViTConfig(img_size=4, patch_size=2, embed_dim=6, depth=2, num_heads=2, num_classes=7), dtype="float64")
    set_gradients(vit, 0)
    before = vit.state_dict()
    Normalized(vit, lr=0.1).step()
    for name, parameter in vit.parameters.items():
        moved = before[name] - parameter.value
        assert np.linalg.norm(moved) == pytest.approx(0.1 if len(parameter.shape) == 2 else 0.0), name


@pytest.mark.parametrize("make", [SGD, Adam, AdamW])
def test_groups_that_are_given_one_by_one_update_the_same_bits(make: Callable[..., Optimizer]) -> None:
    """The bits are the same for merged groups and for groups with or without names."""

    def stepped(**changes: Any) -> Array:
        vit = ViT(ViTConfig(img_size=4, patch_size=2, embed_dim=6, depth=2, num_heads=2, num_classes=7))
        groups = [group._replace(**changes) for group in parameter_groups(vit, 0.1, 0.5)]
        optimizer = make(vit, lr=0.1, weight_decay=0.5, **({"groups": groups} if changes else {}))
        for step in range(3):
            set_gradients(vit, step)
            optimizer.step()
        return vit.parameters.store.values

    assert_same_bits([stepped(lr=0.1), stepped(name="")], [stepped(), stepped()])


@pytest.mark.parametrize("make", [SGD, Adam, AdamW, Muon])
def test_a_rate_of_zero_can_rise_later(make: Callable[..., Optimizer]) -> None:
    def stepped(lr: float) -> Array:
        layer = pair()
        optimizer = make(layer, lr=lr, weight_decay=0.5)
        optimizer.lr = 0.1
        set_gradients(layer, 0)
        optimizer.step()
        return layer.parameters.store.values

    assert_same_bits([stepped(0.0)], [stepped(0.1)])


def test_groups_have_rates_of_their_own_and_follow_the_schedule() -> None:
    layer, plain = pair(), pair()
    spans = [layer.parameters[name].span for name in ("weight", "bias")]
    optimizer = SGD(layer, lr=0.1, momentum=0.0, groups=[Group(spans[0], 0.1, 0.0), Group(spans[1], 0.01, 0.0)])
    optimizer.lr = 0.05
    set_gradients(layer, 0)
    optimizer.step()
    for name, rate in (("weight", 0.05), ("bias", 0.005)):
        moved = plain.parameters[name].value - layer.parameters[name].value
        assert_close([moved], [rate * layer.parameters[name].grad], 1e-12)


@pytest.mark.parametrize("make", [SGD, Adam, AdamW])
@pytest.mark.parametrize("chunk", [1, 7, 64])
def test_the_size_of_the_pieces_does_not_change_a_bit(
    make: Callable[..., Optimizer], chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run() -> Array:
        layer = layers.Linear(11, 13).initialize()
        optimizer = make(layer, lr=0.1, weight_decay=0.1)
        for step in range(3):
            set_gradients(layer, step)
            optimizer.step()
        return layer.parameters.store.values

    whole = run()
    monkeypatch.setattr(update_rules, "_CHUNK", chunk)
    assert_same_bits([run()], [whole])


@pytest.mark.usefixtures("computed")
@pytest.mark.parametrize("backend", ["numpy", "strict"])
@pytest.mark.parametrize("make", [SGD, Adam, AdamW, Muon])
def test_a_factor_multiplies_the_gradients_and_nan_changes_nothing(
    make: Callable[..., Optimizer], backend: str
) -> None:
    def stepped(scale: float, factor: float | None) -> tuple[Layer, Optimizer, list[Array]]:
        layer = Pair().initialize(seed=1, dtype="float32", backend=backend)
        optimizer = make(layer, lr=0.1, weight_decay=0.1)
        for number in range(2):
            for seed, parameter in enumerate(layer.parameters.values()):
                gradient = scale * normal(np.empty(parameter.shape, np.float32), 10 * number + seed)
                parameter.grad[...] = to_backend(gradient.astype("float32"), backend)
            given = None if factor is None else to_backend(np.array(factor, np.float32), backend)
            optimizer.step(given)
        return layer, optimizer, everything(layer, optimizer)

    def everything(layer: Layer, optimizer: Optimizer) -> list[Array]:
        return [to_host(layer.parameters.store.values).copy(), *optimizer.state().values()]

    layer, optimizer, plain = stepped(0.5, None)
    assert_same_bits(stepped(1.0, 0.5)[2], plain)
    assert_same_bits(stepped(0.5, 1.0)[2], plain)
    for parameter in layer.parameters.values():
        parameter.grad[...] = float("inf")
    optimizer.step(to_backend(np.array(np.nan, np.float32), backend))
    assert_same_bits(everything(layer, optimizer), plain)
    assert optimizer.steps == 3


def test_parameters_of_16_bits_have_no_optimiser() -> None:
    with pytest.raises(UserError, match="the parameters are float16, in which small updates vanish"):
        AdamW(Pair().initialize(dtype="float16", backend="strict"))


@pytest.mark.parametrize("device", ["numpy", "strict"])
@pytest.mark.parametrize("factor", [np.ones(1, "float32"), np.ones((), "float64"), np.float64(1)])
def test_an_invalid_factor_is_refused(device: str, factor: Any) -> None:
    optimizer = AdamW(Pair().initialize(backend=device))
    with pytest.raises(TypeError, match="expected a 0-d array of float32"):
        optimizer.step(to_backend(np.asarray(factor), device))
    assert optimizer.steps == 0


def test_groups_can_be_keys() -> None:
    one, same, other = (Group(slice(0, stop), 0.1, 0.0) for stop in (5, 5, 6))
    assert {one: 1}[same] == 1
    assert other not in {one: 1}
    assert same._replace(name="weight") not in {one: 1}


@pytest.mark.parametrize("make", [SGD, Adam, AdamW, Muon])
def test_a_saved_state_continues_with_the_same_bits(make: Callable[..., Optimizer]) -> None:
    def run(layer: Layer, optimizer: Optimizer, steps: range) -> None:
        for step in steps:
            set_gradients(layer, step)
            optimizer.step()

    whole = pair("float32")
    run(whole, make(whole, lr=0.1, weight_decay=0.1), range(6))
    first = pair("float32")
    optimizer = make(first, lr=0.1, weight_decay=0.1)
    run(first, optimizer, range(4))
    state, steps = optimizer.state(), optimizer.steps
    second = pair("float32")
    second.load_state_dict(first.state_dict())
    run(first, optimizer, range(4, 5))  # the state is a copy
    optimizer = make(second, lr=0.1, weight_decay=0.1)
    optimizer.load_state(state, steps)
    run(second, optimizer, range(4, 6))
    assert_same_bits([second.parameters.store.values], [whole.parameters.store.values])


def test_the_state_of_another_optimiser_or_model_is_refused() -> None:
    optimizer = AdamW(pair())
    with pytest.raises(UserError, match=r"this optimiser's state is \['m', 'v'\]; the file has \['momentum'\]"):
        optimizer.load_state(SGD(pair()).state(), 1)
    other = AdamW(layers.Linear(30, 30).initialize(dtype="float64")).state()
    with pytest.raises(UserError, match=r"the optimiser's m has 960 numbers; this model has 96"):
        optimizer.load_state(other, 1)


def test_an_optimiser_takes_a_model_its_parameters_or_some_of_them() -> None:
    results = []
    for given in (
        lambda layer: layer,
        lambda layer: layer.parameters,
        lambda layer: list(layer.parameters.values()),
        lambda layer: dict(layer.parameters),
        lambda layer: (parameter for parameter in layer.parameters.values()),
    ):
        layer = pair()
        set_gradients(layer, 0)
        AdamW(given(layer)).step()
        results.append(layer.parameters.store.values)
    assert_same_bits(results[1:], results[:1] * 4)
    layer = pair()
    before = layer.state_dict()
    set_gradients(layer, 0)
    name, parameter = next(iter(layer.parameters.items()))
    SGD([parameter]).step()
    assert [key for key, value in layer.state_dict().items() if (value != before[key]).any()] == [name]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            lambda layer: list(layer.parameters),
            "was given a str; expected a model, model.parameters, or a list of some",
        ),
        (lambda layer: list(layer.parameters.items()), "was given a tuple; expected"),
        (lambda layer: [{"params": []}], "was given a dict; .* rates of their own are given as groups="),
        (lambda layer: layer.state_dict(), "was given a ndarray"),
        (lambda layer: 3, "was given a int"),
        (lambda layer: [], "was given no parameters"),
        (lambda layer: [p for one in (layer, pair()) for p in one.parameters.values()], "belong to different models"),
    ],
)
def test_what_an_optimiser_cannot_train_is_named(given: Callable[[Layer], Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        AdamW(given(pair()))


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (AdamW, {"lr": -1.0}, "lr is -1.0; expected a number of at least 0"),
        (AdamW, {"lr": 10**400}, "lr is 1000000000000000000000000000000000000000; expected a number of at least 0"),
        (AdamW, {"lr": "1"}, "lr is '1'; expected a number of at least 0"),
        (SGD, {"lr": float("nan")}, "lr is nan; expected a number of at least 0"),
        (SGD, {"weight_decay": -0.1}, "weight_decay is -0.1; expected a number of at least 0"),
        (SGD, {"momentum": None}, "momentum is None; expected a number of at least 0"),
        (Adam, {"eps": [1e-8]}, "eps is [1e-08]; expected a number of at least 0"),
        (Adam, {"betas": (0.9, 1.0)}, "each of betas is 1.0; expected a number of at least 0 and below 1"),
        (Adam, {"betas": 0.9}, "betas are 0.9; expected two numbers of at least 0 and below 1"),
        (Adam, {"betas": (0.9,)}, "betas are (0.9,); expected two numbers of at least 0 and below 1"),
    ],
)
def test_options_out_of_range_are_refused(kind: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as raised:
        kind(pair(), **options)
    assert str(raised.value) == message


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("max_norm", [None, 1e-3, 1.0, 1e9])
def test_clipping_scales_all_gradients_to_the_global_norm(dtype: str, max_norm: float | None) -> None:
    layer = layers.Linear(300, 400).initialize(dtype=dtype)  # more than one piece of the sum
    set_gradients(layer, 0, scale=0.01)
    before = layer.parameters.store.gradients.astype("float64")
    norm = float(np.sqrt((before * before).sum()))
    returned = clip_gradients(layer.parameters.store, max_norm)
    after = layer.parameters.store.gradients
    assert returned.shape == ()
    assert returned.dtype == after.dtype == dtype
    assert float(returned) == pytest.approx(norm, rel=1e-6)
    factor = min(1.0, max_norm / norm) if max_norm else 1.0
    assert_close([after], [before * factor], 1e-5)
    if factor == 1.0:
        assert (after == before).all()
    else:
        assert float(np.linalg.norm(after.astype("float64"))) <= (max_norm or 0.0) * (1 + 1e-6)


def test_clipping_zero_gradients_leaves_zero() -> None:
    store = FlatStore(np.ones(5))
    assert float(clip_gradients(store, 1.0)) == 0.0
    assert not store.gradients.any()


class Ends(Layer):
    """The first and the last of three neighbours in one store."""

    def __init__(self, layers: list[Layer]) -> None:
        self.first, self.last = layers[0], layers[2]


def test_what_lies_between_the_parameters_of_a_model_is_frozen() -> None:
    vit = ViT(ViTConfig(img_size=4, patch_size=2, embed_dim=8, depth=3, num_heads=2, num_classes=3))
    frozen = vit.state_dict()
    ends = Ends(list(vit.blocks))
    set_gradients(vit, 0)
    AdamW(ends, lr=0.1).step()
    changed = {name for name, value in vit.state_dict().items() if (value != frozen[name]).any()}
    assert changed == {name for name in frozen if name.startswith(("blocks.0.", "blocks.2."))}


LAYERS = {
    "patch_embed.proj.weight": 0,
    "cls_token": 0,
    "pos_embed": 0,
    "blocks.0.attn.qkv.weight": 1,
    "blocks.1.mlp.fc2.bias": 2,
    "norm.weight": 2,
    "head.weight": 3,
}


@pytest.mark.parametrize("lr", [0.0, 0.5])
def test_the_rate_of_a_layer_is_a_power_of_the_layer_decay(lr: float) -> None:
    vit = ViT(ViTConfig(img_size=4, patch_size=2, embed_dim=4, depth=2, num_heads=2, num_classes=3), dtype="float64")
    optimizer = SGD(vit, lr=lr, momentum=0.0, layer_decay=0.1)
    before = vit.state_dict()
    for parameter in vit.parameters.values():
        parameter.grad[...] = 1.0
    optimizer.lr = 0.5
    optimizer.step()
    for name, number in LAYERS.items():
        change = before[name] - vit.parameters[name].value
        np.testing.assert_allclose(change, 0.5 * 0.1 ** (3 - number), rtol=1e-9)


def test_without_a_norm_of_all_tokens_the_head_follows_the_last_block() -> None:
    vit = ViT(ViTConfig(img_size=4, patch_size=2, embed_dim=4, depth=2, num_heads=2, global_pool="avg"))
    rates = {group.name: group.lr for group in parameter_groups(vit, 1.0, 0.0, layer_decay=0.5)}
    assert [rates[name] for name in ("cls_token", "blocks.0.norm1.bias", "blocks.1.norm1.bias")] == [0.125, 0.25, 0.5]
    assert rates["fc_norm.weight"] == rates["head.bias"] == 1.0


@pytest.mark.parametrize("layer_decay", [0.0, -1.0, 1.5, float("nan")])
def test_a_layer_decay_out_of_range_is_refused(layer_decay: float) -> None:
    with pytest.raises(UserError, match=r"layer_decay is .*above 0 and at most 1"):
        AdamW(pair(), layer_decay=layer_decay)


def test_the_parameters_of_a_pattern_are_trained_alone() -> None:
    layer = pair()
    set_gradients(layer, 1)
    before = layer.state_dict()
    SGD(layer.parameters.matching("w*")).step()
    assert_same_bits([layer.bias.value], [before["bias"]])
    assert (layer.weight.value != before["weight"]).all()


def test_a_pattern_without_a_parameter_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(UserError, match="'weights' matches no parameter; did you mean 'weight'"):
        pair().parameters.matching("bias", "weights")
