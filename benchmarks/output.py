"""Where figures go: Markdown tables, and files of text and of JSON that are at every moment whole."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from minivit.errors import UserError
from minivit.files import atomic_write


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]], words: int = 1) -> str:
    """Return a Markdown table, legible as it is: `words` columns of words, then numbers on the right."""
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    marks = [f":{(w - 1) * '-'}" if i < words else f"{(w - 1) * '-'}:" for i, w in enumerate(widths)]

    def padded(row: Sequence[str]) -> list[str]:
        return [
            cell.ljust(w) if i < words else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ]

    return "\n".join(f"| {' | '.join(cells)} |" for cells in (padded(head), marks, *map(padded, rows)))


def write_text(path: Path | None, text: str) -> None:
    """Write `text` to a file, in a folder that is made where it is missing; without a path do nothing.

    Raises
    ------
    RunError
        The system refused; the old file is intact then.
    """
    if path is not None:
        atomic_write(path.resolve(), lambda file: file.write(text.encode()))  # a link stays a link


def write_json(path: Path | None, numbers: Any) -> None:
    """Write `numbers` as JSON in the way of `write_text`."""
    write_text(path, json.dumps(numbers, indent=1) + "\n")


def check_writable(*paths: Path | None) -> None:
    """Make the folders of files that are to be written; a path may be None.

    Raises
    ------
    UserError
        A file cannot be written: better known before hours of measuring than after.
    """
    for path in paths:
        if path is None:
            continue
        path = path.resolve()
        if path.exists() and not path.is_file():
            raise UserError(f"cannot write {path}: it is there and no file")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=path.parent):
                pass
        except OSError as error:
            raise UserError(f"cannot write {path}: {error.strerror or error}") from error
