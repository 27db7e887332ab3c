"""Recognise weights that are not a Vision Transformer in a layout that is read, for the messages.

A file is recognised by its first bytes, a layout by the names of its tensors. Nothing here unpacks or executes a file.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path

from minivit.errors import counted

_HEAD, _TAIL = 4096, 1 << 16  # bytes
_ZIP = b"PK\x03\x04"

_TORCH = (
    "a file of PyTorch. Convert it, in Python with PyTorch: state = torch.load({name!r}, map_location='cpu', "
    "weights_only=True); safetensors.torch.save_file(state.get('state_dict', state.get('model', state)), "
    "'model.safetensors')"
)
_TIMM = "take the same model from https://huggingface.co/timm, or convert it with timm"
# What a file is by its first bytes.
_MAGIC: tuple[tuple[bytes, str], ...] = (
    (b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19", _TORCH),  # before PyTorch 1.6
    (b"\x80", "a pickle, which could run any program when it is read. Convert it where you trust it"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file, as Keras and TensorFlow write. " + _TIMM.capitalize()),
    (b"GGUF", "a GGUF file of llama.cpp. " + _TIMM.capitalize()),
    (b"\x93NUMPY", "a single NumPy array, not a model"),
    (b"version https://git-lfs", "a pointer of Git LFS in place of the weights. Run `git lfs pull` in its folder"),
    (b"\x1f\x8b", "a gzip archive. Unpack it first"),
    (b"\x28\xb5\x2f\xfd", "a zstd archive. Unpack it first"),
    (b"BZh", "a bzip2 archive. Unpack it first"),
    (b"\xfd7zXZ", "an xz archive. Unpack it first"),
    (b"7z\xbc\xaf", "a 7z archive. Unpack it first"),
    (b"Rar!", "a rar archive. Unpack it first"),
    (b"\x89PNG", "a PNG image, not a model"),
    (b"\xff\xd8\xff", "a JPEG image, not a model"),
    (b"%PDF", "a PDF document, not a model"),
)
_SUFFIXES = {
    ".onnx": "an ONNX file, which cannot be read. Use the weights from which it was exported",
    ".pb": "a model of TensorFlow, which cannot be read. " + _TIMM.capitalize(),
    ".index": "a checkpoint of TensorFlow, which cannot be read. " + _TIMM.capitalize(),
    ".msgpack": "a file of Flax, which cannot be read. " + _TIMM.capitalize(),
    ".tflite": "a file of TensorFlow Lite, which cannot be read. " + _TIMM.capitalize(),
}


def kind_of_file(path: Path) -> str | None:
    """Return what the file is and what to do with it, or None for a file that may be read."""
    if not path.is_file():
        return None
    head, tail = _ends(path)
    if not head:
        return "empty: its download or its writing was interrupted"
    if len(head) < 9:
        return None
    if head.startswith(_ZIP):
        words = _zip(head + tail)
        return words and words.format(name=path.name)
    for magic, words in _MAGIC:
        if head.startswith(magic) and not _may_be_safetensors(head):
            return words.format(name=path.name)
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype html", b"<html")):
        return "a web page in place of the weights. Download the file itself, on the Hub by its download button"
    if text.startswith(b"<?xml"):
        return "an XML document in place of the weights, perhaps the answer of a server that refused the download"
    if head[257:262] == b"ustar":
        return "a tar archive. Unpack it first"
    if text.startswith(b"{") and path.name.endswith(".safetensors.index.json"):
        return None
    if text.startswith(b"{") and path.name.endswith(".bin.index.json"):
        return "the index of weights of PyTorch in several files. Save the model as safetensors"
    if text.startswith(b"{") and not _may_be_safetensors(head):
        return "a JSON text. Give the file *.safetensors itself, or its folder"
    return None if _may_be_safetensors(head) else _SUFFIXES.get(path.suffix.lower())


def _may_be_safetensors(head: bytes) -> bool:
    return head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 1 << 40


def is_archive(path: Path) -> bool:
    """Return whether the file is a zip archive, as .npz files and those of PyTorch are."""
    return path.is_file() and _ends(path)[0].startswith(_ZIP)


def is_of_torch(path: Path) -> bool:
    """Return whether a zip archive is a file of PyTorch."""
    return any(b"data.pkl" in end for end in _ends(path))


def _ends(path: Path) -> tuple[bytes, bytes]:
    """Return the first and the last bytes of a file."""
    with path.open("rb") as file:
        head = file.read(_HEAD)
        size = file.seek(0, 2)
        file.seek(max(0, size - _TAIL))
        return head, file.read(_TAIL)


def _zip(content: bytes) -> str | None:
    if b"constants.pkl" in content and b"/code/" in content:
        return "a TorchScript program of PyTorch, which is not run. Save the state_dict of its model instead"
    if b"data.pkl" in content or b".npy" in content:
        return None
    if b"model.weights.h5" in content:
        return "a model of Keras, which cannot be read. " + _TIMM.capitalize()
    return "a zip archive. Unpack it first"


_HF = "Hugging Face transformers, of which only ViT is read"

# The layouts of other programs, by the names of tensors.
_LAYOUTS: tuple[tuple[str, str], ...] = (
    (r"lora_[AB]\.|adapter_", "an adapter (LoRA) without its model. Merge it into the model with peft first"),
    (
        r"(^|\.)vision_model\.|(^|\.)visual_projection\.",
        f"a CLIP or SigLIP of Hugging Face transformers; {_TIMM}",
    ),
    (r"(^|\.)swin(v2)?\.", f"a Swin Transformer of Hugging Face transformers, not a Vision Transformer; {_TIMM}"),
    (r"(^|\.)embeddings\.distillation_token$", f"a DeiT with a distillation token of {_HF}"),
    (r"(^|\.)encoder\.layer\.\d+\.layer_scale1\.", f"a DINOv2 of {_HF}"),
    (r"(^|\.)(beit|data2vec_vision)\.|(^|\.)encoder\.layer\.\d+\.lambda_1$", f"a BEiT of {_HF}"),
    (r"(^|\.)stages\.\d+\.\S*\.mlp\.dwconv\.", "a Pyramid Vision Transformer (PVT), not a plain one"),
    (r"(^|\.)convnext(v2)?\.|(^|\.)stages\.\d+\.\S*(conv_dw|dwconv)", "a ConvNeXt, not a Vision Transformer"),
    (
        r"(^|\.)(videomae|audio_spectrogram_transformer|yolos|dpt|vilt)\.embeddings",
        f"a model for another task than classification of {_HF}",
    ),
    (r"(^|\.)patch_embeddings\.backbone\.", f"a hybrid of a convolutional network and a ViT of {_HF}"),
    (
        r"(^|\.)patch_to_embedding\.",
        "a ViT of vit_pytorch from before February 2021, some of which scale their scores otherwise; it is not read",
    ),
    (r"(^|\.)visual\.(conv1|transformer)\.|(^|\.)transformer\.resblocks\.", f"a CLIP model of OpenAI; {_TIMM}"),
    (
        r"(^|\.)encoder\.layers\.encoder_layer_\d|^(?!.*stages\.)(.*\.)?conv_proj\.",
        f"the layout of torchvision; {_TIMM}",
    ),
    (r"(^|\.)patch_embed\.projection\.|(^|\.)layers\.\d+\.ln1\.", f"the layout of mmpretrain (OpenMMLab); {_TIMM}"),
    (r"(^|\.)decoder_blocks\.\d", "a masked autoencoder with its decoder. Take a file of its encoder alone"),
    (r"(^|\.)layers\.\d+\.blocks\.\d+\.|relative_position_bias_table$", "a Swin Transformer or BEiT of timm"),
    (
        r"^(?!.*patch_embed\.backbone\.)(.*\.)?(layer1\.0\.conv1|stages\.\d+\.|features\.(\d+|conv0)\.|conv_stem\.)",
        "a convolutional network or a hybrid of another kind; a ResNet of BiT is `layers.ResNet` (docs/models.md)",
    ),
    (r"(^|/)(img|txt)/", "a model of images and texts (SigLIP or LiT) of big_vision, not a Vision Transformer alone"),
    (r"\.(mlp_tokens|linear_tokens|mlp_channels)\.", "an MLP-Mixer, gMLP or ResMLP, not a Vision Transformer"),
    (r"(^|\.)patch_embed(\.\d+\.proj|[1-4]\.proj)\.", "a Vision Transformer of several scales, as CrossViT or CoaT"),
    (r"(^|\.)pixel_embed\.", "a TNT (Transformer in Transformer), not a plain Vision Transformer"),
    (r"(^|/)MixerBlock_\d", "an MLP-Mixer, not a Vision Transformer"),
    (r"(^|/)resnet/root_block/|(^|/)root_block/", "a ResNet (BiT) of Google, not a Vision Transformer"),
    (r"^values$|^exp_avg", "the state of a training run, not a model. The models of a run are in its best/ and last/"),
)

# What a file of none of the layouts is, if it has these names.
_RELATIVES: tuple[tuple[str, str], ...] = (
    (
        r"(^|\.)embeddings\.(patch_embeddings|cls_token|class_embedding|mask_token)"
        r"|(^|\.)(encoder\.)?layers?\.\d+\.(attention\.attention|layernorm_before)",
        f"a model of {_HF}",
    ),
    (
        r"(^|\.)to_patch_embedding\.|(^|\.)transformer\.layers\.\d+\.0\.",
        "a model of vit_pytorch, of which only ViT and SimpleViT are read",
    ),
    (r"(^|\.)self_attn\.(query|key|value)\.linear\.", "a model of labml, of which only VisionTransformer is read"),
)

# The parts of timm's Vision Transformers that minivit's does not have, by the names of tensors.
_PARTS: tuple[tuple[str, str], ...] = (
    (r"^(dist_token|head_dist\.)", "a distillation token"),
    (r"\.attn\.norm\.|\.mlp\.norm\.", "norms inside attention or MLP (scale_attn_norm, scale_mlp_norm)"),
    (
        r"\.attn\.(q_bias|v_bias|k_bias)$|relative_pos|rel_pos_(bias|table|mlp|h|w)|rel_pos\.",
        "relative positions or separate biases, as BEiT has",
    ),
    (r"\.attn\.(q|k|v|q_proj|k_proj|v_proj)\.", "separate queries, keys and values"),
    (r"\.mlp\.(fc1_g|fc1_x|w1|w2|w3|w12|gate_proj)\.", "a gated MLP (SwiGLU)"),
    (r"(^|\.)rope\.|(^|\.)freqs", "rotary positions (RoPE)"),
    (
        r"^patch_embed\.(backbone\.(?!((stem\.)?(conv|norm)|stages\.\d+\.blocks)\.)|stem|proj\.\d)|^patch_embed\.conv\d*\.",
        "a convolutional stem that is no BiT ResNet (the hybrids *_r26_*, *_r50_* and *_r_s16_p8 are read)",
    ),
    (r"^blocks\.\d+\.gamma_1$", "rotary positions (RoPE), which have no tensors, as EVA and DINOv3"),
    (r"^head\.(fc|norm)\.", "a head of several layers, as Hiera"),
    (r"^mask_token$", "a mask token"),
    (r"^blocks\.\d+\.\d+\.", "blocks in groups, as DINOv2's own files have"),
)


def whose_layout(names: Collection[str]) -> str | None:
    """Return whose layout the names of tensors are and what to do, or None if it is unknown."""
    return next((words for pattern, words in _LAYOUTS if _any(pattern, names)), None)


def relative_of(names: Collection[str]) -> str | None:
    """Return what the tensors of these names seem to be, which have none of the layouts, or None."""
    return next((words for pattern, words in _RELATIVES if _any(pattern, names)), None)


def unsupported_parts(shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Return the parts of timm's Vision Transformers among tensors of these shapes that minivit does not have."""
    found = [words for pattern, words in _PARTS if _any(pattern, shapes)]
    inner, outer = (shapes.get(f"blocks.0.mlp.{name}.weight", ()) for name in ("fc1", "fc2"))
    if len(inner) == len(outer) == 2 and inner[0] == 2 * outer[1]:
        found.append("a gated MLP (SwiGLU)")
    if "blocks.0.norm1.weight" in shapes and "blocks.0.norm1.bias" not in shapes:
        found.append("norms without bias (RMSNorm)")
    if "norm.weight" in shapes and "fc_norm.weight" in shapes:
        found.append("two norms before the head")
    return list(dict.fromkeys(found))


def _any(pattern: str, names: Collection[str]) -> bool:
    return any(re.search(pattern, name) for name in names)


# The projection of patches in each layout.
_FIRST = (
    "patch_embed.proj.weight",
    "embeddings.patch_embeddings.projection.weight",
    "to_patch_embedding.1.weight",
    "patch_emb.conv.weight",
)


def prefixes(names: Collection[str]) -> list[str]:
    """Return the prefixes, such as ``module.``, that all names have, from "" to the longest."""
    first, last = min(names, default=""), max(names, default="")  # all others are between them
    ends = [
        end for end, (a, b) in enumerate(zip(first, last, strict=False), 1) if a in "./" and first[:end] == last[:end]
    ]
    return ["", *(first[:end] for end in ends)]


def beside_others(names: Collection[str]) -> str | None:
    """Return words for a Vision Transformer of a known layout beside other tensors, or None."""
    found = [name.removesuffix(first) for first in _FIRST for name in names if name.endswith("." + first)]
    for prefix in sorted(found, key=len):
        if others := [name for name in names if not name.startswith(prefix)]:
            what = counted(others, "other tensor")
            return f"a model with the prefix {prefix!r} beside {what}. Save its tensors alone, without the prefix"
    return None
