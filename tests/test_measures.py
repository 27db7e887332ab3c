"""The measures of a model equal plain loops, for every kind of positions, tokens and pooling."""

from __future__ import annotations

import copy
import itertools
import math
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from bare_vit import SMALL, images, model, shaken
from with_model import WithModel

import minivit
from minivit import UserError, ViT, layers, ops
from minivit.arrays import Array, to_backend
from minivit.ops.registry import disabled_kernels
from minivit.tracing import attention_distance, attention_rollout, filter_components, gradient_flow, position_similarity

TOLERANCE: dict[str, Any] = {"rtol": 0, "atol": 1e-12}

# The grid has 2 rows and 3 columns, or 3 and 7 where the patches overlap.
TOKENS: dict[str, dict[str, Any]] = {
    "class token": {},
    "class and register tokens": {"reg_tokens": 2},
    "no class token": {"class_token": False, "global_pool": "avg"},
    "register tokens alone, pooled too": {
        "class_token": False,
        "reg_tokens": 2,
        "global_pool": "avg",
        "pool_include_prefix": True,
    },
    "overlapping patches": {"patch_stride": (1, 1)},
    "attention pooling": {"global_pool": "map"},
    "norms of queries and keys": {"qk_norm": True, "head_dim": 5},
    "positions again": {"pos_embed_layers": "shared"},
}


def softmax(scores: list[float]) -> list[float]:
    exponentials = [math.exp(score) for score in scores]
    return [value / sum(exponentials) for value in exponentials]


def weights_of(vit: ViT, x: Array) -> list[Array]:
    """Return the attention weights (B, H, N, N) of each block, one softmax at a time."""
    found = []
    tokens, _ = vit.embed(x)
    for i, block in enumerate(vit.blocks):
        tokens, _ = vit._with_positions(tokens, i, False)
        qkv = block.attn.qkv(block.norm1(tokens))
        qkv, _ = block.attn._normed(qkv, None, False)
        B, N, columns = qkv.shape
        H = vit.config.num_heads
        K = columns // (3 * H)
        weights = np.zeros((B, H, N, N))
        for b, h, query in itertools.product(range(B), range(H), range(N)):
            q = qkv[b, query, h * K : (h + 1) * K]
            keys = [qkv[b, key, (H + h) * K : (H + h + 1) * K] for key in range(N)]
            weights[b, h, query] = softmax([float(q @ k) / math.sqrt(K) for k in keys])
        found.append(weights)
        tokens = block(tokens)
    return found


@pytest.mark.parametrize("shared", ["block", "attention"])
def test_the_attention_of_a_block_that_stands_in_two_places_is_measured_in_both(shared: str) -> None:
    vit, x = shaken(model()), images()
    twin = copy.deepcopy(vit)
    for each, block in ((vit, vit.blocks[0]), (twin, copy.deepcopy(twin.blocks[0]))):
        if shared == "block":
            each.blocks[1] = block
        else:
            each.blocks[1].attn = block.attn
    distance, rollout = attention_distance(vit, x), attention_rollout(vit, x)
    np.testing.assert_allclose(distance, attention_distance(twin, x), **TOLERANCE)
    np.testing.assert_allclose(rollout, attention_rollout(twin, x), **TOLERANCE)
    assert np.abs(distance[0] - distance[1]).max() > 1e-6


@pytest.mark.parametrize("fields", TOKENS.values(), ids=TOKENS)
@pytest.mark.parametrize("normalize", [True, False])
def test_attention_distance_is_the_mean_distance_weighted_by_attention(fields: dict[str, Any], normalize: bool) -> None:
    vit, x = shaken(model(**fields)), images()
    (rows, columns), (S, R), prefix = vit.config.grid, vit.config.stride, vit.config.num_prefix_tokens
    places = [(S * row, R * column) for row in range(rows) for column in range(columns)]
    expected = np.zeros((vit.config.depth, vit.config.num_heads))
    for block, weights in enumerate(weights_of(vit, x)):
        for b, h, query in itertools.product(range(2), range(2), range(len(places))):
            row = weights[b, h, prefix + query, prefix:]
            far = sum(row[key] * math.dist(places[query], places[key]) for key in range(len(places)))
            expected[block, h] += (far / sum(row) if normalize else far) / (2 * len(places))
    np.testing.assert_allclose(attention_distance(vit, x, normalize), expected, **TOLERANCE)


