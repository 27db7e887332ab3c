"""Comparison with PyTorch and timm in float64: logits, loss, every gradient, optimisers, model files.

    pip install 'minivit[test,conformance]'
    pytest tests/conformance -m conformance --errors

`--errors` prints the largest errors. The tests need the torchvision version that belongs to the installed torch. If its
compiled library does not load, torchvision_operators.py declares its operators, so that any build of that version works
with a CPU build of torch.
"""

from __future__ import annotations

import json
import re
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from minivit import ops
from minivit.arrays import Array
from minivit.engine import Engine
from minivit.errors import UserError
from minivit.nn.config import ViTConfig
from minivit.nn.presets import PRESETS, create_model, list_models
from minivit.nn.vit import ViT
from minivit.train.optimizers import SGD, Adam, AdamW, Optimizer, clip_gradients
from minivit.weights import load_model, read_tensors, save_model
from minivit.weights.timm import entry

from .errors import record

pytestmark = pytest.mark.conformance

# The sizes are distinct, so that swapped axes change the shape.
SMALL: dict[str, Any] = {
    "img_size": (22, 21), "patch_size": (11, 3), "in_chans": 2, "num_classes": 5, "embed_dim": 39, "depth": 2,
    "num_heads": 3, "mlp_ratio": 1.8,
}  # fmt: skip
MODELS: dict[str, ViTConfig] = {
    "class token": ViTConfig(**SMALL),
    "class token, tanh, depth 3": ViTConfig(**SMALL | {"act_layer": "gelu_tanh", "depth": 3}),
    "mean": ViTConfig(**SMALL, global_pool="avg"),
    "mean, no class token, tanh": ViTConfig(**SMALL, global_pool="avg", class_token=False, act_layer="gelu_tanh"),
    "other eps": ViTConfig(**SMALL, norm_eps=1e-3),
    "vit_tiny_patch4_32": create_model("vit_tiny_patch4_32", depth=2).config,
}


def random_model(config: ViTConfig) -> ViT:
    """Return a float64 model with random parameters."""
    model = ViT(config, dtype="float64")
    generator = np.random.default_rng(1)
    for parameter in model.parameters.values():
        parameter.value[...] = generator.normal(0.0, 0.2, parameter.shape)
    return model


def batch(config: ViTConfig, B: int = 6) -> tuple[Array, Array]:
    generator = np.random.default_rng(2)
    images = generator.normal(size=(B, config.height, config.width, config.in_chans))
    return images, generator.integers(0, config.num_classes, B)


def exported(name: str, value: Array, config: ViTConfig) -> Array:
    return entry(name, value.shape, config).split(value)[0]


def timm_model(model: ViT, folder: Path) -> Any:
    """Return timm's model with the weights of `model`, loaded strictly from the file that minivit writes."""
    from safetensors.torch import load_file

    from benchmarks.systems.pytorch import timm_vit

    save_model(model, folder)
    theirs = timm_vit(model.config).double()
    theirs.load_state_dict(load_file(folder / "model.safetensors"), strict=True)
    return theirs.eval()


def channels_first(torch: Any, images: Array) -> Any:
    return torch.tensor(images).permute(0, 3, 1, 2).contiguous().requires_grad_()


def assert_equal(ours: Array, theirs: Any, bound: float, name: str = "", scale: float = 0.0) -> None:
    """Assert that the difference is at most `bound` times the norm of `theirs`, or times `scale` if that is larger."""
    reference = theirs.detach().numpy() if hasattr(theirs, "detach") else np.asarray(theirs)
    assert ours.shape == reference.shape, name
    assert ours.dtype == np.float64, name
    norm = float(np.linalg.norm(reference))
    assert norm > 0, f"{name} is zero: nothing is compared"
    error = float(np.linalg.norm(ours - reference)) / max(norm, scale)
    record(name, error)
    assert error <= bound, f"{name}: {error:.1e}"


def assert_gradients_equal(model: ViT, theirs: Any) -> None:
    gradients = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    assert gradients.keys() == model.parameters.keys()
    scale = 1e-3 * np.sqrt(sum(float((gradient**2).sum()) for gradient in gradients.values()))
    for name, parameter in model.parameters.items():
        ours = exported(name, parameter.grad, model.config)
        assert_equal(ours, gradients[name], 1e-10, name, scale)


