"""The gradient checks of the explorer's page: of each layer of a trace, at the numbers of the trace."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from bare_vit import images, model, shaken
from forks import needs_fork

import minivit
from minivit import Layer, ViT
from minivit.arrays import Array
from minivit.explorer.checks import Check, check_layers
from minivit.explorer.layers import shown
from minivit.explorer.mistakes import typical_mistakes
from minivit.layers import Linear
from minivit.tracing import Trace

VARIANTS: dict[str, dict[str, Any]] = {
    "the paper's": {},
    "mean pooling, tanh": {"global_pool": "avg", "act_layer": "gelu_tanh", "init_values": 0.3},
    "sines": {"embed_dim": 8, "pos_embed": "sincos_2d", "class_token": False, "global_pool": "avg"},
    "overlapping patches": {"patch_stride": (1, 2)},
    "relative positions": {"pos_embed": "relative", "qk_norm": True},
    "rows and columns": {"pos_embed": "learn_2d", "class_token": False, "global_pool": "avg"},
    "attention pooling": {"global_pool": "map", "reg_tokens": 2},
    "convolutions": {"img_size": (8, 8), "patch_size": (4, 4), "conv_stem": (5, 6)},
    "relu": {"act_layer": "relu"},
    "quick": {"act_layer": "quick_gelu", "pre_norm": True},
}


def traced(vit: ViT, labels: list[int] | None = [3], **options: Any) -> Trace:  # noqa: B006 - it is not changed
    x = images(1) if vit.config.height == 4 else np.random.default_rng(0).standard_normal((1, 8, 8, 3))
    return minivit.trace(vit, x.astype(vit.parameters.store.values.dtype), labels, **options)


def notes(check: Check) -> str:
    return " ".join(row["note"] for row in check["rows"])


def verdicts(check: Check) -> set[str]:
    return {row["verdict"] for row in check["rows"]}


@pytest.mark.parametrize("fields", VARIANTS.values(), ids=VARIANTS)
def test_every_layer_that_the_page_shows_is_checked_and_right(fields: dict[str, Any]) -> None:
    vit = shaken(model(**fields))
    trace = traced(vit)
    found = check_layers(vit, trace)
    assert set(found) == set(shown(trace.records))
    for name, check in found.items():
        assert check["passed"], (name, check)
        assert "skipped" not in verdicts(check), (name, check)
        assert max(row["error"] for row in check["rows"]) < 1e-6, (name, check)


@needs_fork
def test_two_processes_check_the_same_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    vit = shaken(model())
    trace, found = traced(vit), []
    for cores in (1, 2):
        monkeypatch.setattr("minivit.engine.jobs.cores", lambda cores=cores: cores)
        checks = check_layers(vit, trace)
        found.append({name: {**check, "seconds": 0.0} for name, check in checks.items()})
    assert list(found[0]) == list(found[1])
    assert repr(found[0]) == repr(found[1])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_checked_gradients_are_those_of_the_trace(dtype: str) -> None:
    vit = shaken(model(dtype))
    trace = traced(vit)
    digits = 1e-12 if dtype == "float64" else 1e-4
    for name, check in check_layers(vit, trace).items():
        assert check["input"] == "the traced input in float64, with the traced upstream gradient"
        norms = {row["array"]: row["norm"] for row in check["rows"]}
        if not trace[name].is_op:
            assert norms["x"] == pytest.approx(np.linalg.norm(trace[name].dx), rel=digits)
            for parameter, values in trace[name].parameters.items() if name != "model" else ():
                parts = [norm for array, norm in norms.items() if array.partition("[")[0] == parameter]
                assert np.linalg.norm(parts) == pytest.approx(np.linalg.norm(values.grad), rel=digits)


def test_the_remainders_fall_with_the_slope_that_is_shown() -> None:
    vit = shaken(model())
    (taylor,) = check_layers(vit, traced(vit), ["blocks.0.attn"])["blocks.0.attn"]["taylor"]
    h, rest = np.array(taylor["h"]), np.array(taylor["remainder"])
    assert taylor["array"] == "x"
    assert h[0] == 1
    assert np.all(np.diff(h) < 0)
    assert taylor["slope"] == pytest.approx(2, abs=0.05)
    above = (rest > 1e-15) & (h < 1e-2)
    assert above.sum() >= 4
    assert np.polyfit(np.log(h[above]), np.log(rest[above]), 1)[0] == pytest.approx(2, abs=0.05)


class WrongLinear(Linear):
    """Gives half of the gradient of its weight."""

    def backward(self, dy: Array, cache: Any) -> Array:
        before = self.weight.grad.copy()
        dx = super().backward(dy, cache)
        self.weight.grad[...] = (self.weight.grad + before) / 2
        return dx


def test_a_wrong_layer_fails_its_own_check_and_says_what_is_wrong() -> None:
    vit = shaken(model())
    proj = WrongLinear(6, 6).initialize(seed=0, dtype="float64")
    vit.blocks[1].attn.proj = proj
    found = check_layers(vit, traced(vit))
    wrong = found["blocks.1.attn.proj"]
    assert not wrong["passed"]
    rows = {row["array"]: row for row in wrong["rows"]}
    assert (rows["x"]["verdict"], rows["weight"]["verdict"], rows["bias"]["verdict"]) == ("ok", "FAILED", "ok")
    assert rows["weight"]["error"] > 0.1
    assert "0.5 times the derivative" in rows["weight"]["note"]
    assert [name for name, check in found.items() if not check["passed"]] == ["blocks.1.attn.proj"]
    (slope,) = (each["slope"] for each in wrong["taylor"] if each["array"] == "weight")
    assert slope == pytest.approx(1, abs=0.05)


def test_where_the_traced_gradient_is_zero_or_absent_a_random_one_is_used_and_said() -> None:
    vit = shaken(model())
    vit.head.weight.value[...] = 0
    block = check_layers(vit, traced(vit))["blocks.0"]
    assert block["passed"]
    assert block["input"].endswith("with a random upstream gradient, because the traced one is zero")
    assert block["rows"][0]["norm"] > 0.1
    without = check_layers(vit, traced(vit, None))["blocks.0"]
    assert without["passed"]
    assert without["input"].endswith("the traced one was not computed")


def test_numbers_that_are_not_finite_are_a_note() -> None:
    vit = shaken(model())
    vit.blocks[0].mlp.fc1.weight.value[0, 0] = np.nan
    found = check_layers(vit, traced(vit))
    check = found["blocks.0.mlp.fc1"]
    assert not check["passed"]
    assert verdicts(check) == {"skipped"}
    assert "weight holds NaN or infinity" in notes(check)
    assert found["blocks.0.norm1"]["passed"]
    assert "a random upstream gradient, because the traced one is not finite" in found["blocks.0.norm1"]["input"]


class Stubborn(Layer):
    """A layer of a user's that takes one dtype."""

    def forward(self, x: Array, rng: Any = None, keep: bool = True) -> tuple[Array, Any]:
        if x.dtype != "float32":
            raise RuntimeError("only float32 here")
        return x, None

    def backward(self, dy: Array, cache: Any) -> Array:
        return dy


