"""Frameworks of gigabytes stay out of every lock, and what needs them is found by its marker."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from scripts.check_locks import LOCKS, ROOT, read_pins

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
FRAMEWORKS = {
    Requirement(line).name
    for group in ("frameworks", "framework-models")
    for line in PYPROJECT["dependency-groups"][group]
}
NEEDS = re.compile(
    r"^(?:import|from) (?:torch|tensorflow|tests\.\w*(?:torch|tensorflow)\w*)\b", re.MULTILINE
)
FILES = [
    path
    for path in ROOT.glob("tests/**/test_*.py")
    if NEEDS.search(path.read_text()) and "images" not in path.parts  # those run in containers
]


def test_what_is_installed_apart_is_in_no_lock() -> None:
    assert {"torch", "tensorflow-cpu"} <= FRAMEWORKS
    for name in LOCKS:
        pins = read_pins(Path(ROOT, "requirements", f"{name}.txt").read_text())
        assert not FRAMEWORKS & pins.keys(), name


def test_there_are_tests_that_need_them() -> None:
    assert FILES


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_file_that_needs_one_is_marked(path: Path) -> None:
    assert "pytest.mark.frameworks" in path.read_text(), "else `make test-all` passes it over"
