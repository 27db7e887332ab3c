"""Weights of other programs: wrapped models are loaded, and other files and layouts are named with what to do."""

from __future__ import annotations

import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from model_files import assert_same, foreign, model_of, raw_file
from torch_files import write_torch

from minivit.arrays import Array
from minivit.errors import UserError
from minivit.weights import load_model, model_metadata, read_tensors, save_model, write_tensors
from minivit.weights.npz import write_npz

SIZES: dict[str, Any] = {"img_size": (10, 21), "num_heads": 3, "act_layer": "gelu", "norm_eps": 1e-6}


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.", "backbone.", "encoder.", "_orig_mod.module."])
def test_the_prefix_of_a_wrapper_is_taken_off(tmp_path: Path, prefix: str) -> None:
    def wrap(tensors: dict[str, Array]) -> None:
        for name in list(tensors):
            tensors[prefix + name] = tensors.pop(name)

    assert_same(load_model(foreign(tmp_path, wrap), **SIZES), model_of())


def test_a_wrapped_model_beside_other_tensors_is_explained(tmp_path: Path) -> None:
    def wrap(tensors: dict[str, Array]) -> None:
        for name in list(tensors):
            tensors[f"model.{name}"] = tensors.pop(name)
        tensors["loss.weight"] = np.ones(2)

    with pytest.raises(UserError, match=r"the prefix 'model\.' beside 1 other tensor \(loss\.weight\)"):
        load_model(foreign(tmp_path, wrap))


def zipped(*names: str) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name in names:
            archive.writestr(name, b"content")
    return content.getvalue()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (zipped("archive/data.pkl", "archive/data/0"), "not a complete .pt file"),
        (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.", "a file of PyTorch. Convert it"),
        (zipped("m/data.pkl", "m/constants.pkl", "m/code/__torch__.py"), "a TorchScript program"),
        (pickle.dumps({"state_dict": [1.0] * 99}), "a pickle, which could run any program"),
        (zipped("Transformer/encoderblock_0/x.npy"), "not a complete .npz file"),
        (zipped("config.json", "model.weights.h5"), "a model of Keras"),
        (zipped("photos/cat.jpg"), "a zip archive. Unpack it"),
        (b"\x89HDF\r\n\x1a\n" + bytes(99), "an HDF5 file, as Keras"),
        (b"GGUF" + bytes(99), "a GGUF file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4\nsize 5\n", "a pointer of Git LFS.*git lfs pull"),
        (b"\n<!DOCTYPE html><html>" + bytes(9), "a web page in place of the weights"),
        (b'{"a": 1, "b": [2]}', "a JSON text"),
        (b"\x89PNG\r\n\x1a\n" + bytes(99), "a PNG image"),
        (b"\x1f\x8b\x08" + bytes(99), "a gzip archive"),
        (b"", "empty: its download or its writing was interrupted"),
        (b"hello " * 99, "not a complete safetensors file"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_files_of_another_kind_are_named(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "x.safetensors").write_bytes(content)
    for read in (load_model, model_metadata):
        with pytest.raises(UserError, match=rf"x\.safetensors is {words}") as raised:
            read(tmp_path / "x.safetensors")
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("model.onnx", "is an ONNX file"),
        ("flax_model.msgpack", "is a file of Flax"),
        ("other.safetensors", r"holds no model\.safetensors; give the file itself, such as .*other"),
        ("last.ckpt", r"holds no model\.safetensors; give the file itself, such as .*last"),
        ("weights.bin", r"holds no model\.safetensors; give the file itself, such as .*weights"),
        ("pytorch_model.bin.index.json", "holds weights of PyTorch in several files; save the model as safetensors"),
        ("notes.txt", "holds no model: expected"),
    ],
)
def test_the_weights_that_a_folder_holds_instead_are_named(tmp_path: Path, name: str, words: str) -> None:
    (tmp_path / name).write_bytes(b"\x08\x07\x12\x07pytorch" + bytes(9))
    with pytest.raises(UserError, match=words):
        load_model(tmp_path)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("vit.embeddings.cls_token", "a model of Hugging Face transformers, of which only ViT is read"),
        ("deit.encoder.layer.0.attention.attention.query.weight", "a model of Hugging Face transformers"),
        ("deit.embeddings.distillation_token", "a DeiT with a distillation token of Hugging Face"),
        ("dinov2.embeddings.mask_token", "a model of Hugging Face transformers"),
        ("dinov2.encoder.layer.0.layer_scale1.lambda1", "a DINOv2 of Hugging Face transformers"),
        ("beit.encoder.layer.0.layernorm_before.weight", "a BEiT of Hugging Face transformers"),
        ("convnext.encoder.stages.0.layers.0.dwconv.weight", "a ConvNeXt, not a Vision Transformer"),
        ("stages.0.blocks.0.conv_dw.weight", "a ConvNeXt, not a Vision Transformer"),
        ("vit.embeddings.patch_embeddings.backbone.bit.weight", "a hybrid of a convolutional network and a ViT"),
        ("yolos.embeddings.detection_tokens", "a model for another task"),
        ("vision_model.embeddings.class_embedding", "a CLIP or SigLIP of Hugging Face transformers"),
        ("swin.encoder.layers.0.blocks.0.x", "a Swin Transformer of Hugging Face transformers"),
        ("visual.transformer.resblocks.0.ln_1.weight", "a CLIP model of OpenAI"),
        ("encoder.layers.encoder_layer_0.ln_1.weight", "the layout of torchvision"),
        ("to_patch_embedding.1.weight", "a model of vit_pytorch, of which only ViT and SimpleViT are read"),
        ("patch_to_embedding.weight", "a ViT of vit_pytorch from before February 2021"),
        ("encoder.layers.0.self_attn.query.linear.weight", "a model of labml, of which only VisionTransformer"),
        ("layers.0.blocks.0.attn.qkv.weight", "a Swin Transformer or BEiT of timm"),
        ("layer1.0.conv1.weight", "a convolutional network"),
        ("features.conv0.weight", "a convolutional network"),
        ("stages.2.1.conv_proj.conv.weight", "a convolutional network"),
        ("stages.0.blocks.0.mlp.dwconv.weight", "a Pyramid Vision Transformer"),
        ("blocks.0.mlp_tokens.fc1.weight", "an MLP-Mixer"),
        ("blocks.0.linear_tokens.weight", "an MLP-Mixer, gMLP or ResMLP"),
        ("patch_embed.0.proj.weight", "a Vision Transformer of several scales, as CrossViT"),
        ("patch_embed1.proj.weight", "a Vision Transformer of several scales, as CrossViT or CoaT"),
        ("pixel_embed.proj.weight", "a TNT"),
        ("base_model.model.blocks.0.attn.qkv.lora_A.weight", "an adapter"),
        ("decoder_blocks.0.norm1.weight", "a masked autoencoder"),
        ("values", "the state of a training run"),
    ],
)
def test_the_layout_of_another_program_is_named(tmp_path: Path, name: str, words: str) -> None:
    write_tensors(tmp_path / "x.safetensors", {name: np.zeros((1, 1, 8))}, {})
    with pytest.raises(UserError, match=rf"x\.safetensors holds {words}"):
        load_model(tmp_path / "x.safetensors")


