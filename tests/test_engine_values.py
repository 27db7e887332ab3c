"""An engine computes with the values that its model has at each call, and sets the gradients of no other."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from contract import assert_close, assert_same_bits
from small_vit import CONFIG, batch, model, step

from minivit import SGD, Engine, RunError, UserError, ViT, ViTConfig
from minivit.arrays import Array
from minivit.layers import Linear


def halve(x: Array) -> None:
    x *= 0.5


def optimise(vit: ViT) -> None:
    SGD(vit, lr=0.5, weight_decay=0.5).step()


WRITERS: dict[str, Callable[[ViT, ViT], None]] = {
    "load_state_dict": lambda vit, _: vit.load_state_dict({k: 0.5 * v for k, v in vit.state_dict().items()}),
    "the flat vector": lambda vit, _: halve(vit.parameters.store.values),
    "a value": lambda vit, _: halve(vit.head.weight.value),
    "an optimiser": lambda vit, _: optimise(vit),
    "a replica": lambda _, replica: halve(replica.head.weight.value),
    "a replica's optimiser": lambda _, replica: optimise(replica),
}


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("on", ["the model", "a replica"])
def test_values_written_between_two_calls_reach_all_workers(writer: str, on: str, members: str) -> None:
    vit, (images, _, _) = model(), batch()
    with_replica = "replica" in writer or on == "a replica"
    replica = vit.replica() if with_replica else vit
    with Engine(replica if on == "a replica" else vit, 2, 2) as engine:
        before = engine.predict(images)
        for _ in range(2):
            WRITERS[writer](vit, replica)
            after = engine.predict(images)
            assert np.abs(after - before).max() > 1e-3
            assert_same_bits([after], [Engine(vit, 1, 2).predict(images)])
            before = after


def test_a_view_that_was_held_from_the_beginning_can_be_written_to() -> None:
    """A step by hand on the flat vectors reaches all workers, at every step."""
    images, labels, key = batch()
    results = []
    for threads in (1, 2):
        vit = ViT(CONFIG, seed=3)
        values, gradients = vit.parameters.store.values, vit.parameters.store.gradients
        with Engine(vit, threads, 2) as engine:
            for _ in range(3):
                loss = engine.loss_and_gradients(images, labels, key)
                values -= 0.1 * gradients
        results.append([loss, values])
    assert_same_bits(*results)


def test_a_prediction_leaves_the_gradients_alone() -> None:
    vit, (images, labels, key) = model(), batch()
    with Engine(vit, 2, 2) as engine:
        engine.loss_and_gradients(images[:4], labels[:4], key[:4])
        gradients = vit.parameters.store.gradients.copy()
        assert gradients.any()
        engine.predict(images)  # for more images than before, so by a new worker pool
        assert_same_bits([vit.parameters.store.gradients], [gradients])


def watching(vit: ViT, passes: str) -> list[str]:
    """Note whenever the pass of one layer is called."""
    layer, calls = vit.blocks[1].mlp.fc1, []
    original = getattr(layer, passes)

    def noting(*args: Any, **kwargs: Any) -> Any:
        calls.append(passes)
        return original(*args, **kwargs)

    setattr(layer, passes, noting)
    return calls


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("passes", ["forward", "backward"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_watched_model_predicts_and_does_not_train(threads: int, passes: str, when: str) -> None:
    """An engine computes on copies; what watches stays with the model."""
    images, labels, key = batch()
    vit = model()
    expected = Engine(vit, 1, 2).predict(images)
    calls = watching(vit, passes) if when == "before" else []
    with Engine(vit, threads, 2) as engine:
        if when == "after":
            engine.predict(images)
            calls = watching(vit, passes)
        assert_close([engine.predict(images)], [expected], 1e-5)
        assert len(calls) == (7 if passes == "forward" else 0)
        vit.load_state_dict({name: 0 * value for name, value in vit.state_dict().items()})
        assert not engine.predict(images).any()
        with pytest.raises(UserError, match=r"backward pass of blocks.1.mlp.fc1 was replaced on the object"):
            engine.loss_and_gradients(images, labels, key)


@pytest.mark.parametrize("threads", [1, 2])
def test_an_engine_made_under_watch_works_when_no_layer_is_watched_any_more(threads: int) -> None:
    images, labels, key = batch()
    expected = [*step(model(), 1, 2), Engine(model(), 1, 2).predict(images)]
    vit = model()
    watching(vit, "forward")
    with Engine(vit, threads, 2) as engine:
        del vit.blocks[1].mlp.fc1.forward
        loss = engine.loss_and_gradients(images, labels, key, 0.1)
        assert_same_bits([loss, vit.parameters.store.gradients, engine.predict(images)], expected)


@pytest.mark.parametrize("threads", [1, 2])
def test_an_engine_does_not_compute_two_things_at_once(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its arrays are those of one call; what watches a layer, or handles a signal, is in the midst of it."""
    images, _, _ = batch()
    vit = model()
    engine = Engine(vit, threads, 2)
    expected = engine.predict(images)

    def again(*args: Any, **kwargs: Any) -> Any:
        return engine.predict(images)

    with monkeypatch.context() as patch:
        patch.setattr(vit, "forward", again)
        with pytest.raises(RunError, match="this engine was called while it computes"):
            engine.predict(images)
    assert_same_bits([engine.predict(images)], [expected])
    engine.close()


