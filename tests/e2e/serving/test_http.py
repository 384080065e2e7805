"""The HTTP front, as clients of every kind of manners use it."""

import gzip
import json
import socket
import time
from pathlib import Path

import httpx
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bench.payloads import binary_payload, grpc_payload, json_payload
from headrace.protocol.pages import NOT_FOUND
from headrace.runtimes import load_model
from headrace.testing import models
from tests.e2e.replicas import Replica, running, stop
from tests.e2e.serving.raw import BODY, INFER, Reader, chunked, post

pytestmark = pytest.mark.e2e


def test_a_request_is_answered_and_the_connection_kept(replica: Replica) -> None:
    with replica.connect() as sock:
        reader = Reader(sock)
        for _ in range(3):
            sock.sendall(post())
            answer = reader.answer()
            assert answer is not None
            assert answer.status == 200
            assert json.loads(answer.body)["outputs"][0]["shape"] == [1, 2]


def test_pipelined_requests_are_answered_in_order(replica: Replica) -> None:
    bad = post(b"{}")
    health = b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n"
    with replica.connect() as sock:
        sock.sendall((post() + bad + health) * 100)
        reader = Reader(sock)
        statuses = [answer.status for _ in range(300) if (answer := reader.answer())]

    assert statuses == [200, 400, 200] * 100


def test_a_request_may_come_byte_by_byte(replica: Replica) -> None:
    with replica.connect() as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in post():
            sock.sendall(bytes([byte]))
        answer = Reader(sock).answer()

    assert answer is not None
    assert answer.status == 200


def test_a_chunked_body_is_put_together(replica: Replica) -> None:
    with replica.connect() as sock:
        sock.sendall(chunked(BODY[:7], BODY[7:100], BODY[100:]))
        answer = Reader(sock).answer()

    assert answer is not None
    assert answer.status == 200


