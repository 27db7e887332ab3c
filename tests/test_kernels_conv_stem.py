"""The kernel of a stem of convolutions, beyond what test_kernels.py tests of every kernel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from contract import assert_near, assert_same_bits, kernels_of, normal

from minivit import Engine, Key, ViT, ViTConfig, layers, ops
from minivit.arrays import Array
from minivit.kernels.numpy import conv_stem
from minivit.nn.conv_stem import ConvUnit
from minivit.ops.conv_stem import ConvStemLike

STEMS = [
    (1, (4,)),
    (1, (4, 3)),
    (2, (3,)),
    (2, (3, 5, 4)),
    (4, (5, 4)),
    (4, (4, 6, 5)),
    (8, (5, 4, 6)),
    (8, (3, 4, 5, 6)),
]


@pytest.fixture(params=["usual", "small"])
def limits(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every convolution of stride 1 take tiles, and every product one part, with "small"."""
    if request.param == "small":
        for name in ("_CHANNELS", "_RUN", "_PIECE"):
            monkeypatch.setattr(conv_stem, name, 1)


def stem_of(patch: int, channels: tuple[int, ...], dtype: str = "float64") -> layers.ConvStem:
    stem = layers.ConvStem((patch, patch), channels, 3, 7, eps=0.3).initialize(seed=0, dtype=dtype)
    for parameter in stem.parameters.values():
        parameter.value[...] += 0.3 * normal(parameter.value)
    return stem


def passes(stem: layers.ConvStem, x: Array) -> list[Array]:
    """Return the tokens, the gradient of the images and those of all parameters."""
    stem.zero_grad()
    y, cache = stem.forward(x)
    dx = stem.backward(normal(y), cache)
    return [y, dx, *(parameter.grad.copy() for parameter in stem.parameters.values())]


def has_kernel(cache: Any) -> bool:
    return type(cache) in [kernel.cache for kernel in kernels_of("ConvStem")]


@pytest.mark.usefixtures("limits")
@pytest.mark.parametrize(
    ("rows", "columns", "count"), [(1, 1, 1), (1, 3, 2), (2, 1, 5), (3, 2, 1), (2, 2, 3), (4, 6, 1), (6, 2, 2)]
)
@pytest.mark.parametrize(("patch", "channels"), STEMS, ids=str)
def test_a_conv_stem_of_any_strides_equals_its_layers(
    patch: int, channels: tuple[int, ...], rows: int, columns: int, count: int
) -> None:
    stem, x = stem_of(patch, channels), normal(np.empty((count, rows * patch, columns * patch, 3)))
    assert has_kernel(stem.forward(x)[1])
    got = passes(stem, x)
    with ops.reference_only("ConvStem"):
        assert_near(got, passes(stem, x), 1e-12, least=1e-3)


TILED = [False, False, False, True, False]


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((32, 4, 4, 3), TILED),
        ((31, 4, 4, 3), [False] * 5),  # short runs
        ((11, 8, 12, 3), TILED),
        ((64, 4, 6, 3), [False] * 5),  # an odd number of columns
        ((64, 6, 4, 3), [False] * 5),
    ],
    ids=str,
)
def test_convolutions_of_stride_1_and_64_channels_take_tiles_for_long_runs(
    shape: tuple[int, ...], expected: list[bool]
) -> None:
    stem, x = stem_of(2, (64, 63, 64, 64, 63), "float32"), normal(np.empty(shape, "float32"))
    cache = stem.forward(x)[1]
    assert [unit.tiled for unit in cache.units] == expected
    assert (2 if any(expected) else 1) == cache.G
    got = passes(stem, x)
    assert {a.dtype for a in got} == {x.dtype}
    with ops.reference_only("ConvStem"):
        assert_near(got, passes(stem, x), 1e-4, least=1e-3)


def test_a_convolution_of_stride_1_before_one_of_stride_2_takes_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    stem, x = stem_of(2, (4, 5, 6)), normal(np.empty((2, 4, 8, 3)))
    stem.convs[0].conv.stride, stem.convs[2].conv.stride = (1, 1), (2, 2)
    for name in ("_CHANNELS", "_RUN"):
        monkeypatch.setattr(conv_stem, name, 1)
    assert [unit.tiled for unit in stem.forward(x)[1].units] == [True, True, False]
    got = passes(stem, x)
    with ops.reference_only("ConvStem"):
        assert_near(got, passes(stem, x), 1e-12, least=1e-3)


@pytest.mark.usefixtures("limits")
def test_the_other_gradients_of_a_conv_stem_are_the_same_without_that_of_the_images() -> None:
    stem, x = stem_of(4, (4, 6, 5), "float32"), normal(np.empty((2, 8, 12, 3), "float32"))
    _, _, *expected = passes(stem, x)
    stem.zero_grad()
    y, cache = stem.forward(x)
    stem.add_gradients(normal(y), cache)
    assert_same_bits([parameter.grad for parameter in stem.parameters.values()], expected)


