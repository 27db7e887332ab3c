"""vit_pytorch's ViT and SimpleViT are read, computed and written back, in float64 and float32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from minivit.nn.config import ViTConfig
from minivit.nn.presets import get_config
from minivit.weights import load_model
from minivit.weights.entries import hollow
from minivit.weights.layout import WeightsFile
from minivit.weights.vit_pytorch import VitPytorch

from .originals import (
    assert_all_gradients_equal,
    assert_export_equal,
    assert_float32_as_close,
    images_of,
    randomise,
)
from .test_timm import assert_equal, channels_first

pytestmark = pytest.mark.conformance

VIT: dict[str, Any] = {
    "image_size": (22, 21), "patch_size": (11, 3), "num_classes": 5, "dim": 36, "depth": 2, "heads": 3, "dim_head": 7,
    "mlp_dim": 70, "channels": 2,
}  # fmt: skip
GIVEN: dict[str, Any] = {"img_size": (22, 21), "patch_size": (11, 3), "num_heads": 3}


def in_float64(torch: Any, theirs: Any) -> Any:
    """Return a SimpleViT whose positions, which it computes in float32, are computed in float64."""
    from vit_pytorch.simple_vit import posemb_sincos_2d

    (H, W), (P, Q) = VIT["image_size"], VIT["patch_size"]
    torch.set_default_dtype(torch.float64)
    theirs.pos_embedding = posemb_sincos_2d(H // P, W // Q, VIT["dim"], dtype=torch.float64)
    torch.set_default_dtype(torch.float32)
    return theirs


def models(vit_pytorch: Any, torch: Any) -> dict[str, Any]:
    from vit_pytorch import simple_vit_with_patch_dropout, simple_vit_with_register_tokens

    simple = vit_pytorch.SimpleViT(**VIT)
    registers = simple_vit_with_register_tokens.SimpleViT(**VIT, num_register_tokens=3)
    dropping = simple_vit_with_patch_dropout.SimpleViT(**VIT)
    return {
        "ViT": vit_pytorch.ViT(**VIT),
        "ViT, mean": vit_pytorch.ViT(**VIT, pool="mean"),
        "ViT, one head as wide as the model": vit_pytorch.ViT(**{**VIT, "heads": 1, "dim_head": 36}),
        "SimpleViT": in_float64(torch, simple),
        "SimpleViT with registers": in_float64(torch, registers),
        "SimpleViT with patch dropout": dropping,
    }


NAMES = ("ViT", "ViT, mean", "ViT, one head as wide as the model", "SimpleViT", "SimpleViT with registers")


def load(path: Path, **given: Any) -> Any:
    with pytest.warns(UserWarning, match=r"assumed .*act_layer='gelu', norm_eps=1e-05.* \(as vit_pytorch has"):
        return load_model(path, dtype="float64", **GIVEN | given)


@pytest.mark.parametrize("name", NAMES)
def test_their_model_is_computed_and_written_as_they_do(
    vit_pytorch: Any, torch: Any, tmp_path: Path, name: str
) -> None:
    from safetensors.torch import load_file, save_file

    theirs = randomise(torch, models(vit_pytorch, torch)[name])
    save_file(theirs.state_dict(), tmp_path / "model.safetensors")
    model = load(tmp_path, **({"num_heads": 1} if "one head" in name else {}))
    written = assert_export_equal(tmp_path / "model.safetensors", tmp_path / "ours", "vit_pytorch", model)
    again = models(vit_pytorch, torch)[name].double().eval()
    again.load_state_dict(load_file(written), strict=True)
    images = images_of(model)
    assert_equal(model(images), again(channels_first(torch, images)), 1e-10, "logits of our export")
    assert_all_gradients_equal(torch, theirs, theirs, model, "vit_pytorch")
    assert_float32_as_close(torch, theirs, theirs, model)


def test_a_model_with_patch_dropout_has_the_layout_of_simple_vit(vit_pytorch: Any, torch: Any, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    theirs = randomise(torch, models(vit_pytorch, torch)["SimpleViT with patch dropout"])
    save_file(theirs.state_dict(), tmp_path / "model.safetensors")
    model = load(tmp_path, patch_drop_rate=0.5)
    images = images_of(model)
    torch.set_default_dtype(torch.float64)
    logits = theirs(channels_first(torch, images))
    torch.set_default_dtype(torch.float32)
    assert_equal(model(images), logits, 1e-10, "logits")


def test_a_model_without_a_head_gives_the_pooled_tokens(vit_pytorch: Any, torch: Any, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    theirs = randomise(torch, vit_pytorch.ViT(**{**VIT, "num_classes": 0}))
    save_file(theirs.state_dict(), tmp_path / "model.safetensors")
    model = load(tmp_path)
    images = images_of(model)
    assert_equal(model(images), theirs(channels_first(torch, images))[:, 0], 1e-10, "class token")


def test_the_models_of_their_documentation_are_known_without_arguments(
    vit_pytorch: Any, torch: Any, tmp_path: Path
) -> None:
    from safetensors.torch import save_file

    sizes = {"image_size": 256, "patch_size": 32, "num_classes": 1000, "dim": 1024, "heads": 16, "mlp_dim": 2048}
    for kind in ("ViT", "SimpleViT"):
        theirs = getattr(vit_pytorch, kind)(**sizes, depth=1).eval()
        save_file(theirs.state_dict(), tmp_path / "model.safetensors")
        with pytest.warns(UserWarning, match=r"assumed num_heads=16, patch_size=\(32, 32\), in_chans=3"):
            model = load_model(tmp_path)
        images = images_of(model)[:1].astype(np.float32)
        with torch.no_grad():
            logits = theirs(torch.tensor(images).permute(0, 3, 1, 2)).numpy()
        np.testing.assert_allclose(model(images), logits, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("size", "dim", "heads"), [("small", 384, 6), ("base", 768, 12)])
def test_the_named_models_are_simple_vits(vit_pytorch: Any, torch: Any, size: str, dim: int, heads: int) -> None:
    sizes = {"image_size": 224, "patch_size": 16, "num_classes": 1000, "dim": dim, "heads": heads, "mlp_dim": 4 * dim}
    theirs = vit_pytorch.SimpleViT(**sizes, depth=1)
    shapes = {name: tuple(value.shape) for name, value in theirs.state_dict().items()}
    file = WeightsFile(Path(size), {name: hollow(shape) for name, shape in shapes.items()}, {}, {}, dict)
    with pytest.warns(UserWarning, match="assumed"):
        fields = VitPytorch().fields(file, {"img_size": 224})
    named = get_config(f"simple_vit_{size}_patch16_224")
    assert ViTConfig(**fields | {"depth": 12, "init": named.init}) == named


def older(torch: Any, kind: str) -> Any:
    """Return vit_pytorch's ViT or SimpleViT of version 0.40 (2022), written from its published code."""
    nn = torch.nn
    heads, K, D, F, C, P, Q = 3, 7, 36, 70, 2, 11, 3

    class PreNorm(torch.nn.Module):
        def __init__(self, fn: Any) -> None:
            super().__init__()
            self.norm, self.fn = nn.LayerNorm(D), fn

        def forward(self, x: Any) -> Any:
            return self.fn(self.norm(x))

    class FeedForward(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            if kind == "SimpleViT":
                self.net = nn.Sequential(nn.LayerNorm(D), nn.Linear(D, F), nn.GELU(), nn.Linear(F, D))
            else:
                self.net = nn.Sequential(nn.Linear(D, F), nn.GELU(), nn.Dropout(0.0), nn.Linear(F, D), nn.Dropout(0.0))

        def forward(self, x: Any) -> Any:
            return self.net(x)

    class Attention(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.to_qkv = nn.Linear(D, 3 * heads * K, bias=False)
            if kind == "SimpleViT":
                self.norm, self.to_out = nn.LayerNorm(D), nn.Linear(heads * K, D, bias=False)
            else:
                self.to_out = nn.Sequential(nn.Linear(heads * K, D), nn.Dropout(0.0))

        def forward(self, x: Any) -> Any:
            x = self.norm(x) if kind == "SimpleViT" else x
            parts = self.to_qkv(x).chunk(3, dim=-1)
            q, k, v = (part.reshape(*x.shape[:2], heads, K).transpose(1, 2) for part in parts)
            weights = (q @ k.transpose(-1, -2) * K**-0.5).softmax(-1)
            return self.to_out((weights @ v).transpose(1, 2).flatten(2))

    class Transformer(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            wrap = (lambda fn: fn) if kind == "SimpleViT" else PreNorm
            self.layers = nn.ModuleList(nn.ModuleList([wrap(Attention()), wrap(FeedForward())]) for _ in range(2))

        def forward(self, x: Any) -> Any:
            for attn, ff in self.layers:
                x = attn(x) + x
                x = ff(x) + x
            return x

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.to_patch_embedding = nn.Sequential(nn.Identity(), nn.Linear(P * Q * C, D))
            self.transformer = Transformer()
            head = nn.Sequential(nn.LayerNorm(D), nn.Linear(D, 5))
            if kind == "SimpleViT":
                self.linear_head = head
            else:
                self.pos_embedding = nn.Parameter(torch.randn(1, 15, D))
                self.cls_token = nn.Parameter(torch.randn(1, 1, D))
                self.mlp_head = head

        def forward(self, img: Any) -> Any:
            B, h, w = len(img), 22 // P, 21 // Q
            x = img.reshape(B, C, h, P, w, Q).permute(0, 2, 4, 3, 5, 1).reshape(B, h * w, -1)
            x = self.to_patch_embedding(x)
            if kind == "SimpleViT":
                from vit_pytorch.simple_vit import posemb_sincos_2d

                torch.set_default_dtype(torch.float64)
                x = x + posemb_sincos_2d(h, w, D, dtype=torch.float64)
                torch.set_default_dtype(torch.float32)
                return self.linear_head(self.transformer(x).mean(dim=1))
            x = torch.cat((self.cls_token.expand(B, -1, -1), x), dim=1) + self.pos_embedding
            x = self.transformer(x)
            return self.mlp_head(x.mean(dim=1) if kind == "ViT, mean" else x[:, 0])

    return Model()


@pytest.mark.parametrize("kind", ["ViT", "ViT, mean", "SimpleViT"])
def test_models_of_older_versions(vit_pytorch: Any, torch: Any, tmp_path: Path, kind: str) -> None:
    from safetensors.torch import load_file, save_file

    theirs = randomise(torch, older(torch, kind))
    save_file(theirs.state_dict(), tmp_path / "model.safetensors")
    given: dict[str, Any] = {"global_pool": "avg"} if kind == "ViT, mean" else {}
    model = load(tmp_path, **given)
    written = assert_export_equal(tmp_path / "model.safetensors", tmp_path / "ours", "vit_pytorch", model)
    theirs.load_state_dict(load_file(written), strict=True)
    assert_all_gradients_equal(torch, theirs, theirs, model, "vit_pytorch")
    # Before April 2021 each branch was wrapped once more.
    wrapped = {
        name.replace("0.norm.", "0.fn.norm.")
        .replace("1.norm.", "1.fn.norm.")
        .replace(".fn.to", ".fn.fn.to")
        .replace(".fn.net", ".fn.fn.net"): value
        for name, value in theirs.state_dict().items()
    }
    if kind != "SimpleViT":
        save_file(wrapped, tmp_path / "model.safetensors")
        again = load(tmp_path, **given).state_dict()
        assert all(np.array_equal(value, again[name]) for name, value in model.state_dict().items())
