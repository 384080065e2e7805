"""Load against servers that answer as they should not: each failure has its kind, none is fast."""

import itertools
import socket
import ssl
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from headrace.client.credentials import Trust, trust_of
from headrace.load import LoadPlan, LoadResult, open_target, run_load
from headrace.load.target import json_message
from tests.certificates import Authority
from tests.e2e.load.servers import BODY, Caller, Stalling, answer, serving, well

pytestmark = pytest.mark.e2e
CLOSED_LOOP_S = 2.0


def loaded(
    url: str,
    *,
    rate: float = 100.0,
    seconds: float = 0.7,
    timeout_s: float = 0.5,
    connections: int = 100,
    warm_up_s: float = 0.0,
    trust: Trust | None = None,
) -> LoadResult:
    inputs = {"x": np.zeros((1, 4), np.float32)}
    target = open_target(url, model="m", trust=trust).with_messages([json_message("m", "", inputs)])
    plan = LoadPlan(
        rate_per_s=rate,
        seconds=seconds,
        warm_up_s=warm_up_s,
        timeout_s=timeout_s,
        connections=connections,
    )
    return run_load(plan, target)


def test_what_was_asked_is_achieved_and_connections_are_kept() -> None:
    with serving(well) as server:
        result = loaded(server.url, rate=200, timeout_s=5)

    assert result.failed == 0
    assert result.requests == len(result.sample) > 100
    assert result.achieved_per_s == pytest.approx(result.requests / 0.7, rel=0.3)
    assert server.connections < result.requests / 2


def test_a_stall_shows_in_p99_although_a_closed_loop_would_hide_it() -> None:
    with serving(Stalling(0.2)) as server:
        result = loaded(server.url, rate=200, seconds=2.0, timeout_s=5)
        closed = closed_loop_latencies(server.url, CLOSED_LOOP_S)

    measured = result.latency_s[0.99]
    assert measured is not None
    assert result.failed == 0
    assert measured.value > 0.15
    assert np.quantile(closed, 0.99) < 0.1


def closed_loop_latencies(url: str, seconds: float) -> list[float]:
    """One caller who asks again when it was answered."""
    port = int(url.rpartition(":")[2])
    latencies: list[float] = []
    with socket.create_connection(("127.0.0.1", port)) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        until = time.monotonic() + seconds
        while (sent := time.monotonic()) < until:
            sock.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
            read = b""
            while len(read) < len(answer()):
                read += sock.recv(65536)
            latencies.append(time.monotonic() - sent)
    return latencies


@pytest.mark.long
def test_a_server_that_never_answers_costs_timeouts_and_ends() -> None:
    def silent(caller: Caller) -> None:
        while caller.next_request():
            pass

    with serving(silent) as server:
        started = time.monotonic()
        result = loaded(server.url, rate=50)
        took_s = time.monotonic() - started

    assert result.errors == {"timeout": result.requests}
    assert result.achieved_per_s == 0
    assert result.latency_s[0.5] is None
    assert took_s < 4
    assert result.sample.done.min() >= 0.5


@pytest.mark.long
def test_waiting_for_one_of_few_connections_counts_as_latency() -> None:
    def slow(caller: Caller) -> None:
        while caller.next_request():
            time.sleep(0.05)
            caller.send(answer())

    with serving(slow) as server:
        result = loaded(server.url, rate=60, timeout_s=5, connections=1)

    measured = result.latency_s[0.9]
    assert measured is not None
    assert server.connections == 1
    assert result.waited > 10
    assert measured.value > 0.3


@pytest.mark.long
def test_requests_that_never_got_a_connection_are_told_apart() -> None:
    def silent(caller: Caller) -> None:
        while caller.next_request():
            pass

    with serving(silent) as server:
        result = loaded(server.url, rate=40, seconds=2, connections=2)

    assert set(result.errors) == {"timeout", "no_connection"}
    assert result.failed == result.requests


def test_errors_are_counted_by_their_status() -> None:
    def refusing(caller: Caller) -> None:
        while caller.next_request():
            caller.send(answer(b'{"error":"full"}', "503 Service Unavailable"))

    with serving(refusing) as server:
        result = loaded(server.url)

    assert result.errors == {"http_503": result.requests}
    assert result.latency_s[0.99] is None


