"""The control plane's ports, before anybody has logged in: the management API and the metrics."""

import contextlib
import socket
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import pytest

from headrace.control.asgi import edge
from tests.e2e.attacks.harness import Door, Site
from tests.e2e.attacks.wire import listen, request, sized, talk

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

ENDPOINTS = "/api/v1/endpoints"
UPLOAD = "/api/v1/models/x?filename=model.onnx"
REFUSED_UNSEEN = {401, 403}
"""What those get who are nobody, once the API asks who they are."""


@pytest.fixture(params=["management", "metrics"])
def port(request: pytest.FixtureRequest, site: Site) -> Door:
    number = site.admin_port if request.param == "management" else site.metrics_port
    return Door(request.param, number, 0)


@pytest.fixture
def management(site: Site) -> Door:
    return Door("management", site.admin_port, 0)


@contextmanager
def connected(door: Door, count: int) -> Iterator[list[socket.socket]]:
    sockets = [door.connect() for _ in range(count)]
    try:
        yield sockets
    finally:
        for sock in sockets:
            sock.close()


def test_huge_headers_are_431(site: Site, port: Door) -> None:
    with site.unharmed(growth_bytes=16 << 20):
        one = talk(port, request("x: " + "a" * 5_000_000, method="GET", path="/metrics", body=b""))
        lines = [f"x-{i}: {'a' * 1000}" for i in range(5000)]
        many = talk(port, request(*lines, method="GET", path="/metrics", body=b""))

    # The answer may be lost where the rest is still being sent.
    assert one.statuses in ([431], [])
    assert many.statuses in ([431], [])
    assert one.closed
    assert many.closed


def test_headers_that_are_just_too_large_are_told_so(port: Door) -> None:
    head = f"GET /metrics HTTP/1.1\r\nHost: x\r\nx: {'a' * (edge.MAX_HEAD_BYTES + 10)}".encode()

    assert talk(port, head).statuses == [431]


@pytest.mark.long
def test_many_slow_and_silent_callers_leave_room_for_others(site: Site) -> None:
    ports = [
        Door(name, port, 0) for name, port in (("a", site.admin_port), ("b", site.metrics_port))
    ]
    count, patience_s = edge.MAX_CONNECTIONS + 100, edge.HEAD_TIMEOUT_S + 3
    with site.unharmed(growth_bytes=32 << 20), ExitStack() as stack:
        callers = [stack.enter_context(connected(port, count)) for port in ports]
        for at, sock in enumerate(sock for sockets in callers for sock in sockets):
            with contextlib.suppress(OSError):
                sock.sendall((b"", b"GET /metrics HTTP/1.1\r\nx: a")[at % 2])
        time.sleep(0.3)
        for port in ports:
            assert httpx.get(f"{port.url}/metrics", timeout=10).status_code in {200, 401, 404}
        newest = [sock for sockets in callers for sock in sockets[-50:]]
        with ThreadPoolExecutor(len(newest)) as pool:
            got = list(pool.map(lambda one: listen(one, quiet_s=patience_s), newest))

    assert all(one.closed for one in got)
    assert Counter(status for one in got for status in one.statuses) == {408: 50}


def test_a_body_over_the_limit_is_refused(site: Site, management: Door) -> None:
    body = b'{"a":"%b"}' % (b"a" * (5 << 20))
    with site.unharmed():
        head = request(
            sized(body),
            "Content-Type: application/json",
            path=ENDPOINTS,
            body=b"",
            host="Host: localhost",
        )
        got = talk(management, head, body, quiet_s=3.0)

    assert got.statuses in ([413], [401], [403], [])


@pytest.mark.long
@pytest.mark.parametrize(
    "body",
    [
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"a":' * 900 + b"1" + b"}" * 900,
        b'{"a":' * 1100 + b"1" + b"}" * 1100,
        b'{"a":' + b"1" * 1_000_000 + b"}",
        b"{}" + b"\0",
        b"\xff\xfe",
        b'{"a":"\\ud800"}',
        b"[" + b"{}," * 1_000_000 + b"{}]",
    ],
    ids=[
        "arrays",
        "objects",
        "900 deep",
        "1,100 deep",
        "digits",
        "NUL",
        "no UTF-8",
        "half a surrogate",
        "a million objects",
    ],
)
def test_a_json_bomb_is_a_bad_request(site: Site, management: Door, body: bytes) -> None:
    headers = {"content-type": "application/json"}
    with site.unharmed():
        statuses = {
            httpx.request(
                method, f"{management.url}{path}", content=body, headers=headers, timeout=20
            ).status_code
            for method, path in (("POST", "/api/v1/apply"), ("POST", "/v2/repository/index"))
        }

    # Triton's index takes fields that it does not know.
    assert statuses <= {400, 422, *REFUSED_UNSEEN, 200}


def test_uploads_that_break_off_leave_nothing(site: Site, management: Door) -> None:
    folder = Path(site.system.home) / "artifacts" / "tmp"
    half = request(
        "Content-Length: 1000000", path=UPLOAD, body=b"a" * 500_000, host="Host: localhost"
    )
    with site.unharmed():
        for _ in range(20):
            with management.connect() as sock:
                sock.sendall(half)
        until = time.monotonic() + 10
        while folder.exists() and any(folder.iterdir()):
            assert time.monotonic() < until, list(folder.iterdir())
            time.sleep(0.1)


def test_an_upload_of_more_than_the_disk_is_refused_unread(management: Door) -> None:
    head = request(f"Content-Length: {1 << 62}", path=UPLOAD, body=b"", host="Host: localhost")

    got = talk(management, head, quiet_s=3.0)

    assert got.statuses[0] in {413, *REFUSED_UNSEEN}


def test_a_flood_of_scrapes_is_one_scrape_at_a_time(site: Site) -> None:
    with site.unharmed(), ThreadPoolExecutor(20) as pool:
        url = f"http://127.0.0.1:{site.metrics_port}/metrics"
        statuses = list(pool.map(lambda _: httpx.get(url, timeout=20).status_code, range(60)))

    assert Counter(statuses) == {200: 60}


@pytest.mark.parametrize(
    "path",
    [
        "/../etc/passwd",
        "/%2e%2e/%2e%2e/etc/passwd",
        "//etc/passwd",
        "/api/v1/../../etc/passwd",
        "/api/v1/models/..%2f..%2fetc%2fpasswd",
        "/api/v1/logs/..%2f..%2fetc%2fpasswd",
        "/%00",
    ],
)
def test_no_path_leads_to_a_file(port: Door, path: str) -> None:
    got = talk(port, request(method="GET", path=path, body=b"", host="Host: localhost"))

    assert b"root:" not in got.data
    assert got.statuses[0] in {400, 404, 405, 422, *REFUSED_UNSEEN}
