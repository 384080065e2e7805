"""Small ONNX graphs whose rows depend on each other, and graphs that look so and are not."""

from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from headrace.core import Array

Proto = Any  # onnx ships no types
FLOAT: Final = TensorProto.FLOAT
INT64: Final = TensorProto.INT64
BOOL: Final = TensorProto.BOOL

Inputs = dict[str, tuple[int, Sequence[Any]]]
TABLE: Final[Inputs] = {"x": (FLOAT, ["N", 4])}
IMAGE: Final[Inputs] = {"x": (FLOAT, ["N", 3, 8, 8])}
SEQUENCE: Final[Inputs] = {"x": (FLOAT, ["N", "S", 4])}


class Net:
    """Nodes and constants of a graph that is being written."""

    def __init__(self) -> None:
        self.nodes: list[Proto] = []
        self.constants: dict[str, Array] = {}

    def op(self, kind: str, *inputs: str | Array, outputs: int = 1, **attributes: Any) -> str:  # noqa: ANN401  # as ONNX has it
        """Add a node; arrays become constants. The other outputs end in _1, _2."""
        names = [item if isinstance(item, str) else self.put(item) for item in inputs]
        name = f"{kind.lower()}{len(self.nodes)}"
        results = [name, *(f"{name}_{i}" for i in range(1, outputs))]
        self.nodes.append(helper.make_node(kind, names, results, name, **attributes))
        return name

    def put(self, value: Array) -> str:
        name = f"constant{len(self.constants)}"
        self.constants[name] = value
        return name

    def subgraph(self, output: str, kind: int = FLOAT) -> Proto:
        """These nodes as a graph without inputs."""
        result = helper.make_tensor_value_info(output, kind, None)
        weights = [numpy_helper.from_array(value, name) for name, value in self.constants.items()]
        return helper.make_graph(self.nodes, "inner", [], [result], weights)


Builder = Callable[[Net], str]


def ints(*values: int) -> Array:
    return np.array(values, np.int64)


def number(value: float) -> Array:
    return np.array(value, np.float32)


def weights(*shape: int) -> Array:
    return np.random.default_rng(len(shape)).normal(size=shape).astype(np.float32)


def model(build: Builder, inputs: Inputs = TABLE, *, kind: int = FLOAT, opset: int = 17) -> bytes:
    """The model that a builder writes; its output is `y`."""
    net = Net()
    output = build(net)
    net.nodes.append(helper.make_node("Identity", [output], ["y"], "last"))
    graph = helper.make_graph(
        net.nodes,
        "rows",
        [helper.make_tensor_value_info(name, *value) for name, value in inputs.items()],
        [helper.make_tensor_value_info("y", kind, None)],
        [numpy_helper.from_array(value, name) for name, value in net.constants.items()],
    )
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("ai.onnx.ml", 3)]
    return bytes(helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString())


def rows_of(net: Net, name: str = "x") -> str:
    """The number of rows as a vector of one number."""
    return net.op("Gather", net.op("Shape", name), ints(0), axis=0)


def row_numbers(net: Net) -> str:
    count = net.op("Squeeze", rows_of(net), ints(0))
    return net.op("Range", np.array(0), count, np.array(1))


def _any(net: Net, limit: float, name: str = "x") -> str:
    return net.op("Greater", net.op("ReduceMax", name, keepdims=0), number(limit))


def _divided_if(net: Net, limit: float, divisor: float = 255) -> str:
    return net.op("Where", _any(net, limit), net.op("Div", "x", number(divisor)), "x")


def _branches(net: Net) -> str:
    inner, other = Net(), Net()
    yes = inner.op("Div", "x", number(255))
    no = other.op("Identity", "x")
    other.nodes[-1].output[0] = no = "unchanged"
    return net.op(
        "If", _any(net, 1), then_branch=inner.subgraph(yes), else_branch=other.subgraph(no)
    )


