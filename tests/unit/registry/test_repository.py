import logging
import re
from pathlib import Path

import pytest

from headrace.core import (
    CodeNotAllowedError,
    Inspected,
    InvalidArgumentError,
    ModelSignature,
    RequestCancelledError,
    UnsupportedModelError,
)
from headrace.registry import FoundModel, is_repository, open_repository

EMPTY = ModelSignature(inputs=(), outputs=(), batched=False)


def put(file: Path, content: str = "x") -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(content)
    return file


def inspect(path: Path, runtime: str = "", *, allow_code: bool = False) -> Inspected:
    del runtime
    if path.is_dir() or path.read_text() == "bad":
        msg = f"{path}: is bad"
        raise UnsupportedModelError(msg)
    if path.suffix == ".py" and not allow_code:
        raise CodeNotAllowedError(str(path), "python")
    return Inspected("onnx", EMPTY, path.suffix == ".py")


def found(path: Path) -> list[tuple[str, str]]:
    return [(model.name, model.version) for model in open_repository(path)]


def test_models_and_versions_come_in_order_of_their_numbers(tmp_path: Path) -> None:
    for name, version in (("b", "10"), ("b", "2"), ("a", "1")):
        put(tmp_path / name / version / "model.onnx")
    put(tmp_path / "b" / "config.pbtxt", "version_policy: { all {} }")

    assert found(tmp_path) == [("a", "1"), ("b", "2"), ("b", "10")]
    assert open_repository(tmp_path)[0].path == tmp_path / "a" / "1" / "model.onnx"


def test_hidden_directories_and_loose_files_are_passed_over(tmp_path: Path) -> None:
    put(tmp_path / "a" / "1" / "model.onnx")
    put(tmp_path / "a" / ".2" / "model.onnx")
    put(tmp_path / "a" / "old" / "model.onnx")
    put(tmp_path / ".git" / "1" / "model.onnx")
    put(tmp_path / "README.md")

    assert found(tmp_path) == [("a", "1")]


def test_weights_beside_the_model_come_with_it(tmp_path: Path) -> None:
    put(tmp_path / "a" / "1" / "model.onnx")
    put(tmp_path / "a" / "1" / "weights.bin")

    assert open_repository(tmp_path)[0].path == tmp_path / "a" / "1"


def test_a_broken_model_says_why_and_stops_no_other(tmp_path: Path) -> None:
    put(tmp_path / "a" / "1" / "model.onnx", "bad")
    put(tmp_path / "b" / "1" / "model.onnx")
    (tmp_path / "c" / "1").mkdir(parents=True)
    put(tmp_path / "d e" / "1" / "model.onnx")
    models: dict[str, FoundModel] = {m.name: m for m in open_repository(tmp_path, inspect)}

    assert models["a"].reason == f"{tmp_path}/a/1/model.onnx: is bad"
    assert (models["b"].reason, models["b"].runtime) == ("", "onnx")
    assert models["b"].signature == EMPTY
    assert "is bad" in models["c"].reason
    assert models["d e"].reason == "the model name 'd e' is not allowed"


def test_a_model_without_a_version_is_ignored_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    put(tmp_path / "a" / "1" / "model.onnx")
    put(tmp_path / "b" / "model.onnx")

    assert found(tmp_path) == [("a", "1")]
    assert "b holds no numbered version" in caplog.text


def test_batch_size_and_labels_are_read_from_the_configuration(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    put(tmp_path / "a" / "1" / "net.onnx")
    put(tmp_path / "a" / "labels.txt", "cat\ndog \n\n")
    put(
        tmp_path / "a" / "config.pbtxt",
        """\
# max_batch_size: 99
name: "a"
max_batch_size: 8
default_model_filename: "net.onnx"
input [ { name: "x" data_type: TYPE_FP32 dims: [ 4 ] } ]
output [
  {
    name: "prob"
    dims: [ 2 ]
    label_filename: "labels.txt"
  }
]
output { name: "other" label_filename: "../../etc/passwd" }
""",
    )
    with caplog.at_level(logging.WARNING):
        (model,) = open_repository(tmp_path)

    assert model.config.max_batch_size == 8
    assert model.config.labels == {"prob": ("cat", "dog")}
    assert model.path.name == "net.onnx"
    assert "the label file of output 'other' does not exist" in caplog.text


@pytest.mark.parametrize(
    ("policy", "served"),
    [
        ("", ["10"]),
        ("version_policy: { latest: { num_versions: 2 } }", ["7", "10"]),
        ("version_policy { latest {} }", ["10"]),
        ("version_policy: { latest: { num_versions: 9 } }", ["2", "7", "10"]),
        ("version_policy: { all: {} }", ["2", "7", "10"]),
        ("version_policy: { specific: { versions: [ 2, 7 ] } }", ["2", "7"]),
        ("version_policy: { specific: { versions: 2 } }", ["2"]),
    ],
)
def test_the_version_policy_chooses_what_is_served_and_loaded(
    policy: str, served: list[str], tmp_path: Path
) -> None:
    for version in ("2", "7", "10"):
        put(tmp_path / "a" / version / "model.onnx")
    put(tmp_path / "a" / "config.pbtxt", policy)
    loaded: list[str] = []

    def look(path: Path, runtime: str = "", *, allow_code: bool = False) -> Inspected:
        loaded.append(path.parent.name)
        return inspect(path, runtime, allow_code=allow_code)

    assert [model.version for model in open_repository(tmp_path, look)] == served
    assert loaded == served


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (
            "version_policy: { specific: { versions: [ 1, 5 ] } }",
            "selects .* 5 in version_policy; existing versions: 1, 3",
        ),
        (
            "version_policy: { specific: {} }",
            "selects .* none in version_policy; existing versions: 1, 3",
        ),
        ("version_policy: { newest: {} }", "other than latest, all or specific: newest"),
        ("max_batch_size: -1", "says a max_batch_size that is no size"),
        ("input [ {", "ends in the middle"),
    ],
)
def test_a_configuration_that_cannot_be_followed_is_the_reason_of_its_model_alone(
    config: str, reason: str, tmp_path: Path
) -> None:
    for version in ("1", "3"):
        put(tmp_path / "a" / version / "model.onnx")
    put(tmp_path / "a" / "config.pbtxt", config)
    put(tmp_path / "b" / "1" / "model.onnx")
    models = {model.name: model for model in open_repository(tmp_path, inspect)}

    assert re.search(reason, models["a"].reason)
    assert (models["a"].version, models["b"].reason) == ("3", "")


