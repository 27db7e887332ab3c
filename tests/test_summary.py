"""The summary of a model agrees with the model's parameters and caches, and the curves are drawn."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from small_run import RECIPE, figures_drawn, run_at

from minivit import Key, ViT, ViTConfig, get_config
from minivit.errors import RunError
from minivit.nn.summary import summarize
from minivit.train.curves import draw_curves, save_curves

RATES = ("drop_rate", "pos_drop_rate", "proj_drop_rate", "attn_drop_rate", "drop_path_rate")
ODD: dict[str, Any] = {
    "img_size": (6, 10),
    "patch_size": (3, 2),
    "in_chans": 5,
    "num_classes": 7,
    "embed_dim": 12,
    "depth": 3,
    "num_heads": 2,
    "mlp_ratio": 13 / 12,
}


def kept_bytes(cache: Any, seen: dict[int, np.ndarray]) -> int:
    """Return the size in bytes of all arrays in a cache that are not in `seen` yet."""
    if isinstance(cache, tuple | list):
        return sum(kept_bytes(part, seen) for part in cache)
    if not isinstance(cache, np.ndarray):
        return 0
    while isinstance(cache.base, np.ndarray):
        cache = cache.base
    known = id(cache) in seen
    seen[id(cache)] = cache
    return 0 if known else cache.nbytes


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("rates", [(), *((name,) for name in RATES), RATES], ids=lambda names: "+".join(names) or "no")
@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"global_pool": "avg"},
        {"global_pool": "avg", "class_token": False, "act_layer": "gelu_tanh"},
        {"depth": 1},
    ],
    ids=str,
)
def test_parameters_and_memory_equal_those_of_the_model(
    fields: dict[str, Any], rates: tuple[str, ...], dtype: str
) -> None:
    model = ViT(ViTConfig(**{**ODD, **fields, **dict.fromkeys(rates, 0.3)}), dtype=dtype)
    summary = summarize(model.config, dtype)
    assert summary.parameters == model.parameters.count

    values = model.parameters.store.values
    kept = []
    for B in (1, 2):
        _, cache = model.forward(np.ones((B, 6, 10, 5), dtype), Key(0, 0, np.arange(B)))
        kept.append(kept_bytes(cache, {id(values): values}))
    assert summary.memory == kept[1] - kept[0]


def test_the_number_of_parameters_of_each_layer_is_right() -> None:
    model = ViT(ViTConfig(**ODD))
    for layer in summarize(model.config).layers:
        named = ("cls_token", "pos_embed") if layer.name == "tokens" else (f"{layer.name}.",)
        sizes = [parameter.size for name, parameter in model.parameters.items() if name.startswith(named)]
        assert layer.parameters == sum(sizes), layer.name


def test_flops_are_two_for_each_multiply_add_of_the_matrix_products() -> None:
    by_layer = {layer.name: layer.flops for layer in summarize(ViTConfig(**ODD)).layers}
    assert by_layer["patch_embed"] == 2 * 10 * 30 * 12
    qkv, scores, gathered, proj = 11 * 12 * 36, 11 * 11 * 12, 11 * 11 * 12, 11 * 12 * 12
    assert by_layer["blocks.2.attn"] == 2 * (qkv + scores + gathered + proj)
    assert by_layer["blocks.2.mlp"] == 2 * (11 * 12 * 13 + 11 * 13 * 12)
    assert by_layer["head"] == 2 * 12 * 7
    assert by_layer["blocks.0.norm1"] == by_layer["tokens"] == 0


def test_published_numbers() -> None:
    base = summarize(get_config("vit_base_patch16_224"))
    assert base.parameters == 86_567_656
    assert base.flops == pytest.approx(2 * 17.56e9, rel=1e-3)
    published = {
        "vit_tiny_patch16_224": 5_717_416,
        "vit_small_patch16_224": 22_050_664,
        "vit_base_patch32_224": 88_224_232,
        "vit_large_patch16_224": 304_326_632,
        "vit_large_patch32_224": 306_535_400,
        "vit_huge_patch14_224": 632_045_800,
    }
    assert {name: summarize(get_config(name)).parameters for name in published} == published


def test_totals_are_the_sums_of_the_layers() -> None:
    values = summarize(ViTConfig(**ODD)).to_dict()
    for total in ("parameters", "flops", "memory"):
        assert values[total] == sum(layer[total] for layer in values["layers"]) > 0


MEASURED = {"val_loss": 1.0, "val_accuracy": 0.5}


def line(epoch: int, **validation: float) -> dict[str, Any]:
    return {"epoch": epoch, "train_loss": 2.0 / epoch, "train_accuracy": 1 - 0.9 / epoch, **validation}


@pytest.mark.parametrize(
    ("epochs", "validation"), [(1, {}), (1, MEASURED), (3, MEASURED), (40, {})], ids=["1", "1-val", "3-val", "40"]
)
def test_curves_are_drawn_into_an_image(tmp_path: Path, epochs: int, validation: dict[str, float]) -> None:
    path = tmp_path / "curves.png"
    assert save_curves([line(epoch, **validation) for epoch in range(1, epochs + 1)], path) == str(path)
    with Image.open(path) as picture:
        assert picture.width > picture.height > 300
        colours = set(map(tuple, np.asarray(picture.convert("RGB")).reshape(-1, 3).tolist()))
    assert (0x3B, 0x6E, 0xA5) in colours
    assert ((0xD1, 0x60, 0x3D) in colours) == bool(validation)


@pytest.mark.parametrize(
    ("choice", "best"),
    [
        ({}, "90.0 % in epoch 1"),
        ({"choose_by": "loss"}, "50.0 % in epoch 2"),
        ({"swa_start": 0.5}, "70.0 % in epoch 3"),
        ({"swa_start": 0.5, "choose_by": "loss"}, "60.0 % in epoch 4"),
    ],
    ids=["accuracy", "loss", "averaged", "averaged-loss"],
)
def test_the_best_epoch_in_curves_is_the_one_that_the_run_chooses(
    choice: dict[str, Any], best: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from matplotlib.axes import Axes

    labels, plot = [], Axes.plot

    def remembering(*points: Any, label: str, **style: Any) -> Any:
        labels.append(label)
        return plot(*points, label=label, **style)

    monkeypatch.setattr(Axes, "plot", remembering)
    run = run_at(tmp_path / "run", replace(RECIPE, epochs=4, **choice))
    measured = enumerate([(0.9, 0.9), (0.5, 0.5), (0.7, 0.8), (0.6, 0.7)], start=1)
    run.write_metrics([line(epoch, step=epoch, val_accuracy=a, val_loss=loss) for epoch, (a, loss) in measured])
    with figures_drawn():
        assert draw_curves(run)
    assert labels[-1] == f"best: {best}"


def test_without_matplotlib_there_are_no_curves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert save_curves([line(1)], tmp_path / "curves.png") is None
    assert not any(tmp_path.iterdir())


def test_curves_that_cannot_be_written_are_an_error(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(RunError, match="taken"):
        save_curves([line(1)], tmp_path / "taken" / "curves.png")


def test_flops_are_those_of_all_patches_and_memory_is_that_of_training() -> None:
    whole = summarize(get_config("vit_tiny_patch4_32"))
    dropped = summarize(get_config("vit_tiny_patch4_32", patch_drop_rate=0.75))
    assert dropped.flops == whole.flops
    assert dropped.memory < whole.memory / 2
