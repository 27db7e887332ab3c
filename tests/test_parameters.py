"""Parameters of a model: names, initial values, memory layout, and how they are saved, shared and copied."""

from __future__ import annotations

import copy
import gc
import itertools
import math
import pickle
import weakref
from typing import Any

import numpy as np
import pytest
from bare_vit import SMALL, images, model, shaken
from contract import assert_close, assert_same_bits, normal
from forks import ended_well, forked, needs_fork

from minivit import SGD, Layer, Parameter, UserError, ViT, layers
from minivit.arrays import Array
from minivit.arrays.shared import FORKS, is_shared
from minivit.nn.store import ALIGNMENT, FlatStore


def test_parameter_names_and_their_order_are_those_of_timm() -> None:
    parts = ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
    blocks = [f"blocks.{i}.{part}" for i in range(3) for part in parts]

    def names(*layers: str) -> list[str]:
        return [f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")]

    assert list(model().parameters) == [
        "cls_token",
        "pos_embed",
        *names("patch_embed.proj", *blocks, "norm", "head"),
    ]
    pooled = model(global_pool="avg", class_token=False)
    assert list(pooled.parameters) == ["pos_embed", *names("patch_embed.proj", *blocks, "fc_norm", "head")]


@pytest.mark.parametrize("init", ["timm", "jax"])
def test_layers_never_start_as_copies_of_one_another(init: str) -> None:
    values = {name: parameter.value for name, parameter in model(init=init).parameters.items()}
    random = {name: value for name, value in values.items() if len(np.unique(value)) > 1}
    assert sum(name.endswith("weight") for name in random) >= 13
    for one, other in itertools.combinations(random, 2):
        if values[one].shape == values[other].shape:
            assert not np.isclose(values[one], values[other], rtol=1e-3, atol=0).any(), (one, other)
    q, k, v = np.split(values["blocks.0.attn.qkv.weight"], 3, axis=1)
    assert not any(np.isclose(one, other).any() for one, other in ((q, k), (k, v), (q, v)))


@pytest.mark.parametrize("init", ["timm", "jax"])
def test_no_two_register_tokens_are_initialised_alike(init: str) -> None:
    registers = model(init=init, reg_tokens=3).parameters["reg_token"].value[0]
    assert len(np.unique(registers, axis=0)) == 3


def test_initial_values_depend_on_the_seed_and_the_name_alone() -> None:
    one, deeper = model().state_dict(), model(depth=5).state_dict()
    assert all((deeper[name] == value).all() for name, value in one.items())
    other = ViT(SMALL, seed=4, dtype="float64").state_dict()
    assert not (other["blocks.1.mlp.fc1.weight"] == one["blocks.1.mlp.fc1.weight"]).any()
    assert (model("float32").state_dict()["head.weight"] == one["head.weight"].astype("float32")).all()


WIDE: dict[str, Any] = {"embed_dim": 96, "num_heads": 3, "depth": 1, "num_classes": 101}


def test_timm_initialisation_has_its_deviations() -> None:
    vit = model(**WIDE, init="timm")
    deviations = {name: float(p.value.std()) for name, p in vit.parameters.items()}
    for name in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"):
        assert deviations[f"blocks.0.{name}.weight"] == pytest.approx(0.02, rel=0.05)
        assert deviations[f"blocks.0.{name}.bias"] == 0
    assert deviations["pos_embed"] == pytest.approx(0.02, rel=0.2)
    assert deviations["head.weight"] == pytest.approx(0.02, rel=0.05)
    assert 0 < deviations["cls_token"] < 1e-5
    bound = 1 / math.sqrt(2 * 3 * 3)
    for kind in ("weight", "bias"):
        value = vit.parameters[f"patch_embed.proj.{kind}"].value
        assert 0.9 * bound < np.abs(value).max() <= bound
    assert deviations["patch_embed.proj.weight"] == pytest.approx(bound / math.sqrt(3), rel=0.05)


def test_jax_initialisation_has_its_deviations() -> None:
    vit = model(**WIDE, init="jax")
    D, F = 96, 384
    for name, out, fan in (
        ("attn.qkv", 3 * D, D + D),
        ("attn.proj", D, D + D),
        ("mlp.fc1", F, D + F),
        ("mlp.fc2", D, F + D),
    ):
        value, bound = vit.parameters[f"blocks.0.{name}.weight"].value, math.sqrt(6 / fan)
        assert value.shape[1] == out
        assert 0.99 * bound < np.abs(value).max() <= bound
        assert value.std() == pytest.approx(bound / math.sqrt(3), rel=0.05)
    patches = vit.parameters["patch_embed.proj.weight"].value
    assert patches.std() == pytest.approx(1 / math.sqrt(18), rel=0.05)
    assert np.abs(patches).max() <= 2 / (0.8796 * math.sqrt(18))
    assert 0 < np.abs(vit.parameters["blocks.0.mlp.fc1.bias"].value).max() < 1e-5
    for name in ("patch_embed.proj.bias", "blocks.0.attn.qkv.bias", "head.weight", "head.bias", "cls_token"):
        assert not vit.parameters[name].value.any()
    assert vit.parameters["pos_embed"].value.std() == pytest.approx(0.02, rel=0.2)


@pytest.mark.parametrize("init", ["timm", "jax"])
def test_norms_start_as_one_and_zero(init: str) -> None:
    for name, parameter in model(init=init).parameters.items():
        if "norm" in name:
            assert (parameter.value == (1 if name.endswith("weight") else 0)).all()


def test_only_matrices_decay() -> None:
    for name, parameter in model().parameters.items():
        assert parameter.decay == (name.endswith("weight") and "norm" not in name), name


def test_views_start_at_multiples_of_256_bytes_and_gaps_are_zero() -> None:
    for dtype in ("float32", "float64"):
        vit = shaken(model(dtype))
        logits, cache = vit.forward(images(dtype=dtype))
        vit.backward(normal(logits), cache)
        store, used = vit.parameters.store, np.zeros(vit.parameters.store.values.size, bool)
        for parameter in vit.parameters.values():
            assert parameter.span.start * store.values.itemsize % ALIGNMENT == 0
            assert not used[parameter.span].any()
            used[parameter.span] = True
            assert np.shares_memory(parameter.value, store.values)
            assert np.shares_memory(parameter.grad, store.gradients)
        assert store.values.dtype == store.gradients.dtype == dtype
        assert not store.values[~used].any()
        assert not store.gradients[~used].any()
        assert used.sum() == vit.parameters.count


def test_gradients_are_allocated_on_first_use() -> None:
    vit = model()
    vit(images())
    assert not vit.parameters.store.has_gradients
    assert not vit.parameters["head.bias"].grad.any()
    assert vit.parameters.store.has_gradients


def test_value_and_grad_cannot_be_rebound() -> None:
    parameter = model().parameters["head.bias"]
    with pytest.raises(AttributeError, match=r"write into the value: head\.bias\.value\[\.\.\.\] = array"):
        parameter.value = np.zeros(7)
    advice = r"add to the gradient: head\.bias\.add_grad\(array\); to set it: head\.bias\.grad\[\.\.\.\] = array"
    with pytest.raises(AttributeError, match=advice):
        parameter.grad = np.zeros(7)
    parameter.value += 2.0
    parameter.grad -= 1.0
    assert (parameter.value == 2.0).all()
    assert (parameter.grad == -1.0).all()


def test_a_gradient_of_another_shape_is_refused() -> None:
    parameter = model().parameters["head.bias"]
    with pytest.raises(ValueError, match=r"head.bias: a gradient of shape \(1, 7\) was added to a \(7,\) parameter"):
        parameter.add_grad(np.zeros((1, 7)))


def test_a_parameter_without_a_value_says_what_to_do() -> None:
    with pytest.raises(UserError, match=r"no value yet: call initialize\(\)"):
        layers.Linear(3, 5)(np.zeros((2, 3)))


def test_a_replica_shares_values_and_has_gradients_of_its_own() -> None:
    vit = model()
    replica = vit.replica()
    vit.parameters["head.bias"].value[...] = 5.0
    assert (replica.parameters["head.bias"].value == 5.0).all()
    assert (replica(images()) == vit(images())).all()
    logits, cache = replica.forward(images())
    replica.backward(normal(logits), cache)
    assert replica.parameters["head.bias"].grad.any()
    assert not vit.parameters["head.bias"].grad.any()


def test_a_part_of_a_model_sees_the_same_memory() -> None:
    vit = model()
    vit.blocks[1].parameters["norm1.bias"].value[...] = 2.0
    assert (vit.parameters["blocks.1.norm1.bias"].value == 2.0).all()


def test_a_state_dict_makes_the_same_model_and_is_a_copy() -> None:
    one, other = shaken(model()), model(init="jax")
    state = one.state_dict()
    other.load_state_dict(state)
    assert (one(images()) == other(images())).all()
    state["head.bias"][...] = 9.0
    assert not (one.parameters["head.bias"].value == 9.0).any()
    assert not (other.parameters["head.bias"].value == 9.0).any()


def test_the_state_of_another_model_is_refused_and_changes_nothing() -> None:
    vit = model()
    before = vit.state_dict()
    state = shaken(model()).state_dict()
    missing = {name: value for name, value in state.items() if "blocks.2" not in name}
    refusals: list[tuple[dict[str, Array], str]] = [
        (missing, r"12 missing \(blocks.2.norm1.weight, blocks.2.norm1.bias, blocks.2.attn.qkv.weight, ...\)$"),
        (state | {"dist_token": np.zeros(3)}, r"belong to another model: 1 unknown \(dist_token\)$"),
        (state | {"head.bias": np.zeros(10)}, r"head.bias has shape \(10,\); this model has \(7,\)"),
        (state | {"patch_embed.proj.weight": np.zeros((6, 3, 2, 3))}, "timm's layout; minivit.load_model reads them"),
    ]
    anything: Any = "model.pt"
    refusals.append((anything, r"was given a str; expected a mapping .* \(files are read by minivit.load_model\)"))
    for foreign, message in refusals:
        with pytest.raises(UserError, match=message):
            vit.load_state_dict(foreign)
    assert all((vit.state_dict()[name] == value).all() for name, value in before.items())


def test_astype_copies() -> None:
    vit = shaken(model())
    low = vit.astype("float32")
    assert low(images(dtype="float32")).dtype == np.float32
    assert_close([low(images(dtype="float32"))], [vit(images())], 1e-5)
    low.parameters["head.bias"].value[...] = 3.0
    assert not (vit.parameters["head.bias"].value == 3.0).any()
    assert (vit.to("numpy")(images()) == vit(images())).all()


def test_an_initialiser_of_the_wrong_shape_is_named() -> None:
    class Wrong(Layer):
        def __init__(self) -> None:
            self.weight = Parameter((3,), lambda generator, shape: np.zeros(5))

    with pytest.raises(ValueError, match=r"weight: its initialiser returned shape \(5,\); expected \(3,\)"):
        Wrong().initialize()


def test_a_store_without_parameters_is_allowed() -> None:
    assert layers.GELU().initialize().parameters.count == 0
    assert isinstance(layers.GELU().parameters.store, FlatStore)


class Holder(Layer):
    """A layer with one attribute of any type."""

    def __init__(self, held: Any) -> None:
        self.held = held


def test_layers_are_found_in_lists_tuples_and_dicts() -> None:
    def linear() -> layers.Linear:
        return layers.Linear(2, 3)

    holder = Holder([linear(), (linear(), {"a": linear()})]).initialize(dtype="float64")
    weights = ["held.0.weight", "held.1.0.weight", "held.1.1.a.weight"]
    assert [name for name in holder.parameters if name.endswith("weight")] == weights
    replica = holder.replica()
    assert replica.held[1][1]["a"] is not holder.held[1][1]["a"]
    assert np.shares_memory(replica.held[1][1]["a"].weight.value, holder.held[1][1]["a"].weight.value)


def test_layers_that_were_initialised_one_by_one_come_together_with_their_values() -> None:
    holder = Holder([layers.Linear(2, 3).initialize(seed) for seed in (1, 2)])
    values = [part.weight.value.copy() for part in holder.held]
    assert len(holder.parameters) == 4
    assert all(parameter.store is holder.parameters.store for parameter in holder.parameters.values())
    assert_same_bits([part.weight.value for part in holder.held], values)


def test_a_replica_does_not_inherit_the_cached_parameters_of_a_part() -> None:
    vit = model()
    asked = vit.blocks[0].parameters
    for copied in (vit.replica(), vit.astype("float32")):
        part = copied.blocks[0].parameters
        assert part.store is copied.parameters.store
        assert part.store is not asked.store


def test_the_vectors_of_a_host_model_are_shared_and_those_of_its_copies_too() -> None:
    vit = model()
    vit.head.bias.grad[...] = 2.0
    pair = vit, vit.replica()
    copied, replica = copy.deepcopy(pair)
    pickled = pickle.loads(pickle.dumps(vit.parameters.store))
    for store in (vit.parameters.store, copied.parameters.store, pickled):
        assert is_shared(store.values) == is_shared(store.gradients) == FORKS
        assert_same_bits([store.values, store.gradients], [vit.parameters.store.values, vit.parameters.store.gradients])
    assert not np.shares_memory(copied.parameters.store.values, vit.parameters.store.values)
    assert not np.shares_memory(pickled.values, vit.parameters.store.values)
    assert np.shares_memory(copied.head.bias.value, replica.head.bias.value)
    assert not is_shared(np.ones(3)[1:])


@needs_fork
def test_a_forked_process_has_a_model_of_its_own() -> None:
    """It starts with the values of its parent, and neither process writes to the vectors of the other."""
    vit = model()
    vit.head.bias.grad[...] = 1.0
    replica = vit.replica()
    before = vit.parameters.store.values.copy()

    def child() -> None:
        assert_same_bits([vit.parameters.store.values], [before])
        SGD(vit, lr=1.0).step()
        assert vit.head.bias.value[0] == before[vit.head.bias.span][0] - 1.0
        assert np.shares_memory(replica.head.bias.value, vit.head.bias.value)
        assert is_shared(vit.parameters.store.values), "its own workers view its vectors"

    assert ended_well(forked(child))
    assert_same_bits([vit.parameters.store.values], [before])


def test_the_memory_of_a_model_is_free_as_soon_as_it_is_dropped() -> None:
    vit = model()
    logits, cache = vit.forward(images())
    vit.backward(normal(logits), cache)
    replica = vit.replica()
    store = weakref.ref(vit.parameters.store)
    gc.disable()
    try:
        del vit, replica, cache
        assert store() is None
    finally:
        gc.enable()
