"""timm's VisionTransformer with its options: its files are read, computed with and written back.

Fifteen combinations are written down, five are drawn by Hypothesis. The model is timm's; its file is imported.
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from minivit import ops
from minivit.arrays import Array
from minivit.weights import load_model, read_tensors, save_model
from minivit.weights.entries import exported, hollow
from minivit.weights.layout import WeightsFile
from minivit.weights.timm import Timm

from .test_timm import assert_equal, channels_first

pytestmark = pytest.mark.conformance

# The sizes are distinct, so that swapped axes change the shape; a norm of 2 numbers would have no gradient.
SMALL: dict[str, Any] = {
    "img_size": (22, 21), "patch_size": (11, 3), "in_chans": 2, "num_classes": 5, "embed_dim": 39, "depth": 2,
    "num_heads": 3, "mlp_ratio": 1.8,
}  # fmt: skip
NO_TOKEN: dict[str, Any] = {"class_token": False, "global_pool": "avg"}
OPTIONS: list[dict[str, Any]] = [
    {"qkv_bias": False, "act_layer": "quick_gelu"},
    {"proj_bias": False, "act_layer": "relu"},
    {"qk_norm": True, "qkv_bias": False},
    {"init_values": 0.3, "act_layer": "gelu_tanh"},
    {"reg_tokens": 4},
    {"reg_tokens": 3, "no_embed_class": True},
    {"no_embed_class": True, "init_values": 0.1, "qk_norm": True},
    {"pos_embed": "none", "reg_tokens": 1},
    {"pre_norm": True},
    {"final_norm": False},
    {"fc_norm": True},
    {"global_pool": "avg", "fc_norm": False, "pool_include_prefix": True, "reg_tokens": 2},
    {**NO_TOKEN, "fc_norm": False, "reg_tokens": 2, "no_embed_class": True},
    {"class_token": False, "global_pool": "map", "act_layer": "gelu_tanh"},
    {"global_pool": "map", "embed_norm_layer": "layernorm", "fc_norm": True, "num_classes": 3, "mlp_ratio": 2.3},
]


def timm_vit(timm: Any, torch: Any, options: dict[str, Any]) -> Any:
    """Return timm's model in float64, with random parameters."""
    theirs = timm.models.vision_transformer.VisionTransformer(**{**SMALL, **options}).double().eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.normal_(0.0, 0.2, generator=generator)
    return theirs


def save(timm: Any, theirs: Any, folder: Path, options: dict[str, Any]) -> None:
    """Write the file and the config.json that timm's `save_for_hf` writes."""
    theirs.pretrained_cfg = {"architecture": "vit_tiny_patch16_224", "input_size": (2, 22, 21)}
    timm.models.save_for_hf(theirs, folder, model_args={**SMALL, **options}, safe_serialization=True)


def check(timm: Any, torch: Any, folder: Path, options: dict[str, Any]) -> None:
    theirs = timm_vit(timm, torch, options)
    save(timm, theirs, folder / "timm", options)
    model = load_model(folder / "timm", dtype="float64")
    generator = np.random.default_rng(2)
    images = generator.normal(size=(6, 22, 21, 2))
    labels = generator.integers(0, model.config.num_classes, 6)
    logits, cache = model.forward(images)
    loss, loss_cache = ops.cross_entropy(logits, labels)
    assert loss_cache is not None
    dimages = model.backward(ops.cross_entropy_backward(1.0, loss_cache), cache)

    x = channels_first(torch, images)
    their_logits = theirs(x)
    their_loss = torch.nn.functional.cross_entropy(their_logits, torch.tensor(labels))
    their_loss.backward()
    assert_equal(logits, their_logits, 1e-10, "logits")
    assert_equal(loss, their_loss, 1e-10, "loss")
    assert_equal(dimages, x.grad.permute(0, 2, 3, 1), 1e-10, "images")
    gradients = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    ours = exported({name: parameter.grad for name, parameter in model.parameters.items()}, Timm().entries(model))
    assert ours.keys() == gradients.keys()
    scale = 1e-3 * math.sqrt(sum(float((gradient**2).sum()) for gradient in gradients.values()))
    for name, gradient in ours.items():
        assert_equal(gradient, gradients[name], 1e-10, name, scale)

    check_float32(torch, theirs, folder, images)
    check_export(timm, torch, theirs, folder, images)


def check_float32(torch: Any, theirs: Any, folder: Path, images: Array) -> None:
    """Our float32 is at most twice as far from float64 as timm's own."""
    x = channels_first(torch, images)
    with torch.no_grad():
        theirs.float()  # also rounds the parameters, as our float32 model has them
        single = theirs(x.float()).double().numpy()
        exact = theirs.double()(x.float().double()).numpy()
    ours = load_model(folder / "timm")(images.astype(np.float32)).astype(np.float64)
    assert np.linalg.norm(ours - exact) <= 2 * np.linalg.norm(single - exact)


