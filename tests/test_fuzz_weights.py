"""Damaged and hostile model files: each is refused in one line that names a file, or is a model.

``MINIVIT_FUZZ=3000 pytest -n 0 tests/test_fuzz_weights.py`` is a longer run: so many files of each kind.
"""

from __future__ import annotations

import json
import os
import time
import warnings
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from masked_files import FOREIGN, foreign_folder, made
from model_files import SMALL, foreign, model_of
from mutate_bytes import mutations

from minivit.cli.common import open_model
from minivit.errors import UserError
from minivit.nn.config import ViTConfig
from minivit.nn.vit import ViT
from minivit.weights import load_masked_model, load_model, model_metadata, read_tensors, save_model, write_tensors
from minivit.weights.entries import exported, hollow
from minivit.weights.formats import layout_named, recognised
from minivit.weights.layout import WeightsFile, check_shapes

COUNT = int(os.environ.get("MINIVIT_FUZZ", "40"))
SECONDS, BYTES = 2.0, 200_000_000
ODD: tuple[Any, ...] = (
    *(None, True, False, "", "x", "\x1b[2J\n", "0", [], {}, [[]], [None], {"a": {}}, 0, 1, -1, -5, 2, 3, 7, 1.5, -0.5),
    *(1e-300, 1e300, -1e300, 10**9, 2**31, 2**63, 2**64, 10**30, 10**400, [0, 0], [-1, -1], [10**9, 10**9], [1, 2, 3]),
    *("9" * 10_000, ["a"] * 10_000, "F64", "F32", "BF16", "I64", "BOOL", "F8_E4M3"),
)


def own_model(folder: Path) -> Path:
    """Return a model file as minivit writes it."""
    about = {"class_names": list("abcdefg"), "mean": [0.5, 0.4], "std": [0.2, 0.3], "crop_pct": 0.9}
    save_model(model_of(), folder, extra=about)
    return folder / "model.safetensors"


def timm_model(folder: Path) -> Path:
    """Return a model file as timm writes it."""
    path = foreign(folder)
    images = {"input_size": [2, 10, 21], "mean": [0.5, 0.4], "std": [0.2, 0.3], "crop_pct": 0.9, "crop_mode": "center"}
    config = {"architecture": "vit_tiny_patch16_224", "num_classes": 7, "label_names": list("abcdefg")}
    config |= {"global_pool": "token", "model_args": {"num_heads": 3, "qkv_bias": True}, "pretrained_cfg": images}
    (folder / "config.json").write_text(json.dumps(config))
    return path


def sharded_model(folder: Path) -> Path:
    """Return the index of a model in two files."""
    tensors, _ = read_tensors(timm_model(folder))
    (folder / "model.safetensors").unlink()
    names = list(tensors)
    shards = {"model-1-of-2.safetensors": names[:9], "model-2-of-2.safetensors": names[9:]}
    for file, part in shards.items():
        write_tensors(folder / file, {name: tensors[name] for name in part}, {"format": "pt"})
    places = {name: file for file, part in shards.items() for name in part}
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": places}))
    return index


def google_model(folder: Path) -> Path:
    """Return a model file in Google's layout."""
    model = model_of(img_size=(15, 9), act_layer="gelu_tanh", fc_norm=False)
    save_model(model, folder / "model.npz", format="google", extra={"class_names": list("abcdefg")})
    return folder / "model.npz"


def big_vision_model(folder: Path) -> Path:
    """Return a compressed file of NumPy of a training run of big_vision."""
    with np.load(google_model(folder)) as file:
        np.savez_compressed(folder / "model.npz", **{f"params/{name}": value for name, value in file.items()})
    return folder / "model.npz"


def huggingface_model(folder: Path) -> Path:
    """Return a model file as transformers writes it, with config.json and preprocessor_config.json."""
    return of_another_program(folder, "huggingface", img_size=(15, 15), norm_eps=1e-12)


def vit_pytorch_model(folder: Path) -> Path:
    """Return a model file of vit_pytorch."""
    fields: dict[str, Any] = {"embed_norm": "both", "qkv_bias": False, "fc_norm": False, "norm_eps": 1e-5}
    return of_another_program(
        folder, "vit_pytorch", **fields, head_dim=64, img_size=(8, 8), patch_size=(4, 4), in_chans=3
    )


def labml_model(folder: Path) -> Path:
    """Return a model file of labml, for which load_model needs the number of heads."""
    fields: dict[str, Any] = {"representation_size": 5, "representation_act": "relu", "act_layer": "relu"}
    return of_another_program(folder, "labml", **fields, norm_eps=1e-5)


def of_another_program(folder: Path, program: str, **fields: Any) -> Path:
    about: dict[str, Any] = {"class_names": list("abcdefg"), "crop_pct": 0.9}
    save_model(model_of(**fields), folder, format=program, extra=about)
    tensors, _ = read_tensors(folder / "model.safetensors")
    write_tensors(folder / "model.safetensors", tensors, {"format": "pt"})
    return folder / "model.safetensors"


