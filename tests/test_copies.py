"""Models, optimisers and engines are pickled, copied and handed to other processes."""

from __future__ import annotations

import copy
import multiprocessing
import pickle
from typing import Any

import numpy as np
import pytest
from bare_vit import images, model, shaken
from contract import assert_same_bits

from minivit import SGD, Adam, AdamW, Engine, Key, Layer, Muon, Parameter, UserError, ViT, create_model, layers
from minivit.arrays import Array

X, LABELS = images(), np.array([1, 5])


class Scale(Layer):
    """A layer of a user, whose initialiser is a lambda."""

    def __init__(self) -> None:
        self.weight = Parameter((6,), lambda generator, shape: generator.normal(size=shape))

    def forward(self, x: Array, rng: Any = None, keep: bool = True) -> tuple[Array, Any]:
        return x * self.weight.value, x if keep else None


def pickled(thing: Any) -> Any:
    return pickle.loads(pickle.dumps(thing))


@pytest.mark.parametrize("copied", [pickled, copy.deepcopy])
@pytest.mark.parametrize("init", ["jax", "timm"])
def test_a_copy_of_a_model_answers_the_same_and_has_values_of_its_own(copied: Any, init: str) -> None:
    vit = shaken(model(init=init))
    other = copied(vit)
    assert_same_bits([other(X)], [vit(X)])
    assert list(other.parameters) == list(vit.parameters)
    other.head.bias.value[...] = 9.0
    assert (vit.head.bias.value != 9.0).all()
    other.initialize(seed=3, dtype="float64")
    assert_same_bits(list(other.state_dict().values()), list(model(init=init).state_dict().values()))


@pytest.mark.parametrize("copied", [pickled, copy.deepcopy])
@pytest.mark.parametrize("make", [SGD, Adam, AdamW, Muon])
def test_a_copied_optimiser_goes_on_with_the_copied_model(copied: Any, make: Any) -> None:
    pair: tuple[ViT, Any] = model(), None
    pair = pair[0], make(pair[0], lr=0.1)
    for _ in range(2):
        results = []
        for vit, optimizer in (copied(pair), pair):
            Engine(vit, 1).loss_and_gradients(X, LABELS)
            optimizer.step()
            results.append(vit.parameters.store.values.copy())
        assert_same_bits(results[:1], results[1:])


@pytest.mark.parametrize("copied", [pickled, copy.deepcopy])
def test_a_copied_engine_follows_the_copied_model(copied: Any) -> None:
    vit = shaken(model())
    engine = Engine(vit, 2, 1)
    engine.loss_and_gradients(X, LABELS)
    other = copied(engine)
    assert other.model is not vit
    other.model.head.bias.value[...] += 1.0
    assert_same_bits([other.predict(X)], [Engine(other.model, 1, 1).predict(X)])
    engine.close()
    other.close()


def test_an_initialiser_that_cannot_be_pickled_stays_behind() -> None:
    layer = Scale().initialize(seed=4, dtype="float64")
    other = pickled(layer)
    assert_same_bits([other(X[..., :1] + np.zeros(6))], [layer(X[..., :1] + np.zeros(6))])
    assert other.astype("float32").weight.value.dtype == np.float32
    with pytest.raises(UserError, match="the initialiser of weight could not be pickled"):
        other.initialize()
    assert_same_bits([copy.deepcopy(layer).initialize(4, "float64").weight.value], [layer.weight.value])
    with pytest.raises(UserError, match=r"a parameter of shape \(6,\) has no value yet and an initialiser that cannot"):
        pickle.dumps(Scale())


def test_a_shallow_copy_of_a_layer_views_the_same_values() -> None:
    layer = layers.Linear(2, 3).initialize()
    other = copy.copy(layer)
    other.weight.value[...] = 5.0
    assert (layer.weight.value == 5.0).all()
    layer.bias = layers.Linear(2, 3).initialize().bias
    assert other.parameters["bias"] is not layer.parameters["bias"]


def test_a_class_that_is_pickled_by_value_needs_nothing_that_cannot_be_pickled() -> None:
    """So cloudpickle, and joblib with it, pickle a layer that is defined in a notebook."""
    for function in (Scale.forward, layers.Linear.backward):
        names = {name for name in function.__code__.co_names if name in function.__globals__}
        assert all(pickle.dumps(function.__globals__[name]) for name in names)


def in_another_process(vit: ViT, optimizer: Any, queue: Any) -> None:
    optimizer.lr = 0.5
    Engine(vit, 1).loss_and_gradients(np.ones((1, 8, 8, 1), np.float32), np.array([3]))
    optimizer.step()
    queue.put((vit, Key(1, 2, np.arange(3))))


def test_a_model_crosses_to_a_new_process_and_back() -> None:
    context = multiprocessing.get_context("spawn")
    vit = create_model("vit_micro_patch4_8", depth=1)
    queue = context.Queue()
    process = context.Process(target=in_another_process, args=(vit, SGD(vit), queue))
    process.start()
    other, key = queue.get(timeout=60)
    process.join()
    Engine(vit, 1).loss_and_gradients(np.ones((1, 8, 8, 1), np.float32), np.array([3]))
    SGD(vit, lr=0.5).step()
    np.testing.assert_allclose(other.head.bias.value, vit.head.bias.value, atol=1e-6)
    assert vit.head.bias.value.any()
    assert key.step == 2
