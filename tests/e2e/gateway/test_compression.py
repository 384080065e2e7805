"""gRPC messages that their callers compressed are routed by the names in them."""

import gzip
import random
import struct
import zlib

import grpc
import httpx
import pytest
from tritonclient.grpc import service_pb2

from headrace.gateway import EndpointRoute, EnvoyGateway
from tests.e2e.gateway.lab import Lab, client, endpoint, grpc_target

pytestmark = [pytest.mark.e2e, pytest.mark.anyio, pytest.mark.slow]
INFER = "/inference.GRPCInferenceService/ModelInfer"
STRATEGIES = (
    zlib.Z_DEFAULT_STRATEGY,
    zlib.Z_FILTERED,
    zlib.Z_HUFFMAN_ONLY,
    zlib.Z_RLE,
    zlib.Z_FIXED,
)


def _compressed(message: bytes, encoding: str, level: int, strategy: int) -> bytes:
    bits = zlib.MAX_WBITS + (16 if encoding == "gzip" else 0)
    stream = zlib.compressobj(level, zlib.DEFLATED, bits, zlib.DEF_MEM_LEVEL, strategy)
    return stream.compress(message) + stream.flush()


async def _call(http: httpx.AsyncClient, message: bytes, encoding: str = "gzip") -> httpx.Response:
    """A call with a message that is said to be compressed; over HTTP/1.1, so byte for byte."""
    headers = {"content-type": "application/grpc", "te": "trailers", "grpc-encoding": encoding}
    frame = struct.pack(">BI", 1, len(message)) + message
    return await http.post(INFER, content=frame, headers=headers)


def _message(name: str, version: str, random_: random.Random) -> bytes:
    """A request for a model, with tensors that compress well, badly or not at all."""
    letters = random_.choice((1, 4, 256))
    data = bytes(random_.randrange(letters) for _ in range(random_.choice((0, 1, 40, 3000))))
    request = service_pb2.ModelInferRequest(model_name=name, model_version=version)
    request.id = random_.choice(("", "id-" * 30))
    request.raw_input_contents.append(data)
    return bytes(request.SerializeToString())


async def test_a_compressed_message_is_routed_as_zlib_reads_it(lab: Lab) -> None:
    replica = lab.replica("1")
    names = ["m", "a.b", "x" * 128, "fraud-2_eu"]
    gateway = await lab.start(*(endpoint(name, replica) for name in names))
    random_ = random.Random(4711)  # noqa: S311  # which messages, the same each time
    sent = []

    async with client(gateway) as http:
        for _ in range(300):
            name, version = random_.choice(names), random_.choice(("", "1"))
            encoding = random_.choice(("gzip", "deflate"))
            level, strategy = random_.randrange(10), random_.choice(STRATEGIES)
            message = _message(name, version, random_)
            answer = await _call(http, _compressed(message, encoding, level, strategy), encoding)
            sent.append(f"{name}~{version}" if version else name)
            assert answer.headers.get("grpc-status", "0") == "0", (encoding, level, strategy)

    assert [seen["headers"]["x-headrace-named"] for seen in replica.seen()] == sent


async def test_every_part_that_a_gzip_header_may_have_is_passed_over(lab: Lab) -> None:
    replica = lab.replica("1")
    gateway = await lab.start(endpoint("m", replica))
    plain = service_pb2.ModelInferRequest(model_name="m").SerializeToString()
    body = zlib.compress(plain, wbits=-zlib.MAX_WBITS)
    parts = {4: b"\x03\x00abc", 8: b"a name\0", 16: b"a comment\0", 2: b"\xab\xcd"}

    async with client(gateway) as http:
        for flags in range(0, 32, 2):
            header = struct.pack("<BBBBIBB", 31, 139, 8, flags, 0, 0, 255)
            more = b"".join(part for flag, part in parts.items() if flags & flag)
            answer = await _call(http, header + more + body + bytes(8))
            assert answer.headers.get("grpc-status", "0") == "0", flags

    assert {seen["headers"]["x-headrace-named"] for seen in replica.seen()} == {"m"}


