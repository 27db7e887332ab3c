"""What fails has an ``error`` in the place of its figures, so that all else is measured all the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def answered(what: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return what a call returns, or the kind and the text of its error."""
    try:
        return what()
    except Exception as error:  # whatever a library raises
        text = " ".join(str(error).split())
        return {"error": f"{type(error).__name__}: {text[:500]}"}


def errors_in(figures: Any, name: str = "") -> list[str]:
    """Return the names of what has an ``error`` in place of its figures, at any depth."""
    if isinstance(figures, list):
        return [error for entry in figures for error in errors_in(entry, name)]
    if not isinstance(figures, dict):
        return []
    if "error" in figures:
        return [figures.get("name", name)]
    return [error for key, entry in figures.items() for error in errors_in(entry, key)]
