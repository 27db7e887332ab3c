"""Every CUDA kernel equals its op, run from the same source on a CPU (cuda_on_cpu) or on a GPU.

test_ops.py and test_layers.py test the contract, for the kernels too. These tests are about sizes that need packs of 16
bytes or several blocks, 16-bit arrays, and the order of threads.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import contract
import numpy as np
import pytest
from contract import assert_same_bits, by_reference, kernel_of_case, normal, ops_of
from cuda_on_cpu.emulator import ORDERS, thread_order
from devices import DEVICES, needs_kernels
from strict import strict

from minivit import Key, UserError, ops
from minivit.arrays import Array, dtype_named, to_backend, to_host
from minivit.checking.cases import CASES, Case
from minivit.kernels.cuda import columns, elementwise, layer_norm, random, runtime
from minivit.kernels.cuda.runtime import LANES, TYPES, acc_dtype, lanes_for, pack, source
from minivit.kernels.cuda.sixteen_bits import LOSSES, SUMS
from minivit.kernels.cuda.softmax import scaled_softmax, scaled_softmax_backward
from minivit.ops.augment import channel_scale, training_images
from minivit.ops.erf import _SINGLE
from minivit.ops.grad_scaler import update_grad_scaler
from minivit.ops.metrics import record_metrics
from minivit.ops.update_rules import Group, adam_step, gradient_norm

# Relative to the norm of each gradient. The tolerance of a layer is larger, since its ops round in sequence.
TOLERANCE = {"float64": 1e-12, "float32": 1e-5, "bfloat16": 1e-2, "float16": 1e-2}
SIZES: list[dict[str, int]] = [{}, dict.fromkeys("BNIODCK", 1), {"B": 3, "N": 40, "D": 48, "I": 16, "O": 32, "C": 40}]
LONG_ROWS = {"B": 40, "N": 1, "D": 600, "C": 600}  # longer than the lanes of a warp keep in registers

KERNELS = [case for case in CASES if case.op in ("EncoderBlock", *ops.__all__)]
of_kernels = pytest.mark.parametrize("case", KERNELS, ids=str)
on_devices = pytest.mark.parametrize("device", DEVICES)


def named(name: str) -> Case:
    return next(case for case in KERNELS if case.name == name)


def has_no_source(case: Case) -> bool:
    """Return whether the case has no CUDA source: of the forms of embed, two have one."""
    return case.op in SUMS and case.name not in ("tokens-embed", "tokens-embed-cls")


def sizes_of(case: Case) -> Iterator[dict[str, int]]:
    """Yield sizes for the axes of the case: the default ones, ones, and whole packs."""
    if case.name == "dropout-path":
        yield {"B": 3, "N": 1, "D": 2}
    for sizes in [*SIZES, *([LONG_ROWS] if case.op in ("softmax", "cross_entropy", "layer_norm") else [])]:
        yield {name: size for name, size in sizes.items() if name in case.sizes}


def passes(case: Case, arrays: Sequence[Array], dy: Array | None = None) -> list[Array]:
    y, cache = case.forward(*arrays)
    return [y, *case.backward(normal(y) if dy is None else dy, cache)]


def assert_near(got: Sequence[Array], expected: Sequence[Array], limit: float) -> None:
    """Assert equality to `limit` times each norm, or a hundredth of the largest norm if that is greater."""
    contract.assert_near(got, expected, limit, least=1e-2)


@on_devices
@pytest.mark.parametrize("dtype", TYPES)
def test_every_op_and_the_block_have_kernels(device: str, dtype: str) -> None:
    """A block with dropout or of an unusual form has no kernel; its ops have. Some ops have one for 16 bits alone."""
    without = {case.name for case in KERNELS if not kernel_of_case(case.on(device), dtype)}
    rare = set() if dtype in ("bfloat16", "float16") else {case.name for case in KERNELS if has_no_source(case)}
    variants = {"EncoderBlock-scale", "EncoderBlock-plain"}
    assert without == {"EncoderBlock-drop", "EncoderBlock-queries-drop"} | variants | rare


@needs_kernels
@pytest.mark.parametrize("name", [case.name for case in KERNELS if has_no_source(case) and "-mask" not in case.name])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_an_op_without_a_cuda_source_rounds_once_and_keeps_sums_in_float32(name: str, dtype: str) -> None:
    case = named(name)  # the mask of a case with one would be rounded twice
    given = [x.astype(dtype_named(dtype)) for x in case.make(0, "float64")]
    on_device = case.on("strict")
    y, cache = on_device.forward(*given)
    assert y.dtype.name == ("float32" if case.op in LOSSES else dtype)
    assert on_device.forward(*given, keep=False)[1] is None
    dy = normal(y)
    gradients = on_device.backward(dy, cache)
    assert [g.dtype.name for g in gradients] == [
        "float32" if i in SUMS[case.op] else dtype for i in range(len(gradients))
    ]
    single = passes(on_device, [x.astype("float32") for x in given], dy.astype("float32"))
    for got, expected in zip((y, *gradients), single, strict=True):
        assert_same_bits([got], [expected.astype(got.dtype)])
    other = dtype if case.op in LOSSES else "float32"
    with pytest.raises(TypeError, match=f"dy has dtype {other}; expected {y.dtype.name}"):
        on_device.backward(dy.astype(dtype_named(other)), cache)


@of_kernels
@on_devices
@pytest.mark.parametrize("dtype", TYPES)
def test_a_kernel_equals_its_op_in_float64(case: Case, device: str, dtype: str) -> None:
    """Both get the same numbers, rounded to the kernel's dtype."""
    for seed, sizes in enumerate(sizes_of(case)):
        given = [x.astype(dtype_named(dtype)) for x in case.make(seed, "float64", sizes)]
        got = passes(case.on(device), given)
        dy = normal(got[0]).astype("float64")
        expected = passes(by_reference(case), [x.astype("float64") for x in given], dy)
        assert_near(got, expected, TOLERANCE[dtype] * ops_of(case))


