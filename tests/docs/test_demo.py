"""`make demo ONCE=1`: the first command of a newcomer."""

import ast
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.utils import canonicalize_name

from scripts.check_locks import read_pins

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.long
@pytest.mark.e2e
def test_the_demo_stops_by_itself_and_every_check_holds() -> None:
    done = subprocess.run(  # noqa: S603  # ours
        [sys.executable, ROOT / "scripts/demo.py", "--once"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert "FAILED" not in done.stdout
    assert "headrace token show" not in done.stdout, "the system has ended"


@pytest.mark.parametrize("script", ["scripts/demo.py", "examples/digits/train.py"])
def test_the_environment_of_the_demo_has_what_its_scripts_import(script: str) -> None:
    pins = read_pins((ROOT / "requirements/demo.txt").read_text())
    distributions = packages_distributions()
    modules = {
        name.split(".")[0]
        for node in ast.walk(ast.parse((ROOT / script).read_text()))
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }

    required = modules - sys.stdlib_module_names - {"headrace"}
    assert "numpy" in required
    assert [
        name
        for name in sorted(required)
        if not {canonicalize_name(text) for text in distributions[name]} & pins.keys()
    ] == []
