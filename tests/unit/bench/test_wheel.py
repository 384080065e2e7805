"""Which build of Headrace is measured, and that it is told where it is the slower one."""

import os
from pathlib import Path

import pytest

from bench import wheel
from scripts import compiled


def test_processes_that_start_from_now_on_find_the_wheel(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(compiled, "ensure", lambda: tmp_path)
    monkeypatch.setenv("PYTHONPATH", "elsewhere")

    assert wheel.use() == wheel.COMPILED
    assert os.environ["PYTHONPATH"] == str(tmp_path)


def test_without_a_compiler_the_checkout_is_measured_and_that_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def ensure() -> Path:
        raise compiled.BuildError("no C compiler")

    monkeypatch.setattr(compiled, "ensure", ensure)
    monkeypatch.setenv("PYTHONPATH", "elsewhere")

    assert wheel.use() == wheel.INTERPRETED
    assert os.environ["PYTHONPATH"] == "elsewhere"
    assert "interpreted: no C compiler" in capsys.readouterr().err


def test_its_size_is_that_of_all_its_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "a.so").write_bytes(b"x" * 10_000)
    monkeypatch.setattr(compiled, "SITE", tmp_path)

    assert wheel.size_bytes() >= 10_000
