import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from headrace.core import (
    FailedPreconditionError,
    HeadraceError,
    RuntimeFailedError,
    UnsupportedModelError,
)
from headrace.runtimes import LoadOptions, detect_runtime, load_model
from headrace.runtimes.base import Tuning
from headrace.runtimes.check_file import read_check, write_check
from headrace.runtimes.optimized.file import (
    FILE_NAME,
    EngineFile,
    OptimizedManifest,
    OtherProcessor,
    Processor,
    read_manifest,
)
from headrace.runtimes.optimized.processor import this_processor
from headrace.runtimes.optimized.runtime import (
    OptimizedRuntime,
    member_options,
    open_optimized,
    prove,
)
from headrace.testing import models
from tests import openvino_models, optimized_models
from tests.optimized_models import changed

HERE = this_processor()
CPU = LoadOptions(device="cpu")
OTHER = {"name": "Other", "features": ["avx2", "avx512_vnni"]}
AVX2 = Processor(name="Here", features=("avx2",))


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    return optimized_models.write(tmp_path)


def rows(count: int) -> dict[str, np.ndarray[Any, Any]]:
    return {"input": np.random.default_rng(0).normal(size=(count, 32)).astype(np.float32)}


def member(artifact: Path, **values: object) -> Path:
    """The artifact with other values in its only member."""
    document = json.loads((artifact / FILE_NAME).read_text())
    return changed(artifact, members=[document["members"][0] | values])


# What runs.


def test_it_says_what_runs_it_and_where_that_was_verified(artifact: Path) -> None:
    use = open_optimized(artifact, LoadOptions(), here=HERE).device

    assert use.used == ("CPU",)
    assert use.asked == "auto"
    assert use.optimized == f"onnx-0, verified on {HERE.name}"


def test_it_is_not_run_by_a_device_that_it_was_not_optimized_for(artifact: Path) -> None:
    for device in ("cuda", "gpu", "openvino"):
        with pytest.raises(FailedPreconditionError, match=f"'{device}'.*optimized for the CPU"):
            load_model(artifact, options=LoadOptions(device=device))
    with pytest.raises(UnsupportedModelError, match="no device 'abacus'"):
        load_model(artifact, options=LoadOptions(device="abacus"))


def test_a_closed_model_says_so(artifact: Path) -> None:
    model = load_model(artifact)
    model.close()
    model.close()
    with pytest.raises(RuntimeFailedError, match="is closed"):
        model.run(rows(1))


def test_members_run_as_tuned_on_the_cpu() -> None:
    tuning = Tuning(precision="bf16", arena=True, intra_op_threads=1)
    options = member_options(EngineFile(runtime="onnx", path="m", tuning=tuning), LoadOptions())

    assert options.device == "cpu"
    assert options.tuning == tuning


@pytest.mark.parametrize(
    ("wished", "planned", "pinned", "threads"),
    [
        (None, 1, None, 1),
        (None, 4, None, 4),
        (1, 4, None, 1),
        (1000, 1, None, len(os.sched_getaffinity(0))),
        (1, 1, 3, 3),
        (None, 1, 3, 3),
        (1000, 1, 1, 1),
    ],
)
def test_a_pinned_number_of_threads_stands_above_what_was_wished(
    wished: int | None, planned: int, pinned: int | None, threads: int
) -> None:
    found = member_options(
        EngineFile(runtime="onnx", path="m", tuning=Tuning(intra_op_threads=wished)),
        LoadOptions(intra_op_threads=planned, tuning=Tuning(intra_op_threads=pinned)),
    )

    assert found.threads == found.intra_op_threads == threads


def test_several_engines_are_one_model(tmp_path: Path) -> None:
    openvino_models.library()
    path = optimized_models.write(tmp_path, runtimes=("openvino", "onnx"), bounds=(2, None))
    model = load_model(path)
    plain = load_model(tmp_path / "source" / "mlp.onnx")

    assert model.signature == plain.signature
    for count in (1, 2, 3, 9):
        for name, answer in model.run(rows(count)).items():
            assert np.allclose(answer, plain.run(rows(count))[name], atol=1e-5)


# What stands in the manifest.


