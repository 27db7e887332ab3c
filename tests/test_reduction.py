"""The reduction order: a fixed tree over groups of micro-batches, the same bits for any number of workers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from contract import assert_same_bits
from small_vit import batch, model

from minivit import Engine, ViTConfig, get_config
from minivit.arrays import Array
from minivit.engine.reduction import add_vectors, reduction_plan, tree, vectors_needed

WORKERS = (1, 2, 3, 4, 5, 8, 9)


def expression(count: int) -> str:
    """Return what the sums of the tree compute."""
    terms = [f"g{i}" for i in range(count)]
    for i, j in tree(count):
        terms[i] = f"({terms[i]}+{terms[j]})"
    return terms[0]


def test_the_tree_is_the_documented_one() -> None:
    assert expression(8) == "(((g0+g1)+(g2+g3))+((g4+g5)+(g6+g7)))"
    assert expression(7) == "(((g0+g1)+(g2+g3))+((g4+g5)+g6))"
    assert expression(5) == "(((g0+g1)+(g2+g3))+g4)"
    assert [expression(count) for count in (1, 2, 3)] == ["g0", "(g0+g1)", "((g0+g1)+g2)"]


@pytest.mark.parametrize("groups", range(1, 9))
@pytest.mark.parametrize("workers", WORKERS)
def test_rounds_of_any_number_of_workers_compute_the_tree(groups: int, workers: int) -> None:
    held: dict[int, str] = {}
    seen = []
    for turn in reduction_plan(groups, workers):
        assert len(turn.groups) == len(turn.vectors) <= workers
        for group, vector in zip(turn.groups, turn.vectors, strict=True):
            assert vector not in held, "it is not yet added to another"
            held[vector] = f"g{group}"
            seen.append(group)
        for i, j in turn.sums:
            held[i] = f"({held[i]}+{held.pop(j)})"
    assert seen == list(range(groups))
    assert held == {0: expression(groups)}
    assert vectors_needed(groups, workers) <= vectors_needed(8, workers)


def test_few_workers_need_few_gradient_vectors() -> None:
    assert [vectors_needed(8, workers) for workers in (1, 2, 3, 4, 8)] == [4, 4, 5, 5, 8]
    assert [vectors_needed(4, workers) for workers in (1, 2, 3, 4, 8)] == [3, 3, 3, 4, 4]


def test_workers_add_every_element_once_and_processes_can_own_subtrees() -> None:
    """The totals of groups 0 to 3 and of 4 to 7, added, are the total of all eight, to the bit."""
    given = np.random.default_rng(0).standard_normal((8, 100_003)).astype("float32")

    def total(vectors: Array, workers: int = 1) -> Array:
        own = list(vectors.copy())
        for number in range(workers):
            add_vectors(own, tree(len(own)), number, workers)
        return own[0]

    whole = total(given)
    assert_same_bits([total(given, 3)], [whole])
    assert_same_bits([total(np.stack([total(given[:4]), total(given[4:])]))], [whole])
    in_order = given[0].copy()
    for vector in given[1:]:
        in_order += vector
    assert (in_order != whole).any()


def results(workers: int, groups: int | None, size: int, micro_batch: int, kind: str) -> list[Array]:
    images, labels, key = batch(size)
    targets: Any = np.eye(7, dtype="float32")[labels] if kind == "soft labels" else labels
    vit = model()
    with Engine(vit, workers, micro_batch, reduction_groups=groups) as engine:
        for _ in range(2):  # the second with vectors that were used before
            loss, logits = engine.training_step(images, targets, key if kind == "dropout" else None, 0.1)
    return [loss, logits, vit.parameters.store.gradients]


@pytest.mark.parametrize(
    ("size", "micro_batch"),
    [(16, 1), (13, 1), (37, 2), (16, 2), (5, 2), (3, 4)],
    ids=["two each", "uneven", "last one small", "one each", "fewer than groups", "less than a micro-batch"],
)
@pytest.mark.parametrize("kind", ["dropout", "soft labels"])
def test_any_number_of_workers_gives_the_same_bits(size: int, micro_batch: int, kind: str) -> None:
    expected = results(1, None, size, micro_batch, kind)
    for workers in (2, 3, 4, 8):
        assert_same_bits(results(workers, None, size, micro_batch, kind), expected)


@pytest.mark.parametrize("groups", [1, 3, 4])
def test_any_number_of_groups_gives_the_same_bits_for_any_number_of_workers(groups: int, worker_kind: str) -> None:
    expected = results(1, groups, 13, 1, "dropout")
    for workers in (2, 5):
        assert_same_bits(results(workers, groups, 13, 1, "dropout"), expected)


def test_the_number_of_groups_decides_the_bits() -> None:
    """It is a function of the model where it is not given: 8, and 4 where a gradient vector is large."""
    gradients = [results(2, groups, 13, 1, "dropout")[2] for groups in (1, 3, 8, None)]
    assert (gradients[0] != gradients[1]).any()
    assert (gradients[1] != gradients[2]).any()
    assert_same_bits([gradients[3]], [gradients[2]])
    assert get_config("vit_base_patch16_224").reduction_groups == 8
    assert ViTConfig(embed_dim=1024, depth=24, num_heads=16).reduction_groups == 4
