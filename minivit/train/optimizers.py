"""Optimisers: the update rules of `ops.update_rules` with their state, and clipping of gradients by their norm.

Weight decay applies to matrices only: not to biases, norms, tokens and positions (`Parameter.decay`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from minivit.arrays import Array, namespace, on_device_of, to_backend, to_host
from minivit.errors import UserError
from minivit.nn.layer import Layer
from minivit.nn.parameters import FlatStore, padded
from minivit.ops.update_rules import Group, adam_step, clip_factor, gradient_norm, sgd_step


def parameter_groups(model: Layer, lr: float, weight_decay: float) -> list[Group]:
    """Return one group for each parameter of `model`, in the order of the flat vector."""
    return [
        Group(p.span, lr, weight_decay if p.decay else 0.0, p.name, p.shape, p.parts)
        for p in sorted(model.parameters.values(), key=lambda parameter: parameter.span.start)
    ]


def merge_neighbours(groups: Sequence[Group], itemsize: int) -> list[Group]:
    """Return `groups` with neighbouring parameters of one learning rate and decay merged, for elementwise rules.

    Only padding lies between two such parameters. It is zero in the values, the gradients and the state, and an
    elementwise rule keeps it zero.
    """
    merged: list[Group] = []
    previous: Group | None = None
    for group in groups:
        if (
            previous is not None
            and previous.name  # a whole parameter, so that nothing but padding follows it
            and group.span.start == padded(previous.span.stop, itemsize)
            and (group.lr, group.weight_decay) == (previous.lr, previous.weight_decay)
        ):
            merged[-1] = Group(slice(merged[-1].span.start, group.span.stop), group.lr, group.weight_decay)
        else:
            merged.append(group)
        previous = group
    return merged


def clip_gradients(store: FlatStore, max_norm: float | None) -> Array:
    """Scale all gradients so that their global norm is at most `max_norm`; return the norm before, a 0-d array.

    This is for training loops outside of `minivit.train`, whose own step passes the factor to the optimiser instead.
    """
    gradients = store.gradients
    with on_device_of(gradients):
        norm = gradient_norm(gradients)
        if max_norm is not None:
            gradients *= clip_factor(norm, max_norm)
    return norm


class Optimizer:
    """The base class of optimisers: groups, state vectors and the number of steps.

    Parameters
    ----------
    model : Layer
        The model whose parameters are updated in place.
    lr : float
        The learning rate; set `lr` to change it for all groups in proportion.
    weight_decay : float
        The weight decay of parameters with `Parameter.decay`.
    groups : sequence of Group, optional
        The spans of the flat vector to update, each with its own learning rate and weight decay, in place of those of
        all parameters. Other spans are frozen.

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
        self, model: Layer, lr: float, weight_decay: float = 0.0, groups: Sequence[Group] | None = None
    ) -> None:
        if lr < 0 or weight_decay < 0:
            raise UserError(f"lr {lr} and weight_decay {weight_decay} must not be negative")
        self._store = model.parameters.store
        self.groups = tuple(parameter_groups(model, lr, weight_decay) if groups is None else groups)
        self.lr = lr
        self.steps = 0
        values = self._store.values
        self._xp = namespace(values)
        if values.dtype.itemsize == 2:
            raise UserError(
                f"the parameters are {values.dtype}, in which small updates vanish; train a float32 model with "
                "Engine(model, precision=...)"
            )
        # The groups' rates are relative to `lr`. If it is 0, all groups get the rate that `lr` is set to later.
        self._base_lr = lr or 1.0
        updated = self.groups if lr else tuple(group._replace(lr=1.0) for group in self.groups)
        self._updated = tuple(merge_neighbours(updated, values.dtype.itemsize)) if self.elementwise else updated
        with on_device_of(values):
            self._state = {name: self._xp.zeros(values.shape, dtype=values.dtype) for name in self.vectors}

    def step(self, factor: Array | None = None) -> None:
        """Update all parameters from their gradients.

        Parameters
        ----------
        factor : Array, optional
            0-d, on the device and of the dtype of the gradients, which are multiplied by it. If it is NaN, no parameter
            and no state vector changes; `steps` increases all the same, as the host does not know the factor.
        """
        values = self._store.values
        if factor is not None:
            namespace(values, factor)
            if factor.shape != () or factor.dtype != values.dtype:
                raise TypeError(f"a factor of {factor.dtype} {factor.shape}; expected a 0-d array of {values.dtype}")
            if self._xp is np and factor == 1.0:
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
                self._state[name][...] = to_backend(vector, self._xp)
        self.steps = steps


class SGD(Optimizer):
    """Stochastic gradient descent with momentum."""

    vectors = ("momentum",)

    def __init__(
        self,
        model: Layer,
        lr: float = 0.1,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        groups: Sequence[Group] | None = None,
    ) -> None:
        super().__init__(model, lr, weight_decay, groups)
        self.momentum = momentum

    def _update(self, values: Array, gradients: Array, groups: tuple[Group, ...], options: dict[str, Any]) -> None:
        sgd_step(values, gradients, self._state["momentum"], groups, momentum=self.momentum, **options)


class Adam(Optimizer):
    """Adam; weight decay, if any, is added to the gradient."""

    vectors = ("m", "v")
    _decoupled = False

    def __init__(
        self,
        model: Layer,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        groups: Sequence[Group] | None = None,
    ) -> None:
        super().__init__(model, lr, weight_decay, groups)
        if not all(0.0 <= beta < 1.0 for beta in betas):
            raise UserError(f"betas are {betas}; expected two numbers of at least 0 and below 1")
        self.betas = betas
        self.eps = eps

    def _update(self, values: Array, gradients: Array, groups: tuple[Group, ...], options: dict[str, Any]) -> None:
        options |= {"betas": self.betas, "eps": self.eps, "steps": self.steps, "decoupled": self._decoupled}
        adam_step(values, gradients, self._state["m"], self._state["v"], groups, **options)


class AdamW(Adam):
    """Adam with decoupled weight decay."""

    _decoupled = True

    def __init__(
        self,
        model: Layer,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.05,
        groups: Sequence[Group] | None = None,
    ) -> None:
        super().__init__(model, lr, betas, eps, weight_decay, groups)
