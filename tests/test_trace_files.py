"""A trace is saved, read back, copied and pickled; a file that is none, or is damaged, is refused."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path

import pytest
from contract import assert_same_bits
from safetensors import safe_open
from safetensors.numpy import save_file
from small_vit import batch, model

import minivit
from minivit import UserError
from minivit.tracing import load_trace, trace


@pytest.mark.parametrize("statistics", [False, True])
def test_a_trace_is_saved_and_read_back(statistics: bool, tmp_path: Path) -> None:
    images, labels, key = batch()
    found = trace(model(), images, labels, rng=key, statistics=statistics)
    found.save(tmp_path / "trace.safetensors")
    again = load_trace(tmp_path / "trace.safetensors")
    assert repr(again) == repr(found)
    assert again.names == found.names
    for record in found:
        assert again[record.name].argument_names == record.argument_names
        assert dict(again[record.name].statistics) == dict(record.statistics)
        assert list(again[record.name].quantities) == list(record.quantities)
        assert repr(again[record.name]) == repr(record)
    if not statistics:
        from safetensors.numpy import load_file

        tensors = load_file(tmp_path / "trace.safetensors")
        assert_same_bits([tensors["blocks.1.attn/dweights"]], [found["blocks.1.attn"].dweights])
        assert_same_bits([again["model"].x, again["cross_entropy"].labels], [images, labels])


def test_a_file_that_is_no_trace_is_refused(tmp_path: Path) -> None:
    minivit.save_model(model(), tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="is not a trace"):
        load_trace(tmp_path / "model.safetensors")
    (tmp_path / "text").write_text("hello")
    for name in ("text", "missing"):
        with pytest.raises(UserError, match="cannot be read as a trace"):
            load_trace(tmp_path / name)


def test_a_trace_can_be_copied_and_pickled() -> None:
    images, labels, _ = batch(2)
    found = trace(model(), images, labels)
    for other in (copy.deepcopy(found), pickle.loads(pickle.dumps(found))):
        assert repr(other) == repr(found)
        assert_same_bits([other["blocks.0.attn"].weights], [found["blocks.0.attn"].weights])


def test_a_damaged_trace_is_refused(tmp_path: Path) -> None:
    images, labels, _ = batch()
    trace(model(), images, labels).save(path := tmp_path / "trace.safetensors")
    content = bytearray(path.read_bytes())
    content[-9] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"trace\.safetensors was changed or damaged since minivit wrote it"):
        load_trace(path)


@pytest.mark.parametrize("field", ["shapes", "dtypes", "head/y"])
def test_a_trace_without_a_part_is_damaged(field: str, tmp_path: Path) -> None:
    images, labels, _ = batch(2)
    trace(model(), images, labels, at="head").save(path := tmp_path / "trace.safetensors")
    with safe_open(path, framework="numpy") as file:
        about = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys() if name != field}  # noqa: SIM118 - no mapping
    records = [
        {name: value for name, value in record.items() if name != field} for record in json.loads(about["trace"])
    ]
    save_file({**tensors, "of another": images}, path, {"trace": json.dumps(records)})
    with pytest.raises(UserError, match=rf"trace\.safetensors is a damaged trace: KeyError\('{field}'\)"):
        load_trace(path)