@pytest.mark.parametrize("fields", TOKENS.values(), ids=TOKENS)
def test_attention_rollout_is_the_product_of_the_mixed_weights(fields: dict[str, Any]) -> None:
    vit, x = shaken(model(**fields)), images()
    config = vit.config
    N, prefix = config.num_tokens, config.num_prefix_tokens
    for b in range(2):
        rollout = [[float(i == j) for j in range(N)] for i in range(N)]
        for weights in weights_of(vit, x):
            mixed = [
                [0.5 * sum(weights[b, h, i, j] for h in range(2)) / 2 + 0.5 * (i == j) for j in range(N)]
                for i in range(N)
            ]
            rollout = [[sum(mixed[i][m] * rollout[m][j] for m in range(N)) for j in range(N)] for i in range(N)]
        if config.global_pool == "token":
            read = {0: 1.0}
        elif config.global_pool == "avg":
            read = dict.fromkeys(range(config.first_pooled, N), 1 / (N - config.first_pooled))
        else:
            read = dict(zip(range(config.first_pooled, N), pooling_of(vit, x)[b], strict=True))
        expected = [sum(share * rollout[i][j] for i, share in read.items()) for j in range(prefix, N)]
        actual = attention_rollout(vit, x)[b]
        assert actual.shape == config.grid
        np.testing.assert_allclose(actual.reshape(-1), expected, **TOLERANCE)


def pooling_of(vit: ViT, x: Array) -> Array:
    """Return the mean over the heads of the weights (B, N') of attention pooling."""
    pool = vit.attn_pool
    assert pool is not None
    tokens = vit.get_intermediate_layers(x, norm=True)[0]
    q, kv = pool.q(pool.latent.value)[0, 0], pool.kv(tokens)
    H, K = 2, len(q) // 2
    return np.array(
        [
            np.mean(
                [softmax([float(q[h * K : h * K + K] @ k[h * K : h * K + K]) / math.sqrt(K) for k in image])
                 for h in range(H)],
                axis=0,
            )
            for image in kv
        ]
    )  # fmt: skip


POSITIONS: dict[str, dict[str, Any]] = {
    "of all tokens": {"reg_tokens": 1},
    "of patches alone": {"no_embed_class": True},
    "without class token": {"class_token": False, "global_pool": "avg"},
    "sum of rows and columns": {"pos_embed": "learn_2d"},
    "rows and columns": {"pos_embed": "learn_2d_concat"},
    "sines": {"pos_embed": "sincos_2d", "embed_dim": 8},
    "sines of MAE": {"pos_embed": "sincos_2d_mae", "embed_dim": 8},
}


@pytest.mark.parametrize("fields", POSITIONS.values(), ids=POSITIONS)
def test_position_similarity_is_the_cosine_of_what_is_added_to_two_patches(fields: dict[str, Any]) -> None:
    vit = shaken(model(**fields))
    config = vit.config
    tokens = vit.embed(images(1))[0][0, config.num_prefix_tokens :]
    positions = tokens - vit.patch_embed(images(1))[0]
    rows, columns = config.grid
    actual = position_similarity(vit)
    assert actual.shape == (rows, columns, rows, columns)
    for r, c, s, d in itertools.product(range(rows), range(columns), range(rows), range(columns)):
        a, b = positions[r * columns + c], positions[s * columns + d]
        assert actual[r, c, s, d] == pytest.approx(a @ b / math.sqrt((a @ a) * (b @ b)), rel=0, abs=1e-12)


def test_a_position_of_zeros_has_no_similarity() -> None:
    vit = model()
    vit.pos_embed.value[...] = 0.0
    assert (position_similarity(vit) == 0).all()


@pytest.mark.parametrize(
    ("fields", "shape"),
    [
        ({}, (2, 3, 3)),
        ({"patch_stride": (1, 1), "in_chans": 1}, (2, 3, 1)),
        ({"embed_norm": "both", "embed_dim": 32}, (2, 3, 3)),
        ({"conv_stem": (5, 4), "img_size": 8, "patch_size": 2}, (3, 3, 3)),
        ({"resnet": (0,), "img_size": 8, "patch_size": 4}, (7, 7, 3)),
    ],
)
def test_filter_components_are_the_eigenvectors_of_the_covariance_of_the_filters(
    fields: dict[str, Any], shape: tuple[int, ...]
) -> None:
    vit = shaken(model(**fields))
    first: Any = vit.patch_embed
    if "resnet" in fields:
        conv = first.backbone.stem.conv
        filters = ops.standardize(conv.weight.value, conv.eps)[0].T  # as the forward pass has them
    else:
        filters = (first.convs[0].conv if "conv_stem" in fields else first.proj).weight.value.T
    covariance = np.zeros((filters.shape[1],) * 2)
    for each in filters:
        covariance += np.outer(each - filters.mean(axis=0), each - filters.mean(axis=0)) / (len(filters) - 1)
    found = filter_components(vit, 3)
    assert found.components.shape == (3, *shape)
    for component, explained in zip(found.components.reshape(3, -1), found.explained, strict=True):
        variance = component @ covariance @ component
        np.testing.assert_allclose(covariance @ component, variance * component, **TOLERANCE)
        assert explained == pytest.approx(variance / covariance.trace(), abs=1e-12)
        assert component[np.abs(component).argmax()] > 0
    np.testing.assert_allclose(np.linalg.norm(found.components.reshape(3, -1), axis=1), 1, **TOLERANCE)
    assert (np.diff(found.explained) <= 0).all()


