"""The mutants of a CUDA source: each has one sign, term, factor, number, comparison, index or statement changed.

The step of a loop is changed in one way only, since most other changes compute the same numbers twice. The choice of
the lane that writes a result which all lanes have is not changed, since that has no effect.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeAlias

from .cuda_text import Token, closing, definitions
from .operators import Mutant

Edit: TypeAlias = tuple[str, int, int, str]  # the kind of mutation, the start and end of a span, and its replacement

_OPPOSITE = {
    "+": "-", "-": "+", "*": "/", "/": "*", "%": "/", "^": "|", ">>": "<<",
    "<": "<=", "<=": "<", ">": "<", ">=": ">", "==": "!=", "!=": "==", "&&": "||", "||": "&&",
}  # fmt: skip
_ASSIGNMENTS = {"+=": ("-=", "="), "-=": ("+=",), "*=": ("/=",), "/=": ("*=",), "^=": ("|=",)}
_SUMS = ("+", "-")
_REGISTERS = ("V", "PACK", "CHUNKS")  # how many numbers a thread holds; a larger count reads out of bounds
_ENDS = {*"<>?:,;)]}=^", "<=", ">=", "==", "!=", "&&", "||", ">>", *_ASSIGNMENTS}


def mutants_of_source(text: str, path: str, op: str) -> list[Mutant]:
    """Return the mutants of a CUDA source, each once, in the order of its functions."""
    found = {text}
    mutants: list[Mutant] = []
    for definition in definitions(text):
        for kind, start, end, new in _edits(definition.body):
            source = text[:start] + new + text[end:]
            if source not in found:
                found.add(source)
                line = text.count("\n", 0, start)
                before, after = (whole.splitlines()[line].partition("//")[0].strip() for whole in (text, source))
                mutants.append(Mutant(path, line + 1, definition.name, op, kind, before, after, source))
    return mutants


def _edits(body: Sequence[Token]) -> Iterator[Edit]:
    left_alone: set[int] = set()
    offsets: set[int] = set()  # in the arguments of a call, where + is pointer arithmetic
    for at, token in enumerate(body):
        if token.text == "for":
            steps = _steps(body, at)
            left_alone.update(steps)
            if body[steps.start - 2].text in _REGISTERS:
                left_alone.update(range(at, steps.start))
            if any(body[i].text == "+=" for i in steps):
                first = next(i for i in steps if body[i].text == "+=") + 1
                yield "stride", body[first].start, body[first].start, "2 * "
        elif token.text == "gridDim" and at not in left_alone:  # the number of all threads
            left_alone.update(range(at - 2, _next(body, at, {";"})))
        elif token.text == "__shared__":
            left_alone.update(range(at, _next(body, at, {";"})))
        elif token.text == "threadIdx" and _is_of_one_lane(body, at):
            left_alone.update(range(at, _next(body, at, {")", "&&"})))
        elif _begins_a_statement(body, at) and _is_call(body, at):
            offsets.update(range(at, _next(body, at, {";"})))
    for at in range(len(body)):
        if at not in left_alone:
            yield from _edits_at(body, at)
            yield from _edits_of_operator(body, at, is_offset=at in offsets)
            if _begins_a_statement(body, at):
                yield from _edits_of_statement(body, at)


def _is_of_one_lane(body: Sequence[Token], at: int) -> bool:
    """Return whether ``threadIdx.x == 0`` or ``threadIdx.x % WARP == 0`` is at `at`."""
    texts = [token.text for token in body[at : at + 7]]
    return texts[2] == "x" and (texts[3] == "==" or texts[3:4] + texts[5:6] == ["%", "=="])


def _edits_at(body: Sequence[Token], at: int) -> Iterator[Edit]:
    token = body[at]
    after = body[at + 1].text if at + 1 < len(body) else ""
    before = body[at - 1].text if at else ";"
    if token.text == "-" and not token.is_binary:
        yield "sign", token.start, token.end, ""
    elif token.kind == "number":
        yield "number", token.start, token.end, _other_number(token.text, after)
    elif token.text in ("threadIdx", "blockIdx") and not (before == "+" and body[at + 3].text in (";", ")")):
        yield "index", token.start, body[at + 2].end, "0"
    elif token.text == "__shfl_xor_sync":
        last = closing(body, at + 1) - 1
        yield "shuffle", body[last].start, body[last].end, "1"
    elif token.text == "if":
        opening = _next(body, at, {"("})  # after constexpr, if it is there
        condition = body[opening + 1 : closing(body, opening)]
        if condition[0].text == "!":
            yield "condition", condition[0].start, condition[0].end, ""
        elif not any(inner.is_binary for inner in condition):
            yield "condition", condition[0].start, condition[0].start, "!"
    elif token.kind == "name" and after == "?" and before in ("=", ":", "(", "return"):
        yield "condition", token.start, token.start, "!"


def _edits_of_operator(body: Sequence[Token], at: int, is_offset: bool) -> Iterator[Edit]:
    token = body[at]
    if not token.is_binary:
        return
    for other in _ASSIGNMENTS.get(token.text, ()):
        yield "assignment", token.start, token.end, other
    is_thread = body[at + 1].text in ("threadIdx", "blockIdx")
    if token.text in _OPPOSITE and not (token.text == "+" and (is_offset or is_thread)):
        yield "operator", token.start, token.end, _OPPOSITE[token.text]
    if token.text in _SUMS:
        end = _term_end(body, at + 1)
        yield "term", body[at - 1].end, body[end - 1].end, ""


def _edits_of_statement(body: Sequence[Token], at: int) -> Iterator[Edit]:
    token, end = body[at], _next(body, at, {";"})
    is_assignment = token.text == "*" or body[at + 1].text in ("=", "[")
    if is_assignment and any(inside.text == "=" for inside in body[at:end]):
        yield "statement", token.start, body[end].start, ""
    # Without a load, the numbers would be uninitialised.
    if _is_call(body, at) and token.name != "load":
        kind = "barrier" if token.text in ("__syncthreads", "__syncwarp") else "statement"
        yield kind, token.start, body[end].start, ""


def _begins_a_statement(body: Sequence[Token], at: int) -> bool:
    before = body[at - 1].text if at else ""
    return before in (";", "{", "}", ")", "else") and (body[at].kind == "name" or body[at].text == "*")


def _is_call(body: Sequence[Token], at: int) -> bool:
    """Return whether the statement that begins at `at` is a call whose result is not used."""
    is_call = body[at + 1].text == "(" and body[at].text not in ("for", "if", "return")
    return is_call and body[closing(body, at + 1) + 1].text == ";"


def _other_number(text: str, after: str) -> str:
    if text.startswith("0x"):
        digits = text.rstrip("u")
        return f"0x{int(digits, 16) ^ 1:X}{text[len(digits) :]}"
    if text.isdecimal():
        # An integer quotient may be the same for the next divisor.
        return str(2 * int(text) if after == "/" else int(text) + 1)
    return repr(float(text) / 2 if float(text) > 1e9 else float(text) + 1)


def _steps(body: Sequence[Token], at: int) -> range:
    """Return the tokens after the second semicolon in the head of the loop at `at`."""
    end = closing(body, at + 1)
    second = [i for i in range(at, end) if body[i].text == ";"][1]
    return range(second + 1, end)


def _next(body: Sequence[Token], at: int, texts: set[str]) -> int:
    return next(i for i in range(at, len(body)) if body[i].text in texts)


def _term_end(body: Sequence[Token], at: int) -> int:
    """Return the token after the term that starts at `at`."""
    i = at
    while True:
        if body[i].text in ("(", "["):
            i = closing(body, i)
        elif body[i].text in _ENDS or (body[i].is_binary and body[i].text in _SUMS):
            return i
        i += 1