def test_an_index_of_weights_of_pytorch_is_named(tmp_path: Path) -> None:
    path = tmp_path / "pytorch_model.bin.index.json"
    path.write_text('{"metadata": {}, "weight_map": {}}')
    with pytest.raises(UserError, match="is the index of weights of PyTorch in several files"):
        load_model(path)


def test_a_layout_is_named_although_a_tensor_has_a_dtype_that_is_not_read(tmp_path: Path) -> None:
    header = {"vision_model.embeddings.position_ids": {"dtype": "I64", "shape": [1], "data_offsets": [0, 8]}}
    path = raw_file(tmp_path / "x.safetensors", header, bytes(8))
    with pytest.raises(UserError, match="a CLIP or SigLIP of Hugging Face"):
        load_model(path)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("dist_token", "a distillation token"),
        ("blocks.0.attn.rel_pos.mlp.fc1.weight", "relative positions"),
        ("shared_rel_pos.mlp.fc1.weight", "relative positions"),
        ("blocks.0.attn.rel_pos_h", "relative positions"),
        ("head.fc.weight", "a head of several layers"),
        ("blocks.0.mlp.fc1_g.weight", "a gated MLP"),
        ("rope.freqs", "rotary positions"),
        ("patch_embed.backbone.conv1.0.weight", "a convolutional stem"),
        ("fc_norm.weight", "two norms before the head"),
    ],
)
def test_a_part_that_minivit_does_not_have_is_named(tmp_path: Path, name: str, words: str) -> None:
    path = foreign(tmp_path, lambda tensors: tensors.update({name: np.zeros(12)}))
    with pytest.raises(UserError, match=rf"a Vision Transformer with .*{words}.*, which minivit does not support"):
        load_model(path, **SIZES, global_pool="avg" if name.startswith("fc_norm") else "token")


def test_norms_without_bias_and_a_gated_mlp_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"norms without bias \(RMSNorm\)"):
        load_model(foreign(tmp_path / "a", lambda tensors: tensors.pop("blocks.0.norm1.bias")), **SIZES)

    def gated(tensors: dict[str, Array]) -> None:
        tensors["blocks.0.mlp.fc2.weight"] = np.zeros((12, 9))
        tensors.pop("blocks.1.mlp.fc2.bias")

    with pytest.raises(UserError, match="a gated MLP"):
        load_model(foreign(tmp_path / "b", gated), **SIZES)


@pytest.mark.parametrize("suffix", ["safetensors", "npz", "pt"])
def test_names_that_would_take_minutes_to_search_are_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"x.{suffix}"
    tensors = {"stages.0." * 5_000: np.ones(1, np.float32)}
    if suffix == "safetensors":
        write_tensors(path, tensors, {})
    elif suffix == "npz":
        write_npz(path, tensors)
    else:
        write_torch(path, tensors)
    words = "is not a model: it has 1 tensor whose name has more than 1,000 characters"
    for read in (load_model, model_metadata):
        with pytest.raises(UserError, match=words) as raised:
            read(path)
        assert len(str(raised.value)) < 300


def test_a_loop_of_links_is_refused(tmp_path: Path) -> None:
    save_model(model_of(), tmp_path)
    assert read_tensors(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "model.safetensors").symlink_to(tmp_path / "model.safetensors")
    for path in (tmp_path, tmp_path / "model.safetensors"):
        with pytest.raises(UserError, match=r"holds no model|there is no file"):
            load_model(path)


def test_layer_scale_of_old_names_without_positions_belongs_to_rotary_positions(tmp_path: Path) -> None:
    def renamed(tensors: dict[str, Array]) -> None:
        for name in [name for name in tensors if ".ls" in name]:
            tensors[name.replace("ls1.gamma", "gamma_1").replace("ls2.gamma", "gamma_2")] = tensors.pop(name)

    path = foreign(tmp_path, renamed, init_values=0.1, pos_embed="none")
    (tmp_path / "config.json").write_text('{"architecture": "vit_small_patch16_dinov3", "input_size": [2, 10, 21]}')
    with pytest.raises(UserError, match="rotary positions"):
        load_model(path)
