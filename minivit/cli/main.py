"""The command line: the table of commands, the parser, and the reporting of errors.

Exit status: 0; 2 for a usage or input error; 1 otherwise. Every error is one line on standard error, with a traceback
only if --debug is given.
"""

from __future__ import annotations

import argparse
import difflib
import io
import json
import os
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

import minivit
from minivit.arrays import is_out_of_memory
from minivit.cli import evaluate, gradcheck, info, predict, train
from minivit.cli.terminal import Terminal, complain
from minivit.errors import RunError, UserError

COMMANDS: dict[str, Any] = {
    "train": train,
    "eval": evaluate,
    "predict": predict,
    "gradcheck": gradcheck,
    "info": info,
}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see `{self.prog} --help`")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="minivit",
        description="A Vision Transformer in NumPy and CuPy with hand-written, verified backward passes.",
        epilog="First example: minivit train digits",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"minivit {minivit.__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, command in COMMANDS.items():
        sub = commands.add_parser(
            name,
            help=command.HELP,
            description=command.DESCRIPTION,
            epilog=command.EXAMPLES,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        command.add_arguments(sub)
        sub.add_argument(
            "--json", action="store_true", help="print one JSON object, on the last line of standard output"
        )
        sub.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    if argv and not argv[0].startswith("-") and argv[0] not in COMMANDS:
        near = difflib.get_close_matches(argv[0], COMMANDS, n=1, cutoff=0.0)[0]
        raise UserError(f"there is no command {argv[0]!r}; did you mean {near!r}? Commands: {', '.join(COMMANDS)}")
    args, unknown = _parser().parse_known_args(argv)
    if unknown:
        raise UserError(f"unknown arguments: {' '.join(unknown)}; see `minivit {args.command} --help`")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status."""
    argv = sys.argv[1:] if argv is None else argv
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # names of files or classes may have characters it cannot encode
            stream.reconfigure(errors="backslashreplace")
    try:
        with _warnings_in_one_line():
            args = _parse(argv)
            result = COMMANDS[args.command].run(args, Terminal(args.json))
        if args.json:
            print(json.dumps(result.values, allow_nan=False))  # noqa: T201 - the output of --json
        if sys.stdout is not None:  # None if the process was started without standard output
            sys.stdout.flush()
        return int(result.status)
    except SystemExit as stop:  # raised by argparse after --help and --version
        return int(stop.code or 0)
    except BrokenPipeError:  # the reader of the output has closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return _failed("stopped", 1)
    except Exception as error:
        if "--debug" in argv:
            traceback.print_exc()
        return _failed(*_explained(error))


def _explained(error: Exception) -> tuple[str, int]:
    """Return the message of an error and the exit status."""
    if isinstance(error, UserError):
        return str(error), 2
    if isinstance(error, (RunError, OSError)):
        return str(error), 1
    hint = "--debug shows the traceback"
    if isinstance(error, (ValueError, TypeError)):
        return f"{error}; {hint}", 2
    if is_out_of_memory(error):
        return f"out of memory: {error}".removesuffix(": "), 1
    return f"unexpected {type(error).__name__}: {error}; {hint}", 1


def _failed(message: str, status: int) -> int:
    complain(message)
    return status


@contextmanager
def _warnings_in_one_line() -> Iterator[None]:
    """Print each warning in one line, except NumPy's about overflow: the commands check for NaN and infinity."""

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        complain(f"warning: {message}")

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".* encountered in ", category=RuntimeWarning)
        warnings.showwarning = show
        yield
