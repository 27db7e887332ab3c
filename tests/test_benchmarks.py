"""The benchmarks: workloads, baselines, the products of the limit, minivit and its ablations."""

import os
import sys
from contextlib import closing, nullcontext
from dataclasses import replace
from multiprocessing import RawArray
from typing import Any
from unittest import mock

import numpy as np
import pytest
import threadpoolctl
from forks import needs_fork

import minivit
from benchmarks import systems
from benchmarks.baselines import ABLATED, BARS, BASELINES, bars_of, impossible, systems_of, usual_baselines
from benchmarks.products import Product, Weights, products
from benchmarks.systems import minivit as minivit_system
from benchmarks.systems.limit import layouts
from benchmarks.systems.minivit import ABLATIONS
from benchmarks.workloads import GPU_WORKLOADS, WORKLOADS, Workload, make_task
from minivit import ViTConfig, ops
from minivit.engine import engine, worker_pool
from minivit.nn.summary import summarize
from minivit.nn.vit import ViT
from minivit.ops.attention import ALL

SMALL = {"img_size": 8, "embed_dim": 8, "depth": 2, "num_heads": 2, "num_classes": 3}
TRAIN = replace(WORKLOADS["train-w64"].changed(**SMALL), batch_size=4)
PREDICT = WORKLOADS["predict-one"].changed(**SMALL, patch_size=4)
MICRO = Workload("micro", "training", "vit_micro_patch4_8", {"depth": 2}, batch_size=150)  # micro-batches of 64
LONG = Workload("long", "prediction", "vit_micro_patch4_8", {"depth": 2, "img_size": 32}, batch_size=3)  # 65 tokens


def test_the_workloads_are_those_of_the_bars() -> None:
    sizes = {
        name: (c.embed_dim, c.depth, c.num_heads, c.hidden_dim, c.num_tokens, workload.batch_size)
        for name, workload in WORKLOADS.items()
        for c in [workload.config]
    }
    assert sizes == {
        "train-tiny": (192, 12, 3, 768, 65, 128),
        "train-tiny-1024": (192, 12, 3, 768, 65, 1024),
        "train-w96": (96, 6, 4, 192, 65, 128),
        "train-w64": (64, 4, 8, 128, 65, 64),
        "predict-224": (192, 12, 3, 768, 197, 32),
        "predict-one": (192, 12, 3, 768, 197, 1),
    }
    assert [w.batch_size for w in GPU_WORKLOADS.values()] == [1024, 128, 256, 1024]
    for name, workload in (WORKLOADS | GPU_WORKLOADS).items():
        config = workload.config  # of a model that every baseline has
        assert workload.kind == ("training" if "train" in name else "prediction")
        assert (config.class_token, config.global_pool, config.act_layer) == (True, "token", "gelu")
        rates = (config.drop_rate, config.pos_drop_rate, config.proj_drop_rate, config.attn_drop_rate)
        assert not any((*rates, config.drop_path_rate))
    assert {bar.workload for bar in BARS} == {*WORKLOADS, "start-up", *GPU_WORKLOADS} - {"gpu-predict-32"}
    assert {bar.baseline for bar in BARS} <= {*BASELINES, "timm"}


def test_a_changed_workload_has_no_bars() -> None:
    training = GPU_WORKLOADS["gpu-train-tiny"]
    assert [(bar.at_least, bar.aim) for bar in bars_of(training, "compile")] == [(0.9, 1.2)]
    assert bars_of(replace(training, precision="tf32"), "compile") == []
    assert replace(training, precision="tf32").title.endswith("65 tokens, batch 1024, float32 (TF32)")
    assert bars_of(WORKLOADS["train-tiny"].changed(depth=1), "eager") == []


def test_a_task_is_the_same_every_time() -> None:
    first, second = (make_task(TRAIN, 1) for _ in range(2))
    np.testing.assert_array_equal(first.images, second.images)
    assert first.state.keys() == second.state.keys()
    assert all(np.array_equal(value, second.state[name]) for name, value in first.state.items())
    assert all(value.any() for value in first.state.values())
    assert {name for name in first.decay if "blocks.0.mlp.fc1" in name} == {"blocks.0.mlp.fc1.weight"}


