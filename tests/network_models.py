"""Small networks of each kind, made in code: what recipes rewrite."""

from pathlib import Path
from typing import Final

import numpy as np

from headrace.core import Array, Tensors
from headrace.testing.models import FLOAT, INT64, Node, Value, build

WIDTH: Final = 32
HEADS: Final = 2
VOCABULARY: Final = 64
SIZE: Final = 16
"""Of the conv net's images."""


def encoder_layer(*, seed: int = 0) -> bytes:
    """One layer of BERT: `input_ids`, `attention_mask` INT64 [N, S] to `logits` FP32 [N, 2]."""
    made = _Weights(seed)
    heads, joined = [0, 0, HEADS, WIDTH // HEADS], [0, 0, WIDTH]
    nodes: list[Node] = [
        ("Gather", [made.of("words", VOCABULARY, WIDTH), "input_ids"], ["embedded"], {}),
        ("Cast", ["attention_mask"], ["mask"], {"to": FLOAT}),
        ("Sub", ["mask", made.given("one", np.array(1, np.float32))], ["absent"], {}),
        ("Mul", ["absent", made.given("large", np.array(1e4, np.float32))], ["flat"], {}),
        ("Unsqueeze", ["flat", made.given("middle", np.array([1, 2]))], ["penalty"], {}),
    ]
    made.given("heads", np.array(heads))
    for part, order in (("q", [0, 2, 1, 3]), ("k", [0, 2, 3, 1]), ("v", [0, 2, 1, 3])):
        nodes += [
            *made.linear("embedded", f"{part}_flat", WIDTH, WIDTH),
            ("Reshape", [f"{part}_flat", "heads"], [f"{part}_heads"], {}),
            ("Transpose", [f"{part}_heads"], [part], {"perm": order}),
        ]
    made.given("joined", np.array(joined))
    nodes += [
        ("MatMul", ["q", "k"], ["scores"], {}),
        ("Add", ["scores", "penalty"], ["masked"], {}),
        ("Softmax", ["masked"], ["shares"], {"axis": -1}),
        ("MatMul", ["shares", "v"], ["mixed"], {}),
        ("Transpose", ["mixed"], ["mixed_back"], {"perm": [0, 2, 1, 3]}),
        ("Reshape", ["mixed_back", "joined"], ["context"], {}),
        *made.linear("context", "projected", WIDTH, WIDTH),
        ("Add", ["projected", "embedded"], ["attended"], {}),
        made.norm("attended", "normed"),
        *made.linear("normed", "wide", WIDTH, 2 * WIDTH),
        ("Relu", ["wide"], ["active"], {}),
        *made.linear("active", "narrow", 2 * WIDTH, WIDTH),
        ("Add", ["narrow", "normed"], ["summed"], {}),
        made.norm("summed", "hidden"),
        ("ReduceMean", ["hidden"], ["pooled"], {"axes": [1], "keepdims": 0}),
        *made.linear("pooled", "logits", WIDTH, 2),
    ]
    ids: list[Value] = [(name, INT64, ["N", "S"]) for name in ("input_ids", "attention_mask")]
    return build(nodes, ids, [("logits", FLOAT, ["N", 2])], made.weights)


def conv_net(*, seed: int = 0) -> bytes:
    """Two convolutions with normalisation: `image` FP32 [N, 3, 16, 16] to `logits` FP32 [N, 5]."""
    made = _Weights(seed)
    nodes: list[Node] = [
        ("Conv", ["image", made.of("k1", 8, 3, 3, 3)], ["c1"], {"pads": [1, 1, 1, 1]}),
        made.batch_norm("c1", "n1", 8),
        ("Relu", ["n1"], ["r1"], {}),
        ("Conv", ["r1", made.of("k2", 16, 8, 3, 3)], ["c2"], {"strides": [2, 2]}),
        made.batch_norm("c2", "n2", 16),
        ("Relu", ["n2"], ["r2"], {}),
        ("GlobalAveragePool", ["r2"], ["pooled"], {}),
        ("Flatten", ["pooled"], ["features"], {}),
        ("Gemm", ["features", made.of("w", 16, 5), made.of("b", 5)], ["logits"], {}),
    ]
    image: list[Value] = [("image", FLOAT, ["N", 3, SIZE, SIZE])]
    return build(nodes, image, [("logits", FLOAT, ["N", 5])], made.weights)


def sentences(count: int, *, seed: int = 1) -> list[Tensors]:
    """Requests of one row for `encoder_layer`, of several lengths."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        length = int(rng.integers(3, 20))
        ids = rng.integers(0, VOCABULARY, (1, length))
        found.append({"input_ids": ids, "attention_mask": np.ones_like(ids)})
    return found


def images(count: int, *, seed: int = 1) -> list[Tensors]:
    """Requests of one row for `conv_net`."""
    rng = np.random.default_rng(seed)
    shape = (1, 3, SIZE, SIZE)
    return [{"image": rng.normal(size=shape).astype(np.float32)} for _ in range(count)]


def write(folder: Path, model: bytes) -> Path:
    """The model as `source.onnx`."""
    file = folder / "source.onnx"
    file.write_bytes(model)
    return file


class _Weights:
    """Seeded constants, of a size that keeps activations near 1."""

    def __init__(self, seed: int) -> None:
        self.weights: dict[str, Array] = {}
        self._rng = np.random.default_rng(seed)

    def given(self, name: str, value: Array) -> str:
        self.weights[name] = value
        return name

    def of(self, name: str, *shape: int) -> str:
        fan_in = int(np.prod(shape[1:])) if len(shape) > 2 else shape[0]
        scale = 1 if name == "words" else fan_in**-0.5
        return self.given(name, (self._rng.normal(size=shape) * scale).astype(np.float32))

    def linear(self, x: str, out: str, rows: int, columns: int) -> list[Node]:
        weight, bias = self.of(f"{out}_weight", rows, columns), self.of(f"{out}_bias", columns)
        product = f"{out}_product"
        return [("MatMul", [x, weight], [product], {}), ("Add", [product, bias], [out], {})]

    def norm(self, x: str, out: str) -> Node:
        scale = self.given(f"{out}_scale", np.ones(WIDTH, np.float32))
        bias = self.given(f"{out}_bias", np.zeros(WIDTH, np.float32))
        return ("LayerNormalization", [x, scale, bias], [out], {"axis": -1})

    def batch_norm(self, x: str, out: str, channels: int) -> Node:
        ones, zeros = np.ones(channels, np.float32), np.zeros(channels, np.float32)
        names = [self.given(f"{out}_scale", ones * 2), self.given(f"{out}_bias", zeros + 0.1)]
        names += [self.given(f"{out}_mean", zeros + 0.2), self.given(f"{out}_var", ones * 3)]
        return ("BatchNormalization", [x, *names], [out], {})