def _mask_of_lengths(net: Net) -> str:
    longest = net.op("ReduceMax", "lens", keepdims=0)
    places = net.op("Range", np.array(0), longest, np.array(1))
    return net.op("Cast", net.op("Less", places, net.op("Unsqueeze", "lens", ints(1))), to=FLOAT)


def _any_flag(net: Net) -> str:
    flag = net.op("ReduceMax", "flags", keepdims=0)
    return net.op("Mul", "flags", net.op("Add", flag, np.array(1)))


def _ranks(net: Net) -> str:
    count = rows_of(net)
    net.op("TopK", net.op("ReduceSum", "x", ints(1), keepdims=0), count, outputs=2, axis=0)
    return net.op("Cast", f"{net.nodes[-1].name}_1", to=FLOAT)


def _unique(net: Net) -> str:
    net.op("Unique", net.op("ReduceSum", "x", ints(1), keepdims=0), outputs=4)
    return net.op("Cast", f"{net.nodes[-1].name}_2", to=FLOAT)


def _variance(net: Net) -> str:
    centred = net.op("Sub", "x", net.op("ReduceMean", "x", axes=[0]))
    square = net.op("ReduceMean", net.op("Mul", centred, centred), axes=[0])
    return net.op("Div", centred, net.op("Sqrt", net.op("Add", square, number(1e-3))))


def _attention_over_rows(net: Net) -> str:
    scores = net.op("MatMul", "x", net.op("Transpose", "x", perm=[1, 0]))
    return net.op("MatMul", net.op("Softmax", scores, axis=-1), "x")


def _as_sequence(net: Net) -> str:
    sequence = net.op("Unsqueeze", "x", ints(1))
    net.op("LSTM", sequence, weights(1, 16, 4), weights(1, 16, 4), outputs=3, hidden_size=4)
    return net.op("Reshape", f"{net.nodes[-1].name}", ints(-1, 4))


def _over_places(net: Net, kind: str, *inputs: Array, **attributes: Any) -> str:  # noqa: ANN401
    turned = net.op("Unsqueeze", net.op("Transpose", "x", perm=[1, 0]), ints(0))
    seen = net.op(kind, turned, *inputs, **attributes)
    return net.op("Transpose", net.op("Squeeze", seen, ints(0)), perm=[1, 0])


def _folded(net: Net) -> str:
    mixed = net.op("Softmax", net.op("Reshape", "x", ints(4, -1)), axis=-1)
    return net.op("Reshape", mixed, ints(-1, 4))


def _rolled(net: Net) -> str:
    rest = net.op("Slice", "x", ints(1), ints(1 << 40), ints(0))
    return net.op("Concat", rest, net.op("Slice", "x", ints(0), ints(1), ints(0)), axis=0)


def _shifted(net: Net) -> str:
    padded = net.op("Pad", "x", ints(1, 0, 0, 0))
    return net.op("Slice", padded, ints(0), ints(-1), ints(0))


def _looked_up_backwards(net: Net) -> str:
    last = net.op("Sub", rows_of(net), ints(1))
    backwards = net.op("Sub", last, row_numbers(net))
    return net.op("GatherND", "x", net.op("Unsqueeze", backwards, ints(1)))


def _numbered(net: Net, kind: int) -> str:
    """Each row looks itself up by its number, which is stored in a small datatype."""
    numbers = net.op("Cast", net.op("Cast", row_numbers(net), to=kind), to=INT64)
    return net.op("Gather", "x", numbers, axis=0)


def _small_index(net: Net) -> str:
    """An index of each row that wraps in its datatype, and then lies in the row before."""
    wide = net.op("Tile", "x", ints(1, 100))
    best = net.op("ArgMax", wide, axis=1, keepdims=0, select_last_index=1)
    wrapped = net.op("Cast", net.op("Cast", best, to=TensorProto.INT8), to=INT64)
    places = net.op("Add", net.op("Mul", row_numbers(net), np.array(400)), wrapped)
    flat = net.op("Reshape", wide, ints(-1))
    return net.op("Unsqueeze", net.op("Gather", flat, places, axis=0), ints(1))