def test_a_directory_with_a_manifest_is_an_optimized_model(artifact: Path, tmp_path: Path) -> None:
    (artifact / "stray.onnx").write_bytes(b"")

    assert detect_runtime(artifact).name == "optimized"
    assert not OptimizedRuntime().recognises(artifact / FILE_NAME)
    assert not OptimizedRuntime().recognises(tmp_path)


def test_the_manifest_survives_its_own_writing(artifact: Path) -> None:
    manifest = read_manifest(artifact)

    again = msgspec.json.decode(msgspec.json.encode(manifest), type=OptimizedManifest)
    assert again == manifest


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"", "is not a valid description of an optimized model"),
        (b"{", "is not a valid description"),
        (b"[]", "Expected `object`"),
        (b"\xff\xfe", "is not a valid description"),
        (b"[" * 100_000, "is not a valid description"),
        (b"{}", "missing required field `members`"),
        (b'{"schema": 2, "news": 1}', "newer Headrace .schema 2, here 1.; upgrade"),
        (b'{"schema": 0}', "has the schema 0; only 1 is supported"),
        (b'{"schema": "1"}', r"Expected `int`, got `str` - at `\$\.schema`"),
        (b'{"members": [{"runtime": "onnx"}]}', r"required field `path` - at `\$\.members"),
        (b'{"schema": 1, "surprise": 1}', "unknown field or value"),
        (b" " * ((1 << 20) + 1), "is larger than 1048576 bytes"),
    ],
)
def test_what_is_no_manifest_is_refused(artifact: Path, text: bytes, said: str) -> None:
    (artifact / FILE_NAME).write_bytes(text)
    with pytest.raises(UnsupportedModelError, match=said) as refused:
        load_model(artifact)

    assert FILE_NAME in str(refused.value)
    assert len(str(refused.value)) < 1000


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"members": []}, "has 0 members; allowed are 1 to 16"),
        ({"extra": 1}, "unknown field or value"),
        ({"processor": ...}, "missing required field `processor`"),
        ({"processor": {"name": "x", "features": ["\x1b[31m"]}}, "features that do not exist"),
        ({"processor": {"name": "x", "features": ["a"] * 300}}, "features that do not exist"),
        ({"on_other_processor": "hope"}, "value at `.*on_other_processor"),
        (
            {"check": {"path": "none.npz", "tolerance": 0.1, "max_changed_ratio": 0}},
            "does not exist",
        ),
        ({"check": {"path": "onnx-0", "tolerance": 0.1, "max_changed_ratio": 0}}, "is not a file"),
        (
            {"check": {"path": "check.npz", "tolerance": 7, "max_changed_ratio": 0}},
            "outside 0 to 1",
        ),
        (
            {"check": {"path": "check.npz", "tolerance": 0, "max_changed_ratio": -1}},
            "outside 0 to 1",
        ),
    ],
)
def test_a_manifest_that_claims_what_cannot_be_is_refused(
    artifact: Path, values: Mapping[str, Any], said: str
) -> None:
    with pytest.raises(UnsupportedModelError, match=said):
        load_model(changed(artifact, **values))


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"path": "../source/mlp.onnx"}, "is outside its directory"),
        ({"path": "onnx-0/../../source/mlp.onnx"}, "is outside its directory"),
        ({"path": "/etc/passwd"}, "is outside its directory"),
        ({"path": "..\\source"}, "is outside its directory"),
        ({"path": ""}, "not a path of a file"),
        ({"path": "."}, "not a path of a file"),
        ({"path": "a\0b"}, "not a path of a file"),
        ({"path": "a/" * 1000}, "not a path of a file"),
        ({"path": "none.onnx"}, "names 'none.onnx', which does not exist"),
        ({"path": "linked.onnx"}, "a link that leads out of its directory"),
        ({"path": "round"}, "which does not exist"),
        ({"runtime": "nonsense"}, "unknown runtime 'nonsense'; available runtimes:"),
        ({"runtime": ""}, "unknown runtime ''"),
        ({"runtime": "python"}, "runs code of its author"),
        ({"runtime": "optimized", "path": "onnx-0"}, "combines other models itself"),
        ({"runtime": "pipeline", "path": "onnx-0"}, "combines other models itself"),
        ({"runtime": "lightgbm"}, "mlp.onnx"),
        ({"tuning": {"precision": "int3"}}, "unknown precision 'int3'"),
        ({"tuning": {"graph_optimizations": "max"}}, "'max'"),
        ({"tuning": {"disabled_optimizers": ["; rm -rf /"]}}, "not a valid name of ONNX Runtime"),
        ({"tuning": {"turbo": True}}, "value at `.*tuning"),
        ({"up_to_rows": 4}, "no member for many rows"),
    ],
)
def test_a_member_that_cannot_be_is_refused(
    artifact: Path, values: Mapping[str, Any], said: str
) -> None:
    if values.get("path") == "linked.onnx":
        (artifact / "linked.onnx").symlink_to(artifact.parent / "source" / "mlp.onnx")
    if values.get("path") == "round":
        (artifact / "round").symlink_to("round")
    with pytest.raises(HeadraceError, match=said) as refused:
        load_model(member(artifact, **values))

    assert isinstance(refused.value, UnsupportedModelError | FailedPreconditionError)
    assert artifact.name in str(refused.value)


