"""HTTP/2 as an attacker speaks it to the gateway: floods end their connection, or cost nothing."""

import contextlib
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Final

import pytest
from hyperframe.frame import HeadersFrame

from tests.e2e.attacks.frames import (
    JSON,
    Caller,
    continuation,
    data,
    open_head,
    ping,
    reset,
    settings,
    window,
)
from tests.e2e.attacks.harness import BODY_TIMEOUT_S, MAX_BODY_BYTES, Site
from tests.e2e.serving.raw import BODY, INFER

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

HANGS_UP_S = 2.0
"""Envoy closes a connection a second after it has decided to, and says nothing meanwhile."""
PRIORITY = b"\0\0\5\2\0\0\0\0\1\0\0\0\0\0"


@contextmanager
def caller(site: Site, **settings_: int) -> Iterator[Caller]:
    opened = Caller.open(site.gateway, **settings_)
    try:
        yield opened
    finally:
        opened.close()


def test_a_rapid_reset_ends_the_connection(site: Site) -> None:
    """CVE-2023-44487: streams that are opened and taken back cost work and no limit counts them."""
    sent = 0
    with site.unharmed(), caller(site) as attacker:
        while sent < 20_000 and not attacker.gone:
            frames = []
            for _ in range(50):
                stream, head = attacker.head(*JSON)
                frames += [head, data(stream, BODY, end_stream=True), reset(stream)]
            attacker.send(*frames)
            sent += 50
        attacker.listen(quiet_s=HANGS_UP_S)

    assert attacker.gone
    assert sent < 20_000


def test_a_made_you_reset_ends_the_connection(site: Site) -> None:
    """CVE-2025-8671: frames that make the server itself reset streams it has work for."""
    sent = 0
    with site.unharmed(), caller(site) as attacker:
        while sent < 20_000 and not attacker.gone:
            frames = []
            for _ in range(50):
                stream, head = attacker.head(*JSON)
                frames += [head, data(stream, BODY, end_stream=True), window(stream, 0)]
            attacker.send(*frames)
            sent += 50
        attacker.listen(quiet_s=HANGS_UP_S)

    assert attacker.gone


@pytest.mark.long
@pytest.mark.parametrize("block", ["empty", "headers"])
def test_continuations_without_end_are_bounded(site: Site, block: str) -> None:
    """CVE-2024-27316 and its kin."""
    with site.unharmed(growth_bytes=16 << 20), caller(site) as attacker:
        stream = attacker.next_stream()
        attacker.send(open_head(stream, attacker.block()))
        more = b"" if block == "empty" else attacker.block(("x-a", "a" * 200))
        for _ in range(500):
            if not attacker.send(continuation(stream, more) * 20):
                break
        attacker.listen(until_s=3)

    assert not attacker.statuses


@pytest.mark.parametrize(
    "frame",
    [
        ping(),
        settings(INITIAL_WINDOW_SIZE=65535),
        pytest.param(window(0, 1), marks=pytest.mark.long),
        pytest.param(PRIORITY, marks=pytest.mark.long),
        pytest.param(b"\0\0\0\xfe\0\0\0\0\0", marks=pytest.mark.long),
    ],
    ids=["PING", "SETTINGS", "WINDOW_UPDATE", "PRIORITY", "unknown"],
)
def test_a_flood_of_control_frames_harms_nobody(site: Site, frame: bytes) -> None:
    with site.unharmed(growth_bytes=16 << 20), caller(site) as attacker:
        for _ in range(500):
            if not attacker.send(frame * 100):
                break
        attacker.listen(until_s=3)


@pytest.mark.parametrize(
    "frame", [ping(), pytest.param(settings(INITIAL_WINDOW_SIZE=65535), marks=pytest.mark.long)]
)
def test_who_floods_and_reads_nothing_is_cut_off(site: Site, frame: bytes) -> None:
    """CVE-2019-9512, 9515: the answers to PING and SETTINGS would fill the memory."""
    sent = 0
    with site.unharmed(growth_bytes=32 << 20), caller(site) as attacker:
        attacker.sock.settimeout(1.0)
        with contextlib.suppress(OSError):
            while sent < 40 << 20:
                attacker.sock.sendall(frame * 1000)
                sent += len(frame) * 1000
        time.sleep(0.5)

    assert sent < 40 << 20


