"""The list of compiled modules, and what is said where none can be made."""

import os
import re
import tomllib
from pathlib import Path

import pytest

from scripts import compiled

ROOT = Path(__file__).parents[3]
HOOK = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"][
    "wheel"
]["hooks"]["custom"]


def test_each_module_that_is_to_be_compiled_exists() -> None:
    missing = [m for m in HOOK["modules"] if not (ROOT / f"src/headrace/{m}.py").is_file()]

    assert not missing


def test_no_cause_of_an_error_is_lost_on_the_way() -> None:
    # mypyc compiles `raise ... from error` without the cause.
    losing = re.compile(r"^\s*raise .* from (?!None)", re.MULTILINE)
    sources = {m: (ROOT / f"src/headrace/{m}.py").read_text() for m in HOOK["modules"]}

    assert not [module for module, text in sources.items() if losing.search(text)]


def test_nothing_is_compiled_unasked() -> None:
    assert HOOK["enable-by-default"] is False


def test_without_a_compiler_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(compiled, "SITE", tmp_path / "site")

    with pytest.raises(compiled.BuildError, match="apt-get install gcc"):
        compiled.ensure()


def test_a_compiler_that_fails_is_quoted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(compiled, "ROOT", a_broken_project(tmp_path / "project"))

    with pytest.raises(compiled.BuildError, match="no hook for this"):
        compiled.build(tmp_path / "dist")


def test_what_was_built_is_not_built_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(compiled, "SITE", tmp_path)
    (tmp_path / compiled.STAMP).write_text(compiled._digest())
    monkeypatch.setenv("PATH", os.devnull)  # it would fail

    assert compiled.ensure() == tmp_path


def a_broken_project(folder: Path) -> Path:
    folder.mkdir()
    (folder / "a.py").touch()
    (folder / "hook.py").write_text("raise SystemExit('no hook for this')\n")
    (folder / "pyproject.toml").write_text(
        '[project]\nname = "headrace"\nversion = "0"\n'
        "[tool.hatch.build.targets.wheel]\nbypass-selection = true\n"
        '[tool.hatch.build.targets.wheel.hooks.custom]\npath = "hook.py"\n'
    )
    return folder
