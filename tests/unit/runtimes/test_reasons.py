"""Messages of libraries, as they came from real ones, keep what people need."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.runtimes.libraries import reason_of
from headrace.testing import models

ORT = "/onnxruntime_src/onnxruntime/core"


CASES = {
    (
        f"[ONNXRuntimeError] : 1 : FAIL : {ORT}/graph/model.cc:256 onnxruntime::Model::Model("
        "onnx::ModelProto&&, const onnxruntime::PathString&, const onnxruntime::"
        "IOnnxRuntimeOpSchemaRegistryList*, const onnxruntime::logging::Logger&, const "
        "onnxruntime::ModelOptions&) Unsupported model IR version: 99, max supported IR version: 14"
    ): "Unsupported model IR version: 99, max supported IR version: 14",
    (
        f"Load model from /x/m.onnx failed:{ORT}/graph/model_load_utils.h:46 void onnxruntime::"
        "model_load_utils::ValidateOpsetForDomain(const std::unordered_map<std::__cxx11::"
        "basic_string<char>, int>&, const onnxruntime::logging::Logger&, bool, const "
        "std::string&, int) Opset 99 is under development"
    ): "Load model from /x/m.onnx failed:Opset 99 is under development",
    (
        "Non-zero status code returned while running Reshape node. Name:'r' Status Message: "
        f"{ORT}/providers/cpu/tensor/reshape_helper.h:91 onnxruntime::ReshapeHelper::"
        "ReshapeHelper(const onnxruntime::TensorShape&, onnxruntime::TensorShapeVector&, bool) "
        "input_shape_size == requested_shape_size was false. The input tensor cannot be "
        "reshaped to the requested shape. Input shape:{1,4}, requested shape:{3,3}\n"
    ): (
        "Non-zero status code returned while running Reshape node. Name:'r' Status Message: "
        "The input tensor cannot be reshaped to the requested shape. Input shape:{1,4}, "
        "requested shape:{3,3}"
    ),
    (
        f"{ORT}/framework/bfc_arena.cc:376 void* onnxruntime::BFCArena::AllocateRawInternal("
        "size_t, bool, onnxruntime::Stream*) Failed to allocate memory for a buffer of size 42"
    ): "Failed to allocate memory for a buffer of size 42",
    (
        f"{ORT}/framework/utils.cc:61 onnxruntime::common::Status onnxruntime::(anonymous "
        "namespace)::Check(std::function<void (int)>) const [with T = float] no such thing"
    ): "no such thing",
    "matmul_helper.h:59 Compute MatMul dimension mismatch": "Compute MatMul dimension mismatch",
    (
        "[20:18:38] /workspace/src/learner.cc:1289: Check failed: features >= columns (3 vs. 4) : "
        "Number of columns does not match number of features in booster.\nStack trace:\n"
        "  [bt] (0) /lib/libxgboost.so(+0x11031e) [0x7f9792f1031e]\n"
    ): (
        "Check failed: features >= columns (3 vs. 4) : Number of columns does not match number of "
        "features in booster."
    ),
    "util/ysaveload.cpp:17: can not load pod type(4, 3 bytes)": "can not load pod type(4, 3 bytes)",
    (
        "shape '[2]' is invalid for input of size 3\nException raised from infer_size at "
        "../aten/src/ATen/InferUtils.h:31 (most recent call first):\nframe #0: c10::Error"
    ): "shape '[2]' is invalid for input of size 3",
    "": "RuntimeError",
}


@pytest.mark.parametrize("message", CASES)
def test_paths_signatures_and_traces_are_left_out(message: str) -> None:
    assert reason_of(RuntimeError(message)) == CASES[message]


@given(st.text(st.characters(exclude_characters=".\n:"), max_size=900))
def test_a_reason_is_one_short_line_and_a_long_one_keeps_both_ends(text: str) -> None:
    start, end = "cannot load", "max supported version: 14"
    reason = reason_of(ValueError(f"{start} {text} {end}"))

    assert len(reason) <= 400
    assert "\n" not in reason
    assert reason.startswith(start)
    assert reason.endswith(end)


@pytest.mark.parametrize(
    ("field", "text"), [("ir", "max supported IR version: "), ("opset", "till opset ")]
)
def test_what_the_installed_onnx_runtime_supports_is_said_of_a_model_that_is_too_new(
    field: str, text: str
) -> None:
    model = onnx.load_from_string(models.mlp())
    if field == "ir":
        model.ir_version = 99
    else:
        model.opset_import[0].version = 99
    with pytest.raises(Exception, match="99") as refused:  # the binding's own errors
        ort.InferenceSession(model.SerializeToString())
    reason = reason_of(refused.value)

    assert text in reason
    assert "onnxruntime::" not in reason
    assert np.char.count(reason, "/onnxruntime_src") == 0
