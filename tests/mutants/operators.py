"""The mutants of a function: each has one sign, term, factor, number, axis, operand or statement changed.

A literal number is changed if it is a factor, a term, an exponent or a bound; an axis is replaced by another axis, and
the numbers of a shape are not changed. Errors are not changed either, nor the arguments of `pieces`, which do not
affect results.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeAlias

Change: TypeAlias = tuple[str, ast.AST]  # the kind of mutation and the replacement of the node

_OTHER_AXES = {-1: (-2, 0), 0: (1, -1)}
_SUMS, _PRODUCTS = (ast.Add, ast.Sub), (ast.Mult, ast.Div)
_FRESH = ("empty", "empty_like", "zeros", "zeros_like")  # a changed sign has no effect


@dataclass(frozen=True)
class Mutant:
    """A function with one change."""

    path: str  # of the file, relative to the root of the project
    line: int
    function: str  # such as gelu_backward or MLP.backward
    op: str  # the op whose tests must kill it
    kind: str
    before: str  # the statement
    after: str
    source: str  # the whole changed function

    def __str__(self) -> str:
        return f"{self.path}:{self.line} {self.function} ({self.kind})\n    - {self.before}\n    + {self.after}"


def mutants_of(function: ast.FunctionDef, path: str, name: str, op: str) -> list[Mutant]:
    """Return the distinct mutants of `function`, in the order of its lines."""
    function = _bare(function)
    found = {ast.unparse(function)}
    mutants: list[Mutant] = []
    for statement, node in _nodes(function.body):
        for kind, new in _changes(node):
            source = ast.unparse(_replaced(function, node, new))
            if source not in found:
                found.add(source)
                before, after = ast.unparse(statement), ast.unparse(_replaced(statement, node, new))
                mutants.append(Mutant(path, statement.lineno, name, op, kind, before, after, source))
    return mutants


def _bare(function: ast.FunctionDef) -> ast.FunctionDef:
    """Return the function without decorators, annotations and docstring."""
    arguments = [ast.arg(a.arg) for a in function.args.args]
    has_docstring = ast.get_docstring(function) is not None
    bare = ast.FunctionDef(function.name, ast.arguments([], arguments, None, [], [], None, []), [], [], None)
    bare.body = [_Unannotated().visit(statement) for statement in function.body[has_docstring:]]
    return ast.copy_location(bare, function)


class _Unannotated(ast.NodeTransformer):
    """Takes the annotations out of assignments."""

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.stmt:
        new = ast.Assign([node.target], node.value) if node.value else ast.Pass()
        return ast.copy_location(new, node)


def _nodes(body: Sequence[ast.stmt]) -> Iterator[tuple[ast.stmt, ast.AST]]:
    """Yield every node with its innermost statement, except in errors and in the arguments of `pieces`."""
    for statement in body:
        if isinstance(statement, ast.Raise):
            continue
        inner = [child for child in ast.iter_child_nodes(statement) if isinstance(child, ast.stmt)]
        calls = (node for node in ast.walk(statement) if isinstance(node, ast.Call))
        cuts = [call for call in calls if ast.unparse(call.func) == "pieces"]
        skipped = {id(node) for child in [*inner, *cuts] for node in ast.walk(child)}
        yield from ((statement, node) for node in ast.walk(statement) if id(node) not in skipped)
        yield from _nodes(inner)


def _replaced(node: Any, old: ast.AST, new: ast.AST) -> Any:
    """Return a copy of the tree `node` with `old` replaced by `new`."""
    if node is old:
        return new
    if isinstance(node, list):
        return [_replaced(item, old, new) for item in node]
    if isinstance(node, ast.AST):
        copy = type(node)(**{field: _replaced(value, old, new) for field, value in ast.iter_fields(node)})
        return ast.copy_location(copy, node)
    return node


def _changes(node: ast.AST) -> Iterator[Change]:
    match node:
        case ast.BinOp():
            yield from _of_operation(node)
        case ast.UnaryOp(op=ast.USub(), operand=operand) if not _is_number(node):
            yield "sign", operand
        case ast.AugAssign(target=target, op=operator, value=value):
            if isinstance(operator, _SUMS):
                yield "sign", ast.AugAssign(target, _opposite(operator), value)
            yield from (("number", ast.AugAssign(target, operator, new)) for new in _other_numbers(value))
            yield "statement", ast.Pass()
        case ast.Assign(targets=[target], value=value):
            is_fresh = isinstance(value, ast.Call) and ast.unparse(value.func).rpartition(".")[2] in _FRESH
            is_nothing = is_fresh or _value(value) == 0
            if not isinstance(target, ast.Tuple) and ast.unparse(target).startswith("d") and not is_nothing:
                yield "sign", ast.Assign([target], _minus(value), lineno=node.lineno)
            if isinstance(target, ast.Subscript):
                yield "statement", ast.Pass()
        case ast.Return(value=ast.Tuple(elts=elements)):
            for i, element in enumerate(elements):
                if not isinstance(element, ast.Constant):
                    yield "sign", ast.Return(_tuple([*elements[:i], _minus(element), *elements[i + 1 :]], ast.Load()))
        case ast.Return(value=ast.expr() as value):
            yield "sign", ast.Return(_minus(value))
        case ast.Expr(value=ast.Call()):
            yield "statement", ast.Pass()
        case ast.Tuple(elts=elements, ctx=context):
            yield from (("exchange", _tuple(swapped, context)) for swapped in _swaps(elements))
        case ast.Slice():
            yield from _of_slice(node)
        case ast.Subscript(value=value, slice=index, ctx=context) if _is_number(index):
            yield from (("axis", ast.Subscript(value, axis, context)) for axis in _other_axes(index))
        case ast.Attribute(value=value, attr="T"):
            yield "axis", value
        case ast.keyword(arg="axis", value=value):
            yield from (("axis", ast.keyword("axis", axis)) for axis in _other_axes(value))
        case ast.keyword(arg="keepdims", value=ast.Constant(value=keepdims)):
            yield "axis", ast.keyword("keepdims", ast.Constant(not keepdims))
        case ast.Call():
            yield from _of_call(node)


def _of_operation(node: ast.BinOp) -> Iterator[Change]:
    left, operator, right = node.left, node.op, node.right
    if isinstance(operator, _SUMS):
        yield "sign", ast.BinOp(left, _opposite(operator), right)
        yield "term", left
        if not _is(left, _SUMS):
            yield "sign", ast.BinOp(_minus(left), operator, right)
            yield "term", right if isinstance(operator, ast.Add) else _minus(right)
    else:
        yield "factor", left
        if isinstance(operator, ast.Div):
            yield "factor", ast.BinOp(ast.Constant(1), operator, right)
        elif isinstance(operator, ast.MatMult) or (isinstance(operator, ast.Mult) and not _is(left, _PRODUCTS)):
            yield "factor", right
        if isinstance(operator, ast.MatMult):
            yield "exchange", ast.BinOp(right, operator, left)
    yield from (("number", ast.BinOp(new, operator, right)) for new in _other_numbers(left))
    yield from (("number", ast.BinOp(left, operator, new)) for new in _other_numbers(right))


def _of_call(node: ast.Call) -> Iterator[Change]:
    function, arguments, keywords = node.func, node.args, node.keywords
    name = ast.unparse(function).rpartition(".")[2]

    def call(*changed: ast.expr) -> ast.Call:
        return ast.Call(function, list(changed), keywords)

    if name.endswith("backward") or name == "reversed":
        yield "call", arguments[0]
    elif name in ("add_grad", "add_product"):
        yield "sign", call(_minus(arguments[0]), *arguments[1:])
    elif name in ("matmul", "reshape", "transpose"):
        yield from (("exchange" if name == "matmul" else "axis", call(*swapped)) for swapped in _swaps(arguments))
        if name == "matmul":
            yield "sign", call(_minus(arguments[0]), *arguments[1:])
    elif name in ("add", "subtract"):
        opposite = ast.Attribute(ast.Name("np"), "subtract" if name == "add" else "add", ast.Load())
        yield "sign", ast.Call(opposite, arguments, keywords)
    elif name == "multiply":
        yield "factor", call(_number(1), arguments[1])
        yield "factor", call(arguments[0], _number(1))
    elif name in ("einsum", "vecdot"):
        *form, one, other = arguments
        yield from (("factor", call(*form, factor, factor)) for factor in (one, other))
    elif isinstance(function, ast.Attribute) and name == "swapaxes":
        third = _number(0 if (_value(arguments[0]) or -1) > 0 else -3)
        yield "axis", function.value
        yield "axis", call(third, arguments[1])
        yield "axis", call(arguments[0], third)
    elif isinstance(function, ast.Attribute) and name in ("sum", "mean"):
        other = ast.Attribute(function.value, "mean" if name == "sum" else "sum", ast.Load())
        yield "factor", ast.Call(other, arguments, keywords)
        yield "axis", ast.Call(function, arguments, [word for word in keywords if word.arg != "axis"])


def _of_slice(node: ast.Slice) -> Iterator[Change]:
    lower, upper = node.lower, node.upper
    if lower and upper:
        yield "axis", ast.Slice(None, upper)
        yield "axis", ast.Slice(lower, None)
    elif lower or upper:
        yield "axis", ast.Slice(upper, lower)
    if lower:
        yield from (("number", ast.Slice(new, upper)) for new in _other_numbers(lower))
    if upper:
        yield from (("number", ast.Slice(lower, new)) for new in _other_numbers(upper))


def _opposite(operator: ast.operator) -> ast.operator:
    return ast.Sub() if isinstance(operator, ast.Add) else ast.Add()


def _minus(node: ast.expr) -> ast.expr:
    return ast.UnaryOp(ast.USub(), node)


def _is(node: ast.expr, operators: tuple[type[ast.operator], ...]) -> bool:
    return isinstance(node, ast.BinOp) and isinstance(node.op, operators)


def _tuple(elements: list[ast.expr], context: ast.expr_context) -> ast.Tuple:
    return ast.Tuple(elements, context)


def _swaps(elements: Sequence[ast.expr]) -> Iterator[list[ast.expr]]:
    """Yield the elements with two neighbours exchanged, for each pair of neighbours that differ."""
    for i, (a, b) in enumerate(pairwise(elements)):
        if ast.unparse(a) != ast.unparse(b):
            yield [*elements[:i], b, a, *elements[i + 2 :]]


def _value(node: ast.expr) -> int | float | None:
    match node:
        case ast.Constant(value=int() | float() as value) if not isinstance(value, bool):
            return value
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as value)):
            return -value
    return None


def _is_number(node: ast.expr) -> bool:
    return _value(node) is not None


def _number(value: int | float) -> ast.expr:
    return ast.Constant(value) if value >= 0 else _minus(ast.Constant(-value))


def _other_numbers(node: ast.expr) -> Iterator[ast.expr]:
    """Yield the number with its size increased by one, and a negative number negated; nothing without a literal."""
    value = _value(node)
    if value is not None:
        yield _number(value + 1 if value >= 0 else value - 1)
        if value < 0:
            yield _number(-value)


def _other_axes(node: ast.expr) -> Iterator[ast.expr]:
    value = _value(node)
    axes = (-1,) if not isinstance(value, int) else _OTHER_AXES.get(value, (value - 1, value + 1))
    return map(_number, axes)
