"""Prints the peak memory of this process: the kernel's, ours, ours beside a forked process, and ours after that."""

import multiprocessing
from pathlib import Path

import numpy as np

from benchmarks.memory import peak_bytes

fork = multiprocessing.get_context("fork")
barrier = fork.Barrier(2)
private = np.ones(25_000_000, np.float32)
shared = np.frombuffer(fork.RawArray("f", 25_000_000), np.float32)


def work() -> None:
    """Write to the shared array and to one of its own."""
    shared[:] = 1
    own = np.ones(25_000_000, np.float32)
    barrier.wait()
    barrier.wait()
    assert own.all()


if __name__ == "__main__":
    status = Path("/proc/self/status").read_text()
    print(next(1024 * int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")))
    print(peak_bytes())
    process = fork.Process(target=work)
    process.start()
    barrier.wait()
    print(peak_bytes())
    barrier.wait()
    process.join()
    print(peak_bytes())
