"""PyTorch and timm as fixtures, without which a test fails with instructions; the errors that ``--errors`` prints."""

from __future__ import annotations

import warnings
from collections.abc import Generator
from typing import Any

import pytest

from .errors import KINDS, largest
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


@pytest.fixture
def vit_pytorch(timm: Any) -> Any:
    try:
        import vit_pytorch
    except ImportError as error:
        pytest.fail(f"this test compares with vit_pytorch: pip install 'minivit[test,conformance]' ({error})")
    return vit_pytorch


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--errors", action="store_true", help="print the largest relative error of each compared model")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, Any, Any]:
    largest.clear()
    result = yield
    if largest.keys() == {*KINDS}:
        item.user_properties.append(("errors", [largest[kind] for kind in KINDS]))
    return result


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    if not config.getoption("--errors", default=False):  # unknown if this file was not named to pytest
        return
    terminalreporter.section("largest relative errors in float64")
    terminalreporter.line(f"{'logits':>9}{'loss':>9}{'gradients':>11}")
    for report in sorted(terminalreporter.getreports("passed"), key=lambda report: report.nodeid):
        for logits, loss, gradients in (value for name, value in report.user_properties if name == "errors"):
            name = report.nodeid.rpartition("conformance/")[2]
            terminalreporter.line(f"{logits:9.1e}{loss:9.1e}{gradients:11.1e}  {name}")
