"""Confluent's wire format: which schema, and where the value begins."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.core import InvalidArgumentError
from headrace.streaming.formats.registry import (
    HEAD_BYTES,
    head,
    message_head,
    message_path,
    schema_id,
)

IDS = st.integers(0, (1 << 31) - 1)


@given(number=IDS, rest=st.binary())
def test_id_comes_back(number: int, rest: bytes) -> None:
    assert schema_id(head(number) + rest) == number


@given(number=IDS, path=st.lists(st.integers(0, 1 << 20), min_size=1, max_size=8), rest=st.binary())
def test_message_path_comes_back(number: int, path: list[int], rest: bytes) -> None:
    value = message_head(number, tuple(path)) + rest

    found, at = message_path(value)

    assert (schema_id(value), found, value[at:]) == (number, tuple(path), rest)


def test_first_message_is_one_zero() -> None:
    assert message_head(7, (0,)) == b"\0\0\0\0\x07\0"


def test_bytes_are_those_that_confluents_own_serializers_wrote() -> None:
    assert message_path(bytes.fromhex("00000000030204")) == ((2,), 7)
    assert message_head(3, (2,)) == bytes.fromhex("00000000030204")


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (b"", "has 0 bytes: too short"),
        (b"\0\0\0\0", "has 4 bytes: too short"),
        (b'{"a": 1}', "begins with the byte 123"),
        (b"\x01" + bytes(16), "GUID"),
        (b"\0\xff\xff\xff\xff", "names the schema -1"),
    ],
)
def test_what_begins_otherwise_is_refused(value: bytes, why: str) -> None:
    with pytest.raises(InvalidArgumentError, match=why):
        schema_id(value)


@pytest.mark.parametrize("path", [b"", b"\xff" * 9, b"\x01", b"\xfe\xff\x07", b"\x04\x00", b"\x80"])
def test_broken_message_path_is_refused(path: bytes) -> None:
    with pytest.raises(InvalidArgumentError, match="message indexes"):
        message_path(head(1)[:HEAD_BYTES] + path)
