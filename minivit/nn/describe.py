"""Layers in words: their representation, a description to compare models by, and hints for names of other libraries."""

from __future__ import annotations

import re
import textwrap
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np

from minivit.arrays import to_host
from minivit.errors import did_you_mean
from minivit.nn.parameters import Parameter
from minivit.nn.store import kind_of
from minivit.nn.structure import CONTAINERS, OWN

_WIDTH = 79
_PLAIN = (bool, int, float, complex, str, type(None))
_MODES = "a model has no mode: forward(x, rng=minivit.Key(...)) trains with dropout, forward(x) evaluates"
_INSTEAD = {
    "train": _MODES,
    "eval": _MODES,
    "training": _MODES,
    "named_parameters": "use parameters.items()",
    "named_modules": "use named_layers()",
    "named_children": "use named_layers()",
    "modules": "use named_layers()",
    "children": "use named_layers()",
    "apply": "use named_layers()",
    "requires_grad_": "give an optimiser the parameters to train: AdamW([model.head.weight, model.head.bias])",
    "cuda": "use to('cupy')",
    "cpu": "use to('numpy')",
    "device": "see parameters.store.values",
    "dtype": "see parameters.store.values.dtype",
    "float": "use astype('float32')",
    "double": "use astype('float64')",
    "half": "use minivit.Engine(model, precision='float16')",
    "bfloat16": "use minivit.Engine(model, precision='bfloat16')",
    "register_full_backward_hook": "use register_backward_hook",
    "register_forward_pre_hook": "use register_forward_hook, which is given the layer's input too",
    "register_parameter": "set an attribute to a minivit.Parameter",
    "register_module": "set an attribute to the layer",
    "add_module": "set an attribute to the layer",
    "register_buffer": "set an attribute to the array",
    "predict": "call the model, or use minivit.Engine(model).predict(images)",
    "save": "use minivit.save_model(model, path)",
    "load": "use minivit.load_model(path)",
}


def no_attribute(thing: Any, name: str, instead: Mapping[str, str] = _INSTEAD) -> str:
    """Return the message for an attribute that `thing` does not have, with what to use instead."""
    message = f"{type(thing).__name__} has no attribute {name!r}"
    if name.startswith("_"):
        return message
    if name in instead:
        return f"{message}: {instead[name]}"
    near = did_you_mean(name, [known for known in {*dir(type(thing)), *vars(thing)} if not known.startswith("_")])
    return f"{message};{near}" if near else message


def described(layer: Any) -> str:
    """Return the layers in `layer` as an indented tree, where equal neighbours of a list are one entry."""
    declared = list(layer.declared().values())
    total = sum(parameter.size for parameter in declared)
    kinds = {kind_of(parameter.store.values) for parameter in declared if parameter.has_value}
    kind = ", ".join(sorted(kinds)) or "no values yet"
    lines = list(_lines("", layer))
    summary = f"  # {total:,} parameters, {kind}"
    if declared and len(lines[0] + summary) <= _WIDTH:
        lines[0] += summary
    elif declared:
        lines.insert(1, summary)
    return "\n".join(line if len(line) <= _WIDTH else f"{line[: _WIDTH - 3]}..." for line in lines)


def architecture(layer: Any) -> dict[str, str]:
    """Return the class of each layer in `layer` with what it computes with, by name; rates of dropout are left out.

    A layer or parameter that is met a second time is described as the same as the first.
    """
    texts: dict[str, str] = {}
    first: dict[int, str] = {}
    for name, each in layer.named_layers():
        words = list(_details(each))
        words += [f"checksum of {key}: {checksum(a):08x}" for key, a in _arrays(each)]
        own = {f"{name}.{key}".strip("."): item for key, item in each._members() if isinstance(item, Parameter)}
        for full_name, item in {name: each, **own}.items():
            if first.setdefault(id(item), full_name) != full_name:
                words.append(f"{full_name} is {first[id(item)]}")
        texts[name] = re.sub(r"\brate=[^,)]*(, )?", "", f"{type(each).__name__}({', '.join(words)})")
    return texts


