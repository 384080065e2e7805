"""Graphs that stand for more than anybody can compute end unproven, and soon."""

from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from headrace.core import VARIABLE, Datatype, TensorSpec
from headrace.runtimes.rows.onnx import analyse_onnx

TIMES = 60
INPUTS = (TensorSpec(name="x", datatype=Datatype.FP32, shape=(VARIABLE, 4)),)


def written(folder: Path, nodes: list[onnx.NodeProto], functions: int = 0) -> Path:
    """A model from `x` to `y` of these nodes, and of functions that call the one before twice."""
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("f", 1)]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    three = helper.make_tensor("three", TensorProto.INT64, [1], [3])
    graph = helper.make_graph(nodes, "g", [x], [y], [three])
    calls = [
        helper.make_function(
            "f", "F0", ["a"], ["b"], [helper.make_node("Relu", ["a"], ["b"])], opsets
        )
    ]
    for i in range(1, functions):
        body = [
            helper.make_node(f"F{i - 1}", ["a"], ["m"], domain="f"),
            helper.make_node(f"F{i - 1}", ["m"], ["b"], domain="f"),
        ]
        calls.append(helper.make_function("f", f"F{i}", ["a"], ["b"], body, opsets))
    path = folder / "model.onnx"
    model = helper.make_model(graph, functions=calls, opset_imports=opsets, ir_version=9)
    onnx.save(model, path)
    return path


def repeated(
    kind: str,
    start: list[onnx.NodeProto],
    **attributes: Any,  # noqa: ANN401  # whatever the operator has
) -> list[onnx.NodeProto]:
    """A size that an operator combines with itself, over and over, and a reshape to it."""
    return [
        *start,
        *(
            helper.make_node(kind, [f"c{i}", f"c{i}"], [f"c{i + 1}"], **attributes)
            for i in range(TIMES)
        ),
        helper.make_node("Reshape", ["x", f"c{TIMES}"], ["y"]),
    ]


SHAPE = [helper.make_node("Shape", ["x"], ["c0"])]
NUMBER = [helper.make_node("Identity", ["three"], ["c0"])]


@pytest.mark.parametrize(
    "nodes",
    [
        repeated("Mul", NUMBER),
        repeated("Mul", SHAPE),
        repeated("Add", SHAPE),
        repeated("Concat", SHAPE, axis=0),
    ],
    ids=["a number squared", "a size squared", "a size doubled", "a shape joined with itself"],
)
def test_sizes_without_a_bound_are_not_followed(
    nodes: list[onnx.NodeProto], tmp_path: Path
) -> None:
    assert not analyse_onnx(written(tmp_path, nodes), INPUTS).is_proven


def test_functions_without_end_are_not_followed(tmp_path: Path) -> None:
    path = written(tmp_path, [helper.make_node("F28", ["x"], ["y"], domain="f")], functions=29)

    verdict = analyse_onnx(path, INPUTS)

    assert "calls functions of more than 200000 nodes together" in verdict.why_not