@pytest.mark.parametrize(
    "bounds", [(0, None), (-1, None), (None, None), (4, 4, None), (4, 2, None)]
)
def test_members_are_for_ever_more_rows(artifact: Path, bounds: tuple[int | None, ...]) -> None:
    one = json.loads((artifact / FILE_NAME).read_text())["members"][0]
    with pytest.raises(UnsupportedModelError, match="each must take more than the one before"):
        load_model(changed(artifact, members=[one | {"up_to_rows": n} for n in bounds]))


def test_there_are_only_so_many_members(artifact: Path) -> None:
    one = json.loads((artifact / FILE_NAME).read_text())["members"][0]
    with pytest.raises(UnsupportedModelError, match="has 17 members"):
        load_model(changed(artifact, members=[one] * 17))


def test_a_link_within_a_member_may_not_lead_out(artifact: Path) -> None:
    (artifact / "onnx-0" / "weights.bin").symlink_to("/etc/hostname")
    with pytest.raises(UnsupportedModelError, match=r"holds 'onnx-0/weights\.bin', a link"):
        load_model(artifact)


def test_a_link_to_the_whole_directory_is_fine(artifact: Path, tmp_path: Path) -> None:
    link = tmp_path / "current"
    link.symlink_to(artifact)
    (artifact / "again").symlink_to("onnx-0")

    assert load_model(link).signature.batched


def test_a_manifest_that_is_no_file_is_refused(artifact: Path) -> None:
    (artifact / FILE_NAME).unlink()
    os.mkfifo(artifact / FILE_NAME)
    assert not OptimizedRuntime().recognises(artifact)
    with pytest.raises(UnsupportedModelError, match="is not a regular file"):
        load_model(artifact, "optimized")


def test_members_that_differ_are_no_model(artifact: Path) -> None:
    (artifact / "other.onnx").write_bytes(models.mlp(features=8))
    one = json.loads((artifact / FILE_NAME).read_text())["members"][0]
    members = [one | {"up_to_rows": 1}, one | {"path": "other.onnx"}]
    with pytest.raises(UnsupportedModelError, match=r"optimized: the optimized model is not one"):
        load_model(changed(artifact, members=members))


# Another processor.


def test_the_same_processor_is_not_asked_again(artifact: Path) -> None:
    (artifact / "check.npz").write_bytes(b"nothing that could be read")

    assert load_model(artifact).run(rows(1))


