"""A record: what passed through one layer or op in the forward and the backward pass."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from typing import Any, NamedTuple, Protocol

from minivit.arrays import Array
from minivit.errors import UserError
from minivit.tracing.snapshots import Snapshot
from minivit.tracing.statistics import Statistics

_ONLY_STATISTICS = (
    "this trace has only statistics: use record.statistics[{!r}], or trace(..., statistics=False) to keep arrays"
)
_ALWAYS = ("x", "y", "dy", "dx")


class StatisticsOf(Mapping[str, Statistics]):
    """The statistics of quantities, each computed when it is first asked for."""

    def __init__(self, quantities: Mapping[str, Snapshot]) -> None:
        self._quantities = quantities
        self._computed: dict[str, Statistics] = {}

    def __getitem__(self, name: str) -> Statistics:
        if name not in self._quantities:
            raise KeyError(f"there is no {name!r}; there are {', '.join(self._quantities)}")
        value = self._quantities[name]
        if isinstance(value, Statistics):
            return value
        if name not in self._computed:
            self._computed[name] = Statistics.of(value, name)
        return self._computed[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._quantities)

    def __len__(self) -> int:
        return len(self._quantities)


class Values(NamedTuple):
    """A parameter of a layer: its value, and the gradient of this pass or None."""

    value: Array
    grad: Array | None


class Record:
    """What passed through one layer, or one op of a layer; each quantity is an attribute.

    Attributes
    ----------
    name : str
        The dotted name, such as "blocks.3.attn" of a layer or "blocks.3.attn.softmax" of an op.
    kind : str
        The class of the layer, or the name of the op.
    x, y : Array
        The input and the result.
    dy, dx : Array or None
        The gradients of the loss in `y` and in `x`; None without a backward pass, and where a caller makes several
        calls of a layer that returns no cache, so that their gradients cannot be told apart.
    parameters : dict
        Of a layer: its own parameters by name, each with `value` and `grad`. They are attributes too: `weight` and
        `dweight`. A parameter with the name of a quantity of the pass, such as `q`, is called `q_parameter`.
    has_parameters : bool
        Of a layer: whether it, or a layer in it, has parameters.
    gradient_norm : float or None
        Of a layer: the norm of the gradients of all parameters in it, whether or not the layers in it are recorded; NaN
        if one is not finite. None without parameters or a backward pass, and for a second call of a layer.
    arguments, gradients : dict
        Of an op: its arguments by name, and their gradients.
    statistics : mapping
        The `Statistics` of each quantity by name, such as ``record.statistics["dy"].norm``.
    shapes, dtypes : dict
        The shape and the name of the dtype of each quantity, where the quantities are statistics too.

    Notes
    -----
    Of attention there are `q`, `k`, `v` (B, H, N, K), `scores` (after the scale) and `weights` (B, H, N, N), and
    `dq`, ..., `dweights`; of layer norm `x_hat` and `inv_std`; of an activation `slope`. The layer that calls such an
    op has these quantities, and so has the op's own record.
    """

    def __init__(self, name: str, kind: str, is_op: bool, holds_statistics: bool = False) -> None:
        self.name = name
        self.kind = kind
        self.is_op = is_op
        self.holds_statistics = holds_statistics
        self.quantities: dict[str, Snapshot] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, str] = {}
        self.argument_names: list[str] = []  # of the parameters, for a layer
        self.has_parameters = False
        self._gradients: tuple[Mapping[str, Statistics], Collection[str]] = {}, ()
        self._gradient_norm: float | None = None
        self.statistics: Mapping[str, Statistics] = StatisticsOf(self.quantities)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        quantities: dict[str, Snapshot] = vars(self).get("quantities", {})  # empty while it is unpickled
        if name in quantities:
            if self.holds_statistics:
                raise AttributeError(_ONLY_STATISTICS.format(name))
            return quantities[name]
        if name in _ALWAYS or (name.startswith("d") and name[1:] in quantities):
            return None
        kind = "op" if self.is_op else "layer"
        raise AttributeError(f"the {kind} {self.name} ({self.kind}) has no {name!r}; it has {', '.join(quantities)}")

    def put(self, name: str, value: Snapshot, array: Array) -> None:
        """Set a quantity to `value`, which is the `array` or its statistics."""
        self.quantities[name] = value
        self.shapes[name], self.dtypes[name] = tuple(array.shape), str(array.dtype)

    @property
    def gradient_norm(self) -> float | None:
        """The norm of the gradients of all parameters in the layer."""
        statistics, names = self._gradients
        if self._gradient_norm is None and names:  # it is not asked for while a device computes
            found = [statistics[name] for name in names]
            self._gradient_norm = math.hypot(*(each.norm if each.finite else math.nan for each in found))
        return self._gradient_norm

    def set_gradients(self, statistics: Mapping[str, Statistics], names: Collection[str]) -> None:
        """Set the gradients of all parameters in the layer to those called `names` among those of the model."""
        self._gradients = statistics, names

    def set_gradient_norm(self, norm: float | None) -> None:
        """Set the norm of the gradients of all parameters in the layer, as of a file."""
        self._gradient_norm = norm

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *self.quantities]

    def __repr__(self) -> str:
        lines = [f"{self.name}: {self.kind}"]
        for name, value in self.quantities.items():
            shape = "" if isinstance(value, Statistics) else f" {value.dtype} {value.shape}"
            s = self.statistics[name]
            lines.append(f"  {name}:{shape} norm {s.norm:.4g}, mean {s.mean:.3g}, std {s.std:.3g}")
        return "\n".join(lines)

    def _own(self, of_op: bool) -> dict[str, Values]:
        names = self.argument_names if self.is_op == of_op else []
        if names and self.holds_statistics:  # an AttributeError of a property would be hidden by `__getattr__`
            raise UserError(_ONLY_STATISTICS.format(names[0]))
        return {name: Values(self.quantities[name], self.quantities.get(f"d{name}")) for name in names}  # type: ignore[arg-type] # not statistics

    @property
    def parameters(self) -> dict[str, Values]:
        """The layer's own parameters by name."""
        return self._own(False)

    @property
    def arguments(self) -> dict[str, Array]:
        """The op's arguments that are arrays, by name."""
        return {name: values.value for name, values in self._own(True).items()}

    @property
    def gradients(self) -> dict[str, Array]:
        """The gradients of the op's arguments, by the names of the arguments."""
        return {name: values.grad for name, values in self._own(True).items() if values.grad is not None}


class Records(list[Record]):
    """Several records, in the order of the forward pass; a quantity of them is a list: ``trace["blocks.*"].dy``."""

    def __getattr__(self, name: str) -> list[Any]:
        if name.startswith("__"):
            raise AttributeError(name)
        return [getattr(record, name) for record in self]

    @property
    def names(self) -> list[str]:
        """The names of the records."""
        return [record.name for record in self]


class TraceLike(Protocol):
    """The part of a `Trace` that its tables and pages show."""

    @property
    def records(self) -> Mapping[str, Record]:
        """The records by name."""

    @property
    def y(self) -> Array | None:
        """The result of the model."""

    @property
    def labels(self) -> Array | None:
        """The labels of the cross-entropy."""

    @property
    def loss(self) -> Array | None:
        """The loss, 0-d."""

    @property
    def interventions(self) -> str:
        """What was changed, in words."""

    @property
    def root(self) -> str:
        """The name of the record of the model itself."""

    @property
    def baseline(self) -> TraceLike | None:
        """The trace without the interventions."""
