"""The measures of a model, from timm's own attention weights of the same model."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from minivit.arrays import Array
from minivit.nn.config import ViTConfig
from minivit.tracing import attention_distance, attention_rollout, filter_components, position_similarity

from .test_timm import MODELS, batch, channels_first, random_model, timm_model

pytestmark = pytest.mark.conformance

CONFIGS = {name: MODELS[name] for name in ("class token", "mean", "mean, no class token, tanh", "vit_tiny_patch4_32")}


def weights_of(torch: Any, theirs: Any, images: Array) -> list[Array]:
    """Return the input of the dropout of the attention weights in each block of timm's model, (B, H, N, N)."""
    found: list[Array] = []
    for block in theirs.blocks:
        block.attn.fused_attn = False
        block.attn.attn_drop.register_forward_hook(lambda _, given, __: found.append(given[0].numpy()))
    with torch.no_grad():
        theirs(channels_first(torch, images))
    return found


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_measures_equal_those_of_timms_weights(torch: Any, timm: Any, config: ViTConfig, tmp_path: Path) -> None:
    model = random_model(config)
    theirs = timm_model(model, tmp_path)
    images, _ = batch(config, 2)
    weights = weights_of(torch, theirs, images)
    rows, columns = config.grid
    prefix, N = config.num_prefix_tokens, config.num_tokens
    places = [
        (r * config.patch_height, c * config.patch_width) for r, c in itertools.product(range(rows), range(columns))
    ]
    between = np.array([[math.dist(a, b) for b in places] for a in places])
    among = [each[:, :, prefix:, prefix:] for each in weights]
    far = [(each * between).sum(-1) / each.sum(-1) for each in among]
    np.testing.assert_allclose(attention_distance(model, images), [each.mean((0, 2)) for each in far], atol=1e-10)

    rollout = np.stack([np.eye(N)] * 2)
    for each in weights:
        rollout = (each.mean(axis=1) + np.eye(N)) / 2 @ rollout
    read = rollout[:, 0] if config.global_pool == "token" else rollout[:, prefix:].mean(axis=1)
    np.testing.assert_allclose(attention_rollout(model, images).reshape(2, -1), read[:, prefix:], rtol=0, atol=1e-10)

    positions = theirs.pos_embed.detach()[0, -len(places) :]
    cosine = torch.nn.functional.cosine_similarity(positions[:, None], positions, dim=-1).numpy()
    np.testing.assert_allclose(position_similarity(model).reshape(cosine.shape), cosine, rtol=0, atol=1e-10)

    filters = theirs.patch_embed.proj.weight.detach()  # (D, C, P, Q)
    _, singular, components = torch.linalg.svd((filters - filters.mean(dim=0)).flatten(1), full_matrices=False)
    ours = filter_components(model, 5)
    expected = components[:5].reshape(5, *filters.shape[1:]).permute(0, 2, 3, 1).numpy()
    sign = np.sign((expected * ours.components).sum(axis=(1, 2, 3), keepdims=True))
    np.testing.assert_allclose(ours.components, sign * expected, rtol=0, atol=1e-10)
    np.testing.assert_allclose(ours.explained, (singular**2 / (singular**2).sum())[:5].numpy(), rtol=0, atol=1e-10)