@pytest.mark.parametrize(
    ("sent", "kind"),
    [
        (b"what?\r\n\r\n", "malformed"),
        pytest.param(answer(b"<html>hello</html>"), "malformed", marks=pytest.mark.long),
        pytest.param(answer(b'{"outputs": "none"}'), "malformed", marks=pytest.mark.long),
        pytest.param(answer(b'{"outputs": [], '), "malformed", marks=pytest.mark.long),
        pytest.param(answer(b""), "malformed", marks=pytest.mark.long),
        pytest.param(answer(b"\xff\xfe"), "malformed", marks=pytest.mark.long),
        pytest.param(
            answer(BODY, more="Inference-Header-Content-Length: 9999\r\n"),
            "malformed",
            marks=pytest.mark.long,
        ),
        pytest.param(
            b"HTTP/1.1 101 Upgrading\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
            "malformed",
            marks=pytest.mark.long,
        ),
        (answer()[:-10], "closed"),
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Le", "closed", marks=pytest.mark.long),
        (b"", "closed"),
    ],
)
def test_garbage_and_halves_are_no_fast_successes(sent: bytes, kind: str) -> None:
    def handle(caller: Caller) -> None:
        while caller.next_request():
            caller.send(sent)
            if kind == "closed":
                return

    with serving(handle) as server:
        result = loaded(server.url, rate=50, seconds=0.5)

    assert result.errors == {kind: result.requests}


@pytest.mark.long
def test_a_reset_is_told() -> None:
    def reset(caller: Caller) -> None:
        if caller.next_request():
            linger = b"\x01\x00\x00\x00\x00\x00\x00\x00"
            caller.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)

    with serving(reset) as server:
        result = loaded(server.url, rate=50, seconds=0.5)

    assert result.errors == {"reset": result.requests}


@pytest.mark.long
@pytest.mark.parametrize(
    "sent",
    [
        b"HTTP/1.1 100 Continue\r\n\r\n" + answer(),
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
        + b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (BODY[:7], BODY[7:]))
        + b"0\r\n\r\n",
        answer(b'{"outputs":[],"x":"' + b"y" * (1 << 20) + b'"}'),
    ],
    ids=["after 100", "chunked", "1 MB"],
)
def test_unusual_answers_are_good_ones(sent: bytes) -> None:
    def handle(caller: Caller) -> None:
        while caller.next_request():
            caller.send(sent)

    with serving(handle) as server:
        result = loaded(server.url, rate=50, timeout_s=5)

    assert result.errors == {}
    assert result.requests > 15


@pytest.mark.long
@pytest.mark.parametrize(
    "sent",
    [
        b"HTTP/1.0 200 OK\r\n\r\n" + BODY,
        b"HTTP/1.0 200 OK\r\nContent-Length: %d\r\n\r\n" % len(BODY) + BODY,
        answer(more="Connection: close\r\n"),
    ],
    ids=["until the end", "with a length", "close"],
)
def test_a_connection_that_is_closed_after_its_answer_is_not_used_again(sent: bytes) -> None:
    def once(caller: Caller) -> None:
        if caller.next_request():
            caller.send(sent)

    with serving(once) as server:
        result = loaded(server.url, rate=50, timeout_s=5)

    assert result.errors == {}
    assert server.connections >= result.requests


@pytest.mark.long
def test_a_server_that_dies_mid_run_is_refused_from_then_on() -> None:
    callers: list[Caller] = []
    answered = itertools.count(1)

    def handle(caller: Caller) -> None:
        callers.append(caller)
        while caller.next_request():
            caller.send(answer())
            if next(answered) == 60:
                server.die()
                for each in callers:
                    with suppress(OSError):
                        each.sock.shutdown(socket.SHUT_RDWR)

    with serving(handle) as server:
        result = loaded(server.url, rate=200)

    assert result.requests - result.failed >= 50
    assert result.errors["refused"] > 20


@pytest.mark.long
def test_tls_is_spoken_to_a_server_that_is_trusted(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    files = authority.server("server", "127.0.0.1")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files.certificate, files.key)

    with serving(well, tls=context) as server:
        url = server.url.replace("http:", "https:")
        trusted = loaded(url, rate=50, timeout_s=5, trust=trust_of(authority.ca, None, ""))
        untrusted = loaded(url, rate=50, timeout_s=5)

    assert trusted.failed == 0
    assert trusted.requests > 15
    assert untrusted.errors == {"unreachable": untrusted.requests}


@pytest.mark.long
def test_trickled_answers_are_measured_to_their_last_byte() -> None:
    def trickle(caller: Caller) -> None:
        while caller.next_request():
            whole = answer()
            caller.send(whole[:50])
            time.sleep(0.1)
            caller.send(whole[50:])

    with serving(trickle) as server:
        result = loaded(server.url, rate=30, timeout_s=5)

    assert result.failed == 0
    assert (result.sample.latency_s > 0.09).all()


@pytest.mark.long
def test_bytes_that_nobody_asked_for_close_the_connection_and_spoil_no_answer() -> None:
    def chatty(caller: Caller) -> None:
        while caller.next_request():
            caller.send(answer())
            time.sleep(0.005)
            caller.send(answer())

    with serving(chatty) as server:
        result = loaded(server.url, rate=20, timeout_s=2)

    assert result.errors.get("malformed", 0) == 0
    assert server.connections > 8