@pytest.mark.parametrize("targets", ["labels", "smoothed labels", "soft", "smoothed soft"])
@pytest.mark.parametrize("name", MODELS)
def test_logits_loss_and_all_gradients(timm: Any, torch: Any, tmp_path: Path, name: str, targets: str) -> None:
    config = MODELS[name]
    model = random_model(config)
    theirs = timm_model(model, tmp_path)
    images, labels = batch(config)
    smoothing = 0.1 if "smoothed" in targets else 0.0
    if "soft" in targets:
        labels = np.random.default_rng(3).dirichlet(np.ones(config.num_classes), len(images))

    logits, cache = model.forward(images)
    loss, loss_cache = ops.cross_entropy(logits, labels, smoothing)
    assert loss_cache is not None
    dimages = model.backward(ops.cross_entropy_backward(1.0, loss_cache), cache)

    x = channels_first(torch, images)
    their_logits = theirs(x)
    their_loss = torch.nn.functional.cross_entropy(their_logits, torch.tensor(labels), label_smoothing=smoothing)
    their_loss.backward()

    assert_equal(logits, their_logits, 1e-10, "logits")
    assert_equal(loss, their_loss, 1e-10, "loss")
    assert_equal(dimages, x.grad.permute(0, 2, 3, 1), 1e-10, "images")
    assert_gradients_equal(model, theirs)


@pytest.mark.parametrize("name", ["class token", "mean"])
def test_the_engine_with_micro_batches(timm: Any, torch: Any, tmp_path: Path, name: str) -> None:
    model = random_model(MODELS[name])
    theirs = timm_model(model, tmp_path)
    images, labels = batch(MODELS[name], B=7)
    with Engine(model, threads=2, micro_batch=3) as engine:
        loss = engine.loss_and_gradients(images, labels, label_smoothing=0.1)
        logits = engine.predict(images)
    x = channels_first(torch, images)
    their_logits = theirs(x)
    their_loss = torch.nn.functional.cross_entropy(their_logits, torch.tensor(labels), label_smoothing=0.1)
    their_loss.backward()
    assert_equal(logits, their_logits, 1e-10, "logits")
    assert_equal(loss, their_loss, 1e-10, "loss")
    assert_gradients_equal(model, theirs)


OPTIMIZERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "AdamW": (AdamW, {"weight_decay": 0.3}),
    "AdamW, other settings": (AdamW, {"betas": (0.8, 0.95), "eps": 1e-3, "weight_decay": 0.1}),
    "Adam": (Adam, {"weight_decay": 0.0}),
    "Adam with decay": (Adam, {"weight_decay": 0.3}),
    "SGD": (SGD, {"momentum": 0.0, "weight_decay": 0.0}),
    "SGD with momentum and decay": (SGD, {"momentum": 0.9, "weight_decay": 0.3}),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_five_steps_of_an_optimiser(torch: Any, name: str) -> None:
    ours_class, settings = OPTIMIZERS[name]
    model = random_model(MODELS["class token"])
    tensors = {key: torch.tensor(parameter.value.copy()) for key, parameter in model.parameters.items()}
    before = {key: tensor.clone() for key, tensor in tensors.items()}
    groups = [
        {"params": [tensors[key]], "weight_decay": settings["weight_decay"] if parameter.decay else 0.0}
        for key, parameter in model.parameters.items()
    ]
    theirs = getattr(torch.optim, ours_class.__name__)(groups, lr=0.03, **settings)
    ours: Optimizer = ours_class(model, lr=0.03, **settings)
    generator = np.random.default_rng(4)
    for lr in (0.03, 0.02, 0.05, 0.01, 0.04):
        ours.lr = lr
        for group in theirs.param_groups:
            group["lr"] = lr
        for key, parameter in model.parameters.items():
            parameter.grad[...] = generator.normal(0.0, 0.5, parameter.shape)
            tensors[key].grad = torch.tensor(parameter.grad.copy())
        ours.step()
        theirs.step()
        for key, parameter in model.parameters.items():
            assert_equal(parameter.value - before[key].numpy(), tensors[key] - before[key], 1e-12, key)


