"""Which answers count as health. `make test SUITE=images` runs the check in containers."""

import importlib.util

import pytest

from scripts.images.requirements import ROOT

SPEC = importlib.util.spec_from_file_location(
    "healthcheck", ROOT / "deploy" / "images" / "healthcheck.py"
)
assert SPEC is not None
assert SPEC.loader is not None
healthcheck = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(healthcheck)


@pytest.mark.parametrize(
    ("line", "good", "good_for_any"),
    [
        ("HTTP/1.1 200 OK", True, True),
        ("HTTP/1.1 404 Not Found", False, True),
        ("HTTP/1.1 401 Unauthorized", False, True),
        ("HTTP/1.1 503 Service Unavailable", False, False),
        ("HTTP/1.1 2000 Odd", False, True),
        ("HTTP/1.1", False, False),
        ("", False, False),
    ],
)
def test_only_200_is_good_unless_any_answer_is(line: str, good: bool, good_for_any: bool) -> None:  # noqa: FBT001  # a table
    assert healthcheck.is_good(line, any_answer=False) is good
    assert healthcheck.is_good(line, any_answer=True) is good_for_any
