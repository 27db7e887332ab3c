"""``minivit explain``: the formula, the code and the derivation of an op, a layer or an optimiser."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Sequence
from pathlib import Path

from minivit.cli.common import CommandResult, open_model
from minivit.cli.terminal import Terminal
from minivit.errors import UserError
from minivit.explorer.explained import Explained, everything, find, layer_in, page_path, plain
from minivit.nn.presets import PRESETS, get_config
from minivit.nn.vit import ViT

HELP = "show the formula, the code and the derivation of an op or a layer"
DESCRIPTION = """\
Show the formula of an op, a layer, a loss or an optimiser, the lines of its
forward and backward pass, and where its gradient is derived. A layer of a model
is named as in its state, such as blocks.3.attn. Without a name, everything that
is explained is listed."""
EXAMPLES = """\
examples:
  minivit explain attention
  minivit explain layer_norm --derivation
  minivit explain blocks.3.attn --model vit_base_patch16_224"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("name", nargs="?", metavar="NAME", help="an op, a layer, an optimiser, or a layer of a model")
    parser.add_argument("--derivation", action="store_true", help="print the page that derives the gradient")
    parser.add_argument(
        "--model",
        default="vit_tiny_patch4_32",
        metavar="NAME",
        help="the model whose layer NAME is (default: %(default)s)",
    )


def run(args: argparse.Namespace, terminal: Terminal) -> CommandResult:
    """Run the command."""
    if args.name is None:
        if args.derivation:
            raise UserError("--derivation needs a name, such as `minivit explain attention --derivation`")
        return _list(terminal)
    found = find(args.name) or _layer_of_model(args.name, args.model)
    values = found.to_dict()
    if args.derivation:
        values["text"] = _page(found)
        terminal.show(*values["text"].splitlines())
        return CommandResult(values)
    title = found.title.splitlines()
    formula = found.formula.removeprefix(title[0].removeprefix(f"{found.name}: ")).strip("\n")
    terminal.show(*title, "", *formula.splitlines(), "")
    for function in found.functions:
        place = f"{function.name}  {_nearest(function.path)}:{function.first}-{function.last}"
        terminal.show(place, *(f"    {line}" for line in function.source.splitlines()), "")
    if found.parts:
        terminal.show(f"made of: {', '.join(found.parts)}")
    for page in found.pages:
        terminal.show(f"derivation: {_nearest(page_path(page))}")
    if found.pages:
        terminal.show(f"`minivit explain {args.name} --derivation` prints it")
    return CommandResult(values)


def _layer_of_model(name: str, model: str) -> Explained:
    """Return the layer called `name` of a preset, a run or a model file."""
    built = ViT(get_config(model)) if model in PRESETS else open_model(model, "best").model
    return layer_in(name, built, model)


def _nearest(path: str | Path) -> str:
    """Return `path` relative to the current folder if it is in it, or as it is."""
    try:
        inside = os.path.relpath(path)
    except ValueError:  # on another drive of Windows
        return str(path)
    return str(path) if inside.startswith("..") else inside


def _page(found: Explained) -> str:
    """Return the text of the derivations: of a page about several things, the sections about this one."""
    if not found.pages:
        made_of = f"; it is made of {', '.join(found.parts)}" if found.parts else ""
        raise UserError(f"{found.name} has no derivation of its own{made_of}")
    texts = []
    for page, names in found.pages.items():
        path = page_path(page)
        if not path.is_file():
            raise UserError(f"the page docs/derivations/{page} is not installed; it is in the source of minivit")
        texts.append(_sections(path.read_text(encoding="utf-8"), names))
    return "\n\n".join(texts)


def _sections(text: str, names: Sequence[str]) -> str:
    """Return the sections of a page whose headings name one of `names`, or the whole page if none does."""
    parts = re.split(r"(?m)^(?=## )", text)
    wanted = tuple(map(plain, names))

    def about(part: str) -> bool:
        heading = part.partition("\n")[0]
        return plain(heading).startswith(wanted) or any(plain(n) in wanted for n in re.findall(r"`(\w+)`", heading))

    kept = [part.strip() for part in parts[1:] if about(part)]
    return "\n\n".join(kept) if kept else text.strip()


def _list(terminal: Terminal) -> CommandResult:
    items = everything()
    rows = [(item.name, item.kind, ", ".join(item.pages)) for item in items]
    terminal.table(("name", "", "derivation"), rows)
    terminal.show("", "`minivit explain attention` shows the formula and the code")
    return CommandResult({"items": [{"name": i.name, "kind": i.kind, "pages": [*i.pages]} for i in items]})