def test_the_baselines_that_are_measured_by_default() -> None:
    assert usual_baselines(WORKLOADS["train-tiny-1024"]) == ["eager", "eager-kept", "limit"]
    assert {"eager", "compile", "jax", "limit"} <= set(usual_baselines(WORKLOADS["train-tiny"]))
    assert ["onnx" in usual_baselines(WORKLOADS[name]) for name in ("predict-one", "train-tiny")] == [True, False]
    assert impossible("onnx", WORKLOADS["train-tiny"]) == "it does not train"
    assert systems_of("gelu", TRAIN, 2) == ("minivit:gelu",)
    assert (ABLATED["gelu"].against, ABLATED["kernels"].against) == ("minivit:block", "minivit")


@pytest.mark.parametrize("system", ["minivit", "limit:threaded"])
@pytest.mark.parametrize("name", [*WORKLOADS])
def test_every_workload_runs_on_what_needs_no_other_library(name: str, system: str) -> None:
    workload = replace(WORKLOADS[name].changed(**SMALL, patch_size=4), batch_size=min(3, WORKLOADS[name].batch_size))
    with threadpoolctl.threadpool_limits(1, user_api="blas"):  # restores what the limit sets for good
        step = systems.prepare(system, make_task(workload, 1))
        results = [step.to_host(step.run()) for _ in range(6)]
        step.close()
    if system == "minivit":
        assert results[0].shape == (() if workload.trains else (workload.batch_size, 3))
        assert results[-1] < results[0] if workload.trains else np.isfinite(results).all()


def test_the_products_of_train_tiny_are_those_of_the_mathematics() -> None:
    """Counted by hand: N 65 tokens, D 192, F 768, 48 numbers a patch, 64 patches, 10 classes, 12 blocks."""
    N, D, F, B = 65, 192, 768, 2
    whole_block = N * D * 3 * D + 2 * N * N * D + N * D * D + 2 * N * D * F
    last_block = N * D * 2 * D + D * D + 2 * N * D + D * D + 2 * D * F  # one query
    patch_embed, head = 64 * 48 * D, D * 10
    forward = patch_embed + 11 * whole_block + last_block + head
    backward = patch_embed + 2 * (11 * whole_block + last_block + head)
    config = WORKLOADS["train-tiny"].config
    weights = Weights(config)
    assert sum(p.flops for p in products(config, weights, B, training=False)) == 2 * B * forward
    assert sum(p.flops for p in products(config, weights, B, training=True)) == 2 * B * (forward + backward)


def test_a_mean_of_tokens_needs_all_of_the_last_block() -> None:
    config = ViTConfig(8, 4, 3, 5, 8, 1, 2, mlp_ratio=2.0, class_token=False, global_pool="avg")
    N, D, F = 4, 8, 16
    block = N * D * 3 * D + 2 * N * N * D + N * D * D + 2 * N * D * F
    found = products(config, Weights(config), 3, training=False)
    assert sum(p.flops for p in found) == 2 * 3 * (N * 48 * D + block + D * 5) == 3 * summarize(config).flops
    assert {p.op for p in found} == {"linear", "attention"}


@pytest.mark.parametrize("training", [False, True])
def test_the_products_fit_and_write_where_they_say(training: bool) -> None:
    config = TRAIN.config
    found = products(config, Weights(config), 3, training)
    for product in found:
        expected = product.a @ product.b
        product.out[...] = 0
        product.run()
        np.testing.assert_allclose(product.out, expected, rtol=1e-4, atol=1e-3)
    N, K = config.num_tokens, config.embed_dim // config.num_heads
    transposed = [p.b for p in found if p.b.shape == (3, config.num_heads, K, N)]  # q @ k.T and dheads @ v.T
    assert len(transposed) == (1 + training) * config.depth
    assert all(b.flags.c_contiguous for b in transposed), "laid out by rows"


@pytest.mark.parametrize("rows", [1, 5, 6])
def test_the_shares_of_a_product_are_the_product(rows: int) -> None:
    a, b = np.random.default_rng(0).normal(size=(2, rows, 3)), np.ones((2, 3, 4))
    whole = Product("linear", a, b, np.zeros((2, rows, 4)))
    shares = [whole.share(part, 2) for part in range(2)]
    for share in shares:
        share.run()
    np.testing.assert_allclose(whole.out, a @ b)
    assert sum(share.flops for share in shares) == whole.flops


