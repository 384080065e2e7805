"""Small on the wire, large in memory: refused before anything is made of it."""

import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from headrace.core import HeadraceError, InvalidArgumentError
from headrace.protocol import InferDecoder
from headrace.protocol.grpc_codec import GrpcInferCodec
from headrace.protocol.json_bounds import MAX_PARTS, MAX_VALUES
from headrace.protocol.v1 import V1Codec
from tests.unit.protocol.models import ROW, of

SATURATED = 1 << 24
"""From this length on, simdjson counts no further, and its `as_list()` writes past its memory."""


@contextmanager
def allocating_at_most(size_bytes: int) -> Iterator[None]:
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < size_bytes
    finally:
        tracemalloc.stop()


def document(data: bytes, shape: bytes = b"1,4") -> bytes:
    head = b'{"inputs":[{"name":"x","datatype":"FP32","shape":[%b],"data":[%b]}]}'
    return head % (shape, data)


def filled(unit: bytes, count: int) -> bytes:
    return unit * count + unit.rstrip(b",")


def v2(body: bytes) -> None:
    InferDecoder("m", "1", ROW).decode(body)


def v1(body: bytes) -> None:
    V1Codec("m", "1", ROW).decode(body)


@pytest.mark.slow
@pytest.mark.parametrize("unit", [b"[],", b"{},", b'"",', b'{"a":1},'])
def test_more_parts_than_tensors_need_are_refused_uncounted(unit: bytes) -> None:
    body = document(filled(unit, MAX_PARTS))

    with (
        allocating_at_most(8 << 20),
        pytest.raises(InvalidArgumentError, match="more than 2000000 arrays, objects and strings"),
    ):
        v2(body)


@pytest.mark.slow
def test_instances_of_v1_are_bounded_likewise() -> None:
    body = b'{"instances":[%b]}' % filled(b"[],", MAX_PARTS)

    with allocating_at_most(8 << 20), pytest.raises(InvalidArgumentError, match="more than"):
        v1(body)


@pytest.mark.slow
@pytest.mark.parametrize("decode", [v1, v2])
def test_irregular_values_are_bounded(decode: Callable[[bytes], None]) -> None:
    values = filled(b"1,", MAX_VALUES) + b",null"
    body = document(values) if decode is v2 else b'{"instances":[%b]}' % values

    with pytest.raises(InvalidArgumentError, match="more than 8000000 values"):
        decode(body)


@pytest.mark.slow
def test_numbers_that_are_too_many_are_counted_without_an_object_for_each() -> None:
    body = document(filled(b"1.5,", 1_000_000))

    with (
        allocating_at_most(16 << 20),
        pytest.raises(InvalidArgumentError, match="shape \\[1,4\\] has 4, got 1000001"),
    ):
        v2(body)


@pytest.mark.slow
@pytest.mark.parametrize(
    "body",
    [
        document(b"1", shape=filled(b"1,", SATURATED)),
        b'{"parameters":{"a":[%b]},"inputs":[]}' % filled(b"1,", SATURATED),
        b'{"outputs":[[%b]],"inputs":[]}' % filled(b"1,", SATURATED),
    ],
    ids=["shape", "parameters", "outputs"],
)
def test_a_list_longer_than_simdjson_counts_corrupts_no_memory(body: bytes) -> None:
    """It ended the process: `free(): invalid size`."""
    with pytest.raises(InvalidArgumentError):
        v2(body)


def test_what_stands_around_the_data_may_be_nested_but_not_deeply() -> None:
    deep = b"[" * 500 + b"]" * 500
    padding = b" " * (20 << 10)  # so that simdjson has it first
    body = b'{"parameters":{"a":%b},"inputs":[]}%b' % (deep, padding)

    with pytest.raises(InvalidArgumentError, match=r"parameter 'a'|Missing"):
        v2(body)


def delimited(field: int, value: bytes) -> bytes:
    size, length = bytearray(), len(value)
    while length > 0x7F:
        size.append(length & 0x7F | 0x80)
        length >>= 7
    size.append(length)
    return bytes([field << 3 | 2]) + bytes(size) + value


INPUT = delimited(1, b"x") + delimited(2, b"FP32") + delimited(3, b"\x01\x04")


@pytest.mark.slow
@pytest.mark.parametrize(
    "message",
    [
        delimited(1, b"m") + b"\x2a\x00" * 1_000_001,
        delimited(1, b"m") + b"\x32\x00" * 1_000_001,
        delimited(1, b"m") + b"\x3a\x00" * 1_000_001,
        delimited(1, b"m") + b"\x22\x00" * 1_000_001,
        delimited(1, b"m") + delimited(5, INPUT + b"\x22\x00" * 1_000_001),
        delimited(1, b"m") + delimited(5, INPUT + delimited(5, b"\x42\x00" * 1_000_001)),
        delimited(1, b"m") + b"".join(delimited(5, b"\x18\x01" * 40) for _ in range(30_000)),
    ],
    ids=["inputs", "outputs", "raws", "parameters", "input parameters", "elements", "shapes"],
)
def test_a_message_of_a_million_fields_is_refused_unparsed(message: bytes) -> None:
    with pytest.raises(InvalidArgumentError, match="more than 200000 fields"):
        GrpcInferCodec("m", "1", ROW).decode(message)


def test_a_packed_shape_without_end_is_refused_unparsed() -> None:
    shape = delimited(3, b"\x01" * (2 << 20))

    with pytest.raises(InvalidArgumentError, match="too many dimensions"):
        GrpcInferCodec("m", "1", ROW).decode(delimited(5, INPUT + shape))


@pytest.mark.parametrize(
    "tail",
    [b"\xff" * (2 << 20), b"\x9b\x06" * (1 << 20), b"\x2a\xff\xff\xff\xff\x7f" + b"\0" * (2 << 20)],
    ids=["varint without end", "groups", "length beyond the end"],
)
def test_a_large_message_that_is_none_is_refused_by_the_parser(tail: bytes) -> None:
    with pytest.raises(InvalidArgumentError):
        GrpcInferCodec("m", "1", ROW).decode(delimited(1, b"m") + tail)


def test_a_large_tensor_passes_whatever_its_bytes_are() -> None:
    model = of("UINT8", -1, batched=False)
    data = b"\x2a\x00" * (1 << 20)
    size = b"\x80\x80\x80\x01"
    shape = delimited(3, size)
    tensor = delimited(5, delimited(1, b"x") + delimited(2, b"UINT8") + shape)

    request = GrpcInferCodec("m", "1", model).decode(
        delimited(1, b"m") + tensor + delimited(7, data)
    )

    assert request.inputs["x"].nbytes == len(data)


def test_a_refused_request_is_not_kept_until_the_collector_comes() -> None:
    """An error that its own frame names is a cycle, and holds all that the request became."""
    body = document(filled(b"[1],", 50_000)).replace(b"FP32", b"INT8")
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        _refused(body)
        kept = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()

    assert kept < 1 << 20


def _refused(body: bytes) -> None:
    try:
        v2(body)
    except HeadraceError:
        return
    raise AssertionError(body[:100])
