"""The optimiser Muon: `ops.muon` for the matrices of blocks and stem, AdamW for everything else."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np

from minivit.arrays import Array, namespace
from minivit.engine.machine import single_threaded_blas
from minivit.engine.threads import on_threads
from minivit.errors import UserError, expect_number, expect_whole
from minivit.ops.muon import muon_step
from minivit.ops.update_rules import Group, adam_step
from minivit.train.groups import Trained, merge_neighbours
from minivit.train.optimizers import AdamW

MATRICES = (
    "blocks.*.weight",
    "patch_embed.convs.*.conv.weight",
    "encoder.blocks.*.weight",
    "decoder_blocks.*.weight",
)


class Muon(AdamW):
    """Muon for the matrices of the blocks of a ViT, with q, k and v as separate matrices, and AdamW for the rest.

    Muon also updates the convolutions of a stem: the matrix of one has a row for each pixel and channel of its window.
    Both have one learning rate and weight decay, for which those of AdamW are a good start; see `minivit.ops.muon`.

    Parameters
    ----------
    momentum : float
        The momentum of the matrices.
    betas, eps
        Those of AdamW.
    matrices : str or sequence of str
        A pattern of the names of the parameters that Muon updates, or several; of those that match one, the parameters
        with two axes.
    threads : int
        Number of threads, on the host, that share the matrices. The bits do not depend on it. At width 192 two threads
        take 0.6 of the time of one, at 96 the same time.
    model, lr, weight_decay, groups, layer_decay
        Those of `minivit.train.optimizers.Optimizer`.
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
        matrices: str | Sequence[str] = MATRICES,
        threads: int = 1,
    ) -> None:
        super().__init__(model, lr, betas, eps, weight_decay, groups, layer_decay)
        expect_number("momentum", momentum, below=1.0)
        expect_whole("threads", threads)
        patterns = (matrices,) if isinstance(matrices, str) else matrices
        if not isinstance(patterns, Sequence) or not all(isinstance(pattern, str) for pattern in patterns):
            raise UserError(f"matrices is {matrices!r:.40}; expected patterns of names such as 'blocks.*.weight'")
        self.momentum = momentum
        matched: list[Group] = []
        others: list[Group] = []
        for group in self._updated:
            matches = len(group.shape) == 2 and any(fnmatch.fnmatchcase(group.name, pattern) for pattern in patterns)
            (matched if matches else others).append(group)
        self._shares = _shares(matched, threads if namespace(self._store.values) is np else 1)
        self._others = tuple(merge_neighbours(others, self._store.values.dtype.itemsize))

    @property
    def has_matrices(self) -> bool:
        """Whether there is a matrix that Muon updates; without one it is AdamW."""
        return bool(self._shares)

    def _update(self, values: Array, gradients: Array, groups: tuple[Group, ...], options: dict[str, Any]) -> None:
        m, v = self._state["m"], self._state["v"]
        if self._shares:

            def update(share: int) -> None:
                muon_step(values, gradients, m, self._shares[share], momentum=self.momentum, **options)

            # With more threads of BLAS the bits of a product would depend on their number.
            with single_threaded_blas() if namespace(values) is np else nullcontext():
                on_threads(update, len(self._shares))
        if self._others:
            options |= {"betas": self.betas, "eps": self.eps, "steps": self.steps, "decoupled": True}
            adam_step(values, gradients, m, v, self._others, **options)


def _shares(matrices: Sequence[Group], threads: int) -> list[tuple[Group, ...]]:
    """Return the matrices in at most `threads` shares with about the same number of multiplications each."""
    shares: list[list[Group]] = [[] for _ in range(min(threads, len(matrices)))]
    loads = [0] * len(shares)
    for group in sorted(matrices, key=_multiplications, reverse=True):
        least = loads.index(min(loads))
        shares[least].append(group)
        loads[least] += _multiplications(group)
    return [tuple(share) for share in shares]


def _multiplications(group: Group) -> int:
    parts = max(1, len(group.parts))
    short, long = sorted((group.shape[0], group.shape[1] // parts))
    return parts * (2 * short * short * long + short**3)