@of_kernels
@on_devices
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_the_reference_runs_on_a_device(case: Case, device: str, dtype: str) -> None:
    given = case.make(0, dtype)
    expected = passes(by_reference(case), [x.astype("float64") for x in given])
    with ops.reference_only():
        assert_near(passes(case.on(device), given), expected, TOLERANCE[dtype])


@of_kernels
@on_devices
def test_a_repeated_kernel_gives_the_same_bits(case: Case, device: str) -> None:
    given = case.make(0, "float32", dict.fromkeys(case.sizes, 16))
    assert_same_bits(passes(case.on(device), given), passes(case.on(device), given))


@needs_kernels
@of_kernels
@pytest.mark.parametrize("order", ORDERS[1:])
def test_every_order_of_threads_gives_the_same_bits(case: Case, order: str) -> None:
    given = case.make(0, "float32", {name: 9 for name in case.sizes if name != "D"})
    expected = passes(case.on("strict"), given)
    with thread_order(order):
        assert_same_bits(passes(case.on("strict"), given), expected)


@on_devices
def test_many_rows_are_summed_over_many_blocks(device: str) -> None:
    """There are more rows than the blocks of a grid compute at a time."""
    for name, sizes in (
        ("linear", {"B": 2100, "N": 1, "I": 3, "O": 2}),
        ("layer_norm", {"B": 4200, "N": 1, "D": 3}),
        ("EncoderBlock", {"B": 2100, "N": 1, "D": 4}),
    ):
        case = named(name)
        given = case.make(0, "float64", sizes)
        assert_near(passes(case.on(device), given), passes(by_reference(case), given), TOLERANCE["float64"])


def keys(count: int = 6) -> tuple[Key, Array]:
    samples = np.array([5, 0, 3, 3, 7, 1][:count])
    return Key(3, 2, samples), samples


@on_devices
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", [(6, 5, 7), (6, 1, 1)])
def test_a_mask_has_the_same_bits_as_on_the_host(device: str, dtype: str, shape: tuple[int, ...]) -> None:
    key, samples = keys()
    expected = ops.keep_mask(key.fold("here"), shape, 0.3, dtype)
    got = ops.keep_mask(replace(key, sample_ids=to_backend(samples, device)).fold("here"), shape, 0.3, dtype)
    assert_same_bits([to_host(got)], [expected])


