"""What is in a folder of models is told by content, whatever the files do."""

import json
import os
import struct
import zipfile
from pathlib import Path

import joblib
import numpy as np
import pytest
from skl2onnx import to_onnx
from sklearn.linear_model import LogisticRegression

from headrace.advise import FindingSeverity
from headrace.advise.inventory.asset import Asset, AssetFormat, AssetProblemKind, Details
from headrace.advise.inventory.inventory import examine, recognise
from headrace.advise.inventory.walk import (
    CONVERSIONS,
    RUNTIMES,
    InventoryContext,
    asset_row,
    highest_opset,
    identity_model,
    inventory_document,
    open_in_onnx_runtime,
    remarks,
    take_inventory,
)
from headrace.core import InvalidArgumentError
from headrace.registry import read_content
from tests.gguf_models import gguf
from tests.unit.advise import assets

KNOWN = InventoryContext(runtimes=("onnx", "python"), max_opset=20)
EXPECTED = {
    "cats.cbm": "catboost",
    "checkpoint.pth": "torch-pickle",
    "exported.pt2": "torch-export",
    "forest.txt": "lightgbm",
    "ir.xml": "openvino",
    "llama.gguf": "gguf",
    "mine.py": "python",
    "mlp.onnx": "onnx",
    "model.ort": "ort",
    "net.keras": "keras",
    "net.tflite": "tflite",
    "old.h5": "keras-h5",
    "old.model": "xgboost-binary",
    "python": "python",
    "quantised.onnx": "onnx",
    "repository/fraud/2/model.onnx": "onnx",
    "saved": "savedmodel",
    "score.pmml": "pmml",
    "script.pt": "torchscript",
    "trees.json": "xgboost-json",
    "trees.ubj": "xgboost-ubj",
    "weights.safetensors": "safetensors",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "all"
    assets.write_all(folder)
    return folder


@pytest.fixture(scope="module")
def found(folder: Path) -> dict[str, Asset]:
    return {asset.path: asset for asset in take_inventory(folder, KNOWN).assets}


def problems(asset: Asset) -> set[AssetProblemKind]:
    return {one.code for one in asset.problems} - {AssetProblemKind.UNSIGNED}


def only(folder: Path, known: InventoryContext = KNOWN) -> Asset:
    (asset,) = take_inventory(folder, known).assets
    return asset


def put(folder: Path, name: str, data: bytes) -> Asset:
    (folder / name).write_bytes(data)
    return only(folder)


def test_every_format_is_found_and_nothing_else(found: dict[str, Asset]) -> None:
    assert {path: asset.format.value for path, asset in found.items()} == EXPECTED


def test_no_good_asset_has_a_problem_but_that_some_run_code(found: dict[str, Asset]) -> None:
    running = {
        path for path, asset in found.items() if problems(asset) == {AssetProblemKind.RUNS_CODE}
    }

    assert running == {"checkpoint.pth", "mine.py", "python"}
    assert {path for path, asset in found.items() if problems(asset)} == running


def test_suffixes_do_not_matter_to_what_has_a_mark(folder: Path, tmp_path: Path) -> None:
    for path in (path for path in folder.iterdir() if path.is_file()):
        if EXPECTED.get(path.name) in {None, "python"}:
            continue
        other = tmp_path / f"{path.name}.blob"
        other.write_bytes(path.read_bytes())

        assert recognise(other)[0].value == EXPECTED[path.name]


def test_a_runtime_of_ours_serves_it_or_a_conversion_is_named(found: dict[str, Asset]) -> None:
    served = {path for path, asset in found.items() if asset.runtime}

    assert served == {
        *("mlp.onnx", "quantised.onnx", "repository/fraud/2/model.onnx", "model.ort"),
        *("mine.py", "python"),
    }
    assert all(asset.convert for path, asset in found.items() if path not in served)
    assert {*CONVERSIONS, *RUNTIMES, AssetFormat.UNKNOWN} == set(AssetFormat)


def test_another_runtime_that_is_installed_serves_its_format(folder: Path) -> None:
    known = InventoryContext(runtimes=("onnx", "savedmodel", "lightgbm"))

    served = {asset.path: asset.runtime for asset in take_inventory(folder, known).assets}

    assert served["saved"] == "savedmodel"
    assert served["forest.txt"] == "lightgbm"
    assert served["mine.py"] == ""


def test_an_onnx_model_tells_its_signature_opset_producer_and_precision(
    found: dict[str, Asset],
) -> None:
    details = found["mlp.onnx"].details

    assert [(one.name, one.datatype, one.shape) for one in details.inputs] == [
        ("input", "FP32", (-1, 8))
    ]
    assert [(one.name, one.datatype) for one in details.outputs] == [("prob", "FP32")]
    assert (details.opset, details.precision, details.is_quantised) == (17, "FP32", False)


def test_a_quantised_onnx_model_is_called_so(found: dict[str, Asset]) -> None:
    details = found["quantised.onnx"].details

    assert details.precision == "INT8"
    assert details.is_quantised is True
    assert [one.name for one in details.inputs] == ["x"]


def test_other_formats_tell_what_they_can(found: dict[str, Asset]) -> None:
    def inputs(path: str) -> list[tuple[str, str, tuple[int, ...] | None]]:
        return [(one.name, one.datatype, one.shape) for one in found[path].details.inputs]

    assert inputs("saved") == [("x", "FP32", (-1, 4))]
    assert found["saved"].details.producer == "tensorflow 2.17.0"
    assert inputs("net.tflite") == [("x", "FP32", (1, 4))]
    assert found["net.tflite"].details.weights == {"INT8": 40}
    assert found["net.tflite"].details.is_quantised is True
    assert inputs("ir.xml") == [("x", "FP32", (1, 3, -1))]
    assert [one.shape for one in found["ir.xml"].details.outputs] == [(1, 9)]
    assert found["ir.xml"].details.precision == "FP16"
    assert inputs("trees.json") == [("features", "FP32", (-1, 30))]
    assert found["trees.json"].details.producer == "xgboost 2.1.0"
    assert inputs("forest.txt") == [("features", "FP64", (-1, 10))]
    assert found["weights.safetensors"].details.weights == {"FP16": 64}
    assert found["llama.gguf"].details.notes["general.architecture"] == "llama"
    assert found["llama.gguf"].details.precision == "Q4_0"
    assert found["checkpoint.pth"].details.precision == "FP32"
    assert found["net.keras"].details.producer == "keras 3.6.0"


def test_digests_are_those_of_the_registry(folder: Path, found: dict[str, Asset]) -> None:
    for path in ("mlp.onnx", "saved", "python"):
        content = read_content(folder / path)

        assert found[path].digest == content.digest
        assert found[path].size_bytes == content.size_bytes


def test_a_repository_says_model_and_version(found: dict[str, Asset]) -> None:
    asset = found["repository/fraud/2/model.onnx"]

    assert (asset.model, asset.version) == ("fraud", "2")
    assert (found["mlp.onnx"].model, found["mlp.onnx"].version) == ("", "")


def test_a_version_of_the_registry_is_known_by_its_digest(folder: Path) -> None:
    digest = read_content(folder / "mlp.onnx").digest
    known = InventoryContext(references={digest: ("fraud:3", True)})

    found = {asset.path: asset for asset in take_inventory(folder, known).assets}

    assert found["mlp.onnx"].reference == "fraud:3"
    assert found["mlp.onnx"].problems == ()
    assert [one.code for one in found["quantised.onnx"].problems] == [AssetProblemKind.UNSIGNED]


@pytest.mark.slow  # a model is trained and converted
def test_what_scikit_learn_writes_is_known_in_every_compression(tmp_path: Path) -> None:
    inputs = np.array([[0.0, 1.0], [1.0, 0.0]], np.float32)
    model = LogisticRegression().fit(inputs, [0, 1])
    (tmp_path / "model.onnx").write_bytes(to_onnx(model, inputs).SerializeToString())
    for name, compress in {
        "plain.joblib": 0,
        "zlib.pkl": ("zlib", 3),
        "gzip.pkl.gz": ("gzip", 3),
        "bz2.pkl.bz2": ("bz2", 3),
        "xz.pkl.xz": ("xz", 3),
    }.items():
        joblib.dump(model, tmp_path / name, compress=compress)

    found = {asset.path: asset for asset in take_inventory(tmp_path, KNOWN).assets}

    assert found.pop("model.onnx").details.producer.startswith("skl2onnx")
    assert len(found) == 5
    assert {asset.format for asset in found.values()} == {AssetFormat.SKLEARN}
    assert {frozenset(problems(asset)) for asset in found.values()} == {
        frozenset({AssetProblemKind.RUNS_CODE})
    }
    assert "sklearn.linear_model" in found["plain.joblib"].details.notes["imports"]


def test_a_pickle_that_would_call_a_shell_says_so(tmp_path: Path) -> None:
    asset = put(tmp_path, "model.pkl", assets.evil_pickle())

    assert problems(asset) == {AssetProblemKind.RUNS_CODE, AssetProblemKind.DANGEROUS_CODE}
    worst = next(one for one in asset.problems if one.code is AssetProblemKind.DANGEROUS_CODE)
    assert worst.severity is FindingSeverity.CRITICAL
    assert "posix.system" in worst.message


def test_a_pickle_of_the_oldest_protocol_is_read_by_its_name(tmp_path: Path) -> None:
    asset = put(tmp_path, "model.pkl", b"cos\nsystem\n(S'id'\ntR.")

    assert asset.format is AssetFormat.PICKLE
    assert AssetProblemKind.DANGEROUS_CODE in problems(asset)


def test_a_checkpoint_with_a_shell_in_it_says_so(tmp_path: Path) -> None:
    data = assets.archive({"net/data.pkl": assets.evil_pickle(), "net/version": b"3"})

    assert AssetProblemKind.DANGEROUS_CODE in problems(put(tmp_path, "net.pt", data))


def test_torch_script_with_a_librarys_operators_says_whose(tmp_path: Path) -> None:
    code = "def forward(self, x):\n  return ops.torchvision.nms(ops.aten.relu(x))\n"

    asset = put(tmp_path, "net.pt", assets.torch_script(code=code))

    assert problems(asset) == {AssetProblemKind.CUSTOM_OPERATORS, AssetProblemKind.RUNS_CODE}
    assert any("torchvision" in one.message for one in asset.problems)


def test_a_lambda_layer_of_keras_runs_code(tmp_path: Path) -> None:
    assert problems(put(tmp_path, "net.keras", assets.keras(layer="Lambda"))) == {
        AssetProblemKind.RUNS_CODE
    }


def test_a_saved_model_that_reads_files_or_calls_python_says_so(tmp_path: Path) -> None:
    data = assets.saved_model(operators=("MatMul", "ReadFile", "PyFunc"))
    (tmp_path / "saved_model.pb").write_bytes(data)

    assert problems(only(tmp_path)) == {AssetProblemKind.RUNS_CODE, AssetProblemKind.DANGEROUS_CODE}


@pytest.mark.parametrize(
    ("location", "trouble"),
    [
        ("weights.bin", set()),
        ("gone.bin", {AssetProblemKind.MISSING_PART}),
        ("short.bin", {AssetProblemKind.MISSING_PART}),
        ("../outside.bin", {AssetProblemKind.EXTERNAL_OUTSIDE}),
        ("/etc/passwd", {AssetProblemKind.EXTERNAL_OUTSIDE}),
        ("link.bin", {AssetProblemKind.EXTERNAL_OUTSIDE}),
        ("a\0b", {AssetProblemKind.EXTERNAL_OUTSIDE}),
    ],
)
def test_weights_beside_a_model_are_looked_for(
    location: str, trouble: set[AssetProblemKind], tmp_path: Path
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (tmp_path / "outside.bin").write_bytes(b"\0" * 64)
    (folder / "weights.bin").write_bytes(b"\0" * 64)
    (folder / "short.bin").write_bytes(b"\0" * 3)
    (folder / "link.bin").symlink_to(tmp_path / "outside.bin")
    (folder / "net.onnx").write_bytes(assets.onnx_external(location))

    found = {asset.path: asset for asset in take_inventory(folder, KNOWN).assets}

    assert problems(found["net.onnx"]) == trouble
    assert found["net.onnx"].details.parts == (location,)


def test_a_newer_opset_than_the_runtime_knows_is_told(tmp_path: Path) -> None:
    asset = put(tmp_path, "net.onnx", assets.onnx_of_opset(99))

    assert problems(asset) == {AssetProblemKind.OPSET_TOO_NEW}
    assert asset.problems[0].message == (
        "opset 99; the installed ONNX Runtime supports opsets up to 20"
    )


def test_operators_of_others_are_told(tmp_path: Path) -> None:
    asset = put(tmp_path, "net.onnx", assets.onnx_of_opset(1, domain=b"my.company"))

    assert problems(asset) == {AssetProblemKind.CUSTOM_OPERATORS}


def test_the_highest_opset_is_found_out_by_trying() -> None:
    tried = []

    def opens(model: bytes) -> None:
        tried.append(model)
        if model[-1] > 22:
            raise ValueError(model)

    assert highest_opset(opens) == 22
    assert tried[-1] == identity_model(22)
    assert highest_opset(lambda _: opens(identity_model(99))) is None


@pytest.mark.slow  # loads ONNX Runtime
def test_the_runtime_here_knows_what_it_is_said_to_know() -> None:
    newest = highest_opset(open_in_onnx_runtime)

    assert newest is not None
    assert newest >= 21
    open_in_onnx_runtime(identity_model(newest))


@pytest.mark.parametrize(
    ("name", "whole"),
    [
        ("net.onnx", assets.onnx()),
        ("net.tflite", assets.tflite()),
        ("weights.safetensors", assets.safetensors()),
        ("llama.gguf", assets.gguf()),
        ("net.pt", assets.torch_checkpoint()),
        ("net.keras", assets.keras()),
        ("ir.xml", assets.openvino(end=0)),
        ("trees.json", assets.xgboost_json()),
        ("saved_model.pb", assets.saved_model()),
        ("model.pkl", assets.evil_pickle()),
        ("forest.txt", assets.lightgbm()),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_whatever_a_file_is_cut_to_it_is_told_and_nothing_breaks(
    name: str, whole: bytes, tmp_path: Path
) -> None:
    file = tmp_path / name
    step = max(len(whole) // 60, 1)
    told = 0
    for size in range(0, len(whole), step):
        file.write_bytes(whole[:size])
        kind, details = examine(file)

        told += kind is AssetFormat.UNKNOWN or bool(details.problems)

    assert told


@pytest.mark.parametrize("seed", range(3))
def test_whatever_bytes_of_a_file_are_changed_nothing_breaks(seed: int, tmp_path: Path) -> None:
    chance = np.random.default_rng(seed)
    for name, whole in {
        "net.onnx": assets.onnx_quantised(),
        "net.tflite": assets.tflite(),
        "saved_model.pb": assets.saved_model(),
        "llama.gguf": assets.gguf(),
        "net.pt": assets.torch_script(),
        "ir.xml": assets.openvino(),
        "weights.safetensors": assets.safetensors(),
    }.items():
        for _ in range(20):
            data = bytearray(whole)
            for place in chance.integers(0, len(data), 4):
                data[place] = chance.integers(0, 256)
            (tmp_path / name).write_bytes(bytes(data))

            assert examine(tmp_path / name, max_opset=20)


@pytest.mark.parametrize(
    ("name", "data", "trouble"),
    [
        ("a.onnx", b"", AssetProblemKind.EMPTY),
        ("a.onnx", b"version https://git-lfs.github.com/spec/v1\n", AssetProblemKind.LFS_POINTER),
        ("a.onnx", b"hello", AssetProblemKind.BROKEN),
        ("a.onnx", assets.onnx()[:-1], AssetProblemKind.BROKEN),
        ("a.pt", b"PK\x03\x04 and nothing more", AssetProblemKind.BROKEN),
        ("a.safetensors", struct.pack("<Q", 1 << 60) + b'{"', AssetProblemKind.BROKEN),
        ("a.safetensors", assets.safetensors(missing=1), AssetProblemKind.MISSING_PART),
        ("a.gguf", b"GGUF" + struct.pack("<IQQ", 3, 1 << 60, 1 << 60), AssetProblemKind.BROKEN),
        ("a.tflite", b"\xff\xff\xff\xffTFL3", AssetProblemKind.BROKEN),
        ("a.json", b'{"learner": {"objective": ' + b"[" * 100_000, AssetProblemKind.BROKEN),
        ("a.xml", b"<net>" * 1000, AssetProblemKind.BROKEN),
        ("a.txt", b"tree\nversion=v4\nmax_feature_idx=9\n", AssetProblemKind.BROKEN),
    ],
)
def test_what_is_not_whole_is_told(
    name: str, data: bytes, trouble: AssetProblemKind, tmp_path: Path
) -> None:
    assert problems(put(tmp_path, name, data)) == {trouble}


@pytest.mark.parametrize(
    ("name", "data", "kind"),
    [
        ("a.h5", b'\x89HDF\r\n\x1a\nmodel_config "class_name": "Lambda"', "keras-h5"),
        ("a.hdf5", b"\x89HDF\r\n\x1a\n" + b"\0" * 64, "unknown"),
        ("a.pt", b"\x80\x02ctorch\nnn\n.", "torch-pickle"),
        ("a.pkl", b"\x80\x04N.", "pickle"),
        ("a.pkl", b"\x1f\x8b but not gzip", "unknown"),
        ("a.bin", b"\x80\x04\x95", "unknown"),
        ("a.xml", b"<!-- only a comment", "unknown"),
    ],
)
def test_what_a_beginning_promises_is_looked_at(
    name: str, data: bytes, kind: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(data)

    assert recognise(tmp_path / name)[0].value == kind


def test_a_folder_is_what_the_one_model_in_it_is(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "a.txt").write_text("notes")
    (tmp_path / "one" / "net.onnx").write_bytes(assets.onnx())
    (tmp_path / "none").mkdir()

    found = [recognise(path) for path in (tmp_path / "one", tmp_path / "none", folder / "saved")]

    assert [kind.value for kind, _ in found] == ["onnx", "unknown", "savedmodel"]
    assert not any(runs_code for _, runs_code in found)
    assert recognise(folder / "python")[1]


@pytest.mark.parametrize("name", ["script.pt", "exported.pt2", "checkpoint.pth"])
def test_files_of_pytorch_run_code(folder: Path, name: str) -> None:
    assert recognise(folder / name)[1]


def test_what_is_not_there_is_unknown_and_says_why(tmp_path: Path) -> None:
    kind, details = examine(tmp_path / "gone")

    assert kind is AssetFormat.UNKNOWN
    assert details.problems[0].message == "cannot be read: No such file or directory"


@pytest.mark.parametrize("packing", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_an_archive_packed_in_an_unusual_way_is_not_unpacked(packing: int, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "net.pt", "w", packing) as archive:
        archive.writestr("net/data.pkl", b"\x80\x02N.")

    asset = only(tmp_path)

    assert problems(asset) == {AssetProblemKind.BROKEN}
    assert "unsupported method" in asset.problems[0].message


@pytest.mark.parametrize(
    "header",
    [
        {"w": {"dtype": "F16", "shape": [1], "data_offsets": [8, 0]}},
        {"w": {"dtype": "F16"}},
        {"__metadata__": {"a": 1}},
        [1],
    ],
    ids=["ends before it begins", "no offsets", "no text", "a list"],
)
def test_a_header_of_safetensors_that_is_none_is_told(header: object, tmp_path: Path) -> None:
    data = json.dumps(header).encode()

    kind, details = _examined(tmp_path / "w.safetensors", struct.pack("<Q", len(data)) + data)

    assert kind in {AssetFormat.SAFETENSORS, AssetFormat.UNKNOWN}
    assert {one.code for one in details.problems} == {AssetProblemKind.BROKEN}


def test_gguf_tells_weights_of_all_kinds_and_passes_over_arrays(tmp_path: Path) -> None:
    whole = gguf(
        {"numbers": [1, 2, 3], "general.file_type": 1},
        [("a", (64,), 1, bytes(128)), ("b", (640,), 30, bytes(1280)), ("c", (64,), 999, b"")],
    )

    _, details = _examined(tmp_path / "a.gguf", whole)
    _, odd = _examined(tmp_path / "b.gguf", whole[:-1])

    assert details.problems == ()
    assert details.notes["general.file_type"] == "1"
    assert details.weights == {"FP16": 128, "BF16": 1280}
    assert [one.code for one in odd.problems] == [AssetProblemKind.BROKEN]


def test_a_saved_model_with_functions_is_looked_at_inside_of_them(tmp_path: Path) -> None:
    data = assets.saved_model(inside=("EagerPyFunc",))

    _, details = _examined(tmp_path / "saved_model.pb", data)

    assert [one.code for one in details.problems] == [AssetProblemKind.RUNS_CODE]


def test_a_keras_archive_without_its_weights_or_metadata_is_told(tmp_path: Path) -> None:
    data = assets.archive({"config.json": b"{}", "metadata.json": b"\xff"})

    kind, details = _examined(tmp_path / "net.keras", data)

    assert kind is AssetFormat.KERAS
    assert details.producer == "keras"
    assert [one.code for one in details.problems] == [AssetProblemKind.MISSING_PART]


def test_a_tflite_model_with_operators_of_its_own_names_them(tmp_path: Path) -> None:
    _, details = _examined(tmp_path / "net.tflite", assets.tflite(custom="FlexErf"))

    assert [one.code for one in details.problems] == [AssetProblemKind.CUSTOM_OPERATORS]
    assert "FlexErf" in details.problems[0].message


def test_an_onnx_model_may_have_packed_dimensions_and_inputs_that_are_no_tensors(
    tmp_path: Path,
) -> None:
    _, details = _examined(tmp_path / "net.onnx", assets.onnx_unusual())

    assert details.weights == {"INT4": 12}
    assert [(one.name, one.datatype, one.shape) for one in details.inputs] == [
        ("m", "map", None),
        ("t", "FP32", None),
        ("n", "?", None),
    ]
    assert details.is_quantised


def test_a_folder_that_may_not_be_read_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.onnx").write_bytes(assets.onnx())

    def refuse(_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "scandir", refuse)

    assert "cannot be read: Permission denied" in take_inventory(tmp_path, KNOWN).incomplete


def _examined(file: Path, data: bytes) -> tuple[AssetFormat, Details]:
    file.write_bytes(data)
    return examine(file)


def test_xml_that_grows_without_bound_is_refused(tmp_path: Path) -> None:
    entities = "".join(f'<!ENTITY e{i} "{f"&e{i - 1};" * 10 if i else "lol"}">' for i in range(20))
    data = f"<!DOCTYPE net [{entities}]><net>&e19;</net>".encode()
    (tmp_path / "bomb.xml").write_bytes(data)

    kind, details = examine(tmp_path / "bomb.xml")

    assert kind is AssetFormat.UNKNOWN
    assert details.problems == ()


@pytest.mark.slow  # much is packed
def test_an_archive_that_unpacks_to_much_costs_what_is_read_of_it(tmp_path: Path) -> None:
    bomb = assets.archive(
        {"net/data.pkl": b"\x80\x02" + b"N" * (64 << 20), "net/constants.pkl": b"", "net/v": b""}
    )

    asset = put(tmp_path, "net.pt", bomb)

    assert asset.format is AssetFormat.TORCHSCRIPT
    assert asset.size_bytes < 1 << 20


def test_an_archive_whose_names_leave_it_says_so(tmp_path: Path) -> None:
    data = assets.archive({"net/data.pkl": b"\x80\x02N.", "../../etc/cron.d/x": b""})

    assert AssetProblemKind.DANGEROUS_CODE in problems(put(tmp_path, "net.pt", data))


def test_a_huge_file_is_told_and_not_read(tmp_path: Path) -> None:
    with (tmp_path / "huge.onnx").open("wb") as stream:
        stream.write(assets.onnx()[:100])
        stream.truncate(1 << 40)

    asset = only(tmp_path)

    assert asset.size_bytes == 1 << 40
    assert asset.digest == ""
    assert AssetProblemKind.HUGE in problems(asset)


def test_links_that_leave_the_folder_or_go_in_circles_are_told(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (tmp_path / "secret.onnx").write_bytes(assets.onnx())
    (folder / "a.onnx").write_bytes(assets.onnx(seed=5))
    (folder / "inside.onnx").symlink_to("a.onnx")
    (folder / "outside.onnx").symlink_to(tmp_path / "secret.onnx")
    (folder / "gone.onnx").symlink_to("nothing")
    (folder / "circle").symlink_to("circle")
    (folder / "up").symlink_to(folder)

    found = {asset.path: problems(asset) for asset in take_inventory(folder, KNOWN).assets}

    linked = {AssetProblemKind.LINK_OUTSIDE}
    assert found == {
        "a.onnx": set(),
        "circle": linked,
        "gone.onnx": linked,
        "outside.onnx": linked,
    }


def test_a_link_out_of_a_saved_model_is_told(tmp_path: Path) -> None:
    folder = tmp_path / "saved"
    folder.mkdir()
    (tmp_path / "secret").write_bytes(b"x")
    (folder / "saved_model.pb").write_bytes(assets.saved_model())
    (folder / "assets").symlink_to(tmp_path / "secret")

    asset = only(tmp_path)

    assert asset.path == "saved"
    assert problems(asset) == {AssetProblemKind.LINK_OUTSIDE}
    assert asset.digest == ""


def test_a_named_pipe_does_not_make_it_wait(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.onnx")

    assert take_inventory(tmp_path, KNOWN).assets == ()
    assert examine(tmp_path / "pipe.onnx")[0] is AssetFormat.UNKNOWN


def test_the_same_content_twice_is_told_at_the_second(tmp_path: Path) -> None:
    for name in ("b.onnx", "a.onnx"):
        (tmp_path / name).write_bytes(assets.onnx())

    first, second = take_inventory(tmp_path, KNOWN).assets

    assert (first.path, problems(first)) == ("a.onnx", set())
    assert problems(second) == {AssetProblemKind.DUPLICATE}


def test_variables_that_were_not_copied_are_missed(tmp_path: Path) -> None:
    (tmp_path / "variables").mkdir()
    (tmp_path / "saved_model.pb").write_bytes(assets.saved_model())
    (tmp_path / "variables" / "variables.index").write_bytes(b"x")
    none = problems(only(tmp_path))
    (tmp_path / "variables" / "variables.data-00000-of-00002").write_bytes(b"x")
    half = problems(only(tmp_path))

    assert none == half == {AssetProblemKind.MISSING_PART}


def test_weights_of_openvino_that_are_missing_or_short_are_told(tmp_path: Path) -> None:
    (tmp_path / "ir.xml").write_bytes(assets.openvino(end=1000))
    without = problems(only(tmp_path))
    (tmp_path / "ir.bin").write_bytes(b"\0" * 10)

    assert without == problems(only(tmp_path)) == {AssetProblemKind.MISSING_PART}


def test_a_folder_that_is_none_is_an_error_and_an_empty_one_is_not(tmp_path: Path) -> None:
    assert take_inventory(tmp_path, KNOWN).assets == ()
    with pytest.raises(InvalidArgumentError, match="is not a directory"):
        take_inventory(tmp_path / "gone", KNOWN)


def test_folders_in_folders_without_end_are_left_out_and_that_is_told(tmp_path: Path) -> None:
    deep = tmp_path.joinpath(*["d"] * 80)
    deep.mkdir(parents=True)
    (deep / "a.onnx").write_bytes(assets.onnx())

    found = take_inventory(tmp_path, KNOWN)

    assert found.assets == ()
    assert "deeper than 64" in found.incomplete


def test_the_document_is_json_and_says_what_people_are_shown(folder: Path) -> None:
    inventory = take_inventory(folder, KNOWN)

    document = json.loads(json.dumps(inventory_document(inventory)))
    rows = [asset_row(asset, size="1 kB") for asset in inventory.assets]
    lines = list(remarks(inventory))

    assert document["summary"]["assets"] == len(EXPECTED) == len(document["assets"]) == len(rows)
    assert document["summary"]["with_problems"] == 3
    mlp = next(one for one in document["assets"] if one["path"] == "mlp.onnx")
    assert mlp["inputs"] == [{"name": "input", "datatype": "FP32", "shape": [-1, 8]}]
    assert (mlp["opset"], mlp["precision"], mlp["runtime"]) == (17, "FP32", "onnx")
    assert mlp["problems"] == [
        {"code": "unsigned", "severity": "low", "message": "it has no signature in this registry"}
    ]
    quantised = next(row for row in rows if row[0] == "quantised.onnx")
    assert quantised[1:7] == (
        *("onnx", "1 kB", "17", "INT8 (quantised)", "onnx"),
        "x FP32[any,64]",
    )
    assert any("no installed runtime serves gguf" in line for line in lines)
    assert any("of low severity" in line for line in lines)
