"""The errors that a command reports in one line and without a traceback."""

from collections.abc import Sequence


class UserError(ValueError):
    """An input, option or file that cannot be used; a command answers with exit status 2."""


class RunError(RuntimeError):
    """Work that could not go on, a full disk or a loss that is not finite; a command answers with exit status 1."""


def counted(what: str, names: Sequence[str]) -> str:
    """Return how many names there are and the first three, for a message: ``12 missing (a, b, c, ...)``."""
    return f"{len(names)} {what} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
