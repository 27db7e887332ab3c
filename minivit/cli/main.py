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
import signal
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

import minivit
from minivit.arrays import is_out_of_memory
from minivit.cli import (
    augment,
    convert,
    evaluate,
    explain,
    figures,
    gradcheck,
    info,
    inspect,
    lr_find,
    predict,
    prepare,
    pretrain,
    probe,
    runs,
    trace,
    train,
)
from minivit.cli.terminal import Terminal, as_typed, complain
from minivit.errors import RunError, UserError, did_you_mean, program
from minivit.train.interrupt import Interrupt

COMMANDS: dict[str, Any] = {
    "train": train,
    "pretrain": pretrain,
    "lr-find": lr_find,
    "augment": augment,
    "prepare": prepare,
    "eval": evaluate,
    "predict": predict,
    "probe": probe,
    "runs": runs,
    "figures": figures,
    "trace": trace,
    "inspect": inspect,
    "explain": explain,
    "gradcheck": gradcheck,
    "convert": convert,
    "info": info,
}


# Options as other programs call them.
_OTHER_NAMES = {
    "--learning-rate": "--lr",
    "--wd": "--weight-decay",
    "--bs": "--batch-size",
    "--num-epochs": "--epochs",
    "--workers": "--threads",
    "--num-workers": "--threads",
    "--device": "--backend",
    "--gpu": "--backend cupy",
    "--out": "--run",
    "--output": "--run",
    "--output-dir": "--run",
    "--name": "--run",
    "--checkpoint-dir": "--run",
    "--arch": "--model",
    "--pretrained": "--init",
    "--finetune": "--init",
    "--fine-tune": "--init",
    "--weights": "--init",
    "--from": "--init",
    "--opt": "--optimizer",
    "--depth": "--set depth=N",
    "--img-size": "--set img_size=N",
    "--patch-size": "--set patch_size=N",
    "--drop-path": "--set drop_path_rate=X",
}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see `{self.prog} --help`")

    def format_help(self) -> str:
        return as_typed(super().format_help().replace("\n  minivit ", f"\n  {program()} "))

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """Refuse a value that is not a choice, with the nearest one."""
        if action.choices is not None and value not in action.choices:
            choices = [str(choice) for choice in action.choices]
            near = did_you_mean(str(value), choices)
            raise argparse.ArgumentError(action, f"{value!r} is not one of {', '.join(choices)};{near}".rstrip(";"))

    def nearest(self, unknown: str) -> str:
        """Return "; did you mean ...?" for an unknown argument, or "" if no option is near."""
        name = unknown.partition("=")[0].replace("_", "-")
        options = [option for option in self._option_string_actions if option.startswith("--")]
        if not unknown.startswith("-") and "--dataset" in options:
            return f"; did you mean '--dataset {unknown}'?"
        if other := _OTHER_NAMES.get(name):
            return f"; did you mean {other!r}?" if other.split()[0] in options else ""
        if name in ("--json", "--debug"):
            return "; give it after the command"
        plain = {option.replace("-", ""): option for option in options}
        if name.replace("-", "") in plain:
            return f"; did you mean {plain[name.replace('-', '')]!r}?"
        near = did_you_mean(name, options)
        return f";{near}" if near and name.startswith("--") else ""


def _parser() -> tuple[_Parser, dict[str, _Parser]]:
    """Return the parser, and those of the commands."""
    parser = _Parser(
        prog=program(),
        description="A Vision Transformer in NumPy and CuPy with hand-written, verified backward passes.",
        epilog="First example: `minivit train digits`",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"minivit {minivit.__version__}")
    subs: dict[str, _Parser] = {}
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, command in COMMANDS.items():
        sub = subs[name] = commands.add_parser(
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
    return parser, subs


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    if argv and not argv[0].startswith("-") and argv[0] not in COMMANDS:
        near = difflib.get_close_matches(argv[0], COMMANDS, n=1, cutoff=0.0)[0]
        raise UserError(f"there is no command {argv[0]!r}; did you mean {near!r}? Commands: {', '.join(COMMANDS)}")
    parser, subs = _parser()
    args, unknown = parser.parse_known_args(argv)
    if unknown:
        near = subs[args.command].nearest(unknown[0])
        raise UserError(f"unknown arguments: {' '.join(unknown)}{near}; see `minivit {args.command} --help`")
    # As from a shell variable that is not set; as a path it would be the present folder.
    if empty := [
        name for name, value in vars(args).items() if value == "" or (isinstance(value, list) and "" in value)
    ]:
        raise UserError(f"{empty[0]} is an empty text; see `minivit {args.command} --help`")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status; without `argv`, that of this process, which ends with it."""
    if argv is not None:
        return _run(argv)
    Interrupt.ends_process = True
    signal.signal(signal.SIGINT, signal.default_int_handler)  # replaces that of the time of imports
    try:
        status = _run(sys.argv[1:])
    except KeyboardInterrupt:  # while an error was reported: nothing is printed yet
        status = _failed("stopped", 1)
    _ignore_ctrl_c()  # while the process ends
    return status


def _run(argv: Sequence[str]) -> int:
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


def _ignore_ctrl_c() -> None:
    if Interrupt.ends_process:
        signal.signal(signal.SIGINT, signal.SIG_IGN)


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
    _ignore_ctrl_c()  # the line is printed once
    complain(message)
    return status


@contextmanager
def _warnings_in_one_line() -> Iterator[None]:
    """Print each warning in one line, except NumPy's about overflow: the commands check for NaN and infinity."""

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        complain(f"warning: {message}")

    with warnings.catch_warnings():
        warnings.simplefilter("default", UserWarning)  # each once
        warnings.filterwarnings("ignore", message=".* encountered in ", category=RuntimeWarning)
        warnings.showwarning = show
        yield
