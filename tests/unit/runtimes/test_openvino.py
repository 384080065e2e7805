import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headrace.core import (
    Datatype,
    FailedPreconditionError,
    RuntimeFailedError,
    UnsupportedModelError,
)
from headrace.runtimes import LoadOptions, detect_runtime, load_model
from headrace.runtimes.openvino import (
    OpenvinoModel,
    OpenvinoRuntime,
    find_openvino_file,
    looks_like_openvino,
    open_openvino,
    openvino_settings,
    shortest_name,
)
from headrace.testing import models
from tests import openvino_models, savedmodels, tflite_models

ROUNDING = 1e-6


def asked(rows: int = 5) -> np.ndarray[Any, Any]:
    return np.random.default_rng(9).normal(size=(rows, 16)).astype(np.float32)


def opened(path: Path, *, threads: int = 1) -> OpenvinoModel:
    options = LoadOptions(device="cpu", intra_op_threads=threads)
    return open_openvino(path, options, named=shortest_name)


def test_answers_are_those_of_the_same_sums_in_numpy(tmp_path: Path) -> None:
    path = openvino_models.perceptron(tmp_path)
    rows = asked()
    answers = load_model(path).run({"x": rows})

    assert np.abs(answers["y"] - openvino_models.expected(rows)).max() < ROUNDING
    assert np.array_equal(answers["label"], openvino_models.expected(rows).argmax(axis=1))


def test_it_is_found_by_what_stands_in_the_file(tmp_path: Path) -> None:
    path = openvino_models.perceptron(tmp_path)
    assert detect_runtime(path).name == "openvino"

    other = tmp_path / "tree.xml"
    other.write_text("<?xml version='1.0'?><!-- <net --><PMML></PMML>")
    assert not looks_like_openvino(other)
    (tmp_path / "other").mkdir()
    assert not looks_like_openvino(tmp_path / "other")


def test_it_computes_in_f32_wherever_the_processor_has_less(tmp_path: Path) -> None:
    model = opened(openvino_models.perceptron(tmp_path))

    assert model._compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name() == "f32"
    assert model._compiled.get_property("DYNAMIC_QUANTIZATION_GROUP_SIZE") == 0


def test_a_model_may_ask_for_another_precision(tmp_path: Path) -> None:
    ov: Any = openvino_models.library()
    if "BF16" not in ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        pytest.skip("this processor has no bf16")
    model = opened(openvino_models.perceptron(tmp_path, precision="bf16"))

    assert model._compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name() == "bf16"


def test_a_precision_that_there_is_not_is_passed_over(tmp_path: Path) -> None:
    model = opened(openvino_models.perceptron(tmp_path, precision="f7"))

    assert model._compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name() == "f32"


@pytest.mark.parametrize(("threads", "streams"), [(1, 4), (2, 2), (3, 1), (8, 1)])
def test_runs_share_the_cores(
    threads: int, streams: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ov: Any = openvino_models.library()
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(4)))
    model = ov.Core().read_model(openvino_models.perceptron(tmp_path))
    settings = openvino_settings(model, LoadOptions(intra_op_threads=threads))

    assert settings["NUM_STREAMS"] == streams
    assert settings["INFERENCE_NUM_THREADS"] == streams * threads


def test_what_one_run_left_does_not_reach_the_next(tmp_path: Path) -> None:
    model = load_model(openvino_models.counter(tmp_path))
    ones = {"x": np.ones((1, 2), np.float32)}

    assert [model.run(ones)["y"].tolist() for _ in range(3)] == [[[1.0, 1.0]]] * 3
    assert not model.signature.batched


def test_rows_that_depend_on_each_other_are_not_batched(tmp_path: Path) -> None:
    assert not load_model(openvino_models.total(tmp_path)).signature.batched


def test_a_fixed_number_of_rows_is_kept(tmp_path: Path) -> None:
    signature = load_model(openvino_models.perceptron(tmp_path, rows=2)).signature

    assert not signature.batched
    assert signature.inputs[0].shape == (2, 16)


def test_types_come_through_as_they_are(tmp_path: Path) -> None:
    model = load_model(openvino_models.kinds(tmp_path))
    values = {s.name: np.ones((2, 2), s.datatype.dtype) for s in model.signature.inputs}
    answers = model.run(values)

    assert [s.datatype for s in model.signature.outputs] == [
        *(Datatype.BOOL, Datatype.UINT8, Datatype.INT8, Datatype.INT32, Datatype.INT64),
        *(Datatype.FP16, Datatype.FP64),
    ]
    assert all(np.array_equal(one, np.ones((2, 4))) for one in answers.values())