def test_a_layer_that_cannot_be_checked_says_why() -> None:
    vit = shaken(model("float32"))
    vit.blocks[0].mlp.act = Stubborn()  # type: ignore[assignment]
    found = check_layers(vit, traced(vit))
    assert notes(found["blocks.0.mlp.act"]) == "not checked: only float32 here"
    assert found["blocks.0.mlp.fc1"]["passed"]
    assert notes(check_layers(vit, traced(vit), ["blocks.0.norm1.layer_norm"])["blocks.0.norm1.layer_norm"]) == (
        "not checked alone: layer_norm is checked in the layer that calls it"
    )


class Pair(Layer):
    """Returns two arrays."""

    def forward(self, x: Array, rng: Any = None, keep: bool = True) -> tuple[Any, Any]:
        return (x, 2 * x), ()

    def backward(self, dy: Any, cache: Any) -> Array:
        d: Array = dy[0] + 2 * dy[1]
        return d


class SumOfPair(Layer):
    """Adds two arrays."""

    def forward(self, x: Any, rng: Any = None, keep: bool = True) -> tuple[Array, Any]:
        return x[0] + x[1], ()

    def backward(self, dy: Array, cache: Any) -> Any:
        return dy, dy


class OfParts(Layer):
    """Passes a pair of arrays from one layer to another."""

    def __init__(self) -> None:
        self.pair, self.sum = Pair(), SumOfPair()

    def forward(self, x: Array, rng: Any = None, keep: bool = True) -> tuple[Array, Any]:
        pair, _ = self.pair.forward(x, rng, keep)
        return self.sum.forward(pair, rng, keep)

    def backward(self, dy: Array, cache: Any) -> Array:
        return self.pair.backward(self.sum.backward(dy, ()), ())


def test_layers_whose_input_or_result_is_no_array_are_not_checked() -> None:
    vit = shaken(model())
    vit.blocks[0].mlp = OfParts()  # type: ignore[assignment]
    found = check_layers(vit, traced(vit))
    for name in ("pair", "sum"):
        assert notes(found[f"blocks.0.mlp.{name}"]) == "not checked: its input or result is not an array"
    assert found["blocks.0.mlp"]["passed"]


def test_of_a_trace_with_statistics_nothing_can_be_checked() -> None:
    vit = shaken(model())
    found = check_layers(vit, traced(vit, statistics=True))
    assert {notes(check) for check in found.values()} == {"not checked: the trace has statistics and no arrays"}


def test_a_large_model_is_checked_on_its_first_tokens_and_its_largest_layers_are_left_out() -> None:
    vit = shaken(model(patch_size=(1, 1)))
    trace = traced(vit)  # 37 tokens
    everything = check_layers(vit, trace)
    assert {check["input"] for check in everything.values()} == {everything["model"]["input"]}
    found = check_layers(vit, trace, work=3e7)
    assert found["blocks.0.norm1"]["passed"]
    assert found["blocks.0.norm1"]["input"].startswith("the first 16 of 37 tokens of the traced input")
    assert notes(found["model"]).startswith("not checked: the checks of all layers of so large a model take too long")
    assert list(found) == list(everything)


def test_the_model_stays_as_it_is() -> None:
    vit = shaken(model("float32"))
    trace = traced(vit)
    before = vit.parameters.store.values.copy()
    check_layers(vit, trace)
    assert np.array_equal(vit.parameters.store.values, before)
    assert not vit.parameters.store.gradients.any()


def test_in_16_bits_the_gradient_of_the_class_token_is_that_of_the_whole_last_block() -> None:
    """There the last block computes the class token alone."""
    vit = shaken(model("float16", depth=1, act_layer="relu"))
    trace = traced(vit)
    assert trace["blocks.0"].dy.shape[1] < trace["blocks.0"].x.shape[1]
    found = check_layers(vit, trace)
    assert all(check["passed"] for check in found.values())
    assert "the traced upstream gradient" in found["blocks.0"]["input"]
    mistakes, note = typical_mistakes(vit, trace)
    assert note == "typical mistakes are left out where they change nothing here: blocks.0.attn.proj"  # of one token
    assert all(mistake["found"] for mistake in mistakes)
