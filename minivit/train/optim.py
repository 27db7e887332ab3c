"""Optimisers: whole update rules over the flat parameter vector, in pieces that fit in cache.

With g the gradient, lr the learning rate, wd the weight decay and t = 1, 2, ... the step:

    SGD     b = momentum * b + (g + wd * p)            p = p - lr * b

    Adam    g = g + wd * p                             (Kingma and Ba 2015, algorithm 1)
            m = m + (1 - beta1) * (g - m)              v = v + (1 - beta2) * (g * g - v)
            p = p - lr * m_hat / (sqrt(v_hat) + eps)   m_hat = m / (1 - beta1**t),  v_hat = v / (1 - beta2**t)

    AdamW   p = p - lr * wd * p, then Adam with wd = 0 (Loshchilov and Hutter 2019, algorithm 2)

Weight decay acts on matrices alone: not on biases, norms, tokens and positions (`Parameter.decay`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from minivit.arrays import Array, namespace, to_backend, to_host
from minivit.errors import UserError
from minivit.layer import Layer
from minivit.parameters import FlatStore, padded

_CHUNK = 1 << 14  # elements: six vectors of float32 take 384 KiB


class Group(NamedTuple):
    """A stretch of the flat vector with a learning rate and a weight decay of its own."""

    span: slice
    lr: float
    weight_decay: float


def groups_of(model: Layer, lr: float, weight_decay: float) -> list[Group]:
    """Return one group for each run of neighbouring parameters that decay alike."""
    groups: list[Group] = []
    itemsize = model.parameters.store.peek().dtype.itemsize
    for parameter in sorted(model.parameters.values(), key=lambda p: p.span.start):
        decay = weight_decay if parameter.decay else 0.0
        near = bool(groups) and parameter.span.start == padded(groups[-1].span.stop, itemsize)
        if near and groups[-1].weight_decay == decay:
            groups[-1] = groups[-1]._replace(span=slice(groups[-1].span.start, parameter.span.stop))
        else:
            groups.append(Group(parameter.span, lr, decay))
    return groups


def clip_gradients(store: FlatStore, max_norm: float | None) -> Array:
    """Scale all gradients so that their global norm is at most `max_norm`; return the norm before, a 0-d array."""
    gradients = store.gradients
    xp = namespace(gradients)
    norm = xp.sqrt(sum((part * part).sum() for part in _pieces(gradients)))
    if max_norm is not None:
        scale = max_norm / (norm + 1e-6)
        gradients *= xp.where(scale < 1.0, scale, xp.ones_like(scale))
    return xp.asarray(norm)


def _pieces(vector: Array) -> list[Array]:
    size = 1 << 16 if namespace(vector) is np else max(1, vector.size)
    return [vector[start : start + size] for start in range(0, vector.size, size)]


class Optimizer:
    """Shared by all: groups, state vectors, chunks and the count of steps.

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
        self._groups = list(groups) if groups is not None else groups_of(model, lr, weight_decay)
        self._base_lr = lr
        self.lr = lr
        self.steps = 0
        values = self._store.peek()
        self._xp = namespace(values)
        self._chunk = _CHUNK if self._xp is np else max(1, values.size)
        self._state = {name: self._xp.zeros(values.shape, dtype=values.dtype) for name in self.vectors}
        size = min(self._chunk, values.size)
        self._scratch = [self._xp.empty(size, dtype=values.dtype) for _ in range(2)]

    def step(self) -> None:
        """Update all parameters from their gradients."""
        self.steps += 1
        for group in self._groups:
            lr = group.lr * (self.lr / self._base_lr) if self._base_lr else self.lr
            for start in range(group.span.start, group.span.stop, self._chunk):
                piece = slice(start, min(start + self._chunk, group.span.stop))
                scratch = [vector[: piece.stop - piece.start] for vector in self._scratch]
                self._update(piece, lr, group.weight_decay, scratch)

    def _update(self, piece: slice, lr: float, weight_decay: float, scratch: list[Array]) -> None:
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

    def _update(self, piece: slice, lr: float, weight_decay: float, scratch: list[Array]) -> None:
        p, g, b = self._store.peek()[piece], self._store.gradients[piece], self._state["momentum"][piece]
        (a, _) = scratch
        xp = self._xp
        b *= self.momentum
        b += g
        if weight_decay:
            b += xp.multiply(p, weight_decay, out=a)
        p -= xp.multiply(b, lr, out=a)


class Adam(Optimizer):
    """Adam; weight decay, if any, is added to the gradient."""

    vectors = ("m", "v")

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

    def _update(self, piece: slice, lr: float, weight_decay: float, scratch: list[Array]) -> None:
        p, g = self._store.peek()[piece], self._store.gradients[piece]
        if weight_decay:
            g = self._xp.multiply(p, weight_decay, out=scratch[1])
            g += self._store.gradients[piece]
        self._adam(piece, p, g, lr, scratch)

    def _adam(self, piece: slice, p: Array, g: Array, lr: float, scratch: list[Array]) -> None:
        m, v = self._state["m"][piece], self._state["v"][piece]
        beta1, beta2 = self.betas
        xp, a = self._xp, scratch[0]
        xp.subtract(g, m, out=a)
        a *= 1.0 - beta1
        m += a
        xp.multiply(g, g, out=a)
        a -= v
        a *= 1.0 - beta2
        v += a
        xp.multiply(v, 1.0 / (1.0 - beta2**self.steps), out=a)
        xp.sqrt(a, out=a)
        a += self.eps
        xp.divide(m, a, out=a)
        a *= lr / (1.0 - beta1**self.steps)
        p -= a


class AdamW(Adam):
    """Adam with weight decay apart from the gradient."""

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

    def _update(self, piece: slice, lr: float, weight_decay: float, scratch: list[Array]) -> None:
        p, g = self._store.peek()[piece], self._store.gradients[piece]
        if weight_decay:
            p *= 1.0 - lr * weight_decay
        self._adam(piece, p, g, lr, scratch)