@on_devices
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("padding", "flip"), [(0, False), (2, False), (0, True), (3, True)])
def test_training_images_have_the_same_bits_as_on_the_host(device: str, dtype: str, padding: int, flip: bool) -> None:
    images = np.random.default_rng(0).integers(0, 256, (8, 5, 9, 3), np.uint8)
    key, samples = keys()

    def made(images: Array, samples: Array, library: str) -> Array:
        scale, shift = (to_backend(x, library) for x in channel_scale((0.4, 0.5, 0.6), (0.2, 0.3, 0.1), dtype, np))
        own = replace(key, sample_ids=samples)
        return training_images(images, own, crop_padding=padding, flip=flip, scale=scale, shift=shift, dtype=dtype)

    for step in range(4):
        key = replace(key, step=step)
        got = made(to_backend(images, device), to_backend(samples, device), device)
        assert_same_bits([to_host(got)], [made(images, samples, "numpy")])


@on_devices
@pytest.mark.parametrize("channels", [1, 3])
def test_an_image_that_a_crop_would_turn_black_is_not_cropped_there_either(device: str, channels: int) -> None:
    """Each image has one value that is not black: for every place in it, there are shifts that leave it out or in."""
    shape = (8, 9, channels)  # with three channels, more values than the threads of a block
    images = np.eye(8 * 9 * channels, dtype=np.uint8).reshape(-1, *shape)
    samples = np.arange(len(images))
    scale, shift = channel_scale((0.0,) * channels, (1.0,) * channels, np.float32, np)

    def made(library: str, step: int) -> Array:
        key = Key(3, step, to_backend(samples, library))
        given = {"scale": to_backend(scale, library), "shift": to_backend(shift, library)}
        resident = to_backend(images, library)
        return to_host(training_images(resident, key, crop_padding=7, flip=True, dtype=np.float32, **given))

    for step in range(12):
        expected = made("numpy", step)
        assert (expected > 0).reshape(len(images), -1).sum(axis=1).tolist() == [1] * len(images)
        assert_same_bits([made(device, step)], [expected])


# The numbers between the groups, and some within the last pack of the second, are not updated.
GROUPS = (Group(slice(0, 40), 0.1, 0.01), Group(slice(64, 151), 0.2, 0.0), Group(slice(192, 1280), 0.3, 0.5))


@on_devices
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("decoupled", [True, False])
@pytest.mark.parametrize("factor", [None, 0.5, np.nan])
def test_adam_updates_are_those_of_the_host(device: str, dtype: str, decoupled: bool, factor: float | None) -> None:
    generator = np.random.default_rng(0)
    vectors = [generator.standard_normal(1280).astype(dtype) for _ in range(3)]
    vectors.append(generator.random(1280).astype(dtype))

    def stepped(library: str) -> list[Array]:
        p, g, m, v = (to_backend(x.copy(), library) for x in vectors)
        given = None if factor is None else to_backend(np.asarray(factor, dtype), library)
        rest: dict[str, Any] = {"lr_scale": 0.7, "betas": (0.9, 0.99), "eps": 1e-8, "steps": 3, "decoupled": decoupled}
        adam_step(p, g, m, v, GROUPS, factor=given, **rest)
        return [to_host(x) for x in (p, g, m, v)]

    assert_near(stepped(device), [x.astype("float64") for x in stepped("numpy")], TOLERANCE[dtype])
    if factor is not None and np.isnan(factor):
        assert_same_bits(stepped(device), vectors)


