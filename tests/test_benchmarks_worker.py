"""One process of a measurement: its steps, its peak memory, and what is told where it fails."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import worker
from benchmarks.rounds import WorkerError, run_worker

SMALL = ["img_size=8", "embed_dim=8", "depth=2", "num_heads=2", "num_classes=3"]


@pytest.mark.parametrize("system", ["minivit", "limit:threaded"])
def test_a_process_measures(system: str) -> None:
    small = [argument for text in [*SMALL, "batch_size=2"] for argument in ("--set", text)]
    result = run_worker(system, "train-w64", [*small, "--seconds", "0", "--threads", "1"])
    assert len(result["seconds"]) == 6
    assert all(seconds > 0 for seconds in result["seconds"])
    assert 1e6 < result["peak_bytes"] < 1e9
    assert result["threads"] == 1
    assert {"minivit", "NumPy", "BLAS"} <= set(result["versions"])


@pytest.mark.parametrize(
    ("lasts", "seconds", "calls"),
    [
        (1.0, 0.0, 7),  # of which one is the warm-up
        (2.6, 2.5, 7),
        (0.5, 4.2, 11),
        (7.5, 2.5, 2),
        (38.0, 2.5, 2),
        (4.0, 2.5, 5),  # all together are long enough
    ],
)
def test_slow_steps_are_few_and_their_number_is_even(
    lasts: float, seconds: float, calls: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]

    def step() -> None:
        now[0] += lasts

    monkeypatch.setattr("benchmarks.worker.time.perf_counter", lambda: now[0])
    times = worker.measured(step, seconds, 6)
    assert now[0] == pytest.approx(calls * lasts)
    assert times == pytest.approx([lasts] * (calls - calls % 2))


_PEAK = """
import numpy as np
from pathlib import Path
from benchmarks.worker import peak_bytes
from minivit.arrays.shared import shared_zeros
from minivit.engine.worker_pool import WorkerPool

def work(number, job, together):
    if number == 1:
        shared[:] = 1
        own.append(np.ones(25_000_000, np.float32))

private, own = np.ones(25_000_000, np.float32), []
status = Path("/proc/self/status").read_text()
highest = next(1024 * int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
alone = peak_bytes()
shared = shared_zeros((25_000_000,), np.float32)
shared[:] = 0
pool = WorkerPool(2, work)
pool.run(None)
print(highest, alone, peak_bytes())
del private
pool.close()
print(peak_bytes())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere only the process itself is counted")
def test_what_a_team_shares_counts_once() -> None:
    """Three arrays of 100 MB: one that the fork inherited, one that both map, and one of the worker's own."""
    done = subprocess.run([sys.executable, "-c", _PEAK], capture_output=True, text=True, check=True)
    highest, alone, together, after = map(int, done.stdout.split())
    assert alone == pytest.approx(highest, abs=4e6)
    assert together - alone == pytest.approx(200e6, abs=30e6)
    assert after - alone == pytest.approx(100e6, abs=10e6)


def test_memory_that_is_freed_while_it_is_read_does_not_count_less(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The status was read before 2 GB were given back, the maps after."""
    (tmp_path / "status").write_text("Name: jax\nVmHWM: 3100000 kB\nRssAnon: 2900000 kB\nRssShmem: 0 kB\n")
    (tmp_path / "smaps_rollup").write_text("Rss: 600000 kB\nPss: 590000 kB\nAnonymous: 500000 kB\n")
    with (tmp_path / "smaps_rollup").open("a") as file:
        file.write("Pss_Anon: 500000 kB\nPss_Shmem: 0 kB\n")
    monkeypatch.setattr(worker, "Path", lambda *parts: tmp_path / parts[-1])
    assert worker._own_peak("self") == 1024 * 3_100_000


@pytest.mark.parametrize(
    ("status", "printed", "complaint", "message"),
    [
        (
            1,
            "",
            "Traceback ...\ntorch.exc.InductorError: CppCompileError: no g++\n\nSet TORCH_LOGS=...",
            r"^torch.*g\+\+$",
        ),
        (1, "", "MemoryError\nbye", "^MemoryError$"),
        (1, "", "Killed", "^Killed$"),
        (3, "", "", "^exit status 3$"),
        (0, "{}\ndone", "", "^it printed 'done' where its result was due$"),
        (0, "", "", "^it printed '' where"),
    ],
)
def test_of_a_process_that_fails_the_error_is_told(
    status: int, printed: str, complaint: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = subprocess.CompletedProcess([], status, printed, complaint)
    monkeypatch.setattr("benchmarks.rounds.subprocess.run", lambda *arguments, **options: done)
    with pytest.raises(WorkerError, match=message):
        run_worker("jax", "train-w64")


def test_a_process_that_fails_says_why() -> None:
    with pytest.raises(WorkerError, match=r"UserError: .*embed_dim 64 cannot be split"):
        run_worker("minivit", "train-w64", ["--set", "num_heads=7"])
    with pytest.raises(WorkerError, match="longer than 0 s"):
        run_worker("minivit", "train-w64", timeout=0.01)
