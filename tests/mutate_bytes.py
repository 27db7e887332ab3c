"""Damaged versions of the content of a file, for tests of what reads it."""

from collections.abc import Callable, Iterator
from itertools import islice

import numpy as np

Mutation = Callable[[bytearray, np.random.Generator], bytes | bytearray]

_EXTREMES = (0, 1, 2**7, 2**8 - 1, 2**15, 2**16 - 1, 2**31 - 1, 2**32 - 1, 2**63 - 1, 2**64 - 1)


def mutations(content: bytes, generator: np.random.Generator, count: int | None = None) -> Iterator[bytes]:
    """Yield `count` (by default infinitely many) mutated versions of `content`, each with 1 to 4 mutations."""
    return islice(_mutations(content, generator), count)


def _mutations(content: bytes, generator: np.random.Generator) -> Iterator[bytes]:
    while True:
        data = bytearray(content)
        for _ in range(generator.integers(1, 5)):
            mutation = _MUTATIONS[generator.integers(len(_MUTATIONS))]
            data = bytearray(mutation(data, generator))
        yield bytes(data)


def _place(data: bytearray, generator: np.random.Generator) -> int:
    """Return an index; in half of the cases one of the first 256, where headers are."""
    end = len(data) if generator.integers(2) else min(len(data), 256)
    return int(generator.integers(end)) if end else 0


def _length(generator: np.random.Generator) -> int:
    """Return a length whose magnitude is random."""
    return int(2 ** generator.uniform(0, 12))


def flip_a_bit(data: bytearray, generator: np.random.Generator) -> bytearray:
    if data:
        data[_place(data, generator)] ^= 1 << int(generator.integers(8))
    return data


def set_bytes(data: bytearray, generator: np.random.Generator) -> bytearray:
    start = _place(data, generator)
    data[start : start + _length(generator)] = generator.bytes(_length(generator))
    return data


def set_a_number(data: bytearray, generator: np.random.Generator) -> bytearray:
    """Overwrite 1, 2, 4 or 8 bytes, as a length or a size in a header may be stored, by an extreme number."""
    size = int(generator.choice([1, 2, 4, 8]))
    value = _EXTREMES[generator.integers(len(_EXTREMES))] % 2 ** (8 * size)
    start = _place(data, generator)
    data[start : start + size] = value.to_bytes(size, "big" if generator.integers(2) else "little")
    return data


def set_a_decimal(data: bytearray, generator: np.random.Generator) -> bytes:
    """Replace the digits after a random place by another number, as sizes in text are stored."""
    digits = b"0123456789"
    start = _place(data, generator)
    while start < len(data) and data[start] not in digits:
        start += 1
    end = start
    while end < len(data) and data[end] in digits:
        end += 1
    numbers = (b"0", b"-1", b"1e999", b"1.5", b"9" * 30, b"2147483648", b"18446744073709551616", b"NaN", b"null")
    return bytes(data[:start]) + numbers[generator.integers(len(numbers))] + bytes(data[end:])


def cut_the_end(data: bytearray, generator: np.random.Generator) -> bytearray:
    return data[: _place(data, generator)]


def remove(data: bytearray, generator: np.random.Generator) -> bytearray:
    start = _place(data, generator)
    del data[start : start + _length(generator)]
    return data


def insert(data: bytearray, generator: np.random.Generator) -> bytearray:
    start = _place(data, generator)
    data[start:start] = generator.bytes(_length(generator))
    return data


def repeat(data: bytearray, generator: np.random.Generator) -> bytearray:
    """Repeat a part many times: nesting, opcodes, table entries."""
    start = _place(data, generator)
    part = bytes(data[start : start + int(generator.integers(1, 16))])
    data[start:start] = part * _length(generator)
    return data


def swap(data: bytearray, generator: np.random.Generator) -> bytearray:
    """Exchange two parts of one length."""
    first, second, length = _place(data, generator), _place(data, generator), _length(generator)
    first, second = min(first, second), max(first, second)
    length = min(length, second - first, len(data) - second)
    data[first : first + length], data[second : second + length] = (
        data[second : second + length],
        data[first : first + length],
    )
    return data


_MUTATIONS: tuple[Mutation, ...] = (
    *(flip_a_bit, set_bytes, set_a_number, set_a_decimal, cut_the_end, remove, insert, repeat, swap),
)
