"""Who sends slowly, never, or reads nothing loses its own time, and takes nobody's place."""

import contextlib
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import product

import pytest

from tests.e2e.attacks.harness import (
    BODY_TIMEOUT_S,
    GROWTH_BYTES,
    IDLE_TIMEOUT_S,
    MAX_BODY_BYTES,
    MAX_CONNECTIONS,
    Door,
    Site,
)
from tests.e2e.attacks.wire import listen, request, talk
from tests.e2e.replicas import running
from tests.e2e.serving.raw import post

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

CALLERS = 30
DRIP_S = 0.25


@contextmanager
def connected(door: Door, count: int) -> Iterator[list[socket.socket]]:
    with ExitStack() as stack:
        yield [stack.enter_context(door.connect()) for _ in range(count)]


def drip(sockets: Sequence[socket.socket], *, during_s: float, bytes_: bytes = b"a") -> None:
    """One byte now and then from each."""
    until = time.monotonic() + during_s
    while time.monotonic() < until:
        for sock in sockets:
            with contextlib.suppress(OSError):
                sock.send(bytes_)
        time.sleep(DRIP_S)


def answers(sockets: Sequence[socket.socket]) -> Counter[tuple[int, ...]]:
    return Counter(tuple(listen(sock, quiet_s=0.05).statuses) for sock in sockets)


SLOW: Mapping[str, tuple[bytes, bytes]] = {
    "headers": (b"POST /v2/models/m/infer HTTP/1.1\r\nHost: x\r\nX-a: ", b"a"),
    "body": (request("Content-Length: 5000", body=b"{"), b"a"),
    "chunks": (request("Transfer-Encoding: chunked", body=b"1\r\n{\r\n"), b"1\r\n \r\n"),
}
"""What each begins with, and what it then says a few times a second."""


@pytest.fixture(scope="module")
def slow(site: Site) -> Mapping[tuple[str, str], Counter[tuple[int, ...]]]:
    """The answers to callers of each kind at each door, all of them at once."""
    with site.unharmed(), ExitStack() as stack:
        callers = {}
        for door, name in product((site.gateway, site.replica), SLOW):
            callers[door.name, name] = stack.enter_context(connected(door, CALLERS))
            for sock in callers[door.name, name]:
                sock.sendall(SLOW[name][0])
        dripping = [
            threading.Thread(
                target=drip,
                args=(sockets,),
                kwargs={"during_s": BODY_TIMEOUT_S + 2, "bytes_": SLOW[name][1]},
            )
            for (_, name), sockets in callers.items()
        ]
        for thread in dripping:
            thread.start()
        for thread in dripping:
            thread.join()
        return {key: answers(sockets) for key, sockets in callers.items()}


@pytest.mark.parametrize("name", SLOW)
def test_who_is_slow_to_send_gets_408(
    door: Door, name: str, slow: Mapping[tuple[str, str], Counter[tuple[int, ...]]]
) -> None:
    assert slow[door.name, name] == {(408,): CALLERS}


def test_who_leaves_in_the_middle_is_forgotten(site: Site, door: Door) -> None:
    heads = (
        b"PO",
        b"POST /v2/models/m/infer HTTP/1.1\r\nHo",
        request("Content-Length: 5000", body=b"{"),
        request("Transfer-Encoding: chunked", body=b"ff\r\n{"),
        post(),
    )
    with site.unharmed():
        for _ in range(40):
            for head in heads:
                with door.connect() as sock:
                    sock.sendall(head)
        time.sleep(1.0)


@pytest.mark.long
def test_half_sent_large_bodies_refuse_nobody_elses_small_one(site: Site, door: Door) -> None:
    """On a replica they once filled the room for all bodies; on the gateway they wait there."""
    half = request(f"Content-Length: {MAX_BODY_BYTES}", body=b"a" * (MAX_BODY_BYTES - 1))

    # What the allocators keep of 640 MiB; that they keep no more the next time is the next test.
    with site.unharmed(growth_bytes=600 << 20), connected(door, 80) as sockets:
        for sock in sockets:
            with contextlib.suppress(OSError):
                sock.sendall(half)
        drip(sockets[:1], during_s=1.0)


