"""What `minivit explain` knows: the ops, layers and optimisers, their code, and the pages of their derivations."""

from __future__ import annotations

import ast
import functools
import importlib
import inspect
import os
import pkgutil
import re
import sys
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import minivit
from minivit import ops
from minivit.cli.common import open_model
from minivit.errors import UserError, did_you_mean
from minivit.nn.layer import Layer
from minivit.nn.presets import PRESETS, get_config
from minivit.nn.vit import ViT
from minivit.train import optimizers

_PAGE = re.compile(r"docs/derivations/(\w+\.md)")
_PACKAGE = Path(minivit.__file__).parent
# Words that are no name of an op or a layer.
_ALIASES = {
    "residual": "EncoderBlock",
    "skip": "EncoderBlock",
    "block": "EncoderBlock",
    "positions": "embed",
    "posembed": "embed",
    "clstoken": "embed",
    "regtoken": "embed",
    "loss": "cross_entropy",
    "gradscaler": "update_grad_scaler",
    "lossscale": "update_grad_scaler",
    "clipping": "update_grad_scaler",
    "momentum": "sgd_step",
    "stochasticdepth": "DropPath",
    "convolution": "unfold",
    "model": "ViT",
}


def page_path(page: str) -> Path:
    """Return the path of a page of derivations: in the installed package, or in the source tree."""
    installed = _PACKAGE / "derivations" / page
    return installed if installed.is_file() else _PACKAGE.parent / "docs" / "derivations" / page


def nearest(path: str | Path) -> str:
    """Return `path` relative to the current folder if it is in it, or as it is."""
    inside = os.path.relpath(path)
    return str(path) if inside.startswith("..") else inside


@dataclass(frozen=True)
class Function:
    """A function or method, with the lines of its file."""

    name: str
    path: str
    first: int
    last: int
    source: str  # without the docstring

    @property
    def place(self) -> str:
        """The name, the file and the lines."""
        return f"{self.name}  {nearest(self.path)}:{self.first}-{self.last}"


@dataclass(frozen=True)
class Explained:
    """An op, a layer or an optimiser.

    Attributes
    ----------
    name, kind, title
        Its name, "op", "layer" or "optimiser", and the first line that is shown.
    formula
        What its file says of it.
    functions
        Forward, backward, and what they call in the same file.
    parts
        The layers in a layer.
    pages
        The pages that derive its gradient, with the names of the ops that they are about.
    """

    name: str
    kind: str
    title: str
    formula: str
    functions: tuple[Function, ...]
    parts: tuple[str, ...] = ()
    pages: dict[str, list[str]] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return the object for --json."""
        functions = [
            {"name": f.name, "path": f.path, "first_line": f.first, "last_line": f.last, "source": f.source}
            for f in self.functions
        ]
        values = {"name": self.name, "kind": self.kind, "formula": self.formula, "functions": functions}
        return values | {"parts": [*self.parts], "derivations": [str(page_path(page)) for page in self.pages]}


@functools.cache
def _ops() -> dict[str, Callable[..., Any]]:
    """Return the ops by name: what `ops` exports, and what else is declared as an op in its files."""
    found: dict[str, Callable[..., Any]] = {}
    for about in pkgutil.iter_modules(ops.__path__):
        module = importlib.import_module(f"{ops.__name__}.{about.name}")
        for name, value in vars(module).items():
            own = inspect.isfunction(value) and value.__module__ == module.__name__ and not name.startswith("_")
            is_op = own and about.name != "registry" and (hasattr(value, "__wrapped__") or name in ops.__all__)
            if is_op and not name.endswith("_backward"):
                found[name] = value
    return dict(sorted(found.items()))


@functools.cache
def _classes() -> dict[str, type]:
    trained = {name: getattr(minivit, name) for name in ("SGD", "Adam", "AdamW", "Muon")}
    return {"ViT": ViT, **{name: getattr(minivit.layers, name) for name in minivit.layers.__all__}, **trained}


def everything() -> list[Explained]:
    """Return all ops, layers and optimisers."""
    return [*(_op(name) for name in _ops()), *(_class(name) for name in _classes())]


def find(text: str) -> Explained | None:
    """Return the op, layer or optimiser that `text` names, however it is written, or None."""
    name = text.removeprefix("minivit.").removeprefix("ops.").removeprefix("layers.")
    if name in _ops():
        return _op(name)
    if name in _classes():
        return _class(name)
    letters = plain(name)
    for known in (*_ops(), *_classes()):
        if plain(known) == letters:
            return find(known)
    return find(_ALIASES[letters]) if letters in _ALIASES else None


def layer_of_model(name: str, model: str) -> Explained:
    """Return the layer called `name`, or with a parameter of this name, of a preset, a run or a model file.

    Raises
    ------
    UserError
        There is no such layer.
    """
    built = ViT(get_config(model)) if model in PRESETS else open_model(model, "best").model
    named = dict(built.named_layers())
    owner, _, last = name.rpartition(".")
    if owner in named and (op := re.sub(r"_\d+$", "", last)) in _ops():  # as in a trace: blocks.3.attn.softmax
        return _op(op)
    layer = named.get(name) or (named.get(owner) if name in built.declared() else None)
    if layer is None:
        known = [*_ops(), *_classes(), *_ALIASES, *named]
        near = did_you_mean(name, known)
        raise UserError(
            f"there is no op, layer or optimiser {name!r}, and no layer of {model};{near} `minivit explain` lists them"
        )
    found = _class(type(layer).__name__, type(layer))
    return Explained(**{**vars(found), "title": f"{name} of {model}: {layer!r}"})


def plain(name: str) -> str:
    """Return the letters and digits of a name, in lower case: layer_norm, LayerNorm and layer-norm are the same."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _op(name: str) -> Explained:
    forward = _ops()[name]
    module = sys.modules[forward.__module__]
    backward = getattr(module, f"{name}_backward", None)
    own = [forward, *([backward] if backward else [])]
    functions = [_function(each, each.__name__) for each in (*own, *_helpers(own, module))]
    formula = inspect.getdoc(module) or ""
    pages = {page: [name] for page in _PAGE.findall(formula)}
    return Explained(name, "op", f"ops.{name}: {_first_line(forward)}", formula, tuple(functions), (), pages)


