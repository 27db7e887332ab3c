"""The optimiser Muon: `ops.muon` for the matrices of the blocks, AdamW for everything else."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np

from minivit.arrays import Array, namespace
from minivit.engine.machine import single_threaded_blas
from minivit.errors import UserError, expect_number
from minivit.ops.muon import muon_step
from minivit.ops.update_rules import Group, adam_step
from minivit.train.groups import Trained, merge_neighbours
from minivit.train.optimizers import AdamW


class Muon(AdamW):
    """Muon for the matrices of the blocks of a ViT, with q, k and v apart, and AdamW for all other parameters.

    Both have one learning rate and weight decay, for which those of AdamW are a good start; see `minivit.ops.muon`.

    Parameters
    ----------
    momentum : float
        The momentum of the matrices.
    betas, eps
        Those of AdamW.
    matrices : str
        A pattern of the names of the parameters that Muon updates; of those it matches, the ones with two axes.
    """

    elementwise = False

    def __init__(
        self,
        model: Trained,
        lr: float = 1e-3,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.05,
        groups: Sequence[Group] | None = None,
        layer_decay: float = 1.0,
        matrices: str = "blocks.*.weight",
    ) -> None:
        super().__init__(model, lr, betas, eps, weight_decay, groups, layer_decay)
        expect_number("momentum", momentum, below=1.0)
        if not isinstance(matrices, str):
            raise UserError(f"matrices is {matrices!r:.40}; expected a pattern of names such as 'blocks.*.weight'")
        self.momentum = momentum
        chosen = [len(group.shape) == 2 and fnmatch.fnmatchcase(group.name, matrices) for group in self._updated]
        self._matrices = tuple(group for group, is_matrix in zip(self._updated, chosen, strict=True) if is_matrix)
        others = [group for group, is_matrix in zip(self._updated, chosen, strict=True) if not is_matrix]
        self._others = tuple(merge_neighbours(others, self._store.values.dtype.itemsize))

    @property
    def has_matrices(self) -> bool:
        """Whether there is a matrix that Muon updates; without one it is AdamW."""
        return bool(self._matrices)

    def _update(self, values: Array, gradients: Array, groups: tuple[Group, ...], options: dict[str, Any]) -> None:
        m, v = self._state["m"], self._state["v"]
        if self._matrices:
            # With more threads the bits of a product would depend on their number.
            with single_threaded_blas() if namespace(values) is np else nullcontext():
                muon_step(values, gradients, m, self._matrices, momentum=self.momentum, **options)
        if self._others:
            options |= {"betas": self.betas, "eps": self.eps, "steps": self.steps, "decoupled": True}
            adam_step(values, gradients, m, v, self._others, **options)
