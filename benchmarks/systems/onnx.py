"""ONNX Runtime on its CPU provider, prediction alone: the graph exported from PyTorch's plain model or timm's.

    python -m benchmarks.systems.onnx VARIANT FILE      exports the graph of a pickled task on standard input

The export runs in a process of its own, so that PyTorch's threads and memory are not in the one that is measured.
"""

import pickle
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.systems import Step
from benchmarks.workloads import Task

_ROOT = Path(__file__).parent.parent.parent


def prepare(task: Task, variant: str) -> Step:
    """Return a prediction."""
    import onnxruntime

    if task.workload.trains:
        raise ValueError("ONNX Runtime predicts; it does not train")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        command = [sys.executable, "-m", "benchmarks.systems.onnx", variant, str(path)]
        done = subprocess.run(command, cwd=_ROOT, input=pickle.dumps(task), capture_output=True)
        if done.returncode:
            raise RuntimeError(f"the export failed: {done.stderr.decode().strip().splitlines()[-1]}")
        options: Any = onnxruntime.SessionOptions()
        options.intra_op_num_threads = task.threads
        session: Any = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    inputs = {session.get_inputs()[0].name: np.ascontiguousarray(task.images.transpose(0, 3, 1, 2))}
    return Step(lambda: session.run(None, inputs)[0])


def export() -> None:
    """Write the model with the task's weights, for images of the workload's batch size."""
    import torch

    from benchmarks.systems.pytorch import build

    variant, path = sys.argv[1:]
    model, images = build(pickle.load(sys.stdin.buffer), variant)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter
        torch.onnx.export(model.eval(), (images,), path, dynamo=True, external_data=False, verbose=False)


if __name__ == "__main__":
    export()
