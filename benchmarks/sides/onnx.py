"""ONNX Runtime on its CPU provider, prediction alone: the graph exported from PyTorch's plain model or timm's."""

from __future__ import annotations

import pickle
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from benchmarks.task import Task
from minivit.arrays import Array

_ROOT = Path(__file__).parent.parent.parent


def prepare(task: Task, variant: str) -> Callable[[], Array]:
    """Return a prediction."""
    if task.work.trains:
        raise ValueError("ONNX Runtime predicts; it does not train")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        command = [sys.executable, "-m", "benchmarks.sides.export", variant, str(path)]
        done = subprocess.run(command, cwd=_ROOT, input=pickle.dumps(task), capture_output=True)
        if done.returncode:
            raise RuntimeError(f"the export failed: {done.stderr.decode().strip().splitlines()[-1]}")
        options: Any = onnxruntime.SessionOptions()
        options.intra_op_num_threads = task.threads
        session: Any = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    inputs = {session.get_inputs()[0].name: np.ascontiguousarray(task.images.transpose(0, 3, 1, 2))}
    return lambda: session.run(None, inputs)[0]


def versions() -> Mapping[str, str]:
    """Return the versions of ONNX Runtime and of what exported the graph."""
    return {"ONNX Runtime": onnxruntime.__version__, "PyTorch (export)": metadata.version("torch")}
