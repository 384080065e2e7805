from collections.abc import Iterator, Sequence
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

import pytest

from headrace.core import (
    CodeNotAllowedError,
    FailedPreconditionError,
    Inspected,
    InvalidArgumentError,
    ModelSignature,
    Tensors,
    UnsupportedModelError,
)
from headrace.runtimes import (
    LoadOptions,
    Model,
    detect_runtime,
    get_runtime,
    inspect_model,
    load_model,
    plugins,
    runtime_names,
)
from headrace.testing import models


class PickyRuntime:
    """A third-party runtime; it also claims .both, and fails as no runtime should."""

    name = "picky"

    def recognises(self, path: Path) -> bool:
        if path.suffix == ".crash":
            msg = "recognises() crashed"
            raise ValueError(msg)
        return path.suffix in (".picky", ".py")

    def load(self, path: Path, options: LoadOptions) -> Model:
        del options
        if path.stem == "refused":
            msg = "refused"
            raise UnsupportedModelError(msg)
        msg = f"surprise at {path.name}"
        raise KeyError(msg)


class OddRuntime(PickyRuntime):
    """A third-party runtime of which some models run code."""

    name = "odd"
    runs_code = False

    def recognises(self, path: Path) -> bool:
        del path
        return False

    def code_in(self, path: Path) -> str:
        return "it has an odd operator" if path.suffix == ".odd" else ""

    def load(self, path: Path, options: LoadOptions) -> Model:
        del path, options
        return Nothing()


