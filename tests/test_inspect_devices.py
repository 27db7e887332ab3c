"""The explorer's data of a model on a device: those of the same model on the host, but for rounding."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import small_vit
from devices import SIXTEEN_BITS
from explored import assert_valid, checked_page, quantities
from strict import strict

from minivit.arrays import dtype_named, to_backend, to_host
from minivit.explorer import explore
from minivit.tracing import attention_rollout


def test_pixels_on_a_device_are_shown() -> None:
    images, _, _ = small_vit.batch(1)
    pixels = np.random.default_rng(0).integers(0, 256, images.shape, np.uint8)
    model, there = small_vit.model(depth=1), to_backend(images, strict)
    host = explore(model, images, pixels=pixels, checks=False)
    data = explore(model.to("strict"), there, pixels=to_backend(pixels, strict), checks=False)
    assert data["images"][0]["png"] == host["images"][0]["png"]


def page_on_the_device() -> dict[str, Any]:
    images, labels, _ = small_vit.batch(1)
    data = explore(small_vit.model(depth=1).to("strict"), to_backend(images, strict), to_backend(labels, strict))
    assert_valid(data)
    return data


@pytest.fixture(scope="module")
def on_the_host() -> dict[str, Any]:
    """Return the page that is made before `computed` replaces the kernels."""
    return checked_page()


@pytest.mark.usefixtures("computed")
def test_a_model_on_a_device_has_the_page_of_one_on_the_host(on_the_host: dict[str, Any]) -> None:
    data, expected = page_on_the_device(), on_the_host
    ours, theirs = ({(n, q["name"]): q for n, q in quantities(page)} for page in (data, expected))
    assert list(ours) == list(theirs)
    for key, quantity in ours.items():
        assert quantity["shape"] == theirs[key]["shape"]
        assert quantity["statistics"]["norm"] == pytest.approx(theirs[key]["statistics"]["norm"], rel=1e-4, abs=1e-6)
        assert data["maps"][quantity["map"]]["how"] == expected["maps"][theirs[key]["map"]]["how"]
    assert np.allclose(data["depth"]["steps"][0]["distance"], expected["depth"]["steps"][0]["distance"], rtol=1e-5)
    assert [m["title"] for m in data["mistakes"]] == [m["title"] for m in expected["mistakes"]]
    assert all(check["passed"] for check in data["checks"].values())


@pytest.mark.parametrize("name", SIXTEEN_BITS)
def test_a_model_of_16_bits_on_a_device_has_a_page(name: str) -> None:
    dtype = dtype_named(name)
    model = small_vit.model(depth=2).astype(dtype)
    images, labels, _ = small_vit.batch(1)
    there = to_backend(images.astype(dtype), strict)
    data = explore(model.to("strict"), there, to_backend(labels, strict), checks=False)
    assert_valid(data)
    image = data["images"][0]
    assert image["attention"] == []  # the kernel of attention does not keep the weights of each head
    found = data["maps"][image["rollout"]]
    expected = attention_rollout(model.astype("float32"), to_host(there).astype("float32"))[0]
    assert found["high"] == pytest.approx(expected.max(), rel=1e-5)
