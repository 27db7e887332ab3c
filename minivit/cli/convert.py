"""``minivit convert``: write a model file of one program as that of another."""

from __future__ import annotations

import argparse
from pathlib import Path

from minivit.cli.common import CommandResult, model_path
from minivit.cli.model_fields import add_set, model_fields
from minivit.cli.terminal import Terminal
from minivit.errors import UserError, count_of
from minivit.train.run_folder import RunFolder
from minivit.weights import load_model, model_metadata, save_model
from minivit.weights.formats import layout_named
from minivit.weights.load import program_of
from minivit.weights.resample import CONVENTIONS
from minivit.weights.save import file_at
from minivit.weights.source import FILE, model_file

HELP = "write a model file in the format of another program"
DESCRIPTION = """\
Read a run, or a model file or folder of any format, which is recognised, and
write it in the format of another program, with the names of its classes and how
it prepares images. Values are written in float32; --dtype float64 keeps those
of a float64 file exactly. --set num_classes=10 gives the model a new head, and
--set img_size=384 resamples its positions."""
EXAMPLES = """\
examples:
  minivit convert ViT-B_16.npz vit_base/
  minivit convert ViT-B_16.npz for_transformers/ --format huggingface
  minivit convert runs/cifar10-1 cifar10.onnx
  minivit convert labml.safetensors labml_vit/ --set num_heads=8
  minivit convert vit_base/ larger/ --set num_classes=10 --set img_size=384"""

FORMATS = ("timm", "google", "huggingface", "vit_pytorch", "labml")  # those that are also read
_OF_SUFFIX = {".npz": "google", ".onnx": "onnx"}
_TIMM_EPS = 1e-6  # of the layer norms that timm's configuration can name
_OF_A_RUN = ("run", "step")  # what ties a model to its run


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("source", metavar="IN", help="a run, or a model file or folder")
    parser.add_argument("target", metavar="OUT", help="a file, such as x.safetensors, x.npz or x.onnx, or a folder")
    parser.add_argument(
        "--format",
        choices=(*FORMATS, "onnx"),
        metavar="FORMAT",
        help=f"{', '.join(FORMATS)} or onnx (default: google for .npz, onnx for .onnx, else timm)",
    )
    parser.add_argument(
        "--checkpoint", choices=("best", "last"), default="best", help="which model of a run (default: best)"
    )
    add_set(parser)
    parser.add_argument(
        "--resample",
        choices=CONVENTIONS,
        default="timm",
        help="how positions are resampled for another img_size (default: timm)",
    )
    parser.add_argument(
        "--dtype", choices=("float32", "float64"), default="float32", help="dtype of the values (default: float32)"
    )


def run(args: argparse.Namespace, terminal: Terminal) -> CommandResult:
    """Run the command."""
    source, target = model_path(args.source, args.checkpoint), Path(args.target).expanduser()
    chosen = args.format or _OF_SUFFIX.get(target.suffix.lower(), "timm")
    before = model_file(source)
    extra = {name: value for name, value in model_metadata(source).items() if name not in _OF_A_RUN}
    model = load_model(source, dtype=args.dtype, resample=args.resample, **model_fields(args.set))
    config = model.config
    classes = extra.get("class_names")
    if isinstance(classes, list) and len(classes) != config.num_classes:
        del extra["class_names"]  # they are those of the old head
    written = file_at(target, ".onnx" if chosen == "onnx" else layout_named(chosen).suffix, chosen)
    _expect_free(written, before)
    blocks = f"{count_of(config.depth, 'block')} of width {config.embed_dim}"
    terminal.say(
        f"read {before} of {program_of(source)}: {blocks}, images of {config.height} x {config.width}, "
        f"{config.num_classes:,} classes, {model.parameters.count:,} parameters"
    )
    save_model(model, target, format=chosen, extra=extra)
    terminal.say(f"wrote {written} in the format {chosen}")
    if chosen == "timm" and (refused := layout_named(chosen).refusals(config)):
        terminal.say(f"minivit reads it; timm has no model with {', '.join(refused)}")
    elif chosen == "timm" and config.norm_eps != _TIMM_EPS:
        words = f"norm_layer=partial(timm.layers.LayerNorm, eps={config.norm_eps:g})"
        terminal.say(f"timm.create_model needs the argument {words}; it has no name for this norm")
    values = {"source": str(before), "target": str(written), "format": chosen, "config": config.to_dict()}
    return CommandResult(values | {"parameters": model.parameters.count})


def _expect_free(written: Path, before: Path) -> None:
    """Raise UserError if writing would damage the model that is read, another one in the same folder, or a run."""
    folder = written.parent
    if written.exists() and written.samefile(before):
        raise UserError(f"{written} is read and cannot be written too; choose another OUT")
    if written.suffix != ".safetensors":
        return  # the others have no files beside them
    runs = [folder]
    if folder.name in ("best", "last", "nan"):
        runs.append(folder.parent)
    if folder.parent.name == "steps":
        runs.append(folder.parent.parent)
    if run := next(filter(RunFolder.exists, runs), None):
        raise UserError(f"{run} is a run, whose files stay as they are; choose another OUT")
    if written.name != FILE or written.exists() or not (folder / "config.json").exists():
        return  # `save_model` writes config.json for a file of this name
    names = [path.name for path in folder.iterdir()]
    if others := [name for name in names if name.endswith((".safetensors", ".safetensors.index.json"))]:
        raise UserError(
            f"{folder / 'config.json'} belongs to {min(others)} and would be replaced; choose an OUT in another folder"
        )
