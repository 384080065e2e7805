"""gRPC as an attacker speaks it: to the gateway, and to a lone replica's own port."""

import struct
from collections.abc import Mapping
from typing import Final

import grpc
import pytest
from tritonclient.grpc import service_pb2

from tests.e2e.attacks.frames import Caller, data
from tests.e2e.attacks.harness import GRPC_PATH, MAX_BODY_BYTES, Door, Site

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.usefixtures("watched")]

GRPC: Final = (("content-type", "application/grpc"), ("te", "trailers"))
INVALID: Final = grpc.StatusCode.INVALID_ARGUMENT
NOT_FOUND: Final = grpc.StatusCode.NOT_FOUND
EXHAUSTED: Final = grpc.StatusCode.RESOURCE_EXHAUSTED
NAMED: Final = b"\x0a\x01m"
MANY: Final = 2_000_000


def call(
    door: Door,
    message: bytes,
    *,
    path: str = GRPC_PATH,
    compression: grpc.Compression = grpc.Compression.NoCompression,
) -> tuple[grpc.StatusCode, str]:
    """The status of one call whose message is exactly these bytes."""
    options = [("grpc.max_send_message_length", -1)]
    with grpc.insecure_channel(door.target, options=options, compression=compression) as channel:
        try:
            channel.unary_unary(path)(message, timeout=30)
        except grpc.RpcError as error:
            return error.code(), error.details()
    return grpc.StatusCode.OK, ""


def infer(**changes: object) -> bytes:
    item = {"name": "input", "datatype": "FP32", "shape": [1, 32], **changes}
    fields = {"model_name": "m", "inputs": [item], "raw_input_contents": [b"\0" * 128]}
    return bytes(service_pb2.ModelInferRequest(**fields).SerializeToString())


def delimited(field: int, value: bytes) -> bytes:
    size, length = bytearray(), len(value)
    while length > 0x7F:
        size.append(length & 0x7F | 0x80)
        length >>= 7
    size.append(length)
    return bytes([field << 3 | 2]) + bytes(size) + value


INPUT: Final = delimited(1, b"input") + delimited(2, b"FP32") + delimited(3, b"\x01\x20")

