"""``minivit info``: what a model, a run or a weights file is and costs, or the list of models and this machine."""

from __future__ import annotations

import argparse
import platform
import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import threadpoolctl

import minivit
from minivit.arrays import about_backends
from minivit.cli.common import CommandResult, is_path, model_path
from minivit.cli.model_fields import add_set, model_fields
from minivit.cli.reporters import percent
from minivit.cli.terminal import Terminal
from minivit.engine.machine import cores
from minivit.errors import UserError, count_of
from minivit.nn.config import ViTConfig
from minivit.nn.presets import PRESETS, get_config
from minivit.nn.summary import LayerCost, Summary, summarize
from minivit.train.recipe import Recipe
from minivit.train.run_folder import RunFolder
from minivit.weights import fingerprint, load_model, model_metadata
from minivit.weights.load import program_of
from minivit.weights.preprocessing import class_names_of, preprocessing_of

HELP = "show what a model, a run or a model file is and costs, or list all models"
DESCRIPTION = """\
Show for each layer the parameters, the FLOPs per image (forward pass; 2 for
each multiply-add of a matrix product) and the memory per training image
(float32; what the forward pass keeps for the backward pass). Of a run or a
model file, also show its format, its classes, how it prepares images, its
recipe and its accuracy. Without MODEL: show all models, versions, cores and
backends."""
EXAMPLES = """\
examples:
  minivit info
  minivit info vit_tiny_patch4_32
  minivit info runs/digits-1
  minivit info labml.safetensors --set num_heads=8
  minivit info --paper"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "model", nargs="?", metavar="MODEL", help="the name of a model, a run, or a model file or folder"
    )
    parser.add_argument("--paper", action="store_true", help="show table 1 of the paper, computed from the models")
    add_set(parser)


def run(args: argparse.Namespace, terminal: Terminal) -> CommandResult:
    """Run the command."""
    if (args.set and args.model is None) or (args.paper and args.model is not None):
        raise UserError("--set needs a MODEL, and --paper takes none")
    if args.paper:
        return _paper(terminal)
    if args.model is None:
        return _machine(terminal)
    path = Path(args.model).expanduser()
    if args.model in PRESETS or not is_path(args.model):
        config = get_config(args.model, **model_fields(args.set))
        terminal.show(f"{args.model}:", *_described(config), "")
        return CommandResult({"model": args.model, "config": config.to_dict(), **_costs(config, terminal)})
    return _stored(path, args.model, model_fields(args.set), terminal)


def _stored(path: Path, name: str, fields: Mapping[str, Any], terminal: Terminal) -> CommandResult:
    """Describe a run, or a model file or folder."""
    facts: dict[str, str] = {}
    values: dict[str, Any] = {"model": name}
    which = "best"
    if RunFolder.exists(path):
        run = RunFolder.open(path)
        which = "best" if (path / "best").exists() or not (path / "last").exists() else "last"
        result, epochs = run.result(), len(run.metrics())
        facts |= _of_run(run.recipe, result, epochs)
        values |= {"recipe": run.recipe.to_dict(), "result": result, "epochs": epochs}
        if not (path / which).exists():
            return _table(facts, values, terminal)
    file = model_path(name, which)
    about, config = model_metadata(file), load_model(file, **fields).config
    if "num_classes" in fields:
        about = {
            name: value for name, value in about.items() if name != "class_names"
        }  # they are those of the old head
    names = class_names_of(file, about, config)
    first, second = _described(config)
    facts |= {"format": program_of(file), "model": first, "": second}
    facts |= {"file": fingerprint(file), "classes": _shortened(names or (), config.num_classes)}
    values |= {
        "config": config.to_dict(),
        "class_names": names and list(names),
        "fingerprint": facts["file"],
        "format": facts["format"],
        "preprocessing": None,
    }
    if {"mean", "std"} <= about.keys():
        rule = preprocessing_of(file, about, config)
        part = f" of {percent(rule.crop_fraction)}" if rule.crop_fraction < 1 else ""
        facts["images"] = f"{rule.fit}{part} to {config.height} x {config.width}, {rule.interpolation}"
        facts["mean"], facts["std"] = (", ".join(f"{value:.4g}" for value in each) for each in (rule.mean, rule.std))
        values["preprocessing"] = asdict(rule)
    else:
        facts["images"] = "the file does not say how they are prepared; a mean and std of 0.5 are assumed"
    _table(facts, values, terminal)
    terminal.show("")
    return CommandResult(values | _costs(config, terminal))


def _of_run(recipe: Recipe, result: Mapping[str, Any] | None, epochs: int) -> dict[str, str]:
    """Return the rows of the table about a run."""
    facts = {
        "data": recipe.dataset,
        "recipe": f"{recipe.model}, {recipe.optimizer}, lr {recipe.lr:g}, {recipe.batch_size} images a step",
    }
    if recipe.task:
        facts["task"] = f"{recipe.task}; the model is its encoder"
    if result is None:
        return facts | {"state": f"{epochs} of {recipe.epochs} epochs are done; --resume continues"}
    of_images = f"of {result['test_images']:,} test images"
    state = f"finished after {count_of(epochs, 'epoch')}; the best was {result['best_epoch']}"
    if recipe.task:
        return facts | {"state": state, "loss": f"{result['test_loss']:.4f} {of_images}"}
    return facts | {"state": state, "accuracy": f"{percent(result['test_accuracy'])} {of_images}"}


def _table(facts: Mapping[str, str], values: dict[str, Any], terminal: Terminal) -> CommandResult:
    terminal.show(f"{values['model']}:", *(f"{key:<9} {value}" for key, value in facts.items()))
    return CommandResult(values)


def _shortened(names: Sequence[str], count: int) -> str:
    """Return the number of classes and as many of their names as fit in a line of 80 columns."""
    if count == 0:
        return "none: the model has no head"
    if not names:
        return f"{count:,}, without names"
    return textwrap.shorten(f"{count:,}: {', '.join(names)}", 60, placeholder=" ...")


def _costs(config: ViTConfig, terminal: Terminal) -> dict[str, Any]:
    """Show the table of layers, and return the object of it for --json."""
    summary = summarize(config)
    rows = [_row(layer.name, layer) for layer in _once(summary.layers, config.depth)]
    columns = ("layer", ">parameters", ">FLOPs per image", ">memory per training image")
    terminal.table(columns, [*rows, _row("whole model", summary)], total=True)
    state = 16 * summary.parameters
    terminal.show("", f"values, gradients and the two moments of AdamW: {_bytes(state)}, in float32")
    return summary.to_dict()


def _described(config: ViTConfig) -> tuple[str, str]:
    return (
        f"{config.height} x {config.width} pixels, {count_of(config.in_chans, 'channel')}, in "
        f"{count_of(config.num_patches, 'patch', 'patches')} of {config.patch_height} x {config.patch_width}",
        f"width {config.embed_dim}, {count_of(config.depth, 'block')}, {count_of(config.num_heads, 'head')}, "
        f"{config.num_classes or 'no'} classes",
    )


def _once(layers: tuple[LayerCost, ...], depth: int) -> list[LayerCost]:
    """Return the costs with the same layer of all blocks added up: one row for norm1, one for attn, and so on."""
    rows: dict[str, LayerCost] = {}
    for layer in layers:
        name = layer.name
        if name.startswith("blocks."):
            blocks = f"blocks.0-{depth - 1}" if depth > 1 else "blocks.0"
            name = f"{blocks}.{name.split('.', 2)[2]}"
        known = rows.get(name, LayerCost(name, 0, 0, 0))
        rows[name] = LayerCost(
            name, known.parameters + layer.parameters, known.flops + layer.flops, known.memory + layer.memory
        )
    return list(rows.values())


def _row(name: str, cost: LayerCost | Summary) -> tuple[str, str, str, str]:
    return name, f"{cost.parameters:,}", _flops(cost.flops), _bytes(cost.memory)


def _flops(count: int) -> str:
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= size:
            return f"{count / size:.2f} {unit}"
    return str(count)


def _bytes(count: int) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} B"


def _paper(terminal: Terminal) -> CommandResult:
    """Show table 1 of Dosovitskiy et al. 2020, and the parameters counted here, with a head of 1,000 classes."""
    values: list[dict[str, Any]] = []
    rows = []
    for size, printed in (("base", "86M"), ("large", "307M"), ("huge", "632M")):
        names = [name for name in PRESETS if re.fullmatch(rf"vit_{size}_patch(14|16|32)_224", name)]
        counts = {name: summarize(get_config(name)).parameters for name in names}
        config = get_config(names[0])
        numbers = config.depth, config.embed_dim, config.hidden_dim, config.num_heads
        values.append({"model": f"ViT-{size.title()}", "parameters": counts, "params_in_paper": printed})
        values[-1] |= zip(("layers", "hidden_size", "mlp_size", "heads"), numbers, strict=True)
        here = ", ".join(f"{count / 1e6:.1f}M /{get_config(name).patch_height}" for name, count in counts.items())
        rows.append((f"ViT-{size.title()}", *map(str, numbers), printed, here))
    columns = ("Model", ">Layers", ">Hidden size D", ">MLP size", ">Heads", ">Params", "counted, by patch size")
    terminal.table(columns, rows)
    return CommandResult({"models": values})


def _machine(terminal: Terminal) -> CommandResult:
    costs = {name: summarize(config) for name, config in PRESETS.items()}
    columns = ("model", ">parameters", ">FLOPs per image", ">training memory")
    terminal.table(columns, [_row(name, cost) for name, cost in costs.items()])
    libraries = [library for library in threadpoolctl.threadpool_info() if library["user_api"] == "blas"]
    backends = about_backends()
    about = {
        "version": minivit.__version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "blas": ", ".join(f"{library['internal_api']} {library['version']}" for library in libraries) or "unknown",
        "cores": cores(),
    }
    shown = {"minivit": about["version"], **about, **_shown(backends)}
    terminal.show("")
    terminal.table(("this machine", ""), [(name, str(value)) for name, value in shown.items() if name != "version"])
    reasons = (facts["reason"] for facts in backends.values() if facts["reason"])
    terminal.show(
        *(
            line
            for reason in reasons
            for line in textwrap.wrap(reason, 80, break_long_words=False, break_on_hyphens=False)
        )
    )
    terminal.show("", "`minivit info vit_tiny_patch4_32` shows the layers of a model")
    models = {name: {"parameters": c.parameters, "flops": c.flops, "memory": c.memory} for name, c in costs.items()}
    return CommandResult({**about, "backends": backends, "models": models})


def _shown(backends: dict[str, dict[str, Any]]) -> dict[str, str]:
    """Return the rows of the table about backends: the usable ones, their versions, drivers and devices."""
    shown = {"backends": ", ".join(name for name, facts in backends.items() if not facts["reason"])}
    for name, facts in backends.items():
        if facts.get("cuda_runtime"):
            shown[name] = f"{facts['version']} for CUDA {facts['cuda_runtime']}"
        if facts.get("cuda_driver"):
            shown["driver"] = f"supports CUDA {facts['cuda_driver']}"
        for device in facts["devices"]:
            shown[f"{name}:{device['index']}"] = (
                f"{device['name']}, {_bytes(device['memory'])}, compute capability {device['compute_capability']}"
            )
    return shown
