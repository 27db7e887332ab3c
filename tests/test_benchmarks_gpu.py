"""The command that measures on a GPU: its time, the card, its parts on devices that do not exist, and its rehearsal."""

import functools
import importlib.util
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from devices import needs_kernels
from fake_gpu import DeviceSynchronizedError, FakeDevice, FakeHook, FakePart, FakeWorker, fake_cupyx
from strict import strict

from benchmarks import gpu, gpu_parts, worker
from benchmarks.command import ended
from benchmarks.systems import Step
from benchmarks.systems import minivit as minivit_system
from benchmarks.workloads import GPU_WORKLOADS, Workload, make_task
from minivit.arrays import dtype_named
from minivit.errors import UserError
from minivit.kernels.cuda import runtime
from minivit.nn.summary import summarize

TRAINING = GPU_WORKLOADS["gpu-train-tiny"]
SMALL = Workload("small", "training", "vit_micro_patch4_8", {"depth": 1}, 2, "strict")


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (("no-such-nvidia-smi",), r"no NVIDIA driver here \(no nvidia-smi\).*--rehearse"),
        ((sys.executable, "-c", "print('No devices were found'); exit(6)"), "No devices were found.*--rehearse"),
        ((sys.executable, "-c", ""), "names no GPU.*--rehearse"),
    ],
)
def test_the_card_is_described_by_the_drivers_tool(command: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        gpu.card(command)
    found = gpu.card((sys.executable, "-c", "print('NVIDIA H200, 580.159.03, 143771 MiB')"))
    assert list(found.values()) == ["NVIDIA H200", "580.159.03", "143771 MiB"]


def test_systems_are_compared_as_long_as_there_is_time_and_one_that_fails_is_named() -> None:
    names = {"minivit": "minivit", "eager": "pytorch:plain", "compile": "pytorch:compile-plain", "jax": "jax"}
    fakes = [FakeWorker(10.0), FakeWorker(12.0), FakeWorker(8.5), FakeWorker("OutOfMemoryError: CUDA out of memory")]
    workers = dict(zip(names.values(), fakes, strict=True))

    def start(system: str, workload: Any) -> Any:
        return workers[system]

    (found,) = gpu.compare_all([TRAINING], names, 0.1, gpu.Budget(1000), start)
    ours, eager, compiled = found.rows
    assert ours.images_per_second == pytest.approx(102_400)
    assert eager.ratio is not None
    assert eager.ratio.interval == pytest.approx((1.2, 1.2))
    assert (eager.verdicts, compiled.verdicts) == (("1 (1.6): reached",), ("0.9 (1.2): missed",))
    assert (found.notes, found.failed) == (["jax: failed: OutOfMemoryError: CUDA out of memory"], ["jax"])
    assert all(worker.closed for worker in workers.values())
    json.dumps(found.to_dict())
    assert list(gpu.compare_all([TRAINING], names, 0.1, budget := gpu.Budget(10), start)) == []
    assert budget.skipped[0].startswith(f"{TRAINING.title}: skipped: 10 of 10 s left")


@pytest.fixture
def without_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "torch" else found(name))


