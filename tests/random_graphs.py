"""Random ONNX graphs: operators with random axes on rows, weights and sizes."""

from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import onnxruntime as ort
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from headrace.core import Array

ROWS: Final = 3
"""Rows of the run that shows which shapes tensors have."""
LENGTH: Final = 4
FLOAT, INT64, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL
Proto = Any  # onnx ships no types


@dataclass(slots=True)
class Graph:
    """A graph that runs, with what its tensors are for `ROWS` rows."""

    nodes: list[Proto] = field(default_factory=list)
    constants: dict[str, Array] = field(default_factory=dict)
    values: dict[str, Array] = field(default_factory=dict)

    def put(self, value: Array) -> str:
        name = f"c{len(self.constants)}"
        self.constants[name] = value
        return name

    def model(self, output: str) -> bytes:
        needed: set[str] = {output}
        nodes: list[Proto] = []
        for node in reversed(self.nodes):
            if needed & {*node.output}:
                nodes.insert(0, node)
                needed |= {*node.input}
        nodes.append(helper.make_node("Cast", [output], ["y"], "last", to=FLOAT))
        graph = helper.make_graph(
            nodes,
            "random",
            [
                helper.make_tensor_value_info("x", FLOAT, ["N", "S", 2]),
                helper.make_tensor_value_info("k", INT64, ["N", "S"]),
                helper.make_tensor_value_info("f", FLOAT, ["N", 4]),
            ],
            [helper.make_tensor_value_info("y", FLOAT, None)],
            [numpy_helper.from_array(value, name) for name, value in self.constants.items()],
        )
        opsets = [helper.make_opsetid("", 18)]
        made = helper.make_model(graph, opset_imports=opsets, ir_version=9)
        return bytes(made.SerializeToString())


def inputs(rows: int, seed: int, scale: float) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    return {
        "x": (rng.normal(size=(rows, LENGTH, 2)) * scale).astype(np.float32),
        "k": rng.integers(0, 4, (rows, LENGTH)),
        "f": (rng.normal(size=(rows, 4)) * scale).astype(np.float32),
    }


def session(model: bytes) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


_UNARY: Final = ("Relu", "Neg", "Sigmoid", "Abs", "Identity", "Tanh", "Floor")
_REDUCTIONS: Final = ("ReduceSum", "ReduceMean", "ReduceMax", "ReduceL2", "ReduceMin")
_ALONG: Final = ("Softmax", "LogSoftmax", "Hardmax", "LpNormalization")


