"""The named models are those of timm, vit_pytorch and labml: as many parameters, and the same results at full size."""

from __future__ import annotations

import re
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from minivit.nn.config import ViTConfig
from minivit.nn.presets import get_config, list_models
from minivit.nn.summary import summarize
from minivit.weights import load_model

from .originals import assert_all_gradients_equal, disturb
from .test_labml import their_vit, tracker

__all__ = ["tracker"]  # labml's fixture

pytestmark = [pytest.mark.conformance, pytest.mark.filterwarnings("ignore::DeprecationWarning")]

SIMPLE = {"small": (384, 6), "base": (768, 12)}


def simple_vit(size: str) -> Any:
    import vit_pytorch

    D, heads = SIMPLE[size]
    return vit_pytorch.SimpleViT(
        image_size=224, patch_size=16, num_classes=1000, dim=D, depth=12, heads=heads, mlp_dim=4 * D
    )


def count(theirs: Any) -> int:
    return sum(parameter.numel() for parameter in theirs.parameters())


def test_the_named_models_of_timm_have_as_many_parameters(timm: Any, torch: Any) -> None:
    names = [name for name in list_models() if timm.is_model(name)]
    plain, hybrids = list_models("vit_*_patch*_[23]*4"), list_models("vit_*_r*_[23]*4")
    assert plain
    assert hybrids
    assert names == sorted(plain + hybrids)
    for name in names:
        with torch.device("meta"):
            theirs = timm.create_model(name, num_classes=1000)  # timm's vit_huge has no head by itself
        assert summarize(get_config(name)).parameters == count(theirs), name


@pytest.mark.parametrize("size", SIMPLE)
def test_simple_vits_have_as_many_parameters_as_in_vit_pytorch(timm: Any, torch: Any, size: str) -> None:
    with torch.device("meta"):
        theirs = simple_vit(size)
    assert summarize(get_config(f"simple_vit_{size}_patch16_224")).parameters == count(theirs)


@pytest.mark.usefixtures("tracker")
def test_labmls_model_has_as_many_parameters_apart_from_positions_of_larger_images(timm: Any, torch: Any) -> None:
    with torch.device("meta"):
        theirs = their_vit(torch, 512, 6, 8, 2048, 2048, 10, 4, 3)
    config = get_config("labml_vit_cifar10")
    assert summarize(config).parameters == count(theirs) - (5000 - config.num_tokens) * 512


def load(theirs: Any, folder: Path, **given: Any) -> Any:
    from safetensors.torch import save_file

    save_file(theirs.state_dict(), folder / "model.safetensors")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what is assumed
        return load_model(folder, dtype="float64", **given)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_small_patch16_224", "vit_base_patch16_224"])
def test_models_of_timm_at_full_size(timm: Any, torch: Any, tmp_path: Path, name: str) -> None:
    torch.manual_seed(0)
    theirs = disturb(torch, timm.create_model(name))
    model = load(theirs, tmp_path)
    assert model.config == get_config(name)
    assert_all_gradients_equal(torch, theirs, theirs, model, "timm", B=1)


@pytest.mark.timeout(600)
def test_simple_vit_at_full_size(timm: Any, torch: Any, tmp_path: Path) -> None:
    from vit_pytorch.simple_vit import posemb_sincos_2d

    torch.manual_seed(0)
    theirs = disturb(torch, simple_vit("small"))
    torch.set_default_dtype(torch.float64)
    theirs.pos_embedding = posemb_sincos_2d(14, 14, 384, dtype=torch.float64)
    torch.set_default_dtype(torch.float32)
    model = load(theirs, tmp_path, img_size=224)
    assert_all_gradients_equal(torch, theirs, theirs, model, "vit_pytorch", B=1)


@pytest.mark.usefixtures("tracker")
def test_labmls_experiment_at_full_size(timm: Any, torch: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    theirs = disturb(torch, their_vit(torch, 512, 6, 8, 2048, 2048, 10, 4, 3))
    model = load(theirs, tmp_path, num_heads=8)
    assert_all_gradients_equal(torch, theirs, theirs, model, "labml")


def built(name: str) -> ViTConfig:
    """Return the configuration that a line of docs/systems.md builds."""
    page = (Path(__file__).parents[2] / "docs" / "systems.md").read_text(encoding="utf-8")
    row = next(row for row in page.splitlines() if row.startswith(f"| {name} |"))
    line = re.search(r"`minivit\.create_model\((.*?)\)`", row)
    assert line
    config: ViTConfig = eval(f"get_config({line[1]})", {"get_config": get_config})
    return config


def test_the_page_builds_what_the_files_of_others_hold(timm: Any, torch: Any, tmp_path: Path) -> None:
    import transformers
    import vit_pytorch

    documented = {"image_size": 256, "patch_size": 32, "num_classes": 1000, "dim": 1024, "depth": 6, "heads": 16}
    theirs = vit_pytorch.ViT(**documented, mlp_dim=2048)
    assert replace(load(theirs, tmp_path).config, fc_norm=None) == built("lucidrains' ViT")
    theirs = transformers.ViTForImageClassification(transformers.ViTConfig(num_labels=1000))
    theirs.save_pretrained(tmp_path / "folder")
    assert load_model(tmp_path / "folder").config == built("Hugging Face transformers' ViT")
