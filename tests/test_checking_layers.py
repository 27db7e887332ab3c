"""The gradient check of layers and of whole models."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from bare_vit import shaken
from small_passes import normal

import minivit
from minivit import layers, ops
from minivit.arrays import Array
from minivit.checking import gradcheck, gradcheck_layer, gradcheck_model


def block(dtype: str = "float64") -> layers.EncoderBlock:
    return shaken(layers.EncoderBlock(6, 2, 7).initialize(seed=0, dtype=dtype))


def test_a_layer_is_verified_with_a_row_for_each_named_part() -> None:
    layer = block()
    before = layer.state_dict()
    report = gradcheck_layer(layer, normal(2, 5, 6))
    assert report.passed, str(report)
    assert report.max_error <= 1e-11
    verdicts = {row.full_name: row.verdict for row in report.rows}
    assert verdicts.pop("attn.qkv.bias[k]") == "zero"
    assert set(verdicts.values()) == {"ok"}
    assert list(verdicts)[:2] == ["x", "norm1.weight"]
    for name, value in layer.state_dict().items():
        np.testing.assert_array_equal(value, before[name])


def test_the_gradients_of_a_float32_layer_are_compared_with_those_of_its_float64_copy() -> None:
    report = gradcheck_layer(block("float32"), normal(2, 5, 6).astype("f4"))
    assert report.passed, str(report)
    assert sum(row.method == "float32" for row in report.rows) == len(report.rows) // 2


class Scale(minivit.Layer):
    def __init__(self) -> None:
        self.weight = minivit.Parameter((3,), lambda generator, shape: generator.standard_normal(shape))

    def forward(self, x: Array, rng: Any = None, keep: bool = True) -> Any:
        return x * self.weight.value, x

    def backward(self, dy: Array, cache: Any) -> Array:
        self.weight.grad[...] = (dy * cache).sum(0)
        return dy * self.weight.value


def test_a_layer_that_sets_gradients_instead_of_adding_is_detected() -> None:
    report = gradcheck_layer(Scale().initialize(seed=0, dtype="float64"), normal(5, 3))
    assert not report.passed
    assert "instead of adding to them: weight" in report.findings[0]


class OtherInEvaluation(Scale):
    def forward(self, x: Array, rng: Any = None, keep: bool = True) -> Any:
        return (1.0 if keep else 2.0) * x * self.weight.value, x

    def backward(self, dy: Array, cache: Any) -> Array:
        self.weight.add_grad((dy * cache).sum(0))
        return dy * self.weight.value


def test_a_layer_whose_result_depends_on_keep_is_detected() -> None:
    report = gradcheck_layer(OtherInEvaluation().initialize(seed=0, dtype="float64"), normal(5, 3))
    assert "another result with keep=False" in report.findings[0]
    assert gradcheck_layer(layers.Dropout(0.5), normal(4, 6), rng=3)


class Unscaled(Scale):
    def __init__(self) -> None:
        self.weight = minivit.Parameter((6,), lambda generator, shape: generator.standard_normal(shape))

    def backward(self, dy: Array, cache: Any) -> Array:
        self.weight.add_grad((dy * cache).sum((0, 1)))
        return dy


def test_a_wrong_layer_is_found_in_a_new_model_whose_head_is_zero() -> None:
    model = tiny_model()
    model.head.weight.value[...] = 0.0
    assert gradcheck_model(model, normal(2, 6, 4, 3), LABELS, directions=1)
    blocks: Any = model.blocks
    blocks[0].norm1 = Unscaled().initialize(seed=0, dtype="float64")
    report = gradcheck_model(model, normal(2, 6, 4, 3), LABELS, directions=1)
    assert not report
    assert "with random values for the zeros of head.weight" in report.title
    assert not model.head.weight.value.any()


def tiny_model(**options: Any) -> minivit.ViT:
    sizes: dict[str, Any] = {"img_size": (6, 4), "patch_size": 2, "embed_dim": 6, "num_heads": 2, "num_classes": 3}
    return shaken(minivit.ViT(minivit.ViTConfig(depth=2, mlp_ratio=2.0, **sizes, **options), seed=0, dtype="float64"))


LABELS = np.array([2, 0])


def test_a_model_is_verified_from_the_loss_to_the_images() -> None:
    model = tiny_model()
    report = gradcheck_model(model, normal(2, 6, 4, 3), LABELS)
    assert report.passed, str(report)
    assert report.max_error <= 1e-11
    names = {row.full_name.partition("[")[0] for row in report.rows}
    assert names == {"images", *model.parameters}
    assert all(row.slope == "linear" or row.slope == pytest.approx(2, abs=0.05) for row in report.rows)


def test_a_model_in_training_mode_with_soft_targets_is_verified() -> None:
    model = tiny_model(drop_path_rate=0.3, proj_drop_rate=0.2)
    targets = np.array([[0.2, 0.5, 0.3], [0.9, 0.1, 0.0]], dtype=np.float32)
    key = minivit.Key(seed=1, step=2, sample_ids=np.arange(2))
    report = gradcheck_model(model.astype("float32"), normal(2, 6, 4, 3).astype("f4"), targets, rng=key)
    assert report.passed, str(report)


def test_in_a_wrong_model_the_layer_nearest_to_the_loss_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    right = ops.layer_norm_backward

    def wrong(dy: Array, cache: Any) -> Any:
        dx, dweight, dbias = right(dy, cache)
        return dx, -dweight, dbias

    calls = {"attention": ops.attention_backward}

    def wrong_attention(dy: Array, cache: Any) -> Any:
        dqkv = calls["attention"](dy, cache).copy()
        dqkv[..., :6] *= 2
        return dqkv

    monkeypatch.setattr(ops, "attention_backward", wrong_attention)
    with ops.reference_only():
        report = gradcheck_model(tiny_model(), normal(2, 6, 4, 3), LABELS)
    failed = [row for row in report.rows if row.verdict == "FAILED"]
    assert failed[-1].full_name == "blocks.1.attn.qkv.bias[q]"
    assert "2 times the derivative" in failed[-1].note
    assert "Begin with blocks.1.attn.qkv" in str(report)
    assert not failed[0].note

    monkeypatch.setattr(ops, "attention_backward", calls["attention"])
    monkeypatch.setattr(ops, "layer_norm_backward", wrong)
    with ops.reference_only():
        report = gradcheck_model(tiny_model(), normal(2, 6, 4, 3), LABELS)
    assert {row.full_name for row in report.rows if row.verdict == "FAILED"} == {
        f"{name}.weight" for name in ("blocks.0.norm1", "blocks.0.norm2", "blocks.1.norm1", "blocks.1.norm2", "norm")
    }


def test_a_float32_layer_is_checked_on_float64_inputs() -> None:
    report = gradcheck_layer(block("float32"), normal(2, 5, 6))
    assert report, str(report)
    assert gradcheck_model(tiny_model().astype("float32"), normal(2, 6, 4, 3), LABELS.tolist(), directions=1)


def test_what_is_no_layer_or_has_no_values_is_refused_in_words() -> None:
    with pytest.raises(minivit.UserError, match=r"call initialize\(\)"):
        gradcheck_layer(layers.Linear(3, 2), normal(2, 3))
    with pytest.raises(TypeError, match="a function is not a layer"):
        gradcheck_layer(lambda x: x, normal(2, 3))


def test_a_layer_in_training_mode_is_checked_with_a_seed_or_a_generator() -> None:
    layer = layers.MLP(5, 7, drop_rate=0.3).initialize(seed=0)
    for rng in (3, np.random.default_rng(3), minivit.Key(seed=1, step=2, sample_ids=np.arange(4))):
        report = gradcheck_layer(layer, normal(4, 5), rng=rng)
        assert report, str(report)


def test_a_class_in_place_of_a_layer_is_refused() -> None:
    with pytest.raises(TypeError, match=r"got the class Linear; expected a layer: Linear\(\.\.\.\)\.initialize\(\)"):
        gradcheck_layer(layers.Linear, normal(2, 3))


def test_the_upstream_gradient_may_be_given() -> None:
    layer, x, dy = block(), normal(2, 5, 6), normal(2, 5, 6, seed=7)
    _, cache = layer.forward(x)
    layer.zero_grad()
    dx = layer.backward(dy, cache)
    report = gradcheck_layer(layer, x, upstream=dy)
    assert report.passed, str(report)
    norms = {row.full_name: row.norm for row in report.rows}
    assert norms["x"] == pytest.approx(np.linalg.norm(dx), rel=1e-12)
    assert norms["mlp.fc1.weight"] == pytest.approx(np.linalg.norm(layer.mlp.fc1.weight.grad), rel=1e-12)
    with pytest.raises(ValueError, match=r"upstream has shape \(2, 5\); expected .* \(2, 5, 6\)"):
        gradcheck_layer(layer, x, upstream=dy[..., 0])
    with pytest.raises(ValueError, match="upstream holds NaN or infinity"):
        gradcheck_layer(layer, x, upstream=dy * np.inf)


def test_some_parameters_alone_are_checked() -> None:
    report = gradcheck_layer(block(), normal(2, 5, 6), parameters=["attn.qkv.weight", "norm1.bias"])
    assert {row.full_name for row in report.rows} == {
        "x", "norm1.bias", "attn.qkv.weight[q]", "attn.qkv.weight[k]", "attn.qkv.weight[v]",
    }  # fmt: skip
    assert [row.full_name for row in gradcheck_layer(block(), normal(2, 5, 6), parameters=[]).rows] == ["x"]
    with pytest.raises(ValueError, match=r"no parameter 'weight'; it has norm1.weight"):
        gradcheck_layer(block(), normal(2, 5, 6), parameters=["weight"])


def test_a_row_keeps_the_remainders_that_its_slope_was_fitted_to() -> None:
    (row,) = gradcheck_layer(block(), normal(2, 5, 6), parameters=()).rows
    steps, rests = zip(*row.remainders, strict=True)
    assert steps[0] == 1
    assert list(steps) == sorted(steps, reverse=True)
    above = [k for k, h in enumerate(steps) if 1e-10 < h < 0.1 and rests[k] > 1e-13]
    slope = np.polyfit(np.log(steps)[above], np.log(rests)[above], 1)[0]
    assert row.slope == pytest.approx(slope, abs=0.05)
    by_complex_step = gradcheck_layer(block(), normal(2, 5, 6), parameters=(), method="complex").rows
    assert [each.remainders for each in by_complex_step] == [()]


class Product(minivit.Layer):
    """Two inputs, of which `backward` reads one from the layer instead of its cache."""

    def __init__(self, hidden: bool) -> None:
        self.hidden = hidden

    def forward(self, x: Array, w: Array, rng: Any = None, keep: bool = True) -> Any:  # type: ignore[override] # two inputs
        self.w = w
        return x * w, (x, w)

    def backward(self, dy: Array, cache: Any) -> tuple[Array, Array]:  # type: ignore[override] # of two inputs
        x, w = cache
        return dy * (self.w if self.hidden else w), dy * x


@pytest.mark.parametrize("hidden", [False, True])
def test_state_that_comes_from_any_input_is_found(hidden: bool) -> None:
    report = gradcheck_layer(Product(hidden).initialize(dtype="float64"), normal(3, 4), normal(3, 4))
    assert report.passed is not hidden
    assert any("it reads state outside its cache" in words for words in report.findings) is hidden


class Square(minivit.Layer):
    """A layer without an input."""

    def __init__(self) -> None:
        self.w = minivit.Parameter((4,), lambda generator, shape: generator.normal(size=shape))

    def forward(self, rng: Any = None, keep: bool = True) -> tuple[Array, Any]:  # type: ignore[override] # no input
        return self.w.value**2, self.w.value

    def backward(self, dy: Array, cache: Any) -> tuple[Array, ...]:  # type: ignore[override] # of no input
        self.w.add_grad(2 * cache * dy)
        return ()


def test_a_layer_without_inputs_may_keep_its_parameters_in_the_cache() -> None:
    report = gradcheck_layer(Square().initialize(dtype="float64"))
    assert report.passed, str(report)


def test_a_block_whose_branch_is_the_identity_leaves_dy_as_it_is() -> None:
    layer: Any = block()
    layer.norm2, layer.mlp = layers.Identity(), layers.Identity()
    report = gradcheck_layer(layer.initialize(seed=0, dtype="float64"), normal(2, 5, 6))
    assert report.passed, str(report)


class RMSNorm(minivit.Layer):
    def __init__(self, factor: bool = True) -> None:
        self.weight, self.factor = minivit.Parameter((6,), minivit.initializers.ones), factor

    def forward(self, x: Array, rng: Any = None, keep: bool = True) -> Any:
        r = 1 / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-6)
        return x * r * self.weight.value, (x, r)

    def backward(self, dy: Array, cache: Any) -> Array:
        x, r = cache
        self.weight.add_grad((dy * x * r).sum((0, 1)))
        d = dy * self.weight.value if self.factor else dy
        dx: Array = r * (d - x * r * (d * x * r).mean(-1, keepdims=True))
        return dx


class Hidden(minivit.Layer):
    """tanh(x @ weight + bias), whose cache may lack the bias."""

    def __init__(self, whole: bool = True) -> None:
        self.weight = minivit.Parameter((6, 7), lambda generator, shape: generator.standard_normal(shape))
        self.bias, self.whole = minivit.Parameter((7,), minivit.initializers.zeros), whole

    def forward(self, x: Array, rng: Any = None, keep: bool = True) -> Any:
        h = x @ self.weight.value
        whole = h + self.bias.value
        return np.tanh(whole), (x, whole if self.whole else h)

    def backward(self, dy: Array, cache: Any) -> Array:
        x, h = cache
        dh = dy * (1 - np.tanh(h) ** 2)
        self.bias.add_grad(dh.sum((0, 1)))
        self.weight.add_grad(x.reshape(-1, 6).T @ dh.reshape(-1, 7))
        return dh @ self.weight.value.T


class Gated(minivit.Layer):
    """A linear map, the sigmoid of another one, and a scale whose factor may be forgotten."""

    def __init__(self, factor: bool = True) -> None:
        self.up, self.gate, self.factor = layers.Linear(6, 7), layers.Linear(6, 7), factor
        self.scale = minivit.Parameter((7,), minivit.initializers.ones)

    def forward(self, x: Array, rng: Any = None, keep: bool = True) -> Any:
        u, up = self.up.forward(x)
        g, gate = self.gate.forward(x)
        s = 1 / (1 + np.exp(-g))
        return u * s * self.scale.value, (u, s, up, gate)

    def backward(self, dz: Array, cache: Any) -> Array:
        u, s, up, gate = cache
        self.scale.add_grad((dz * u * s).sum((0, 1)))
        dy = dz * self.scale.value if self.factor else dz
        return self.up.backward(dy * s, up) + self.gate.backward(dy * u * s * (1 - s), gate)


@pytest.mark.parametrize(
    ("kind", "title", "words"),
    [
        (RMSNorm, "the ones of weight", "the factor weight is missing"),
        (Hidden, "the zeros of bias", "the derivative of forward is"),
        (Gated, "the ones of scale and 2 more", "the factor scale is missing"),
    ],
)
def test_scales_of_1_and_biases_of_0_hide_no_mistake(kind: Any, title: str, words: str) -> None:
    wrong = kind(False).initialize(seed=0, dtype="float64")
    report = gradcheck_layer(wrong, normal(2, 5, 6))
    assert not report
    assert report.title == f"gradient check of {kind.__name__}, with random values for {title}"
    assert words in str(report)
    assert gradcheck_layer(kind().initialize(seed=0, dtype="float64"), normal(2, 5, 6))
    assert gradcheck_layer(kind().initialize(seed=0), normal(2, 5, 6))
    for parameter in wrong.parameters.values():
        assert parameter.value.ndim == 2 or np.ptp(parameter.value) == 0
    assert gradcheck_layer(wrong, normal(2, 5, 6), keep_constants=True)


def test_scales_of_1_hide_no_mistake_in_a_model() -> None:
    model = tiny_model()
    blocks: Any = model.blocks
    for block in blocks:
        block.norm1 = RMSNorm(False).initialize(dtype="float64")
    report = gradcheck_model(model, normal(2, 6, 4, 3), LABELS, directions=1)
    assert not report
    assert "with random values for the ones of blocks.0.norm1.weight and 1 more" in report.title
    assert "Begin with blocks.0.mlp.fc2, or with blocks.1.norm1, which forward calls next" in report.advice


class Declared(minivit.Layer):
    """Two linear maps, the one that forward calls last declared first."""

    def __init__(self, factor: float) -> None:
        self.head, self.body, self.factor = layers.Linear(7, 3), layers.Linear(6, 7), factor

    def forward(self, x: Array, rng: Any = None, keep: bool = True) -> Any:
        h, body = self.body.forward(x)
        y, head = self.head.forward(np.tanh(h))
        return y, (body, np.tanh(h), head)

    def backward(self, dy: Array, cache: Any) -> Array:
        body, t, head = cache
        return self.body.backward(self.head.backward(self.factor * dy, head) * (1 - t * t), body)


def test_the_layer_to_begin_with_is_the_last_one_that_forward_calls() -> None:
    report = gradcheck_layer(Declared(2.0).initialize(seed=0, dtype="float64"), normal(2, 5, 6))
    assert report.advice.startswith("Begin with head: it is nearest to the output")
    notes = {row.full_name: row.note for row in report.rows}
    assert "everywhere 2 times the derivative" in notes["head.weight"]
    assert not notes["body.weight"]


def test_the_layer_after_the_wrong_ones_is_named_too(monkeypatch: pytest.MonkeyPatch) -> None:
    right = layers.Linear.backward

    def wrong(self: layers.Linear, dy: Array, cache: Any) -> Array:
        return right(self, dy, cache) * (2.0 if self.weight.shape == (7, 3) else 1.0)

    monkeypatch.setattr(layers.Linear, "backward", wrong)
    report = gradcheck_layer(Declared(1.0).initialize(seed=0, dtype="float64"), normal(2, 5, 6))
    assert report.advice == (
        "Begin with body, or with head, which forward calls next: its own gradients are right, the one that it passes "
        "back may not be."
    )


class Pair(minivit.Layer):
    """A layer whose result is no array."""

    def forward(self, x: Array, rng: Any = None, keep: bool = True) -> Any:
        return (2 * x, 3 * x), None

    def backward(self, dy: Any, cache: Any) -> Array:
        dx: Array = 2 * dy[0] + 3 * dy[1]
        return dx


class WithPair(minivit.Layer):
    def __init__(self) -> None:
        self.pair, self.map = Pair(), layers.Linear(6, 7)

    def forward(self, x: Array, rng: Any = None, keep: bool = True) -> Any:
        (a, b), pair = self.pair.forward(x)
        y, cache = self.map.forward(a * b)
        return y, (a, b, pair, cache)

    def backward(self, dy: Array, cache: Any) -> Array:
        a, b, pair, inner = cache
        d = self.map.backward(dy, inner)
        return self.pair.backward((d * b, d * a), pair)


def test_an_inner_layer_may_return_two_arrays() -> None:
    assert gradcheck_layer(WithPair().initialize(seed=0, dtype="float64"), normal(5, 6))


class ByDeviation(minivit.Layer):
    """Scales by the square root of a parameter that begins at zero, and may not be negative."""

    def __init__(self) -> None:
        self.variance = minivit.Parameter((6,), lambda generator, shape: np.zeros(shape))

    def forward(self, x: Array, rng: Any = None, keep: bool = True) -> Any:
        s = np.sqrt(self.variance.value + 1e-2)
        return x * s, (x, s)

    def backward(self, dy: Array, cache: Any) -> Array:
        x, s = cache
        self.variance.add_grad((dy * x).sum((0,)) / (2 * s))
        return dy * s


class NeedsNegative(ByDeviation):
    def forward(self, x: Array, rng: Any = None, keep: bool = True) -> Any:
        s = np.sqrt(1e-4 - self.variance.value)
        return x * s, (x, s)

    def backward(self, dy: Array, cache: Any) -> Array:
        x, s = cache
        self.variance.add_grad(-(dy * x).sum((0,)) / (2 * s))
        return dy * s


def test_a_parameter_of_zeros_that_may_not_be_negative_gets_values_above_zero() -> None:
    assert gradcheck_layer(ByDeviation().initialize(seed=0, dtype="float64"), normal(5, 6))


def test_random_values_at_which_a_layer_is_not_finite_are_named() -> None:
    layer = NeedsNegative().initialize(seed=0, dtype="float64")
    words = r"NaN or infinity here.* with random values for the zeros of variance: keep_constants=True keeps them"
    with np.errstate(invalid="ignore"), pytest.raises(ValueError, match=words):
        gradcheck_layer(layer, normal(5, 6))
    assert gradcheck_layer(layer, normal(5, 6), keep_constants=True)


class WritesToDy(Scale):
    def forward(self, x: Array, rng: Any = None, keep: bool = True) -> Any:
        y = np.tanh(x * self.weight.value)
        return y, (x, y)

    def backward(self, dy: Array, cache: Any) -> Array:
        x, y = cache
        dy *= 1 - y * y
        self.weight.add_grad((dy * x).sum(0))
        return dy * self.weight.value


def test_a_layer_that_writes_to_dy_has_no_other_finding() -> None:
    report = gradcheck_layer(WritesToDy().initialize(seed=0, dtype="float64"), normal(5, 3))
    assert report.findings == ("backward writes to dy",)
    assert all(row.verdict == "ok" for row in report.rows)


def test_a_batch_of_one_is_advised_against_where_other_arrays_have_gradients() -> None:
    layer = OtherInEvaluation().initialize(seed=0, dtype="float64")
    assert gradcheck_layer(layer, normal(1, 3)).advice == (
        "x has one sample: a mean in place of a sum over the samples would pass; check with two or more"
    )
    assert not gradcheck_layer(layer, normal(2, 3)).advice
    a = normal(1, 3)
    assert not gradcheck(lambda a, b: (a + b, ()), lambda dy, cache: (dy, dy.copy()), a, a + 1).advice


class Random(minivit.Layer):
    def __init__(self) -> None:
        self.first, self.second = Scale(), Scale()

    def forward(self, x: Array, rng: Any = None, keep: bool = True) -> Any:
        h, first = self.first.forward(x * np.random.default_rng().uniform(1, 2))
        y, second = self.second.forward(h)
        return y, (first, second)

    def backward(self, dy: Array, cache: Any) -> Array:
        return self.first.backward(self.second.backward(dy, cache[1]), cache[0])


def test_where_no_derivative_can_be_measured_no_layer_is_named_to_begin_with() -> None:
    report = gradcheck_layer(Random().initialize(seed=0, dtype="float64"), normal(5, 3))
    assert "fix its randomness" in report.findings[0]
    assert not report.advice
