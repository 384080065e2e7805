"""Results of sandboxed programs: reading what a program left ends in a result or in none."""

from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.control.sandboxed.run import read_result


class Result(msgspec.Struct, frozen=True):
    """A message of a sandboxed program, whose unknown fields may hold anything."""

    text: str = ""


@pytest.mark.parametrize(
    "left",
    [b"", b"\xff", b'{"text": "\xff"}', b'{"text": 1}', b'{"other": ' + b"[" * 100_000, b"[]"],
    ids=["empty", "no text", "no text in a field", "wrong type", "nested", "no object"],
)
def test_what_is_no_message_is_no_result(tmp_path: Path, left: bytes) -> None:
    file = tmp_path / "result.json"
    file.write_bytes(left)

    assert read_result(file, Result) is None


@given(left=st.binary(max_size=200))
def test_no_bytes_raise(tmp_path_factory: pytest.TempPathFactory, left: bytes) -> None:
    file = tmp_path_factory.mktemp("left") / "result.json"
    file.write_bytes(left)

    assert read_result(file, Result) in (None, Result())


def test_neither_a_link_nor_an_absent_file_is_read(tmp_path: Path) -> None:
    secret = tmp_path / "secret.json"
    secret.write_bytes(b'{"text": "secret"}')
    link = tmp_path / "link.json"
    link.symlink_to(secret)

    assert read_result(link, Result) is None
    assert read_result(tmp_path / "absent.json", Result) is None
