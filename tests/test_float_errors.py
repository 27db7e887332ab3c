"""Whatever `numpy.seterr` says, underflow is harmless in every op, layer, optimiser and engine."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
from contract import assert_same_bits
from small_vit import batch, model

from minivit import SGD, Adam, AdamW, Engine, Layer, ops
from minivit.arrays import Array
from minivit.checking.cases import CASES, Case
from minivit.ops.augment import normalize
from minivit.ops.erf import erf
from minivit.ops.update_rules import clip_factor
from minivit.train.optimizers import clip_gradients

SCALES = {"float32": (1e-44, 1e-30, 1.0, 100.0), "float64": (1e-320, 1e-200, 1.0, 1000.0)}
# Of these, each result is in range for any finite arguments.
BOUNDED = (
    "softmax", "gelu", "gelu-tanh", "quick_gelu", "relu", "tanh", "cross_entropy", "cross_entropy-smooth",
    "dropout-path", "patches",
)  # fmt: skip
HUGE = {"float32": 1e37, "float64": 1e300}


def passes(case: Case, scale: float, dtype: str) -> list[Array]:
    """Return the result and the gradients of a case whose arrays and upstream gradient are multiplied by `scale`."""
    with np.errstate(all="ignore"):
        given = [(x * scale).astype(dtype) for x in case.make(0, "float64")]
    y, cache = case.forward(*given)
    with np.errstate(all="ignore"):
        dy = (np.random.default_rng(1).standard_normal(y.shape) * min(scale, 1.0)).astype(dtype)
    return [y, *case.backward(np.asarray(dy), cache)]


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("dtype", SCALES)
def test_no_op_and_no_layer_raises_for_small_numbers(case: Case, dtype: str) -> None:
    for scale in [*SCALES[dtype], *([HUGE[dtype]] if case.name in BOUNDED else [])]:
        for context in (nullcontext, ops.reference_only):
            with context():
                with np.errstate(all="ignore"):
                    expected = passes(case, scale, dtype)
                with np.errstate(all="raise"):
                    assert_same_bits(passes(case, scale, dtype), expected)


@pytest.mark.parametrize("mode", ["raise", "warn", "call", "print"])
def test_underflow_is_not_reported_in_any_other_way(mode: Any, capfd: pytest.CaptureFixture[str]) -> None:
    """A warning would be an error here, as in all tests."""
    called: list[str] = []
    with np.errstate(under=mode, call=lambda kind, flag: called.append(kind)):
        ops.softmax(np.array([[0.0, -720.0]]))
    assert not called
    assert capfd.readouterr() == ("", "")


def test_functions_that_are_no_ops_do_not_raise_either() -> None:
    tiny = np.array([0.0, 1e-44, -1e-39, 30.0, -30.0], "float32")
    with np.errstate(all="raise"):
        assert erf(tiny).shape == tiny.shape
        assert clip_factor(np.float32(1e30) * np.ones((), "float32"), 1e-20).shape == ()
        assert normalize(np.zeros((1, 2, 2, 1), "uint8"), (1e-44,), (1.0,), "float32").shape == (1, 2, 2, 1)


@pytest.mark.parametrize("optimizer", [SGD, Adam, AdamW])
def test_optimisers_do_not_raise(optimizer: Any) -> None:
    """The moments of gradients that were once tiny, or are zero, become smaller until they vanish."""
    vit = model()
    step = optimizer(vit, lr=1e-30, weight_decay=1e-30)
    with np.errstate(all="raise"):
        for gradient in (1e-20, 1e-44, 0.0, 0.0):
            vit.parameters.store.gradients[:] = gradient
            step.step()
        vit.parameters.store.gradients[:] = 1e-20
        clip_gradients(vit.parameters.store, 1e-30)
        step.step(np.float32(1e-30) * np.ones((), "float32"))


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_the_engine_does_not_raise(threads: int, worker_kind: str) -> None:
    """The model is as sharp as a trained one: most attention weights and probabilities vanish."""
    vit, (images, labels, key) = model(), batch()
    for name, parameter in vit.parameters.items():
        if "qkv" in name or "head" in name:
            parameter.value[...] *= 100
    results = []
    for context in (np.errstate(all="ignore"), np.errstate(all="raise")):
        with context, Engine(vit, threads, 2) as engine:
            loss = engine.loss_and_gradients(images, labels, key)
            results.append([loss, vit.parameters.store.gradients.copy(), engine.predict(images)])
    assert_same_bits(results[1], results[0])


class Dividing(Layer):
    """The identity, after a division by zero."""

    def forward(self, x: Array, rng: Any = None, keep: bool = True) -> tuple[Array, Any]:
        np.ones(1) / np.zeros(1)
        return x, None


@pytest.mark.parametrize("threads", [1, 2])
def test_a_layer_of_the_users_own_raises_as_they_asked(threads: int, worker_kind: str) -> None:
    vit, (images, _, _) = model(), batch()
    vit.head_drop = Dividing()  # type: ignore[assignment]
    with Engine(vit, threads, 2) as engine:
        with np.errstate(all="ignore"):
            engine.predict(images)
        with np.errstate(divide="raise"), pytest.raises(FloatingPointError, match="divide by zero"):
            engine.predict(images)


def test_overflow_is_reported_as_ever() -> None:
    with np.errstate(over="raise"), pytest.raises(FloatingPointError, match="overflow"):
        ops.linear(np.full((1, 2), 1e200), np.full((2, 2), 1e200), np.zeros(2))
