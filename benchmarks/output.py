"""Where figures go: Markdown tables, and files of text and of JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any


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
    """Write `text` to a file, in a folder that is made where it is missing; without a path do nothing."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def write_json(path: Path | None, numbers: Any) -> None:
    """Write `numbers` as JSON in the way of `write_text`."""
    write_text(path, json.dumps(numbers, indent=1) + "\n")
