"""What the commands share: options that are checked, files that are always whole, and an end in one line."""

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.workloads import WORKLOADS, workload_named
from minivit.errors import RunError, UserError
from minivit.files import atomic_write

_INTERRUPTED = 130  # the status that a shell gives a command that Ctrl-C ended


def parser_of(description: str | None) -> argparse.ArgumentParser:
    """Return a parser with the option --json, and whose help shows `description` as it is."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers there")
    return parser


def add_workloads(parser: argparse.ArgumentParser, default: Sequence[str]) -> None:
    """Add the argument for workloads, and --markdown."""
    named = f"of {', '.join(WORKLOADS)}; default: {' '.join(default)}"
    chosen = [WORKLOADS[name] for name in default]
    parser.add_argument("workloads", nargs="*", type=workload_named, default=chosen, metavar="WORKLOAD", help=named)
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables there")


def at_least_one(text: str) -> int:
    """Return a whole number of at least 1, for an option of argparse."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}; expected a whole number of at least 1")
    return int(text)


def tell(line: str) -> None:
    """Print a line about the progress, on standard error."""
    print(line, file=sys.stderr, flush=True)


def ended(main: Callable[[], int | None]) -> int:
    """Run a command and return its exit status; Ctrl-C and errors for people end it in one line."""
    try:
        return main() or 0
    except KeyboardInterrupt:
        line, status = "stopped by Ctrl-C", _INTERRUPTED
    except UserError as error:
        line, status = str(error), 2
    except RunError as error:
        line, status = str(error), 1
    tell(line)
    return status


def write_text(path: Path | None, text: str) -> None:
    """Write `text` to a file, of which the old version is intact where that fails; without a path do nothing."""
    if path is not None:
        atomic_write(path.resolve(), lambda file: file.write(text.encode()))  # a link stays a link


def write_json(path: Path | None, numbers: Any) -> None:
    """Write `numbers` as JSON in the way of `write_text`."""
    write_text(path, json.dumps(numbers, indent=1) + "\n")


def check_writable(*paths: Path | None) -> None:
    """Make the folders of files that are to be written, or raise UserError, before hours of measuring."""
    for path in (path.resolve() for path in paths if path is not None):
        if path.exists() and not path.is_file():
            raise UserError(f"cannot write {path}: it exists and is no file")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=path.parent).close()
        except OSError as error:
            raise UserError(f"cannot write {path}: {error.strerror or error}") from error