def arrays_in(layer: Any) -> list[Any]:
    """Return the arrays in the layers of `layer` that are attributes and no parameters, such as tables and masks.

    Those in lists, tuples and dicts, and in private attributes, are among them.
    """
    own = (value for _, each in layer.named_layers() for name, value in vars(each).items() if name not in OWN)
    return [a for value in own for a in _arrays_of(value)]


def checksum(array: Any) -> int:
    """Return the CRC-32 of an array's values."""
    return zlib.crc32(np.ascontiguousarray(to_host(array)).reshape(-1).view(np.uint8).data)


def _arrays_of(value: Any) -> Iterator[Any]:
    if isinstance(value, CONTAINERS):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _arrays_of(item)
    elif _is_array(value):
        yield value


def _is_array(value: Any) -> bool:
    # The class is asked: a layer would look for the attribute that is nearest in name.
    return hasattr(type(value), "shape") and getattr(getattr(value, "dtype", None), "kind", "O") in "biufc"


def _arrays(layer: Any) -> Iterator[tuple[str, Any]]:
    for name, value in vars(layer).items():
        if _is_array(value) and not name.startswith("_"):
            yield name, value


def _lines(label: str, layer: Any) -> Iterator[str]:
    yield f"{label}{type(layer).__name__}({', '.join(_details(layer))})"
    for attribute in vars(layer).values():
        if is_dataclass(attribute):
            words = [f"{f.name}={v!r}" for f in fields(attribute) if (v := getattr(attribute, f.name)) != f.default]
            yield from textwrap.wrap(", ".join(words), _WIDTH - 2, initial_indent="  ", subsequent_indent="  ")
    layers = ((name, each) for name, each in layer._members() if not isinstance(each, Parameter))
    members = [(name, list(_lines("", each))) for name, each in layers if each.is_shown]
    while members:
        name, lines = members[0]
        stem, _, number = name.rpartition(".")
        count = 1
        while (
            number.isdigit()
            and count < len(members)
            and members[count][0] == f"{stem}.{int(number) + count}"
            and _alike(members[count][1]) == _alike(lines)
        ):
            count += 1
        if count > 1:
            last = members[count - 1][1]
            name = f"{stem}.{number}-{int(number) + count - 1}"
            lines = [_joined(one, other) for one, other in zip(lines, last, strict=True)]
            lines[0] = f"{count} x {lines[0]}"
        yield f"  ({name}): {lines[0]}"
        yield from (f"  {line}" for line in lines[1:])
        del members[:count]


_RATE = re.compile(r"\brate=([^,)]*)")


def _alike(lines: list[str]) -> list[str]:
    return [_RATE.sub("", line) for line in lines]


def _joined(one: str, other: str) -> str:
    """Return one line for two that differ in nothing but a rate of dropout."""
    first, last = _RATE.search(one), _RATE.search(other)
    if first is None or last is None or first[1] == last[1]:
        return one
    return _RATE.sub(f"rate={_short(first[1])} to {_short(last[1])}", one)


def _short(number: str) -> str:
    return f"{float(number):.3g}"


def _details(layer: Any) -> Iterator[str]:
    """Yield the plain values, functions and arrays in the public attributes of `layer`, and its parameters."""
    for name, value in vars(layer).items():
        if isinstance(value, Parameter):
            yield f"{name} {value.shape}"
        elif not name.startswith("_"):
            if (isinstance(value, _PLAIN) and value is not None) or (
                isinstance(value, tuple) and all(isinstance(item, _PLAIN) for item in value)
            ):
                yield f"{name}={value!r}"
            elif hasattr(type(value), "dtype") and hasattr(value, "shape"):
                yield f"{name}: {value.dtype} {value.shape}"
            elif callable(value) and hasattr(value, "__name__"):
                yield f"{name}={value.__name__}"
