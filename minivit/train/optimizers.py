"""Optimisers: what the update rules of `updates` work with, and the norm of the gradients.

Weight decay acts on matrices alone: not on biases, norms, tokens and positions (`Parameter.decay`).
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


def groups_of(model: Layer, lr: float, weight_decay: float) -> list[Group]:
    """Return one group for each run of neighbouring parameters that decay alike."""
    groups: list[Group] = []
    itemsize = model.parameters.store.values.dtype.itemsize
    for parameter in sorted(model.parameters.values(), key=lambda p: p.span.start):
        decay = weight_decay if parameter.decay else 0.0
        near = bool(groups) and parameter.span.start == padded(groups[-1].span.stop, itemsize)
        if near and groups[-1].weight_decay == decay:
            groups[-1] = groups[-1]._replace(span=slice(groups[-1].span.start, parameter.span.stop))
        else:
            groups.append(Group(parameter.span, lr, decay))
    return groups


def clip_gradients(store: FlatStore, max_norm: float | None) -> Array:
    """Scale all gradients so that their global norm is at most `max_norm`; return the norm before, a 0-d array.

    For a loop of one's own; in `train.loop` the guard makes clipping part of the factor that the optimiser is given.
    """
    gradients = store.gradients
    with on_device_of(gradients):
        norm = gradient_norm(gradients)
        if max_norm is not None:
            gradients *= clip_factor(norm, max_norm)
    return norm


class Optimizer:
    """Shared by all: groups, state vectors and the count of steps.

    Parameters
    ----------
    model : Layer
        Its parameters are updated in place.
    lr : float
        The learning rate; set `lr` to change it for all groups.
    weight_decay : float
        For the parameters that decay.
    groups : sequence of Group, optional
        Instead of `lr` and `weight_decay`, a rate and a decay for each stretch of the flat vector.
    """

    vectors: tuple[str, ...] = ()

    def __init__(
        self, model: Layer, lr: float, weight_decay: float = 0.0, groups: Sequence[Group] | None = None
    ) -> None:
        if lr < 0 or weight_decay < 0:
            raise UserError(f"lr {lr} and weight_decay {weight_decay} must not be negative")
        self._store = model.parameters.store
        self._groups = tuple(groups) if groups is not None else tuple(groups_of(model, lr, weight_decay))
        self._base_lr = lr
        self.lr = lr
        self.steps = 0
        values = self._store.values
        self._xp = namespace(values)
        if values.dtype.itemsize == 2:
            raise UserError(
                f"the parameters are {values.dtype}, in which small updates vanish; train a float32 model with "
                "Engine(model, precision=...)"
            )
        with on_device_of(values):
            self._state = {name: self._xp.zeros(values.shape, dtype=values.dtype) for name in self.vectors}

    def step(self, factor: Array | None = None) -> None:
        """Update all parameters from their gradients.

        Parameters
        ----------
        factor : Array, optional
            0-d, on the device and of the dtype of the gradients, by which they are multiplied. Where it is NaN no
            parameter and no state changes. The step counts all the same, as the host does not know of it.
        """
        values = self._store.values
        if factor is not None:
            namespace(values, factor)
            if factor.shape != () or factor.dtype != values.dtype:
                raise TypeError(f"a factor of {factor.dtype} {factor.shape}; expected a 0-d array of {values.dtype}")
            if self._xp is np and factor == 1.0:
                factor = None  # on the host, that is known
        self.steps += 1
        if self._base_lr:
            groups, lr_scale = self._groups, self.lr / self._base_lr
        else:
            groups, lr_scale = tuple(group._replace(lr=1.0) for group in groups), self.lr
        with on_device_of(values):
            self._update(values, self._store.gradients, groups, {"lr_scale": lr_scale, "factor": factor})

    def _update(self, values: Array, gradients: Array, groups: tuple[Group, ...], options: dict[str, Any]) -> None:
        raise NotImplementedError

    def state(self) -> dict[str, Array]:
        """Return copies of the state vectors on the host, by name; `steps` is beside them."""
        return {name: to_host(vector).copy() for name, vector in self._state.items()}

    def load_state(self, state: Mapping[str, Array], steps: int) -> None:
        """Continue from the vectors that `state` returned after `steps` steps.

        Raises
        ------
        UserError
            The state is another optimiser's or another model's.
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
    """Adam with weight decay apart from the gradient."""

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