def _helpers(functions: list[Callable[..., Any]], module: Any) -> Iterator[Callable[..., Any]]:
    """Yield the functions of the same file that `functions` call, without the checks of arguments."""
    called = {node.id for f in functions for node in ast.walk(_tree(f)) if isinstance(node, ast.Name)}
    for name, value in vars(module).items():
        mine = inspect.isfunction(value) and value.__module__ == module.__name__ and value not in functions
        if mine and name in called and not name.startswith("check_"):
            yield value


def _class(name: str, cls: type | None = None) -> Explained:
    cls = cls or _classes()[name]
    general = (Layer, optimizers.Optimizer, object)
    bases = [base for base in cls.__mro__ if base.__module__.startswith("minivit.") and base not in general] or [cls]
    calls = [ast.unparse(n.func) for base in bases for n in ast.walk(_tree(base)) if isinstance(n, ast.Call)]
    names = {call.removeprefix("ops.") for call in calls}
    used = [op for op in _ops() if op in names and op != "keep_mask"]
    module_text = inspect.getdoc(sys.modules[cls.__module__]) or ""
    own = _PAGE.findall(module_text) if cls.__module__.startswith("minivit.") else []
    pages: dict[str, list[str]] = {page: [cls.__name__] for page in own}
    formulas = [module_text] if own else [inspect.cleandoc(cls.__doc__ or "")]
    for op in used:
        explained = _op(op)
        if explained.formula not in formulas:
            formulas.append(explained.formula)
        for page in explained.pages:
            pages.setdefault(page, [cls.__name__]).append(op)
    methods = [f"{cls.__name__}.{method}" for method in ("forward", "backward", "_update") if hasattr(cls, method)]
    functions = [_function(getattr(cls, method.rpartition(".")[2]), method) for method in methods]
    kind = "optimiser" if issubclass(cls, optimizers.Optimizer) else "layer"
    if kind == "optimiser":
        functions += [_function(_ops()[op], op) for op in used]
    parts = [layer for layer in minivit.layers.__all__ if layer in names and layer != name] if kind == "layer" else []
    return Explained(
        name, kind, f"{name}: {_first_line(cls)}", "\n\n".join(formulas), tuple(functions), tuple(parts), pages
    )


def _first_line(thing: Any) -> str:
    return (inspect.getdoc(thing) or "").partition("\n")[0]


def _tree(thing: Any) -> ast.AST:
    try:
        return ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(thing))))
    except (OSError, TypeError, SyntaxError):  # a class of a notebook
        return ast.Module([], [])


def _function(function: Callable[..., Any], name: str) -> Function:
    function = inspect.unwrap(function)
    try:
        lines, first = inspect.getsourcelines(function)
        path = inspect.getsourcefile(function) or ""
    except (OSError, TypeError):
        return Function(name, "", 0, 0, "# the source is not at hand")
    source = textwrap.dedent("".join(lines))
    node = ast.parse(source).body[0]
    assert isinstance(node, ast.FunctionDef)
    shown = source.splitlines()
    if ast.get_docstring(node) is not None:
        text = node.body[0]
        shown[text.lineno - 1 : text.end_lineno] = []
    return Function(name, path, first, first + len(lines) - 1, "\n".join(shown))