async def test_what_is_not_compressed_as_it_says_is_refused_and_harms_nobody(lab: Lab) -> None:
    replica = lab.replica("1")
    gateway = await lab.start(endpoint("m", replica))
    plain = service_pb2.ModelInferRequest(model_name="m", id="x" * 400).SerializeToString()
    good = gzip.compress(plain)
    random_ = random.Random(815)  # noqa: S311  # as above
    bad = [good[:size] for size in range(1, 25)]
    bad += [random_.randbytes(random_.randrange(1, 200)) for _ in range(100)]
    bad += [good[:10] + random_.randbytes(100) for _ in range(200)]
    bad += [good[:10] + b"\x05\xff\xff" + bytes(100), good[:10] + b"\x03" * 5000]

    async with client(gateway) as http:
        for message in bad:
            answer = await _call(http, message)
            routed = [seen["headers"].get("x-headrace-named") for seen in replica.seen()[-1:]]
            refused = answer.headers["grpc-status"] == "3" if "grpc-status" in answer.headers else 0
            assert refused or routed in ([""], ["m"]), message
        known = await _call(http, good)

    assert known.headers.get("grpc-status", "0") == "0"
    assert gateway.is_running()


@pytest.mark.parametrize("flag", [0, 1])
async def test_what_a_reader_of_protobuf_may_read_in_another_way_is_refused(
    lab: Lab, flag: int
) -> None:
    """A name behind it would be the one that counts, and that nobody authorized."""
    replica = lab.replica("1")
    gateway = await lab.start(endpoint("m", replica))
    request = service_pb2.ModelInferRequest(model_name="m").SerializeToString()
    bad = (
        b"\x5b\x5c" + request,  # a group
        request + b"\x5e" + request,
        b"\xff" * 11 + request,
        b"\x50\x01" * 3000 + request,
    )
    headers = {"content-type": "application/grpc", "te": "trailers", "grpc-encoding": "gzip"}

    async with client(gateway) as http:
        for message in bad:
            if flag and len(message) > 512:
                continue  # that much is not looked at: the replica refuses it by what it reads
            body = gzip.compress(message) if flag else message
            frame = struct.pack(">BI", flag, len(body)) + body
            answer = await http.post(INFER, content=frame, headers=headers)
            assert answer.headers.get("grpc-status") == "3", message[:20]

    assert replica.seen() == []


async def _status(gateway: EnvoyGateway, message: bytes, **metadata: str) -> tuple[str, str]:
    async with grpc.aio.insecure_channel(
        grpc_target(gateway), compression=grpc.Compression.Gzip
    ) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await channel.unary_unary(INFER)(message, metadata=tuple(metadata.items()))
    return caught.value.code().name, str(caught.value.details())


async def test_a_compression_that_nobody_reads_is_unimplemented(lab: Lab) -> None:
    gateway = await lab.start(endpoint("m", lab.replica("1")))

    async with client(gateway) as http:
        answer = await _call(http, b"\xff\x06\x00\x00sNaPpY", "snappy")

    assert answer.headers["grpc-status"] == "12"
    assert answer.headers["grpc-message"].startswith("messages compressed with 'snappy' are not")


async def test_an_unknown_model_in_a_compressed_message_is_not_found(lab: Lab) -> None:
    gateway = await lab.start(endpoint("m", lab.replica("1")), EndpointRoute(name="idle", arms=()))
    large = {"raw_input_contents": [bytes(10_000)]}

    for name, status in (("none", "NOT_FOUND"), ("idle", "UNAVAILABLE"), ("m x", "NOT_FOUND")):
        message = service_pb2.ModelInferRequest(model_name=name, **large).SerializeToString()
        code, text = await _status(gateway, message)
        assert code == status
        assert text.startswith(f"Request for unknown model: '{name}' is not ")


async def test_messages_that_a_compressing_caller_leaves_as_they_are_pass(lab: Lab) -> None:
    """Whichever name comes last counts, as for those who read protobuf."""
    replica = lab.replica("1")
    gateway = await lab.start(endpoint("m", replica), endpoint("n", replica))
    request = service_pb2.ModelInferRequest
    noise = random.Random(1).randbytes(100_000)  # noqa: S311  # as above
    twice = request(model_name="n", raw_input_contents=[noise]).SerializeToString()
    twice += request(model_name="m").SerializeToString()

    async with grpc.aio.insecure_channel(
        grpc_target(gateway), compression=grpc.Compression.Gzip
    ) as channel:
        call = channel.unary_unary(INFER)
        assert await call(request(model_name="m").SerializeToString())
        assert await call(twice)

    assert "x-headrace-named" not in replica.seen()[-1]["headers"]
