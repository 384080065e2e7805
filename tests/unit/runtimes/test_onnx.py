import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from headrace.core import (
    Datatype,
    FailedPreconditionError,
    InvalidArgumentError,
    RuntimeFailedError,
    UnsupportedModelError,
)
from headrace.core.devices import DeviceUse
from headrace.runtimes import LoadOptions
from headrace.runtimes.onnx import runtime as onnx_runtime
from headrace.runtimes.onnx.providers import NO_GPU
from headrace.runtimes.onnx.runtime import OnnxModel, OnnxRuntime
from headrace.testing import models

Open = Callable[[bytes], OnnxModel]
Named = Callable[[str], OnnxModel]
CPU = LoadOptions(device="cpu")


def put(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("name", "batched"),
    [
        ("mlp", True),
        ("two_outputs", True),
        ("encoder", True),
        ("image", True),
        ("strings", True),
        ("lookup", True),
        ("wrong_declaration", True),
        ("unbatched", False),
        ("scalar", False),
        ("cumulative", False),
        ("softmax_over_rows", False),
        ("two_lengths", False),
    ],
)
def test_a_batch_axis_is_proved_not_believed(named: Named, name: str, *, batched: bool) -> None:
    assert named(name).signature.batched is batched


def test_why_a_model_is_served_unbatched_is_logged(
    named: Named, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        named("cumulative")

    assert "model.onnx is served unbatched: a CumSum node runs along the batch axis" in caplog.text


def test_the_signature_has_names_datatypes_and_shapes(named: Named) -> None:
    signature = named("encoder").signature

    assert [(spec.name, spec.datatype, spec.shape) for spec in signature.inputs] == [
        ("input_ids", "INT64", (-1, -1)),
        ("attention_mask", "INT64", (-1, -1)),
    ]
    assert [(spec.name, spec.shape) for spec in signature.outputs] == [
        ("tokens", (-1, -1, 8)),
        ("embedding", (-1, 8)),
    ]


def test_a_wrongly_declared_output_shape_is_corrected(named: Named) -> None:
    model = named("wrong_declaration")

    assert [spec.shape for spec in model.signature.outputs] == [(-1,)]
    assert model.run({"x": np.eye(3, dtype=np.float32)})["label"].tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("element_type", "datatype"),
    [
        (onnx.TensorProto.BOOL, Datatype.BOOL),
        (onnx.TensorProto.UINT8, Datatype.UINT8),
        (onnx.TensorProto.UINT16, Datatype.UINT16),
        (onnx.TensorProto.UINT32, Datatype.UINT32),
        (onnx.TensorProto.UINT64, Datatype.UINT64),
        (onnx.TensorProto.INT8, Datatype.INT8),
        (onnx.TensorProto.INT16, Datatype.INT16),
        (onnx.TensorProto.INT32, Datatype.INT32),
        (onnx.TensorProto.INT64, Datatype.INT64),
        (onnx.TensorProto.FLOAT16, Datatype.FP16),
        (onnx.TensorProto.FLOAT, Datatype.FP32),
        (onnx.TensorProto.DOUBLE, Datatype.FP64),
        (onnx.TensorProto.STRING, Datatype.BYTES),
    ],
)
def test_every_datatype_of_the_protocol_goes_through(
    open_onnx: Open, element_type: int, datatype: Datatype
) -> None:
    model = open_onnx(models.typed(element_type))
    x = np.array([[b"a", b"b"]] if datatype == "BYTES" else [[0, 1]], datatype.dtype)

    assert model.signature.inputs[0].datatype is datatype
    answer = model.run({"x": x})["y"]
    assert answer.dtype == datatype.dtype
    assert answer.tolist() == x.tolist()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (models.sequence_output(), r"output 'parts' is seq\(tensor\(float\)\).*plain tensors"),
        (models.typed(onnx.TensorProto.BFLOAT16), r"input 'x' is tensor\(bfloat16\).*cast it"),
        (models.typed(onnx.TensorProto.COMPLEX64), "complex64"),
        (models.mlp()[:1000], "truncated or corrupt"),
        (b"\x00" * 300, "truncated or corrupt"),
        (b"", r"is empty \(0 bytes\)"),
        (b"hello,\r\n\tworld", "is text, not ONNX$"),
        (b"<!DOCTYPE html><html>", "is text, not ONNX$"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "Git LFS pointer.*git lfs pull"),
        (b"PK\x03\x04rest", "is a ZIP archive"),
        (b"\x80\x04rest", "is a Python pickle"),
        (b"\x1f\x8brest", "gzip data; unpack it first"),
        (
            models.build(
                [("NoSuchOperator", ["x"], ["y"], {})],
                [("x", models.FLOAT, [1])],
                [("y", models.FLOAT, [1])],
            ),
            "ONNX Runtime refuses it: .*NoSuchOperator",
        ),
    ],
)
def test_what_cannot_be_served_is_refused_with_the_reason(
    open_onnx: Open, content: bytes, reason: str
) -> None:
    with pytest.raises(UnsupportedModelError, match=rf"model\.onnx: .*{reason}"):
        open_onnx(content)


