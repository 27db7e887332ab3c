"""Hugging Face transformers opens the folders that `save_model` writes; its own ViT is read, computed and written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from minivit.data.images import decode
from minivit.nn.presets import create_model
from minivit.ops.augment import normalize
from minivit.weights import load_model, model_metadata, save_model
from minivit.weights.preprocessing import preprocessing_of

from .originals import (
    assert_all_gradients_equal,
    assert_export_equal,
    assert_float32_as_close,
    images_of,
    randomise,
)
from .test_timm import assert_equal, channels_first

pytestmark = pytest.mark.conformance


@pytest.fixture
def transformers(timm: Any) -> Any:
    try:
        import transformers
    except ImportError as error:
        pytest.fail(f"this test opens a model with transformers: pip install 'minivit[test,conformance]' ({error})")
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    return transformers


@pytest.mark.parametrize("C", [1, 3])
@pytest.mark.parametrize("rule", [{}, {"crop_pct": 0.9, "interpolation": "bilinear"}, {"crop_mode": "squash"}], ids=str)
def test_transformers_opens_a_model_with_its_labels_and_preprocessing(
    transformers: Any, timm: Any, torch: Any, tmp_path: Path, C: int, rule: dict[str, Any]
) -> None:
    about: dict[str, Any] = {
        "class_names": ["cat", "dog", "ü"],
        "mean": [0.5, 0.4, 0.3][:C],
        "std": [0.2, 0.3, 0.4][:C],
    }
    model = create_model("vit_micro_patch4_8", img_size=32, in_chans=C, num_classes=3, depth=2, mlp_ratio=2.5)
    head = model.parameters["head.weight"].value
    head[...] = np.random.default_rng(0).normal(size=head.shape)
    save_model(model, tmp_path / "run" / "best", extra={**about, **rule})
    shape = (50, 70, 3) if C == 3 else (50, 70)
    image = Image.fromarray(np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8))
    image.save(tmp_path / "x.png")

    fit = {"center": "crop", "squash": "squash"}[rule.get("crop_mode", "center")]
    crop, interpolation = rule.get("crop_pct", 1.0), rule.get("interpolation", "bicubic")
    pixels, _ = decode(tmp_path / "x.png", (32, 32), C, crop, interpolation, fit)
    logits = model(normalize(pixels[None], about["mean"], about["std"], np.float32))

    for where in ({}, {"subfolder": "best"}):
        folder = tmp_path / "run" if where else tmp_path / "run" / "best"
        theirs = transformers.AutoModelForImageClassification.from_pretrained(folder, **where).eval()
        assert theirs.config.id2label == dict(enumerate(about["class_names"]))
        with torch.no_grad():
            processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "run" / "best")
            inputs = processor(image, return_tensors="pt")["pixel_values"]
            np.testing.assert_allclose(theirs(inputs).logits, logits, rtol=1e-4, atol=1e-3)
    if C == 3:  # the pipeline makes every image RGB
        best = transformers.pipeline("image-classification", model=str(tmp_path / "run" / "best"))(image)[0]
        weights = np.exp(logits[0] - logits[0].max())
        assert best["label"] == about["class_names"][int(logits.argmax())]
        np.testing.assert_allclose(best["score"], weights.max() / weights.sum(), rtol=1e-3)
    same = timm.create_model(f"local-dir:{tmp_path / 'run' / 'best'}", pretrained=True).eval()
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(same))
    with torch.no_grad():
        np.testing.assert_allclose(same(transform(image)[None]), logits, rtol=1e-4, atol=1e-3)
    assert same.pretrained_cfg["label_names"] == about["class_names"]


SMALL: dict[str, Any] = {
    "image_size": [22, 21], "patch_size": [11, 3], "num_channels": 2, "num_labels": 5, "hidden_size": 39,
    "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 70,
}  # fmt: skip


def their_vit(transformers: Any, torch: Any, kind: str, **options: Any) -> Any:
    config = transformers.ViTConfig(**{**SMALL, **options}, attn_implementation="sdpa")
    return randomise(torch, getattr(transformers, kind)(config))


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("ViTForImageClassification", {}),
        ("ViTForImageClassification", {"qkv_bias": False, "hidden_act": "gelu_new", "layer_norm_eps": 1e-3}),
        ("ViTForImageClassification", {"hidden_act": "quick_gelu", "image_size": 33, "patch_size": 11}),
        ("ViTForImageClassification", {"hidden_act": "relu", "head_dim": 7}),
        ("ViTForImageClassification", {"num_labels": 0}),
        ("ViTModel", {}),
        ("ViTModel", {"pooler_output_size": 17, "pooler_act": "relu"}),
    ],
    ids=str,
)
def test_their_vit_is_computed_and_written_as_they_do(
    transformers: Any, torch: Any, tmp_path: Path, kind: str, options: dict[str, Any]
) -> None:
    theirs = their_vit(transformers, torch, kind, **options)
    theirs.save_pretrained(tmp_path / "theirs")
    model = load_model(tmp_path / "theirs", dtype="float64")

    def forward(x: Any) -> Any:
        output = theirs(x)
        return output.logits if kind == "ViTForImageClassification" else output.pooler_output

    written = assert_export_equal(tmp_path / "theirs/model.safetensors", tmp_path / "ours", "huggingface", model)
    read = transformers.AutoModel if kind == "ViTModel" else transformers.AutoModelForImageClassification
    again, report = read.from_pretrained(written.parent, output_loading_info=True)
    assert not any(report.values()), report
    assert type(again) is type(theirs)
    again = again.double().eval()
    for name, value in theirs.state_dict().items():
        assert torch.equal(value.float(), again.state_dict()[name].float()), name
    x = channels_first(torch, images_of(model))
    theirs, original = again, theirs
    assert_equal(model(images_of(model)), forward(x), 1e-10, "logits of our export")
    theirs = original
    assert_all_gradients_equal(torch, theirs, forward, model, "huggingface")
    assert_float32_as_close(torch, theirs, forward, model)


def test_shards_in_half_precision_and_names_in_memory_are_read(transformers: Any, torch: Any, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    theirs = their_vit(transformers, torch, "ViTForImageClassification").to(torch.bfloat16)
    theirs.save_pretrained(tmp_path / "shards", max_shard_size="8KB")
    assert (tmp_path / "shards" / "model.safetensors.index.json").exists()
    theirs.float().save_pretrained(tmp_path / "one")
    save_file(theirs.state_dict(), tmp_path / "memory.safetensors")
    (tmp_path / "config.json").write_text((tmp_path / "one/config.json").read_text())
    model = load_model(tmp_path / "one")
    for path in (tmp_path / "shards", tmp_path / "memory.safetensors"):
        other = load_model(path)
        assert other.config == model.config
        assert all(np.array_equal(value, other.state_dict()[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("C", [1, 3])
@pytest.mark.parametrize(
    "rule",
    [
        {},
        {"crop_pct": 0.8, "interpolation": "bilinear"},  # transformers cuts an odd border otherwise
        {"crop_mode": "squash"},
        {"crop_mode": "squash", "crop_pct": 0.8},
    ],
    ids=str,
)
def test_the_images_of_an_exported_folder_are_prepared_as_ours(
    transformers: Any, tmp_path: Path, C: int, rule: dict[str, Any]
) -> None:
    about: dict[str, Any] = {
        "class_names": ["cat", "dog", "ü"],
        "mean": [0.5, 0.4, 0.3][:C],
        "std": [0.2, 0.3, 0.4][:C],
    }
    model = create_model("vit_micro_patch4_8", img_size=32, in_chans=C, num_classes=3, depth=1)
    save_model(model, tmp_path / "x", format="huggingface", extra=about | rule)
    shape = (50, 70, 3) if C == 3 else (50, 70)
    image = Image.fromarray(np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8))
    image.save(tmp_path / "x.png")
    theirs = transformers.AutoModelForImageClassification.from_pretrained(tmp_path / "x")
    assert theirs.config.id2label == dict(enumerate(about["class_names"]))
    for folder in (tmp_path / "x", tmp_path / "again"):
        if folder.name == "again":  # as transformers writes the processor
            theirs.save_pretrained(folder)
            transformers.AutoImageProcessor.from_pretrained(tmp_path / "x").save_pretrained(folder)
            found = model_metadata(folder)
            assert found["class_names"] == about["class_names"]
        else:
            found = about | rule
        rules = preprocessing_of(folder, found, model.config)
        pixels, _ = decode(tmp_path / "x.png", (32, 32), C, **rules_of(rules))
        ours = normalize(pixels[None], rules.mean, rules.std, np.float32)
        inputs = transformers.AutoImageProcessor.from_pretrained(folder)(image, return_tensors="pt")["pixel_values"]
        difference = np.abs(inputs.permute(0, 2, 3, 1).numpy() - ours) * np.asarray(about["std"])
        assert difference.max() <= 1.01 / 255


def rules_of(rules: Any) -> dict[str, Any]:
    return {"crop_fraction": rules.crop_fraction, "interpolation": rules.interpolation, "fit": rules.fit}
