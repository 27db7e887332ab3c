"""Names of layers and ops, and patterns of them.

A name is dotted: "blocks.3.attn" is a layer, "blocks.3.attn.softmax" an op that it calls. In a pattern "*" stands for
one part of a name, or for some of its characters as in "blocks.1*", and "**" for any number of parts.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection, Iterable, Iterator
from fnmatch import fnmatchcase
from functools import lru_cache

from minivit.errors import UserError, did_you_mean

ROOT = "model"  # the name of the outermost layer, unless a layer in it is called so: see `root_of`
_QUANTITY = re.compile(
    r"(.+)\.(d?(?:x|y|q|k|v|scores|weights|weight|bias|qkv|logits|heads\.\d+)|x_hat|inv_std|slope)", re.ASCII
)


def as_names(what: str, given: object) -> list[str]:
    """Return one name, or several, as a list.

    Raises
    ------
    UserError
        It is something else; `what` names the argument.
    """
    several = list(given) if isinstance(given, Iterable) and not isinstance(given, str) else [given]
    names = [name for name in several if isinstance(name, str)]
    if len(names) < len(several):
        wrong = next(name for name in several if not isinstance(name, str))
        raise UserError(f"{what} has {wrong!r}; expected names, such as 'blocks.3.attn'")
    return names


def root_of(layers: Collection[str]) -> str:
    """Return the name of the outermost layer, where those in it are called `layers`: one that none of them has."""
    names = itertools.chain((ROOT, "root"), (f"root_{number}" for number in itertools.count(2)))
    return next(name for name in names if name not in layers)


def is_pattern(name: str) -> bool:
    """Return whether `name` stands for several."""
    return any(character in name for character in "*?[")


@lru_cache(maxsize=1 << 16)
def matches(name: str, pattern: str) -> bool:
    """Return whether `pattern` stands for `name`."""
    return _match(tuple(name.split(".")), tuple(pattern.split(".")))


def _match(parts: tuple[str, ...], patterns: tuple[str, ...]) -> bool:
    if not patterns:
        return not parts
    if patterns[0] == "**":
        return any(_match(parts[i:], patterns[1:]) for i in range(len(parts) + 1))
    return bool(parts) and fnmatchcase(parts[0], patterns[0]) and _match(parts[1:], patterns[1:])


def unknown(pattern: str, names: Iterable[str], what: str = "layer or op") -> UserError:
    """Return the error for a `pattern` that matches none of `names`."""
    names = list(names)
    if (found := _QUANTITY.fullmatch(pattern)) and any(matches(name, found[1]) for name in names):
        return UserError(f"{pattern!r} is a quantity and no {what}: give {found[1]!r}, whose record has it")
    near = did_you_mean(pattern, _with_wildcards(pattern, names))
    shown = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
    return UserError(f"{pattern!r} matches no {what} of this trace;{near or f' the names are {shown}'}")


def _with_wildcards(pattern: str, names: list[str]) -> Iterator[str]:
    """Yield the `names` that are as long as `pattern`, with its wildcards where these stand for their parts.

    A pattern with a typo is so compared with patterns. Names alone are compared with a name, and with a pattern that
    has "**" elsewhere than at its beginning.
    """
    first, _, rest = pattern.partition(".")
    parts = (rest if first == "**" else pattern).split(".")
    if not is_pattern(pattern) or "**" in parts:
        yield from names
        return
    for name in names:
        own = name.split(".")
        if first == "**":
            own = own[-len(parts) :]
        if len(own) == len(parts):
            written = [p if is_pattern(p) and fnmatchcase(o, p) else o for o, p in zip(own, parts, strict=True)]
            yield ".".join(["**", *written] if first == "**" else written)