def test_on_another_processor_it_is_verified_again(
    artifact: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        model = open_optimized(changed(artifact, processor=OTHER), CPU, here=AVX2)

    said = "onnx-0, verified on Other; verified again on this processor, which lacks avx512_vnni"
    assert model.device.optimized == said
    assert f"optimized: {said}" in caplog.text
    assert not [record for record in caplog.records if record.levelno > logging.INFO]


def test_more_features_are_another_processor_too(artifact: Path) -> None:
    here = Processor(name="New", features=("avx2", "avx512_vnni", "amx_int8"))
    model = open_optimized(changed(artifact, processor=OTHER), CPU, here=here)

    assert model.device.optimized.endswith("which additionally has amx_int8")


def tampered(artifact: Path, **values: Any) -> Path:  # noqa: ANN401  # JSON
    """The artifact, verified elsewhere, whose model is another one now."""
    (artifact / "onnx-0" / "mlp.onnx").write_bytes(models.mlp(seed=5))
    return changed(artifact, processor=OTHER, **values)


def test_what_answers_otherwise_there_is_refused_with_what_to_do(artifact: Path) -> None:
    with pytest.raises(FailedPreconditionError) as refused:
        open_optimized(tampered(artifact), CPU, here=AVX2)

    text = str(refused.value)
    assert "verified on Other; on this processor, which lacks avx512_vnni, " in text
    assert "of 7 answers differ, by up to" in text
    assert "run `headrace optimize` here, or serve the version that it was made of" in text
    assert "(sha256:abababababab...)" in text


def test_it_may_be_refused_without_being_asked(artifact: Path) -> None:
    path = changed(artifact, processor=OTHER, on_other_processor="refuse")
    (path / "onnx-0" / "mlp.onnx").write_bytes(b"never opened")
    with pytest.raises(FailedPreconditionError, match="its policy refuses it here"):
        open_optimized(path, CPU, here=AVX2)


def test_it_may_be_served_without_being_asked(
    artifact: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        model = open_optimized(tampered(artifact, on_other_processor="allow"), CPU, here=AVX2)

    assert model.run(rows(1))
    (warning,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert warning.getMessage().endswith(
        "verified on Other; not verified on this processor, which lacks avx512_vnni"
    )


@pytest.mark.parametrize("policy", list(OtherProcessor))
def test_a_policy_says_nothing_of_the_same_processor(
    artifact: Path, policy: OtherProcessor
) -> None:
    assert load_model(changed(artifact, on_other_processor=policy, check=None)).run(rows(1))


def test_what_cannot_be_verified_is_refused(artifact: Path) -> None:
    path = changed(artifact, processor=OTHER, check=None)
    with pytest.raises(FailedPreconditionError, match="has no check that could verify it again"):
        open_optimized(path, CPU, here=AVX2)


def test_features_that_are_not_known_are_verified(artifact: Path) -> None:
    nothing = Processor(name="?", features=())
    model = open_optimized(artifact, CPU, here=nothing)

    assert model.device.optimized.endswith("whose features may differ")


def test_every_member_is_verified(tmp_path: Path) -> None:
    path = optimized_models.write(tmp_path, runtimes=("onnx", "onnx"), bounds=(1, None))
    document = json.loads((path / FILE_NAME).read_text())
    (path / "bad.onnx").write_bytes(models.mlp(seed=5))
    document["members"][1]["path"] = "bad.onnx"
    changed(path, processor=OTHER, members=document["members"])

    with pytest.raises(FailedPreconditionError, match=r"answers differ.* of 'bad\.onnx': run"):
        open_optimized(path, CPU, here=AVX2)


@pytest.mark.parametrize(
    ("inputs", "outputs", "said"),
    [
        (
            {"other": np.ones((1, 32), np.float32)},
            {},
            "request 0 does not match the model: unexpected inference",
        ),
        (
            {"input": np.ones((1, 9), np.float32)},
            {},
            "request 0 does not match the model: unexpected shape",
        ),
        ({}, {"extra": np.ones(1)}, "outputs that 'onnx-0/mlp.onnx' does not have"),
        ({}, {"*": np.ones((5, 2), np.float32)}, "response 0 does not have 1 rows"),
    ],
)
def test_a_check_that_does_not_fit_is_refused(
    artifact: Path, inputs: dict[str, Any], outputs: dict[str, Any], said: str
) -> None:
    asked = read_check(artifact / "check.npz")
    name = next(iter(asked[0][1]))
    outputs = {name if key == "*" else key: array for key, array in outputs.items()}
    write_check(artifact / "check.npz", [(inputs or asked[0][0], outputs or asked[0][1])])
    with pytest.raises(UnsupportedModelError, match=said):
        open_optimized(changed(artifact, processor=OTHER), CPU, here=AVX2)


def test_a_name_in_the_manifest_commands_no_terminal(artifact: Path) -> None:
    path = changed(
        artifact,
        processor={"name": "\x1b[2J" + "x" * 9999, "features": ["avx2"]},
        recipe={"candidate": "a\x07\nb" + "y" * 9999},
    )
    text = open_optimized(path, CPU, here=AVX2).device.optimized

    assert text.isprintable()
    assert len(text) < 300


def test_a_model_is_proved_whichever_processor_it_is(artifact: Path) -> None:
    prove(artifact)
    with pytest.raises(FailedPreconditionError, match="of 7 answers differ"):
        prove(tampered(artifact))
