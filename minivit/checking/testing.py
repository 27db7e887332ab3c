"""Tools for testing code with backward passes: assertions on gradients, and Hypothesis strategies for arguments.

    from hypothesis import given
    from minivit.testing import arrays, assert_gradients, shapes, strided

    @given(x=shapes(2).flatmap(arrays).flatmap(strided))
    def test_tanh(x):
        assert_gradients(tanh, tanh_backward, x)

The strategies need Hypothesis, which the extra `test` installs; the assertions do not.
"""

from __future__ import annotations

import importlib
import operator
from collections.abc import Callable, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, Literal, Unpack

import numpy as np

from minivit.arrays import Array
from minivit.checking import Options, Report, gradcheck, gradcheck_layer
from minivit.checking.function import Backward, Forward
from minivit.errors import install
from minivit.random import RngLike

if TYPE_CHECKING:
    from hypothesis.strategies import DrawFn, SearchStrategy

Values = Literal["normal", "large", "small", "mixed"]

PRIMES = (2, 3, 5, 7, 11, 13)


def assert_gradients(
    forward: Forward,
    backward: Backward,
    *arrays: Any,
    names: Sequence[str] | None = None,
    **options: Unpack[Options],
) -> Report:
    """Assert that `backward` is the gradient of `forward` at `arrays`; the options are those of `gradcheck`.

    Raises
    ------
    AssertionError
        A gradient is wrong. The message is the table of the gradient check with an explanation of each wrong gradient.
    """
    __tracebackhide__ = True
    report = gradcheck(forward, backward, *arrays, names=names, **options)
    report.raise_if_failed()
    return report


def assert_layer_gradients(
    layer: Any, *inputs: Any, rng: RngLike = None, names: Sequence[str] | None = None, **options: Unpack[Options]
) -> Report:
    """Assert that a layer's gradients of its inputs and of all its parameters are right; see `gradcheck_layer`."""
    __tracebackhide__ = True
    report = gradcheck_layer(layer, *inputs, rng=rng, names=names, **options)
    report.raise_if_failed()
    return report


def shapes(ndim: int, sizes: Sequence[int] = PRIMES) -> SearchStrategy[tuple[int, ...]]:
    """Draw shapes of `ndim` axes whose sizes all differ, so that every wrong transposition changes the shape.

    Parameters
    ----------
    ndim
        Number of axes.
    sizes
        The sizes to draw from, distinct primes by default; examples shrink towards the first ones.
    """
    if ndim > len(set(sizes)):
        raise ValueError(f"{ndim} axes cannot have different sizes out of {len(set(sizes))}; give more sizes")
    st = _hypothesis()
    strategy: SearchStrategy[tuple[int, ...]] = st.lists(
        st.sampled_from(list(sizes)), min_size=ndim, max_size=ndim, unique=True
    ).map(tuple)
    return strategy


def dtypes() -> SearchStrategy[np.dtype[Any]]:
    """Draw float64 or float32."""
    strategy: SearchStrategy[np.dtype[Any]] = _hypothesis().sampled_from([np.dtype("float64"), np.dtype("float32")])
    return strategy


def arrays(
    shape: int | Sequence[int] | SearchStrategy[tuple[int, ...]],
    dtype: Any = "float64",
    values: Values = "normal",
) -> SearchStrategy[Array]:
    """Draw arrays of random numbers from a drawn seed.

    Drawing a large array is therefore cheap, and an example shrinks by its seed and scale, not element by element.

    Parameters
    ----------
    shape
        A shape, the length of a vector, or a strategy such as `shapes`.
    dtype
        A dtype, or a strategy such as `dtypes`.
    values
        "normal": standard normal. "large": these times 10 to 1e4. "small": these times 1e-1 to 1e-6. "mixed": each
        element times its own factor between 1e-3 and 1e3, with some elements set to 0 and some to 1.
    """
    if values not in ("normal", "large", "small", "mixed"):
        raise ValueError(f"unknown values {values!r}; expected 'normal', 'large', 'small' or 'mixed'")
    if not isinstance(shape, _hypothesis().SearchStrategy):
        shape = _checked_shape(shape)
    strategy: SearchStrategy[Array] = _composite(_draw_array)(shape, dtype, values)
    return strategy


def _checked_shape(shape: Any) -> tuple[int, ...]:
    try:
        sizes = tuple(map(operator.index, shape if isinstance(shape, list | tuple) else (shape,)))
    except TypeError:
        sizes = (-1,)
    if any(size < 0 for size in sizes):
        raise TypeError(f"shape is {shape!r}; expected a tuple of sizes such as (2, 3), a size, or a strategy")
    return sizes


def _draw_array(draw: DrawFn, shape: Any, dtype: Any, values: Values) -> Array:
    st = _hypothesis()
    size = shape if isinstance(shape, tuple) else draw(shape)
    kind = np.dtype(draw(dtype) if isinstance(dtype, st.SearchStrategy) else dtype)
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    x = generator.standard_normal(size)
    if values == "large":
        x *= 10.0 ** draw(st.integers(1, 4))
    elif values == "small":
        x *= 10.0 ** -draw(st.integers(1, 6))
    elif values == "mixed":
        x *= 10.0 ** generator.uniform(-3, 3, size)
        x[generator.random(size) < 0.1] = 0
        x[generator.random(size) < 0.1] = 1
    return np.asarray(x, kind)


def strided(array: Array | SearchStrategy[Array]) -> SearchStrategy[Array]:
    """Draw views equal to `array` with another memory layout: permuted axes, reversed axes, or gaps.

    The gaps of float arrays hold NaN, which exposes code that ignores the strides. Examples shrink to a contiguous
    array.
    """
    strategy: SearchStrategy[Array] = _composite(_draw_view)(array)
    return strategy


def _draw_view(draw: DrawFn, array: Any) -> Array:
    st = _hypothesis()
    x = array if isinstance(array, np.ndarray) else draw(array)
    order = draw(st.permutations(range(x.ndim)))
    steps = [draw(st.sampled_from([1, -1, 2, -2])) for _ in range(x.ndim)]
    filling = np.nan if x.dtype.kind == "f" else 0
    memory = np.full([x.shape[axis] * abs(steps[axis]) for axis in order], filling, x.dtype)
    slices: list[Any] = [slice(None, None, step) for step in steps]
    view = memory.transpose(np.argsort(order))[(..., *slices)]
    view[...] = x
    return view


@cache
def _composite(draw: Callable[..., Array]) -> Callable[..., SearchStrategy[Array]]:
    """Return what makes a strategy of a function that draws; Hypothesis reads its source, so that it is made once."""
    composite: Callable[..., SearchStrategy[Array]] = _hypothesis().composite(draw)
    return composite


def _hypothesis() -> Any:
    try:
        return importlib.import_module("hypothesis.strategies")
    except ImportError as error:
        raise ImportError(f"the strategies of minivit.testing need Hypothesis: {install('hypothesis')}") from error