class Nothing:
    """A model that takes nothing and gives nothing."""

    signature = ModelSignature(inputs=(), outputs=(), batched=False)
    concurrent = True

    def run(self, inputs: Tensors, outputs: Sequence[str] | None = None) -> Tensors:
        del inputs, outputs
        return {}

    def close(self) -> None: ...


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As if two more packages were installed: one that works and one that is broken."""
    here = EntryPoint("picky", f"{__name__}:PickyRuntime", plugins.ENTRY_POINT_GROUP)
    gone = EntryPoint("gone", "no_such_package:Runtime", plugins.ENTRY_POINT_GROUP)
    real = list(entry_points(group=plugins.ENTRY_POINT_GROUP))
    odd = EntryPoint("odd", f"{__name__}:OddRuntime", plugins.ENTRY_POINT_GROUP)
    monkeypatch.setattr(plugins, "entry_points", lambda **_: [*real, here, gone, odd])
    monkeypatch.setattr(EntryPoint, "load", _load_here(EntryPoint.load))
    plugins._entry_points.cache_clear()
    plugins._load.cache_clear()
    yield
    plugins._entry_points.cache_clear()
    plugins._load.cache_clear()


def _load_here(load: object) -> object:
    # pytest imports test files under names that importlib cannot find again.
    ours = {"picky": PickyRuntime, "odd": OddRuntime}
    return lambda entry: ours.get(entry.name) or load(entry)  # type: ignore[operator]  # the real method


def put(path: Path, content: bytes = b"") -> Path:
    path.write_bytes(content)
    return path


def test_the_built_in_runtimes_are_plug_ins_too() -> None:
    assert {"onnx", "python"} <= set(runtime_names())
    assert [get_runtime(name).name for name in ("onnx", "python")] == ["onnx", "python"]


def test_an_unknown_runtime_is_answered_with_those_there_are() -> None:
    with pytest.raises(
        InvalidArgumentError, match=r"unknown runtime 'onxx'; available runtimes: .*onnx"
    ):
        get_runtime("onxx")


@pytest.mark.usefixtures("installed")
def test_third_parties_stand_beside_the_built_in_ones(tmp_path: Path) -> None:
    assert {"gone", "onnx", "picky", "python"} <= set(runtime_names())
    assert detect_runtime(put(tmp_path / "m.picky")).name == "picky"


@pytest.mark.usefixtures("installed")
def test_a_plug_in_that_cannot_be_imported_gives_its_reason() -> None:
    with pytest.raises(
        FailedPreconditionError,
        match=r"runtime 'gone' \(no_such_package:Runtime\) cannot be loaded: ModuleNotFoundError",
    ):
        get_runtime("gone")


@pytest.mark.usefixtures("installed")
def test_a_broken_plug_in_does_not_hide_the_others(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = put(tmp_path / "m.onnx", models.matmul())

    assert detect_runtime(path).name == "onnx"
    assert "runtime 'gone' is skipped" in caplog.text
    with pytest.raises(
        UnsupportedModelError, match=r"recognises this file; .*'gone' cannot be loa"
    ):
        detect_runtime(put(tmp_path / "m.crash", b"x"))
    assert "'picky' is skipped: ValueError" in caplog.text


@pytest.mark.usefixtures("installed")
def test_a_model_that_two_recognise_has_to_name_one(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match=r"\(picky, python\); name one of them"):
        detect_runtime(put(tmp_path / "model.py"))


@pytest.mark.usefixtures("installed")
def test_a_plug_ins_surprise_becomes_a_refusal_with_its_cause(tmp_path: Path) -> None:
    path = put(tmp_path / "m.picky")
    with pytest.raises(UnsupportedModelError, match="runtime 'picky' failed: KeyError") as caught:
        load_model(path)
    assert isinstance(caught.value.__context__, KeyError)

    with pytest.raises(UnsupportedModelError, match=r"KeyError"):
        inspect_model(path, allow_code=True)
    with pytest.raises(UnsupportedModelError, match=r"^refused$"):
        load_model(put(tmp_path / "refused.picky"))


def test_a_model_is_loaded_by_the_runtime_that_knows_it(tmp_path: Path) -> None:
    path = put(tmp_path / "m.onnx", models.matmul())
    model = load_model(path, options=LoadOptions(device="cpu"))

    seen = inspect_model(path)

    assert seen == Inspected("onnx", model.signature, runs_code=False, first_run=seen.first_run)
    assert seen.first_run is not None
    assert seen.first_run.run_s is not None
    assert inspect_model(path, "onnx")[0] == "onnx"
    with pytest.raises(UnsupportedModelError, match=r"m\.onnx: "):
        inspect_model(path, "python", allow_code=True)


def test_a_file_that_would_run_is_not_run_until_that_is_allowed(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    code = f"import pathlib\npathlib.Path({str(mark)!r}).touch()\n{models.python_double()}"
    path = put(tmp_path / "model.py", code.encode())

    for runtime in ("", "python"):
        with pytest.raises(CodeNotAllowedError, match="`allow_code: true` at the endpoint"):
            inspect_model(path, runtime)
    assert not mark.exists()
    assert inspect_model(path, allow_code=True).runs_code
    assert mark.exists()


@pytest.mark.usefixtures("installed")
def test_a_plug_in_that_does_not_say_counts_as_one_that_runs_code(tmp_path: Path) -> None:
    with pytest.raises(CodeNotAllowedError, match="runtime 'picky' runs its author's code"):
        inspect_model(put(tmp_path / "m.picky"))


@pytest.mark.usefixtures("installed")
def test_of_some_formats_only_the_models_with_code_in_them_need_the_allow(tmp_path: Path) -> None:
    odd = put(tmp_path / "m.odd")
    with pytest.raises(CodeNotAllowedError, match=r"m\.odd: it has an odd operator; if you trust"):
        inspect_model(odd, "odd")

    assert inspect_model(odd, "odd", allow_code=True).runs_code
    assert not inspect_model(put(tmp_path / "m.even"), "odd").runs_code


def test_what_is_not_there_or_unknown_is_refused(tmp_path: Path) -> None:
    for runtime in ("", "onnx"):
        with pytest.raises(UnsupportedModelError, match="no such file or directory"):
            load_model(tmp_path / "nothing", runtime)
    with pytest.raises(UnsupportedModelError, match="is an empty directory"):
        load_model(tmp_path)
    put(tmp_path / "notes.txt", b"x")
    with pytest.raises(UnsupportedModelError, match="no runtime recognises this directory"):
        load_model(tmp_path)
