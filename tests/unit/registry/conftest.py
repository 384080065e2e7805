from collections.abc import Callable
from pathlib import Path

import pytest

from headrace.core import (
    CodeNotAllowedError,
    Datatype,
    Inspected,
    ModelSignature,
    TensorSpec,
    UnsupportedModelError,
)
from headrace.registry import Registry

SIGNATURE = ModelSignature(
    inputs=(TensorSpec(name="x", datatype=Datatype.FP32, shape=(-1, 4)),),
    outputs=(TensorSpec(name="prob", datatype=Datatype.FP32, shape=(-1, 2)),),
    batched=True,
)


class FixedClock:
    def __init__(self) -> None:
        self.seconds = 1_800_000_000.0

    def monotonic(self) -> float:
        return self.seconds

    def now(self) -> float:
        return self.seconds


def inspect_text(path: Path, runtime: str = "", *, allow_code: bool = False) -> Inspected:
    """Takes every model whose first file does not say 'bad'; what says 'code' runs code."""
    file = path if path.is_file() else min(path.iterdir())
    if b"bad" in file.read_bytes():
        msg = f"{file}: is bad"
        raise UnsupportedModelError(msg)
    runs_code = b"code" in file.read_bytes()
    if runs_code and not allow_code:
        raise CodeNotAllowedError(str(path), "text")
    return Inspected(runtime or "text", SIGNATURE, runs_code)


@pytest.fixture
def clock() -> FixedClock:
    return FixedClock()


@pytest.fixture
def registry(tmp_path: Path, clock: FixedClock) -> Registry:
    return Registry(tmp_path / "home", inspect_text, clock=clock)


@pytest.fixture
def make_file(tmp_path: Path) -> Callable[..., Path]:
    def make(content: str = "model", name: str = "model.txt") -> Path:
        path = tmp_path / "source" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
        return path

    return make
