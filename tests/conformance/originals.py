"""Comparison of a model of another program in PyTorch with the same model in minivit, loaded from its file."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from minivit import ops
from minivit.arrays import Array
from minivit.nn.vit import ViT
from minivit.weights import load_model, read_tensors, save_model
from minivit.weights.entries import exported
from minivit.weights.formats import layouts

from .test_timm import assert_equal, channels_first

Forward = Callable[[Any], Any]  # images (B, C, height, width) to logits


def randomise(torch: Any, theirs: Any) -> Any:
    """Return their model in float64, in evaluation, with random parameters."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in theirs.double().parameters():
            parameter.normal_(0.0, 0.2, generator=generator)
    return theirs.eval()


def disturb(torch: Any, theirs: Any) -> Any:
    """Return their model in float64, in evaluation, near its own initial values, which suit its width."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in theirs.double().parameters():
            parameter += 0.02 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return theirs.eval()


def images_of(model: ViT, B: int = 6) -> Array:
    config = model.config
    return np.random.default_rng(2).normal(size=(B, config.height, config.width, config.in_chans))


def assert_all_gradients_equal(torch: Any, theirs: Any, forward: Forward, model: ViT, program: str, B: int = 6) -> None:
    """Compare logits, loss and every gradient in float64; `model` has the parameters of `theirs`."""
    images = images_of(model, B)
    x = channels_first(torch, images)
    their_logits = forward(x)
    assert their_logits.shape[1] > 1
    labels = np.random.default_rng(3).integers(0, their_logits.shape[1], len(images))
    their_loss = torch.nn.functional.cross_entropy(their_logits, torch.tensor(labels))
    their_loss.backward()

    logits, cache = model.forward(images)
    loss, loss_cache = ops.cross_entropy(logits, labels)
    assert loss_cache is not None
    dimages = model.backward(ops.cross_entropy_backward(1.0, loss_cache), cache)

    assert_equal(logits, their_logits, 1e-10, "logits")
    assert_equal(loss, their_loss, 1e-10, "loss")
    assert_equal(dimages, x.grad.permute(0, 2, 3, 1), 1e-10, "images")
    gradients = {name: p.grad for name, p in theirs.named_parameters() if p.grad is not None and p.numel()}
    # A tensor that the model does not use has no gradient.
    model.unused = {name: np.zeros_like(value) for name, value in model.unused.items()}
    layout = layouts()[program]
    entries = layout.entries(model)
    for entry in entries:
        if not entry.theirs:
            model.parameters[entry.name].grad[...] = 0.0
    ours = exported({name: parameter.grad for name, parameter in model.parameters.items()}, entries)
    ours = {name: gradient for name, gradient in ours.items() if gradient.size}
    theirs_by_name = dict(layout.prepare({name: gradient.numpy() for name, gradient in gradients.items()}))
    assert ours.keys() == theirs_by_name.keys()
    scale = 1e-3 * math.sqrt(sum(float((gradient**2).sum()) for gradient in theirs_by_name.values()))
    for name, gradient in ours.items():
        assert_equal(gradient, theirs_by_name[name], 1e-10, name, scale)


def assert_float32_as_close(torch: Any, theirs: Any, forward: Forward, model: ViT) -> None:
    """Our float32 is at most twice as far from float64 as theirs; `theirs` is rounded to float32."""
    images = images_of(model)
    x = channels_first(torch, images)
    with torch.no_grad():
        theirs.float()
        single = forward(x.float()).double().numpy()
        theirs.double()
        exact = forward(x.float().double()).numpy()
    ours = model.astype("float32")(images.astype(np.float32)).astype(np.float64)
    assert np.linalg.norm(ours - exact) <= 2 * np.linalg.norm(single - exact)


def assert_export_equal(path: Path, folder: Path, program: str, model: ViT, **given: Any) -> Path:
    """Our export of `model`, imported from `path`, has the bits of the file, and is the same model when imported."""
    save_model(model, folder, format=program)
    written = folder / "model.safetensors"
    before, after = read_tensors(path)[0], read_tensors(written)[0]
    assert before.keys() == after.keys()
    for name, value in before.items():
        assert value.dtype == after[name].dtype, name
        np.testing.assert_array_equal(value, after[name], err_msg=name)
    again = load_model(written, dtype="float64")
    assert again.config == model.config
    assert all(np.array_equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())
    return written