def test_a_map_is_refused_with_the_exporters_way_out(open_onnx: Open) -> None:
    from onnx import TensorProto, helper  # noqa: PLC0415  # only this test builds a map

    node = helper.make_node("ZipMap", ["x"], ["z"], domain="ai.onnx.ml", classlabels_int64s=[0, 1])
    scores = helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, 2])
    value = helper.make_map_type_proto(
        TensorProto.INT64, helper.make_tensor_type_proto(TensorProto.FLOAT, None)
    )
    output = helper.make_value_info("z", helper.make_sequence_type_proto(value))
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 1)]
    graph = helper.make_graph([node], "g", [scores], [output])
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)

    with pytest.raises(UnsupportedModelError, match=r"output 'z' is seq\(map\(.*zipmap=False"):
        open_onnx(model.SerializeToString())


def test_weights_in_a_second_file_are_found_in_a_directory(tmp_path: Path) -> None:
    file = models.write_external(tmp_path / "model")

    directory = OnnxRuntime().load(tmp_path / "model", CPU)

    assert directory.signature == OnnxRuntime().load(file, CPU).signature


def test_weights_that_are_missing_are_said_to_be(tmp_path: Path) -> None:
    file = models.write_external(tmp_path)
    (tmp_path / "weights.bin").unlink()

    with pytest.raises(UnsupportedModelError, match="name the directory"):
        OnnxRuntime().load(file, CPU)


def test_a_directory_has_to_hold_one_model(tmp_path: Path) -> None:
    runtime = OnnxRuntime()
    with pytest.raises(UnsupportedModelError, match=r"holds no \.onnx file"):
        runtime.load(tmp_path, CPU)
    put(tmp_path / "a.onnx", models.matmul())
    put(tmp_path / ".hidden.onnx", b"")
    assert runtime.recognises(tmp_path)
    assert runtime.load(tmp_path, CPU).signature.batched

    put(tmp_path / "b.onnx", models.matmul())
    assert not runtime.recognises(tmp_path)
    with pytest.raises(UnsupportedModelError, match=r"several ONNX files \(a.onnx, b.onnx\)"):
        runtime.load(tmp_path, CPU)


def test_a_python_model_with_an_onnx_file_is_not_ours(tmp_path: Path) -> None:
    put(tmp_path / "a.onnx", models.matmul())
    put(tmp_path / "model.py", b"")

    assert not OnnxRuntime().recognises(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "recognised"),
    [
        ("a.ONNX", b"", True),
        ("a.ort", b"", True),
        ("blob", models.matmul(), True),
        ("blob", b"\x00\x00\x00\x00ORTM", True),
        ("blob", b"\x08", False),
        ("notes.txt", models.matmul(), False),
    ],
)
def test_onnx_is_recognised_by_suffix_or_else_by_its_first_bytes(
    tmp_path: Path, name: str, content: bytes, *, recognised: bool
) -> None:
    assert OnnxRuntime().recognises(put(tmp_path / name, content)) is recognised


def test_a_bad_row_is_the_models_failure_with_its_cause(named: Named) -> None:
    with pytest.raises(RuntimeFailedError, match=r"Gather.*out of data bounds") as caught:
        named("lookup").run({"index": np.array([99])})

    assert type(caught.value.__cause__).__name__ == "InvalidArgument"


def test_inputs_that_do_not_fit_are_the_callers_fault(named: Named) -> None:
    with pytest.raises(InvalidArgumentError, match="Got: 5 Expected: 4"):
        named("matmul").run({"x": np.zeros((1, 5), np.float32)})


def test_text_goes_in_and_out_as_bytes(named: Named) -> None:
    text = np.array([["wörld".encode()], [b""], [b"a\0b"]], np.object_)

    assert named("strings").run({"text": text})["echo"].tolist() == text.tolist()


def test_bytes_that_are_no_text_are_the_callers_fault(named: Named) -> None:
    with pytest.raises(InvalidArgumentError, match="input 'text' holds bytes that are not UTF-8"):
        named("strings").run({"text": np.array([[b"\xff"]], np.object_)})


def test_a_closed_model_says_so(named: Named) -> None:
    model = named("matmul")
    model.close()

    with pytest.raises(RuntimeFailedError, match="closed"):
        model.run({"x": np.zeros((1, 4), np.float32)})


