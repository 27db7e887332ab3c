"""What the commands that measure share: options that are checked, and an end in one line."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from minivit.errors import RunError, UserError

INTERRUPTED = 130  # what a shell makes of a command that Ctrl-C ended


def at_least_one(text: str) -> int:
    """Return a whole number of at least 1, for an option of argparse."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}; expected a whole number of at least 1")
    return int(text)


def duration(text: str) -> float:
    """Return seconds, finite and at least 0, for an option of argparse."""
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r}; expected seconds, at least 0")
    return seconds


@contextmanager
def refused_by(parser: argparse.ArgumentParser) -> Iterator[None]:
    """Let a ValueError of the block end the command as a wrong option does: its usage, one line, exit status 2."""
    try:
        yield
    except ValueError as error:
        parser.error(str(error))


def ended(main: Callable[[], int | None]) -> int:
    """Run a command and return its exit status; of Ctrl-C, and of an error for people, there is one line."""
    try:
        return main() or 0
    except KeyboardInterrupt:
        return _told("stopped by Ctrl-C", INTERRUPTED)
    except UserError as error:
        return _told(str(error), 2)
    except RunError as error:
        return _told(str(error), 1)


def _told(line: str, status: int) -> int:
    print(line, file=sys.stderr)
    return status
