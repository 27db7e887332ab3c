"""The peak memory of a process and its children, and their processor time."""

import sys
from pathlib import Path

_PROC = Path("/proc")


def peak_bytes() -> int:
    """Return the largest resident memory so far of this process and of its children that still run.

    On Linux that is the sum of each one's own peak (VmHWM), corrected so that what they share counts once. Of the
    anonymous and shared memory that a process holds now, the part that others hold too is taken off: the kernel counts
    a page that n processes hold as one nth for each. The files that a child maps, its libraries, are left out.
    Elsewhere it is the peak of this process alone, since there ru_maxrss does not begin with that of the parent.
    """
    if (_PROC / "self/smaps_rollup").exists():
        return _own_peak("self") + sum(map(_own_peak, _children()))
    import resource  # which Windows lacks

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _children() -> list[str]:
    return [pid for task in _PROC.glob("self/task/*/children") for pid in task.read_text().split()]


def _own_peak(process: str) -> int:
    try:
        status, maps = (_kilobytes(_PROC / process / name) for name in ("status", "smaps_rollup"))
    except (FileNotFoundError, ProcessLookupError):  # it has just ended
        return 0
    # Each difference of two figures that change together comes from one reading: a process may free gigabytes between
    # two. For shared memory no file has both, but that of this process and its workers stays as it is.
    others = maps["Anonymous"] - maps["Pss_Anon"] + status["RssShmem"] - maps["Pss_Shmem"]
    files = 0 if process == "self" else status["RssFile"]
    return 1024 * (status["VmHWM"] - others - files)


def _kilobytes(file: Path) -> dict[str, int]:
    """Return the figures of a file of the kernel's with lines such as ``VmHWM:  1024 kB``."""
    lines = [line.split() for line in file.read_text().splitlines()]
    return {words[0].removesuffix(":"): int(words[1]) for words in lines if words[2:] == ["kB"]}


def processor_seconds() -> float:
    """Return the seconds that all threads of this process and its children have had a processor; 0 without Linux."""
    try:
        files = [file for pid in ("self", *_children()) for file in _PROC.glob(f"{pid}/task/*/schedstat")]
        return 1e-9 * sum(int(file.read_text().split()[0]) for file in files)
    except OSError:  # a thread has just ended
        return 0.0