def test_there_are_no_more_components_than_pixels_of_a_patch() -> None:
    found = filter_components(model(in_chans=1, embed_dim=12))
    assert found.components.shape == (6, 2, 3, 1)
    assert found.explained.sum() == pytest.approx(1)


def test_many_images_are_measured_in_pieces_with_the_same_result(monkeypatch: pytest.MonkeyPatch) -> None:
    vit, x = shaken(model()), images(5)
    whole = attention_distance(vit, x), attention_rollout(vit, x)
    monkeypatch.setattr("minivit.tracing.attention._MOST_NUMBERS", 2 * 3 * 2 * 7 * 7)
    np.testing.assert_allclose(attention_distance(vit, x), whole[0], **TOLERANCE)
    np.testing.assert_allclose(attention_rollout(vit, x), whole[1], **TOLERANCE)


def test_relative_positions_are_measured_by_their_attention_and_not_by_similarity() -> None:
    vit = shaken(model(pos_embed="relative"))
    assert attention_distance(vit, images()).shape == (3, 2)
    with pytest.raises(UserError, match=r"relative.*each distance"):
        position_similarity(vit)


def test_a_model_without_positions_or_without_attention_is_refused_in_words() -> None:
    with pytest.raises(UserError, match="pos_embed is None"):
        position_similarity(model(pos_embed="none"))
    vit = model()
    vit.blocks[1].attn = layers.Identity()  # type: ignore[assignment]
    with pytest.raises(UserError, match=r"blocks\.1 has no attention weights"):
        attention_distance(vit, images())
    with pytest.raises(UserError, match="count is 0"):
        filter_components(vit, 0)
    with pytest.raises(ValueError, match="images have shape"):
        attention_rollout(vit, images()[:, :2])


@pytest.mark.parametrize("statistics", [False, True])
def test_gradient_flow_is_the_norms_by_depth(statistics: bool) -> None:
    vit, x = shaken(model(pre_norm=True)), images()
    labels = [1, 4]
    flow = gradient_flow(minivit.trace(vit, x, labels, statistics=statistics))
    assert flow.names == ["patch_embed", "norm_pre", "blocks.0", "blocks.1", "blocks.2", "norm", "head"]
    vit.zero_grad()
    seen: dict[str, tuple[Array, Array]] = {}
    with minivit.ops.reference_only():
        tokens, cache1 = vit.embed(x)
        caches = []
        for block in vit.blocks:
            tokens, cache2 = block.forward(tokens)
            caches.append(cache2)
            seen[f"blocks.{len(caches) - 1}"] = tokens, tokens
        logits, cache3 = vit.classify(tokens)
        _, loss_cache = minivit.ops.cross_entropy(logits, np.array(labels))
        dlogits = minivit.ops.cross_entropy_backward(1.0, loss_cache)
        dy = vit.classify_backward(dlogits, cache3)
        seen["head"] = logits, dlogits
        for i in (2, 1, 0):
            seen[f"blocks.{i}"] = seen[f"blocks.{i}"][0], dy
            dy = vit.blocks[i].backward(dy, caches[i])
        vit.embed_backward(dy, cache1)
    for name, activation, gradient, parameters in zip(*flow, strict=True):
        squares = sum(
            float((parameter.grad**2).sum()) for key, parameter in vit.parameters.items() if key.startswith(f"{name}.")
        )
        assert parameters == pytest.approx(math.sqrt(squares), rel=1e-12)
        if name in seen:
            assert activation == pytest.approx(np.linalg.norm(seen[name][0]), rel=1e-12)
            assert gradient == pytest.approx(np.linalg.norm(seen[name][1]), rel=1e-12)


