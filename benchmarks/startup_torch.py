"""Classify one image with PyTorch alone, without timm and torchvision: python -m benchmarks.startup_torch FOLDER IMAGE

The forward pass is written out on the tensors of the file, so that no module is built: the least that PyTorch can take.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from PIL import Image
from safetensors.torch import load_file

folder, path = Path(sys.argv[1]), sys.argv[2]
about = json.loads((folder / "config.json").read_text())
config, settings = about["model_args"], about["pretrained_cfg"]
D, heads = config["embed_dim"], config["num_heads"]
w = load_file(folder / "model.safetensors")


def linear(x: torch.Tensor, name: str) -> torch.Tensor:
    return F.linear(x, w[f"{name}.weight"], w[f"{name}.bias"])


def norm(x: torch.Tensor, name: str) -> torch.Tensor:
    return F.layer_norm(x, (D,), w[f"{name}.weight"], w[f"{name}.bias"], 1e-6)


image = np.asarray(Image.open(path).convert("RGB"), np.float32) / 255
pixels = (image - np.float32(settings["mean"])) / np.float32(settings["std"])
with torch.inference_mode():
    x = torch.from_numpy(pixels).permute(2, 0, 1)[None]
    x = F.conv2d(x, w["patch_embed.proj.weight"], w["patch_embed.proj.bias"], stride=config["patch_size"])
    x = torch.cat([w["cls_token"], x.flatten(2).mT], 1) + w["pos_embed"]
    for i in range(config["depth"]):
        block = f"blocks.{i}"
        qkv = linear(norm(x, f"{block}.norm1"), f"{block}.attn.qkv")
        q, k, v = qkv.reshape(*x.shape[:2], 3, heads, D // heads).permute(2, 0, 3, 1, 4)
        gathered = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape)
        x = x + linear(gathered, f"{block}.attn.proj")
        x = x + linear(F.gelu(linear(norm(x, f"{block}.norm2"), f"{block}.mlp.fc1")), f"{block}.mlp.fc2")
    logits = linear(norm(x[:, 0], "norm"), "head")
probability, index = logits.softmax(-1)[0].max(0)
print(f"{100 * probability:.1f} % {settings['label_names'][index]}")
