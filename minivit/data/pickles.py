"""What keeps a pickle harmless: limits that are checked before it is read, and stand-ins for what it calls.

Unpickling calls the functions and classes that a pickle names. An unpickler here resolves the few names that it allows
to classes that only store their arguments and to the functions below, and refuses all others.
"""

from __future__ import annotations

import pickle
import pickletools
from typing import Any, NamedTuple


class Function:
    """Replaces a function; a pickle can set attributes of a function, but not of this."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("it sets attributes of a function")


class Encode(Function):
    """Replaces _codecs.encode, by which Python 3 writes bytes in the older protocols.

    Parameters
    ----------
    most : int
        The bytes that all calls together may return: those of the pickle, which has a text for each call.
    """

    __slots__ = ("_left",)

    def __init__(self, most: int) -> None:
        self._left = most

    def __call__(self, text: str, encoding: str) -> bytes:
        """Return the bytes."""
        self._left -= len(text)
        if self._left < 0:
            raise pickle.UnpicklingError("it makes more bytes than it has")
        if encoding != "latin1":
            raise pickle.UnpicklingError("bytes in an encoding other than latin1")
        return text.encode("latin1")


_LARGEST_MEMO_INDEX = 10**6  # the largest batch of CIFAR, train of CIFAR-100, uses about 50,000
_MOST_OPCODES = 600_000  # that batch has 200,000, or 500,000 if Python 3 wrote it in an old protocol
_DEEPEST = 100  # levels of nested tuples, lists and dicts; a batch has 5
_MOST_PARTS = 10**7  # of an object, where a part that it holds twice counts twice: the hash of a tuple visits them all
_MOST_KEY_PARTS = 1000  # of all keys that are not plain: their hashes may be equal, or take long
_ADDING = ("APPEND", "APPENDS", "SETITEM", "SETITEMS", "ADDITEMS", "BUILD")


class _Size(NamedTuple):
    """The size of an object: its levels of nesting, and how many parts it has.

    A `plain` object is a text, bytes or a small integer: any number of them are quick as keys. The hashes of large
    integers can be equal by intent, and those of tuples of them.
    """

    depth: int = 0
    parts: int = 1
    plain: bool = False


def check_opcodes(data: bytes, most: int = _MOST_OPCODES) -> None:
    """Refuse what would take the unpickler gigabytes or minutes, or crash it.

    That is a pickle of more than `most` opcodes, or one that is nested deeply.

    The loop follows the size of each object on the stack. The size of a list that is changed after it was put into the
    memo is not followed; this is enough, because what visits all parts is the hash of a tuple, in which a list is an
    error.
    """
    stack: list[_Size] = []
    marks: list[int] = []
    memo: dict[int, _Size] = {}
    simple = {name for name, effect in _EFFECTS.items() if effect == (0, 1)} - {*_GETTING, *_PUTTING, "MARK", "DUP"}
    simple_size, plain_size = _Size(), _Size(plain=True)
    key_parts = 0
    for count, (opcode, argument, _) in enumerate(pickletools.genops(data)):  # it refuses lengths beyond the end
        name = opcode.name
        if count > most:
            raise pickle.UnpicklingError(f"it has more than {most:,} opcodes")
        if name in simple:
            is_plain = opcode.stack_after[0] in _PLAIN and not (type(argument) is int and abs(argument) >= 2**31)
            stack.append(plain_size if is_plain else simple_size)
        elif name == "MARK":
            marks.append(len(stack))
        elif name in _PUTTING:
            index = len(memo) if name == "MEMOIZE" else int(argument or 0)
            if index > _LARGEST_MEMO_INDEX:
                raise pickle.UnpicklingError(f"its memo index {index} is too large")
            memo[index] = stack[-1]
        elif name in _GETTING:
            stack.append(memo[int(argument or 0)])
        elif name == "DUP":
            stack.append(stack[-1])
        elif name == "POP" and marks and marks[-1] == len(stack):
            marks.pop()
        else:
            before, results = _EFFECTS[name]
            start = marks.pop() if before is None else len(stack) - before
            if name in _ADDING and before is None:
                start -= 1  # the container below the mark
            if start < (marks[-1] if marks else 0):
                raise pickle.UnpicklingError("it takes more from its stack than there is")
            key_parts += sum(key.parts for key in _keys(name, stack[start:]) if not key.plain)
            if key_parts > _MOST_KEY_PARTS:
                raise pickle.UnpicklingError(f"its keys have more than {_MOST_KEY_PARTS:,} parts")
            size = _of_all(stack[start:], name in _ADDING)
            if size.depth > _DEEPEST:
                raise pickle.UnpicklingError(f"it is nested more than {_DEEPEST} levels deep")
            if size.parts > _MOST_PARTS:
                raise pickle.UnpicklingError(f"one of its objects has more than {_MOST_PARTS:,} parts")
            stack[start:] = [size] * results


def _of_all(taken: list[_Size], adding: bool) -> _Size:
    """Return the size of an object made of those `taken` from the stack, or of the first after `adding` the others."""
    inner = taken[1:] if adding else taken
    depth = 1 + max((size.depth for size in inner), default=-1) if taken else 0
    if adding and taken:
        depth = max(depth, taken[0].depth)
    return _Size(depth, sum(size.parts for size in taken) + 1)


def _keys(name: str, taken: list[_Size]) -> list[_Size]:
    """Return what an opcode adds to a dict or a set as keys, among the objects that it takes."""
    if name in ("SETITEM", "SETITEMS"):
        return taken[1::2]
    if name == "DICT":
        return taken[::2]
    return {"ADDITEMS": taken[1:], "FROZENSET": taken}.get(name, [])


_PLAIN = (
    *(pickletools.pyint, pickletools.pylong, pickletools.pyinteger_or_bool),
    *(pickletools.pystring, pickletools.pybytes_or_str, pickletools.pybytes, pickletools.pyunicode),
)
_PUTTING = ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE")
_GETTING = ("GET", "BINGET", "LONG_BINGET")


def _effect(opcode: pickletools.OpcodeInfo) -> tuple[int | None, int]:
    """Return how many objects an opcode takes from the stack (None: all above the last mark), and how many it puts."""
    takes = None if pickletools.markobject in opcode.stack_before else len(opcode.stack_before)
    return takes, len(opcode.stack_after)


_EFFECTS = {opcode.name: _effect(opcode) for opcode in pickletools.opcodes}
