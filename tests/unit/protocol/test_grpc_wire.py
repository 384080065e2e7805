import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.core import InvalidArgumentError, UnsupportedError
from headrace.protocol.grpc_codec import (
    frame,
    frame_prefix,
    grpc_message,
    parse_grpc_message,
    parse_grpc_timeout,
    unframe,
)


def test_a_frame_is_a_flag_and_a_length_before_the_message() -> None:
    assert frame(b"abc") == b"\0\0\0\0\3abc"
    assert frame_prefix(3) == b"\0\0\0\0\3"


def test_a_large_message_is_not_copied() -> None:
    body = frame(b"a" * 100_000)

    message = unframe(body)

    assert isinstance(message, memoryview)
    assert message.obj is body


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"", "cut short"),
        (b"\0\0\0\0", "cut short"),
        (b"\0\0\0\0\3ab", "cut short"),
        (b"\0\0\0\0\1ab", "followed by more data"),
        (frame(b"a") + frame(b"b"), "followed by more data"),
        (b"\0\xff\xff\xff\xff", "cut short"),
        (b"\2\0\0\0\0", "not a valid compressed-flag"),
    ],
)
def test_bodies_that_are_not_one_frame_are_refused(body: bytes, text: str) -> None:
    with pytest.raises(InvalidArgumentError, match=text):
        unframe(body)


def test_compressed_messages_are_unsupported() -> None:
    with pytest.raises(UnsupportedError, match="compressed"):
        unframe(b"\1\0\0\0\0")


def test_a_status_text_is_percent_encoded() -> None:
    assert grpc_message("a 100% 'ü'\n") == "a 100%25 '%C3%BC'%0A"


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=200))
def test_a_status_text_comes_back_and_is_a_header(text: str) -> None:
    header = grpc_message(text)

    assert header.isascii()
    assert "\n" not in header
    assert header.isprintable()
    assert parse_grpc_message(header) == text


def test_a_status_text_is_bounded_whatever_it_is() -> None:
    assert len(grpc_message("a" * 100_000)) < 5000
    assert grpc_message("\ud800") == "?"
    assert parse_grpc_message("100%") == "100%"


@pytest.mark.parametrize(
    ("header", "seconds"),
    [("1H", 3600), ("2M", 120), ("3S", 3), ("100m", 0.1), ("5u", 5e-6), ("7n", 7e-9), ("0S", 0)],
)
def test_timeouts_have_a_unit(header: str, seconds: float) -> None:
    assert parse_grpc_timeout(header) == pytest.approx(seconds)


@pytest.mark.parametrize("header", ["", "S", "1", "-1S", "1.5S", "1s", "123456789S", "1 S", "٣S"])
def test_other_timeouts_are_refused(header: str) -> None:
    with pytest.raises(InvalidArgumentError, match="grpc-timeout"):
        parse_grpc_timeout(header)
