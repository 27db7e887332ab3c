"""Masked autoencoders and SimMIM beside transformers: loss and all gradients on the same weights, images and masks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from minivit import ViT, ViTConfig
from minivit.arrays import Array
from minivit.nn.corrupted import SimMIM
from minivit.nn.mae import MAE
from minivit.ops.sincos_positions import sincos_table
from minivit.weights import load_masked_model, load_model

pytestmark = pytest.mark.conformance

SIZES: dict[str, Any] = {"image_size": 16, "patch_size": 4, "hidden_size": 16, "num_hidden_layers": 2}
SIZES |= {"num_attention_heads": 2, "intermediate_size": 24, "layer_norm_eps": 1e-5}
EPS = 1e-5


def encoder(**fields: Any) -> ViT:
    config = ViTConfig(
        img_size=16,
        patch_size=4,
        embed_dim=16,
        depth=2,
        num_heads=2,
        mlp_ratio=1.5,
        num_classes=0,
        norm_eps=EPS,
        **fields,
    )
    return ViT(config, seed=None, dtype="float64")


def pairs_of_block(ours: str, theirs: str) -> dict[str, str]:
    """Return the names of a block's parameters in transformers by ours, without the fused q, k and v."""
    named = {"norm1": "layernorm_before", "norm2": "layernorm_after", "attn.proj": "attention.o_proj"}
    named |= {"mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2"}
    return {f"{ours}.{a}.{kind}": f"{theirs}.{b}.{kind}" for a, b in named.items() for kind in ("weight", "bias")}


class Pair:
    """A model of ours and one of transformers with the same parameters, and the map between them."""

    def __init__(self, torch: Any, ours: Any, theirs: Any, names: dict[str, str], blocks: dict[str, str]) -> None:
        self.ours, self.theirs = ours.initialize(seed=None, dtype="float64"), theirs.double().eval()
        self.names = dict(names)
        self.fused: dict[str, list[str]] = {}
        for own, other in blocks.items():
            self.names |= pairs_of_block(own, other)
            for kind in ("weight", "bias"):
                parts = [f"{other}.attention.{part}_proj.{kind}" for part in "qkv"]
                self.fused[f"{own}.attn.qkv.{kind}"] = parts
        generator = torch.Generator().manual_seed(0)
        for parameter in self.theirs.parameters():
            if parameter.requires_grad:
                parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.3
        state = {name: value.detach().numpy() for name, value in self.theirs.named_parameters()}
        for name, parameter in self.ours.parameters.items():
            parameter.value[...] = self.ours_of(name, state)

    def ours_of(self, name: str, arrays: dict[str, Array]) -> Array:
        """Return what the parameter `name` of ours is in `arrays`, by their names in transformers."""
        if name in self.fused:
            value = np.concatenate([arrays[part] for part in self.fused[name]], axis=0)
        else:
            value = arrays[self.names[name]]
        if value.ndim == 4 and value.shape[2:] == (1, 1):  # pixels of a channel after one another
            P, C = 4, 3
            value = value[:, :, 0, 0].reshape(C, P, P, -1).transpose(1, 2, 0, 3).reshape(P * P * C, -1)
        elif value.ndim == 4:
            return value.transpose(2, 3, 1, 0).reshape(-1, value.shape[0])
        elif name.endswith("head.bias"):
            value = value.reshape(3, 4, 4).transpose(1, 2, 0).reshape(-1)
        return value.T if value.ndim == 2 else value

    def check(self, loss: Any, images: Any, x: Array, key: Any) -> None:
        """Compare the loss and all gradients, that of the images too."""
        loss.backward()
        losses, cache = self.ours.forward(x, key)
        assert abs(losses.mean() - loss.item()) <= 1e-10 * abs(loss.item())
        self.ours.zero_grad()
        dx = self.ours.backward(np.full(len(x), 1 / len(x)), cache)
        theirs = {n: p.grad.numpy() for n, p in self.theirs.named_parameters() if p.grad is not None}
        for name, parameter in self.ours.parameters.items():
            expected = self.ours_of(name, theirs)
            scale = max(np.abs(expected).max(), 1e-3)
            assert np.abs(parameter.grad - expected).max() <= 1e-10 * scale, name
        expected = images.grad.permute(0, 2, 3, 1).numpy()
        assert np.abs(dx - expected).max() <= 1e-10 * np.abs(expected).max()

    def check_file(self, folder: Path, x: Array, **options: Any) -> None:
        """Compare the model in the folder that transformers wrote with ours, to the bit."""
        found = load_masked_model(folder, "float64", **options)
        assert found.options == self.ours.options
        assert found.config == self.ours.config
        state = self.ours.state_dict()
        assert all(np.array_equal(value, state[name]) for name, value in found.state_dict().items())
        np.testing.assert_array_equal(found(x), self.ours(x))