def test_empty_data_without_end_ends_the_connection(site: Site) -> None:
    """CVE-2019-9518."""
    with site.unharmed(), caller(site) as attacker:
        stream, head = attacker.head(*JSON)
        attacker.send(head)
        for _ in range(500):
            if not attacker.send(data(stream, b"") * 100):
                break
        attacker.listen(quiet_s=HANGS_UP_S, until_s=3)

    assert attacker.gone


def test_an_hpack_bomb_is_refused_whatever_its_size_on_the_wire(site: Site) -> None:
    """CVE-2016-6581: one large header in the table, named thousands of times."""
    with site.unharmed(growth_bytes=16 << 20), caller(site) as attacker:
        stream = attacker.next_stream()
        first = attacker.block(("x-big", "a" * 3900))
        attacker.send(open_head(stream, first), continuation(stream, b"", end=True))
        again = attacker.block(("x-big", "a" * 3900))
        for _ in range(20):
            stream = attacker.next_stream()
            flags = ["END_HEADERS", "END_STREAM"]
            attacker.send(HeadersFrame(stream, again + again[-1:] * 3000, flags=flags).serialize())
        attacker.listen(quiet_s=HANGS_UP_S, until_s=4)

    assert sum(attacker.resets.values()) == 20 or attacker.gone
    assert not attacker.statuses


@pytest.mark.parametrize(
    ("count", "size"),
    [(99, 1000), pytest.param(500, 1, marks=pytest.mark.long)],
    ids=["100 kB", "500 headers"],
)
def test_a_header_list_that_is_too_large_is_reset(site: Site, count: int, size: int) -> None:
    with site.unharmed(), caller(site) as attacker:
        stream = attacker.next_stream()
        block = attacker.block(*[(f"x-{i}", "b" * size) for i in range(count)])
        attacker.send(open_head(stream, block[:16_000]))
        for at in range(16_000, len(block), 16_000):
            attacker.send(continuation(stream, block[at : at + 16_000]))
        attacker.send(continuation(stream, b"", end=True))
        attacker.listen(quiet_s=HANGS_UP_S, until_s=4)

    assert attacker.resets or attacker.gone or attacker.statuses[431]
    assert not attacker.statuses[200]


HEADERS: Final = {
    "transfer-encoding": ("transfer-encoding", "chunked"),
    "connection": ("connection", "keep-alive"),
    "another length": ("content-length", "1"),
    "CRLF in a value": ("x-a", "b\r\nx-injected: 1"),
    "NUL in a value": ("x-a", "b\0c"),
    "CRLF in a name": ("x-a\r\nx-b", "c"),
    "upper case": ("X-Upper", "c"),
    "no name": ("", "c"),
    "a second path": (":path", "/v2"),
    "a late pseudo header": (":protocol", "websocket"),
}
PATHS: Final = {
    "CRLF and a header": "/v2/models/m/infer HTTP/1.1\r\nx: y",
    "CRLF and a request": "/v2/models/m\r\n\r\nGET /v2/infer",
    "NUL": "/v2/models/m\0/infer",
    "CRLF in the version": "/v2/models/m/versions/1\r\n/infer",
    "LF for a name": "/v2/models/\n/infer",
    "escaped slashes": "/v2/health/%2f..%2fmodels/m/infer",
    "nothing": "",
    "no slash": "v2/models/m/infer",
}


