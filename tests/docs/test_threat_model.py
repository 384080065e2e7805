"""Every claim of the threat model names a test, and that test exists."""

import ast
import re
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "explain" / "threat-model.md"

_COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
_NAMED = re.compile(r"`(tests/[\w/]+\.py)::(test_\w+)`")
TEXT = _COMMENT.sub("", PAGE.read_text())
NAMED = sorted(set(_NAMED.findall(TEXT)))


@cache
def functions_of(path: str) -> frozenset[str]:
    file = ROOT / path
    if not file.exists():
        return frozenset()
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    tree = ast.parse(file.read_text())
    return frozenset(node.name for node in ast.walk(tree) if isinstance(node, functions))


def test_every_test_that_is_named_exists() -> None:
    missing = [f"{path}::{name}" for path, name in NAMED if name not in functions_of(path)]

    assert NAMED
    assert missing == []


def test_everything_that_is_said_to_happen_on_the_wire_names_a_test() -> None:
    wire = TEXT.partition("## On the wire")[2].partition("\n## ")[0]
    rows = [line for line in wire.splitlines() if line.startswith("| ")][1:]

    assert rows
    assert [row for row in rows if _NAMED.search(row) is None] == []


def test_every_attack_of_the_suite_is_claimed() -> None:
    """What is tried has to be told: else the page falls behind."""
    claimed = {path for path, _ in NAMED}
    suite = {str(file.relative_to(ROOT)) for file in (ROOT / "tests/e2e/attacks").glob("test_*.py")}

    assert suite <= claimed