@on_devices
def test_adam_takes_one_group_for_each_parameter(device: str) -> None:
    """The same numbers as for one group that covers both and the padding between them."""
    generator = np.random.default_rng(0)
    vectors = [generator.random(256).astype("float32") for _ in range(4)]
    options: dict[str, Any] = {"lr_scale": 0.7, "betas": (0.9, 0.99), "eps": 1e-8, "steps": 3, "decoupled": True}
    one, two = slice(0, 40), slice(64, 256)
    for vector in vectors:
        vector[40:64] = 0

    def stepped(*groups: Group) -> list[Array]:
        p, g, m, v = (to_backend(x.copy(), device) for x in vectors)
        adam_step(p, g, m, v, groups, **options)
        return [to_host(x) for x in (p, g, m, v)]

    both = Group(one, 0.1, 0.5, "a.weight", (5, 8)), Group(two, 0.1, 0.5, "b.weight", (8, 24), ("q", "k", "v"))
    assert_same_bits(stepped(*both), stepped(Group(slice(0, 256), 0.1, 0.5)))


@on_devices
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_gradient_norm_is_that_of_the_host(device: str, dtype: str) -> None:
    gradients = np.random.default_rng(0).standard_normal(40 * 1024).astype(dtype)
    norm = gradient_norm(to_backend(gradients, device))
    assert float(to_host(norm)) == pytest.approx(np.linalg.norm(gradients.astype("float64")), rel=TOLERANCE[dtype])


# Whether the run has stopped, the loss scale and the good steps.
STATES = [(0, 1, 0), (1, 1, 0), (0, 64, 5), (0, 64, 9), (0, 100, 9), (0, 1, 3), (0, 50, 9)]


@on_devices
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("clip_norm", [0.0, 2.0])
def test_the_grad_scaler_is_updated_as_on_the_host(device: str, dtype: str, scaled: bool, clip_norm: float) -> None:
    options: dict[str, Any] = {"clip_norm": clip_norm, "scaled": scaled, "growth_steps": 10, "largest_scale": 128.0}
    for state in STATES:
        for loss, norm in itertools.product((1.5, np.inf, np.nan), (0.5, 300.0, np.inf, np.nan)):

            def updated(library: str, given: Any = (state, loss, norm)) -> Array:
                first, *others = (to_backend(np.asarray(x, dtype), library) for x in ((*given[0], 0), *given[1:]))
                update_grad_scaler(first, *others, **options)
                return to_host(first)

            np.testing.assert_allclose(updated(device), updated("numpy"), rtol=1e-6 if dtype == "float32" else 1e-12)


LOGITS = np.random.default_rng(0).integers(-9, 9, (45, 70))  # most rows have several largest logits


@on_devices
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("classes", [1, 3, 70])
@pytest.mark.parametrize("bad", [None, np.nan, np.inf, -np.inf])
def test_metrics_are_recorded_as_on_the_host(device: str, dtype: str, classes: int, bad: float | None) -> None:
    logits = LOGITS[:, :classes].astype(dtype)
    if bad is not None:
        logits[::4, -1] = logits[::6, 0] = bad
        logits[5] = bad
    labels = np.where(np.arange(45) % 3, logits.argmax(axis=1), 0)

    def recorded(library: str) -> Array:
        given = np.full(3, 9, dtype), np.asarray(2.5, dtype), logits, labels, np.asarray(1, dtype)
        record, loss, scores, wanted, stopped = (to_backend(x, library) for x in given)
        record_metrics(record, loss, scores, wanted, stopped)
        return to_host(record)

    assert_same_bits([recorded(device)], [recorded("numpy")])