@pytest.fixture(scope="module")
def malformed(site: Site) -> Mapping[str, Caller]:
    """What became of each of these requests; Envoy takes a second to hang up, so all at once."""
    wanted: list[tuple[str, tuple[tuple[str, str], ...], str]] = [
        *[(name, (extra,), INFER) for name, extra in HEADERS.items()],
        *[(name, (), path) for name, path in PATHS.items()],
        ("host and authority", (("host", "evil"),), INFER),
    ]
    found = {}
    with site.unharmed():
        for name, extra, path in wanted:
            found[name] = attacker = Caller.open(site.gateway)
            stream, head = attacker.head(*JSON, *extra, path=path)
            attacker.send(head, data(stream, BODY, end_stream=True))
        with ThreadPoolExecutor(len(found)) as pool:
            list(
                pool.map(
                    lambda attacker: attacker.listen(quiet_s=HANGS_UP_S).close(), found.values()
                )
            )
    return found


@pytest.mark.parametrize("name", [*HEADERS, *PATHS])
def test_what_would_split_a_request_of_http1_does_not_go_on(
    name: str, malformed: Mapping[str, Caller]
) -> None:
    """What is fine in a frame could be two requests where it goes on to the replica as HTTP/1.1."""
    attacker = malformed[name]

    assert attacker.statuses[400] or attacker.resets or attacker.gone
    assert not attacker.statuses[200]


def test_a_host_beside_the_authority_is_answered_once(malformed: Mapping[str, Caller]) -> None:
    assert malformed["host and authority"].statuses.total() <= 1


@pytest.mark.long
def test_who_opens_no_window_holds_answers_and_nobody_else(site: Site) -> None:
    """CVE-2019-9517: answers wait in the gateway, and replicas are free of them."""
    attackers = [Caller.open(site.gateway, INITIAL_WINDOW_SIZE=0) for _ in range(5)]
    with site.unharmed():
        for attacker in attackers:
            for _ in range(40):
                stream, head = attacker.head(*JSON)
                attacker.send(head, data(stream, BODY, end_stream=True))
            attacker.listen(quiet_s=0.3)
        for attacker in attackers:
            attacker.close()


@pytest.mark.long
def test_five_thousand_slow_requests_take_no_replica_from_others(site: Site) -> None:
    """Each holds a connection to the replica, and once there were no more for anybody."""
    attackers = [Caller.open(site.gateway) for _ in range(5)]
    with site.unharmed(growth_bytes=300 << 20, pool=4096):
        for attacker in attackers:
            for _ in range(20):
                frames = []
                for _ in range(50):
                    stream, head = attacker.head(*JSON)
                    frames += [head, data(stream, b"{")]
                attacker.send(*frames)
        time.sleep(BODY_TIMEOUT_S + 1)
        for attacker in attackers:
            attacker.listen(quiet_s=0.2, until_s=5)
            attacker.close()

    # Those beyond what a replica may be sent at once are told to come back.
    statuses = sum((attacker.statuses for attacker in attackers), Counter())
    assert statuses.keys() <= {408, 429, 503}
    assert statuses.total() == 5000


def test_more_streams_than_a_connection_may_have_are_refused(site: Site) -> None:
    with site.unharmed(), caller(site) as attacker:
        for _ in range(30):
            frames = []
            for _ in range(50):
                stream, head = attacker.head(*JSON)
                frames += [head, data(stream, b"{")]
            attacker.send(*frames)
        until = time.monotonic() + 20
        while (refused := attacker.resets.total()) < 1500 - 1024 and not attacker.gone:
            assert time.monotonic() < until, f"only {refused} were refused"
            attacker.listen(quiet_s=0.3, until_s=2)


def test_half_sent_requests_on_many_streams_are_bounded_by_their_connection(site: Site) -> None:
    """A connection's window is one body: many streams share it."""
    part = b"a" * 16_000
    with site.unharmed(growth_bytes=2 * MAX_BODY_BYTES + (32 << 20)), caller(site) as attacker:
        attacker.sock.settimeout(1.0)
        with contextlib.suppress(OSError):
            for _ in range(100):
                stream, head = attacker.head(*JSON)
                attacker.sock.sendall(head + data(stream, part) * 60)
        time.sleep(0.5)