# Models that each layout can express, and names of tensors that other models of it have.
OF_LAYOUT: dict[str, dict[str, Any]] = {
    "timm": {"reg_tokens": 2, "init_values": 0.1, "qk_norm": True, "pre_norm": True},
    "google": {"representation_size": 5},
    "huggingface": {"representation_size": 5, "num_classes": 0},
    "vit_pytorch": {"qkv_bias": False},
    "labml": {"representation_size": 5},
}
BESIDE = {
    "timm": ("pre_logits.fc.weight", "fc_norm.weight", "attn_pool.latent"),
    "google": ("cls", "pos_embedding", "MAPHead_0/probe", "Transformer/encoderblock/LayerNorm_0/scale"),
    "huggingface": ("classifier.weight",),
    "vit_pytorch": ("register_tokens", "linear_head.weight", "linear_head.1.weight"),
    "labml": ("feed_forward",),
}
MODELS = [own_model, timm_model, huggingface_model, vit_pytorch_model, labml_model]
KINDS = pytest.mark.parametrize("kind", MODELS, ids=lambda kind: kind.__name__)
Kind = Callable[[Path], Path]


def readers(kind: Kind | None) -> tuple[Callable[[Path], object], ...]:
    """Return every way to read a model, each of which reads an undamaged file of that kind."""
    fields: dict[str, Any] = {"num_heads": 3, "img_size": (8, 8) if kind is vit_pytorch_model else (10, 21)}
    needed = fields if kind is labml_model else {}
    return (
        partial(load_model, **fields),
        model_metadata,
        lambda path: open_model(str(path), "best", fields=needed),
    )


def check(path: Path, *damaged: Path, kind: Kind | None = None) -> None:
    """Read the model in every way; each must end within `SECONDS`, with a model or one line that names a file."""
    for read in readers(kind):
        began = time.perf_counter()
        message = message_of(read, path)
        assert time.perf_counter() - began < SECONDS
        if message is not None:
            assert any(file.name in message for file in (path, *damaged)), message
            assert "\n" not in message