CONFIG = ViTConfig(img_size=(8, 4), patch_size=2, embed_dim=6, depth=1, num_heads=2, num_classes=7, conv_stem=(5, 4))
IMAGES, LABELS = normal(np.zeros((5, 8, 4, 3), "float32")), np.array([6, 0, 3, 3, 1])


def test_a_training_step_leaves_out_the_gradient_of_the_images_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    model = ViT(CONFIG, seed=1)
    logits, cache = model.forward(IMAGES)
    _, loss_cache = ops.cross_entropy(logits, LABELS)
    model.zero_grad()
    dimages = model.backward(ops.cross_entropy_backward(1.0, loss_cache), cache)
    expected = model.parameters.store.gradients.copy()
    assert dimages.shape == IMAGES.shape
    wanted = []
    kernel_backward = layers.ConvStem.add_gradients

    def counted(stem: layers.ConvStem, dy: Array, cache: Any) -> None:
        wanted.append(stem)
        kernel_backward(stem, dy, cache)

    monkeypatch.setattr(layers.ConvStem, "add_gradients", counted)
    with Engine(model, 1, 5) as engine:
        engine.loss_and_gradients(IMAGES, LABELS)
    assert len(wanted) == 1
    assert_same_bits([model.parameters.store.gradients], [expected])


@pytest.mark.usefixtures("limits")
def test_the_bits_are_the_same_for_any_number_of_workers() -> None:
    found = []
    for threads in (1, 2, 3):
        model = ViT(CONFIG, seed=1)
        with Engine(model, threads, 2) as engine:
            loss = engine.loss_and_gradients(IMAGES, LABELS, Key(0, 0, np.arange(5)))
            found.append([loss, model.parameters.store.gradients.copy(), engine.predict(IMAGES)])
    for other in found[1:]:
        assert_same_bits(other, found[0])


class Doubled(layers.LayerNorm):
    """A layer that a user puts in the place of a norm."""

    def forward(self, x: Array, rng: Key | None = None, keep: bool = True) -> tuple[Array, Any]:
        """Return twice the normalised `x`."""
        y, cache = super().forward(x, rng, keep)
        return 2 * y, cache


def replaced() -> layers.ConvStem:
    stem = stem_of(2, (3, 5))
    stem.convs[1].norm = Doubled(5).initialize(dtype="float64")
    return stem


X = normal(np.empty((2, 8, 4, 3)))

NOT_COVERED: dict[str, tuple[Callable[[], layers.ConvStem], Array]] = {
    "complex128": (lambda: stem_of(2, (3, 5)).astype("complex128"), X.astype("complex128")),
    "half a patch": (lambda: stem_of(4, (3, 5)), X[:, :, :3]),
    "no image": (lambda: stem_of(2, (3, 5)), X[:0]),
    "another norm": (replaced, X),
}


@pytest.mark.parametrize("name", NOT_COVERED)
def test_the_layers_run_where_the_kernel_does_not_cover_the_arguments(name: str) -> None:
    make, x = NOT_COVERED[name]
    stem = make()
    y, cache = stem.forward(x)
    assert not has_kernel(cache)
    with ops.reference_only():
        assert_near([y.real], [stem.forward(x)[0].real], 1e-12)


def test_a_unit_that_replaces_another_in_the_list_runs() -> None:
    """Although it was made before the stem ran, so that no layer has changed since."""

    class DoubledUnit(ConvUnit):
        def forward(self, x: Array, rng: Key | None = None, keep: bool = True) -> tuple[Array, Any]:
            y, cache = super().forward(x, rng, keep)
            return 2 * y, cache

    stem, x = stem_of(4, (5, 4)), normal(np.empty((1, 8, 8, 3)))
    mine = DoubledUnit(5, 4).initialize(seed=1, dtype="float64")
    assert has_kernel(stem.forward(x)[1])
    stem.convs[1] = mine
    assert not has_kernel(stem.forward(x)[1])


def test_images_of_another_number_of_channels_or_dtype_are_refused_as_by_the_layers() -> None:
    stem = stem_of(2, (3, 5))
    with pytest.raises(ValueError, match="linear: x has shape"):
        stem.forward(X[..., :2])
    with pytest.raises(TypeError, match="linear: "):
        stem.forward(X.astype("float32"))
    y, cache = stem.forward(X)
    with pytest.raises(ValueError, match="ConvStem"):
        stem.backward(y[:1], cache)


def test_a_hook_in_the_stem_is_called() -> None:
    stem, seen = stem_of(2, (3, 5)), []
    with stem.convs[0].act.register_forward_hook(lambda layer, x, y: seen.append(y.shape)):
        _, cache = stem.forward(X)
    assert (seen, has_kernel(cache)) == ([(2, 4, 2, 3)], False)


def test_a_stem_has_what_its_kernels_read() -> None:
    stem: ConvStemLike = layers.ConvStem((4, 4), (3, 5), 3, 7)  # mypy compares the layer with the protocol
    assert [unit.conv.stride for unit in stem.convs] == [(2, 2), (2, 2)]