def test_gradient_flow_has_a_layer_that_is_called_model() -> None:
    vit, x = shaken(WithModel(SMALL, "float64")), images()
    found = minivit.trace(vit, x, [1, 4])
    flow = gradient_flow(found)
    assert flow.names == ["patch_embed", "blocks.0", "blocks.1", "blocks.2", "norm", "head", "model"]
    assert flow.activations[-1] == pytest.approx(np.linalg.norm(found["model"].y))
    grads = [found["model"].dweight, found["model"].dbias]
    assert flow.parameters[-1] == pytest.approx(math.sqrt(sum(float((grad**2).sum()) for grad in grads)))


def test_gradient_flow_needs_labels_and_blocks() -> None:
    vit, x = model(), images()
    with pytest.raises(UserError, match=r"no gradients: give minivit\.trace the labels"):
        gradient_flow(minivit.trace(vit, x))
    with pytest.raises(UserError, match="no blocks: trace a ViT"):
        gradient_flow(minivit.trace(vit, x, [0, 1], at="head"))


def test_a_model_that_diverged_is_refused_with_the_first_block_that_is_not_finite() -> None:
    vit = shaken(model())
    vit.blocks[1].attn.qkv.weight.value[0, 0] = np.nan
    with pytest.raises(UserError, match=r"attention weights of blocks\.1 are not finite"):
        attention_rollout(vit, images())
    vit.patch_embed.proj.weight.value[0, 0] = vit.pos_embed.value[0, 1, 0] = np.inf
    with pytest.raises(UserError, match="filters of patch_embed are not finite"):
        filter_components(vit)
    with pytest.raises(UserError, match="the positions are not finite"):
        position_similarity(vit)


def test_attention_pooling_without_attention_or_that_diverged_is_refused() -> None:
    class Mean(minivit.Layer):
        def forward(self, x: Array, rng: Any = None, keep: bool = True) -> tuple[Array, Any]:
            return x.mean(axis=1), None

    vit = shaken(model(global_pool="map"))
    distance = attention_distance(vit, images())
    assert vit.attn_pool is not None
    vit.attn_pool.q.weight.value[0, 0] = np.nan
    with pytest.raises(UserError, match="attention weights of attn_pool are not finite"):
        attention_rollout(vit, images())
    vit.attn_pool = Mean()  # type: ignore[assignment]
    with pytest.raises(UserError, match="attn_pool has no attention weights: it does not call an op of attention"):
        attention_rollout(vit, images())
    np.testing.assert_array_equal(attention_distance(vit, images()), distance)


def test_a_model_of_16_bits_is_measured_in_32_bits() -> None:
    vit, x = shaken(model("float16")), images(dtype="float16")
    for measure in (attention_distance, attention_rollout):
        np.testing.assert_array_equal(measure(vit, x), measure(vit.astype("float32"), x.astype("float32")))


def test_a_measure_leaves_the_kernels_of_other_threads_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def forward(*_: object, **__: object) -> None:
        with ThreadPoolExecutor(1) as pool:
            seen.append(pool.submit(disabled_kernels).result())
        raise UserError("seen")

    vit = model()
    monkeypatch.setattr(ViT, "forward", forward)
    with pytest.raises(UserError, match="seen"):
        attention_rollout(vit, images())
    assert seen == [frozenset()]


def test_a_model_on_a_device_is_measured_alike() -> None:
    host, x = shaken(model("float32")), images(dtype="float32")
    device = model("float32").to("strict")
    for name, parameter in device.parameters.items():
        parameter.value[...] = to_backend(host.parameters[name].value, "strict")
    there = to_backend(x, "strict")
    for measure in (attention_distance, attention_rollout):
        np.testing.assert_allclose(measure(device, there), measure(host, x), atol=1e-6)
    np.testing.assert_array_equal(position_similarity(device), position_similarity(host))
    np.testing.assert_array_equal(filter_components(device).components, filter_components(host).components)
    flows = (gradient_flow(minivit.trace(vit, z, [0, 1])) for vit, z in ((device, there), (host, x)))
    for ours, theirs in zip(*(flow[1:] for flow in flows), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5)


def test_the_distance_of_blocks_with_different_numbers_of_heads_is_refused_in_words() -> None:
    vit = shaken(model())
    vit.blocks[1] = layers.EncoderBlock(6, 3, 24).initialize(1, "float64")
    with pytest.raises(UserError, match=r"differ in their numbers of heads \(blocks\.2 has 2, blocks\.1 has 3\)"):
        attention_distance(vit, images())
    assert attention_rollout(vit, images()).shape == (2, 2, 3)