def test_the_format_of_images_is_read_and_must_be_of_an_input_of_the_model(tmp_path: Path) -> None:
    put(tmp_path / "a" / "1" / "model.onnx")
    text = 'input [ { name: "x" format: FORMAT_NCHW }, { name: "y" format: FORMAT_NONE } ]'
    put(tmp_path / "a" / "config.pbtxt", text)
    [model] = open_repository(tmp_path)
    [loaded] = open_repository(tmp_path, inspect)

    assert model.config.formats == {"x": "FORMAT_NCHW"}
    assert "names input 'x', but the model has" in loaded.reason


def test_who_stops_waiting_for_an_inspection_gets_no_model_that_is_broken(tmp_path: Path) -> None:
    put(tmp_path / "a" / "1" / "model.onnx")

    def cancelled(path: Path, runtime: str = "", *, allow_code: bool = False) -> Inspected:
        del path, runtime, allow_code
        raise RequestCancelledError

    with pytest.raises(RequestCancelledError):
        open_repository(tmp_path, cancelled)


def test_what_is_no_repository_is_refused(tmp_path: Path) -> None:
    file = put(tmp_path / "a" / "model.onnx")

    assert not is_repository(tmp_path)
    assert not is_repository(file)
    with pytest.raises(InvalidArgumentError, match="is not a model repository"):
        open_repository(tmp_path)


def test_a_model_that_runs_code_is_no_model_until_that_is_allowed(tmp_path: Path) -> None:
    put(tmp_path / "a" / "1" / "model.py")
    [refused] = open_repository(tmp_path, inspect)
    [allowed] = open_repository(tmp_path, inspect, allow_code=True)

    assert "`allow_code: true`" in refused.reason
    assert (allowed.reason, allowed.runs_code) == ("", True)


@pytest.mark.parametrize(
    ("config", "runtime"),
    [
        ('platform: "tensorflow_savedmodel"', "savedmodel"),
        ('backend: "tensorflow"\nplatform: "tensorflow_savedmodel"', "savedmodel"),
        ('backend: "openvino"', "openvino"),
        ('platform: "onnxruntime_onnx"', "onnx"),
        ('backend: "dali"', ""),
        ('backend: "openvino"\nplatform: "onnxruntime_onnx"', ""),
        ('#backend: "openvino"', ""),
    ],
)
def test_what_triton_ran_a_model_with_chooses_the_runtime(
    config: str, runtime: str, tmp_path: Path
) -> None:
    put(tmp_path / "a" / "1" / "model.onnx")
    put(tmp_path / "a" / "config.pbtxt", config)
    asked: list[str] = []

    def look(path: Path, runtime: str = "", *, allow_code: bool = False) -> Inspected:
        asked.append(runtime)
        return inspect(path, allow_code=allow_code)

    open_repository(tmp_path, look)
    assert asked == [runtime]


def test_a_savedmodel_is_the_directory_that_triton_names_so(tmp_path: Path) -> None:
    put(tmp_path / "a" / "1" / "model.savedmodel" / "saved_model.pb")
    put(tmp_path / "b" / "1" / "model.savedmodel" / "saved_model.pb")
    put(tmp_path / "b" / "1" / "notes.txt")
    put(tmp_path / "c" / "1" / "mine" / "saved_model.pb")
    put(tmp_path / "c" / "config.pbtxt", 'default_model_filename: "mine"')

    assert [model.path.name for model in open_repository(tmp_path)] == [
        *("model.savedmodel", "model.savedmodel", "mine")
    ]
