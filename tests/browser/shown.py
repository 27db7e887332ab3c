"""How the page writes numbers, and its tables as text."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from playwright.sync_api import Page


def digits_of(value: float | None) -> str:
    """Return a number as the page shows it, with four significant digits."""
    if value is None:
        return "not finite"
    if value == 0:
        return "0"
    if 1e-3 <= abs(value) < 1e4:
        places = 3 - math.floor(math.log10(abs(float(f"{value:.3e}"))))
        return f"{value:.{max(0, places)}f}"
    digits, power = f"{value:.3e}".split("e")
    return f"{digits}e{int(power)}"


def rows_of(page: Page, selector: str) -> list[list[str]]:
    """Return the texts of a table's body."""
    rows: list[list[str]] = page.locator(f"{selector} tbody tr").evaluate_all(
        "rows => rows.map(row => [...row.cells].map(cell => cell.textContent))"
    )
    return rows
