"""What is known of ops, layers and optimisers: their formulas, their code, and the pages of their derivations."""

from __future__ import annotations

import functools
import importlib
import inspect
import pkgutil
import re
import sys
from ast import Call, unparse, walk
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import minivit
from minivit import ops
from minivit.errors import UserError, did_you_mean
from minivit.explorer.source_lines import Function, function_lines, functions_called, tree_of
from minivit.nn.layer import Layer
from minivit.nn.vit import ViT
from minivit.train import optimizers

_PAGE = re.compile(r"docs/derivations/(\w+\.md)")
PACKAGE = Path(minivit.__file__).parent
# Words that are not the name of an op or a layer.
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
    installed = PACKAGE / "derivations" / page
    return installed if installed.is_file() else PACKAGE.parent / "docs" / "derivations" / page


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
def known_ops() -> dict[str, Callable[..., Any]]:
    """Return the ops by name: what `ops` exports, and what else is declared as an op in its files."""
    found: dict[str, Callable[..., Any]] = {}
    for about in pkgutil.iter_modules(ops.__path__):
        module = importlib.import_module(f"{ops.__name__}.{about.name}")
        for name, value in vars(module).items():
            own = inspect.isfunction(value) and value.__module__ == module.__name__ and not name.startswith("_")
            is_op = (
                own
                and about.name not in ("registry", "interception")
                and (hasattr(value, "__wrapped__") or name in ops.__all__)
            )
            if is_op and not name.endswith("_backward"):
                found[name] = value
    return dict(sorted(found.items()))


@functools.cache
def known_classes() -> dict[str, type]:
    """Return ViT, the layers and the optimisers by name."""
    trained = {name: getattr(minivit, name) for name in ("SGD", "Adam", "AdamW", "Muon")}
    return {"ViT": ViT, **{name: getattr(minivit.layers, name) for name in minivit.layers.__all__}, **trained}


def everything() -> list[Explained]:
    """Return all ops, layers and optimisers."""
    return [*(_op(name) for name in known_ops()), *(_class(name) for name in known_classes())]


def find(text: str) -> Explained | None:
    """Return the op, layer or optimiser that `text` names, however it is written, or None."""
    name = text.removeprefix("minivit.").removeprefix("ops.").removeprefix("layers.")
    if name in known_ops():
        return _op(name)
    if name in known_classes():
        return _class(name)
    letters = plain(name)
    for known in (*known_ops(), *known_classes()):
        if plain(known) == letters:
            return find(known)
    return find(_ALIASES[letters]) if letters in _ALIASES else None


def layer_in(name: str, model: ViT, called: str) -> Explained:
    """Return the layer of `model` called `name`, or with a parameter of this name; messages call the model `called`.

    Raises
    ------
    UserError
        There is no such layer.
    """
    named = dict(model.named_layers())
    owner, _, last = name.rpartition(".")
    if owner in named and (op := re.sub(r"_\d+$", "", last)) in known_ops():  # as in a trace: blocks.3.attn.softmax
        return _op(op)
    layer = named.get(name) or (named.get(owner) if name in model.declared() else None)
    if layer is None:
        known = [*known_ops(), *known_classes(), *_ALIASES, *named]
        near = did_you_mean(name, known)
        raise UserError(
            f"there is no op, layer or optimiser {name!r}, and no layer of {called};{near} `minivit explain` lists them"
        )
    found = _class(type(layer).__name__, type(layer))
    return Explained(**{**vars(found), "title": f"{name} of {called}: {layer!r}"})


def plain(name: str) -> str:
    """Return the letters and digits of a name, in lower case: layer_norm, LayerNorm and layer-norm are the same."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _op(name: str) -> Explained:
    forward = known_ops()[name]
    module = sys.modules[forward.__module__]
    backward = getattr(module, f"{name}_backward", None)
    own = [forward, *([backward] if backward else [])]
    functions = [function_lines(each, each.__name__) for each in (*own, *functions_called(own))]
    formula = inspect.getdoc(module) or ""
    about = next((text for text in (inspect.getdoc(forward) or "", formula) if _PAGE.search(text)), "")
    pages = {page: [name] for page in _PAGE.findall(about)}
    return Explained(name, "op", f"ops.{name}: {_first_line(forward)}", formula, tuple(functions), (), pages)


def _class(name: str, cls: type | None = None) -> Explained:
    cls = cls or known_classes()[name]
    names = _names_called(cls)
    used = ops_called(cls)
    own = inspect.cleandoc(cls.__doc__ or "")
    module_text = (inspect.getdoc(sys.modules[cls.__module__]) or "") if cls.__module__.startswith("minivit.") else ""
    about = next((text for text in (own, module_text) if _PAGE.search(text)), own)
    pages: dict[str, list[str]] = {page: [cls.__name__] for page in _PAGE.findall(about)}
    formulas = [about]
    for op in used:
        explained = _op(op)
        if explained.formula not in formulas:
            formulas.append(explained.formula)
        for page in explained.pages:
            pages.setdefault(page, [cls.__name__]).append(op)
    methods = [f"{cls.__name__}.{method}" for method in ("forward", "backward", "_update") if hasattr(cls, method)]
    functions = [function_lines(getattr(cls, method.rpartition(".")[2]), method) for method in methods]
    kind = "optimiser" if issubclass(cls, optimizers.Optimizer) else "layer"
    if kind == "optimiser":
        functions += [function_lines(known_ops()[op], op) for op in used]
    parts = [layer for layer in minivit.layers.__all__ if layer in names and layer != name] if kind == "layer" else []
    return Explained(
        name, kind, f"{name}: {_first_line(cls)}", "\n\n".join(formulas), tuple(functions), tuple(parts), pages
    )


def _first_line(thing: Any) -> str:
    return (inspect.getdoc(thing) or "").partition("\n")[0]


def _names_called(cls: type) -> set[str]:
    """Return the names of the functions and classes that the methods of a layer or an optimiser call."""
    general = (Layer, optimizers.Optimizer, object)
    bases = [base for base in cls.__mro__ if base.__module__.startswith("minivit.") and base not in general]
    calls = [n.func for base in dict.fromkeys([cls, *bases]) for n in walk(tree_of(base)) if isinstance(n, Call)]
    return {re.sub(r"^(minivit\.)?ops\.", "", unparse(call)) for call in calls}


def ops_called(cls: type) -> list[str]:
    """Return the names of the ops that the methods of a layer or an optimiser call."""
    names = _names_called(cls)
    return [op for op in known_ops() if op in names and op != "keep_mask"]
