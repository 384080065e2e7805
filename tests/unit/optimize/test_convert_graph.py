"""A converter's graph becomes one with its source's names, datatypes and shapes."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headrace.core import Datatype, ModelSignature, TensorSpec, UnsupportedModelError
from headrace.runtimes import load_model
from tests.tabular_models import library

onnx = library("onnx", "convert")
from headrace.optimize.convert.graph import like_its_source, plain_opset  # noqa: E402  # needs it

MAKE = onnx.helper
FLOAT = onnx.TensorProto.FLOAT


def spec(name: str, datatype: Datatype, *shape: int) -> TensorSpec:
    return TensorSpec(name=name, datatype=datatype, shape=shape)


def doubling(opset: int = 13) -> Any:  # noqa: ANN401  # onnx ships no types
    """`in` FP32 [N, 2] to `out`, twice as much; it declares a wrong shape, as converters do."""
    nodes = [MAKE.make_node("Add", ["in", "in"], ["out"])]
    given = [MAKE.make_tensor_value_info("in", FLOAT, ["N", 2])]
    answers = [MAKE.make_tensor_value_info("out", FLOAT, [1])]
    graph = MAKE.make_graph(nodes, "converted by somebody", given, answers)
    return MAKE.make_model(graph, opset_imports=[MAKE.make_opsetid("", opset)])


def test_names_datatypes_and_shapes_become_those_of_the_source(tmp_path: Path) -> None:
    signature = ModelSignature(
        inputs=(spec("in", Datatype.FP64, -1, 2),),
        outputs=(spec("prediction", Datatype.FP64, -1, 2),),
        batched=True,
    )
    path = tmp_path / "m.onnx"
    path.write_bytes(like_its_source(doubling(), signature).SerializeToString())

    model = load_model(path)
    answers = model.run({"in": np.array([[1.5, 2.0]])})

    assert model.signature == signature
    assert answers["prediction"].tolist() == [[3.0, 4.0]]


def test_a_list_of_dictionaries_becomes_a_tensor(tmp_path: Path) -> None:
    graph = doubling()
    zipmap = MAKE.make_node(
        "ZipMap", ["out"], ["said"], domain="ai.onnx.ml", classlabels_int64s=[0, 1]
    )
    graph.graph.node.append(zipmap)
    graph.graph.output[0].name = "said"
    graph.opset_import.append(MAKE.make_opsetid("ai.onnx.ml", 2))
    signature = ModelSignature(
        inputs=(spec("input", Datatype.FP32, -1, 2),),
        outputs=(spec("probabilities", Datatype.FP32, -1, 2),),
        batched=True,
    )
    path = tmp_path / "m.onnx"
    path.write_bytes(like_its_source(graph, signature).SerializeToString())

    answers = load_model(path).run({"input": np.ones((3, 2), np.float32)})

    assert answers["probabilities"].shape == (3, 2)


def test_other_counts_of_tensors_are_refused() -> None:
    one, two = spec("a", Datatype.FP32, -1, 2), spec("b", Datatype.FP32, -1, 2)
    for inputs, outputs, told in (((one, two), (one,), "1 inputs"), ((one,), (one, two), "1 out")):
        signature = ModelSignature(inputs=inputs, outputs=outputs, batched=True)
        with pytest.raises(UnsupportedModelError, match=f"has {told}.*, and the source 2"):
            like_its_source(doubling(), signature)


def test_a_graph_without_plain_operators_gets_some() -> None:
    graph = doubling()
    del graph.opset_import[:]
    graph.opset_import.append(MAKE.make_opsetid("ai.onnx.ml", 2))
    assert plain_opset(graph) == 15

    signature = ModelSignature(
        inputs=(spec("x", Datatype.FP32, -1, 2),),
        outputs=(spec("y", Datatype.FP32, -1, 2),),
        batched=True,
    )
    made = like_its_source(graph, signature)

    assert {one.domain: one.version for one in made.opset_import} == {"": 15, "ai.onnx.ml": 2}
