"""The names of run folders, and how a new run claims one."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from minivit.errors import UserError
from minivit.files import HAS_LOCKS, make_folder
from minivit.train.recipe import Recipe
from minivit.train.run_folder import RunFolder

_LONGEST_NAME = 200  # bytes; file systems hold 255


@contextmanager
def claimed_run(path: Path | None, recipe: Recipe, root: Path = Path("runs")) -> Iterator[RunFolder]:
    """Claim the folder of a new run, and hold its lock in the block; an exception there leaves no empty folder.

    Parameters
    ----------
    path : Path or None
        The folder; None for the first free ``root/NAME-1``, ``root/NAME-2``, ... of the recipe's data set, or
        ``root/NAME-pretrain-1`` for a recipe with a task. Of two processes that begin at once, each gets a folder of
        its own.
    recipe : Recipe
        The recipe of the run; nothing is written before `RunFolder.begin`.

    Raises
    ------
    UserError
        `path` holds a run already, or another process is at work in it.
    RunError
        The folder cannot be made.
    """
    if path is not None:
        paths: Iterator[Path] = iter([path])
    else:
        start = _start(recipe.dataset, bool(recipe.task))
        first = max(_numbers(start, root), default=0) + 1
        paths = (root / f"{start}{number}" for number in itertools.count(first))
    for candidate in paths:
        run = RunFolder(candidate, recipe)
        parent_is_new = not candidate.parent.exists()
        is_new = make_folder(candidate)
        lock = run.locked()
        try:
            lock.__enter__()
        except (UserError, FileNotFoundError) as error:  # another process is at work in it, or has just left it
            if path is None:
                continue
            raise UserError(f"another process is at work in {candidate}; choose another --run") from error
        try:
            if path is None and not is_new and (not HAS_LOCKS or any(candidate.iterdir())):
                continue
            RunFolder.expect_free(candidate)
            yield run
            return
        finally:
            if is_new or path is None:
                with suppress(OSError):  # the folder of a run that has begun is not empty
                    candidate.rmdir()
                    if parent_is_new:
                        candidate.parent.rmdir()
            lock.__exit__(None, None, None)


def latest_run_path(dataset: str, root: Path = Path("runs"), pretrains: bool = False) -> Path:
    """Return the newest of the folders named by `claimed_run`, of runs with a task if `pretrains`.

    Raises
    ------
    UserError
        There is none.
    """
    start = _start(dataset, pretrains)
    numbers = [number for number in _numbers(start, root) if RunFolder.exists(root / f"{start}{number}")]
    if not numbers:
        raise UserError(f"there is no run of {dataset} in {root} to resume; name its folder with --run")
    return root / f"{start}{max(numbers)}"


def _start(dataset: str, pretrains: bool) -> str:
    """Return how the names of the runs of a data set begin; a number follows."""
    return f"{_short(dataset)}-pretrain-" if pretrains else f"{_short(dataset)}-"


def _short(dataset: str) -> str:
    """Return the name of a data set in the names of its runs: the last part of a path, without suffixes."""
    name = Path(dataset).resolve().name.split(".")[0]
    name = "".join(c if c.isprintable() or "\udc80" <= c <= "\udcff" else "_" for c in name)  # \udc..: not UTF-8
    while len(os.fsencode(name)) > _LONGEST_NAME:
        name = name[:-1]
    return name or "images"


def _numbers(start: str, root: Path) -> list[int]:
    """Return the numbers of the folders whose names begin with `start`, and that are not empty."""
    if not root.is_dir():
        return []
    tails = {folder.name.removeprefix(start): folder for folder in root.iterdir() if folder.name.startswith(start)}
    return [
        int(tail)
        for tail, folder in tails.items()
        if tail.isascii() and tail.isdigit() and len(tail) < 10 and not _is_empty(folder)
    ]


def _is_empty(folder: Path) -> bool:
    return folder.is_dir() and not any(folder.iterdir())
