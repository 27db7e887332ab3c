"""Find and open a model file: one .safetensors file, several with an index, an .npz file, or one of PyTorch."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from minivit.arrays import Array
from minivit.errors import UserError, counted
from minivit.files import parse_json, read_json
from minivit.weights.entries import hollow
from minivit.weights.layout import WeightsFile
from minivit.weights.recognise import is_archive, is_of_torch, kind_of_file
from minivit.weights.tensors import read_about, read_shapes, read_tensors

FILE = "model.safetensors"
KEY = "minivit"  # of our configuration, in the metadata of the file and in config.json
_INDEX = FILE + ".index.json"
_OF_TORCH = "pytorch_model.bin"  # in a folder of Hugging Face transformers
_LONGEST_NAME = 1_000  # characters of the name of a tensor; those of models have fewer than 100
# The endings of other weights in a folder, of which the message says what they are.
_OTHERS = {".bin", ".ckpt", ".gguf", ".h5", ".keras", ".msgpack", ".onnx", ".pb", ".tflite"}


def model_file(path: str | os.PathLike[str]) -> Path:
    """Return the model file that `path` names: itself, or that in a folder or in ``best/`` of a run folder.

    Raises
    ------
    UserError
        There is none.
    """
    path = Path(path)
    try:
        exists = path.exists()
    except OSError:  # before Python 3.14, of a name that is too long
        exists = False
    if not exists:
        raise UserError(f"there is no file {path}; expected a .safetensors, .npz or .pt file, or a folder with {FILE}")
    if not path.is_dir():
        return path
    for candidate in (path / FILE, path / _INDEX, path / "best" / FILE, path / _OF_TORCH):
        if candidate.exists():
            return candidate
    if (path / f"{_OF_TORCH}.index.json").exists():
        raise UserError(f"the folder {path} holds weights of PyTorch in several files; save the model as safetensors")
    for other in sorted(path.iterdir()):
        is_state = other.name == "training.safetensors"  # of a run
        if other.suffix in _OTHERS:
            refuse_other_kinds(other)
        if other.suffix in (".safetensors", ".npz", ".pt", ".pth", *_OTHERS) and not is_state:
            raise UserError(f"the folder {path} holds no {FILE}; give the file itself, such as {other}")
    raise UserError(f"the folder {path} holds no model: expected {FILE} in it, or best/{FILE} in a run folder")


def open_weights(path: Path) -> WeightsFile:
    """Return the model file, of which only the headers are read.

    Raises
    ------
    UserError
        The file is missing, truncated, damaged or of another kind.
    """
    refuse_other_kinds(path)
    if is_archive(path) and not is_of_torch(path):
        from minivit.weights.npz import read_npz, read_npz_shapes  # not for every `import minivit`

        shapes, comment = read_npz_shapes(path)
        about = {KEY: comment} if comment.startswith("{") else {}
        return WeightsFile(path, _hollow(path, shapes), about, {}, lambda: read_npz(path))
    if is_archive(path):
        from minivit.weights.torch_file import read_torch, read_torch_shapes

        shapes = read_torch_shapes(path)
        return WeightsFile(path, _hollow(path, shapes), {}, _config_json(path), lambda: read_torch(path))
    if path.name.endswith(".index.json"):
        shards = _shards(path)
        shapes = {name: shape for shard, found in shards.items() for name, shape in found.items()}
        return WeightsFile(path, _hollow(path, shapes), {}, _config_json(path), lambda: _read_shards(shards))
    shapes, about = read_shapes(path), read_about(path)
    config_json = _config_json(path, needed=KEY not in about)
    return WeightsFile(path, _hollow(path, shapes), about, config_json, lambda: read_tensors(path)[0])


def _config_json(path: Path, needed: bool = True) -> dict[str, Any]:
    """Return the content of the config.json that belongs to a model file, or an empty dict.

    One that is not `needed`, beside a file with our configuration, is read only where `save_model` may have written it.
    """
    beside, is_ours = path.with_name("config.json"), path.name in (FILE, _INDEX)
    if not beside.exists() or not (needed or is_ours):
        return {}
    found = read_json(beside)
    return {} if KEY in found and not is_ours else found  # `save_model` wrote it for model.safetensors


def fingerprint(path: str | os.PathLike[str]) -> str:
    """Return a checksum of the model file that `path` names, of all of them if there are several with an index.

    Raises
    ------
    UserError
        There is none, or it cannot be read.
    """
    path = model_file(path)
    digest = hashlib.blake2b(digest_size=16)
    try:
        for file in (path, *(_shards(path) if path.name.endswith(".index.json") else ())):
            with file.open("rb") as opened:
                digest.update(hashlib.file_digest(opened, "blake2b").digest())
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    return digest.hexdigest()


def refuse_other_kinds(path: Path) -> None:
    """Raise UserError, which says what the file is, unless it may hold a model."""
    try:
        kind = kind_of_file(path)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    if kind is not None:
        raise UserError(f"{path} is {kind}")


def own_part(file: WeightsFile) -> dict[str, Any] | None:
    """Return minivit's configuration and extra values from the model file, else from config.json, else None.

    Raises
    ------
    UserError
        They are damaged, or config.json is that of another model.
    """
    path, repeated = file.path, file.config_json.get(KEY)
    own = parse_json(file.about[KEY], f"{path}: the configuration inside it") if KEY in file.about else repeated
    if own is None:
        return None
    if not (isinstance(own, dict) and isinstance(own.get("config"), dict) and isinstance(own.get("extra"), dict)):
        raise UserError(f"{path}: the configuration inside it has the wrong structure; the file is damaged")
    if repeated is not None and (not isinstance(repeated, dict) or repeated.get("config") != own["config"]):
        raise UserError(
            f"{path.with_name('config.json')} describes another model than {path.name}; "
            "keep each model in its own folder, or remove this config.json to use the configuration in the model file"
        )
    return own


def _hollow(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Array]:
    if long := [name for name in shapes if len(name) > _LONGEST_NAME]:  # the search for a pattern in one takes long
        most = f"more than {_LONGEST_NAME:,} characters"
        names = [f"{name!r:.40}..." for name in long]
        what = counted(names, f"tensor whose name has {most}", f"tensors whose names have {most}")
        raise UserError(f"{path} is not a model: it has {what}")
    # vit_pytorch's models without a class token have one of no numbers.
    if empty := [name for name, shape in shapes.items() if 0 in shape and not name.endswith("cls_token")]:
        raise UserError(
            f"{path} is damaged: it has {counted(empty, 'tensor without numbers', 'tensors without numbers')}"
        )
    return {name: hollow(shape) for name, shape in shapes.items()}


def _shards(path: Path) -> dict[Path, dict[str, tuple[int, ...]]]:
    """Return the shapes in each file of an index, which must hold just the tensors that the index names."""
    places = read_json(path).get("weight_map")
    if not (isinstance(places, dict) and places and all(isinstance(file, str) for file in places.values())):
        raise UserError(f"{path} does not say in which files its tensors are: expected a 'weight_map'")
    present = {file.name for file in path.parent.iterdir()}
    for file in set(places.values()):
        if Path(file).name != file or not file.endswith(".safetensors"):
            raise UserError(f"{path} names {file!r:.60}; expected a .safetensors file in the same folder")
        if file not in present:
            raise UserError(f"{path} names {file!r:.60}, which is missing in its folder")
    shards: dict[Path, dict[str, tuple[int, ...]]] = {}
    for file in sorted(set(places.values())):
        shards[path.with_name(file)] = shapes = read_shapes(path.with_name(file))
        named = {name for name, where in places.items() if where == file}
        if wrong := sorted(named ^ shapes.keys()):
            what = counted(wrong, "tensor is in one of them only", "tensors are in one of them only")
            raise UserError(f"{path} and {file} differ: {what}")
    return shards


def _read_shards(shards: Mapping[Path, object]) -> dict[str, Array]:
    return {name: value for shard in shards for name, value in read_tensors(shard)[0].items()}