def check_tokens(folder: Path, output: Any, x: Array) -> None:
    """Compare the tokens of the encoder in the folder, as a plain ViT, with those of theirs."""
    tokens = output.last_hidden_state.detach().numpy()
    vit = load_model(folder, "float64")
    assert vit.config.num_classes == 0
    assert np.abs(vit.forward_features(x) - tokens).max() <= 1e-10 * np.abs(tokens).max()


def common(prefix: str) -> dict[str, str]:
    return {
        "encoder.patch_embed.proj.weight": f"{prefix}.embeddings.patch_embeddings.projection.weight",
        "encoder.patch_embed.proj.bias": f"{prefix}.embeddings.patch_embeddings.projection.bias",
        "encoder.cls_token": f"{prefix}.embeddings.cls_token",
        "encoder.pos_embed": f"{prefix}.embeddings.position_embeddings",
        "encoder.norm.weight": f"{prefix}.layernorm.weight",
        "encoder.norm.bias": f"{prefix}.layernorm.bias",
    }


def drawn(torch: Any) -> tuple[Any, Array]:
    images = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    x = np.ascontiguousarray(images.permute(0, 2, 3, 1).numpy())
    return images.requires_grad_(), x


@pytest.mark.parametrize("norm", [False, True])
def test_a_masked_autoencoder_is_that_of_transformers(
    timm: Any, torch: Any, norm: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    sizes = {"decoder_num_attention_heads": 2, "decoder_hidden_size": 8, "decoder_num_hidden_layers": 2}
    import transformers

    config = transformers.ViTMAEConfig(**SIZES, **sizes, decoder_intermediate_size=12, norm_pix_loss=norm)
    theirs = transformers.ViTMAEForPreTraining(config)
    theirs.vit.embeddings.position_embeddings.requires_grad_(True)
    theirs.decoder.initialize_weights(16)
    table = torch.cat([torch.zeros(1, 8), torch.from_numpy(sincos_table((4, 4), 8, "mae"))])[None]
    assert (theirs.decoder.decoder_pos_embed - table).abs().max() < 1e-6  # theirs has 32 bits
    theirs.decoder.decoder_pos_embed.data = table
    names = common("vit") | {
        "decoder_embed.weight": "decoder.decoder_embed.weight",
        "decoder_embed.bias": "decoder.decoder_embed.bias",
        "mask_token": "decoder.mask_token",
        "decoder_norm.weight": "decoder.decoder_norm.weight",
        "decoder_norm.bias": "decoder.decoder_norm.bias",
        "decoder_pred.weight": "decoder.decoder_pred.weight",
        "decoder_pred.bias": "decoder.decoder_pred.bias",
    }
    blocks = {f"encoder.blocks.{i}": f"vit.layers.{i}" for i in range(2)}
    blocks |= {f"decoder_blocks.{i}": f"decoder.decoder_layers.{i}" for i in range(2)}
    ours = MAE(encoder(), 0.75, 8, 2, 2, 12, norm)
    pair = Pair(torch, ours, theirs, names, blocks)
    images, x = drawn(torch)
    noise = torch.rand(3, 16, generator=torch.Generator().manual_seed(2))
    order = noise.argsort(dim=1).numpy()
    monkeypatch.setattr(MAE, "order", lambda self, masks: np.concatenate([order[:, 4:], order[:, :4]], axis=1))
    pair.check(theirs(images, noise=noise).loss, images, x, None)
    theirs.save_pretrained(tmp_path)
    pair.check_file(tmp_path, x)
    theirs.config.mask_ratio = 0.0
    check_tokens(tmp_path, theirs.vit(images, noise=torch.arange(16)[None].repeat(3, 1)), x)


def test_simmim_is_that_of_transformers(timm: Any, torch: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import transformers

    theirs = transformers.ViTForMaskedImageModeling(transformers.ViTConfig(**SIZES, encoder_stride=4))
    names = common("vit") | {
        "mask_token": "vit.embeddings.mask_token",
        "head.weight": "decoder.0.weight",
        "head.bias": "decoder.0.bias",
    }
    blocks = {f"encoder.blocks.{i}": f"vit.layers.{i}" for i in range(2)}
    pair = Pair(torch, SimMIM(encoder(), 0.5), theirs, names, blocks)
    images, x = drawn(torch)
    order = torch.rand(3, 16, generator=torch.Generator().manual_seed(2)).argsort(dim=1).numpy()
    monkeypatch.setattr(SimMIM, "order", lambda self, masks: order)
    mask = torch.zeros(3, 16, dtype=torch.bool)
    for row, some in zip(mask, order[:, :8], strict=True):
        row[torch.from_numpy(some.copy())] = True
    loss = theirs(images, bool_masked_pos=mask).loss
    pair.check(loss, images, x, None)
    theirs.save_pretrained(tmp_path)
    pair.check_file(tmp_path, x, ratio=0.5)
    check_tokens(tmp_path, theirs.vit(images), x)
