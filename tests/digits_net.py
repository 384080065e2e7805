"""A conv net that tells the handwritten digits of scikit-learn, made without any framework."""

from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np

from headrace.core import Array
from headrace.runtimes import LoadOptions, load_model
from headrace.testing.models import FLOAT, INT64, Node, Value, build

SIDE: Final = 8
CLASSES: Final = 10
_CHANNELS: Final = (1, 32, 64)
_TAUGHT: Final = 1000
"""Pictures whose labels the last layer is fitted to; the others judge."""
_RIDGE: Final = 1.0


@cache
def pictures() -> tuple[Array, Array]:
    """1,797 pictures FP32 [N, 1, 8, 8], from 0 to 1, and the digit of each."""
    from sklearn.datasets import load_digits  # noqa: PLC0415  # takes a second

    pixels, labels = load_digits(return_X_y=True)
    return (pixels.reshape(-1, 1, SIDE, SIDE) / 16).astype(np.float32), labels


def write(folder: Path) -> Path:
    """The net as `digits.onnx`: `image` FP32 [N, 1, 8, 8] to `scores` FP32 [N, 10].

    Two layers of convolutions with drawn kernels, and one that is fitted to labels.
    """
    file = folder / "digits.onnx"
    features = 2 * 2 * _CHANNELS[-1]
    file.write_bytes(_net(np.eye(features, dtype=np.float32), np.zeros(features, np.float32)))
    rows, labels = pictures()
    model = load_model(file, options=LoadOptions(device="cpu"))
    found = model.run({"image": rows[:_TAUGHT]})["scores"].astype(np.float64)
    model.close()
    mean = found.mean(axis=0)
    centred, wanted = found - mean, np.eye(CLASSES)[labels[:_TAUGHT]] - 1 / CLASSES
    gram = centred.T @ centred + _RIDGE * np.eye(features)
    matrix = np.linalg.solve(gram, centred.T @ wanted)
    file.write_bytes(_net(matrix.astype(np.float32), (-mean @ matrix).astype(np.float32)))
    return file


def write_perceptron(file: Path, *, width: int) -> Path:
    """Two hidden layers learned from the first 1,000 pictures: `image` FP32 [N, 64] to `label`
    INT64 [N] and `probabilities` FP32 [N, 10], in the order of scikit-learn's own exporter."""
    from sklearn.neural_network import MLPClassifier  # noqa: PLC0415  # takes a second

    rows, labels = pictures()
    learned = MLPClassifier(
        (width, width), max_iter=500, tol=5e-3, n_iter_no_change=4, random_state=0
    )
    learned.fit(rows[:_TAUGHT].reshape(_TAUGHT, -1), labels[:_TAUGHT])
    weights: dict[str, Array] = {}
    nodes: list[Node] = []
    tensor = "image"
    for i, (matrix, bias) in enumerate(zip(learned.coefs_, learned.intercepts_, strict=True)):
        weights |= {f"w{i}": matrix.astype(np.float32), f"b{i}": bias.astype(np.float32)}
        nodes += [
            ("Gemm", [tensor, f"w{i}", f"b{i}"], [f"g{i}"], {}),
            ("Relu", [f"g{i}"], [f"r{i}"], {}),
        ]
        tensor = f"r{i}"
    nodes[-1] = ("Softmax", ["g2"], ["probabilities"], {"axis": 1})
    nodes.append(("ArgMax", ["probabilities"], ["label"], {"axis": 1, "keepdims": 0}))
    image: Value = ("image", FLOAT, ["N", SIDE * SIDE])
    outputs: list[Value] = [("label", INT64, ["N"]), ("probabilities", FLOAT, ["N", CLASSES])]
    file.write_bytes(build(nodes, [image], outputs, weights))
    return file


def write_rows(file: Path, *, taught: bool) -> Path:
    """The pictures that the perceptron learned from, or the others, as rows with labels."""
    rows, labels = pictures()
    part = slice(None, _TAUGHT) if taught else slice(_TAUGHT, None)
    np.savez(file, image=rows[part].reshape(-1, SIDE * SIDE), label=labels[part])
    return file


def write_labelled(file: Path) -> Path:
    """Pictures that the net was not fitted to, with their labels, as `--data` takes them."""
    rows, labels = pictures()
    np.savez(file, image=rows[_TAUGHT:], label=labels[_TAUGHT:])
    return file


def _net(matrix: Array, bias: Array) -> bytes:
    rng = np.random.default_rng(8)
    weights: dict[str, Array] = {"matrix": matrix, "bias": bias}
    nodes: list[Node] = []
    last = "image"
    for place, (before, after) in enumerate(pairwise(_CHANNELS)):
        kernel = rng.normal(size=(after, before, 3, 3)) * (2 / (9 * before)) ** 0.5
        weights[f"kernel{place}"] = kernel.astype(np.float32)
        padded: dict[str, Any] = {"pads": [1, 1, 1, 1]}
        halved: dict[str, Any] = {"kernel_shape": [2, 2], "strides": [2, 2]}
        nodes += [
            ("Conv", [last, f"kernel{place}"], [f"conv{place}"], padded),
            ("Relu", [f"conv{place}"], [f"relu{place}"], {}),
            ("MaxPool", [f"relu{place}"], [f"pool{place}"], halved),
        ]
        last = f"pool{place}"
    nodes += [
        ("Flatten", [last], ["features"], {}),
        ("Gemm", ["features", "matrix", "bias"], ["scores"], {}),
    ]
    image: Value = ("image", FLOAT, ["N", 1, SIDE, SIDE])
    return build(nodes, [image], [("scores", FLOAT, ["N", matrix.shape[1]])], weights)
