"""A model is converted where it can spoil nothing, and what comes of it answers the same."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import joblib
import numpy as np
import pytest

from headrace.client import Client
from headrace.control.local.sandbox import KernelFeatures, Sandbox
from headrace.control.sandboxed.convert import converted_model
from headrace.core import CodeNotAllowedError, FailedPreconditionError, UnsupportedModelError
from headrace.optimize.convert.convert import Conversion
from headrace.optimize.convert.process import ConvertRequest
from tests import savedmodels, tabular_models
from tests.e2e.cli.conftest import Shell
from tests.e2e.control.system import System
from tests.e2e.control.test_sandbox import needs_namespaces

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

tabular_models.library("onnxmltools", "convert")


class Bomb:
    """Pickled as a call of `exec`, as an attacker's file is."""

    def __init__(self, code: str) -> None:
        self.code = code

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return exec, (self.code,)


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="hr-") as directory:
        Path(directory).chmod(0o755)
        (Path(directory) / "home").mkdir()
        (Path(directory) / "home" / "secret").write_text("secret")
        yield Path(directory)


def wild(folder: Path, code: str) -> ConvertRequest:
    path = folder / "wild.pkl"
    joblib.dump(Bomb(code), path)
    return ConvertRequest(path=str(path), runtime="sklearn", allow_code=True)


def converting(
    folder: Path, request: ConvertRequest, timeout_s: float = 20.0
) -> AbstractContextManager[tuple[Path, Conversion]]:
    return converted_model(
        Sandbox.of_home(folder / "home"),
        request,
        filename="m.onnx",
        timeout_s=timeout_s,
        memory_bytes=900_000_000,
    )


def refused(folder: Path, request: ConvertRequest, timeout_s: float = 20.0) -> str:
    with (
        pytest.raises(UnsupportedModelError) as caught,
        converting(folder, request, timeout_s),
    ):
        pass
    return str(caught.value)


@needs_namespaces
def test_what_a_pickle_does_spoils_nothing(folder: Path) -> None:
    home = folder / "home"
    code = f"""
import os, socket
said = []
for what, *given in (
    (open, {str(home / "secret")!r}),
    (socket.create_connection, ("127.0.0.1", 9), 1),
    (os.kill, {os.getpid()}, 0),
):
    try:
        what(*given)
        said.append("done")
    except OSError as error:
        said.append(type(error).__name__)
raise ValueError(" ".join(said))
"""
    said = refused(folder, wild(folder, code))

    assert f"{folder / 'wild.pkl'}: cannot be unpickled" in said
    secret, network, signal = said.rpartition(": ")[2].split()
    assert (secret, network) == ("FileNotFoundError", "OSError")
    assert signal in {"PermissionError", "ProcessLookupError"}


@pytest.mark.long
@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (
            "import ctypes; ctypes.string_at(0)",
            "its process was ended by SIGSEGV",
        ),
        ("import os; os._exit(7)", "ended with status 7"),
        ("import os; os._exit(0)", "it left no result"),
        (
            "x = [bytearray(50_000_000) for _ in range(10**6)]",
            "it took more than 900000000 bytes of memory while it was converted",
        ),
        (
            "import os; os.symlink('/etc/passwd', 'result.json'); os._exit(0)",
            "it left no result",
        ),
    ],
    ids=["crash", "exit", "silence", "memory", "link"],
)
def test_how_a_conversion_ended_is_told(folder: Path, code: str, reason: str) -> None:
    assert reason in refused(folder, wild(folder, code))


@pytest.mark.long
def test_a_conversion_without_end_is_ended(folder: Path) -> None:
    said = refused(folder, wild(folder, "import time; time.sleep(600)"), 4.0)

    assert said.endswith("it was not converted within 4 s")


def test_code_runs_only_where_that_is_allowed(folder: Path) -> None:
    mark = folder / "mark"
    request = wild(folder, f"open({str(mark)!r}, 'w')")
    closed = ConvertRequest(path=request.path, runtime="sklearn")

    with (
        pytest.raises(CodeNotAllowedError, match=r"wild\.pkl"),
        converting(folder, closed),
    ):
        pass

    assert not mark.exists()


def test_what_is_code_in_a_graph_is_told(folder: Path) -> None:
    nodes = [*savedmodels.PERCEPTRON, savedmodels.node("lone", "ReadFile")]
    path = savedmodels.write(folder / "reads", savedmodels.graph(nodes))
    request = ConvertRequest(path=str(path), runtime="savedmodel")

    with (
        pytest.raises(CodeNotAllowedError, match=r"reads: .*\(ReadFile\); if you trust"),
        converting(folder, request),
    ):
        pass


def test_a_model_is_not_converted_where_the_process_cannot_be_isolated(folder: Path) -> None:
    request = wild(folder, "raise ValueError")
    sandbox = Sandbox(hide=(folder / "home",), reports=folder, kernel_features=KernelFeatures)

    with (
        pytest.raises(FailedPreconditionError, match="allow unprivileged user namespaces"),
        converted_model(sandbox, request, filename="m.onnx"),
    ):
        pass


def test_a_file_that_is_gone_or_closed_is_refused_by_its_name(folder: Path) -> None:
    request = ConvertRequest(path=str(folder / "gone.skops"), runtime="sklearn")

    assert "gone.skops: does not exist" in refused(folder, request)


def test_a_package_that_is_absent_is_said_to_be(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tabular_models.xgboost(folder, "binary").path
    (folder / "shadow").mkdir()
    (folder / "shadow" / "onnxmltools.py").write_text("raise ImportError('not here')")
    monkeypatch.setenv("PYTHONPATH", str(folder / "shadow"))
    monkeypatch.syspath_prepend(str(folder / "shadow"))  # as if this process had started so
    request = ConvertRequest(path=str(path), runtime="xgboost")

    with (
        pytest.raises(FailedPreconditionError, match=r"pip install 'headrace\[convert\]'"),
        converting(folder, request),
    ):
        pass


@pytest.fixture
def shell(system: System) -> Shell:
    shell = Shell(system.home.parent)
    shell.environment["HEADRACE_HOME"] = str(system.home)
    return shell


@pytest.mark.long
def test_converted_models_answer_through_envoy_as_their_library_in_process(
    system: System, shell: Shell, tmp_path: Path
) -> None:
    trained = {}
    for name in ("xgboost", "lightgbm", "catboost", "sklearn"):
        (tmp_path / name).mkdir()
        trained[name] = getattr(tabular_models, name)(tmp_path / name, "multiclass")
        done = shell.run("models", "push", name, trained[name].path, "--convert", "onnx", "--json")
        assert done.returncode == 0, done.stderr
        assert '"runtime":"onnx"' in done.stdout
    system.start(*({"name": name, "model": f"{name}:1"} for name in trained))
    system.wait_ready(120)

    with Client(system.where().http_url) as client:
        for name, one in trained.items():
            (spec,) = client.metadata(name).inputs
            dtype = np.float32 if spec.datatype == "FP32" else np.float64
            rows = tabular_models.asked(missing=name != "sklearn")[:32].astype(dtype)
            label, probabilities = client.infer(name, {"input": rows}).outputs.values()
            want_label, want = one.expected(rows)
            assert np.array_equal(label, want_label), name
            assert np.allclose(probabilities, want, rtol=0, atol=1e-6), name
