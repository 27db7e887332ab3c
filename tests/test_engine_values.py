"""An engine computes with the values that its model has at each call, and changes the gradients of no other."""

from __future__ import annotations

import copy
import signal
import threading
from collections.abc import Callable
from contextlib import ExitStack

import numpy as np
import pytest
from contract import assert_same_bits
from forks import ended_well, forked, needs_fork
from small_vit import CONFIG, batch, model, step

from minivit import SGD, Engine, Layer, RunError, UserError, ViT, ViTConfig, initializers, ops
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
def test_values_written_between_two_calls_reach_all_workers(writer: str, on: str, worker_kind: str) -> None:
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


def test_values_can_be_written_through_a_view_from_before_the_first_step() -> None:
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
        engine.predict(images)  # more images than before need a new worker pool
        assert_same_bits([vit.parameters.store.gradients], [gradients])


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("when", ["before", "after"])
def test_an_engine_runs_hooks_in_the_caller(threads: int, when: str) -> None:
    """Hooks see every micro-batch in order; the bits are those of the references, and afterwards those of before."""
    images, labels, key = batch()
    vit = model()
    expected = [*step(model(), 1, 2), Engine(model(), 1, 2).predict(images)]
    with ops.reference_only():
        reference = [*step(model(), 1, 2), Engine(model(), 1, 2).predict(images)]
    layer = vit.blocks[1].mlp.fc1
    seen: list[tuple[str, Layer, int]] = []

    def forward(layer: Layer, x: Array, y: Array) -> None:
        seen.append(("forward", layer, len(y)))

    def backward(layer: Layer, dx: Array, dy: Array) -> None:
        seen.append(("backward", layer, len(dy)))

    def results(engine: Engine) -> list[Array]:
        loss = engine.loss_and_gradients(images, labels, key, 0.1)
        return [loss, vit.parameters.store.gradients.copy(), engine.predict(images)]

    with ExitStack() as hooks:
        if when == "before":
            hooks.enter_context(layer.register_forward_hook(forward))
            hooks.enter_context(layer.register_backward_hook(backward))
        with Engine(vit, threads, 2) as engine:
            if when == "after":
                assert_same_bits(results(engine), expected)
                hooks.enter_context(layer.register_forward_hook(forward))
                hooks.enter_context(layer.register_backward_hook(backward))
            assert_same_bits(results(engine), reference)
            sizes = [2, 2, 2, 2, 2, 2, 1]
            step_seen = [(name, layer, size) for size in sizes for name in ("forward", "backward")]
            assert seen == step_seen + [("forward", layer, size) for size in sizes]
            hooks.close()
            assert_same_bits(results(engine), expected)
            assert len(seen) == 21


@pytest.mark.parametrize("threads", [1, 2])
def test_a_hook_changes_what_an_engine_computes(threads: int) -> None:
    images, labels, key = batch()
    vit = model()
    with Engine(vit, threads, 2) as engine:
        with vit.head.register_forward_hook(lambda layer, x, y: 0 * y):
            assert not engine.predict(images).any()
            engine.loss_and_gradients(images, labels, key)
        bias = vit.head.bias.grad.copy()
        with vit.head.register_backward_hook(lambda layer, dx, dy: 0 * dx):
            engine.loss_and_gradients(images, labels, key)
        assert not vit.blocks[0].mlp.fc1.weight.grad.any()
        assert not np.array_equal(vit.head.bias.grad, bias)


@pytest.mark.parametrize("threads", [1, 2])
def test_a_hook_may_close_the_engine(threads: int) -> None:
    images, labels, key = batch()
    vit = model()
    with Engine(vit, threads, 2) as engine:
        expected = engine.loss_and_gradients(images, labels, key)
        with ops.reference_only():
            loss = engine.loss_and_gradients(images, labels, key)
            gradients = vit.parameters.store.gradients.copy()

        def close(layer: Layer, x: Array, y: Array) -> None:
            engine.close()

        for _ in range(2):
            with vit.register_forward_hook(close):
                assert_same_bits([engine.loss_and_gradients(images, labels, key)], [loss])
            assert_same_bits([vit.parameters.store.gradients], [gradients])
        assert_same_bits([engine.loss_and_gradients(images, labels, key)], [expected])


@pytest.mark.parametrize("threads", [1, 2])
def test_an_engine_does_not_compute_two_things_at_once(threads: int) -> None:
    """A hook or a signal handler may call the engine during a call, whose arrays must not be overwritten."""
    images, _, _ = batch()
    vit = model()
    engine = Engine(vit, threads, 2)
    expected = engine.predict(images)

    def again(layer: Layer, x: Array, y: Array) -> Array:
        return engine.predict(images)

    with vit.register_forward_hook(again), pytest.raises(RunError, match="this engine was called while it computes"):
        engine.predict(images)
    assert_same_bits([engine.predict(images)], [expected])
    engine.close()


@pytest.mark.parametrize("threads", [1, 2])
def test_an_engine_follows_the_layers_of_its_model(threads: int) -> None:
    """Also where an attribute is set, a block is removed from the list, or all values are initialised anew."""
    images, labels, _ = batch()
    vit = model()
    with Engine(vit, threads, 2) as engine:
        before = engine.predict(images)
        for change in (
            lambda: setattr(vit.blocks[0].norm1, "eps", 1.0),
            lambda: vit.blocks.pop(),
            lambda: vit.blocks.append(vit.blocks[0]),
            lambda: setattr(vit, "head", Linear(12, 5, initializers.normal(0.1)).initialize(seed=5)),
            lambda: vit.initialize(seed=9),
        ):
            change()
            after, expected = engine.predict(images), Engine(vit, 1, 2).predict(images)
            assert after.shape != before.shape or np.abs(after - before).max() > 1e-4
            assert_same_bits([after], [expected])
            engine.loss_and_gradients(images, labels % 5)
            gradients = vit.parameters.store.gradients.copy()
            Engine(vit, 1, 2).loss_and_gradients(images, labels % 5)
            assert_same_bits([gradients], [vit.parameters.store.gradients])
            before = after


