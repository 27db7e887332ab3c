"""PyTorch and timm as fixtures; a test fails with instructions for installing them if they are missing."""

from __future__ import annotations

import warnings
from typing import Any

import pytest

from .torchvision_operators import import_torchvision

_INSTALL = "the conformance tests compare with PyTorch and timm: pip install 'minivit[test,conformance]'"


@pytest.fixture(scope="session")
def torch() -> Any:
    try:
        import torch
    except ImportError as error:
        pytest.fail(f"{_INSTALL} ({error})")
    torch.set_num_threads(1)
    return torch


@pytest.fixture(scope="session")
def timm(torch: Any) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # warnings of these packages
            import_torchvision()
            import timm
    except (ImportError, RuntimeError) as error:
        pytest.fail(f"{_INSTALL}, with a torchvision that fits the installed torch ({error})")
    return timm