def test_nothing_is_printed_when_a_run_fails(
    named: Named, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(RuntimeFailedError):
        named("lookup").run({"index": np.array([99])})
    named("wrong_declaration").run({"x": np.eye(3, dtype=np.float32)})

    assert capfd.readouterr() == ("", "")


def test_an_accelerator_that_cannot_start_leaves_the_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A build for CUDA on a machine without a driver lists the provider all the same."""
    providers = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(ort, "get_available_providers", lambda: providers)
    monkeypatch.setattr(onnx_runtime, "lacks_gpu", lambda: True)
    path = put(tmp_path / "m.onnx", models.matmul())

    model = OnnxModel.open(path, LoadOptions(device="auto"))  # asked for it, ONNX Runtime warns

    assert model.device.used == ("CPU",)
    assert model.device.failed == {"CUDA": NO_GPU}
    assert "CUDAExecutionProvider cannot be used, CPU is: no GPU is visible" in caplog.text
    assert model.run({"x": np.zeros((1, 4), np.float32)})


def test_on_the_cpu_what_is_here_and_not_used_is_told(tmp_path: Path) -> None:
    path = put(tmp_path / "m.onnx", models.matmul())

    for device in ("auto", "cpu"):
        use = OnnxModel.open(path, LoadOptions(device=device)).device
        assert (use.asked, use.used, use.failed) == (device, ("CPU",), {})
        assert "over the network" in use.unused["Azure"]


def test_an_accelerator_that_fails_to_load_leaves_the_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["TensorrtExecutionProvider"])
    monkeypatch.setattr(onnx_runtime, "lacks_gpu", lambda: False)
    real = ort.InferenceSession

    def fails_on_gpu(*args: object, providers: list[str], **options: object) -> object:
        if "TensorrtExecutionProvider" in providers:
            msg = "libnvinfer.so.10: cannot open shared object file"
            raise RuntimeError(msg)
        return real(*args, providers=providers, **options)

    monkeypatch.setattr(ort, "InferenceSession", fails_on_gpu)
    path = put(tmp_path / "m.onnx", models.matmul())

    reason = "libnvinfer.so.10: cannot open shared object file"
    assert OnnxModel.open(path, LoadOptions()).device == DeviceUse(
        asked="auto", used=("CPU",), failed={"Tensorrt": reason}
    )
    assert f"TensorrtExecutionProvider cannot be used, CPU is: {reason}" in caplog.text
    with pytest.raises(
        FailedPreconditionError, match=r"'gpu' was requested .* Tensorrt: libnvinfer"
    ):
        OnnxModel.open(path, LoadOptions(device="gpu"))


class Repeating:
    """A session that says it runs on OpenVINO, and runs everything several times."""

    def __init__(self, session: ort.InferenceSession, times: int) -> None:
        self._session, self._times = session, times

    def __getattr__(self, name: str) -> object:
        return getattr(self._session, name)

    def get_providers(self) -> list[str]:
        return ["OpenVINOExecutionProvider", "CPUExecutionProvider"]

    def run(self, *args: object) -> object:
        for _ in range(self._times - 1):
            self._session.run(*args)
        return self._session.run(*args)


@pytest.mark.parametrize(("special", "plain", "used"), [(100, 1, "CPU"), (1, 100, "OpenVINO")])
def test_of_two_that_use_the_same_cores_the_faster_one_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, special: int, plain: int, used: str
) -> None:
    real = ort.InferenceSession

    def opened(*args: object, providers: list[str], **options: object) -> object:
        session = Repeating(real(*args, providers=["CPUExecutionProvider"], **options), special)
        if providers[0] == "OpenVINOExecutionProvider":
            return session
        session._times = plain
        monkeypatch.setattr(session, "get_providers", lambda: ["CPUExecutionProvider"])
        return session

    monkeypatch.setattr(ort, "InferenceSession", opened)
    names = ["OpenVINOExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(ort, "get_available_providers", lambda: names)
    path = put(tmp_path / "m.onnx", models.mlp())
    model = OnnxModel.open(path, LoadOptions())

    assert model.device.used[0] == used
    assert ("OpenVINO" in model.device.unused) is (used == "CPU")
    assert model.run({"input": np.zeros((1, 32), np.float32)})["prob"].shape == (1, 2)
    assert OnnxModel.open(path, LoadOptions(device="openvino")).device.used[0] == "OpenVINO"


def test_a_device_that_is_not_there_is_refused(tmp_path: Path) -> None:
    path = put(tmp_path / "m.onnx", models.matmul())

    for device, package in (
        ("cuda", "onnxruntime-gpu"),
        ("gpu", "onnxruntime-gpu"),
        ("tensorrt", "onnxruntime-gpu"),
        ("openvino", "onnxruntime-openvino"),
    ):
        with pytest.raises(
            FailedPreconditionError,
            match=rf"device '{device}' was requested .* has only Azure, CPU; install {package}",
        ):
            OnnxModel.open(path, LoadOptions(device=device))
    with pytest.raises(UnsupportedModelError, match="no device 'tpu'; use one of auto"):
        OnnxModel.open(path, LoadOptions(device="tpu"))
