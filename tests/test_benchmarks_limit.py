"""The limit: that its products are those which the mathematics needs, in every layout."""

from __future__ import annotations

import multiprocessing
import os

import numpy as np
import pytest
import threadpoolctl
from forks import needs_fork

from benchmarks.bars import systems_of
from benchmarks.products import Product, Weights, products
from benchmarks.sides.limit import layouts, prepare
from benchmarks.task import make_task
from benchmarks.works import WORKS, get_work
from minivit.arrays.shared import shared_zeros
from minivit.nn.config import ViTConfig

SMALL = ["img_size=8", "embed_dim=8", "depth=2", "num_heads=2", "num_classes=3"]


def test_the_products_of_train_tiny_are_those_of_the_mathematics() -> None:
    """Counted by hand: N 65 tokens, D 192, F 768, 48 numbers a patch, 64 patches, 10 classes, 12 blocks."""
    N, D, F, B = 65, 192, 768, 2
    whole_block = N * D * 3 * D + 2 * N * N * D + N * D * D + 2 * N * D * F
    last_block = N * D * 2 * D + D * D + 2 * N * D + D * D + 2 * D * F  # one query
    patch_embed, head = 64 * 48 * D, D * 10
    forward = patch_embed + 11 * whole_block + last_block + head
    backward = patch_embed + 2 * (11 * whole_block + last_block + head)
    config = WORKS["train-tiny"].config
    weights = Weights(config)
    assert sum(p.flops for p in products(config, weights, B, training=False)) == 2 * B * forward
    assert sum(p.flops for p in products(config, weights, B, training=True)) == 2 * B * (forward + backward)


def test_a_mean_of_tokens_needs_all_of_the_last_block() -> None:
    config = ViTConfig(8, 4, 3, 5, 8, 1, 2, mlp_ratio=2.0, class_token=False, global_pool="avg")
    N, D, F = 4, 8, 16
    block = N * D * 3 * D + 2 * N * N * D + N * D * D + 2 * N * D * F
    found = products(config, Weights(config), 3, training=False)
    assert sum(p.flops for p in found) == 2 * 3 * (N * 48 * D + block + D * 5)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("near", [False, True])
def test_the_products_fit_and_write_where_they_say(training: bool, near: bool) -> None:
    config = get_work("train-w64", SMALL).config
    for product in products(config, Weights(config), 3, training, near):
        expected = product.a @ product.b
        product.out[...] = 0
        product.run()
        np.testing.assert_allclose(product.out, expected, rtol=1e-4, atol=1e-3)


def test_the_transposed_operands_of_attention_are_laid_out_by_rows() -> None:
    config = get_work("train-w64", SMALL).config
    N, K = config.num_tokens, config.embed_dim // config.num_heads
    found = [p for p in products(config, Weights(config), 3, training=True) if p.b.shape == (3, config.num_heads, K, N)]
    assert len(found) == 2 * config.depth  # q @ k.T and dheads @ v.T
    assert all(p.b.flags.c_contiguous for p in found)


@pytest.mark.parametrize("rows", [1, 5, 6])
def test_the_shares_of_a_product_are_the_product(rows: int) -> None:
    generator = np.random.default_rng(0)
    a, b = generator.normal(size=(2, rows, 3)), generator.normal(size=(2, 3, 4))
    out = np.zeros((2, rows, 4))
    whole = Product(a, b, out)
    shares = [whole.share(part, 2) for part in range(2)]
    for share in shares:
        share.run()
    np.testing.assert_allclose(out, a @ b)
    assert sum(share.flops for share in shares) == whole.flops


def test_the_layouts_keep_every_thread_busy() -> None:
    assert layouts(WORKS["train-tiny"], 2) == ["threaded", "micro-8", "micro-16", "micro-32"]
    assert layouts(WORKS["predict-224"], 2) == ["threaded", "micro-4", "micro-8", "micro-16"]
    assert layouts(get_work("train-tiny", ["batch_size=4"]), 2) == ["threaded", "micro-2"]
    assert layouts(WORKS["predict-one"], 2) == ["threaded", "rows"]
    near = [f"limit:{layout}-near" for layout in layouts(WORKS["train-tiny"], 2)]
    assert systems_of("limit-near", WORKS["train-tiny"], 2) == near


@pytest.mark.parametrize("variant", ["threaded", "micro-2", "micro-2-near", "rows"])
def test_every_layout_computes_all_products(variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    work = get_work("predict-one" if variant == "rows" else "train-w64", [*SMALL, "patch_size=4"])
    work = work.changed(batch_size=1 if variant == "rows" else 5)
    done: list[int] = []
    monkeypatch.setattr(Product, "run", lambda self: done.append(self.flops))
    monkeypatch.setattr(
        "minivit.engine.worker_pool.can_fork", lambda: False
    )  # a thread's work is seen here, a process's is not
    monkeypatch.setattr("threadpoolctl.threadpool_limits", lambda *limits, **kinds: None)
    prepare(make_task(work, threads=2), variant)()
    config = work.config
    assert sum(done) == sum(p.flops for p in products(config, Weights(config), work.batch_size, work.trains))


@needs_fork
def test_processes_share_the_micro_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of two processes waits in its first product until the other is in its own."""
    work = get_work("train-w64", SMALL).changed(batch_size=2)
    seen, both = shared_zeros((2,), np.int64), multiprocessing.get_context("fork").Barrier(2)
    parent, run = os.getpid(), Product.run

    def noted(product: Product) -> None:
        mine = int(os.getpid() == parent)
        if not seen[mine]:
            both.wait(60)
        seen[mine] += 1
        run(product)

    monkeypatch.setattr(Product, "run", noted)
    with threadpoolctl.threadpool_limits(1, user_api="blas"):  # restores what `prepare` sets for good
        prepare(make_task(work, threads=2), "micro-1")()
    assert list(seen) == [len(products(work.config, Weights(work.config), 1, training=True))] * 2


def test_a_prediction_has_no_layout_with_operands_near() -> None:
    for name, variant in (("predict-224", "micro-8-near"), ("predict-one", "rows-near")):
        with pytest.raises(ValueError, match="near in any case"):
            prepare(make_task(get_work(name, [*SMALL, "patch_size=4"]), threads=2), variant)
