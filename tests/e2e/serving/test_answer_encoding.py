"""Which answers are compressed, for whom, and that they are the same answers."""

import gzip
import json
import zlib
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from headrace.testing import models
from tests.e2e.replicas import Replica, running
from tests.e2e.serving.raw import Reader, post

pytestmark = [pytest.mark.e2e, pytest.mark.slow]
COLUMNS = 8000
INFER = "/v2/models/m/infer"
AS_BROWSERS = "gzip, deflate, br, zstd"


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Replica]:
    """A model whose answer to one row is 8,000 numbers: 90 kB of JSON."""
    folder = tmp_path_factory.mktemp("wide")
    path = folder / "wide.onnx"
    path.write_bytes(models.matmul(features=4, columns=COLUMNS))
    with running(folder, path) as replica:
        yield replica


def _row(name: str = "x", **more: Any) -> dict[str, Any]:
    data = [1.25, 2.5, 0.1, -3.0]
    return {"inputs": [{"name": name, "datatype": "FP32", "shape": [1, 4], "data": data}], **more}


def _ask(replica: Replica, accept: str | None, path: str = INFER, **more: Any) -> tuple[str, bytes]:
    """How the answer came, and what it is."""
    meta = httpx.get(f"{replica.url}/v2/models/m").json()
    body = _row(meta["inputs"][0]["name"], **more)
    if path.endswith(":predict"):
        body = {"instances": [body["inputs"][0]["data"]]}
    with httpx.Client(headers={"accept-encoding": accept} if accept else {}) as client:
        if accept is None:
            del client.headers["accept-encoding"]
        with client.stream("POST", f"{replica.url}{path}", json=body) as answer:
            raw = b"".join(answer.iter_raw())
    assert answer.status_code == 200
    assert int(answer.headers["content-length"]) == len(raw)
    encoding = answer.headers.get("content-encoding", "")
    assert (answer.headers.get("vary") == "Accept-Encoding") is bool(encoding)
    match encoding:
        case "gzip":
            return encoding, gzip.decompress(raw)
        case "deflate":
            return encoding, zlib.decompress(raw)
        case _:
            return encoding, raw


@pytest.mark.parametrize("path", [INFER, "/v1/models/m:predict"])
@pytest.mark.parametrize(
    ("accept", "encoding"),
    [
        (None, ""),
        ("identity", ""),
        ("br", ""),
        ("gzip;q=0, br", ""),
        ("*;q=0", ""),
        (AS_BROWSERS, "gzip"),
        ("GZip;q=0.5, br", "gzip"),
        ("*", "gzip"),
        ("gzip;q=0.0, *", "deflate"),
        ("deflate, br", "deflate"),
        ("gzip", "gzip"),
        ("deflate", "deflate"),
    ],
)
def test_a_large_json_answer_is_encoded_as_its_caller_accepts(
    wide: Replica, path: str, accept: str | None, encoding: str
) -> None:
    plain = _ask(wide, None, path)[1]

    found = _ask(wide, accept, path)

    assert found == (encoding, plain)
    assert len(plain) > 64 << 10
    assert len(json.dumps(json.loads(plain))) > COLUMNS


def test_tensors_and_small_answers_are_compressed_only_for_who_names_one_encoding(
    wide: Replica, replica: Replica
) -> None:
    binary: Any = {"parameters": {"binary_data_output": True}}

    assert _ask(wide, AS_BROWSERS, **binary)[0] == ""
    assert _ask(wide, "gzip", **binary)[0] == "gzip"
    small = httpx.get(f"{replica.url}/v2/models/m", headers={"accept-encoding": AS_BROWSERS})
    name = small.json()["inputs"][0]["name"]
    row = {"inputs": [{"name": name, "datatype": "FP32", "shape": [1, 32], "data": [0.5] * 32}]}
    answer = httpx.post(f"{replica.url}{INFER}", json=row, headers={"accept-encoding": AS_BROWSERS})
    assert answer.status_code == 200
    assert not {"content-encoding"} & {*small.headers, *answer.headers}


def test_answers_that_are_compressed_beside_the_loop_come_in_their_order(wide: Replica) -> None:
    name = httpx.get(f"{wide.url}/v2/models/m").json()["inputs"][0]["name"]
    request = post(json.dumps(_row(name)).encode(), headers=f"Accept-Encoding: {AS_BROWSERS}\r\n")
    other = b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n"

    with wide.connect() as sock:
        reader = Reader(sock)
        sock.sendall((request + other) * 5)
        answers = [reader.answer() for _ in range(10)]

    kinds = [answer.headers.get("content-encoding", "") for answer in answers if answer]
    assert kinds == ["gzip", ""] * 5