@pytest.mark.long
def test_memory_that_was_kept_is_used_again(site: Site, door: Door) -> None:
    half = request(f"Content-Length: {MAX_BODY_BYTES}", body=b"a" * (MAX_BODY_BYTES // 2))

    for growth in (300 << 20, GROWTH_BYTES, GROWTH_BYTES):
        with site.unharmed(growth_bytes=growth), connected(door, 60) as sockets:
            for sock in sockets:
                sock.sendall(half)


@pytest.mark.long
def test_idle_connections_up_to_the_limit_do_not_keep_others_out(site: Site, door: Door) -> None:
    """Those without a request are closed ever sooner, before there is no room for new ones."""
    count = MAX_CONNECTIONS - 20
    # As many as it takes to have room again; the replica's limit is far away.
    wanted = 20 if door.name == "gateway" else 0
    with site.unharmed(), connected(door, count) as sockets:
        until = time.monotonic() + IDLE_TIMEOUT_S / 3
        time.sleep(3.0)
        closed = sum(listen(sock, quiet_s=0.002).closed for sock in sockets)
        while closed < wanted and time.monotonic() < until:
            closed = sum(listen(sock, quiet_s=0.002).closed for sock in sockets)

    assert closed >= wanted


def test_connections_beyond_the_limit_are_closed_and_those_that_work_go_on(site: Site) -> None:
    late: list[bool] = []
    with site.unharmed():
        time.sleep(0.3)  # the well-behaved have their connections
        sockets = []
        for _ in range(MAX_CONNECTIONS + 50):
            with contextlib.suppress(OSError):
                sockets.append(site.gateway.connect())
        late = [listen(sock, quiet_s=0.002).closed for sock in sockets[-40:]]
        for sock in sockets:
            sock.close()

    assert any(late)


@pytest.mark.long
def test_a_replica_at_its_limit_closes_what_has_been_idle_longest(site: Site) -> None:
    folder = site.lone.log.parent
    with running(folder, folder / "m.onnx", max_connections=20) as replica:
        first = replica.connect()
        idle = [replica.connect() for _ in range(40)]
        with replica.connect() as sock:
            sock.sendall(post())
            assert listen(sock).statuses == [200]

        assert listen(first).closed
        assert not listen(idle[-1], quiet_s=0.1).closed
        for sock in (first, *idle):
            sock.close()


def flood(sock: socket.socket, data: bytes) -> None:
    """Send until the other side takes no more."""
    sock.settimeout(0.5)
    with contextlib.suppress(OSError):
        while True:
            sock.sendall(data)


def test_who_reads_nothing_stops_being_read(site: Site, door: Door) -> None:
    metadata = b"GET /v2/models/m HTTP/1.1\r\nHost: x\r\n\r\n" * 100
    with site.unharmed(), connected(door, 20) as sockets:
        threads = [threading.Thread(target=flood, args=(sock, metadata)) for sock in sockets]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)


@pytest.mark.long
def test_who_reads_nothing_is_cut_off_by_a_replica_in_the_end(site: Site) -> None:
    """A connection that is told to close waits for its caller to read: it once waited for ever."""
    folder = site.lone.log.parent
    told = {"idle_timeout_s": 1.0}
    with running(folder, folder / "m.onnx", **told) as replica, replica.connect() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        flood(sock, b"GET /v2/models/m HTTP/1.1\r\nHost: x\r\n\r\n" * 100)
        until = time.monotonic() + 10
        while not is_cut(sock):
            assert time.monotonic() < until
            time.sleep(0.1)


def is_cut(sock: socket.socket) -> bool:
    """Whether the other side reset the connection; what it sent stays unread."""
    return sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) != 0


@pytest.mark.long
@pytest.mark.parametrize("noise", [b"\0" * 100_000, b"\x16\x03\x01\x02\0", b"\r\n" * 50_000])
def test_what_is_no_http_gets_no_further(site: Site, door: Door, noise: bytes) -> None:
    with site.unharmed():
        got = talk(door, noise, quiet_s=3.0)

    assert got.statuses in ([400], [408], [431], [])


@pytest.mark.long
def test_of_too_many_slow_requests_the_one_that_began_first_gives_way(site: Site) -> None:
    """On a replica alone, too: callers whose requests come at once never wait for those."""
    folder = site.lone.log.parent
    with running(folder, folder / "m.onnx", max_connections=100) as replica:
        slow = [replica.connect() for _ in range(60)]
        for sock in slow:
            sock.sendall(request("Content-Length: 5000", body=b"{"))
        time.sleep(0.2)
        with replica.connect() as sock:
            sock.sendall(post())
            assert listen(sock).statuses == [200]

        assert [listen(sock, quiet_s=0.05).statuses for sock in slow[:10]] == [[408]] * 10
        assert not listen(slow[-1], quiet_s=0.1).statuses
        for sock in slow:
            sock.close()