@pytest.mark.parametrize("max_norm", [0.1, 1e6])
def test_clipping_by_the_global_norm(torch: Any, max_norm: float) -> None:
    model = random_model(MODELS["class token"])
    generator = np.random.default_rng(5)
    tensors = {}
    for key, parameter in model.parameters.items():
        parameter.grad[...] = generator.normal(size=parameter.shape)
        tensors[key] = torch.zeros(parameter.shape, dtype=torch.float64)
        tensors[key].grad = torch.tensor(parameter.grad.copy())
    their_norm = torch.nn.utils.clip_grad_norm_(tensors.values(), max_norm)
    assert_equal(clip_gradients(model.parameters.store, max_norm), their_norm, 1e-12, "norm")
    for key, parameter in model.parameters.items():
        assert_equal(parameter.grad, tensors[key].grad, 1e-12, key)


@pytest.mark.parametrize("name", [name for name in MODELS if name != "other eps"])
def test_timm_builds_our_model_from_its_folder(timm: Any, torch: Any, tmp_path: Path, name: str) -> None:
    model = random_model(MODELS[name])
    extra = {"class_names": ["a", "b"], "mean": [0.1] * model.config.in_chans, "std": [0.2] * model.config.in_chans}
    save_model(model, tmp_path, extra=extra)
    theirs = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    images, _ = batch(model.config)
    assert_equal(model(images), theirs.double()(channels_first(torch, images)), 1e-6, "logits")  # loaded as float32
    assert theirs.pretrained_cfg["mean"] == extra["mean"]
    assert theirs.pretrained_cfg["label_names"] == ["a", "b"]
    assert tuple(theirs.pretrained_cfg["input_size"]) == (model.config.in_chans, *images.shape[1:3])


@pytest.mark.parametrize("name", list_models("vit_*_patch*_[23]*4"))
def test_presets_have_the_shapes_of_timms_models(timm: Any, torch: Any, name: str) -> None:
    config = PRESETS[name]
    with torch.device("meta"):
        theirs = timm.create_model(name, num_classes=config.num_classes)
    ours = create_model(name, depth=1)  # all blocks have the same shapes
    shapes = {key: exported(key, value, config).shape for key, value in ours.state_dict().items()}
    first = {
        key: tuple(value.shape) for key, value in theirs.state_dict().items() if not re.match(r"blocks\.[1-9]", key)
    }
    assert shapes == first
    assert len(theirs.blocks) == config.depth
    assert {block.attn.num_heads for block in theirs.blocks} == {config.num_heads}
    assert {module.eps for module in theirs.modules() if isinstance(module, torch.nn.LayerNorm)} == {config.norm_eps}


def test_timm_refuses_another_eps_unless_it_is_passed(timm: Any, torch: Any, tmp_path: Path) -> None:
    model = random_model(MODELS["other eps"])
    save_model(model, tmp_path)
    with pytest.raises(KeyError, match=r"eps=0\.001"):
        timm.create_model(f"local-dir:{tmp_path}", pretrained=True)
    norm_layer = partial(timm.layers.LayerNorm, eps=1e-3)
    theirs = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, norm_layer=norm_layer).eval()
    images, _ = batch(model.config)
    assert_equal(model(images), theirs.double()(channels_first(torch, images)), 1e-6, "logits")


@pytest.mark.parametrize("global_pool", ["token", "avg"])
def test_a_model_file_of_timm_is_loaded(timm: Any, torch: Any, tmp_path: Path, global_pool: str) -> None:
    from safetensors.torch import save_file

    torch.manual_seed(0)
    theirs = timm.create_model("vit_tiny_patch16_224", img_size=48, depth=2, num_classes=9, global_pool=global_pool)
    save_file(theirs.state_dict(), tmp_path / "any name.safetensors")
    with pytest.warns(UserWarning, match="assumed num_heads=3, act_layer='gelu', norm_eps=1e-06"):
        model = load_model(tmp_path / "any name.safetensors", dtype="float64")
    images, _ = batch(model.config)
    assert_equal(model(images), theirs.double().eval()(channels_first(torch, images)), 1e-10, "logits")