def message_of(read: Callable[[Path], object], path: Path) -> str | None:
    """Return the message of the refusal, or None."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what the files do not define
            read(path)
    except UserError as error:
        return str(error)
    return None


@pytest.fixture(autouse=True)
def bounded_memory() -> Iterator[None]:
    """Fail if a test takes more than `BYTES` at any moment, on Linux."""
    try:
        _CLEAR.write_text("5")  # the peak is now what is held now
    except OSError:  # not Linux, or a sandbox
        yield
        return
    before = _peak_bytes()
    yield
    assert _peak_bytes() - before < BYTES


_CLEAR = Path("/proc/self/clear_refs")


def _peak_bytes() -> int:
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return 1024 * int(line.split()[1])


@pytest.mark.parametrize(
    "kind", [*MODELS, sharded_model, google_model, big_vision_model], ids=lambda kind: kind.__name__
)
def test_the_files_are_read_before_they_are_damaged(tmp_path: Path, kind: Kind) -> None:
    path = kind(tmp_path)
    assert [message_of(read, path) for read in readers(kind)] == [None, None, None]


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        *((kind, "model.safetensors") for kind in MODELS),
        *((kind, "config.json") for kind in (own_model, timm_model, huggingface_model)),
        (sharded_model, "model.safetensors.index.json"),
        (sharded_model, "model-2-of-2.safetensors"),
        (google_model, "model.npz"),
        (big_vision_model, "model.npz"),
    ],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_damaged_bytes(tmp_path: Path, kind: Kind, name: str) -> None:
    path = kind(tmp_path)
    damaged = tmp_path / name
    for content in mutations(damaged.read_bytes(), np.random.default_rng(1), COUNT):
        damaged.write_bytes(content)
        check(path, damaged, kind=kind)


def test_headers_of_arrays_with_wrong_values(tmp_path: Path) -> None:
    path = google_model(tmp_path)
    with zipfile.ZipFile(path) as file:
        contents = {info.filename: file.read(info) for info in file.infolist()}
        comment = json.loads(file.comment)
    generator = np.random.default_rng(6)
    for i in range(COUNT):
        damaged = dict(contents)
        name = list(contents)[generator.integers(len(contents))]
        damaged[name] = next(mutations(contents[name][:128], generator, 1)) + contents[name][128:]
        with zipfile.ZipFile(path, "w") as file:
            file.comment = json.dumps(changed(comment, generator)).encode()[:65_535] if i % 2 else b""
            for name, content in damaged.items():
                file.writestr(name, content)
        check(path)


@pytest.mark.parametrize("axes", [0, 5])
@pytest.mark.parametrize("program", OF_LAYOUT)
def test_each_tensor_with_another_number_of_axes(tmp_path: Path, program: str, axes: int) -> None:
    layout = layout_named(program)
    model = model_of(**OF_LAYOUT[program], depth=1, img_size=(15, 9))
    shapes = {name: value.shape for name, value in exported(model.state_dict(), layout.entries(model)).items()}
    for name in [*shapes, *BESIDE[program]]:
        tensors = {other: hollow(shape) for other, shape in (shapes | {name: (1,) * axes}).items()}
        file = WeightsFile(tmp_path / f"x{layout.suffix}", tensors, {}, {}, dict)
        message = message_of(partial(fit, file), file.path)
        assert message is not None, name
        assert file.path.name in message


def fit(file: WeightsFile, _: Path) -> None:
    """Raise UserError unless the shapes are those of a model."""
    layout, file = recognised(file)
    message_of(lambda _: layout.metadata(file), file.path)  # another error is raised
    model = ViT.without_values(ViTConfig(**layout.fields(file, {"num_heads": 3, "img_size": (15, 9)})))
    check_shapes(file, layout.entries(model), model)


def test_a_model_whose_positions_are_missing(tmp_path: Path) -> None:
    fields: dict[str, Any] = {"qkv_bias": False, "fc_norm": True, "norm_eps": 1e-5, "head_dim": 64, "in_chans": 3}
    path = of_another_program(tmp_path, "vit_pytorch", **fields, img_size=(8, 8), patch_size=(4, 4))
    tensors, _ = read_tensors(path)
    write_tensors(path, {name: value for name, value in tensors.items() if name != "pos_embedding"}, {})
    with pytest.raises(UserError, match="has no positions for patches"):
        load_model(path)


def test_an_index_with_wrong_values(tmp_path: Path) -> None:
    path = sharded_model(tmp_path)
    index = json.loads(path.read_text())
    generator = np.random.default_rng(7)
    for _ in range(COUNT):
        path.write_text(json.dumps(changed(index, generator)))
        check(path)


def changed(value: Any, generator: np.random.Generator) -> Any:
    """Return a JSON value with an odd value in a random place of it."""
    if isinstance(value, dict | list) and len(value) and generator.integers(8):
        places = list(value) if isinstance(value, dict) else range(len(value))
        place = places[generator.integers(len(value))]
        copy = value.copy()
        if generator.integers(12) == 0:
            del copy[place]
        else:
            copy[place] = changed(value[place], generator)
        return copy
    return ODD[generator.integers(len(ODD))]


@KINDS
def test_a_header_of_the_right_form_with_wrong_values(tmp_path: Path, kind: Kind) -> None:
    path = kind(tmp_path)
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header, data = json.loads(content[8 : 8 + length]), content[8 + length :]
    generator = np.random.default_rng(2)
    for _ in range(COUNT):
        text = json.dumps(changed(header, generator)).encode()
        path.write_bytes(len(text).to_bytes(8, "little") + text + data)
        check(path, kind=kind)


def test_a_configuration_in_the_file_with_wrong_values(tmp_path: Path) -> None:
    path = own_model(tmp_path)
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header, data = json.loads(content[8 : 8 + length]), content[8 + length :]
    own = {"config": SMALL, "extra": model_metadata(path)}
    (tmp_path / "config.json").unlink()
    generator = np.random.default_rng(3)
    for _ in range(2 * COUNT):
        header["__metadata__"] = {"minivit": json.dumps(changed(own, generator))}
        text = json.dumps(header).encode()
        path.write_bytes(len(text).to_bytes(8, "little") + text + data)
        check(path)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (own_model, "config.json"),
        (timm_model, "config.json"),
        (huggingface_model, "config.json"),
        (huggingface_model, "preprocessor_config.json"),
    ],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_a_config_json_with_wrong_values(tmp_path: Path, kind: Kind, name: str) -> None:
    path = kind(tmp_path)
    file = tmp_path / name
    config = json.loads(file.read_text())
    generator = np.random.default_rng(4)
    for _ in range(2 * COUNT):
        file.write_text(json.dumps(changed(config, generator)))
        check(path, file, kind=kind)


def test_models_for_masked_pre_training_with_wrong_values(tmp_path: Path) -> None:
    model = made("mae")
    own = {"format": "masked", "task": "mae", "config": model.config.to_dict(), "options": model.options, "extra": {}}
    config, generator = FOREIGN["mae"], np.random.default_rng(8)
    foreign_folder(tmp_path / "theirs", "mae")
    path, file = tmp_path / "model.safetensors", tmp_path / "theirs" / "config.json"
    for _ in range(COUNT // 2):
        write_tensors(path, model.state_dict(), {"minivit": json.dumps(changed(own, generator))})
        file.write_text(json.dumps(changed(config, generator)))
        check(path)
        check(file.with_name("model.safetensors"), file)
        for named in (path, file.with_name("model.safetensors")):
            message = message_of(load_masked_model, named)
            assert message is None or named.name in message or file.name in message
            assert "\n" not in (message or "")


@pytest.mark.parametrize("header", [b"[" * 100_000, b'{"a":' * 100_000, b"{" + b'"a":[' * 50_000])
def test_a_header_that_is_nested_deeply(tmp_path: Path, header: bytes) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    check(path)
    with pytest.raises(UserError):
        load_model(path)


def test_a_file_that_claims_a_terabyte(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    header = json.dumps({"x": {"dtype": "F32", "shape": [1 << 38], "data_offsets": [0, 1 << 40]}}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    check(path)
    os.truncate(path, 1 << 40)  # with holes: no disk is used
    check(path)
    with pytest.raises(UserError):
        load_model(path)