class _Writer:
    """Draws one node after the other."""

    def __init__(self, draw: Any, graph: Graph) -> None:  # noqa: ANN401  # Hypothesis has no type for it
        self.draw = draw
        self.graph = graph

    def among(self, *items: Any) -> Any:  # noqa: ANN401
        return self.draw(st.sampled_from(items))

    def once_in(self, count: int) -> bool:
        return int(self.draw(st.integers(1, count))) == 1

    def tensor(self, kinds: str = "f", ranks: tuple[int, ...] = (0, 1, 2, 3, 4, 5)) -> str:
        names = [
            name
            for name, value in self.graph.values.items()
            if value.dtype.kind in kinds and value.ndim in ranks and value.size < 5000
        ]
        if not names:
            raise ValueError(kinds)
        return str(self.draw(st.sampled_from(names)))

    def axis(self, name: str) -> int:
        """An axis; the first one less often."""
        rank = self.graph.values[name].ndim
        axes = [*range(rank), *range(1, rank), *range(1, rank)] or [0]
        axis = int(self.draw(st.sampled_from(axes)))
        return axis - rank if rank and self.draw(st.booleans()) else axis

    def ints(self, *values: int) -> str:
        return self.graph.put(np.array(values, np.int64))

    def node(self, kind: str, *names: str, outputs: int = 1, **attributes: Any) -> list[str]:  # noqa: ANN401
        """Add a node.

        Raises:
            ValueError: It does not run.
        """
        graph = self.graph
        results = [f"t{len(graph.nodes)}_{i}" for i in range(outputs)]
        made = helper.make_node(kind, names, results, f"n{len(graph.nodes)}", **attributes)
        known = {name: graph.values[name] for name in names if name in graph.values}
        info = [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), None)
            for name, value in known.items()
        ]
        weights = [
            numpy_helper.from_array(graph.constants[name], name)
            for name in dict.fromkeys(names)
            if name in graph.constants
        ]
        small = helper.make_graph(
            [made],
            "one",
            info,
            [helper.make_empty_tensor_value_info(name) for name in results],
            weights,
        )
        opsets = [helper.make_opsetid("", 18)]
        content = helper.make_model(small, opset_imports=opsets, ir_version=9)
        try:
            values = session(bytes(content.SerializeToString())).run(None, known)
        except Exception as error:
            raise ValueError(kind) from error
        graph.nodes.append(made)
        graph.values |= dict(zip(results, values, strict=True))
        return results

    def sizes_of(self, name: str) -> str:
        return self.node("Shape", name)[0]

    def size(self, name: str, axis: int) -> str:
        return self.node("Gather", self.sizes_of(name), self.ints(axis), axis=0)[0]

    def step(self) -> None:
        """Draw one operator."""
        kinds = [name[5:] for name in dir(self) if name.startswith("draw_")]
        getattr(self, f"draw_{self.draw(st.sampled_from(kinds))}")()

    def draw_unary(self) -> None:
        self.node(self.among(*_UNARY), self.tensor())

    def draw_binary(self) -> None:
        self.node(self.among("Add", "Mul", "Sub", "Max", "Div"), self.tensor(), self.tensor())

    def draw_weight(self) -> None:
        x = self.tensor()
        shape = [self.among(1, size) for size in self.graph.values[x].shape[self.among(0, 1, 1) :]]
        rng = np.random.default_rng(len(self.graph.nodes))
        self.node(
            self.among("Add", "Mul"), x, self.graph.put(rng.normal(size=shape).astype(np.float32))
        )

    def draw_reduce(self) -> None:
        x = self.tensor()
        kind = self.among(*_REDUCTIONS)
        keep = int(self.draw(st.booleans()))
        axes = sorted({self.axis(x) for _ in range(self.among(1, 1, 2))})
        if kind == "ReduceSum" and self.once_in(4):
            self.node(kind, x, keepdims=keep)
            return
        self.node(kind, x, self.ints(*axes), keepdims=keep)

    def draw_along(self) -> None:
        x = self.tensor()
        self.node(self.among(*_ALONG), x, axis=self.axis(x))

    def draw_cumulative(self) -> None:
        x = self.tensor()
        self.node("CumSum", x, self.graph.put(np.array(self.axis(x))))

    def draw_arg(self) -> None:
        x = self.tensor()
        keep = int(self.draw(st.booleans()))
        self.node(self.among("ArgMax", "ArgMin"), x, axis=self.axis(x), keepdims=keep)

    def draw_top(self) -> None:
        x = self.tensor(ranks=(1, 2, 3))
        self.node("TopK", x, self.ints(self.among(1, 2)), outputs=2, axis=self.axis(x))

    def draw_transpose(self) -> None:
        x = self.tensor("fi")
        order = self.draw(st.permutations(range(self.graph.values[x].ndim)))
        self.node("Transpose", x, perm=order)

    def draw_reshape(self) -> None:
        """To some products of neighbouring sizes, as numbers, as -1, as 0 or as computed."""
        x = self.tensor("fi", ranks=(1, 2, 3, 4))
        shape = self.graph.values[x].shape
        groups: list[list[int]] = [[0]]
        for axis in range(1, len(shape)):
            if self.draw(st.booleans()):
                groups.append([axis])
            else:
                groups[-1].append(axis)
        parts = []
        free = self.draw(st.integers(-1, len(groups)))
        if 0 in shape:
            raise ValueError(shape)
        for i, group in enumerate(groups):
            whole = int(np.prod([shape[axis] for axis in group]))
            if i == free:
                parts.append(self.ints(-1))
            elif group == [i] and self.once_in(2):
                parts.append(self.ints(0))
            elif len(group) == 1:
                parts.append(self.among(self.ints(whole), self.size(x, group[0])))
            else:
                product = self.node("Mul", self.size(x, group[0]), self.size(x, group[1]))[0]
                exact = len(group) == 2
                parts.append(self.among(self.ints(whole), product if exact else self.ints(whole)))
        self.node("Reshape", x, self.node("Concat", *parts, axis=0)[0])

    def draw_fold(self) -> None:
        """To any factors of the size."""
        x = self.tensor("f", ranks=(1, 2, 3, 4))
        size = self.graph.values[x].size
        if not size:
            raise ValueError(x)
        first = self.among(*[n for n in (1, 2, 3, 4, 6, 8, 12) if size % n == 0])
        rest = size // first
        second = self.among(*[n for n in (1, 2, 3, 4) if rest % n == 0])
        target = [first, second, rest // second]
        target[self.among(0, 1, 2)] = -1
        self.node("Reshape", x, self.ints(*target))

    def draw_flatten(self) -> None:
        x = self.tensor(ranks=(2, 3, 4))
        self.node("Flatten", x, axis=self.among(0, 1, 1, 2))

    def draw_unsqueeze(self) -> None:
        x = self.tensor("fi", ranks=(1, 2, 3))
        self.node("Unsqueeze", x, self.ints(self.among(0, 1, -1)))

    def draw_squeeze(self) -> None:
        x = self.tensor("fi", ranks=(2, 3, 4))
        if self.once_in(4):
            self.node("Squeeze", x)
        else:
            self.node("Squeeze", x, self.ints(self.axis(x)))

    def draw_slice(self) -> None:
        x = self.tensor("fi", ranks=(1, 2, 3, 4))
        axis = self.axis(x)
        bounds = [self.ints(self.among(0, 0, 1, -1)), self.ints(self.among(1, 2, 1 << 40, -1))]
        if self.once_in(3):
            bounds[1] = self.size(x, self.axis(x) % self.graph.values[x].ndim)
        steps = [self.ints(axis), self.ints(self.among(1, 1, 1, 2))]
        self.node("Slice", x, *bounds, *steps)

    def draw_backwards(self) -> None:
        x = self.tensor(ranks=(1, 2, 3))
        self.node(
            "Slice", x, self.ints(-1), self.ints(-(1 << 62)), self.ints(self.axis(x)), self.ints(-1)
        )

    def draw_split(self) -> None:
        x = self.tensor(ranks=(1, 2, 3, 4))
        axis = self.axis(x)
        size = self.graph.values[x].shape[axis]
        if size > 1:
            self.node("Split", x, self.ints(1, size - 1), outputs=2, axis=axis)

    def draw_concat(self) -> None:
        x, other = self.tensor(), self.tensor()
        self.node("Concat", x, other, axis=self.axis(x))

    def draw_double(self) -> None:
        x = self.tensor(ranks=(1, 2, 3))
        self.node("Concat", x, x, axis=self.axis(x))

    def draw_gather(self) -> None:
        x = self.tensor(ranks=(1, 2, 3))
        indices = self.among(np.array(0), np.array([0]), np.array([1, 0]), np.array([[0, 1]]))
        self.node("Gather", x, self.graph.put(indices.astype(np.int64)), axis=self.axis(x))

    def draw_embedding(self) -> None:
        rng = np.random.default_rng(7)
        table = self.graph.put(rng.normal(size=(4, 3)).astype(np.float32))
        self.node("Gather", table, self.tensor("i"), axis=0)

    def draw_look_up(self) -> None:
        x = self.tensor(ranks=(1, 2, 3))
        self.node("Gather", x, self.tensor("i", ranks=(0, 1, 2)), axis=self.axis(x))

    def draw_gather_elements(self) -> None:
        x = self.tensor(ranks=(1, 2, 3))
        self.node("GatherElements", x, self.tensor("i"), axis=self.axis(x))

    def draw_gather_nd(self) -> None:
        self.node(
            "GatherND",
            self.tensor(),
            self.tensor("i", ranks=(1, 2, 3)),
            batch_dims=self.among(0, 1),
        )

    def draw_own_row(self) -> None:
        """The row's own number beside an index, as exporters write `x[arange(n), i]`."""
        x, indices = self.tensor(ranks=(2, 3)), self.tensor("i", ranks=(1,))
        numbers = self._numbers(x)
        both = [self.node("Unsqueeze", item, self.ints(1))[0] for item in (numbers, indices)]
        if self.once_in(4):
            both.reverse()
        if self.once_in(4):
            both[1] = both[0]
        self.node("GatherND", x, self.node("Concat", *both, axis=1)[0])

    def draw_flat_row(self) -> None:
        """The same with one index into the flattened table."""
        x, indices = self.tensor(ranks=(2, 3)), self.tensor("i", ranks=(1,))
        width = self.node("Squeeze", self.size(x, 1), self.ints(0))[0]
        start = self.node("Mul", self._numbers(x), width)[0]
        shape = self.graph.values[x].shape
        flat = self.node("Reshape", x, self.ints(-1, *shape[2:]))[0]
        self.node("Gather", flat, self.node("Add", start, indices)[0], axis=0)

    def _numbers(self, x: str) -> str:
        count = self.node("Squeeze", self.size(x, 0), self.ints(0))[0]
        zero, one = self.graph.put(np.array(0)), self.graph.put(np.array(1))
        return self.node("Range", zero, count, one)[0]

    def draw_numbers(self) -> None:
        x = self.tensor(ranks=(1, 2, 3))
        numbers = self.node("Cast", self._numbers(x), to=FLOAT)[0]
        self.node("Mul", numbers, self.tensor())

    def draw_range(self) -> None:
        x = self.tensor("i", ranks=(0, 1, 2))
        last = self.node("ReduceMax", x, keepdims=0)[0]
        zero, one = self.graph.put(np.array(0)), self.graph.put(np.array(1))
        self.node("Range", zero, last, one)

    def draw_by_size(self) -> None:
        x = self.tensor(ranks=(1, 2, 3))
        size = self.node("Cast", self.size(x, self.axis(x) % self.graph.values[x].ndim), to=FLOAT)[
            0
        ]
        self.node(self.among("Mul", "Div", "Add"), self.tensor(), size)

    def draw_matmul(self) -> None:
        self.node("MatMul", self.tensor(ranks=(1, 2, 3)), self.tensor(ranks=(1, 2, 3)))

    def draw_linear(self) -> None:
        x = self.tensor(ranks=(1, 2, 3, 4))
        rng = np.random.default_rng(len(self.graph.nodes))
        weight = rng.normal(size=(self.graph.values[x].shape[-1], 3)).astype(np.float32)
        self.node("MatMul", x, self.graph.put(weight))

    def draw_gram(self) -> None:
        x = self.tensor(ranks=(2, 3))
        rank = self.graph.values[x].ndim
        turned = self.node("Transpose", x, perm=[*range(rank - 2), rank - 1, rank - 2])[0]
        self.node("MatMul", *self.draw(st.permutations([x, turned])))

    def draw_gemm(self) -> None:
        x, y = self.tensor(ranks=(2,)), self.tensor(ranks=(2,))
        self.node("Gemm", x, y, transA=self.among(0, 1), transB=self.among(0, 1))

    def draw_einsum(self) -> None:
        equation = self.among(
            "ab,bc->ac",
            "ab,ac->bc",
            "ab,ab->a",
            "ab,ab->b",
            "ab,cb->ac",
            "ab,b->a",
            "abc,ac->ab",
            "abc,abd->acd",
        )
        first, second = (len(part) for part in equation.split("->")[0].split(","))
        self.node(
            "Einsum", self.tensor(ranks=(first,)), self.tensor(ranks=(second,)), equation=equation
        )

    def draw_where(self) -> None:
        limit = self.graph.put(np.array(self.among(0.0, 1.0), np.float32))
        above = self.node("Greater", self.tensor(), limit)[0]
        self.node("Where", above, self.tensor(), self.tensor())

    def draw_compare(self) -> None:
        smaller = self.node("Less", self.tensor("i"), self.tensor("i"))[0]
        self.node("Cast", smaller, to=FLOAT)

    def draw_cast(self) -> None:
        self.node("Cast", self.tensor("i"), to=FLOAT)

    def draw_cast_like(self) -> None:
        x = self.among(self.tensor(), self.graph.put(np.ones((1, 4), np.float32)))
        self.node("CastLike", x, self.tensor("fi"))

    def draw_whole(self) -> None:
        small = self.node("Sigmoid", self.tensor())[0]
        wide = self.node("Mul", small, self.graph.put(np.array(3, np.float32)))[0]
        self.node("Cast", wide, to=INT64)

    def draw_expand(self) -> None:
        x, other = self.tensor(), self.tensor()
        self.node("Expand", x, self.sizes_of(other))

    def draw_tile(self) -> None:
        x = self.tensor(ranks=(1, 2, 3))
        repeats = [self.ints(self.among(1, 1, 2)) for _ in self.graph.values[x].shape]
        if self.once_in(2):
            repeats[0] = self.size(x, 0)
        self.node("Tile", x, self.node("Concat", *repeats, axis=0)[0])

    def draw_filled(self) -> None:
        value = helper.make_tensor("v", FLOAT, [1], [0.5])
        self.node("ConstantOfShape", self.sizes_of(self.tensor()), value=value)

    def draw_pad(self) -> None:
        x = self.tensor(ranks=(2, 3))
        rank = self.graph.values[x].ndim
        pads = [0] * (2 * rank)
        pads[self.axis(x) % rank + self.among(0, rank)] = self.among(1, -1)
        self.node("Pad", x, self.ints(*pads))

    def draw_one_hot(self) -> None:
        depth = self.graph.put(np.array(4))
        values = self.graph.put(np.array([0, 1], np.float32))
        self.node(
            "OneHot", self.tensor("i", ranks=(1, 2)), depth, values, axis=self.among(-1, 0, 1)
        )

    def draw_triangle(self) -> None:
        self.node("Trilu", self.tensor(ranks=(2, 3, 4)))

    def draw_norm(self) -> None:
        x = self.tensor(ranks=(2, 3))
        axis = self.axis(x)
        shape = self.graph.values[x].shape[axis % self.graph.values[x].ndim :]
        self.node("LayerNormalization", x, self.graph.put(np.ones(shape, np.float32)), axis=axis)

    def draw_convolution(self) -> None:
        x = self.tensor(ranks=(3,))
        weight = np.ones((2, self.graph.values[x].shape[1], 3), np.float32)
        self.node("Conv", x, self.graph.put(weight), pads=[1, 1], strides=[self.among(1, 2)])

    def draw_pool(self) -> None:
        self.node("MaxPool", self.tensor(ranks=(3,)), kernel_shape=[2], strides=[self.among(1, 2)])

    def draw_recurrent(self) -> None:
        x = self.tensor(ranks=(3,))
        rng = np.random.default_rng(len(self.graph.nodes))
        width = self.graph.values[x].shape[-1]
        parts = [rng.normal(size=(1, 3, size)).astype(np.float32) for size in (width, 3)]
        self.node("RNN", x, *map(self.graph.put, parts), outputs=2, hidden_size=3)

    def draw_reversed(self) -> None:
        x, lengths = self.tensor(ranks=(2, 3)), self.tensor("i", ranks=(1,))
        batch = self.among(0, 1)
        self.node("ReverseSequence", x, lengths, batch_axis=batch, time_axis=1 - batch)

    def draw_scatter(self) -> None:
        x, indices = self.tensor(ranks=(1, 2, 3)), self.tensor("i")
        self.node("ScatterElements", x, indices, self.tensor(), axis=self.axis(x))


@st.composite
def graphs(draw: st.DrawFn) -> tuple[bytes, str]:
    """A model with inputs `x` [N, S, 2], `k` [N, S] and `f` [N, 4], and the operators it has."""
    graph = Graph(values=dict(inputs(ROWS, 0, 1.0)))
    writer = _Writer(draw, graph)
    count = draw(st.integers(1, 10))
    for _ in range(count):
        before = len(graph.nodes)
        try:
            writer.step()
        except ValueError:
            # What was added on the way stays: it runs.
            assert len(graph.nodes) >= before
    names = [
        name
        for name, value in graph.values.items()
        if value.ndim and len(value) == ROWS and value.dtype.kind in "fi"
    ]
    output = draw(st.sampled_from(names[-3:]))
    return graph.model(output), " ".join(node.op_type for node in graph.nodes)