def test_attention_that_began_with_one_word_answers_longer_texts_as_one_that_did_not(
    tmp_path: Path,
) -> None:
    ov: Any = openvino_models.library()
    core = ov.Core()
    model = core.read_model(openvino_models.attention(tmp_path))
    settings = openvino_settings(model, LoadOptions())
    one = np.ones((1, 1, 16), np.float32)
    longer = np.random.default_rng(1).normal(size=(2, 24, 16)).astype(np.float32)
    wanted = core.compile_model(model, "CPU", settings)({0: longer})[0].copy()
    worst = 0.0
    for _ in range(3):  # what it answers wrong depends on what the memory held
        request = core.compile_model(model, "CPU", settings).create_infer_request()
        request.infer({0: one})
        request.infer({0: np.full_like(longer, np.nan)})
        worst = max(worst, float(np.abs(request.infer({0: longer})[0] - wanted).max()))

    assert worst < ROUNDING * np.abs(wanted).max()


def test_a_run_that_fails_says_so_and_the_next_one_does_not(tmp_path: Path) -> None:
    model = load_model(openvino_models.perceptron(tmp_path))
    with pytest.raises(RuntimeFailedError, match="the model failed"):
        model.run({"x": np.ones((2, 5), np.float32)})

    assert model.run({"x": asked(2)})["y"].shape == (2, 3)


def test_a_closed_model_says_so(tmp_path: Path) -> None:
    model = load_model(openvino_models.perceptron(tmp_path))
    model.close()

    with pytest.raises(RuntimeFailedError, match="closed"):
        model.run({"x": asked(1)})


def test_the_same_network_answers_alike_in_both_libraries(tmp_path: Path) -> None:
    openvino_models.library()
    (path,) = models.write(tmp_path, "mlp")
    onnx, ours = load_model(path, "onnx"), load_model(path, "openvino")
    inputs = {"input": np.random.default_rng(4).random((7, 32), np.float32)}

    assert ours.signature == onnx.signature
    for name, answer in ours.run(inputs).items():
        assert np.allclose(answer, onnx.run(inputs)[name], atol=ROUNDING)


def test_it_reads_tflite_where_it_is_named(tmp_path: Path) -> None:
    openvino_models.library()
    path = tflite_models.write(tmp_path / "a.tflite", tflite_models.perceptron(signature=False))
    rows = asked()[:, :4]
    (answer,) = load_model(path, "openvino").run({"ask_x:0": rows}).values()

    assert np.abs(answer - tflite_models.expected(rows)).max() < ROUNDING


def test_it_reads_a_savedmodel_where_it_is_named(tmp_path: Path) -> None:
    openvino_models.library()
    path = savedmodels.write(tmp_path / "saved")
    rows = asked()[:, :4]

    answer = load_model(path, "openvino").run({"x": rows})["y"]
    assert np.abs(answer - savedmodels.expected(rows)).max() < ROUNDING


def test_without_the_library_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = openvino_models.perceptron(tmp_path)
    monkeypatch.setitem(sys.modules, "openvino", None)

    with pytest.raises(FailedPreconditionError, match=r"pip install 'headrace\[openvino\]'"):
        OpenvinoRuntime().load(path, LoadOptions())


