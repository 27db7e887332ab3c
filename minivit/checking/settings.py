"""The options of the gradient check, and the names that other libraries give them."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, TypedDict

from minivit.arrays import Array
from minivit.checking.report import Row
from minivit.errors import did_you_mean

Method = Literal["auto", "complex", "taylor", "central"]

_METHODS = ("auto", "complex", "taylor", "central")


class Options(TypedDict, total=False):
    """The options of every check; see `gradcheck`."""

    seed: int
    tolerance: float
    method: Method
    directions: int
    central_tolerance: float
    float32_tolerance: float
    upstream: Array | None
    on_row: Callable[[Row, int], None]


def _ignore(row: Row, total: int) -> None:
    """Default of `Settings.on_row`."""


@dataclass(frozen=True)
class Settings:
    """The options of `gradcheck`; see there."""

    seed: int = 0
    tolerance: float = 1e-11
    method: Method = "auto"
    directions: int = 3
    central_tolerance: float = 1e-6
    float32_tolerance: float = 1e-4
    upstream: Array | None = None
    on_row: Callable[[Row, int], None] = _ignore

    def __post_init__(self) -> None:
        if self.method not in _METHODS:
            raise ValueError(f"unknown method {self.method!r}; expected 'auto', 'complex', 'taylor' or 'central'")
        for name, least in (("seed", 0), ("directions", 1)):
            value = getattr(self, name)
            try:
                whole = operator.index(value)
            except TypeError:
                raise TypeError(f"{name} is {value!r}; expected an integer") from None
            if whole < least:
                need = "at least one is needed" if name == "directions" else "expected at least 0"
                raise ValueError(f"{name} is {value}; {need}")
        for name in ("tolerance", "central_tolerance", "float32_tolerance"):
            value = getattr(self, name)
            try:
                usable = 0 <= value < 1
            except (TypeError, ValueError):
                raise TypeError(f"{name} is {value!r}; expected a number") from None
            if not usable:
                raise ValueError(f"{name} is {value}; expected a relative error, at least 0 and below 1")


def settings_of(options: Mapping[str, Any], takes: Mapping[str, str] | None = None) -> Settings:
    """Return the settings; a name that other libraries use is answered with the name or the call to use here.

    Parameters
    ----------
    options
        The options by name.
    takes
        Advice on the names that are arguments of the function under check.

    Raises
    ------
    TypeError
        An option is unknown.
    ValueError
        The value of an option cannot be used.
    """
    known = [field.name for field in fields(Settings)]
    unknown = [name for name in options if name not in known]
    if unknown:
        familiar = _FAMILIAR | dict(takes or {})
        advice = [f"{name}: {familiar[name]}" for name in unknown if name in familiar]
        others = [f"{name}:{did_you_mean(name, known)}" for name in unknown if name not in familiar]
        answers = "; ".join([*advice, *(words.removesuffix(":") for words in others)])
        raise TypeError(f"unknown options of the gradient check: {answers}; the options are {', '.join(known)}")
    return Settings(**options)


_TOLERANCE = "use tolerance=, the largest relative error; central_tolerance= where forward is not analytic"
_STEP = "no step size is needed: the complex step has none to choose, and central differences try several"
_SEED = "use seed=, an integer"
_RAISE = "call report.raise_if_failed(), or use minivit.testing.assert_gradients, which raises"
_DIRECTIONS = "use directions=, the number of random directions"
_ALWAYS = "leave it out: this is always checked"
_PRINT = "leave it out, and print(report)"
_REVERSE = "leave it out: the gradients of one backward pass (first order, reverse mode) are checked"
_DTYPE = "leave it out: float32 arrays are checked in float64 and then compared in float32"
_METHOD = "use method=, one of 'auto', 'complex', 'taylor' and 'central'"

_FAMILIAR: dict[str, str] = {
    **dict.fromkeys(("tol", "rtol", "atol", "reltol", "abstol", "rel_tol", "abs_tol", "threshold"), _TOLERANCE),
    **dict.fromkeys(("max_error", "max_rel_error", "max_relative_error", "precision", "places", "decimal"), _TOLERANCE),
    **dict.fromkeys(("eps", "epsilon", "h", "delta", "step", "step_size", "stepsize", "dx", "numeric_eps"), _STEP),
    **dict.fromkeys(("random_state", "rng_seed", "random_seed", "generator", "key"), _SEED),
    "rng": "only a layer or a model in training mode takes rng=, a Key; for the random directions " + _SEED,
    **dict.fromkeys(("raise_exception", "raise_error", "raises", "assert_passed", "check"), _RAISE),
    **dict.fromkeys(("n", "num_checks", "num_directions", "n_directions", "n_samples", "num_samples"), _DIRECTIONS),
    **dict.fromkeys(("trials", "num_trials", "repeats"), _DIRECTIONS),
    **dict.fromkeys(("nondet_tol", "check_grad_dtypes", "check_backward_ad", "no_double"), _ALWAYS),
    **dict.fromkeys(("verbose", "verbosity", "quiet", "show", "print_results"), _PRINT),
    **dict.fromkeys(("order", "modes", "mode", "check_forward_ad", "check_batched_grad"), _REVERSE),
    **dict.fromkeys(("check_batched_forward_grad", "check_undefined_grad", "masked"), _REVERSE),
    **dict.fromkeys(("fast_mode", "fast"), "leave it out: random directions are the fast mode, " + _DIRECTIONS),
    **dict.fromkeys(("dtype", "dtypes", "precision_dtype"), _DTYPE),
    **dict.fromkeys(("how", "scheme", "differences"), _METHOD),
    **dict.fromkeys(("inputs", "args", "x"), "pass the arrays one by one after backward (or after the layer)"),
    **dict.fromkeys(("arg_names", "argnames", "labels", "input_names"), "use names=, a name for each array"),
    **dict.fromkeys(("callback", "progress"), "use on_row=, which is called with each row"),
}
