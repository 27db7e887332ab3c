"""The exceptions that commands report in one line without a traceback, and the wording of messages."""

from __future__ import annotations

import operator
import os
import signal
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:  # slow imports are in the functions: Ctrl-C before `stop_in_one_line` shows a traceback
    from collections.abc import Iterable, Sequence
    from pathlib import Path
    from typing import Any


class UserError(ValueError):
    """An input, an option or a file cannot be used; the exit status of a command is 2."""


class RunError(RuntimeError):
    """A run cannot continue, for example on a full disk or a non-finite loss; the exit status of a command is 1."""


def counted(names: Sequence[str], one: str, many: str = "") -> str:
    """Return the number of names and the first three of them, for a message: ``12 tensors (a, b, c, ...)``.

    `one` and `many` are the words for one name and for several; the default of `many` is `one` with an s.
    """
    words = one if len(names) == 1 else many or f"{one}s"
    return f"{len(names)} {words} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"


def count_of(count: int, one: str, many: str = "") -> str:
    """Return a number and a noun: ``1 image``, ``2 images``; the default of `many` is `one` with an s."""
    return f"{count:,} {one if count == 1 else many or f'{one}s'}"


def expect_number(name: str, value: Any, least: float = 0.0, below: float = float("inf")) -> None:
    """Raise UserError unless `value` is a number of at least `least` and below `below`."""
    try:
        fits = not isinstance(value, str | bytes | bool) and least <= float(value) < below
    except (TypeError, ValueError, OverflowError):
        fits = False
    if not fits:
        limit = f" and below {below:g}" if below < float("inf") else ""
        raise UserError(f"{name} is {value!r:.40}; expected a number of at least {least:g}{limit}")


def expect_whole(name: str, value: Any, least: int = 1) -> int:
    """Return a whole number of at least `least` as an int, also one of NumPy; raise UserError for anything else."""
    try:
        number = least - 1 if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = least - 1
    if number < least:
        raise UserError(f"{name} is {value!r:.40}; expected a whole number of at least {least}")
    return number


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """Return ``did you mean 'depth'?`` with the nearest of `names` and a leading space, or "" if none is near.

    Capital letters make no difference; of two names that differ in them alone, the one in small letters is meant.
    """
    import difflib

    lower = {known.lower(): known for known in sorted(names)}
    near = difflib.get_close_matches(name.lower(), lower, n=1)
    return f" did you mean {lower[near[0]]!r}?" if near else ""


def printable(text: str) -> str:
    """Return `text` with control characters, direction marks and line separators shown as escapes.

    Text from a file could otherwise move the cursor of a terminal or reorder the words beside it.
    """
    import unicodedata

    def shown(character: str) -> str:
        hidden = unicodedata.category(character) in _HIDDEN and character not in _JOINERS
        return character.encode("unicode_escape", "surrogatepass").decode() if hidden else character

    return "".join(map(shown, text))


def install(*packages: str) -> str:
    """Return the shell command that installs `packages` into the Python that runs.

    It names the packages themselves, not an extra of minivit, so that it works wherever minivit came from. The quotes
    are those that the shells of Linux, macOS and Windows share.
    """
    from importlib.util import find_spec
    from pathlib import Path

    if find_spec("pip") is None:  # an environment of uv
        pip = f"uv pip install --python {_quoted(sys.executable)}"
    elif _on_path("pip", Path(sys.executable).parent):
        pip = "pip install"
    else:
        pip = f"{python()} -m pip install"
    return " ".join([pip, *map(_quoted, packages)])


def python() -> str:
    """Return the command that starts the Python that runs: its name where PATH leads to it, otherwise its path."""
    from pathlib import Path

    folder, name = Path(sys.executable).parent, Path(sys.executable).name.removesuffix(".exe")
    return name if _on_path(name, folder) else _quoted(sys.executable)


def program() -> str:
    """Return the command that starts minivit in the way in which this process was started."""
    from pathlib import Path

    started = Path(sys.argv[0])
    if started.name == "__main__.py" and started.parent.name == "minivit":
        return f"{python()} -m minivit"
    is_script = started.name.removesuffix(".exe") == "minivit" and started.is_file()
    return _quoted(sys.argv[0]) if is_script and not _on_path("minivit", started.parent.absolute()) else "minivit"


def _on_path(name: str, folder: Path) -> bool:
    import shutil
    from pathlib import Path

    found = shutil.which(name)
    return found is not None and Path(found).absolute().parent == folder


def _quoted(word: str) -> str:
    return f'"{word}"' if set(word) & set(" ()&;[]<>='") else word


_HIDDEN = {"Cc", "Cf", "Cn", "Co", "Cs", "Zl", "Zp"}
_JOINERS = "\u200c\u200d"  # a part of words in some scripts, and of emoji


def stop_in_one_line() -> None:
    """Let Ctrl-C end the command ``minivit`` in one line while it imports; nothing is lost then.

    `minivit.cli.main` sets another handler. In other programs, and where Ctrl-C has a handler already, nothing changes.
    """

    def stop(*_: object) -> None:
        os.write(2, b"minivit: stopped\n")
        os._exit(1)

    name = os.path.basename(getattr(sys, "argv", [""])[0])  # noqa: PTH119 - pathlib takes time to import
    as_module = name == "-m" and "minivit" in sys.orig_argv[:4]  # while Python looks for the module to run
    if (as_module or name == "minivit") and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        try:
            signal.signal(signal.SIGINT, stop)
        except ValueError:  # not in the main thread
            return