def _diagonal(net: Net) -> str:
    """Of row i the value at position i."""
    numbers = net.op("Unsqueeze", row_numbers(net), ints(1))
    both = net.op("Expand", numbers, net.op("Concat", rows_of(net), ints(2), axis=0))
    return net.op("Unsqueeze", net.op("GatherND", "x", both), ints(1))


def _like_rows(net: Net) -> str:
    """A constant in the datatype of the rows has no rows; its size folds them into one."""
    size = net.op("Gather", net.op("Shape", net.op("CastLike", weights(1, 4), "x")), ints(0))
    folded = net.op("Reshape", "x", net.op("Concat", size, ints(-1), axis=0))
    largest = net.op("ReduceMax", folded, axes=[1], keepdims=1)
    return net.op("Where", net.op("Greater", largest, number(1e7)), net.op("Neg", "x"), "x")


def _scaled_alike(net: Net) -> str:
    picture = net.op("Reshape", "x", ints(0, 1, 4, 1))
    sizes = net.op("Concat", net.op("Gather", net.op("Shape", picture), ints(0)), ints(8), axis=0)
    resized = net.op(
        "Resize",
        picture,
        "",
        "",
        sizes,
        mode="nearest",
        axes=[0, 2],
        keep_aspect_ratio_policy="not_smaller",
    )
    return net.op("Reshape", resized, ints(0, -1))


def _scattered(net: Net) -> str:
    first = net.op("Mul", net.op("Cast", "x", to=INT64), np.array(0))
    return net.op("ScatterElements", "x", first, "x", axis=0)


