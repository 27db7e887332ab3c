"""Writes a PyTorch model to an ONNX file: python -m benchmarks.sides.export VARIANT FILE, with a pickled task on stdin.

A process of its own, so that neither PyTorch's threads nor its memory are in the one that is measured.
"""

from __future__ import annotations

import pickle
import sys
import warnings

import torch

from benchmarks.sides.pytorch import build


def main() -> None:
    """Export the model with the task's weights for images of the work's batch size."""
    variant, path = sys.argv[1:]
    model, images = build(pickle.load(sys.stdin.buffer), variant)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # theirs
        torch.onnx.export(model.eval(), (images,), path, dynamo=True, external_data=False, verbose=False)


if __name__ == "__main__":
    main()
