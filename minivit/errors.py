"""The exceptions that commands report in one line without a traceback."""

from collections.abc import Sequence


class UserError(ValueError):
    """An input, an option or a file cannot be used; the exit status of a command is 2."""


class RunError(RuntimeError):
    """A run cannot continue, for example on a full disk or a non-finite loss; the exit status of a command is 1."""


def counted(what: str, names: Sequence[str]) -> str:
    """Return the number of names and the first three of them, for a message: ``12 missing (a, b, c, ...)``."""
    return f"{len(names)} {what} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