def check_export(timm: Any, torch: Any, theirs: Any, folder: Path, images: Array) -> None:
    """What we write has the bits of timm's file, and timm builds the model from the folder alone."""
    model = load_model(folder / "timm", dtype="float64")
    save_model(model, folder / "ours")
    before, after = (read_tensors(folder / name / "model.safetensors")[0] for name in ("timm", "ours"))
    assert before.keys() == after.keys()
    for name, value in before.items():
        assert value.dtype == after[name].dtype
        np.testing.assert_array_equal(value, after[name], err_msg=name)
    again = load_model(folder / "ours", dtype="float64").state_dict()
    assert all(np.array_equal(value, again[name]) for name, value in model.state_dict().items())
    built = timm.create_model(f"local-dir:{folder / 'ours'}", pretrained=True).double().eval()
    built.load_state_dict({name: torch.tensor(value) for name, value in after.items()}, strict=True)
    assert_equal(model(images), built(channels_first(torch, images)), 1e-10, "logits of our export")


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_a_combination_of_options(timm: Any, torch: Any, tmp_path: Path, options: dict[str, Any]) -> None:
    check(timm, torch, tmp_path, options)


FLAGS = ("qkv_bias", "proj_bias", "qk_norm", "no_embed_class", "pre_norm", "final_norm", "class_token")
COMBINATIONS = st.fixed_dictionaries(
    {name: st.booleans() for name in FLAGS}
    | {
        "reg_tokens": st.integers(0, 3),
        "init_values": st.sampled_from([None, 0.1]),
        "act_layer": st.sampled_from(["gelu", "gelu_tanh", "quick_gelu", "relu"]),
        "global_pool": st.sampled_from(["token", "avg", "map"]),
        "fc_norm": st.sampled_from([None, True, False]),
        "embed_norm_layer": st.sampled_from([None, "layernorm"]),
        "pos_embed": st.sampled_from(["learn", "none"]),
    }
).filter(
    lambda options: (
        (options["class_token"] or options["global_pool"] != "token")
        and (options["pos_embed"] == "learn" or not options["no_embed_class"])
    )
)


@settings(
    max_examples=5, deadline=None, derandomize=True, phases=[Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip
@given(options=COMBINATIONS)
def test_drawn_combinations_of_options(
    timm: Any, torch: Any, tmp_path_factory: pytest.TempPathFactory, options: dict[str, Any]
) -> None:
    check(timm, torch, tmp_path_factory.mktemp("options"), options)


def test_a_head_width_of_its_own(timm: Any, torch: Any, tmp_path: Path) -> None:
    """timm's blocks take ``attn_head_dim``, its VisionTransformer does not pass it."""
    from safetensors.torch import save_file

    theirs = timm.models.vision_transformer.VisionTransformer(**SMALL)
    for block in theirs.blocks:
        block.attn = timm.layers.Attention(39, num_heads=3, qkv_bias=True, attn_head_dim=7)
    theirs = theirs.double().eval()
    save_file(theirs.state_dict(), tmp_path / "model.safetensors")
    model = load_model(tmp_path, dtype="float64", num_heads=3, act_layer="gelu", norm_eps=1e-6, img_size=(22, 21))
    assert model.config.head_dim == 7
    images = np.random.default_rng(2).normal(size=(3, 22, 21, 2))
    assert_equal(model(images), theirs(channels_first(torch, images)), 1e-10, "logits")


def architectures(timm: Any, torch: Any) -> dict[str, Any]:
    """Return timm's architectures of the parts that minivit has, without values and with one block of each."""
    from timm.models.vision_transformer import VisionTransformer

    found = {}
    for name in timm.list_models(module="vision_transformer"):
        with torch.device("meta"):
            try:
                theirs = timm.create_model(name, depth=1)
            except (TypeError, RuntimeError):  # it takes no depth, or cannot be built without values
                continue
        if type(theirs) is VisionTransformer and not re.match("test_|aimv2|beit3", name):
            found[name] = theirs
    return found


@pytest.mark.filterwarnings("ignore:.*which has .* blocks")
def test_the_fields_of_timms_architectures_are_known_by_name(timm: Any, torch: Any) -> None:
    """Where a file of timm and the name of its architecture say all, they say what timm builds."""
    compared = 0
    for name, theirs in architectures(timm, torch).items():
        tensors = {key: hollow(tuple(value.shape)) for key, value in theirs.state_dict().items()}
        size = list(theirs.patch_embed.img_size)
        about = {"architecture": name, "global_pool": theirs.global_pool, "pretrained_cfg": {"input_size": [3, *size]}}
        block = theirs.blocks[0]
        plain = type(block).__name__ == "Block" and type(block.attn).__name__ == "Attention"
        plain = plain and type(block.mlp).__name__ == "Mlp" and type(block.norm1).__name__ == "LayerNorm"
        if not plain or any(length % patch for length, patch in zip(size, theirs.patch_embed.patch_size, strict=True)):
            continue  # timm ignores the pixels beyond the last patch
        fields = Timm().fields(WeightsFile(Path(name), tensors, {}, json.loads(json.dumps(about)), dict), {})
        act = type(block.mlp.act).__name__, getattr(block.mlp.act, "approximate", "none")
        act_layer = {"QuickGELU": "quick_gelu", "GELUTanh": "gelu_tanh", "GELU": "gelu"}[act[0]]
        assert act != ("GELU", "tanh")
        assert fields["act_layer"] == act_layer, name
        assert fields["num_heads"] == block.attn.num_heads, name
        assert fields["norm_eps"] == block.norm1.eps, name
        assert fields["img_size"] == tuple(size), name
        assert fields.get("no_embed_class", False) == (theirs.no_embed_class and theirs.num_prefix_tokens > 0), name
        assert fields["global_pool"] == theirs.global_pool, name
        compared += 1
    assert compared > 100