@pytest.mark.parametrize("threads", [1, 2])
def test_an_engine_has_the_layers_of_its_beginning(threads: int) -> None:
    images, _, _ = batch()
    vit = model()
    with Engine(vit, threads, 2) as engine:
        expected = engine.predict(images[:4])
        vit.blocks[0].norm1.eps = 1.0
        assert np.abs(Engine(vit, 1, 2).predict(images[:4]) - expected).max() > 1e-4
        assert_same_bits([engine.predict(images)[:4]], [expected])
        vit.initialize(seed=9)
        with pytest.raises(UserError, match="the model was initialised anew since this engine was made"):
            engine.predict(images)


def test_a_layer_put_in_after_initialisation_is_refused() -> None:
    vit = model()
    vit.head = Linear(12, 5)
    with pytest.raises(RuntimeError, match="were initialised one by one and share no store"):
        Engine(vit)


def test_a_deep_copy_is_a_model_of_its_own() -> None:
    """Its layers look at its own flat vectors."""
    images, _, _ = batch()
    vit = model()
    expected = step(vit, 2, 3)
    twin = copy.deepcopy(vit)
    assert_same_bits(step(twin, 2, 3), expected)
    twin.parameters.store.values[...] = 0
    assert not twin(images).any()
    assert not twin.head.weight.value.any()
    assert_same_bits(step(vit, 2, 3), expected)
    assert np.shares_memory(twin.head.weight.grad, twin.parameters.store.gradients)


def test_values_outside_of_shared_memory_reach_all_workers() -> None:
    """The workers of such a replica are threads."""
    images, _, _ = batch()
    vit = model()
    replica = vit.replica(vit.parameters.store.values.copy())
    with Engine(replica, 2, 2) as engine:
        before = engine.predict(images)
        halve(replica.head.weight.value)
        assert np.abs(engine.predict(images) - before).max() > 1e-3
        assert_same_bits([engine.predict(images)], [Engine(replica, 1, 2).predict(images)])


def test_gradients_forgotten_before_a_step_do_not_take_its_own_along() -> None:
    images, labels, key = batch()
    vit = model()
    with Engine(vit, 2, 3) as engine:
        engine.loss_and_gradients(images, labels, key)
        vit.parameters.store.forget_gradients()
        engine.loss_and_gradients(images, labels, key)
    expected = vit.parameters.store.gradients.copy()
    assert vit.head.weight.grad.any()
    assert_same_bits([vit.parameters.store.gradients], [expected])


def test_strided_images_give_the_same_bits_for_any_number_of_threads() -> None:
    """Where the whole image is one patch, it reaches the first product as it lies in memory."""
    wide = np.random.default_rng(0).standard_normal((6, 9, 9, 6), dtype=np.float32)
    vit = ViT(ViTConfig(img_size=9, patch_size=9, embed_dim=12, depth=1, num_heads=3, num_classes=7))
    results = []
    for threads in (1, 2):
        with Engine(vit, threads, 1) as engine:
            loss = engine.loss_and_gradients(wide[..., ::2], np.arange(6))
            results.append([loss, vit.parameters.store.gradients.copy(), engine.predict(wide[..., ::2])])
    assert_same_bits(*results)
