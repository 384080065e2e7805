"""Commands as a shell runs them, in this process, on a home of their own."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from headrace.cli import main
from headrace.testing import models


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a command printed, and its exit status."""

    status: int
    out: str
    err: str


Command = Callable[..., Outcome]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in (
        "HTTP_PORT",
        "GRPC_PORT",
        "METRICS_PORT",
        "ADMIN_PORT",
        "HOST",
        "URL",
        "SERVER",
        "API_KEY",
        "INFER_TOKEN",
        "TOKEN",
        "TOKEN_FILE",
        "CA_FILE",
    ):
        monkeypatch.delenv(f"HEADRACE_{name}", raising=False)
    monkeypatch.setenv("HEADRACE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "home"


@pytest.fixture
def headrace(home: Path, capsys: pytest.CaptureFixture[str]) -> Command:
    assert not home.exists()

    def run(*arguments: str | Path) -> Outcome:
        status = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Outcome(status, captured.out, captured.err)

    return run


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "mlp.onnx"
    path.write_bytes(models.mlp())
    return path
