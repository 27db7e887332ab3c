"""Classify one image with timm on PyTorch: python -m benchmarks.startup_timm FOLDER IMAGE plain|hurried

plain     what timm's documentation shows: create_model with the weights of the folder, and its transform
hurried   no first values for weights that are to be replaced, no transform, none of autograd's records
"""

import json
import sys
from pathlib import Path

from tests.conformance.torchvision_operators import import_torchvision

import_torchvision()
import timm  # noqa: E402 - after torchvision, which may need help
import torch  # noqa: E402 - as above
from PIL import Image  # noqa: E402 - as above

folder, path, way = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
settings = json.loads((folder / "config.json").read_text())["pretrained_cfg"]
image = Image.open(path).convert("RGB")
if way == "plain":
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    transform = timm.data.create_transform(**timm.data.resolve_data_config({}, model=model))
    with torch.no_grad():
        logits = model(transform(image)[None])
else:
    import numpy as np
    from safetensors.torch import load_file

    with torch.device("meta"):
        model = timm.create_model(f"local-dir:{folder}").eval()
    model.load_state_dict(load_file(folder / "model.safetensors"), assign=True)
    pixels = (np.asarray(image, np.float32) / 255 - np.float32(settings["mean"])) / np.float32(settings["std"])
    with torch.inference_mode():
        logits = model(torch.from_numpy(pixels).permute(2, 0, 1)[None])
probability, index = logits.softmax(-1)[0].max(0)
print(f"{100 * probability:.1f} % {settings['label_names'][index]}")
