"""Files that torch.save writes are read with the numbers that torch.load gives."""

from __future__ import annotations

import collections
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from minivit.errors import UserError
from minivit.weights.torch_file import read_torch

pytestmark = pytest.mark.conformance


def assert_read(torch: Any, path: Path, saved: Any, expected: Any = None, **options: Any) -> None:
    torch.save(saved, path, **options)
    found = read_torch(path)
    expected = saved if expected is None else expected
    assert list(found) == list(expected)
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value.detach().double().numpy(), err_msg=name)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_state_dicts(torch: Any, tmp_path: Path, protocol: int) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.LayerNorm(4), torch.nn.Conv2d(3, 2, 3))
    state = model.state_dict()
    assert isinstance(state, collections.OrderedDict)
    assert hasattr(state, "_metadata")
    options = {"pickle_protocol": protocol}
    assert_read(torch, tmp_path / "x.pt", state, **options)
    around = {"epoch": 3, "optimizer": torch.optim.AdamW(model.parameters()).state_dict(), "lr": [0.1, None, True]}
    assert_read(torch, tmp_path / "x.pt", {**around, "state_dict": state}, state, **options)
    assert_read(torch, tmp_path / "x.pt", dict(model.named_parameters()), **options)


def test_every_dtype_of_floating_point_numbers(torch: Any, tmp_path: Path) -> None:
    numbers = torch.linspace(-3, 3, 14).reshape(2, 7)
    names = ("float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2")
    assert_read(torch, tmp_path / "x.pt", {name: numbers.to(getattr(torch, name)) for name in names})


def test_views(torch: Any, tmp_path: Path) -> None:
    whole = torch.randn(4, 6)
    views = {"transposed": whole.T, "column": whole[:, 2], "steps": whole[1:, ::2], "whole": whole, "one": whole[1, 1]}
    assert_read(torch, tmp_path / "x.pt", views)


def test_a_whole_module_is_refused(torch: Any, tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(3, 4), tmp_path / "x.pt")
    with pytest.raises(UserError, match=r"asks for 'torch\.nn\.modules\.linear\.Linear'.*state_dict\(\)"):
        read_torch(tmp_path / "x.pt")


def test_the_format_before_pytorch_1_6_is_named(torch: Any, tmp_path: Path) -> None:
    from minivit.weights import load_model

    torch.save({"x": torch.ones(3)}, tmp_path / "x.pt", _use_new_zipfile_serialization=False)
    with pytest.raises(UserError, match="is a file of PyTorch"):
        load_model(tmp_path / "x.pt")