@of_kernels
@on_devices
def test_one_block_computes_several_pieces(case: Case, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In larger arrays each block computes several pieces."""
    for module in (columns, elementwise, layer_norm):
        monkeypatch.setattr(module, "_MAX_BLOCKS", 1)
    monkeypatch.setattr(columns, "MAX_BLOCKS", 1)
    given = case.make(0, "float64", {name: 18 if name in "BND" else 5 for name in case.sizes})
    limit = TOLERANCE["float64"] * ops_of(case)
    assert_near(passes(case.on(device), given), passes(by_reference(case), given), limit)


@on_devices
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", ["softmax", "cross_entropy"])
@pytest.mark.parametrize("columns", [70, 300])
def test_the_maximum_of_a_row_is_found_in_every_column(device: str, dtype: str, name: str, columns: int) -> None:
    """With a wrong maximum, the exponentials would overflow or all be zero."""
    case, largest = named(name), 0.9 * np.finfo(dtype).max
    rows = 1e4 * np.eye(columns, dtype=dtype)
    for x in (rows, rows - largest):
        assert_near(passes(case.on(device), [x]), passes(by_reference(case), [x]), TOLERANCE[dtype])


@on_devices
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("columns", [40, 300])
def test_softmax_of_minus_infinity_alone_is_nan(device: str, dtype: str, columns: int) -> None:
    x = np.full((2, columns), -np.inf, dtype)
    assert np.isnan(to_host(ops.softmax(to_backend(x, device))[0])).all()


@on_devices
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_gelu_of_large_arguments_is_a_ramp(device: str, dtype: str) -> None:
    x = np.array([-1e5, -300, -30, -21, 21, 30, 300, 1e5], dtype)
    for name in ("gelu", "gelu-tanh"):
        y, dx = passes(named(name).on(device), [x], np.ones_like(x))
        assert_near([y, dx], [np.maximum(x, 0), np.heaviside(x, 0)], TOLERANCE[dtype])


@on_devices
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", ["gelu", "gelu-tanh"])
def test_the_slope_of_gelu_at_zero_is_exactly_one_half(device: str, dtype: str, name: str) -> None:
    x = np.zeros(3, dtype)
    assert_same_bits(passes(named(name).on(device), [x], np.ones_like(x)), [x, x + 0.5])


@on_devices
def test_dloss_may_be_a_number(device: str) -> None:
    logits, labels = np.random.default_rng(0).standard_normal((3, 5)), np.array([4, 0, 2])
    _, cache = ops.cross_entropy(to_backend(logits, device), to_backend(labels, device))
    expected = ops.cross_entropy_backward(2.5, ops.cross_entropy(logits, labels)[1])
    assert_near([to_host(ops.cross_entropy_backward(2.5, cache))], [expected], TOLERANCE["float64"])


@on_devices
@pytest.mark.parametrize("label", [-1, 5])
def test_an_invalid_label_makes_the_loss_nan(device: str, label: int) -> None:
    logits, labels = to_backend(np.zeros((3, 5)), device), to_backend(np.array([4, label, 0]), device)
    for context in (nullcontext(), ops.reference_only()):
        with context:
            assert np.isnan(to_host(ops.cross_entropy(logits, labels)[0]))


@on_devices
@pytest.mark.parametrize("target", [-0.5, np.inf, np.nan])
def test_an_invalid_soft_target_makes_the_loss_nan(device: str, target: float) -> None:
    targets = np.full((3, 5), 0.2)
    targets[1, 4] = target
    for context in (nullcontext(), ops.reference_only()):
        with context:
            given = to_backend(np.zeros((3, 5)), device), to_backend(targets, device)
            assert np.isnan(to_host(ops.cross_entropy(*given)[0]))


@on_devices
def test_layer_norm_of_rows_with_a_large_mean_is_exact(device: str) -> None:
    """The mean of the squares minus the square of the mean would cancel there."""
    x, *others = named("layer_norm").make(0, "float64")
    given = [x + 1e3, *others]
    expected = passes(by_reference(named("layer_norm")), given)
    assert_near(passes(named("layer_norm").on(device), given), expected, TOLERANCE["float64"])


@on_devices
def test_bits_equal_to_the_rate_are_kept(device: str) -> None:
    key, samples = keys()
    rate = float(key.bits((6, 5))[2, 3]) * 2.0**-32
    expected = key.keep_mask((6, 5), rate, "float64")
    assert expected[2, 3] > 0
    got = ops.keep_mask(replace(key, sample_ids=to_backend(samples, device)), (6, 5), rate, "float64")
    assert_same_bits([to_host(got)], [expected])


@on_devices
def test_one_block_draws_and_updates_several_pieces(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (elementwise, random):
        monkeypatch.setattr(module, "_MAX_BLOCKS", 1)
    monkeypatch.setattr(random, "_LINE", 16)
    test_a_mask_has_the_same_bits_as_on_the_host(device, "float64", (6, 9, 9))
    test_training_images_have_the_same_bits_as_on_the_host(device, "float64", 2, True)
    test_adam_updates_are_those_of_the_host(device, "float64", True, None)
    test_the_gradient_norm_is_that_of_the_host(device, "float64")


of_rows = pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])


def lengths(dtype: str) -> list[int]:
    """Return the shortest and the longest row for each entry of `LANES`, and rows that are too long for all."""
    rising = range(pack(dtype_named(dtype)), 1050, pack(dtype_named(dtype)))
    ends = ({lanes_for(length, dtype_named(dtype)): length for length in order} for order in (rising, rising[::-1]))
    return sorted({length for end in ends for length in end.values()})


@of_rows
def test_rows_of_these_lengths_use_every_entry_of_lanes(dtype: str) -> None:
    """Eight packs of bfloat16, kept as float32, do not fit into the registers of a lane."""
    fitting = LANES[:-1] if dtype == "bfloat16" else LANES
    assert {lanes_for(length, dtype_named(dtype)) for length in lengths(dtype)} == {*fitting, None}


@on_devices
@of_rows
@pytest.mark.parametrize("name", ["layer_norm", "softmax"])
def test_a_row_of_any_length_equals_its_op(name: str, device: str, dtype: str) -> None:
    case = named(name)
    for length in lengths(dtype):
        given = [x.astype(dtype_named(dtype)) for x in case.make(0, "float64", {"N": 4, "D": length})]
        got = passes(case.on(device), given)
        expected = passes(by_reference(case), [x.astype("float64") for x in given], normal(got[0]).astype("float64"))
        assert_near(got, expected, TOLERANCE[dtype])


@on_devices
@of_rows
def test_softmax_of_a_row_does_not_depend_on_other_rows_or_on_padding(device: str, dtype: str) -> None:
    """With the maximum of another row, all exponentials would be zero."""
    generator = np.random.default_rng(0)
    for length in lengths(dtype):
        x, dy = generator.standard_normal((2, 11, length)).astype(acc_dtype(dtype_named(dtype)))
        x += 4000 * (np.arange(11) % 3)[:, None]
        y, cache = ops.softmax(0.5 * x[:, :-1].astype("float64"))
        dx = 0.5 * ops.softmax_backward(dy[:, :-1].astype("float64"), cache)
        x[:, -1] = dy[:, -1] = np.nan
        scores, dweights = to_backend(x, device), to_backend(dy, device)
        weights, dscores = (to_backend(np.empty_like(x, dtype_named(dtype)), device) for _ in range(2))
        scaled_softmax(scores, 0.5, weights, length - 1)
        scaled_softmax_backward(dweights, weights, 0.5, dscores, length - 1)
        assert_near([to_host(weights)[:, :-1], to_host(dscores)[:, :-1]], [y, dx], TOLERANCE[dtype])


@pytest.mark.parametrize(
    ("error", "raised", "words"),
    [
        (RuntimeError("CUDA_ERROR_OUT_OF_MEMORY: out of memory"), RuntimeError, "^CUDA_ERROR_OUT_OF_MEMORY"),
        (RuntimeError("identifier is undefined"), UserError, "kernel softmax cannot be compiled .identifier is un"),
    ],
)
def test_a_kernel_that_cannot_be_compiled_says_why(
    error: Exception, raised: type[Exception], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(**_: Any) -> None:
        raise error

    monkeypatch.setattr(runtime, "_functions", {})
    monkeypatch.setattr(strict, "RawModule", fail, raising=False)
    with pytest.raises(raised, match=words):
        runtime.launch("softmax", "softmax", to_backend(np.zeros((2, 3)), "strict"), (1,), (32,))


def test_a_numpy_array_is_an_error() -> None:
    with pytest.raises(TypeError, match="expected an array on a device, got a NumPy array"):
        runtime.aligned(np.zeros(3))


def test_gelu_has_the_coefficients_of_its_op() -> None:
    formulas = dict(re.findall(r"const float ([pq]) = (.*);", source("gelu")))
    p, q = ([float(number) for number in re.findall(r"([\d.]+)f", formulas[name])] for name in "pq")
    assert (tuple(p), (1.0, *q)) == (_SINGLE.p, _SINGLE.q)