@pytest.mark.parametrize("way", ["json", "binary", "gzip", "grpc"])
def test_large_bodies_come_whole_in_any_pieces_and_leave_the_connection_usable(
    tmp_path: Path, way: str
) -> None:
    path = tmp_path / "image.onnx"
    path.write_bytes(models.image(size=96))
    model = load_model(path)
    spec = model.signature.inputs[0]
    image = np.random.default_rng(1).random((2, *spec.shape[1:]), dtype=np.float32)
    expected = model.run({spec.name: image})[model.signature.outputs[0].name]
    requests = {
        "json": json_payload("m", {spec.name: image}),
        "binary": binary_payload("m", {spec.name: image}),
        "grpc": grpc_payload("m", {spec.name: image}),
    }
    payload = requests.get(way, requests["json"])
    headers = dict(payload.headers)
    content = payload.body
    if way == "gzip":
        headers["content-encoding"], content = "gzip", gzip.compress(content)
    head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    request = post(content, path=payload.path, headers=head)
    assert len(request) > 64 << 10

    with running(tmp_path, path) as replica, replica.connect() as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        reader = Reader(sock)
        for piece in (len(request), 1000, 65536, 100_003):
            for start in range(0, len(request), piece):
                sock.sendall(request[start : start + piece])
            answer = reader.answer()
            assert answer is not None
            assert answer.status == 200
            if way == "json":
                (output,) = json.loads(answer.body)["outputs"]
                found = np.array(output["data"], np.float32).reshape(output["shape"])
                np.testing.assert_allclose(found, expected, rtol=1e-4)
        sock.sendall((request + b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n") * 2)
        assert [a.status for a in (reader.answer() for _ in range(4)) if a] == [200] * 4


def test_expect_100_continue_is_answered_before_the_body(replica: Replica) -> None:
    request = post(headers="Expect: 100-continue\r\n")
    head, body = request.split(b"\r\n\r\n", 1)
    with replica.connect() as sock:
        sock.sendall(head + b"\r\n\r\n")
        reader = Reader(sock)
        first = reader.answer()
        sock.sendall(body)
        second = reader.answer()

    assert first is not None
    assert second is not None
    assert (first.status, second.status) == (100, 200)


def test_a_body_that_is_announced_too_large_is_refused_before_it_is_sent(replica: Replica) -> None:
    head = f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999\r\n"
    with replica.connect() as sock:
        sock.sendall(head.encode() + b"Expect: 100-continue\r\n\r\n")
        answers = Reader(sock).answers()

    assert [answer.status for answer in answers] == [413]
    assert "limit of 1048576 bytes" in answers[0].error
    assert answers[0].headers["connection"] == "close"


def test_a_chunked_body_that_grows_too_large_is_refused_and_the_refusal_can_be_read(
    replica: Replica,
) -> None:
    with replica.connect() as sock:
        sock.sendall(
            f"POST {INFER} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
        )
        chunk = b"10000\r\n" + b" " * 65536 + b"\r\n"
        for _ in range(40):
            sock.sendall(chunk)
        answer = Reader(sock).answer()

    assert answer is not None
    assert answer.status == 413


def test_headers_without_end_are_refused(replica: Replica) -> None:
    with replica.connect() as sock:
        sock.sendall(b"GET /v2 HTTP/1.1\r\n")
        for i in range(2000):
            sock.sendall(b"x-header-%d: %b\r\n" % (i, b"v" * 50))
        answer = Reader(sock).answer()

    assert answer is not None
    assert answer.status == 431


def test_a_caller_who_dawdles_over_headers_is_refused(replica: Replica) -> None:
    with replica.connect() as sock:
        sock.sendall(b"GET /v2 HTTP/1.1\r\nHost:")
        answers = Reader(sock).answers()

    assert [answer.status for answer in answers] == [408]


@pytest.mark.long
def test_a_caller_who_dawdles_over_the_body_is_refused(replica: Replica) -> None:
    with replica.connect() as sock:
        sock.sendall(post()[:-10])
        answers = Reader(sock).answers()

    assert [answer.status for answer in answers] == [408]


def test_an_idle_connection_is_closed(tmp_path: Path, mlp: Path) -> None:
    with running(tmp_path, mlp, idle_timeout_s=0.5) as replica, replica.connect() as sock:
        sock.sendall(post())
        answers = Reader(sock).answers()

    assert [answer.status for answer in answers] == [200]


def test_a_caller_who_stops_sending_still_gets_a_quick_answer(replica: Replica) -> None:
    with replica.connect() as sock:
        sock.sendall(post())
        sock.shutdown(socket.SHUT_WR)
        answers = Reader(sock).answers()

    assert [answer.status for answer in answers] == [200]


@pytest.mark.parametrize(
    ("request_line", "closes"),
    [
        ("POST /v2/models/m/infer HTTP/1.0\r\n", True),
        ("POST /v2/models/m/infer HTTP/1.0\r\nConnection: keep-alive\r\n", False),
        ("POST /v2/models/m/infer HTTP/1.1\r\nHost: x\r\nConnection: close\r\n", True),
    ],
)
def test_the_connection_is_kept_or_closed_as_the_caller_says(
    replica: Replica, request_line: str, closes: bool
) -> None:
    request = f"{request_line}Content-Length: {len(BODY)}\r\n\r\n".encode() + BODY
    with replica.connect(timeout_s=1) as sock:
        sock.sendall(request)
        reader = Reader(sock)
        answer = reader.answer()
        assert answer is not None
        assert answer.status == 200
        if closes:
            assert answer.headers["connection"] == "close"
            assert reader.answer() is None
        else:
            assert answer.headers["connection"] == "keep-alive"
            sock.sendall(request)
            assert reader.answer() is not None


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # TLS to a plain port
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST /v2 HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        b"POST /v2 HTTP/1.1\r\nContent-Length: 99999999999999999999999\r\n\r\n",
        b"POST /v2 HTTP/1.1\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /v2 HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    ],
)
def test_what_is_no_http_is_refused_and_the_connection_closed(
    replica: Replica, data: bytes
) -> None:
    with replica.connect() as sock:
        sock.sendall(data)
        answers = Reader(sock).answers()

    assert [answer.status for answer in answers] == [400]
    assert answers[0].error


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.one_of(
        st.binary(max_size=300),
        st.binary(max_size=200).map(post),
        st.tuples(st.integers(0, 200), st.binary(min_size=1, max_size=4)).map(
            lambda edit: post()[: edit[0]] + edit[1] + post()[edit[0] + len(edit[1]) :]
        ),
    )
)
def test_no_bytes_crash_the_replica_or_leak_a_traceback(replica: Replica, data: bytes) -> None:
    with replica.connect() as sock:
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)
        received = b""
        while chunk := sock.recv(65536):
            received += chunk

    assert b"Traceback" not in received
    assert b'File "' not in received
    assert b"HTTP/1.1 500" not in received
    assert replica.process.poll() is None