@pytest.mark.usefixtures("without_torch")
def test_a_rehearsal_goes_through_all_and_writes_it(tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "gpu.json"
    assert gpu.main(["--rehearse", "--quick", "--only", "prediction", "kernels", "--out", str(out)]) == 0
    report = json.loads(out.read_text())
    assert report["rehearsal"]
    (step,) = report["steps"]
    assert (step["workload"]["name"], step["rows"][0]["title"]) == ("rehearsal-predict", "minivit")
    assert len(step["systems"]["minivit"]["results"]) == 5
    assert report["versions"]["numpy"] == np.__version__
    assert report["skipped"] == ["eager, compile, profile: not measured: torch is not installed"]
    assert {"card", "surroundings", "failed", *gpu.PARTS} < set(report)
    assert report["skipped"][0] in capsys.readouterr().out


def test_without_a_gpu_the_command_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(gpu, "card", functools.partial(gpu.card, ("no-such-nvidia-smi",)))
    assert ended(functools.partial(gpu.main, [])) == 2
    assert "no NVIDIA driver here" in capsys.readouterr().err
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    with pytest.raises(UserError, match="backend 'cupy'"):
        gpu_parts.measure_part("kernels", "bfloat16")


@pytest.mark.usefixtures("without_torch")
def test_parts_are_shown_and_written_and_their_failures_end_in_status_1(
    tmp_path: Any, monkeypatch: Any, capsys: Any
) -> None:
    monkeypatch.setattr(gpu, "card", lambda: {"name": "NVIDIA H200", "driver_version": "580"})
    monkeypatch.setattr(gpu, "Worker", FakePart)
    out = tmp_path / "gpu.json"
    assert gpu.main(["--only", "claims", "kernels", "products", "profile", "--out", str(out)]) == 1
    report = json.loads(out.read_text())
    assert set(report["kernels"]) == set(report["products"]) == {"bfloat16", "tf32"}
    assert set(report["claims"]) == {"bfloat16"}
    assert report["failed"] == ["kernels, bfloat16: embed", "kernels, tf32: embed", "products, tf32"]
    assert report["products"]["tf32"] == {"error": "RuntimeError: no cuBLAS"}
    words, shown = (
        ("MemoryError", "below", "- product: 60", "- found: False", "580; cupy 14.2"),
        capsys.readouterr().out,
    )
    assert all(word in shown for word in words)
    monkeypatch.chdir(tmp_path)
    assert gpu.main(["--quick", "--seconds", "1", "--only", "kernels"]) == 0
    skipped = json.loads(next(tmp_path.glob("build/gpu-*.json")).read_text())["skipped"]
    assert skipped[-1] == "kernels, bfloat16: skipped: 1 of 1 s left, 35 needed"


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> FakeDevice:
    fake = FakeDevice()
    monkeypatch.setattr(time, "perf_counter", lambda: fake.host)
    return fake


def test_the_clock_sees_the_device_alone_however_slow_the_host(device: FakeDevice) -> None:
    timing = gpu_parts.DeviceClock(device).time(lambda: device.work(1e-4, host=5e-3), 10)
    assert (timing.seconds, timing.host) == pytest.approx((1e-3, 50e-3))
    assert timing.ahead
    assert device.spins[-1] > 50e-3

    def waiting() -> None:
        device.work(1e-3)
        device.host = device.device

    assert not gpu_parts.DeviceClock(device).time(waiting).ahead
    assert max(device.spins) <= 0.5


def test_the_clock_takes_turns_and_steps_are_timed_from_idle_to_idle_in_long_samples(device: FakeDevice) -> None:
    order: list[float] = []

    def call(seconds: float) -> None:
        order.append(seconds)
        device.work(seconds)

    found = gpu_parts.DeviceClock(device).seconds(lambda: call(1e-3), lambda: call(9e-3))
    assert found == pytest.approx([1e-3, 9e-3])
    assert order[-10:] == [*[1e-3] * 4, 9e-3] * 2

    def wait() -> None:
        device.host = max(device.host, device.device)

    times = worker.time_samples(Step(lambda: device.work(0.03, host=0.001), wait=wait, on_gpu=True), 0.9)
    assert len(times) == 8  # of 4 steps
    assert statistics.median(times) == pytest.approx(0.03, rel=0.02)


@pytest.fixture
def cupy(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a CuPy that has a memory pool alone, beside a cupyx that can refuse to wait."""
    monkeypatch.setitem(sys.modules, "cupyx", fake_cupyx())
    pool = SimpleNamespace(used_bytes=lambda: 100, total_bytes=lambda: 512)
    return SimpleNamespace(cuda=SimpleNamespace(MemoryHook=FakeHook), get_default_memory_pool=lambda: pool)


def test_allocations_and_reads_of_the_device_are_counted(cupy: Any) -> None:
    def run() -> None:
        FakeHook.current.alloc_preprocess(device_id=0, mem_size=512)
        for change in ("malloc_postprocess", "malloc_postprocess", "free_postprocess", "free_postprocess"):
            getattr(FakeHook.current, change)(device_id=0, size=40, mem_size=50, mem_ptr=1, pmem_id=1)

    found = gpu_parts.memory_traffic(Step(run), cupy)
    assert (found["allocations"], found["driver_allocations"], found["peak_used_bytes"]) == (10, 5, 200)

    def reading() -> None:
        assert not sys.modules["cupyx"].allowed[-1]
        raise DeviceSynchronizedError

    assert gpu_parts.reads_of_device(reading)["found"]
    assert gpu_parts.reads_of_device(lambda: None) == {"found": False, "where": ""}


@needs_kernels
def test_calls_are_recorded_nothing_stays_changed_and_the_products_are_those_of_the_model() -> None:
    workload = replace(SMALL, overrides={"global_pool": "avg", "class_token": False, "depth": 3})
    step = minivit_system.prepare(make_task(workload, 1), "")
    losses = [float(step.to_host(step.run())) for _ in range(3)]
    assert losses[-1] < losses[0]
    before = dict(runtime._functions), dict(runtime._blas)
    calls = gpu_parts.recorded(step.run)
    assert (runtime._functions, runtime._blas) == before
    adam = [call for call in calls if call.name == "adam"]
    parameters = sum(value.size for value in make_task(workload, 1).state.values())
    assert len(adam) == 1
    assert adam[0].bytes >= 7 * 4 * parameters, "parameters and moments are read and written"
    products = [call for call in calls if call.name == "product"]
    assert len(products) == 3 * (2 + 4 * 3) + 6 * 3  # of each linear map, and of attention in each block
    flops = sum(call.flops for call in products)
    assert flops == 3 * workload.batch_size * summarize(workload.config).flops
    found = gpu_parts.measure_products(calls, lambda *runs: [1e-3 for _ in runs], best=1e12)
    assert sum(row["times"] for row in found["rows"]) == len(products)
    assert found["seconds_a_step"] == pytest.approx(1e-3 * len(products))
    assert found["of_square"] == pytest.approx(flops / found["seconds_a_step"] / 1e12)


@needs_kernels
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_kernels_are_compared_with_a_copy_and_one_that_fails_does_not_hide_the_others(
    dtype: str, monkeypatch: Any
) -> None:
    monkeypatch.setattr(gpu_parts, "_SMALL", 256)
    others = functools.partial(gpu_parts.other_calls, strict, dtype_named(dtype), 2)
    others()
    calls = gpu_parts.recorded(others)
    assert {"keep_mask", "dropout", "training_images", "squares"} <= {call.name for call in calls}

    def seconds(*runs: Callable[[], object]) -> list[float]:
        runs[0]()
        return [1e-3, 2e-3]

    broken = gpu_parts.Call("gelu", "(2, 2)", lambda: exec("raise MemoryError('no more memory')"), bytes=10**6)
    *rows, last = gpu_parts.measure_kernels([*calls, broken], seconds, strict)
    assert last == {"name": "gelu (2, 2)", "error": "MemoryError: no more memory"}
    assert len({row["name"] for row in rows}) == len(rows) > 2
    for row in rows:
        assert row["bytes_a_second"] == pytest.approx(row["bytes"] / 1e-3)
        assert (row["of_copy"], row["bar"]) == (pytest.approx(2.0), "reached")


@needs_kernels
def test_a_claim_that_cannot_be_checked_says_so(cupy: Any) -> None:
    step = minivit_system.prepare(make_task(SMALL, 1), "")
    step.run()
    found = gpu_parts.claims(step, cupy, "float32")
    assert found["launches"]["adam"] == 1
    assert found["memory"]["driver_allocations"] == found["memory"]["pool_growth_bytes"] == 0
    assert not found["reads"]["found"]
    assert "AttributeError" in found["times"]["error"]  # the fake has no events


def test_the_work_of_a_device_is_summed_by_name() -> None:
    found = gpu_parts.summed([("softmax", 2e-3), ("copy", 1e-3), ("softmax", 3e-3)])
    assert (found["launches"], found["busy_seconds"]) == pytest.approx((3, 6e-3))
    assert [(k["name"], k["calls"]) for k in found["kernels"]] == [("softmax", 2), ("copy", 1)]
    assert [k["seconds"] for k in found["kernels"]] == pytest.approx([5e-3, 1e-3])


def test_a_part_goes_on_with_the_next_workload(monkeypatch: pytest.MonkeyPatch) -> None:
    def claims(step: Step, cupy: Any, precision: str) -> Any:
        return {"precision": precision, "strict": cupy is strict}

    monkeypatch.setattr(gpu_parts, "GPU_WORKLOADS", {"one": SMALL.changed(depth=-1), "two": SMALL})
    monkeypatch.setattr(gpu_parts, "WORKLOADS", ("one", "two"))
    monkeypatch.setattr(gpu_parts, "backend", lambda name: strict)
    monkeypatch.setitem(gpu_parts.PARTS, "claims", claims)
    found = gpu_parts.measure_part("claims", "tf32")
    assert found["one"]["error"].startswith("UserError: ")
    assert found["two"] == {"precision": "tf32", "strict": True}
