"""The engine's settings of the machine: the number of workers, memory, and the threads and the lock of BLAS."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import threadpoolctl
from forks import forked, needs_fork
from small_vit import model

from minivit import Engine
from minivit.engine import machine
from minivit.engine.machine import cores, single_threaded_blas


def blas_threads() -> set[int]:
    return {info["num_threads"] for info in threadpoolctl.threadpool_info() if info["user_api"] == "blas"}


def test_blas_has_its_threads_again_when_blocks_in_several_threads_have_ended() -> None:
    """BLAS has one thread inside each block, in any order of the blocks."""
    seen: list[set[int]] = []

    def compute(_: int) -> None:
        with single_threaded_blas():
            seen.append(blas_threads())
            time.sleep(0.002)
            with single_threaded_blas():
                seen.append(blas_threads())
            seen.append(blas_threads())

    before = blas_threads()
    compute(0)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(compute, range(20)))
    assert blas_threads() == before
    assert seen == [{1}] * 63


@needs_fork
def test_a_fork_while_another_thread_computes_does_not_wait_for_it() -> None:
    """The lock that the thread holds in the parent is free in the child."""
    here, there = multiprocessing.Pipe()

    def enter() -> None:
        with single_threaded_blas():
            there.send_bytes(b"entered")

    with single_threaded_blas(), ThreadPoolExecutor(1) as pool:
        child = pool.submit(forked, enter).result()
    try:
        assert here.poll(10)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


CONTAINERS: dict[str, tuple[dict[str, str], int]] = {
    "no quota": ({"/proc/self/cgroup": "0::/\n", "/sys/fs/cgroup/cpu.max": "max 100000\n"}, 64),
    "a quota of 2": ({"/proc/self/cgroup": "0::/\n", "/sys/fs/cgroup/cpu.max": "200000 100000\n"}, 2),
    "a quota of 1.5": ({"/proc/self/cgroup": "0::/\n", "/sys/fs/cgroup/cpu.max": "150000 100000\n"}, 2),
    "a quota of 0.1": ({"/proc/self/cgroup": "0::/\n", "/sys/fs/cgroup/cpu.max": "10000 100000\n"}, 1),
    "a quota above the affinity": ({"/proc/self/cgroup": "0::/\n", "/sys/fs/cgroup/cpu.max": "9900000 100000\n"}, 64),
    "an own quota": ({"/proc/self/cgroup": "0::/a/b\n", "/sys/fs/cgroup/a/b/cpu.max": "300000 100000\n"}, 3),
    "the quota of a parent": (
        {
            "/proc/self/cgroup": "0::/a/b\n",
            "/sys/fs/cgroup/a/b/cpu.max": "max 100000\n",
            "/sys/fs/cgroup/a/cpu.max": "500000 100000\n",
        },
        5,
    ),
    "a path of the host": (
        {"/proc/self/cgroup": "0::/docker/x\n", "/sys/fs/cgroup/cpu.max": "400000 100000\n"},
        4,
    ),
    "version 1": (
        {
            "/proc/self/cgroup": "12:memory:/x\n4:cpu,cpuacct:/docker/x\n0::/\n",
            "/sys/fs/cgroup/cpu,cpuacct/docker/x/cpu.cfs_quota_us": "250000\n",
            "/sys/fs/cgroup/cpu,cpuacct/docker/x/cpu.cfs_period_us": "100000\n",
        },
        3,
    ),
    "version 1 in a container": (
        {
            "/proc/self/cgroup": "4:cpuacct,cpu:/docker/x\n",
            "/sys/fs/cgroup/cpu/cpu.cfs_quota_us": "200000\n",
            "/sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
        },
        2,
    ),
    "version 1 without a quota": (
        {
            "/proc/self/cgroup": "4:cpu:/\n",
            "/sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
            "/sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
        },
        64,
    ),
    "no such files": ({}, 64),
    "malformed files": ({"/proc/self/cgroup": "0:\n::\nx\n0::/\n", "/sys/fs/cgroup/cpu.max": "many 0\n"}, 64),
    "a period of 0": ({"/proc/self/cgroup": "0::/\n", "/sys/fs/cgroup/cpu.max": "200000 0\n"}, 64),
    "one number": ({"/proc/self/cgroup": "0::/\n", "/sys/fs/cgroup/cpu.max": "200000\n"}, 64),
}


@pytest.fixture
def large_machine(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Play a machine of 64 processors without OMP_NUM_THREADS, and return its files of cgroups, to be added to."""
    files: dict[str, str] = {}

    def read_text(path: Path, encoding: str | None = None) -> str:
        if str(path) not in files:
            raise FileNotFoundError(path)
        return files[str(path)]

    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(64)), raising=False)
    monkeypatch.setattr(Path, "read_text", read_text)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    return files


@pytest.mark.parametrize("name", CONTAINERS)
def test_the_cpu_quota_of_a_container_limits_the_workers(name: str, large_machine: dict[str, str]) -> None:
    files, expected = CONTAINERS[name]
    large_machine.update(files)
    assert cores() == expected
    assert Engine(model()).threads == expected
    assert Engine(model(), threads=7).threads == 7


@pytest.mark.parametrize(
    ("value", "expected"),
    [("1", 1), (" 3 ", 3), ("4,2", 4), ("100", 64), ("", 64), ("0", 64), ("-2", 64), ("two", 64), ("²", 64)],
)
def test_omp_num_threads_limits_the_workers(
    value: str, expected: int, large_machine: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", value)
    assert cores() == expected


_MEMORY = """
import sys
import numpy as np
from minivit import Engine, create_model

def mebibytes():
    return int(open("/proc/self/statm").read().split()[1]) * 4 / 1024

model = create_model("vit_micro_patch4_8", depth=1)
images, labels = np.zeros((2048, 8, 8, 1), "f4"), np.zeros(2048, int)
start = mebibytes()
engine = Engine(model, threads=1, micro_batch=2048)
engine.loss_and_gradients(images, labels)
while_alive = mebibytes()
arrays = [np.ones(1 << 20) for _ in range(20)]
above = np.ones(1000)
del arrays
after = mebibytes()
engine.loss_and_gradients(images, labels)
if sys.argv[1] == "closed":
    engine.close()
else:
    del engine
print(start, while_alive, after, mebibytes())
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists() or machine._allocator() is None, reason="needs glibc")
@pytest.mark.parametrize("end", ["closed", "deleted"])
def test_memory_goes_back_to_the_system(end: str) -> None:
    """The caller's arrays go back when they are deleted, and the engine's pages when it is closed or deleted."""
    done = subprocess.run([sys.executable, "-c", _MEMORY, end], capture_output=True, text=True, check=True)
    start, while_alive, after, at_the_end = map(float, done.stdout.split())
    assert while_alive > start + 10  # the engine keeps some memory
    assert after < while_alive + 10  # and none of the 160 MiB
    assert at_the_end < start + 5
