"""A small model with random parameters, and model files as another program writes them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from minivit.arrays import Array
from minivit.nn.config import ViTConfig
from minivit.nn.vit import ViT
from minivit.weights import read_tensors, save_model, write_tensors

SMALL: dict[str, Any] = {
    "img_size": (10, 21), "patch_size": (5, 3), "in_chans": 2, "num_classes": 7, "embed_dim": 12, "depth": 2,
    "num_heads": 3, "mlp_ratio": 1.5,
}  # fmt: skip


def model_of(dtype: Any = "float32", **fields: Any) -> ViT:
    """Return a small model with random parameters."""
    model = ViT(ViTConfig(**{**SMALL, **fields}), dtype=dtype)
    generator = np.random.default_rng(5)
    for parameter in model.parameters.values():
        parameter.value[...] = generator.normal(0.0, 0.3, parameter.shape)
    return model


def assert_same(a: ViT, b: ViT) -> None:
    assert a.config == b.config
    first, second = a.state_dict(), b.state_dict()
    assert first.keys() == second.keys()
    for name in first:
        assert first[name].dtype == second[name].dtype
        np.testing.assert_array_equal(first[name], second[name], err_msg=name)


def foreign(path: Path, change: Callable[[dict[str, Array]], object] = lambda tensors: None, **fields: Any) -> Path:
    """Write the tensors of a small model, after `change`, without the configuration that `save_model` adds."""
    save_model(model_of(**fields), path)
    tensors, _ = read_tensors(path / "model.safetensors")
    change(tensors)
    (path / "config.json").unlink()
    write_tensors(path / "model.safetensors", tensors, {"format": "pt"})
    return path / "model.safetensors"


def raw_file(path: Path, header: object, data: bytes) -> Path:
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def tensors_of(shapes: dict[str, tuple[int, ...]]) -> dict[str, Array]:
    """Return random tensors of these shapes."""
    generator = np.random.default_rng(7)
    return {name: generator.normal(0.0, 0.3, shape).astype(np.float32) for name, shape in shapes.items()}


def both(name: str, *weight: int) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the weight and the bias of a layer of PyTorch."""
    return {f"{name}.weight": weight, f"{name}.bias": weight[:1]}


def assert_file_holds(path: Path, tensors: dict[str, Array]) -> None:
    """Assert that the safetensors file has just these tensors, to the bit."""
    written, _ = read_tensors(path)
    assert written.keys() == tensors.keys()
    for name, value in tensors.items():
        assert written[name].dtype == value.dtype
        np.testing.assert_array_equal(written[name], value, err_msg=name)