def test_a_folder_saved_by_timm_is_loaded(timm: Any, torch: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    arguments = {"img_size": (32, 48), "depth": 2, "num_classes": 9, "act_layer": "gelu_tanh"}
    theirs = timm.create_model("vit_small_patch16_224", **arguments)
    timm.models.save_for_hf(theirs, tmp_path, model_args=arguments, safe_serialization=True)
    model = load_model(tmp_path, dtype="float64")
    images, _ = batch(model.config)
    assert_equal(model(images), theirs.double().eval()(channels_first(torch, images)), 1e-10, "logits")


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("deit_tiny_distilled_patch16_224", {}),
    ],
)
def test_other_transformers_of_timm_are_refused(timm: Any, tmp_path: Path, name: str, arguments: Any) -> None:
    from safetensors.torch import save_file

    save_file(timm.create_model(name, depth=1, **arguments).state_dict(), tmp_path / "model.safetensors")
    with pytest.raises(
        UserError, match=r"model\.safetensors holds a Vision Transformer with .*which minivit does not support"
    ):
        load_model(tmp_path, num_heads=2, act_layer="gelu", norm_eps=1e-6)


@pytest.mark.parametrize(
    "name", ["vit_base_patch16_clip_224", "vit_small_patch14_dinov2", "vit_base_patch16_siglip_224"]
)
def test_relatives_of_the_vision_transformer_load_from_their_tensors(
    timm: Any, torch: Any, tmp_path: Path, name: str
) -> None:
    from safetensors.torch import save_file

    options = {"depth": 1, "img_size": 28 if "14" in name else 32, "num_classes": 5}
    theirs = timm.create_model(name, **options)
    save_file(theirs.state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"architecture": name, "num_classes": 5, "model_args": options}))
    model = load_model(tmp_path, dtype="float64")
    images, _ = batch(model.config)
    assert_equal(model(images), theirs.double().eval()(channels_first(torch, images)), 1e-10, "logits")


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_files_have_the_same_values_as_in_torch(torch: Any, tmp_path: Path, dtype: str) -> None:
    from safetensors.torch import save_file

    tensor = torch.randn(7, 5, generator=torch.Generator().manual_seed(0)).to(getattr(torch, dtype))
    save_file({"x": tensor}, tmp_path / "x.safetensors")
    np.testing.assert_array_equal(read_tensors(tmp_path / "x.safetensors")[0]["x"], tensor.float().numpy())


def upstream(torch: Any, y: Any) -> tuple[Array, Any]:
    dy = np.random.default_rng(6).normal(size=tuple(y.shape))
    return dy, torch.tensor(dy)


def leaves(torch: Any, *shapes: tuple[int, ...]) -> tuple[list[Array], list[Any]]:
    generator = np.random.default_rng(7)
    arrays = [generator.normal(size=shape) for shape in shapes]
    return arrays, [torch.tensor(array, requires_grad=True) for array in arrays]


def test_linear(torch: Any) -> None:
    (x, weight, bias), (tx, tweight, tbias) = leaves(torch, (2, 3, 5), (5, 7), (7,))
    y, cache = ops.linear(x, weight, bias)
    assert cache is not None
    theirs = torch.nn.functional.linear(tx, tweight.T, tbias)
    dy, tdy = upstream(torch, theirs)
    theirs.backward(tdy)
    assert_equal(y, theirs, 1e-13)
    for ours, leaf in zip(ops.linear_backward(dy, cache), (tx, tweight, tbias), strict=True):
        assert ours is not None
        assert_equal(ours, leaf.grad, 1e-13)


