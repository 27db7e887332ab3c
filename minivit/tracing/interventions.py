"""Interventions: activations and gradients that a trace changes during the pass.

    zero       the value becomes 0
    scale      the value is multiplied by a number
    replace    the value becomes a given array of the same shape

An intervention on an activation is a part of the function, which is differentiated with it: the gradient that flows
back through `zero` and `replace` is 0, and through `scale` it is scaled. An intervention on a gradient changes that
gradient alone.
"""

from __future__ import annotations

import numbers
import re
import sys
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from minivit.arrays import Array, namespace, to_backend, to_host
from minivit.errors import UserError
from minivit.tracing.names import ROOT, as_names, is_pattern, matches, unknown

Sites: TypeAlias = tuple[tuple[str, str], ...]

_ACTIVATIONS = ("x", "y", "q", "k", "v", "scores", "weights")
_MOST_SHOWN = 12
_CHANGED = "x, y, dx, dy; of attention also q, k, v, scores, weights, heads.0, ..., and dq, ..., dheads.0, ..."
_NOT_CHANGED = ("weight", "bias", "dweight", "dbias", "x_hat", "inv_std", "slope", "qkv", "dqkv", "logits", "dlogits")
_QUANTITY = re.compile(rf"(?:(.*)\.|)(d?(?:{'|'.join(_ACTIVATIONS)}|heads\.(?:-?\d+|\*)))")


@dataclass
class Change:
    """One intervention: which `quantity` of which layers or ops (`pattern`), and how it changes.

    `kind` is "zero", "scale" or "replace"; `value` is the number or the array, and None for "zero".
    """

    kind: str
    given: str
    pattern: str
    quantity: str
    value: Any = None
    used: bool = False

    def applied(self, x: Array, where: str) -> Array:
        """Return the changed value of `x`."""
        if self.kind == "replace":
            if self.value.shape != x.shape:
                given = f"replace[{self.given!r}] has shape {self.value.shape}"
                raise UserError(f"{given}; {where} has shape {x.shape}, and needs the same")
            expect_numbers(f"replace[{self.given!r}]", self.value, x, where)
            xp = namespace(x)
            value = self.value if namespace(self.value) is xp else to_backend(to_host(self.value), xp)
            return value.astype(x.dtype)
        return self.derivative(x)

    def derivative(self, dy: Array) -> Array:
        """Return the gradient of the value before the change, for the gradient `dy` of the value after it."""
        xp = namespace(dy)
        # The product of a 0-d array, such as the loss, is a scalar.
        return xp.asarray(dy * float(self.value)) if self.kind == "scale" else xp.zeros_like(dy)


