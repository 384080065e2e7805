"""The small models that are served here, built in code: same file for every server."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from bench.session import session
from headrace.testing import models as testing_models

Array = np.ndarray[Any, Any]
Tensors = Mapping[str, Array]

FEATURES: Final = 32
IMAGE: Final = (3, 224, 224)
CLASSES: Final = 10
SEED: Final = 20240


def write_models(folder: Path) -> dict[str, Path]:
    """Write every model into `folder`; its path by its name."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = {}
    for name, build in {"mlp": mlp, "pool": pool, "conv": conv, "busy": busy}.items():
        paths[name] = folder / f"{name}.onnx"
        onnx.save(build(), paths[name])
    return paths


def mlp() -> onnx.ModelProto:
    """26 kB: `input` [N, 32] to `prob` [N, 2]; running it costs 5 us, so it measures the server."""
    return onnx.load_from_string(testing_models.mlp(features=FEATURES))


def pool() -> onnx.ModelProto:
    """`input` [N, 3, 224, 224] to `prob` [N, 10] by a mean per channel: costs only its transfer."""
    graph = _Graph("pool")
    mean = graph.op("Flatten", graph.op("GlobalAveragePool", "input"), axis=1)
    graph.op("Softmax", graph.gemm(mean, IMAGE[0], CLASSES), name="prob", axis=-1)
    return graph.model(("N", *IMAGE), ("N", CLASSES))


def conv() -> onnx.ModelProto:
    """`input` [N, 3, 224, 224] to `prob` [N, 10] through one convolution: a few milliseconds."""
    graph = _Graph("conv")
    features = graph.relu(graph.conv("input", IMAGE[0], 32, kernel=7, stride=2))
    mean = graph.op("Flatten", graph.op("GlobalAveragePool", features), axis=1)
    graph.op("Softmax", graph.gemm(mean, 32, CLASSES), name="prob", axis=-1)
    return graph.model(("N", *IMAGE), ("N", CLASSES))


def busy() -> onnx.ModelProto:
    """`input` [N, 32] to `prob` [N, 2] in about 3 ms a row, which a batch does not make cheaper."""
    side, channels = 64, 32
    graph = _Graph("busy")
    shape = graph.constant(np.array([-1, 1, side, side], np.int64))
    plane = graph.op("Reshape", graph.gemm("input", FEATURES, side * side), shape)
    features = graph.relu(graph.conv(plane, 1, channels, kernel=3))
    for _ in range(8):
        features = graph.relu(graph.conv(features, channels, channels, kernel=3))
    mean = graph.op("Flatten", graph.op("GlobalAveragePool", features), axis=1)
    graph.op("Softmax", graph.gemm(mean, channels, 2), name="prob", axis=-1)
    return graph.model(("N", FEATURES), ("N", 2))


def run_bare(path: Path, inputs: Tensors) -> dict[str, Array]:
    """What the model answers, straight from ONNX Runtime: the reference for every server."""
    bare = session(path)
    names = [output.name for output in bare.get_outputs()]
    return dict(zip(names, bare.run(names, dict(inputs)), strict=True))


def resnet() -> onnx.ModelProto:
    """`input` [N, 3, 224, 224] to `prob` [N, 1000]: ResNet-18 (He et al., 2015), random weights.

    47 MB. Batch norms are folded into the convolutions, as every export for serving does.
    """
    graph = _Graph("resnet")
    x = graph.relu(graph.conv("input", IMAGE[0], 64, kernel=7, stride=2))
    x = graph.op("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    channels = 64
    for out in (64, 128, 256, 512):
        for stride in (1 if out == channels else 2, 1):
            side = x if stride == 1 else graph.conv(x, channels, out, kernel=1, stride=2)
            inner = graph.relu(graph.conv(x, channels, out, kernel=3, stride=stride))
            x = graph.relu(graph.op("Add", graph.conv(inner, out, out, kernel=3), side))
            channels = out
    mean = graph.op("Flatten", graph.op("GlobalAveragePool", x))
    # Scaled down, so that random weights give no answer of ones and zeros.
    small = graph.op("Mul", mean, graph.constant(np.array(0.1, np.float32)))
    graph.op("Softmax", graph.gemm(small, channels, 1000), name="prob", axis=-1)
    return graph.model(("N", *IMAGE), ("N", 1000))


class _Graph:
    """Collects nodes and seeded random weights of a model from `input` to `prob`."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._random = np.random.default_rng(SEED)
        self._nodes: list[onnx.NodeProto] = []
        self._weights: list[onnx.TensorProto] = []

    # An ONNX attribute is whatever the operator says.
    def op(self, kind: str, *inputs: str, name: str = "", **attributes: Any) -> str:  # noqa: ANN401
        output = name or f"{kind.lower()}_{len(self._nodes)}"
        self._nodes.append(helper.make_node(kind, inputs, [output], **attributes))
        return output

    def constant(self, value: Array) -> str:
        name = f"weight_{len(self._weights)}"
        self._weights.append(numpy_helper.from_array(value, name))
        return name

    def gemm(self, x: str, width: int, out: int) -> str:
        return self.op("Gemm", x, self._random_weight(width, out), self._random_weight(out))

    def conv(self, x: str, channels: int, out: int, *, kernel: int, stride: int = 1) -> str:
        weight = self._random_weight(out, channels, kernel, kernel)
        pads = [kernel // 2] * 4
        return self.op("Conv", x, weight, pads=pads, strides=[stride, stride])

    def relu(self, x: str) -> str:
        return self.op("Relu", x)

    def _random_weight(self, *shape: int) -> str:
        fan_in = max(1, int(np.prod(shape[1:] if len(shape) == 4 else shape[:1])))
        values = self._random.standard_normal(shape) / fan_in**0.5
        return self.constant(values.astype(np.float32))

    def model(self, takes: tuple[str | int, ...], gives: tuple[str | int, ...]) -> onnx.ModelProto:
        graph = helper.make_graph(
            self._nodes,
            self._name,
            [helper.make_tensor_value_info("input", TensorProto.FLOAT, takes)],
            [helper.make_tensor_value_info("prob", TensorProto.FLOAT, gives)],
            self._weights,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        onnx.checker.check_model(model)
        return model
