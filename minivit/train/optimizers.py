"""Optimisers: the update rules of `ops.update_rules` with their state, and clipping of gradients by their norm.

`groups` says which learning rate and weight decay each parameter has.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from minivit.arrays import Array, namespace, on_device_of, to_backend, to_host
from minivit.errors import UserError, expect_number
from minivit.nn.describe import no_attribute
from minivit.nn.store import FlatStore
from minivit.ops.update_rules import Group, adam_step, clip_factor, gradient_norm, sgd_step
from minivit.train.groups import Trained, given, merge_neighbours, parameter_groups

_INSTEAD = {
    "zero_grad": "use model.zero_grad(); Engine.loss_and_gradients sets fresh gradients by itself",
    "param_groups": "set lr, or see groups",
    "state_dict": "use state() and steps",
    "load_state_dict": "use load_state(state, steps)",
}


def clip_gradients(store: FlatStore, max_norm: float | None) -> Array:
    """Scale all gradients so that their global norm is at most `max_norm`; return the norm before, a 0-d array.

    This is for training loops outside of `minivit.train`, whose own step passes the factor to the optimiser instead.
    """
    gradients = store.gradients
    with on_device_of(gradients):
        norm = gradient_norm(gradients)
        if max_norm is not None:
            with np.errstate(under="ignore"):
                gradients *= clip_factor(norm, max_norm)
    return norm


class Optimizer:
    """The base class of optimisers: groups, state vectors and the number of steps.

    Parameters
    ----------
    model : Layer, or Parameters, or iterable of Parameter
        The model whose parameters are updated in place, its ``parameters``, or some of them; others are frozen.
    lr : float
        The learning rate; set `lr` to change it for all groups in proportion.
    weight_decay : float
        The weight decay of parameters with `Parameter.decay`.
    groups : sequence of Group, optional
        The spans of the flat vector to update, each with its own learning rate and weight decay, in place of those of
        all parameters. Other spans are frozen.
    layer_decay : float
        The factor of the learning rate from a layer of a ViT to the one before it; see `parameter_groups`. It has no
        effect on `groups` that are given.

    Attributes
    ----------
    groups : tuple of Group
        The `groups` that were given, or one for each parameter, with its name, shape and parts.
    elementwise : bool
        Of the class: whether `_update` receives neighbouring parameters of one learning rate and decay as one group.
        An update rule for matrices sets it to False and receives `groups` as they are.
    """

    vectors: tuple[str, ...] = ()
    elementwise = True

    def __init__(
        self,
        model: Trained,
        lr: float,
        weight_decay: float = 0.0,
        groups: Sequence[Group] | None = None,
        layer_decay: float = 1.0,
    ) -> None:
        expect_number("lr", lr)
        expect_number("weight_decay", weight_decay)
        self._layer, self._trained = given(model)
        self._store = self._trained[0].store if self._layer is None else self._layer.parameters.store
        if groups is None:
            groups = parameter_groups(self._trained, lr or 1.0, weight_decay, layer_decay)
            updated = tuple(groups)
            groups = [group if lr else group._replace(lr=0.0) for group in groups]
        else:
            updated = tuple(group if lr else group._replace(lr=1.0) for group in groups)
        self.groups = tuple(groups)
        self.lr = lr
        self.steps = 0
        values = self._store.values
        if values.dtype.itemsize == 2:
            raise UserError(
                f"the parameters are {values.dtype}, in which small updates vanish; train a float32 model with "
                "Engine(model, precision=...)"
            )
        # The groups' rates are relative to `lr`. If it is 0, given groups all get the rate that `lr` is set to later.
        self._base_lr = lr or 1.0
        self._updated = tuple(merge_neighbours(updated, values.dtype.itemsize)) if self.elementwise else updated
        with on_device_of(values):
            xp = namespace(values)
            self._state = {name: xp.zeros(values.shape, dtype=values.dtype) for name in self.vectors}

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            raise AttributeError(no_attribute(self, name, _INSTEAD))

    def __repr__(self) -> str:
        options: dict[str, Any] = {"lr": self.lr}
        options |= {name: vars(self)[name] for name in ("momentum", "betas", "eps") if name in vars(self)}
        options["weight_decay"] = max((group.weight_decay for group in self.groups), default=0.0)
        words = ", ".join(f"{name}={value}" for name, value in options.items())
        return (
            f"{type(self).__name__}({words}; {self.count:,} numbers in {len(self.groups)} groups, {self.steps} steps)"
        )

    @property
    def count(self) -> int:
        """The number of elements that are updated."""
        return sum(group.span.stop - group.span.start for group in self.groups)

    def _check_layers(self) -> None:
        """Raise UserError unless the parameters are those that the optimiser was made for."""
        now = self._trained if self._layer is None else list(self._layer.parameters.values())
        same = len(now) == len(self._trained) and all(map(operator.is_, now, self._trained))
        if not same or any(parameter.store is not self._store for parameter in now):
            raise UserError(
                "layers of the model were replaced or initialised anew since this optimiser was made; make a new "
                f"{type(self).__name__}"
            )

    def step(self, factor: Array | None = None) -> None:
        """Update all parameters from their gradients.

        Parameters
        ----------
        factor : Array, optional
            0-d, on the device and of the dtype of the gradients, which are multiplied by it. If it is NaN, no parameter
            and no state vector changes; `steps` increases all the same, as the host does not know the factor.

        Raises
        ------
        UserError
            Parameters of the model were replaced since the optimiser was made.
        """
        self._check_layers()
        values = self._store.values
        if factor is not None:
            namespace(values, factor)
            if factor.shape != () or factor.dtype != values.dtype:
                raise TypeError(f"a factor of {factor.dtype} {factor.shape}; expected a 0-d array of {values.dtype}")
            if namespace(values) is np and factor == 1.0:
                factor = None  # on the host this saves a multiplication
        self.steps += 1
        options = {"lr_scale": self.lr / self._base_lr, "factor": factor}
        with on_device_of(values):
            self._update(values, self._store.gradients, self._updated, options)

    def _update(self, values: Array, gradients: Array, groups: tuple[Group, ...], options: dict[str, Any]) -> None:
        raise NotImplementedError

    def state(self) -> dict[str, Array]:
        """Return copies of the state vectors on the host, by name; `steps` is not among them."""
        return {name: to_host(vector).copy() for name, vector in self._state.items()}

    def load_state(self, state: Mapping[str, Array], steps: int) -> None:
        """Set the state vectors to what `state` returned after `steps` steps.

        Raises
        ------
        UserError
            The state belongs to another optimiser or another model.
        """
        if set(state) != set(self._state):
            raise UserError(f"this optimiser's state is {sorted(self._state)}; the file has {sorted(state)}")
        for name, vector in state.items():
            if vector.shape != self._state[name].shape:
                sizes = f"{vector.size} numbers; this model has {self._state[name].size}"
                raise UserError(f"the optimiser's {name} has {sizes}")
            with on_device_of(self._state[name]):
                self._state[name][...] = to_backend(vector, namespace(self._state[name]))
        self.steps = steps


class SGD(Optimizer):
    """Stochastic gradient descent with momentum.

    The formula is in `minivit.ops.update_rules`.

    Parameters
    ----------
    momentum : float
        The factor of the previous update.
    model, lr, weight_decay, groups, layer_decay
        Those of `minivit.train.optimizers.Optimizer`.
    """

    vectors = ("momentum",)

    def __init__(
        self,
        model: Trained,
        lr: float = 0.1,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        groups: Sequence[Group] | None = None,
        layer_decay: float = 1.0,
    ) -> None:
        super().__init__(model, lr, weight_decay, groups, layer_decay)
        expect_number("momentum", momentum)
        self.momentum = momentum

    def _update(self, values: Array, gradients: Array, groups: tuple[Group, ...], options: dict[str, Any]) -> None:
        sgd_step(values, gradients, self._state["momentum"], groups, momentum=self.momentum, **options)


class Adam(Optimizer):
    """Adam; weight decay, if any, is added to the gradient.

    The formula is in `minivit.ops.update_rules`.

    Parameters
    ----------
    betas : tuple of float
        beta1 and beta2, the factors of the averages m and v.
    eps : float
        Added to the root of v.
    model, lr, weight_decay, groups, layer_decay
        Those of `minivit.train.optimizers.Optimizer`.
    """

    vectors = ("m", "v")
    _decoupled = False

    def __init__(
        self,
        model: Trained,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        groups: Sequence[Group] | None = None,
        layer_decay: float = 1.0,
    ) -> None:
        super().__init__(model, lr, weight_decay, groups, layer_decay)
        if not isinstance(betas, Sequence) or isinstance(betas, str) or len(betas) != 2:
            raise UserError(f"betas are {betas!r:.40}; expected two numbers of at least 0 and below 1")
        for beta in betas:
            expect_number("each of betas", beta, below=1.0)
        expect_number("eps", eps)
        self.betas = betas
        self.eps = eps

    def _update(self, values: Array, gradients: Array, groups: tuple[Group, ...], options: dict[str, Any]) -> None:
        options |= {"betas": self.betas, "eps": self.eps, "steps": self.steps, "decoupled": self._decoupled}
        adam_step(values, gradients, self._state["m"], self._state["v"], groups, **options)


class AdamW(Adam):
    """Adam with decoupled weight decay.

    The formula is in `minivit.ops.update_rules`.

    Parameters
    ----------
    betas, eps
        Those of `Adam`.
    model, lr, weight_decay, groups, layer_decay
        Those of `minivit.train.optimizers.Optimizer`.
    """

    _decoupled = True

    def __init__(
        self,
        model: Trained,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.05,
        groups: Sequence[Group] | None = None,
        layer_decay: float = 1.0,
    ) -> None:
        super().__init__(model, lr, betas, eps, weight_decay, groups, layer_decay)
