"""The hybrids of a ResNet and a Vision Transformer are timm's: logits, loss and every gradient, and files both ways."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from minivit import ops
from minivit.nn.presets import create_model, list_models
from minivit.nn.resnet import ResNet
from minivit.nn.summary import summarize
from minivit.weights import load_model, save_model

from .originals import assert_all_gradients_equal, assert_export_equal, assert_float32_as_close, disturb
from .test_timm import assert_equal, channels_first

pytestmark = pytest.mark.conformance

CASES: list[tuple[str, dict[str, Any]]] = [
    ("vit_tiny_r_s16_p8_224", {"img_size": 64}),
    ("vit_tiny_r_s16_p8_224", {"img_size": 32, "pre_norm": True}),
    ("vit_small_r26_s32_224", {"img_size": (64, 96)}),
    ("vit_base_r50_s16_224", {"img_size": (48, 32), "embed_dim": 192, "num_heads": 3}),
]


@pytest.mark.parametrize(("name", "given"), CASES, ids=str)
def test_logits_loss_and_every_gradient(
    timm: Any, torch: Any, tmp_path: Path, name: str, given: dict[str, Any]
) -> None:
    from safetensors.torch import save_file

    fields: dict[str, Any] = {"depth": 2, "num_classes": 7, **given}
    torch.manual_seed(0)
    theirs = disturb(torch, timm.create_model(name, **fields))
    save_file(theirs.state_dict(), tmp_path / "model.safetensors")
    expected = create_model(name, **fields).config
    said = {field: getattr(expected, field) for field in ("img_size", "num_heads", "act_layer", "norm_eps")}
    model = load_model(tmp_path / "model.safetensors", dtype="float64", **said)
    assert model.config == expected
    assert_all_gradients_equal(torch, theirs, theirs, model, "timm", B=2)
    assert_float32_as_close(torch, theirs, theirs, model)
    assert_export_equal(tmp_path / "model.safetensors", tmp_path / "again", "timm", model)


def test_the_named_hybrids_of_timm_have_as_many_parameters(timm: Any, torch: Any) -> None:
    names = list_models("vit_*_r*_s*")
    assert len(names) == 9
    for name in names:
        with torch.device("meta"):
            theirs = timm.create_model(name, num_classes=1000, img_size=32)
        model = create_model(name, img_size=32).config
        assert summarize(model).parameters == sum(parameter.numel() for parameter in theirs.parameters()), name


@pytest.mark.filterwarnings("ignore")  # of timm
@pytest.mark.parametrize("name", ["vit_tiny_r_s16_p8_224", "vit_small_r26_s32_224"])
def test_timm_opens_what_we_write(timm: Any, torch: Any, tmp_path: Path, name: str) -> None:
    model = create_model(name, img_size=64, num_classes=3, depth=1)
    save_model(model, tmp_path)
    theirs = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).double().eval()
    images = np.random.default_rng(0).normal(size=(2, 64, 64, 3))
    assert_equal(model.astype("float64")(images), theirs(channels_first(torch, images)), 1e-10, "logits")


@pytest.mark.parametrize("name", ["vit_tiny_r_s16_p8_224", "vit_small_r26_s32_224"])
def test_timm_reads_our_google_file(timm: Any, torch: Any, tmp_path: Path, name: str) -> None:
    model = create_model(name, img_size=224, num_classes=3, depth=1, act_layer="gelu_tanh")
    save_model(model, tmp_path / "x.npz", format="google")
    act = torch.nn.GELU
    theirs = timm.create_model(name, num_classes=3, depth=1, act_layer=lambda: act(approximate="tanh"))
    theirs.load_pretrained(str(tmp_path / "x.npz"))
    images = np.random.default_rng(0).normal(size=(1, 224, 224, 3))
    logits = theirs.double().eval()(channels_first(torch, images))
    assert_equal(model.astype("float64")(images), logits, 1e-10, "logits")


def ours(name: str, value: Any) -> tuple[str, Any]:
    """Return the name and the value of a parameter of timm's ResNet here."""
    array = value.detach().numpy()
    if array.ndim == 4:
        array = array.transpose(2, 3, 1, 0).reshape(-1, len(array))
    return name.replace("head.fc.", "head.") if name.startswith("head.") else f"features.{name}", array


def test_the_resnet_of_big_transfer_as_a_classifier(timm: Any, torch: Any) -> None:
    torch.manual_seed(0)
    theirs = disturb(torch, timm.create_model("resnetv2_50x1_bit", num_classes=7))
    model = ResNet(7).initialize(0, "float64")
    model.load_state_dict(dict(ours(name, value) for name, value in theirs.named_parameters()))
    images = np.random.default_rng(0).normal(size=(2, 70, 61, 3))
    x = channels_first(torch, images)
    their_logits = theirs(x)
    labels = np.array([3, 5])
    their_loss = torch.nn.functional.cross_entropy(their_logits, torch.tensor(labels))
    their_loss.backward()
    logits, cache = model.forward(images)
    loss, loss_cache = ops.cross_entropy(logits, labels)
    assert loss_cache is not None
    model.zero_grad()
    dimages = model.backward(ops.cross_entropy_backward(1.0, loss_cache), cache)
    assert_equal(logits, their_logits, 1e-10, "logits")
    assert_equal(loss, their_loss, 1e-10, "loss")
    assert_equal(dimages, x.grad.permute(0, 2, 3, 1), 1e-10, "images")
    gradients = dict(ours(name, parameter.grad) for name, parameter in theirs.named_parameters())
    scale = 1e-3 * np.sqrt(sum(float((gradient**2).sum()) for gradient in gradients.values()))
    for name, parameter in model.parameters.items():
        assert_equal(parameter.grad, gradients[name], 1e-10, name, scale)