def test_a_caller_who_leaves_is_forgotten(tmp_path: Path) -> None:
    model = tmp_path / "slow.py"
    model.write_text(models.python_double(delay_s=0.5))
    body = json.dumps(
        {"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1, 2]}]}
    ).encode()
    with running(tmp_path, model) as replica:
        gone = [replica.connect() for _ in range(3)]
        for sock in gone:
            sock.sendall(post(body))
        time.sleep(0.1)
        for sock in gone:
            sock.close()
        with replica.connect() as sock:
            sock.sendall(post(body))
            answer = Reader(sock).answer()
        statistics = httpx.get(f"{replica.url}/metrics").text

    assert answer is not None
    assert answer.status == 200
    assert 'nv_inference_request_failure{model="m",version="1",reason="CANCELED"} 3' in statistics


def test_a_compressed_request_is_read_and_a_bomb_is_not(replica: Replica) -> None:
    url = f"{replica.url}{INFER}"
    good = httpx.post(url, content=gzip.compress(BODY), headers={"content-encoding": "gzip"})
    bomb = httpx.post(
        url, content=gzip.compress(b" " * (64 << 20)), headers={"content-encoding": "gzip"}
    )
    broken = httpx.post(url, content=b"nonsense", headers={"content-encoding": "gzip"})
    unknown = httpx.post(url, content=b"x", headers={"content-encoding": "brrr"})

    assert good.status_code == 200
    assert bomb.status_code == 413
    assert broken.status_code == 400
    assert unknown.status_code in (400, 501)


def test_a_request_that_cannot_be_decoded_counts_as_failed(tmp_path: Path, mlp: Path) -> None:
    with running(tmp_path, mlp) as replica:
        for body in (b"{}", b"nonsense"):
            assert httpx.post(f"{replica.url}{INFER}", content=body).status_code == 400
        assert httpx.post(f"{replica.url}/v1/models/m:predict", content=b"[]").status_code == 400
        assert httpx.get(f"{replica.url}/v2/models/other").status_code == 404
        metrics = httpx.get(f"{replica.url}/metrics").text

    assert 'nv_inference_request_failure{model="m",version="1",reason="OTHER"} 3\n' in metrics


def test_unknown_paths_and_methods_are_refused_by_name(replica: Replica) -> None:
    assert httpx.get(f"{replica.url}/nothing").json() == {"error": NOT_FOUND}
    wrong = httpx.get(f"{replica.url}{INFER}")
    assert wrong.status_code == 405
    assert wrong.headers["allow"] == "POST"
    other = httpx.get(f"{replica.url}/v2/models/other")
    assert other.status_code == 404
    assert other.json()["error"] == "Request for unknown model: 'other' is not found"
    version = httpx.get(f"{replica.url}/v2/models/m/versions/9")
    assert version.json()["error"] == "Request for unknown model: 'm' version 9 is not found"


@pytest.mark.parametrize(
    "path",
    [
        *("/v2/trace/setting", "/v2/logging", "/v2/models/m/trace/setting", "/v2/models/m/logging"),
        *("/v2/models/m/versions/1/trace/setting", "/v2/systemsharedmemory/status"),
    ],
)
def test_settings_that_no_request_changes_are_unsupported(replica: Replica, path: str) -> None:
    assert httpx.get(f"{replica.url}{path}").status_code == 501
    assert httpx.post(f"{replica.url}{path}", json={}).status_code == 501


def test_v1_says_that_the_server_is_alive(replica: Replica) -> None:
    assert httpx.get(f"{replica.url}/").json()["status"] == "alive"


@pytest.mark.parametrize("framing", ["Content-Length: 2", "Transfer-Encoding: chunked"])
def test_a_body_behind_an_upgrade_is_not_taken_for_an_empty_one(
    replica: Replica, framing: str
) -> None:
    head = f"POST {INFER} HTTP/1.1\r\nHost: x\r\n{framing}\r\n"
    with replica.connect() as sock:
        sock.sendall(f"{head}Connection: Upgrade\r\nUpgrade: h2c\r\n\r\n{{}}".encode())
        answers = Reader(sock).answers()

    assert [answer.status for answer in answers] == [501]


def test_an_upgrade_is_ignored_and_the_connection_closed(replica: Replica) -> None:
    with replica.connect() as sock:
        sock.sendall(b"GET /v2 HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n")
        answers = Reader(sock).answers()

    assert [answer.status for answer in answers] == [200]


def test_head_gives_the_headers_alone(replica: Replica) -> None:
    answer = httpx.head(f"{replica.url}/v2")

    assert answer.status_code == 200
    assert answer.content == b""
    assert int(answer.headers["content-length"]) > 0


def test_the_callers_request_id_comes_back(replica: Replica) -> None:
    answer = httpx.post(f"{replica.url}{INFER}", content=BODY, headers={"x-request-id": "abc-1"})

    assert answer.headers["x-request-id"] == "abc-1"


def test_a_caller_who_does_not_read_stops_being_read(replica: Replica) -> None:
    with replica.connect(timeout_s=0.5) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        many = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n" * 1_000_000
        with pytest.raises(TimeoutError):
            sock.sendall(many)
        before = replica.rss_bytes()
        time.sleep(0.2)
        assert replica.rss_bytes() < before + (64 << 20)


def test_sigterm_lets_the_running_request_end(tmp_path: Path) -> None:
    model = tmp_path / "slow.py"
    model.write_text(models.python_double(delay_s=0.5))
    body = json.dumps(
        {"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1, 2]}]}
    ).encode()
    with running(tmp_path, model) as replica, replica.connect() as busy, replica.connect() as idle:
        busy.sendall(post(body))
        time.sleep(0.2)
        status = stop(replica)
        answer = Reader(busy).answer()

        assert Reader(idle).answer() is None
    assert status == 0
    assert answer is not None
    assert answer.status == 200
