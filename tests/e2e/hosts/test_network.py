"""The network that the tests of several hosts stand on does what it says."""

import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.hosts.network import Host, Network, network, why_not

pytestmark = [pytest.mark.e2e, pytest.mark.skipif(bool(why_not()), reason=why_not() or "-")]
_ASK = """
import socket, sys
s = socket.create_connection((sys.argv[1], 80), timeout=1)
s.settimeout(1)
s.sendall(b"x")
sys.exit(s.recv(1) != b"x")
"""
_ECHO = """
import socketserver
class Echo(socketserver.BaseRequestHandler):
    def handle(self):
        while data := self.request.recv(9):
            self.request.sendall(data)
socketserver.ThreadingTCPServer(("0.0.0.0", 80), Echo).serve_forever()
"""


@pytest.fixture
def net(tmp_path: Path) -> Iterator[Network]:
    with network("a", "b") as made:
        made.hosts["b"].start([sys.executable, "-c", _ECHO], log=tmp_path / "echo.log")
        deadline = time.monotonic() + 20
        while not reaches(made.hosts["a"], made.hosts["b"].address, tmp_path):
            assert time.monotonic() < deadline
        yield made


def reaches(host: Host, address: str, folder: Path) -> bool:
    return host.start([sys.executable, "-c", _ASK, address], log=folder / "ask.log").wait() == 0


def test_a_host_can_be_unplugged_cut_off_one_way_and_lost(net: Network, tmp_path: Path) -> None:
    a, b = net.hosts["a"], net.hosts["b"]
    seen = []
    for change, back in (
        (b.unplug, b.plug),
        (lambda: a.lose_what_is_sent_to(b.address), lambda: a.find_again(b.address)),
        (lambda: b.lose_what_is_sent_to(a.address), lambda: b.find_again(a.address)),
    ):
        change()
        seen.append(reaches(a, b.address, tmp_path))
        back()
        seen.append(reaches(a, b.address, tmp_path))
    b.kill()
    seen.append(reaches(a, b.address, tmp_path))

    assert seen == [False, True, False, True, False, True, False]
    assert b.pids() == []