@pytest.mark.parametrize("eps", [1e-6, 1e-2])
def test_layer_norm(torch: Any, eps: float) -> None:
    (x, weight, bias), (tx, tweight, tbias) = leaves(torch, (2, 3, 11), (11,), (11,))
    y, cache = ops.layer_norm(x, weight, bias, eps)
    assert cache is not None
    theirs = torch.nn.functional.layer_norm(tx, (11,), tweight, tbias, eps)
    dy, tdy = upstream(torch, theirs)
    theirs.backward(tdy)
    assert_equal(y, theirs, 1e-12)
    for ours, leaf in zip(ops.layer_norm_backward(dy, cache), (tx, tweight, tbias), strict=True):
        assert_equal(ours, leaf.grad, 1e-12)


@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_gelu(torch: Any, approximate: str) -> None:
    x = np.concatenate([np.linspace(-9, 9, 1001), [0.0, 1e-9, -1e-9, 30.0]])
    tx = torch.tensor(x, requires_grad=True)
    y, cache = ops.gelu(x, approximate)
    assert cache is not None
    theirs = torch.nn.functional.gelu(tx, approximate=approximate)
    dy, tdy = upstream(torch, theirs)
    theirs.backward(tdy)
    np.testing.assert_allclose(y, theirs.detach().numpy(), rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(ops.gelu_backward(dy, cache), tx.grad.numpy(), rtol=1e-12, atol=1e-14)


def test_softmax(torch: Any) -> None:
    (x,), (tx,) = leaves(torch, (2, 3, 7))
    y, cache = ops.softmax(x)
    assert cache is not None
    theirs = torch.softmax(tx, dim=-1)
    dy, tdy = upstream(torch, theirs)
    theirs.backward(tdy)
    assert_equal(y, theirs, 1e-13)
    assert_equal(ops.softmax_backward(dy, cache), tx.grad, 1e-13)


@pytest.mark.parametrize("num_heads", [1, 3])
def test_attention(torch: Any, num_heads: int) -> None:
    B, N, K = 2, 7, 5
    (qkv,), (tqkv,) = leaves(torch, (B, N, 3 * num_heads * K))
    y, cache = ops.attention(qkv, num_heads)
    assert cache is not None
    q, k, v = tqkv.reshape(B, N, 3, num_heads, K).permute(2, 0, 3, 1, 4)
    gathered = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    theirs = gathered.transpose(1, 2).reshape(B, N, num_heads * K)
    dy, tdy = upstream(torch, theirs)
    theirs.backward(tdy)
    assert_equal(y, theirs, 1e-12)
    assert_equal(ops.attention_backward(dy, cache), tqkv.grad, 1e-12)


def test_patches_and_their_projection_are_a_convolution(torch: Any) -> None:
    (x, weight), (tx, tweight) = leaves(torch, (2, 22, 21, 2), (11 * 3 * 2, 13))
    cut, cut_cache = ops.patches(x, (11, 3))
    y, cache = ops.linear(cut, weight, np.zeros(13))
    assert cache is not None
    kernel = tweight.reshape(11, 3, 2, 13).permute(3, 2, 0, 1)
    convolved = torch.nn.functional.conv2d(tx.permute(0, 3, 1, 2), kernel, stride=(11, 3))
    theirs = convolved.flatten(2).transpose(1, 2)
    dy, tdy = upstream(torch, theirs)
    theirs.backward(tdy)
    dcut, dweight, _ = ops.linear_backward(dy, cache)
    assert_equal(y, theirs, 1e-12)
    assert_equal(dweight, tweight.grad, 1e-12)
    assert_equal(ops.patches_backward(dcut, cut_cache), tx.grad, 1e-12)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.2])
@pytest.mark.parametrize("soft", [False, True])
def test_cross_entropy(torch: Any, soft: bool, label_smoothing: float) -> None:
    (logits,), (tlogits,) = leaves(torch, (5, 7))
    generator = np.random.default_rng(8)
    labels = generator.uniform(size=(5, 7)) if soft else generator.integers(0, 7, 5)
    loss, cache = ops.cross_entropy(logits, labels, label_smoothing)
    assert cache is not None
    theirs = torch.nn.functional.cross_entropy(tlogits, torch.tensor(labels), label_smoothing=label_smoothing)
    (3.0 * theirs).backward()
    assert_equal(loss, theirs, 1e-13)
    assert_equal(ops.cross_entropy_backward(3.0, cache), tlogits.grad, 1e-13)
