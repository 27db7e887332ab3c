"""Typical mistakes as edits: one line of a backward pass replaced, compiled, and run in place of the original.

An edit is installed for one thread, as an interception: the op or layer that it changes runs functions with the edited
line, and everything else is as it was.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import CodeType, FunctionType, ModuleType
from typing import Any, Literal

from minivit.ops.interception import Interception

Category = Literal[
    "dropped term",
    "wrong axis",
    "missing scale",
    "missing sum",
    "missing factor",
    "exchanged product",
    "transposed product",
    "another function",
]


@dataclass(frozen=True)
class Edit:
    """One line of a backward pass, and what a typical mistake makes of it.

    Attributes
    ----------
    kind
        The kind of the layer or op that it is applied to.
    title, category
        The mistake in words, and its class.
    function
        The edited function: "module:function" in minivit.ops, or "module:Class.method" in minivit.nn.
    before, after
        The line without its indentation, and what replaces it; "" removes it.
    at
        Pattern of the names of the layers that it is applied to.
    needs
        An argument of the op without which the line does nothing, or "".
    """

    kind: str
    title: str
    category: Category
    function: str
    before: str
    after: str
    at: str = "**"
    needs: str = ""

    @property
    def module(self) -> str:
        """The full name of the module of the edited function."""
        module, _, name = self.function.partition(":")
        return f"minivit.{'nn' if '.' in name else 'ops'}.{module}"


_SOFTMAX = "return y * (dy - (dy * y).sum(axis=-1, keepdims=True))"
_NORM = "dx = inv_std * (dx_hat - through_mean - through_variance)"

EDITS = (
    Edit(
        "PatchEmbed", "the patches are not put back row by row", "wrong axis", "patches:patches_backward",
        "dx = dy.reshape(B, rows, columns, P, Q, C).transpose(0, 1, 3, 2, 4, 5)  # (B, row, P, column, Q, C)",
        "dx = dy.reshape(B, rows, columns, P, Q, C)",
    ),
    Edit(
        "embed", "the gradient of the positions is not summed over the images", "missing sum", "tokens:embed_backward",
        "dpos_embed = dy[:, -positions:].sum(axis=0, keepdims=True) if positions else None",
        "dpos_embed = dy[:, -positions:] if positions else None", needs="pos_embed",
    ),
    Edit(
        "embed", "the gradient of the positions is a mean over the images, not a sum", "missing scale",
        "tokens:embed_backward", "dpos_embed = dy[:, -positions:].sum(axis=0, keepdims=True) if positions else None",
        "dpos_embed = dy[:, -positions:].mean(axis=0, keepdims=True) if positions else None", needs="pos_embed",
    ),
    Edit(
        "embed", "the class token has the gradient of the first image alone", "missing sum", "tokens:embed_backward",
        "dcls_token = dy[:, :first].sum(axis=0, keepdims=True) if has_cls_token else None",
        "dcls_token = dy[:1, :first] if has_cls_token else None", needs="cls_token",
    ),
    Edit(
        "EncoderBlock", "the residual connection around the MLP passes no gradient on", "dropped term",
        "encoder_block:EncoderBlock.backward", "dh = dh + dy", "",
    ),
    Edit(
        "EncoderBlock", "the residual connection around attention passes no gradient on", "dropped term",
        "encoder_block:EncoderBlock.backward", "dx[:, queries] += dh", "",
    ),
    Edit("LayerNorm", "the term through the mean is missing", "dropped term", "layer_norm:layer_norm_backward", _NORM,
         "dx = inv_std * (dx_hat - through_variance)"),
    Edit("LayerNorm", "the term through the variance is missing", "dropped term", "layer_norm:layer_norm_backward",
         _NORM, "dx = inv_std * (dx_hat - through_mean)"),
    Edit("LayerNorm", "the division by the standard deviation is missing", "missing scale",
         "layer_norm:layer_norm_backward", _NORM, "dx = dx_hat - through_mean - through_variance"),
    Edit(
        "LayerNorm", "the mean is over the tokens, not over the features", "wrong axis",
        "layer_norm:layer_norm_backward", "through_mean = dx_hat.mean(axis=-1, keepdims=True)",
        "through_mean = dx_hat.mean(axis=-2, keepdims=True)",
    ),
    Edit("Attention", "the scale 1/sqrt(K) is missing", "missing scale", "attention:products_derivative",
         "dproducts *= K**-0.5", ""),
    Edit(
        "Attention", "the weights are not transposed for dv", "transposed product", "attention:products_derivative",
        "xp.matmul(dropped.swapaxes(-1, -2), dy, out=dv)", "xp.matmul(dropped, dy, out=dv)",
    ),
    Edit(
        "Attention", "dproducts is not transposed for dk", "transposed product", "attention:attention_backward",
        "xp.matmul(dproducts.swapaxes(-1, -2), q[:, :, queries], out=dk)",
        "xp.matmul(dproducts, q[:, :, queries], out=dk)",
    ),
    Edit(
        "Attention", "queries and keys are exchanged for dq", "exchanged product", "attention:attention_backward",
        "xp.matmul(dproducts, k, out=dq[:, :, queries])", "xp.matmul(dproducts, q, out=dq[:, :, queries])",
    ),
    Edit("softmax", "the subtracted sum is missing", "dropped term", "softmax:softmax_backward", _SOFTMAX,
         "return y * dy"),
    Edit("softmax", "the sum is over the queries, not over the keys", "wrong axis", "softmax:softmax_backward",
         _SOFTMAX, "return y * (dy - (dy * y).sum(axis=-2, keepdims=True))"),
    Edit("Linear", "the weight is not transposed for dx", "transposed product", "linear:linear_backward",
         "dx = dy_rows @ weight.T", "dx = dy_rows @ weight", at="**.attn.proj"),
    Edit("Linear", "x and dy are exchanged for dweight", "exchanged product", "linear:linear_backward",
         "dweight = x_rows.T @ dy_rows", "dweight = dy_rows.T @ x_rows", at="**.attn.proj"),
    Edit(
        "Linear", "the gradient of the bias is a mean over the tokens, not a sum", "missing scale",
        "linear:linear_backward", "dbias = xp.ones(len(dy_rows), dtype=dy.dtype) @ dy_rows if has_bias else None",
        "dbias = dy_rows.mean(axis=0) if has_bias else None", at="**.attn.proj", needs="bias",
    ),
    Edit(
        "LayerScale", "the factor is missing for dx", "missing scale", "layer_scale:layer_scale_backward",
        "return dy * gamma, sum_of_rows(dy * x)", "return dy, sum_of_rows(dy * x)",
    ),
    Edit(
        "LayerScale", "x and gamma are exchanged for dgamma", "exchanged product", "layer_scale:layer_scale_backward",
        "return dy * gamma, sum_of_rows(dy * x)", "return dy * gamma, sum_of_rows(dy * gamma)",
    ),
    Edit("MLP", "the derivative of the activation is missing", "missing factor", "mlp:MLP.backward",
         "dh = self.act.backward(dh, cache2)", ""),
    Edit("GELU", "the term x * phi(x) is missing", "dropped term", "gelu:_exact_derivative",
         "return cdf + x * gauss * _DENSITY", "return cdf"),
    Edit(
        "GELU", "the derivative is that of the tanh form", "another function", "gelu:_gelu_exact",
        "return y, GELUCache(_exact_derivative(x, cdf, gauss)) if keep else None", "return y, _gelu_tanh(x, keep)[1]",
    ),
    Edit(
        "GELU", "the derivative is that of the exact form", "another function", "gelu:_gelu_tanh",
        "return y, GELUCache(_tanh_derivative(bounded, square, t)) if keep else None",
        "return y, _gelu_exact(x, keep)[1]",
    ),
    Edit(
        "GELU", "the derivative of the inner function is missing", "missing factor", "gelu:_tanh_derivative",
        "return 0.5 + 0.5 * t + x * (0.5 - 0.5 * t * t) * (_C + 3.0 * _C * _A * square)",
        "return 0.5 + 0.5 * t + x * (0.5 - 0.5 * t * t)",
    ),
    Edit("QuickGELU", "the derivative of the sigmoid is missing", "dropped term", "quick_gelu:_derivative",
         "return s + _A * x * tail * (1.0 - tail)", "return s"),
)  # fmt: skip


class Edited(Interception):
    """The interception that runs an edit's functions.

    Parameters
    ----------
    edit : Edit

    Attributes
    ----------
    ran : bool
        Whether the edited function ran.

    Raises
    ------
    OSError
        The source of the function cannot be read.
    ValueError
        The line is not in the function, or is there twice.
    """

    def __init__(self, edit: Edit) -> None:
        module = importlib.import_module(edit.module)
        owner, _, self._name = edit.function.rpartition(":")[2].rpartition(".")
        self._class: type | None = getattr(module, owner) if owner else None
        self._functions = _functions_of(module)
        self._own = {name for name in _own(module) if f"{name}_backward" in self._functions}
        exec(_compiled(getattr(self._class or module, self._name), edit), self._functions)
        edited, self.ran = self._functions[self._name], False

        def function(*args: Any, **kwargs: Any) -> Any:
            self.ran = True
            return edited(*args, **kwargs)

        self._functions[self._name] = function

    def layer_backward(self, layer: Any, run: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Run the edited method of the layers of its class."""
        if self._class is None or type(layer) is not self._class:
            return run(*args, **kwargs)
        return self._functions[self._name](layer, *args, **kwargs)

    def op_forward(self, name: str, names: Sequence[str], run: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Run the op beside the edited function, which may be a part of it."""
        return self._functions[name](*args, **kwargs) if self._has(name) else run(*args, **kwargs)

    def op_backward(self, name: str, names: Sequence[str], run: Callable[..., Any], dy: Any, cache: Any) -> Any:
        """Run the backward function beside the edited function."""
        return self._functions[f"{name}_backward"](dy, cache) if self._has(name) else run(dy, cache)

    def _has(self, op: str) -> bool:
        return self._class is None and op in self._own


def _own(module: ModuleType) -> dict[str, FunctionType]:
    """Return the functions that a module defines, without decorators."""
    plain = {name: inspect.unwrap(value) for name, value in vars(module).items() if isinstance(value, FunctionType)}
    return {name: function for name, function in plain.items() if function.__module__ == module.__name__}


def _functions_of(module: ModuleType) -> dict[str, Any]:
    """Return the names of a module, in which its own functions are copies that call each other."""
    names: dict[str, Any] = dict(vars(module))
    for name, function in _own(module).items():
        copy = FunctionType(function.__code__, names, name, function.__defaults__, function.__closure__)
        copy.__kwdefaults__ = function.__kwdefaults__
        names[name] = copy
    return names


def _compiled(function: Callable[..., Any], edit: Edit) -> CodeType:
    """Return the code that defines `function` with the edited line and without decorators."""
    lines = textwrap.dedent(inspect.getsource(inspect.unwrap(function))).splitlines()
    found = [i for i, line in enumerate(lines) if line.strip() == edit.before]
    if len(found) != 1:
        raise ValueError(f"{edit.function} has {len(found)} lines {edit.before!r}; expected one")
    line = lines[found[0]]
    lines[found[0]] = line.replace(edit.before, edit.after)
    tree = ast.parse("\n".join(lines))
    definition = tree.body[0]
    assert isinstance(definition, ast.FunctionDef)
    definition.decorator_list = []
    return compile(tree, f"<{edit.title}>", "exec")