def _summed_loop(net: Net) -> str:
    body = helper.make_graph(
        [
            helper.make_node("Gather", ["x", "i"], ["row"], axis=0),
            helper.make_node("Add", ["row", "sum"], ["more"]),
            helper.make_node("Identity", ["go"], ["on"]),
            helper.make_node("Identity", ["more"], ["taken"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("i", INT64, []),
            helper.make_tensor_value_info("go", BOOL, []),
            helper.make_tensor_value_info("sum", FLOAT, [4]),
        ],
        [
            helper.make_tensor_value_info("on", BOOL, []),
            helper.make_tensor_value_info("more", FLOAT, [4]),
            helper.make_tensor_value_info("taken", FLOAT, [4]),
        ],
    )
    count = net.op("Squeeze", rows_of(net), ints(0))
    start = np.zeros(4, np.float32)
    net.op("Loop", count, np.ones((), np.bool_), start, outputs=2, body=body)
    return f"{net.nodes[-1].name}_1"


def _scan(net: Net, *, carries: bool) -> str:
    body = helper.make_graph(
        [
            helper.make_node("Add", ["row", "state"], ["sum"]),
            helper.make_node("Identity", ["sum" if carries else "state"], ["next"]),
            helper.make_node("Mul", ["sum", "sum"], ["out"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("state", FLOAT, [4]),
            helper.make_tensor_value_info("row", FLOAT, [4]),
        ],
        [
            helper.make_tensor_value_info("next", FLOAT, [4]),
            helper.make_tensor_value_info("out", FLOAT, [4]),
        ],
    )
    net.op("Scan", np.ones(4, np.float32), "x", outputs=2, body=body, num_scan_inputs=1)
    return f"{net.nodes[-1].name}_1"


def _distances(net: Net) -> str:
    """As skl2onnx writes neighbours: one pass for each row of a table, the requests unchanged."""
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["state"], ["next"]),
            helper.make_node("Sub", ["state", "row"], ["away"]),
            helper.make_node("ReduceSumSquare", ["away"], ["out"], axes=[1], keepdims=0),
        ],
        "body",
        [
            helper.make_tensor_value_info("state", FLOAT, None),
            helper.make_tensor_value_info("row", FLOAT, [4]),
        ],
        [
            helper.make_tensor_value_info("next", FLOAT, None),
            helper.make_tensor_value_info("out", FLOAT, None),
        ],
    )
    net.op("Scan", "x", weights(5, 4), outputs=2, body=body, num_scan_inputs=1)
    return net.op("Transpose", f"{net.nodes[-1].name}_1", perm=[1, 0])


def _by_size(net: Net) -> str:
    inner, other = Net(), Net()
    yes = inner.op("Mul", "x", number(2))
    other.op("Identity", "x")
    other.nodes[-1].output[0] = "unchanged"
    only = net.op("Equal", net.op("Squeeze", rows_of(net), ints(0)), np.array(1))
    return net.op(
        "If", only, then_branch=inner.subgraph(yes), else_branch=other.subgraph("unchanged")
    )


def _pool_places(net: Net) -> str:
    net.op("MaxPool", "x", outputs=2, kernel_shape=[8, 8])
    return net.op("Cast", f"{net.nodes[-1].name}_1", to=FLOAT)


def _quantised(net: Net) -> str:
    net.op("DynamicQuantizeLinear", "x", outputs=3)
    name = net.nodes[-1].name
    return net.op("DequantizeLinear", name, f"{name}_1", f"{name}_2")


def _each_with_each(net: Net) -> str:
    one, other = net.op("Unsqueeze", "x", ints(0)), net.op("Unsqueeze", "x", ints(1))
    return net.op("ReduceMean", net.op("Mul", one, other), axes=[0], keepdims=0)


def _repeated(net: Net) -> str:
    rows = rows_of(net)
    sizes = net.op("Concat", rows, rows, ints(4), axis=0)
    wide = net.op("Expand", net.op("Unsqueeze", "x", ints(0)), sizes)
    return net.op("ReduceMean", wide, axes=[1], keepdims=0)


def _counted(net: Net) -> str:
    ones = net.op(
        "ConstantOfShape", rows_of(net), value=numpy_helper.from_array(np.ones(1, np.float32))
    )
    return net.op("Div", "x", net.op("ReduceSum", ones, keepdims=0))


def _kept_rows(net: Net) -> str:
    positive = net.op("Greater", net.op("ReduceSum", "x", ints(1), keepdims=0), number(-1e9))
    return net.op("Compress", "x", positive, axis=0)


def _places_of_values(net: Net) -> str:
    places = net.op("NonZero", net.op("Greater", "x", number(-1e9)))
    return net.op(
        "Reshape", net.op("GatherND", "x", net.op("Transpose", places, perm=[1, 0])), ints(-1, 4)
    )


def _gated_by_other_rows(net: Net) -> str:
    scale = net.op(
        "Sigmoid",
        net.op(
            "MatMul",
            np.ones((1, 4), np.float32),
            net.op("MatMul", net.op("Transpose", "x", perm=[1, 0]), "x"),
        ),
    )
    return net.op("Mul", "x", scale)


COUPLED: Final[dict[str, bytes]] = {
    # What the findings planted.
    "divided if the largest value is above 1": model(lambda net: _divided_if(net, 1)),
    "divided in a branch": model(_branches),
    "mask as long as the longest row": model(_mask_of_lengths, {"lens": (INT64, ["N"])}),
    "any flag of integers": model(_any_flag, {"flags": (INT64, ["N", 4])}, kind=INT64),
    "divided if a rare value is seen": model(lambda net: _divided_if(net, 10)),
    "cumulative sum": model(lambda net: net.op("CumSum", "x", np.array(0))),
    "rank among rows": model(_ranks),
    "mean of the batch": model(lambda net: net.op("Sub", "x", net.op("ReduceMean", "x", axes=[0]))),
    "variance of the batch": model(_variance),
    "softmax over rows": model(lambda net: net.op("Softmax", "x", axis=0)),
    "unique values": model(_unique),
    # Others.
    "divided by the number of rows": model(
        lambda net: net.op("Div", "x", net.op("Cast", rows_of(net), to=FLOAT))
    ),
    "divided by the number of elements": model(
        lambda net: net.op("Div", "x", net.op("Cast", net.op("Size", "x"), to=FLOAT))
    ),
    "divided by a sum of ones": model(_counted),
    "plus its position": model(
        lambda net: net.op(
            "Add", "x", net.op("Unsqueeze", net.op("Cast", row_numbers(net), to=FLOAT), ints(1))
        )
    ),
    "plus a constant of three rows": model(lambda net: net.op("Add", "x", weights(3, 4))),
    "attention over rows": model(_attention_over_rows),
    "rows backwards": model(
        lambda net: net.op("Slice", "x", ints(-1), ints(-(1 << 62)), ints(0), ints(-1))
    ),
    "rows rolled": model(_rolled),
    "rows shifted": model(_shifted),
    "rows looked up backwards": model(_looked_up_backwards),
    "minus the first row": model(
        lambda net: net.op("Sub", "x", net.op("Gather", "x", ints(0), axis=0))
    ),
    "minus the largest of each column": model(
        lambda net: net.op("Sub", "x", net.op("ReduceMax", "x", axes=[0]))
    ),
    "rows folded into columns": model(_folded),
    "turned and read in another order": model(
        lambda net: net.op("Reshape", net.op("Transpose", "x", perm=[1, 0]), ints(-1, 4))
    ),
    "rows as a sequence": model(_as_sequence),
    "convolution over rows": model(
        lambda net: _over_places(net, "Conv", weights(4, 4, 3), pads=[1, 1])
    ),
    "pooling over rows": model(
        lambda net: _over_places(net, "MaxPool", kernel_shape=[3], pads=[1, 1])
    ),
    "normalised over rows": model(lambda net: net.op("LpNormalization", "x", axis=0)),
    "instance normalisation over rows": model(
        lambda net: _over_places(net, "InstanceNormalization", np.ones(4, np.float32), weights(4))
    ),
    "layer normalisation from axis 0": model(
        lambda net: net.op("LayerNormalization", "x", np.ones(4, np.float32), axis=0)
    ),
    "mean and variance of the usual axes": model(
        lambda net: net.op("MeanVarianceNormalization", "x"), IMAGE
    ),
    "batch normalisation that trains": model(
        lambda net: net.op(
            "BatchNormalization", "x", *[np.ones(3, np.float32)] * 4, outputs=3, training_mode=1
        ),
        IMAGE,
    ),
    "dynamic quantisation": model(_quantised),
    "gram matrix of columns": model(
        lambda net: net.op("MatMul", "x", net.op("Einsum", "x", "x", equation="bi,bj->ij"))
    ),
    "einsum that sums over rows": model(
        lambda net: net.op("Mul", "x", net.op("Einsum", "x", equation="bi->i"))
    ),
    "cumulative sum of all elements": model(
        lambda net: net.op(
            "Reshape",
            net.op("CumSum", net.op("Reshape", "x", ints(-1)), np.array(0)),
            ints(-1, 4),
        )
    ),
    "softmax of old opsets": model(lambda net: net.op("Softmax", "x", axis=0), opset=11),
    "written to the first row": model(_scattered),
    "row numbers as bytes": model(lambda net: _numbered(net, TensorProto.UINT8)),
    "row numbers as half floats": model(lambda net: _numbered(net, TensorProto.FLOAT16)),
    "index of a row that wraps": model(_small_index),
    "diagonal of the batch": model(_diagonal),
    "size of a constant like the rows": model(_like_rows),
    "batch axis scaled as another": model(_scaled_alike, opset=18),
    "loop over rows": model(_summed_loop),
    "scan with a state": model(lambda net: _scan(net, carries=True)),
    "branch on the number of rows": model(_by_size),
    "places of a pooling": model(_pool_places, IMAGE),
    "each row with each": model(_each_with_each),
    "rows repeated for each row": model(_repeated),
    "rows that pass a condition": model(_kept_rows),
    "values that are not zero": model(_places_of_values),
    "identity matrix over rows": model(
        lambda net: net.op("Mul", "x", net.op("EyeLike", "x", dtype=FLOAT))
    ),
    "upper triangle over rows": model(lambda net: net.op("Trilu", "x")),
    "gated by a product of all rows": model(_gated_by_other_rows),
    "random noise": model(lambda net: net.op("Add", "x", net.op("RandomNormalLike", "x"))),
    "dropout that trains": model(
        lambda net: net.op("Dropout", "x", number(0.5), np.ones((), np.bool_))
    ),
    "best row": model(
        lambda net: net.op(
            "Cast",
            net.op(
                "Equal",
                net.op("Cast", row_numbers(net), to=FLOAT),
                net.op(
                    "Cast",
                    net.op("ArgMax", net.op("ReduceSum", "x", ints(1), keepdims=0), axis=0),
                    to=FLOAT,
                ),
            ),
            to=FLOAT,
        )
    ),
    "global pool of rows": model(
        lambda net: net.op("Sub", "x", _over_places(net, "GlobalAveragePool"))
    ),
    "norm of the batch": model(lambda net: net.op("Div", "x", net.op("ReduceL2", "x", keepdims=0))),
    "scale of the batch": model(
        lambda net: net.op("Round", net.op("Div", "x", net.op("ReduceMax", net.op("Abs", "x"))))
    ),
}
"""Models whose rows depend on each other, on their number or on their position."""


def _heads_in_the_batch(net: Net) -> str:
    """As PyTorch's `MultiheadAttention`: the heads are rows of their own in between."""
    turned = net.op("Transpose", "x", perm=[1, 0, 2])
    shape = net.op("Shape", turned)
    length, rows = (net.op("Gather", shape, ints(i), axis=0) for i in (0, 1))
    wide = net.op("Concat", length, net.op("Mul", rows, ints(2)), ints(2), axis=0)
    parts = [
        net.op(
            "Transpose",
            net.op("Reshape", net.op("MatMul", turned, weights(4, 4)), wide),
            perm=[1, 0, 2],
        )
        for _ in range(3)
    ]
    scores = net.op("MatMul", parts[0], net.op("Transpose", parts[1], perm=[0, 2, 1]))
    mixed = net.op("MatMul", net.op("Softmax", scores, axis=-1), parts[2])
    flat = net.op("Concat", net.op("Mul", length, rows), ints(4), axis=0)
    together = net.op("Reshape", net.op("Transpose", mixed, perm=[1, 0, 2]), flat)
    linear = net.op("Gemm", together, weights(4, 4))
    back = net.op("Reshape", linear, net.op("Concat", length, rows, ints(4), axis=0))
    return net.op("Transpose", back, perm=[1, 0, 2])


def _last_token(net: Net) -> str:
    """As classifiers on decoders do: each row at a position that it computes."""
    last = net.op("ArgMax", net.op("ReduceSum", "x", ints(2), keepdims=0), axis=1, keepdims=0)
    places = [net.op("Unsqueeze", item, ints(1)) for item in (row_numbers(net), last)]
    return net.op("GatherND", "x", net.op("Concat", *places, axis=1))


def _shape_with_minus_one(net: Net) -> str:
    """As the exporter writes `expand(batch, -1, -1)`."""
    wanted = net.op("Concat", rows_of(net), ints(-1, -1), axis=0)
    ones = net.op("ConstantOfShape", ints(3), value=numpy_helper.from_array(ints(1)))
    sizes = net.op("Where", net.op("Equal", wanted, ints(-1, -1, -1)), ones, wanted)
    token = net.op("Expand", weights(1, 1, 4), sizes)
    return net.op("Concat", token, "x", axis=1)


def _windows(net: Net) -> str:
    """As Swin: windows of a picture are rows of their own in between."""
    split = net.op("Reshape", "x", ints(-1, 3, 2, 4, 2, 4))
    windows = net.op(
        "Reshape", net.op("Transpose", split, perm=[0, 2, 4, 3, 5, 1]), ints(-1, 16, 3)
    )
    soft = net.op("Softmax", windows, axis=1)
    whole = net.op("Reshape", soft, ints(-1, 2, 2, 4, 4, 3))
    return net.op("Reshape", net.op("Transpose", whole, perm=[0, 5, 1, 3, 2, 4]), ints(-1, 3, 8, 8))


def _recurrent(net: Net) -> str:
    """As CRNN: the time first, then the rows; the linear layer on both as one axis."""
    columns = net.op("Transpose", net.op("ReduceMean", "x", axes=[2], keepdims=0), perm=[2, 0, 1])
    net.op(
        "LSTM",
        columns,
        weights(2, 16, 3),
        weights(2, 16, 4),
        outputs=3,
        hidden_size=4,
        direction="bidirectional",
    )
    seen = net.op("Transpose", net.nodes[-1].name, perm=[0, 2, 1, 3])
    linear = net.op("Gemm", net.op("Reshape", seen, ints(-1, 8)), weights(8, 5))
    back = net.op("Reshape", linear, net.op("Concat", ints(8), rows_of(net), ints(5), axis=0))
    return net.op("Softmax", net.op("Transpose", back, perm=[1, 0, 2]), axis=2)


def _resized(net: Net) -> str:
    sizes = net.op(
        "Concat", net.op("Slice", net.op("Shape", "x"), ints(0), ints(2)), ints(16, 16), axis=0
    )
    return net.op(
        "Resize", "x", "", "", sizes, mode="linear", coordinate_transformation_mode="half_pixel"
    )


INDEPENDENT: Final[dict[str, bytes]] = {
    "heads in the batch": model(_heads_in_the_batch, SEQUENCE),
    "last token of each row": model(_last_token, SEQUENCE),
    "token before each row": model(_shape_with_minus_one, SEQUENCE),
    "windows of a picture": model(_windows, IMAGE),
    "time first": model(_recurrent, IMAGE),
    "resized picture": model(_resized, IMAGE),
    "distances to a table": model(_distances),
    "scan without a state": model(lambda net: _scan(net, carries=False)),
    "divided by the length": model(
        lambda net: net.op(
            "Div",
            "x",
            net.op("Cast", net.op("Gather", net.op("Shape", "x"), ints(1), axis=0), to=FLOAT),
        ),
        SEQUENCE,
    ),
    "lowest float where a number is negative": model(
        lambda net: net.op(
            "Where",
            net.op("Less", "x", np.zeros(1, np.float32)),
            np.array(np.finfo(np.float32).min, np.float32),
            "x",
        )
    ),
    "positions in the row": model(lambda net: net.op("CumSum", "x", np.array(1)), SEQUENCE),
    "best of each row": model(
        lambda net: net.op("Cast", net.op("ArgMax", "x", axis=1, keepdims=0), to=FLOAT)
    ),
    "sorted in the row": model(lambda net: net.op("TopK", "x", ints(2), outputs=2, axis=1)),
    "normalised in the row": model(lambda net: net.op("LpNormalization", "x", axis=1)),
    "mask of lengths": model(
        lambda net: net.op(
            "Cast", net.op("Less", ints(0, 1, 2, 3), net.op("Unsqueeze", "lens", ints(1))), to=FLOAT
        ),
        {"lens": (INT64, ["N"])},
    ),
    "einsum with the row in front": model(
        lambda net: net.op("Einsum", "x", weights(4, 5), equation="bi,io->bo")
    ),
    "pieces joined again": model(
        lambda net: net.op(
            "Concat",
            net.op("Split", "x", ints(1, 3), outputs=2, axis=1),
            f"{net.nodes[-1].name}_1",
            axis=1,
        )
    ),
    "scale of the row": model(
        lambda net: net.op("Div", "x", net.op("ReduceMax", net.op("Abs", "x"), axes=[1]))
    ),
}
"""Models whose rows are independent, as exporters write them."""


def parsed(content: bytes) -> Proto:
    return onnx.load_from_string(content)
