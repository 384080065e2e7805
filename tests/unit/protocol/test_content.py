import contextlib
import gzip
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.core import InvalidArgumentError, PayloadTooLargeError, UnsupportedError
from headrace.protocol import compress, decompress

RAW = zlib.compressobj(wbits=-15)
RAW_DEFLATE = RAW.compress(b"hello") + RAW.flush()


@given(st.binary(max_size=2000), st.sampled_from(["gzip", "deflate", " GZip "]))
def test_a_body_comes_back(body: bytes, encoding: str) -> None:
    packed = compress(body, encoding)

    assert decompress(packed, encoding, len(body)) == body


def test_a_body_in_parts_is_compressed_as_one() -> None:
    assert gzip.decompress(compress([b"ab", memoryview(b"cd")], "gzip")) == b"abcd"


@pytest.mark.parametrize("encoding", ["", "identity"])
def test_no_encoding_changes_nothing(encoding: str) -> None:
    assert decompress(b"hello", encoding, 5) == b"hello"
    with pytest.raises(PayloadTooLargeError):
        decompress(b"hello", encoding, 4)


def test_deflate_may_come_without_its_header() -> None:
    assert decompress(RAW_DEFLATE, "deflate", 5) == b"hello"
    assert decompress(gzip.compress(b"hello"), "x-gzip", 5) == b"hello"


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_a_bomb_stops_at_the_limit(encoding: str) -> None:
    bomb = compress(b"\0" * 50_000_000, encoding)

    with pytest.raises(PayloadTooLargeError) as caught:
        decompress(bomb, encoding, 1000)

    assert caught.value.limit_bytes == 1000


@pytest.mark.parametrize("limit", [0, 4])
def test_one_byte_too_many_is_too_many(limit: int) -> None:
    with pytest.raises(PayloadTooLargeError):
        decompress(gzip.compress(b"x" * (limit + 1)), "gzip", limit)


@pytest.mark.parametrize(
    ("body", "encoding", "text"),
    [
        (b"", "gzip", "cut short"),
        (gzip.compress(b"hello", mtime=0)[:-1], "gzip", "cut short"),
        (gzip.compress(b"hello", mtime=0) + b"x", "gzip", "goes on"),
        (gzip.compress(b"a", mtime=0) + gzip.compress(b"b", mtime=0), "gzip", "goes on"),
        (b"hello", "gzip", "not valid gzip data"),
        (b"hello", "deflate", "not valid deflate data"),
        (b"", "deflate", "cut short"),
    ],
)
def test_damaged_bodies_are_refused(body: bytes, encoding: str, text: str) -> None:
    with pytest.raises(InvalidArgumentError, match=text):
        decompress(body, encoding, 100)


@pytest.mark.parametrize("encoding", ["br", "gzip, gzip", "zstd" * 100])
def test_other_encodings_are_unsupported(encoding: str) -> None:
    with pytest.raises(UnsupportedError, match="use gzip, deflate or identity"):
        decompress(b"", encoding, 100)
    with pytest.raises(UnsupportedError):
        compress(b"", encoding)


@given(st.binary(max_size=200), st.sampled_from(["gzip", "deflate"]))
def test_any_bytes_are_inflated_or_refused(body: bytes, encoding: str) -> None:
    with contextlib.suppress(InvalidArgumentError, PayloadTooLargeError):
        assert len(decompress(body, encoding, 50)) <= 50
