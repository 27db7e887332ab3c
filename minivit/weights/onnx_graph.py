"""Nodes and constants of an ONNX graph; the names of constants are those of our parameters."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx

OPSET = 20  # the first with GELU
_IR = 10  # the version of the file format of that time


class Graph:
    """Nodes and constants; the methods add them and return the name of the result."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.constants: dict[str, Any] = {}

    def node(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """Add a node with one result."""
        (result,) = self.nodes_of(kind, 1, *inputs, **attributes)
        return result

    def nodes_of(self, kind: str, results: int, *inputs: str, **attributes: Any) -> list[str]:
        """Add a node with several results."""
        names = [f"{kind}_{len(self.nodes)}_{i}" for i in range(results)]
        self.nodes.append(onnx.helper.make_node(kind, list(inputs), names, **attributes))
        return names

    def constant(self, value: Any, name: str = "") -> str:
        """Add an array; floating-point numbers become float32."""
        array = np.asarray(value)
        array = array.astype(np.float32 if array.dtype.kind == "f" else np.int64)
        name = name or f"constant_{len(self.constants)}"
        self.constants[name] = onnx.numpy_helper.from_array(np.ascontiguousarray(array), name)
        return name

    def reshape(self, x: str, *shape: int) -> str:
        """Give `x` another shape; 0 stands for the length that the axis has, -1 for what is left."""
        return self.node("Reshape", x, self.constant(shape))

    def transpose(self, x: str, *axes: int) -> str:
        """Reorder the axes of `x`."""
        return self.node("Transpose", x, perm=axes)

    def piece(self, x: str, axis: int, start: int, stop: int) -> str:
        """Return the elements from `start` to `stop` of an axis."""
        return self.node("Slice", x, *(self.constant([number]) for number in (start, stop, axis)))

    def scaled(self, x: str, factor: float) -> str:
        """Multiply by a number."""
        return self.node("Mul", x, self.constant(np.float32(factor)))

    def repeated(self, x: str, like: str) -> str:
        """Repeat `x` (1, n, D) for each image of the array `like`."""
        count = self.node("Shape", like, start=0, end=1)
        return self.node("Expand", x, self.node("Concat", count, self.constant([1, 1]), axis=0))

    def proto(self, result: str, images: tuple[str, list[Any]], logits: tuple[str, list[Any]]) -> Any:
        """Return the model that computes `result`; `images` and `logits` are a name and a shape."""
        self.nodes.append(onnx.helper.make_node("Identity", [result], [logits[0]]))
        inputs, outputs = (
            [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)]
            for name, shape in (images, logits)
        )
        graph = onnx.helper.make_graph(self.nodes, "minivit", inputs, outputs, list(self.constants.values()))
        opsets = [onnx.helper.make_opsetid("", OPSET)]
        return onnx.helper.make_model(graph, producer_name="minivit", opset_imports=opsets, ir_version=_IR)