BOMBS: Final[Mapping[str, bytes]] = {
    "empty inputs": NAMED + b"\x2a\x00" * MANY,
    "empty outputs": NAMED + b"\x32\x00" * MANY,
    "empty raw contents": NAMED + b"\x3a\x00" * MANY,
    "empty parameters": NAMED + b"\x22\x00" * MANY,
    "empty parameters of an input": NAMED + delimited(5, INPUT + b"\x22\x00" * MANY),
    "elements of a tensor": NAMED + delimited(5, INPUT + delimited(5, b"\x42\x00" * MANY)),
    "numbers of a tensor": NAMED + delimited(5, INPUT + delimited(5, delimited(6, bytes(4 << 20)))),
    "a packed shape of millions": NAMED + delimited(5, INPUT + delimited(3, b"\x01" * (4 << 20))),
    "a packed length that overflows": NAMED + b"\x2a\x14\x1a\xff\xff\xff\xff\x0f",
    "a length beyond the message": NAMED + b"\x2a\xff\xff\xff\xff\x07abc",
    "a varint without end": NAMED + b"\xff" * 100_000,
    "nested groups": NAMED + b"\x9b\x06" * 100_000,
    "nested groups, many": NAMED + b"\x9b\x06" * MANY,
    "bytes at random": b"\xff\x00\x13" * 1000,
    "shape [2^62, 4]": infer(shape=[1 << 62, 4]),
    "shape [2^63 - 1]": infer(shape=[(1 << 63) - 1]),
    "shape [-1]": infer(shape=[-1]),
    "shape [-1, -32]": infer(shape=[-1, -32]),
    "shape [0, 32]": infer(shape=[0, 32]),
    "shape []": infer(shape=[]),
    "shape of rank 1,000": infer(shape=[1] * 1000),
    "shape of more than the data": infer(shape=[2, 32]),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_protobuf_bomb_is_an_invalid_argument(door: Door, name: str) -> None:
    code, text = call(door, BOMBS[name])

    assert code is INVALID, text
    assert len(text) < 1000


def test_a_message_over_the_limit_is_resource_exhausted(door: Door) -> None:
    code, _ = call(door, NAMED + delimited(7, bytes(MAX_BODY_BYTES)))

    assert code is EXHAUSTED


@pytest.mark.long
@pytest.mark.parametrize("algorithm", [grpc.Compression.Gzip, grpc.Compression.Deflate])
def test_a_compressed_bomb_inflates_to_the_limit_at_most(
    site: Site, door: Door, algorithm: grpc.Compression
) -> None:
    with site.unharmed():
        code, _ = call(door, bytes(16 * MAX_BODY_BYTES), compression=algorithm)

    assert code is EXHAUSTED


@pytest.mark.parametrize(
    "name",
    [
        "m\r\nx: y",
        "m\r\n\r\nGET / HTTP/1.1\r\n\r\n",
        "m\0",
        "../m",
        "m/../m",
        "a" * 100_000,
        "é",
        " ",
    ],
    ids=ascii,
)
def test_a_model_name_that_is_none_goes_nowhere(door: Door, name: str) -> None:
    code, text = call(door, service_pb2.ModelInferRequest(model_name=name).SerializeToString())

    assert code is NOT_FOUND
    assert len(text) < 1000


def test_a_name_that_is_no_text_is_refused_in_text(
    door: Door, caplog: pytest.LogCaptureFixture
) -> None:
    """The gateway once sent its bytes back, which is no status text."""
    code, text = call(door, b"\x0a\x02\xff\xfe")

    assert code is (NOT_FOUND if door.name == "gateway" else INVALID)
    assert text.isascii()
    assert not caplog.records


@pytest.mark.parametrize(
    "path",
    [
        "/inference.GRPCInferenceService/Nothing",
        "/inference.GRPCInferenceService/../x",
        "/Other/ModelInfer",
        "/",
    ],
)
def test_a_method_that_is_none_is_unimplemented(door: Door, path: str) -> None:
    code, _ = call(door, infer(), path=path)

    assert code is grpc.StatusCode.UNIMPLEMENTED


def test_a_method_of_the_repository_is_closed_on_the_gateway(site: Site) -> None:
    path = "/inference.GRPCInferenceService/RepositoryModelUnload"

    code, _ = call(site.gateway, b"", path=path)

    assert code is grpc.StatusCode.PERMISSION_DENIED


FRAMES: Final[Mapping[str, bytes]] = {
    "a promise of 4 GB": struct.pack(">BI", 0, 0xFFFFFFFF) + infer(),
    "a promise of 4 GB, and nothing": struct.pack(">BI", 0, 0xFFFFFFFF),
    "a length too short": struct.pack(">BI", 0, 3) + infer(),
    "a flag that is none": struct.pack(">BI", 7, len(infer())) + infer(),
    "two messages": (struct.pack(">BI", 0, len(infer())) + infer()) * 2,
    "half a prefix": b"\0\0",
    "nothing": b"",
}


@pytest.mark.parametrize("name", FRAMES)
def test_a_frame_that_lies_gets_an_invalid_argument_from_the_gateway(site: Site, name: str) -> None:
    attacker = Caller.open(site.gateway)
    stream, head = attacker.head(*GRPC, path=GRPC_PATH)
    attacker.send(head, data(stream, FRAMES[name], end_stream=True))
    attacker.listen(quiet_s=0.5)
    attacker.close()

    assert attacker.grpc_statuses == [int(INVALID.value[0])]


@pytest.mark.parametrize("name", ["a promise of 4 GB", "half a prefix", "a flag that is none"])
def test_a_frame_that_lies_harms_no_lone_replica(site: Site, name: str) -> None:
    port = Door("replica", site.replica.grpc, site.replica.grpc)
    with site.unharmed(growth_bytes=16 << 20):
        for _ in range(20):
            attacker = Caller.open(port)
            stream, head = attacker.head(*GRPC, path=GRPC_PATH)
            attacker.send(head, data(stream, FRAMES[name]))
            attacker.listen(quiet_s=0.02)
            attacker.close()
