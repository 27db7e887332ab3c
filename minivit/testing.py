"""Assertions and Hypothesis strategies for tests of code with a backward pass; see `minivit.checking.testing`."""

from minivit.checking.testing import (
    PRIMES,
    arrays,
    assert_gradients,
    assert_layer_gradients,
    dtypes,
    shapes,
    strided,
)

__all__ = ["PRIMES", "arrays", "assert_gradients", "assert_layer_gradients", "dtypes", "shapes", "strided"]