Change = Callable[[str], str]
CHANGES: dict[str, tuple[Change, str]] = {
    "cut off": (lambda text: text[: len(text) // 2], "incomplete XML"),
    "entities": (
        lambda text: text.replace(
            '<?xml version="1.0"?>', '<?xml version="1.0"?>\n<!DOCTYPE net [<!ENTITY a "b">]>'
        ).replace("<net", "<net", 1),
        "does not begin with <net>",
    ),
    "nesting": (lambda _: '<net version="11">' + "<a>" * 100_000, "nests deeper"),
    "old version": (
        lambda text: text.replace('version="11"', 'version="7"', 1),
        "of an unsupported version",
    ),
    "weights beyond": (lambda text: text.replace('offset="0"', 'offset="900"', 1), "end at 1092"),
    "negative offset": (
        lambda text: text.replace('offset="0"', 'offset="-1"', 1),
        "invalid position",
    ),
    "more elements": (lambda text: text.replace("16, 3", "1600000, 3"), "declares 4800000"),
    "without end": (lambda text: text.replace("16, 3", "999999999999, 99999"), "declares 999"),
    "negative shape": (lambda text: text.replace("16, 3", "-16, 3"), "invalid position or shape"),
    "lost layer": (lambda text: text.replace('to-layer="', 'to-layer="9', 1), "OpenVINO refuses"),
    "unknown operator": (lambda text: text.replace('"MatMul"', '"Cheese"', 1), "OpenVINO refuses"),
    "empty": (lambda _: "", "does not begin"),
    "text": (lambda _: "hello", "does not begin"),
    "no rank": (
        lambda text: text.replace('shape="?,16"', 'shape="..."', 1),
        "unknown number of dimensions",
    ),
}


@pytest.mark.parametrize(("change", "reason"), CHANGES.values(), ids=CHANGES)
def test_what_is_damaged_is_refused_with_the_reason(
    change: Change, reason: str, tmp_path: Path
) -> None:
    path = openvino_models.perceptron(tmp_path)
    path.write_text(change(path.read_text()))

    with pytest.raises(UnsupportedModelError, match=reason) as refused:
        OpenvinoRuntime().load(path, LoadOptions())
    assert path.name in str(refused.value)


def test_a_type_that_no_request_carries_is_refused(tmp_path: Path) -> None:
    path = openvino_models.kinds(tmp_path, "bf16")

    with pytest.raises(UnsupportedModelError, match=r"input 'in_bf16' is bf16.*cast it"):
        OpenvinoRuntime().load(path, LoadOptions())


def test_inputs_that_nobody_can_send_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match="a request may not have more than"):
        OpenvinoRuntime().load(openvino_models.twice(tmp_path / "huge", -1, 10**9), LoadOptions())
    with pytest.raises(UnsupportedModelError, match="has no inputs"):
        OpenvinoRuntime().load(openvino_models.twice(tmp_path / "none"), LoadOptions())


def test_a_model_that_is_no_table_is_served(tmp_path: Path) -> None:
    model = load_model(openvino_models.twice(tmp_path, 1))

    assert model.run({"x": np.array([2.5], np.float32)})["y"].tolist() == [5.0]


def test_memory_that_is_not_in_order_or_not_aligned_is_taken(tmp_path: Path) -> None:
    model = load_model(openvino_models.perceptron(tmp_path))
    rows = asked()
    wide = np.repeat(rows, 2, axis=1)[:, ::2]
    moved = np.frombuffer(b"\0" + rows.tobytes(), np.uint8)[1:].view(np.float32).reshape(rows.shape)
    wanted = model.run({"x": rows})["y"]

    assert np.array_equal(model.run({"x": wide})["y"], wanted)
    assert np.array_equal(model.run({"x": moved})["y"], wanted)


def test_entities_within_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.xml"
    path.write_text('<net version="11"><!DOCTYPE a [<!ENTITY b "c">]></net>')

    with pytest.raises(UnsupportedModelError, match="incomplete XML"):
        find_openvino_file(path)


def test_weights_that_are_missing_short_or_elsewhere_are_refused(tmp_path: Path) -> None:
    path = openvino_models.perceptron(tmp_path / "model")
    weights = path.with_suffix(".bin")
    data = weights.read_bytes()
    weights.write_bytes(data[:-1])
    with pytest.raises(UnsupportedModelError, match=f"has {len(data) - 1} bytes"):
        find_openvino_file(path)

    weights.unlink()
    with pytest.raises(UnsupportedModelError, match="are not beside it"):
        find_openvino_file(path)

    (tmp_path / "secret").write_bytes(data)
    weights.symlink_to(tmp_path / "secret")
    with pytest.raises(UnsupportedModelError, match="leads out of the directory"):
        find_openvino_file(path)


def test_a_directory_needs_one_model(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match="no model that OpenVINO reads"):
        find_openvino_file(tmp_path)
    openvino_models.perceptron(tmp_path)
    models.write(tmp_path, "mlp")

    with pytest.raises(UnsupportedModelError, match=r"several models \(mlp.onnx, perceptron.xml\)"):
        find_openvino_file(tmp_path)


@pytest.mark.parametrize("name", ["model.xml", "openvino_model.xml"])
def test_what_is_called_the_model_is_it(name: str, tmp_path: Path) -> None:
    path = openvino_models.perceptron(tmp_path)
    for suffix in (".xml", ".bin"):
        (tmp_path / name).with_suffix(suffix).write_bytes(path.with_suffix(suffix).read_bytes())

    assert find_openvino_file(tmp_path).path.name == name
    assert detect_runtime(tmp_path).name == "openvino"


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(b"GGUF")
    with pytest.raises(UnsupportedModelError, match="not a format that OpenVINO reads"):
        find_openvino_file(path)
    with pytest.raises(UnsupportedModelError, match="no such file"):
        find_openvino_file(tmp_path / "missing.xml")


@pytest.mark.parametrize("data", [b"", b"\xff" * 50, savedmodels.number(3, 1)])
def test_what_is_no_paddle_program_is_refused(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.pdmodel"
    path.write_bytes(data)

    with pytest.raises(UnsupportedModelError, match=r"a\.pdmodel.*Paddle"):
        find_openvino_file(path)


def test_paddle_weights_elsewhere_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.pdmodel"
    path.write_bytes(savedmodels.field(1, b""))
    (tmp_path / "a.pdiparams").symlink_to("/etc/hostname")

    with pytest.raises(UnsupportedModelError, match="leads out of the directory"):
        find_openvino_file(path)
