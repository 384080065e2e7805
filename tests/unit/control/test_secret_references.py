"""A secret comes from where a setting says, and goes nowhere else."""

from pathlib import Path

import pytest

from headrace.control.base.settings import (
    absolute_reference,
    forget_secrets,
    is_reference,
    resolve_references,
    resolve_url,
    secret_reader,
)
from headrace.core import FailedPreconditionError

PLANTED = "pl4nted:p@ss/word"


def test_a_variable_stands_for_its_value_anywhere() -> None:
    assert resolve_references("a-${X}-${X}", {"X": "1"}) == "a-1-1"
    assert resolve_references("plain $X {X}", {"X": "1"}) == "plain $X {X}"


def test_a_file_stands_for_its_content_without_the_line_s_end(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text(f"{PLANTED}\n")

    assert resolve_references(f"file:{tmp_path}/secret", {}) == PLANTED


def test_in_a_url_a_value_may_have_any_characters() -> None:
    url = "postgresql://ann:${PASSWORD}@db/x"

    assert resolve_url(url, {"PASSWORD": "p@ss:/%"}) == "postgresql://ann:p%40ss%3A%2F%25@db/x"
    assert resolve_url("${URL}", {"URL": "postgresql://a:b@c/d"}) == "postgresql://a:b@c/d"
    assert resolve_url("sqlite:////x.db", {}) == "sqlite:////x.db"


@pytest.mark.parametrize("text", ["${NOTHING}", "a${NOTHING}b", "file:/nowhere/secret"])
def test_what_cannot_be_found_is_told_by_its_place(text: str) -> None:
    with pytest.raises(FailedPreconditionError, match=r"NOTHING|/nowhere/secret"):
        resolve_references(text, {})


def test_what_is_no_text_is_told_without_its_content(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"pl4nted\xff")

    with pytest.raises(FailedPreconditionError) as caught:
        resolve_references(f"file:{tmp_path}/secret", {})
    assert "pl4nted" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "is_one"),
    [("${X}", True), ("file:/x", True), ("a${X}", False), ("", False), ("secret", False)],
)
def test_a_reference_is_nothing_but_one(text: str, *, is_one: bool) -> None:
    assert is_reference(text) is is_one


def test_a_relative_file_is_the_same_one_for_another_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    assert absolute_reference("file:secret") == f"file:{tmp_path}/secret"
    assert absolute_reference("${X}") == "${X}"


def test_a_file_is_read_again_and_a_variable_is_kept(tmp_path: Path) -> None:
    file, environment = tmp_path / "secret", {"X": "one"}
    file.write_text("one")
    of_file = secret_reader(f"file:{file}", environment)
    of_variable = secret_reader("${X}", environment)
    file.write_text("two")
    environment["X"] = "two"

    assert (of_file(), of_variable()) == ("two", "one")


def test_children_do_not_inherit_what_was_named() -> None:
    environment = {"PASSWORD": "x", "HEADRACE_TOKEN": "y", "HEADRACE_STATE_URL": "z", "PATH": "p"}
    forget_secrets(["postgresql://a:${PASSWORD}@b", "file:/x", "${NOT_THERE}"], environment)

    assert environment == {"PATH": "p"}
