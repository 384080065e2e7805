"""A gateway near its memory limit cuts those that hold the most, and serves the others."""

import contextlib
import struct
import time
from collections.abc import Iterator

import pytest

from tests.e2e.attacks.frames import Caller, data
from tests.e2e.attacks.harness import GRPC_PATH, MAX_BODY_BYTES, Site, started

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.long]

LIMIT_BYTES = 192 << 20
CALLERS = 40
PART = b"\0" * 16_000


@pytest.fixture(scope="module")
def small() -> Iterator[Site]:
    """A system whose gateway may hold 192 MiB."""
    with started(max_memory_bytes=LIMIT_BYTES) as site:
        yield site


def test_half_sent_grpc_messages_are_cut_before_anybody_else_is_refused(small: Site) -> None:
    """Their names are read from the message, so they wait in the gateway: up to 320 MiB here."""
    rss = small.usage()["gateway"].rss
    promise = struct.pack(">BI", 0, MAX_BODY_BYTES - 5)
    with small.unharmed(growth_bytes=2 * LIMIT_BYTES):
        attackers = [Caller.open(small.gateway) for _ in range(CALLERS)]
        for attacker in attackers:
            attacker.listen(quiet_s=0.02)  # until the windows are open
            attacker.sock.settimeout(2.0)
            head = attacker.head(("content-type", "application/grpc"), path=GRPC_PATH)
            with contextlib.suppress(OSError):
                attacker.sock.sendall(head[1] + data(head[0], promise))
                for _ in range(MAX_BODY_BYTES // len(PART) - 2):
                    attacker.sock.sendall(data(head[0], PART))
            time.sleep(0.1)  # Envoy looks so often; what comes between is beyond its limit
        peak = small.usage()["gateway"].rss
        time.sleep(1.0)
        for attacker in attackers:
            attacker.listen(quiet_s=0.02)
            attacker.close()

    assert sum(bool(attacker.resets or attacker.gone) for attacker in attackers) > CALLERS // 4
    assert peak < rss + 2 * LIMIT_BYTES