def test_a_layer_put_in_without_values_is_refused() -> None:
    vit = model()
    vit.head = Linear(12, 5)
    with pytest.raises(UserError, match=r"head.weight has no value yet: call initialize\(dtype='float32'\)"):
        Engine(vit)


def test_a_deep_copy_is_a_model_of_its_own() -> None:
    """Its layers view its own flat vectors."""
    images, _, _ = batch()
    vit = model()
    expected = step(vit, 2, 3)
    copied = copy.deepcopy(vit)
    assert_same_bits(step(copied, 2, 3), expected)
    copied.parameters.store.values[...] = 0
    assert not copied(images).any()
    assert not copied.head.weight.value.any()
    assert_same_bits(step(vit, 2, 3), expected)
    assert np.shares_memory(copied.head.weight.grad, copied.parameters.store.gradients)


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


def test_forgetting_gradients_before_a_step_does_not_clear_those_of_the_step() -> None:
    images, labels, key = batch()
    vit = model()
    with Engine(vit, 2, 3) as engine:
        engine.loss_and_gradients(images, labels, key)
        expected = vit.parameters.store.gradients.copy()
        vit.parameters.store.forget_gradients()
        engine.loss_and_gradients(images, labels, key)
    assert vit.head.weight.grad.any()
    assert_same_bits([vit.parameters.store.gradients], [expected])


def test_strided_images_give_the_same_bits_for_any_number_of_threads() -> None:
    """If the whole image is one patch, the first product reads it without a copy, with its strides."""
    wide = np.random.default_rng(0).standard_normal((6, 9, 9, 6), dtype=np.float32)
    vit = ViT(ViTConfig(img_size=9, patch_size=9, embed_dim=12, depth=1, num_heads=3, num_classes=7))
    results = []
    for threads in (1, 2):
        with Engine(vit, threads, 1) as engine:
            loss = engine.loss_and_gradients(wide[..., ::2], np.arange(6))
            results.append([loss, vit.parameters.store.gradients.copy(), engine.predict(wide[..., ::2])])
    assert_same_bits(*results)


def test_a_copy_of_an_engine_starts_workers_of_its_own() -> None:
    images, labels, key = batch()
    with Engine(model(), 2, 2) as engine:
        loss = engine.loss_and_gradients(images, labels, key)
        with copy.deepcopy(engine) as other:
            assert_same_bits([other.loss_and_gradients(images, labels, key)], [loss])
            other.model.parameters["head.bias"].value[...] += 1.0
            assert (other.predict(images) != engine.predict(images)).any()
        del other
        assert_same_bits([engine.loss_and_gradients(images, labels, key)], [loss])


def test_a_model_that_an_engine_refuses_is_refused_at_every_call() -> None:
    """Otherwise the second call would compute with the old model."""
    vit, (images, labels, _) = model(), batch()
    engine = Engine(vit, 1, precision="float32")
    engine.predict(images)
    vit.initialize(seed=9, dtype="float64")
    for _ in range(2):
        with pytest.raises(UserError, match="precision float32 is for models of float32, and this one is float64"):
            engine.predict(images)
        with pytest.raises(UserError, match="this one is float64"):
            engine.loss_and_gradients(images, labels)
    vit.initialize(seed=9, dtype="float32")
    assert_same_bits([engine.predict(images)], [Engine(vit, 1).predict(images)])


def test_an_interrupt_while_an_engine_follows_its_model_leaves_no_old_model(monkeypatch: pytest.MonkeyPatch) -> None:
    vit, (images, _, _) = model(), batch()
    engine = Engine(vit, 1)
    vit.initialize(seed=9, dtype="float32")

    def interrupted(self: ViT) -> ViT:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ViT, "replica", interrupted)
        with pytest.raises(KeyboardInterrupt):
            engine.predict(images)
    assert_same_bits([engine.predict(images)], [Engine(vit, 1).predict(images)])


def test_an_interrupt_at_the_start_of_a_call_leaves_the_engine_usable(monkeypatch: pytest.MonkeyPatch) -> None:
    vit, (images, _, _) = model(), batch()
    engine = Engine(vit, 1, 2)
    expected = engine.predict(images)

    def interrupted(layer: Layer) -> bool:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("minivit.engine.engine.is_watched", interrupted)
        with pytest.raises(KeyboardInterrupt):
            engine.predict(images)
    assert_same_bits([engine.predict(images)], [expected])


@needs_fork
def test_a_process_forked_while_another_thread_predicts_can_predict() -> None:
    vit, (images, _, _) = model(), batch()
    engine = Engine(vit, 1, 2)
    expected = engine.predict(images)
    inside, go_on = threading.Event(), threading.Event()

    def wait(layer: Layer, x: Array, y: Array) -> None:
        inside.set()
        go_on.wait(60)

    def predict() -> None:
        signal.alarm(20)  # ends a process that hangs
        hook.remove()
        assert_same_bits([engine.predict(images)], [expected])

    with vit.register_forward_hook(wait) as hook:
        thread = threading.Thread(target=engine.predict, args=(images,))
        thread.start()
        assert inside.wait(60)
        try:
            assert ended_well(forked(predict))
        finally:
            go_on.set()
            thread.join()
