"""Replicas are asked over real sockets; what they say is played."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest

from headrace.control.observed import Phase, Replica
from headrace.control.reports import Reports
from headrace.serving.report import Observe, ReplicaReport

pytestmark = pytest.mark.anyio


def replica(name: str, socket: Path) -> Replica:
    return Replica(
        name=name,
        serial=1,
        endpoint="digits",
        version="1",
        revision_id="digits:1",
        address=f"unix:{socket}",
        phase=Phase.READY,
        since=0.0,
    )


class Answering:
    """Says how often it was asked, once it may."""

    def __init__(self) -> None:
        self.may = asyncio.Event()
        self.may.set()
        self.asked = 0

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        self.asked += 1
        await self.may.wait()
        report = ReplicaReport(
            replica="", model="", version="", at=0.0, ready=True, received=self.asked
        )
        body = msgspec.json.encode(report)
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
        await writer.drain()
        writer.close()

    @asynccontextmanager
    async def at(self, socket: Path) -> AsyncIterator[None]:
        async with await asyncio.start_unix_server(self, socket):
            yield


async def test_who_compares_replicas_gets_what_all_said_in_one_round(tmp_path: Path) -> None:
    quick, slow = Answering(), Answering()
    both = [replica("quick", tmp_path / "q"), replica("slow", tmp_path / "s")]
    reports = Reports(
        wanted=lambda: both, known=lambda: ["quick", "slow"], observe=lambda _: Observe()
    )

    def told(of: str) -> tuple[int | None, int | None]:
        latest, together = reports.latest(of), reports.together(of)
        return (
            None if latest is None else latest.received,
            None if together is None else together.received,
        )

    async with quick.at(tmp_path / "q"), slow.at(tmp_path / "s"):
        await reports.ask_all()
        assert told("quick") == told("slow") == (1, 1)

        slow.may.clear()
        asking = asyncio.create_task(reports.ask_all())
        async with asyncio.timeout(10):
            while told("quick") != (2, 1):  # noqa: ASYNC110  # nothing tells when
                await asyncio.sleep(0.001)
        assert told("slow") == (1, 1)
        slow.may.set()
        await asking
        assert told("quick") == told("slow") == (2, 2)

    async with quick.at(tmp_path / "q2"):  # the slow one is gone
        both[0] = replica("quick", tmp_path / "q2")
        await reports.ask_all()
        assert told("quick") == (3, 3)
        assert told("slow") == (2, None)
