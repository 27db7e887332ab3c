"""The output of commands: colour and progress bars on a terminal, plain lines in a pipe.

With --json, only the JSON object is printed to standard output: there are no tables, and progress is printed to
standard error. Text from files is shown with its control characters escaped.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from minivit.data import ProgressCallback
from minivit.errors import printable, program

if TYPE_CHECKING:
    from rich.console import Console

    from minivit.train.trainer import Reporter

PIPE_WIDTH = 160  # width of a table that is not printed to a terminal


def as_typed(text: str) -> str:
    """Return `text` with each command in it, such as ```minivit info```, as this process was started."""
    return text.replace("`minivit ", f"`{program()} ")


def complain(message: object) -> None:
    """Print an error or a warning as one line on standard error."""
    print("minivit:", printable(as_typed(" ".join(str(message).split()))), file=sys.stderr)  # noqa: T201 - output of the command line


class Terminal:
    """The output of one command.

    Parameters
    ----------
    json : bool
        Whether standard output is reserved for a JSON object.
    """

    def __init__(self, json: bool = False) -> None:
        self.json = json

    @functools.cached_property
    def console(self) -> Console:
        """The rich console: standard output, or standard error with --json."""
        from rich.console import Console

        console = Console(stderr=self.json, highlight=False, emoji=False)
        if not console.is_terminal:
            console.width = PIPE_WIDTH
        return console

    @property
    def live(self) -> bool:
        """Whether the console is a terminal that can redraw lines."""
        return self.console.is_terminal and not self.console.is_dumb_terminal

    def say(self, text: str = "", style: str = "") -> None:
        """Print a line of progress or information; with --json, on standard error."""
        self.console.print(printable(as_typed(text)), style=style, markup=False, soft_wrap=True)

    def show(self, *lines: str) -> None:
        """Print lines of results; with --json, print nothing, because the JSON object holds the results."""
        if not self.json:
            for line in lines:
                self.say(line)

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[str]], total: bool = False) -> None:
        """Print a table; a column whose name begins with > is right-aligned; `total` prints the last row in bold."""
        if self.json:
            return
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, pad_edge=False)
        for column in columns:
            justify: Any = "right" if column.startswith(">") else "left"
            table.add_column(column.lstrip(">"), justify=justify, header_style="dim", no_wrap=True)
        for i, row in enumerate(rows):
            style = "bold" if total and i == len(rows) - 1 else ""
            table.add_row(*(Text(printable(cell)) for cell in row), style=style)
        self.console.print(table)

    @contextmanager
    def progress(self) -> Iterator[ProgressCallback]:
        """Yield ``progress(what, done, total)``, which draws a temporary bar, or prints one line for each `what`."""
        if not self.live:
            printed = set()

            def print_once(what: str, done: int, total: int) -> None:
                if what not in printed:
                    printed.add(what)
                    self.say(what)

            yield print_once
            return
        from rich import progress as bars

        tasks: dict[str, Any] = {}
        columns = (bars.TextColumn("{task.description}"), bars.BarColumn(), bars.TextColumn("{task.fields[count]}"))
        with bars.Progress(*columns, bars.TimeRemainingColumn(), console=self.console, transient=True) as bar:

            def advance(what: str, done: int, total: int) -> None:
                if what not in tasks:
                    tasks[what] = bar.add_task(what, count="")
                bar.update(tasks[what], completed=done, total=total or None, count=_count(what, done, total))

            yield advance

    @contextmanager
    def training(self) -> Iterator[Reporter]:
        """Yield the reporter of a training run."""
        from minivit.cli.reporters import LineReporter, LiveReporter

        if self.live:
            with LiveReporter(self.console) as reporter:
                yield reporter
        else:
            yield LineReporter(self.say)


def _count(what: str, done: int, total: int) -> str:
    if what.startswith("downloading"):
        return f"{done / 1e6:.0f} / {total / 1e6:.0f} MB" if total else f"{done / 1e6:.0f} MB"
    return f"{done:,} / {total:,}" if total else f"{done:,}"
