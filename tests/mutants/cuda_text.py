"""A tokenizer for CUDA sources formatted by clang-format: the definitions in a source, and the kernels that use them.

A binary operator has spaces around it, and the arguments of a template follow its name without a space. Code inside
``#ifdef __CUDACC__`` is skipped, since no test on a CPU runs it.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

_TOKEN = re.compile(
    r"""(?P<space> \s+ | //[^\n]* | ^\#ifdef[ ]__CUDACC__$(?s:.*?)^\#endif$ | ^[ ]*\#[^\n]*)
      | (?P<number> 0x[\dA-Fa-f]+u? | \d[\d.]*(?:e[-+]?\d+)?u?)
      | (?P<name> [A-Za-z_]\w*(?:<[\w\s*<>,]*?>(?=[(\s]))?)
      | (?P<string> "[^"]*")
      | (?P<mark> [<>]{2} | [-+*/%^|&<>=!]= | && | \|\| | \+\+ | :: | .)""",
    re.VERBOSE | re.MULTILINE,
)


@dataclass(frozen=True)
class Token:
    """A name, number, string or mark, with its position."""

    kind: str
    text: str
    start: int
    end: int
    is_binary: bool  # it has spaces around it

    @property
    def name(self) -> str:
        """The text without template arguments."""
        return self.text.partition("<")[0] if self.kind == "name" else self.text


@dataclass(frozen=True)
class Definition:
    """A function or a constant."""

    name: str
    body: tuple[Token, ...]
    is_kernel: bool

    @property
    def names(self) -> set[str]:
        """The names in the body."""
        return {token.name for token in self.body if token.kind == "name"}


def tokens_of(text: str) -> list[Token]:
    """Return the tokens without spaces, comments and directives; template arguments are part of the name."""
    tokens = []
    for match in _TOKEN.finditer(text):
        if match.lastgroup != "space":
            around = text[match.start() - 1 : match.start()], text[match.end() : match.end() + 1]
            is_mark = match.lastgroup == "mark" and match[0] not in "{}"
            is_binary = is_mark and all(side.isspace() for side in around)
            tokens.append(Token(str(match.lastgroup), match[0], *match.span(), is_binary))
    return tokens


def definitions(text: str) -> Iterator[Definition]:
    """Yield the functions, including those of structures, and the constants of a source."""
    tokens = tokens_of(text)
    start = at = 0
    while at < len(tokens):
        names = [token.text for token in tokens[start : at + 1]]
        if names[-1] == "{" and "struct" not in names:
            end = closing(tokens, at)
            called = next(i for i, (name, mark) in enumerate(pairwise(names)) if mark == "(" and _may_be_called(name))
            body = tokens[closing(tokens, start + called + 1) + 1 : end]  # with the initialisers of a constructor
            yield Definition(names[called], tuple(body), "__global__" in names)
            at = end
        elif names[-1] == ";" and "constexpr" in names:
            equals = names.index("=")
            yield Definition(names[equals - 1], tuple(tokens[start + equals + 1 : at + 1]), False)
        at += 1
        if tokens[at - 1].text in "{;}":
            start = at


def _may_be_called(name: str) -> bool:
    return name.isidentifier() and name not in ("acc", "real", "alignas")


@functools.cache
def _all_definitions(text: str) -> tuple[Definition, ...]:
    return tuple(definitions(text))


def kernels_with(text: str, name: str) -> set[str]:
    """Return the kernels of a source that use `name`, directly or indirectly."""
    found, users, everything = {name}, set[str](), _all_definitions(text)
    while found:
        users |= found
        found = {definition.name for definition in everything if definition.names & users} - users
    return {definition.name for definition in everything if definition.is_kernel and definition.name in users}


def closing(body: Sequence[Token], at: int) -> int:
    """Return the index of the bracket that closes the one at `at`."""
    depth = 0
    for i in range(at, len(body)):
        depth += (body[i].text in "([{") - (body[i].text in ")]}")
        if not depth:
            return i
    raise ValueError("a bracket is not closed")
