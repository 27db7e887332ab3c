"""What each gain is worth: the variants on a tiny model, the table, and one real process."""

from __future__ import annotations

import functools
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import threadpoolctl

import minivit
from benchmarks import gains
from benchmarks.command import ended
from benchmarks.rounds import WorkerError, run_worker
from benchmarks.sides import minivit as minivit_side
from benchmarks.task import make_task
from benchmarks.works import Work
from minivit import ops
from minivit.engine import engine, worker_pool
from minivit.kernels.numpy.attention import FastAttentionCache
from minivit.kernels.numpy.encoder_block import FastBlockCache
from minivit.kernels.numpy.gelu import FastGELUCache
from minivit.kernels.numpy.layer_norm import FastLayerNormCache
from minivit.nn.config import ViTConfig
from minivit.nn.vit import ViT
from minivit.ops.attention import ALL

MICRO = Work("micro", "training", "vit_micro_patch4_8", {"depth": 2}, batch_size=150)  # micro-batches of 64
LONG = Work("long", "prediction", "vit_micro_patch4_8", {"depth": 2, "img_size": 32}, batch_size=3)  # 65 tokens
KERNELS = {FastBlockCache, FastAttentionCache, FastGELUCache, FastLayerNormCache}


def caches_in(cache: Any) -> set[type]:
    """Return the classes of a cache and of all that it holds."""
    return {type(cache)}.union(*map(caches_in, cache)) if isinstance(cache, (tuple, list)) else set()


@functools.cache
def as_it_is(work_name: str) -> Any:
    work = {work.name: work for work in (MICRO, LONG)}[work_name]
    return minivit_side.prepare(make_task(work, 2), "")()


@pytest.mark.parametrize("name", gains.VARIANTS)
@pytest.mark.parametrize("work", [MICRO, LONG], ids=lambda work: work.name)
def test_a_variant_computes_the_same_and_leaves_everything_as_it_was(name: str, work: Work) -> None:
    variant = gains.VARIANTS[name]
    expected = as_it_is(work.name)
    places = [(ViTConfig, "micro_batch"), (ViT, "queries"), (worker_pool, "can_fork")]
    places += [(engine, name) for name in ("keep_freed_pages", "single_threaded_blas", "_SHARED_TOKENS")]
    before = [getattr(*place) for place in places]
    with variant.change():
        found = minivit_side.prepare(make_task(work, variant.threads or 2), "")()
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert [getattr(*place) for place in places] == before
    assert not ops.registry.set_aside()


@pytest.mark.parametrize(
    ("name", "missing"),
    [
        ("as-is", set()),
        ("block", {FastBlockCache}),
        ("attention", {FastAttentionCache}),
        ("gelu", {FastGELUCache}),
        ("layer-norm", {FastLayerNormCache}),
        ("kernels", {FastAttentionCache, FastGELUCache, FastLayerNormCache}),
    ],
)
def test_without_a_kernel_it_runs_nowhere_and_what_it_is_compared_with_has_it(name: str, missing: set[type]) -> None:
    model = minivit.create_model("vit_micro_patch4_8", depth=1)
    x = np.random.default_rng(0).standard_normal((2, 5, 64), dtype=np.float32)

    def ran(name: str) -> set[type]:
        with gains.VARIANTS[name].change():
            (_, cache), (_, norm_cache) = model.blocks[0].forward(x), model.norm.forward(x)
        return (caches_in(cache) | caches_in(norm_cache)) & KERNELS

    against = ran(gains.VARIANTS[name].against)
    if name != "kernels":
        assert against - ran(name) == missing
    else:
        assert not ran(name)


def test_each_other_gain_is_missing_in_its_variant() -> None:
    config = MICRO.config
    model = ViT(config)
    assert (worker_pool.can_fork(), model.queries(1)) == (sys.platform == "linux", slice(0, 1))
    with gains.VARIANTS["processes"].change():
        assert not worker_pool.can_fork()
    with gains.VARIANTS["pages"].change():
        assert vars(engine)["keep_freed_pages"]() is False
    with gains.VARIANTS["class-token"].change():
        assert model.queries(1) == ALL
    sizes = {}
    for name in ("as-is", "half", "twice"):
        with gains.VARIANTS[name].change():
            sizes[name] = config.micro_batch
    assert sizes == {"as-is": 64, "half": 32, "twice": 128}
    assert gains.VARIANTS["workers"].threads == gains.VARIANTS["whole-batch"].threads == 1
    with gains.VARIANTS["whole-batch"].change(), threadpoolctl.threadpool_limits(2, user_api="blas") as limits:
        assert config.micro_batch > MICRO.batch_size
        with vars(engine)["single_threaded_blas"]():
            assert {info["num_threads"] for info in limits._controller.info() if info["user_api"] == "blas"} == {2}


