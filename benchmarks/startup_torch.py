"""Classify one image with PyTorch: python -m benchmarks.startup_torch FOLDER IMAGE documented|hurried|alone

documented  what timm's documentation shows: create_model with the weights of the folder, and its transform
hurried     timm's model, but no initial values for weights that are to be replaced, no transform, no autograd
alone       the plain model in the same way, without timm and torchvision: the least that PyTorch can take
"""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from PIL import Image

folder, path, way = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
about = json.loads((folder / "config.json").read_text())
settings = about["pretrained_cfg"]
image = Image.open(path).convert("RGB")
if way != "alone":
    from tests.conformance.torchvision_operators import import_torchvision

    import_torchvision()
    import timm
if way == "documented":
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    transform = timm.data.create_transform(**timm.data.resolve_data_config({}, model=model))
    with torch.no_grad():
        logits = model(transform(image)[None])
else:
    from safetensors.torch import load_file

    with torch.device("meta"):
        if way == "hurried":
            model = timm.create_model(f"local-dir:{folder}").eval()
        else:
            from benchmarks.plain_vit import PlainViT

            sizes = about["model_args"]
            (height, width), (P, Q) = sizes["img_size"], sizes["patch_size"]
            config = SimpleNamespace(**{"num_classes": about["num_classes"], **sizes}, norm_eps=1e-6)
            config.patch_height, config.patch_width, config.num_tokens = P, Q, (height // P) * (width // Q) + 1
            config.hidden_dim = int(config.embed_dim * config.mlp_ratio)
            model = PlainViT(config)
    model.load_state_dict(load_file(folder / "model.safetensors"), assign=True)
    pixels = (np.asarray(image, np.float32) / 255 - np.float32(settings["mean"])) / np.float32(settings["std"])
    with torch.inference_mode():
        logits = model(torch.from_numpy(pixels).permute(2, 0, 1)[None])
probability, index = logits.softmax(-1)[0].max(0)
print(f"{100 * probability:.1f} % {about['label_names'][index]}")
