"""``--set FIELD=VALUE``: fields of `ViTConfig` on the command line; `recipe_options` adds those of a recipe."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from dataclasses import fields
from typing import Any

from minivit.errors import UserError, did_you_mean
from minivit.nn.config import ViTConfig

_DEFAULTS = {field.name: field.default for field in fields(ViTConfig)}
_PIXELS = ("img_size", "patch_size", "patch_stride")
_WORDS: dict[type, str] = {int: "a whole number", float: "a number", bool: "true or false"}
FIELDS_OF_A_FILE = (
    "a field of the model: one that its file does not define, such as num_heads=8, or another value, such as "
    "img_size=384; can be repeated"
)


_COUNTS = {"conv_stem": "channels, such as conv_stem=24,48", "resnet": "blocks, such as resnet=3,4,9"}


def add_set(parser: argparse.ArgumentParser, words: str = FIELDS_OF_A_FILE) -> None:
    """Add --set, whose values `model_fields` returns."""
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help=words)


def model_fields(texts: Sequence[str], others: Iterable[str] = ()) -> dict[str, Any]:
    """Return the fields in texts such as "depth=4", "img_size=32x48", "conv_stem=24,48" and "qk_norm=true".

    `others` are names of other fields that the caller reads; an error names them too.

    Raises
    ------
    UserError
        There is no such field, or the value is not of its type.
    """
    return dict(_field(text, [*_DEFAULTS, *others]) for text in texts)


def _field(text: str, known: Sequence[str]) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if name not in _DEFAULTS or not equals:
        near = did_you_mean(name, known) if name not in known else ""
        raise UserError(f"--set {text}:{near} Expected FIELD=VALUE with one of the fields {', '.join(known)}")
    if name in _PIXELS:
        sizes = value.split("x")
        if len(sizes) > 2 or not all(size.isdecimal() for size in sizes):
            raise UserError(f"--set {text}: expected pixels, such as {name}=32, or {name}=32x48 for height x width")
        return name, int(sizes[0]) if len(sizes) == 1 else [int(size) for size in sizes]
    if name in _COUNTS:
        counts = value.split(",") if value else []
        if not all(count.isdecimal() for count in counts):
            raise UserError(f"--set {text}: expected numbers of {_COUNTS[name]}")
        return name, [int(count) for count in counts]
    kind = bool if name == "fc_norm" else type(_DEFAULTS[name])
    try:
        parsed = value if kind is str else json.loads(value.lower())
    except ValueError:
        parsed = value
    if kind is float and type(parsed) is int:
        parsed = float(parsed)
    if type(parsed) is not kind:
        raise UserError(f"--set {text}: expected {_WORDS[kind]}")
    return name, parsed
