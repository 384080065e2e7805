"""A model's class is told from its graph, whatever the file holds."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from headrace.core import Array, UnsupportedModelError
from headrace.optimize.candidate import ModelClass
from headrace.optimize.search.recipes import classify, classify_facts
from headrace.runtimes.onnx.facts import OnnxFacts, read_onnx_facts
from headrace.testing.models import FLOAT, build, encoder, mlp, strings, write_external
from tests.network_models import conv_net, encoder_layer, write

ENCODER = encoder_layer()


def class_of(folder: Path, model: bytes) -> ModelClass:
    return classify(write(folder, model), "onnx").model_class


def fused(operator: str, count: int, **others: int) -> ModelClass:
    facts = OnnxFacts()
    facts.operators.update({operator: count, **others})
    return classify_facts(facts).model_class


def test_an_encoder_is_a_transformer_and_the_reason_says_by_what(tmp_path: Path) -> None:
    found = classify(write(tmp_path, encoder_layer()), "onnx")

    assert found.model_class is ModelClass.TRANSFORMER
    assert found.reason == (
        "9 matrix products, no convolutions, 1 attention and 2 layer normalisations"
    )


def test_attention_is_seen_without_layer_normalisation(tmp_path: Path) -> None:
    assert class_of(tmp_path, encoder()) is ModelClass.TRANSFORMER


def test_convolutions_make_a_conv_net(tmp_path: Path) -> None:
    assert class_of(tmp_path, conv_net()) is ModelClass.CONV_NET


def test_a_softmax_at_the_end_is_no_attention(tmp_path: Path) -> None:
    assert class_of(tmp_path, mlp()) is ModelClass.OTHER


@pytest.mark.parametrize("operator", ["Attention", "MultiHeadAttention", "QAttention"])
def test_fused_attention_counts(operator: str) -> None:
    assert fused(operator, 6, SkipLayerNormalization=12) is ModelClass.TRANSFORMER


def test_a_conv_net_with_some_attention_stays_one() -> None:
    facts = OnnxFacts(attentions=2)
    facts.operators.update({"Conv": 57, "MatMul": 13})

    assert classify_facts(facts).model_class is ModelClass.CONV_NET


def test_a_vision_transformer_is_a_transformer() -> None:
    facts = OnnxFacts(attentions=12)
    facts.operators.update({"Conv": 1, "MatMul": 96, "LayerNormalization": 25})

    assert classify_facts(facts).model_class is ModelClass.TRANSFORMER


@pytest.mark.parametrize("operator", ["TreeEnsemble", "TreeEnsembleClassifier"])
def test_ensembles_of_trees_are_trees(operator: str) -> None:
    assert fused(operator, 1, Cast=1) is ModelClass.TREES


def test_a_tree_in_front_of_a_network_does_not_make_it_one() -> None:
    assert fused("TreeEnsembleRegressor", 1, Gemm=5) is ModelClass.OTHER


@pytest.mark.parametrize("runtime", ["xgboost", "lightgbm", "catboost"])
def test_tree_libraries_need_no_look_into_the_file(runtime: str) -> None:
    assert classify(Path("absent"), runtime).model_class is ModelClass.TREES


def test_other_formats_wait_for_their_conversion(tmp_path: Path) -> None:
    found = classify(write(tmp_path, mlp()), "torchscript")

    assert found.model_class is ModelClass.OTHER
    assert "after conversion to ONNX" in found.reason


def quantized_shares() -> bytes:
    weights: dict[str, Array] = {
        "scale": np.array(0.01, np.float32),
        "zero": np.array(0, np.uint8),
        "v": np.ones((4, 4), np.float32),
    }
    return build(
        [
            ("MatMul", ["x", "v"], ["scores"], {}),
            ("Softmax", ["scores"], ["shares"], {"axis": -1}),
            ("QuantizeLinear", ["shares", "scale", "zero"], ["small"], {}),
            ("DequantizeLinear", ["small", "scale", "zero"], ["rough"], {}),
            ("MatMul", ["rough", "v"], ["y"], {}),
        ],
        [("x", FLOAT, ["N", 4])],
        [("y", FLOAT, ["N", 4])],
        weights,
    )


def test_attention_is_followed_through_rounding(tmp_path: Path) -> None:
    facts = read_onnx_facts(write(tmp_path, quantized_shares()))

    assert facts.attentions == 1
    assert facts.is_quantized


def test_what_is_inside_of_branches_counts(tmp_path: Path) -> None:
    inner = onnx.load_model_from_string(conv_net()).graph
    del inner.input[:]
    model = build(
        [("If", ["flag"], ["logits"], {"then_branch": inner, "else_branch": inner})],
        [("flag", TensorProto.BOOL, []), ("image", FLOAT, ["N", 3, 16, 16])],
        [("logits", FLOAT, ["N", 5])],
    )

    facts = read_onnx_facts(write(tmp_path, model))

    assert facts.operators["Conv"] == 4
    assert facts.has_branches
    assert classify_facts(facts).model_class is ModelClass.CONV_NET


def test_what_is_inside_of_functions_counts(tmp_path: Path) -> None:
    function = helper.make_function(
        "mine",
        "Twice",
        ["x"],
        ["y"],
        [helper.make_node("Conv", ["x", "x"], ["y"])],
        [helper.make_opsetid("", 17)],
    )
    model = onnx.load_model_from_string(mlp())
    model.functions.append(function)

    assert read_onnx_facts(write(tmp_path, model.SerializeToString())).operators["Conv"] == 1


def test_weights_in_another_file_are_told_without_being_read(tmp_path: Path) -> None:
    path = write_external(tmp_path)
    (tmp_path / "weights.bin").unlink()

    facts = read_onnx_facts(path)

    assert set(facts.external) == {"weights.bin"}
    assert facts.weights_bytes == 64 * 64 * 4


def test_constants_count_as_weights(tmp_path: Path) -> None:
    tensor = helper.make_tensor("t", FLOAT, [1000], np.zeros(1000, np.float32))
    model = build(
        [("Constant", [], ["c"], {"value": tensor}), ("Add", ["x", "c"], ["y"], {})],
        [("x", FLOAT, [1000])],
        [("y", FLOAT, [1000])],
    )

    assert read_onnx_facts(write(tmp_path, model)).weights_bytes == 4000


def test_text_half_precision_and_opset_are_told(tmp_path: Path) -> None:
    assert read_onnx_facts(write(tmp_path, strings())).takes_text
    facts = read_onnx_facts(write(tmp_path, mlp()))
    assert not facts.takes_text
    assert not facts.is_half
    assert (facts.opset, facts.ir_version) == (17, 8)
    half = build(
        [("MatMul", ["x", "w"], ["y"], {})],
        [("x", TensorProto.FLOAT16, ["N", 4])],
        [("y", TensorProto.FLOAT16, ["N", 4])],
        {"w": np.ones((4, 4), np.float16)},
    )
    assert read_onnx_facts(write(tmp_path, half)).is_half


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is empty"),
        (b"\x08\x08", "holds no graph"),
        (b"\x08\x08:\x7f", "ends before its content does"),
        (b"\x08\x00\x00\x00ORTM" + bytes(64), "ONNX Runtime's own format"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
    ],
)
def test_damaged_files_are_refused_with_the_reason(
    tmp_path: Path, content: bytes, reason: str
) -> None:
    with pytest.raises(UnsupportedModelError, match=reason):
        classify(write(tmp_path, content), "onnx")


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    for runtime in ("onnx", "torchscript"):
        with pytest.raises(UnsupportedModelError, match=r"[nN]o such file"):
            classify(tmp_path / "absent.onnx", runtime)


def test_graphs_nested_without_end_are_refused(tmp_path: Path) -> None:
    graph = b""
    for _ in range(200):
        attribute = b"\x32" + _length(graph) + graph
        node = b"\x22\x02If" + b"\x2a" + _length(attribute) + attribute
        graph = b"\x0a" + _length(node) + node
    model = b"\x08\x08\x3a" + _length(graph) + graph

    with pytest.raises(UnsupportedModelError, match="nests graphs deeper than 16"):
        classify(write(tmp_path, model), "onnx")


def _length(message: bytes) -> bytes:
    size, found = len(message), bytearray()
    while size > 0x7F:
        found.append(size & 0x7F | 0x80)
        size >>= 7
    return bytes([*found, size])


@given(place=st.integers(0, len(ENCODER) - 1), value=st.binary(max_size=6))
def test_no_damage_does_more_than_to_refuse_the_file(
    tmp_path_factory: pytest.TempPathFactory, place: int, value: bytes
) -> None:
    folder = tmp_path_factory.mktemp("damaged")
    for rest in (b"", ENCODER[place + len(value) :]):
        file = write(folder, ENCODER[:place] + value + rest)
        try:
            reason = classify(file, "onnx").reason
        except UnsupportedModelError as error:
            reason = str(error)

        assert reason
