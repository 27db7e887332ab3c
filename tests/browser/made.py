"""The pages that the tests open, made once: a large model, a run with kept steps, and the unusual ones."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from with_model import WithModel

from minivit import create_model, layers
from minivit.cli import main
from minivit.explorer import explore, write_page
from minivit.explorer.images import LIMITS

MARKUP = '<img src=x onerror="alert(1)"><b>bold</b> & </script>'
FROM_RIGHT_TO_LEFT = "\u202eabc \u05d0\u05d1"  # with an override that nothing ends
DIGITS = ["train", "digits", "--threads", "1", "--epochs", "2", "--warmup-epochs", "0", "--keep-every", "10"]


class Made(NamedTuple):
    """The files of the pages, and the data in each, by name."""

    paths: dict[str, Path]
    data: dict[str, dict[str, Any]]


def data_of(path: Path) -> dict[str, Any]:
    """Return the JSON in a page."""
    found = re.search(
        r'<script type="application/json" id="data">(.*?)</script>', path.read_text(encoding="utf-8"), re.DOTALL
    )
    assert found, f"{path} has no data"
    return json.loads(found[1])


def digit(path: Path) -> str:
    """Write an image like one of the digits, a bright stroke with a hook, and return its path."""
    rows, columns = np.mgrid[-1:1:28j, -1:1:28j]
    stroke = np.exp(-12 * (np.hypot(rows - 0.1, columns) - 0.6) ** 2) * (columns > -0.3)
    Image.fromarray((255 * stroke).astype(np.uint8)).save(path)
    return str(path)


def make_pages(folder: Path) -> Made:
    """Write all pages into a folder."""
    names = ("vit_tiny", "digits", "no_steps", "statistics", "markup", "not_finite", "masked", "sixteen_bits", "own")
    paths = {name: folder / f"{name}.html" for name in names}
    image = digit(folder / "digit.png")

    def inspect(target: Path | str, out: Path, *options: str) -> None:
        assert main(["inspect", str(target), "--out", str(out), *options]) == 0

    inspect("vit_tiny_patch4_32", paths["vit_tiny"], "--image", image, "--label", "3")
    run = folder / "run"
    assert main([*DIGITS, "--run", str(run)]) == 0
    inspect(run, paths["digits"], "--image", image, _turned(image), "--label", "3", "5")
    without = folder / "without_steps"
    shutil.copytree(run, without, ignore=shutil.ignore_patterns("steps"))
    inspect(without, paths["no_steps"], "--image", image)
    model = create_model(
        "vit_micro_patch4_8", patch_size=2, depth=2, embed_dim=8, num_heads=2, num_classes=3, dtype="float64"
    )
    images = np.random.default_rng(0).standard_normal((1, model.config.height, model.config.width, 1))
    write_page(explore(model, images, [1], class_names=(MARKUP, "two", "three"), names=[MARKUP]), paths["markup"])
    two = np.concatenate([images, np.full_like(images, np.nan)])
    strange = explore(model, two, [1, 1], class_names=[FROM_RIGHT_TO_LEFT] * 3, checks=False)
    write_page(strange, paths["not_finite"])
    write_page(explore(model, images, [2], title="Statistics", limits=LIMITS._replace(maps=1000)), paths["statistics"])
    encoder = create_model("vit_micro_patch4_8", patch_size=2, depth=2, embed_dim=8, num_heads=2, num_classes=0)
    masked = layers.MAE(encoder, decoder_dim=8).initialize(seed=0)
    write_page(explore(masked, images.astype("float32"), checks=False), paths["masked"])
    micro: dict[str, Any] = {"patch_size": 2, "depth": 2, "embed_dim": 8, "num_heads": 2, "num_classes": 3}
    light = create_model("vit_micro_patch4_8", dtype="float16", act_layer="relu", **micro)
    write_page(explore(light, images.astype("float16"), [1], checks=False), paths["sixteen_bits"])
    own = WithModel(dataclasses.replace(model.config, depth=3), dtype="float64")
    own.blocks[1] = own.blocks[0]
    write_page(explore(own, images, checks=False), paths["own"])
    return Made(paths, {name: data_of(path) for name, path in paths.items()})


def _turned(image: str) -> str:
    path = Path(image).with_name("turned.png")
    with Image.open(image) as opened:
        opened.rotate(90).save(path)
    return str(path)
