"""Arrays of other kinds than plain ones are computed with as their values say, or refused in words."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from typing import Any

import numpy as np
import pytest
from contract import assert_close, assert_same_bits
from small_vit import batch, model

from minivit import Engine, Layer, UserError, layers, ops, to_backend, to_host
from minivit.arrays import Array, namespace, native
from minivit.checking.cases import OPS, Case
from minivit.ops.augment import normalize
from minivit.ops.erf import erf
from minivit.ops.metrics import record_metrics
from minivit.ops.update_rules import Group, gradient_norm, sgd_step


class Subclass(np.ndarray):
    """A subclass that changes nothing, as np.memmap."""


def read_only(x: Array) -> Array:
    x = x.copy()
    x.flags.writeable = False
    return x


def matrix(x: Array) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PendingDeprecationWarning)
        return np.asmatrix(x)


SAME: dict[str, Callable[[Array], Any]] = {
    "big-endian": lambda x: x.astype(x.dtype.newbyteorder(">")),
    "Fortran order": np.asfortranarray,
    "negative strides": lambda x: np.flip(np.flip(x).copy()),
    "every other element": lambda x: np.repeat(x, 2, -1)[..., ::2],
    "not aligned": lambda x: np.frombuffer(b"0" + x.tobytes(), x.dtype, offset=1).reshape(x.shape),
    "read-only": read_only,
    "a subclass": lambda x: x.view(Subclass),
    "a matrix, where it has two axes": lambda x: matrix(x) if x.ndim == 2 else x,
}


class Convertible:
    """An object that NumPy converts, as a tensor of PyTorch or a data frame."""

    def __init__(self, x: Array) -> None:
        self.x = x
        self.shape, self.dtype, self.ndim = x.shape, x.dtype, x.ndim

    def __array__(self, dtype: Any = None, copy: Any = None) -> Array:
        return self.x


REFUSED: dict[str, tuple[Callable[[Array], Any], str]] = {
    "a masked array": (np.ma.masked_invalid, "masked array, whose mask would be ignored"),
    "a list": (np.ndarray.tolist, "expected an array of NumPy or CuPy, got (list|float); convert it with numpy.as"),
    "convertible": (Convertible, "expected an array of NumPy or CuPy, got Convertible; convert it with numpy.asarray"),
    "objects": (lambda x: x.astype(object), "dtype.* object"),
    "integers": (lambda x: x.astype(int), "dtype.* int64"),
    "booleans": (lambda x: x > 0, "dtype.* bool"),
    "text": (lambda x: x.astype(str), "dtype.* <U"),
    "dates": (lambda x: x.astype("i8").astype("M8[s]"), "dtype.* datetime64"),
    "None": (lambda x: None, "None"),
}


OPTIONAL = {("linear", "bias"), ("embed", "pos_embed"), ("embed", "cls_token"), ("embed", "reg_token")}


@pytest.fixture(params=["kernels", "references"])
def _kernels_or_references(request: pytest.FixtureRequest) -> Iterator[None]:
    with ops.reference_only() if request.param == "references" else nullcontext():
        yield


def of_ops(test: Any) -> Any:
    return pytest.mark.usefixtures("_kernels_or_references")(pytest.mark.parametrize("case", OPS, ids=str)(test))


def others(case: Case) -> list[Any]:
    """Return the arguments of the op of a case after its arrays."""
    calls: list[ops.OpCall] = []
    with ops.observe(calls.append):
        case.forward(*case.make(0, "float64"))
    return list(calls[-1].args[len(case.names) :])


def passes(case: Case, change: Callable[[Array], Any] = native) -> list[Array]:
    """Return the result and the gradients of a case, with `change` of all arrays."""
    y, cache = getattr(ops, case.op)(*map(change, case.make(0, "float64")), *others(case))
    dy = np.random.default_rng(1).standard_normal(y.shape)
    return [y, *case.backward(change(dy) if y.ndim else np.asarray(dy), cache)]


def outcome(call: Callable[[], Any]) -> Any:
    """Return the result of a call, or its error."""
    try:
        return call()
    except Exception as error:
        return error


@of_ops
def test_every_op_takes_an_array_for_its_values(case: Case) -> None:
    expected = passes(case)
    for change in SAME.values():
        results = passes(case, change)
        assert {type(result) for result in results} <= {np.ndarray, np.float64}
        assert {result.dtype for result in results} == {np.dtype("float64")}
        assert_close(results, expected)


@of_ops
def test_every_op_refuses_other_arguments_in_words(case: Case) -> None:
    given, rest = case.make(0, "float64"), others(case)
    for kind, (change, message) in REFUSED.items():
        for k, name in enumerate(case.names):
            if not (kind == "None" and (case.op, name) in OPTIONAL):
                with pytest.raises(TypeError, match=message):
                    getattr(ops, case.op)(*given[:k], change(given[k]), *given[k + 1 :], *rest)


@of_ops
def test_every_backward_function_refuses_other_gradients_in_words(case: Case) -> None:
    y, cache = case.forward(*case.make(0, "float64"))
    for kind, (change, message) in REFUSED.items():
        if not (kind == "a list" and y.ndim == 0):  # dloss may be a number
            with pytest.raises(TypeError, match=message):
                case.backward(change(np.asarray(y)), cache)


def first_result(case: Case, *arguments: Any) -> Any:
    return getattr(ops, case.op)(*arguments)[0]


@of_ops
def test_an_array_without_axes_or_elements_gives_a_result_or_a_reason(case: Case) -> None:
    given, rest = case.make(0, "float64"), others(case)
    shape = given[0].shape
    for empty in ((), (0,), *((*shape[:k], 0, *shape[k + 1 :]) for k in range(len(shape)))):
        with np.errstate(all="raise"):
            got = outcome(partial(first_result, case, np.zeros(empty), *given[1:], *rest))
        if isinstance(got, Exception):
            assert type(got) in (ValueError, TypeError, UserError), (empty, got)
            assert str(got).startswith((f"{case.op}: ", "labels have shape")), (empty, got)
        else:
            assert not np.isnan(got).any(), empty


@of_ops
@pytest.mark.parametrize("dtype", ["float16", "longdouble", "complex64"])
def test_other_precisions_give_their_own_result_or_a_reason(case: Case, dtype: str) -> None:
    got = outcome(lambda: case.forward(*case.make(0, dtype))[0])
    if isinstance(got, Exception):
        assert type(got) in (ValueError, TypeError, UserError), got
        assert "float" in str(got), got
    else:
        assert got.dtype == dtype
        assert_close([got], [case.forward(*case.make(0, "float64"))[0]], 0.02)


def test_an_op_that_works_in_place_refuses_what_it_would_copy() -> None:
    """Of an array in foreign byte order it would change the converted copy."""
    foreign, plain, groups = np.ones(4, ">f4"), np.ones(4, "f4"), (Group(slice(0, 4), 0.1, 0.0),)
    with pytest.raises(TypeError, match=r"'>f4', in foreign byte order; use x.astype\('float32'\)"):
        sgd_step(foreign, plain, plain, groups, lr_scale=1.0, momentum=0.9)
    with pytest.raises(TypeError, match="masked array"):
        record_metrics(np.ma.zeros(3), np.ones(()), np.ones((2, 3)), np.zeros(2, int), np.zeros(()))


@pytest.mark.parametrize("kind", SAME)
def test_functions_beside_the_ops_take_an_array_for_its_values(kind: str) -> None:
    x = np.random.default_rng(0).standard_normal((3, 4))
    images = np.arange(48, dtype="uint8").reshape(1, 4, 4, 3)
    change = SAME[kind]
    normalized = normalize(images, (0.5,) * 3, (0.25,) * 3, "float32")
    assert_same_bits([erf(change(x))], [erf(x)])
    assert_close([gradient_norm(change(x.reshape(-1)))], [gradient_norm(x.reshape(-1))])
    assert_same_bits([normalize(change(images), (0.5,) * 3, (0.25,) * 3, "float32")], [normalized])
    assert_same_bits([to_host(change(x)), to_backend(change(x), "numpy")], [x, x])
    assert type(to_host(change(x))) is np.ndarray
    assert to_host(change(x)).dtype.isnative


@pytest.mark.parametrize(
    ("layer", "shape"),
    [(layers.EncoderBlock(8, 2, 16), (2, 5, 8)), (layers.ConvStem((2, 2), (4,), 3, 8), (2, 4, 4, 3))],
    ids=["EncoderBlock", "ConvStem"],
)
def test_a_layer_with_a_kernel_takes_an_array_in_another_byte_order(layer: Layer, shape: tuple[int, ...]) -> None:
    layer.initialize(seed=0)
    x = np.random.default_rng(0).standard_normal(shape, np.float32)
    assert_same_bits([layer(x.astype(">f4"))], [layer(x)])


EMPTY: dict[str, tuple[Layer, tuple[int, ...]]] = {
    "Attention with qk_norm": (layers.Attention(8, 2, qk_norm=True), (0, 5, 8)),
    "EncoderBlock": (layers.EncoderBlock(8, 2, 16), (0, 5, 8)),
    "ConvStem": (layers.ConvStem((2, 2), (4,), 3, 8), (0, 4, 4, 3)),
    "ResNet": (layers.ResNet(3, (1, 1, 1), width_factor=0.125, num_groups=4), (0, 32, 32, 3)),
}


@pytest.mark.parametrize("name", EMPTY)
def test_a_layer_takes_a_batch_without_images(name: str) -> None:
    layer, shape = EMPTY[name]
    layer.initialize(seed=0)
    layer.zero_grad()
    y, cache = layer.forward(np.zeros(shape, np.float32))
    assert layer.backward(np.zeros_like(y), cache).shape == shape
    assert not any(parameter.grad.any() for parameter in layer.parameters.values())


@pytest.mark.parametrize("kind", SAME)
@pytest.mark.parametrize("threads", [1, 2])
def test_the_engine_takes_images_and_labels_for_their_values(kind: str, threads: int) -> None:
    vit, (images, labels, key) = model(), batch()
    change = SAME[kind]
    results = []
    with Engine(vit, threads, 4) as engine:
        for convert in (native, change):
            loss = engine.loss_and_gradients(convert(images), convert(labels), key)
            results.append([loss, vit.parameters.store.gradients.copy(), engine.predict(convert(images))])
    assert_same_bits(results[1], results[0])


@pytest.mark.parametrize("kind", REFUSED)
def test_the_engine_refuses_other_images_and_labels_in_words(kind: str) -> None:
    change, message = REFUSED[kind]
    images, labels, _ = batch()
    with Engine(model(), 1, 4) as engine:
        with pytest.raises((TypeError, ValueError), match=message):
            engine.predict(change(images))
        if kind != "integers":
            with pytest.raises((TypeError, ValueError), match=message):
                engine.loss_and_gradients(images, change(labels))


@pytest.mark.parametrize("kind", SAME)
def test_load_state_dict_takes_arrays_for_their_values(kind: str) -> None:
    vit, other = model(), model()
    state = {name: value + 1 for name, value in vit.state_dict().items()}
    other.load_state_dict({name: SAME[kind](value) for name, value in state.items()})
    vit.load_state_dict(state)
    assert_same_bits([other.parameters.store.values], [vit.parameters.store.values])


@pytest.mark.parametrize("kind", sorted({*REFUSED, "complex"} - {"integers", "booleans", "None"}))
def test_load_state_dict_refuses_other_values_in_words_and_changes_nothing(kind: str) -> None:
    change, message = ({"complex": (lambda x: x + 1j, "dtype complex64; expected numbers")} | REFUSED)[kind]
    vit = model()
    before = vit.state_dict()
    with pytest.raises((TypeError, ValueError), match=message):
        vit.load_state_dict(
            {name: value + 1 for name, value in before.items()} | {"head.bias": change(np.ones(7, "f4"))}
        )
    assert_same_bits(list(vit.state_dict().values()), list(before.values()))


def test_namespace_names_what_is_no_plain_array() -> None:
    with pytest.raises(TypeError, match=r"numpy.matrix, whose \* is a matrix product"):
        namespace(np.ones(2), matrix(np.ones((2, 2))))
    assert namespace(np.ones(2).view(Subclass)) is np