def test_the_table_has_a_row_for_each_variant_and_a_column_for_each_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    speeds = {"as-is": [1.0] * 5, "block": [1.1] * 5, "gelu": [1.32] * 5, "processes": [1.0, 1.2, 1.4, 1.6, 1.8]}
    left: dict[tuple[str, str], list[float]] = {}

    def run(name: str, work: str, options: Any, command: Any) -> dict[str, Any]:
        assert options == ["--seconds", "0.1", "--set", "depth=2"]
        if (name, work) == ("workers", "train-w64"):
            raise WorkerError("MemoryError")
        times = left.setdefault((name, work), list(speeds.get(name, [2.0] * 5)))
        return {"seconds": [0.1 * times.pop(0)], "peak_bytes": 10**8}

    monkeypatch.setattr(gains, "run_worker", run)
    out, page = tmp_path / "deep" / "gains.json", tmp_path / "gains.md"
    arguments = ["train-w64", "predict-224", "--seconds", "0.1", "--set", "depth=2"]
    assert gains.main([*arguments, "--json", str(out), "--markdown", str(page)]) == 0
    text = page.read_text()
    assert text in capsys.readouterr().out
    rows = {cells[1]: cells[2:4] for line in text.splitlines() if len(cells := [*map(str.strip, line.split("|"))]) == 5}
    titles = {name: variant.title for name, variant in gains.VARIANTS.items()}
    assert [*rows][2:] == [*titles.values()]
    assert rows[titles["as-is"]] == ["640.0 images/s", "320.0 images/s"]
    assert rows[titles["gelu"]] == ["1.20 (1.20 to 1.20)"] * 2  # over that without the block's kernel
    assert rows[titles["processes"]] == ["1.40 (1.00 to 1.80) ?"] * 2
    assert rows[titles["workers"]] == ["failed: MemoryError", "2.00 (2.00 to 2.00)"]

    whole = json.loads(out.read_text())
    assert {"minivit", "NumPy", "BLAS"} <= set(whole["versions"])
    assert [work["name"] for work in whole["works"]] == ["train-w64", "predict-224"]
    gelu, workers = (whole["works"][0]["variants"][name] for name in ("gelu", "workers"))
    assert gelu["ratio"]["of_medians"] == pytest.approx(1.2)
    assert (gelu["against"], len(gelu["results"])) == ("block", 5)
    assert (workers["ratio"], workers["stopped"]) == (None, "failed: MemoryError")


def test_ctrl_c_keeps_the_works_that_are_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(name: str, work: str, **_: Any) -> dict[str, Any]:
        if work == "predict-224":
            raise KeyboardInterrupt
        return {"seconds": [0.1], "peak_bytes": 10**8}

    monkeypatch.setattr(gains, "run_worker", run)
    out, page = tmp_path / "gains.json", tmp_path / "gains.md"
    arguments = ["train-w64", "predict-224", "--rounds", "1", "--json", str(out), "--markdown", str(page)]
    assert ended(lambda: gains.main(arguments)) == 130
    assert [work["name"] for work in json.loads(out.read_text())["works"]] == ["train-w64"]
    assert "train-w64" in page.read_text()


def test_without_the_step_as_it_is_there_is_no_ratio(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(name: str, **_: Any) -> dict[str, Any]:
        if name == "as-is":
            raise WorkerError("MemoryError")
        return {"seconds": [0.1], "peak_bytes": 10**8}

    monkeypatch.setattr(gains, "run_worker", run)
    assert gains.main(["train-w64", "--rounds", "1"]) == 1
    with pytest.raises(SystemExit):
        gains.main(["train-huge"])


def test_a_process_measures_a_variant() -> None:
    small = ["img_size=8", "embed_dim=8", "depth=2", "num_heads=2", "batch_size=2"]
    options = ["--seconds", "0", *(text for assignment in small for text in ("--set", assignment))]
    result = run_worker("processes", "train-w64", options, command=gains.COMMAND)
    assert len(result["seconds"]) == 3
    assert min(result["seconds"]) > 0