class Interventions:
    """All interventions of one trace.

    Parameters
    ----------
    zero : str or sequence of str
        Names of quantities such as "blocks.3.attn" (the result `y`), "blocks.*.mlp.dx", "blocks.3.attn.weights" or
        "blocks.3.attn.heads.2".
    scale : mapping
        Names and numbers.
    replace : mapping
        Names and arrays.
    layers : collection of str
        The names of all layers of the model.
    root : str
        That of the model itself.

    Notes
    -----
    Of a layer `fc` that is called twice, the name "fc" means both calls and "fc_2" the second. The first cannot be
    changed alone.
    """

    def __init__(
        self,
        zero: str | Iterable[str],
        scale: Mapping[str, float],
        replace: Mapping[str, Array],
        layers: Collection[str],
        root: str = ROOT,
    ) -> None:
        for what, given in (("scale", scale), ("replace", replace)):
            if not isinstance(given, Mapping):
                raise UserError(
                    f"{what} is a {type(given).__name__}; expected a mapping such as {{'blocks.3.attn': ...}}"
                )
            as_names(what, given)
        for name, factor in scale.items():
            if isinstance(factor, bool) or not isinstance(factor, numbers.Real):
                raise UserError(f"scale[{name!r}] is {factor!r}; expected a number")
            if isinstance(factor, int) and abs(factor) > sys.float_info.max:
                raise UserError(f"scale[{name!r}] is larger than any float64, {sys.float_info.max:.4g}")
        for name, array in replace.items():
            if not hasattr(array, "shape"):
                raise UserError(f"replace[{name!r}] is a {type(array).__name__}; expected an array")
        kinds: list[tuple[str, Iterable[tuple[str, Any]]]] = [
            ("replace", replace.items()),
            ("scale", scale.items()),
            ("zero", [(name, None) for name in as_names("zero", () if zero is None else zero)]),
        ]
        self._changes = [
            Change(kind, name, *_site(name, layers, root), value) for kind, given in kinds for name, value in given
        ]
        self._found: dict[Sites, list[Change]] = {}

    def __bool__(self) -> bool:
        return bool(self._changes)

    def __str__(self) -> str:
        """Return what is done, in words."""
        words = {"zero": "{} = 0", "scale": "{} * {:g}", "replace": "{} replaced"}
        return ", ".join(words[change.kind].format(change.given, change.value) for change in self._changes)

    def of(self, sites: Sites) -> list[Change]:
        """Return the changes of the value that is called by all of `sites`: pairs of a name and a quantity."""
        if not self._changes:
            return []
        if sites not in self._found:
            self._found[sites] = [
                change
                for change in self._changes
                if any(matches(quantity, change.quantity) and matches(name, change.pattern) for name, quantity in sites)
            ]
            for change in self._found[sites]:
                change.used = True
        return self._found[sites]

    def applied(self, sites: Sites, value: Array) -> Array:
        """Return `value` with the changes."""
        for change in self.of(sites):
            value = change.applied(value, ".".join(sites[-1]))
        return value

    def derivative(self, sites: Sites, dy: Array) -> Array:
        """Return the gradient of the value before the changes, for the gradient `dy` of the value after them."""
        for change in reversed(self.of(sites)):
            dy = change.derivative(dy)
        return dy

    def check_used(self, names: Collection[str], parameters: Collection[str]) -> None:
        """Raise UserError if an intervention changed nothing.

        `names` are those of all layers and ops, and `parameters` those of all parameters.
        """
        for change in self._changes:
            if change.used:
                continue
            if any(matches(name, change.given) for name in parameters):
                raise UserError(f"{change.given!r} is a parameter and cannot be changed; expected one of {_CHANGED}")
            if not any(matches(name, change.pattern) for name in names):
                owner, _, quantity = change.given.rpartition(".")
                if any(matches(name, owner) for name in names) and quantity in _NOT_CHANGED:
                    raise UserError(f"{change.given!r} cannot be changed; expected one of {_CHANGED}")
                raise unknown(change.pattern, names)
            has = {quantity: None for sites in self._found for name, quantity in sites if matches(name, change.pattern)}
            backward = any(quantity.startswith("d") for quantity in has)
            shown = ", ".join([*has][:_MOST_SHOWN]) + (", ..." if len(has) > _MOST_SHOWN else "")
            raise UserError(
                f"{change.given!r} changed nothing: {change.pattern} has no {change.quantity}"
                + (" in a trace without labels" if change.quantity.startswith("d") and not backward else "")
                + f"; it has {shown}"
            )


def expect_numbers(what: str, value: Array, like: Array, where: str) -> None:
    """Raise UserError unless `value` can have the dtype of `like`: numbers, and real ones unless `like` is complex."""
    if value.dtype.kind in "OSUMm" or (value.dtype.kind == "c" and like.dtype.kind != "c"):
        raise UserError(f"{what} has dtype {value.dtype}; {where} has dtype {like.dtype}")


def _site(name: str, layers: Collection[str], root: str) -> tuple[str, str]:
    """Return the pattern of a layer or op, and the quantity, that `name` means."""
    found = _QUANTITY.fullmatch(name)
    if found is None or name in layers or (is_pattern(name) and any(matches(layer, name) for layer in layers)):
        return name or root, "y"
    return found[1] or root, found[2]
