"""Files of traces: safetensors with an array for each quantity, called "blocks.3.attn/y", or statistics alone."""

from __future__ import annotations

import json
import os
from typing import Any

import numpy as np

from minivit.arrays import Array, to_host
from minivit.errors import UserError
from minivit.files import read_bytes
from minivit.tracing.record import Record, TraceLike
from minivit.tracing.statistics import Statistics
from minivit.weights.tensors import verify, write_tensors

_NAMES = ("y", "labels", "loss")
_LARGEST_HEADER = 100_000_000  # bytes, which the library of safetensors reads


def write(trace: TraceLike, path: str | os.PathLike[str]) -> None:
    """Write `trace` to a safetensors file that `read` reads; its baseline is not a part of it.

    The metadata have the kinds of the layers and, of a trace of statistics, the statistics as JSON.

    Raises
    ------
    RunError
        The file cannot be written.
    UserError
        The names, shapes and statistics have more than 100 MB, or an array is complex128.
    """
    tensors: dict[str, Array] = {}
    about: list[dict[str, Any]] = []
    for record in trace.records.values():
        about.append({"name": record.name, "kind": record.kind, "is_op": record.is_op, "own": record.argument_names})
        about[-1] |= {"shapes": record.shapes, "dtypes": record.dtypes, "has_parameters": record.has_parameters}
        about[-1] |= _texts({"gradient_norm": record.gradient_norm})
        statistics = {}
        for quantity, value in record.quantities.items():
            if isinstance(value, Statistics):
                statistics[quantity] = _texts(value.to_dict())
            else:
                tensors[f"{record.name}/{quantity}"] = to_host(value)
        if record.holds_statistics:
            about[-1]["statistics"] = statistics
    for name in _NAMES:
        if (array := getattr(trace, name)) is not None:
            tensors[f"/{name}"] = to_host(array)
    if wrong := next((name for name, tensor in tensors.items() if tensor.dtype == np.complex128), None):
        raise UserError(
            f"{wrong.removeprefix('/')} of this trace is complex128, which a safetensors file cannot hold; save a "
            "trace of model.astype('float64')"
        )
    about_all = {"trace": json.dumps(about), "interventions": trace.interventions, "root": trace.root}
    write_tensors(path, tensors, about_all, _LARGEST_HEADER)


def read(path: str | os.PathLike[str]) -> tuple[dict[str, Record], dict[str, Array], dict[str, str]]:
    """Return the records in a file that `write` wrote, y, labels and loss where it has them, and the metadata.

    Raises
    ------
    UserError
        The file is not a trace, or it is damaged.
    """
    tensors, about = _read(path)
    if "trace" not in about:
        raise UserError(f"{os.fspath(path)} is not a trace; expected a file that Trace.save wrote")
    records: dict[str, Record] = {}
    try:
        for given in json.loads(about["trace"]):
            statistics = given.get("statistics")
            record = Record(given["name"], given["kind"], given["is_op"], statistics is not None)
            record.argument_names = list(given["own"])
            record.shapes = {quantity: tuple(shape) for quantity, shape in given["shapes"].items()}
            record.dtypes = dict(given["dtypes"])
            record.has_parameters = bool(given["has_parameters"])
            norm = given["gradient_norm"]
            record.set_gradient_norm(None if norm is None else float(norm))
            if statistics is None:
                record.quantities.update({each: tensors[f"{record.name}/{each}"] for each in record.shapes})
            else:
                record.quantities.update({k: Statistics.from_dict(_numbers(v)) for k, v in statistics.items()})
            records[record.name] = record
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{os.fspath(path)} is a damaged trace: {error!r}; or another version of minivit wrote it"
        ) from error
    own = {name: tensors[f"/{name}"] for name in _NAMES if f"/{name}" in tensors}
    return records, own, about


def _read(path: str | os.PathLike[str]) -> tuple[dict[str, Array], dict[str, str]]:
    """Return tensors of every dtype, integers too, and the metadata."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            about = file.metadata() or {}
            verify(os.fspath(path), read_bytes(path), about)
            return {name: file.get_tensor(name) for name in file.keys()}, about  # noqa: SIM118 - no mapping
    except (OSError, SafetensorError) as error:
        raise UserError(f"{os.fspath(path)} cannot be read as a trace: {error}") from error


def _texts(values: dict[str, Any]) -> dict[str, Any]:
    """Return `values` with numbers that are not finite as texts, since JSON has none."""
    return {k: repr(v) if isinstance(v, float) and not np.isfinite(v) else v for k, v in values.items()}


def _numbers(values: dict[str, Any]) -> dict[str, Any]:
    return {k: float(v) if isinstance(v, str) else v for k, v in values.items()}
