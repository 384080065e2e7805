"""Bodies that are larger than they look, or lie: their caller hears of it, nobody else."""

import gzip
import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import httpx
import pytest

from tests.e2e.attacks.harness import MAX_BODY_BYTES, Door, Site
from tests.e2e.attacks.wire import chunk, infer_json, listen, request, talk
from tests.e2e.serving.raw import BODY, INFER

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.usefixtures("watched")]

PREDICT: Final = "/v1/models/m:predict"
LENGTH: Final = "Inference-Header-Content-Length"
WORDS: Final = "/v2/models/words/infer"


def post(
    door: Door, content: bytes, *, path: str = INFER, headers: Mapping[str, str] | None = None
) -> httpx.Response:
    return httpx.post(f"{door.url}{path}", content=content, headers=dict(headers or {}), timeout=30)


def filled(unit: str, size_bytes: int = MAX_BODY_BYTES - 1000) -> bytes:
    return unit.encode() * (size_bytes // len(unit)) + unit.rstrip(",").encode()


def with_data(data: bytes) -> bytes:
    head = b'{"inputs":[{"name":"input","shape":[1,32],"datatype":"FP32","data":['
    return head + data + b"]}]}"


# Too large


def test_a_declared_body_over_the_limit_is_413_before_it_is_sent(door: Door) -> None:
    got = talk(door, request(f"Content-Length: {MAX_BODY_BYTES + 1}", body=b""))

    assert got.statuses == [413]


def test_a_chunked_body_over_the_limit_is_413(door: Door) -> None:
    part = chunk(b"a" * 60_000)
    count = MAX_BODY_BYTES // 60_000 + 2
    with door.connect() as sock:
        sock.sendall(request("Transfer-Encoding: chunked", body=b""))
        try:
            for _ in range(count):
                sock.sendall(part)
        except OSError:
            pass  # refused while it was being sent
        got = listen(sock, quiet_s=2.0)

    assert got.statuses[:1] in ([413], [])  # a reset may overtake the answer
    assert got.statuses or got.closed


@pytest.mark.long
def test_chunk_extensions_without_end_are_refused(door: Door) -> None:
    head = request("Transfer-Encoding: chunked", body=b"")

    got = talk(door, head, b"1;" + b"a" * (2 << 20) + b"\r\nx\r\n", quiet_s=5.0)

    assert got.statuses in ([400], [431], [408])


def test_trailers_without_end_are_refused(door: Door) -> None:
    head = request("Transfer-Encoding: chunked", body=chunk(BODY) + b"0\r\n")

    got = talk(door, head, b"".join(b"x-%d: %b\r\n" % (i, b"a" * 1000) for i in range(2000)))

    assert got.statuses[:1] in ([400], [431])


def test_a_body_in_tiny_chunks_takes_no_more_memory_than_it_has_bytes(
    site: Site, door: Door
) -> None:
    """Each part of two bytes was an object of fifty: 1 MB took 30."""
    body = infer_json(name="x" * 500_000)
    tiny = b"".join(chunk(body[at : at + 2]) for at in range(0, len(body), 2))
    process = site.processes["lone replica" if door.name == "replica" else "replica of m"]
    proc = Path(f"/proc/{process.pid}")
    (proc / "clear_refs").write_text("5")  # the peak is counted from here
    before = process.memory_info().rss

    head = request("Transfer-Encoding: chunked", "Connection: close", body=b"")
    got = talk(door, head, tiny, b"0\r\n\r\n", quiet_s=20.0)  # a quarter of a million calls

    peak = next(line for line in (proc / "status").read_text().splitlines() if "VmHWM" in line)
    assert got.statuses == [400]
    assert int(peak.split()[1]) * 1024 < before + (8 << 20)


# Compressed


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_a_compression_bomb_is_413_and_inflates_to_the_limit_at_most(
    door: Door, encoding: str
) -> None:
    plain = b" " * (16 * MAX_BODY_BYTES)
    bomb = gzip.compress(plain, 1) if encoding == "gzip" else zlib.compress(plain, 1)

    answer = post(door, bomb, headers={"content-encoding": encoding})

    assert answer.status_code == 413


@pytest.mark.parametrize(
    ("encoding", "status"),
    [
        ("gzip, gzip", 501),
        ("br", 501),
        ("gzip", 400),
        ("deflate", 400),
        ("x" * 10_000, 501),
    ],
)
def test_other_encodings_and_broken_streams_are_refused(
    door: Door, encoding: str, status: int
) -> None:
    assert post(door, BODY, headers={"content-encoding": encoding}).status_code == status


# JSON

JSON_BOMBS: Final[Mapping[str, bytes]] = {
    "arrays in data": with_data(filled("[],")),
    "objects in data": with_data(filled("{},")),
    "numbers in data": with_data(filled("1.5,")),
    "strings in data": with_data(filled('"a",')),
    "nested 100,000 deep": with_data(b"[" * 100_000 + b"]" * 100_000),
    "unclosed 100,000 deep": b"[" * 100_000,
    "nested objects": b'{"a":' * 100_000,
    "a number of a million digits": with_data(b"1" * 1_000_000),
    "a fraction of a million digits": with_data(b"0." + b"1" * 1_000_000),
    "1e999999": with_data(b"1e999999"),
    "an exponent of a million digits": with_data(b"1e" + b"9" * 1_000_000),
    "a string of 7 MB": with_data(b'"' + b"a" * (7 << 20) + b'"'),
    "a name of 7 MB": infer_json(name="a" * (7 << 20)),
    "invalid UTF-8": infer_json().replace(b'"input"', b'"\xff\xfe"'),
    "half a surrogate": infer_json().replace(b'"input"', b'"\\ud800"'),
    "NUL": infer_json(name="in\0put"),
    "NaN in data": with_data(filled("NaN,")),
    "-Infinity in data": with_data(filled("-Infinity,")),
    "NaN, and a string that does not end": b'{"a": NaN, "b": "' + filled('\\"'),
    "two documents": infer_json() * 2,
    "a byte order mark": b"\xff\xfe" + infer_json(),
    "a shape of 10,000": infer_json(shape=[1] * 10_000),
    "a shape of a million": infer_json(shape=[1] * 1_000_000),
    "a shape of rank 1,000": infer_json(shape=[1, 32, *[1] * 998]),
    "shape [2^62, 4]": infer_json(shape=[1 << 62, 4]),
    "shape [2^63]": infer_json(shape=[1 << 63]),
    "shape [2^32, 2^32]": infer_json(shape=[1 << 32, 1 << 32]),
    "shape [10^5000]": infer_json().replace(b"[1, 32]", b"[1" + b"0" * 5000 + b"]"),
    "shape [-1]": infer_json(shape=[-1]),
    "shape [0, 32]": infer_json(shape=[0, 32], data=[]),
    "shape []": infer_json(shape=[]),
    "shape [1.0, 32]": infer_json(shape=[1.0, 32]),
    "shape of more than the data": infer_json(shape=[2, 32]),
    "shape of less than the data": infer_json(shape=[1, 16]),
    "a million unknown fields": b"{"
    + b",".join(b'"%d":1' % i for i in range(700_000))
    + b',"inputs":[]}',
    "a million parameters": b'{"parameters":{'
    + b",".join(b'"%d":1' % i for i in range(700_000))
    + b'},"inputs":[]}',
    "keys that collide in other languages": b'{"parameters":{'
    + b",".join(
        b'"%b":1' % b"".join([b"Aa", b"BB"][i >> k & 1] for k in range(14)) for i in range(1 << 14)
    )
    + b'},"inputs":[]}',
    "a million outputs": b'{"outputs":[' + filled('{"name":"prob"},') + b'],"inputs":[]}',
    "a million inputs": b'{"inputs":['
    + filled('{"name":"input","shape":[1,32],"datatype":"FP32","data":[1]},')
    + b"]}",
    "the same input twice": b'{"inputs":[%b]}'
    % b",".join([json.dumps(json.loads(BODY)["inputs"][0]).encode()] * 2),
    "binary without a header length": infer_json(
        data=None, parameters={"binary_data_size": 128}
    ).replace(b'"data": null, ', b""),
    "a shared memory region": infer_json(parameters={"shared_memory_region": "x"}),
    "spaces": b" " * (7 << 20),
    "nothing": b"",
}


@pytest.mark.parametrize("name", JSON_BOMBS)
def test_a_json_bomb_is_a_bad_request(door: Door, name: str) -> None:
    answer = post(door, JSON_BOMBS[name])

    assert answer.status_code == (501 if "shared memory" in name else 400), answer.text[:300]
    assert len(answer.content) < 2000


def test_where_a_key_stands_twice_the_last_one_counts(door: Door) -> None:
    once = infer_json()
    twice = once.replace(b'"shape": [1, 32]', b'"shape": [9], "shape": [1, 32]')

    assert post(door, twice).json()["outputs"] == post(door, once).json()["outputs"]


V1_BOMBS: Final[Mapping[str, bytes]] = {
    "arrays": b'{"instances":[%b]}' % filled("[],"),
    "objects": b'{"instances":[%b]}' % filled("{},"),
    "numbers": b'{"instances":[%b]}' % filled("1.5,"),
    "rows": b'{"instances":[%b]}' % filled("[1.5],"),
    "nested 100,000 deep": b'{"instances":%b}' % (b"[" * 100_000 + b"]" * 100_000),
    "bytes": b'{"instances":[%b]}' % filled('{"b64":""},'),
    "broken bytes": b'{"instances":[{"b64":"%b"}]}' % (b"=" * 1000),
    "both": b'{"instances":[],"inputs":[]}',
    "ragged": b'{"instances":[[1,2],[3]]}',
    "numbers beyond a float": b'{"instances":[[%b]]}' % b",".join([b"1e300"] * 32),
}


@pytest.mark.long
@pytest.mark.parametrize("name", V1_BOMBS)
def test_a_bomb_of_instances_is_a_bad_request(door: Door, name: str) -> None:
    answer = post(door, V1_BOMBS[name], path=PREDICT)

    assert answer.status_code == 400, answer.text[:300]
    assert len(answer.content) < 2000


# Binary tensors


@dataclass(frozen=True, slots=True)
class Lie:
    """A JSON header, what follows it, and how long it says that the header is."""

    item: Mapping[str, object]
    tail: bytes = b"\0" * 128
    header_length: str | None = None

    def body(self) -> tuple[bytes, dict[str, str]]:
        item = {"name": "input", "shape": [1, 32], "datatype": "FP32", **self.item}
        head = json.dumps({"inputs": [item]}).encode()
        said = str(len(head)) if self.header_length is None else self.header_length
        return head + self.tail, {LENGTH: said}


def size(value: object) -> dict[str, object]:
    return {"parameters": {"binary_data_size": value}}


LIES: Final[Mapping[str, Lie]] = {
    "size larger than the body": Lie(size(1 << 20)),
    "size smaller than the tensor": Lie(size(64)),
    "size of zero": Lie(size(0)),
    "negative size": Lie(size(-128)),
    "size of 2^63": Lie(size(1 << 63)),
    "size of 2^64": Lie(size(1 << 64)),
    "size of 10^400": Lie(size(10**400)),
    "size that is text": Lie(size("128")),
    "size that is a fraction": Lie(size(128.5)),
    "no size": Lie({}),
    "size and data": Lie({**size(128), "data": [0.5] * 32}),
    "bytes too many": Lie(size(128), tail=b"\0" * 129),
    "bytes too few": Lie(size(128), tail=b"\0" * 127),
    "header length of zero": Lie(size(128), header_length="0"),
    "header length beyond the body": Lie(size(128), header_length="100000"),
    "header length of 2^64": Lie(size(128), header_length=str(1 << 64)),
    "header length of a million digits": Lie(size(128), header_length="9" * 50_000),
    "negative header length": Lie(size(128), header_length="-1"),
    "header length that cuts the header": Lie(size(128), header_length="20"),
    "header length that is hexadecimal": Lie(size(128), header_length="0x50"),
    "shape [2^62, 4]": Lie({**size(128), "shape": [1 << 62, 4]}),
    "shape [2^61, 32]": Lie({**size(128), "shape": [1 << 61, 32]}),
    "shape [-1, -32]": Lie({**size(128), "shape": [-1, -32]}),
    "shape [0, 32]": Lie({**size(0), "shape": [0, 32]}, tail=b""),
}


@pytest.mark.parametrize("name", LIES)
def test_a_lie_about_binary_tensors_is_a_bad_request(door: Door, name: str) -> None:
    body, headers = LIES[name].body()

    answer = post(door, body, headers=headers)

    assert answer.status_code == 400, answer.text[:300]
    assert len(answer.content) < 2000


STRINGS: Final[Mapping[str, bytes]] = {
    "a length beyond the body": b"\xff\xff\xff\xff" + b"abc",
    "a length of all but one byte": b"\x05\0\0\0abcd",
    "a length cut off": b"\x01\0\0",
    "elements too few": b"",
    "elements too many": b"\0\0\0\0" * 1_000_000,
}


@pytest.mark.parametrize("name", STRINGS)
def test_strings_that_lie_about_their_length_are_a_bad_request(site: Site, name: str) -> None:
    tail = STRINGS[name]
    item = {"name": "text", "shape": [1, 1], "datatype": "BYTES", **size(len(tail))}
    metadata = httpx.get(f"{site.gateway.url}/v2/models/words").json()["inputs"][0]
    item["name"] = metadata["name"]
    item["shape"] = [1 if dim < 0 else dim for dim in metadata["shape"]]
    head = json.dumps({"inputs": [item]}).encode()

    answer = post(site.gateway, head + tail, path=WORDS, headers={LENGTH: str(len(head))})

    assert answer.status_code == 400, answer.text[:300]


# Classification


@pytest.mark.parametrize(
    ("classes", "status"),
    [(1 << 63, 200), (1 << 64, 400), (-1, 400), (1.5, 400), ("1", 400), ([1], 400), (10**400, 400)],
    ids=["2^63", "2^64", "negative", "a fraction", "text", "a list", "10^400"],
)
def test_more_classes_than_there_are_cost_nothing(door: Door, classes: object, status: int) -> None:
    document = json.loads(BODY)
    document["outputs"] = [{"name": "prob", "parameters": {"classification": classes}}]

    answer = post(door, json.dumps(document).encode())

    assert answer.status_code == status, answer.text[:300]
    if status == 200:
        assert answer.json()["outputs"][0]["shape"] == [1, 2]