def test_the_layouts_keep_every_thread_busy() -> None:
    assert layouts(WORKLOADS["train-tiny"], 2) == ["threaded", "micro-8", "micro-16", "micro-32"]
    assert layouts(WORKLOADS["predict-224"], 2) == ["threaded", "micro-4", "micro-8", "micro-16"]
    assert layouts(TRAIN, 2) == ["threaded", "micro-2"]
    assert systems_of("limit", WORKLOADS["predict-one"], 2) == ["limit:threaded", "limit:rows"]


@needs_fork
@pytest.mark.parametrize("layout", ["threaded", "micro-2", "micro-1", "rows"])
def test_every_layout_computes_all_products(layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    workload = PREDICT if layout == "rows" else replace(TRAIN, batch_size=5)
    done = np.frombuffer(RawArray("q", 2), np.int64)  # by this process, and by the other one
    parent, run = os.getpid(), Product.run

    def counted(product: Product) -> None:
        done[int(os.getpid() != parent)] += product.flops
        run(product)

    monkeypatch.setattr(Product, "run", counted)
    with (
        threadpoolctl.threadpool_limits(1, user_api="blas"),  # restores what `prepare` sets for good
        closing(systems.prepare(f"limit:{layout}", make_task(workload, threads=2))) as step,
    ):
        step.run()
    config = workload.config
    of_one = sum(p.flops for p in products(config, Weights(config), 1, workload.trains))
    shares = {"micro-2": [3, 2], "micro-1": [3, 2]}.get(layout, [workload.batch_size, 0])
    assert list(done) == [count * of_one for count in shares]


def kernels_in(cache: Any) -> set[str]:
    """Return the names of the kernels' classes in a cache and in all that it holds."""
    names = {type(cache).__name__}.union(*map(kernels_in, cache if isinstance(cache, (tuple, list)) else ()))
    return {name for name in names if name.startswith("Fast")}


@pytest.mark.parametrize("name", ABLATIONS)
@pytest.mark.parametrize("workload", [MICRO, LONG], ids=lambda workload: workload.name)
def test_an_ablation_computes_the_same_and_leaves_everything_as_it_was(name: str, workload: Workload) -> None:
    places = [(ViT, "queries"), (worker_pool, "can_fork"), (engine, "keeping_freed_pages")]
    before = [getattr(*place) for place in places]
    results: list[Any] = []
    for variant in ("", name):
        with closing(minivit_system.prepare(make_task(workload, 2), variant)) as step:
            results.append(step.run())
    np.testing.assert_allclose(results[1], results[0], rtol=1e-4, atol=1e-5)
    assert [getattr(*place) for place in places] == before
    assert not ops.registry.disabled_kernels()


@pytest.mark.parametrize(
    ("name", "missing"),
    [
        ("", set()),
        ("block", {"FastBlockCache"}),
        ("attention", {"FastAttentionCache"}),
        ("gelu", {"FastGELUCache"}),
        ("layer-norm", {"FastLayerNormCache"}),
    ],
)
def test_without_a_kernel_it_runs_nowhere_and_what_it_is_compared_with_has_it(name: str, missing: set[str]) -> None:
    model = minivit.create_model("vit_micro_patch4_8", depth=1)
    x = np.random.default_rng(0).standard_normal((2, 5, 64), dtype=np.float32)

    def ran(name: str) -> set[str]:
        with ABLATIONS[name].change():
            return kernels_in((model.blocks[0].forward(x)[1], model.norm.forward(x)[1]))

    assert ran(ABLATIONS[name].against) - ran(name) == missing
    assert not ran("kernels")


def test_each_other_gain_is_missing_in_its_ablation() -> None:
    model = ViT(MICRO.config)
    assert (worker_pool.can_fork(), model.queries(1)) == (sys.platform == "linux", slice(0, 1))
    with ABLATIONS["processes"].change():
        assert not worker_pool.can_fork()
    with ABLATIONS["pages"].change():
        assert vars(engine)["keeping_freed_pages"] is nullcontext
    with ABLATIONS["class-token"].change():
        assert model.queries(1) == ALL
    with mock.patch.object(minivit, "Engine", wraps=minivit.Engine) as made:
        for name in ("", "half", "twice", "workers", "whole-batch"):
            minivit_system.prepare(make_task(MICRO, 2), name).close()
    sizes = [call.args[1:3] for call in made.call_args_list]
    assert sizes == [(2, 64), (2, 32), (2, 128), (1, 64)], "the whole batch is the model's own, without an engine"
