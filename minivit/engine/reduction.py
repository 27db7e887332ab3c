"""The reduction order: how the gradients of the micro-batches of a step are added.

Each group holds neighbouring micro-batches (`members`). Inside a group the gradients are added in index order, and the
groups are added by a fixed binary tree, ``((g0 + g1) + (g2 + g3)) + ((g4 + g5) + (g6 + g7))``. So the sum has the same
bits whichever worker computes which group. Groups differ by at most one micro-batch, and the larger ones come first, so
that workers that compute neighbouring groups at the same time rarely wait for each other. One worker computes the
micro-batches in index order.

The groups are computed in rounds, one group for each worker. Two groups are added as soon as both are complete: each
worker adds a part of the vectors. The vector of the second group is then free for a later one, so that `workers`
workers need about ``workers + log2(groups / workers)`` gradient vectors instead of one for each group.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from minivit.arrays import Array

_BLOCK = 1 << 15  # elements of each vector that are added at a time, so that they stay in cache between two sums


class Round(NamedTuple):
    """A group for each worker, in its own vector, and the sums to compute when all of these groups are complete."""

    groups: range
    vectors: list[int]  # the index of each group's gradient vector
    sums: list[tuple[int, int]]  # the second vector is added to the first


def members(group: int, groups: int, count: int) -> range:
    """Return the indices of the micro-batches in one of `groups` groups of `count` micro-batches."""
    size, larger = divmod(count, groups)
    start = group * size + min(group, larger)
    return range(start, start + size + (group < larger))


def tree(count: int) -> list[tuple[int, int]]:
    """Return the sums that add `count` vectors: ``(i, j)`` adds vector j to vector i. The total is in vector 0."""
    strides = [1 << level for level in range((count - 1).bit_length())]
    return [(i, i + stride) for stride in strides for i in range(0, count - stride, 2 * stride)]


@functools.cache
def reduction_plan(groups: int, workers: int) -> list[Round]:
    """Return the rounds in which `workers` workers compute `groups` groups and add them by the tree of `tree`."""
    plan, vector = [], dict[int, int]()
    for start in range(0, groups, workers):
        done = min(start + workers, groups)
        for group in range(start, done):
            vector[group] = min(set(range(groups)) - set(vector.values()))
        due = [(i, j) for i, j in tree(groups) if start < min(2 * j - i, groups) <= done]
        own = [vector[group] for group in range(start, done)]
        plan.append(Round(range(start, done), own, [(vector[i], vector[j]) for i, j in due]))
        for _, j in due:
            del vector[j]
    return plan


def vectors_needed(groups: int, workers: int) -> int:
    """Return how many gradient vectors the plan for at most `groups` groups uses."""
    return 1 + max(max(each.vectors) for each in reduction_plan(groups, workers))


def add_vectors(vectors: Sequence[Array], sums: Iterable[tuple[int, int]], number: int = 0, workers: int = 1) -> None:
    """Do the share of worker `number` in `sums` of flat `vectors`: all sums, on a part of the elements."""
    length = len(vectors[0])
    start, stop = (length * n // workers for n in (number, number + 1))
    for begin in range(start, stop, _BLOCK):
        block = slice(begin, min(begin + _BLOCK, stop))
        for i, j in sums:
            vectors[i][block] += vectors[j][block]
