"""Frameworks of gigabytes stay out of every lock, and what needs them is found by its marker."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from headrace.runtimes.libraries import FRAMEWORKS as FRAMEWORKS_OF_PROCESSES
from scripts.check_locks import LOCKS, ROOT, read_pins

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
FRAMEWORKS = {
    Requirement(line).name
    for group in ("frameworks", "framework-models")
    for line in PYPROJECT["dependency-groups"][group]
}
MARKS = {
    "torch": re.compile(r"\btorch_models\b|^ *(?:import|from) torch\b", re.MULTILINE),
    "tensorflow": re.compile(r"\btensorflow\(\)|\bkeras_images\b|wide_networks", re.MULTILINE),
}
"""What a file that needs a framework has in it."""
TESTS = [path for path in ROOT.glob("tests/**/test_*.py") if "images" not in path.parts]
"""Without those that run in containers."""
NEEDS = [
    (path, mark)
    for path in TESTS
    for mark, pattern in MARKS.items()
    if path != Path(__file__) and pattern.search(path.read_text())
]
TWO_TESTS = """
import sys, types
def test_first(): sys.modules["torch"] = types.ModuleType("torch")
def test_second(): sys.modules["tensorflow"] = types.ModuleType("tensorflow")
"""


def test_what_is_installed_apart_is_in_no_lock() -> None:
    assert {"torch", "tensorflow-cpu"} <= FRAMEWORKS
    for name in LOCKS:
        pins = read_pins(Path(ROOT, "requirements", f"{name}.txt").read_text())
        assert not FRAMEWORKS & pins.keys(), name


@pytest.mark.parametrize(("path", "mark"), NEEDS, ids=lambda value: getattr(value, "stem", value))
def test_a_file_that_needs_a_framework_has_its_mark(path: Path, mark: str) -> None:
    assert f"pytest.mark.{mark}" in path.read_text(), (
        "else `make test SUITE=frameworks` passes it over"
    )


def test_there_are_tests_of_each_framework() -> None:
    assert {mark for _, mark in NEEDS} == MARKS.keys() == FRAMEWORKS_OF_PROCESSES.keys()


@pytest.mark.slow
def test_a_test_that_brings_a_second_framework_into_its_process_fails(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text("from tests.conftest import pytest_runtest_teardown\n")
    (tmp_path / "test_two.py").write_text(TWO_TESTS)

    done = subprocess.run(  # noqa: S603  # ourselves
        [sys.executable, "-m", "pytest", "-c", os.devnull, "-n", "0", "-p", "no:cacheprovider"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )

    assert "2 passed, 1 error" in done.stdout
    assert "ERROR test_two.py::test_second - Failed: this process has imported" in done.stdout
