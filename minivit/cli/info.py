"""``minivit info``: the size and cost of a model, or the list of models and the properties of this machine."""

from __future__ import annotations

import argparse
import platform
from typing import Any

import numpy as np
import threadpoolctl

import minivit
from minivit.arrays import about_backends
from minivit.cli.common import CommandResult
from minivit.cli.terminal import Terminal
from minivit.engine.machine import cores
from minivit.nn.config import ViTConfig
from minivit.nn.presets import PRESETS, get_config
from minivit.nn.summary import LayerCost, Summary, summarize

HELP = "show parameters, FLOPs and memory of a model, or list all models and this machine"
DESCRIPTION = """\
Show for each layer the parameters, the FLOPs per image (forward pass; 2 for each
multiply-add of a matrix product) and the memory per training image (float32; what
the forward pass keeps for the backward pass). Without MODEL: show all models,
versions, cores and backends."""
EXAMPLES = """\
examples:
  minivit info
  minivit info vit_tiny_patch4_32"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("model", nargs="?", metavar="MODEL", help="the name of a model")


def run(args: argparse.Namespace, terminal: Terminal) -> CommandResult:
    """Run the command."""
    return _model(args.model, terminal) if args.model else _machine(terminal)


def _model(name: str, terminal: Terminal) -> CommandResult:
    config = get_config(name)
    summary = summarize(config)
    terminal.show(f"{name}: {_described(config)}", "")
    rows = [_row(layer.name, layer) for layer in _once(summary.layers, config.depth)]
    columns = ("layer", ">parameters", ">FLOPs per image", ">memory per training image")
    terminal.table(columns, [*rows, _row("whole model", summary)], total=True)
    state = 16 * summary.parameters
    terminal.show("", f"values, gradients and the two moments of AdamW: {_bytes(state)}, in float32")
    return CommandResult({"model": name, "config": config.to_dict(), **summary.to_dict()})


def _described(config: ViTConfig) -> str:
    return (
        f"{config.height} x {config.width} pixels in {config.num_patches} patches of "
        f"{config.patch_height} x {config.patch_width}, width {config.embed_dim}, {config.depth} blocks, "
        f"{config.num_heads} heads, {config.num_classes} classes"
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


def _machine(terminal: Terminal) -> CommandResult:
    costs = {name: summarize(config) for name, config in PRESETS.items()}
    columns = ("model", ">parameters", ">FLOPs per image", ">memory per training image")
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
    terminal.show(*(facts["reason"] for facts in backends.values() if facts["reason"]))
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
