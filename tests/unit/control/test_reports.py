"""Replicas are asked over real sockets; what they say is played."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from headrace.control.model.observed import Replica, ReplicaPhase
from headrace.control.reconcile.reports import Reports
from headrace.control.rollouts.evidence import IntervalCounter, Pairing
from headrace.control.rollouts.observation import RolloutWatch
from headrace.core.spec.rollout import CanarySpec, DisagreementSpec
from headrace.rollout.evidence import RolloutEvidenceState
from headrace.rollout.outcomes import Names
from headrace.serving.telemetry.report import AnswersPage, Observe, RecordedAnswer, ReplicaReport
from headrace.serving.telemetry.samples import BoundedBuffer

pytestmark = pytest.mark.anyio


def replica(name: str, socket: Path) -> Replica:
    return Replica(
        name=name,
        serial=1,
        endpoint="digits",
        version="1",
        revision_id="digits:1",
        address=f"unix:{socket}",
        phase=ReplicaPhase.READY,
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
    reports = Reports(replicas={one.name: one for one in both})

    def told(of: str) -> tuple[int | None, int | None]:
        latest, together = reports.latest(of), reports.together(of)
        return (
            None if latest is None else latest.received,
            None if together is None else together.received,
        )

    async with quick.at(tmp_path / "q"), slow.at(tmp_path / "s"):
        await reports.request_all(both, lambda _: Observe())
        assert told("quick") == told("slow") == (1, 1)

        slow.may.clear()
        asking = asyncio.create_task(reports.request_all(both, lambda _: Observe()))
        async with asyncio.timeout(10):
            while told("quick") != (2, 1):  # noqa: ASYNC110  # nothing tells when
                await asyncio.sleep(0.001)
        assert told("slow") == (1, 1)
        slow.may.set()
        await asking
        assert told("quick") == told("slow") == (2, 2)

    async with quick.at(tmp_path / "q2"):  # the slow one is gone
        both[0] = replica("quick", tmp_path / "q2")
        await reports.request_all(both, lambda _: Observe())
        assert told("quick") == (3, 3)
        assert told("slow") == (2, None)


class Keeping:
    """A replica's process that keeps answers and hands them out in pages of two."""

    def __init__(self, *ids: str) -> None:
        self.shelf: BoundedBuffer[RecordedAnswer] = BoundedBuffer(
            most_items=99, most_bytes=99, page_items=2, page_bytes=99
        )
        for one in ids:
            self.shelf.add(RecordedAnswer(one), 1)

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        await reader.readexactly(int(head.lower().partition("content-length: ")[2].split()[0]))
        path = head.split()[1]
        body = b"{}"
        if path.startswith("/internal/answers"):
            page = self.shelf.page(int(path.partition("after=")[2].partition("&")[0]))
            answers = AnswersPage(cursor=page.cursor, answers=list(page.items))
            body = msgspec.msgpack.encode(answers)
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
        await writer.drain()
        writer.close()


async def test_every_answer_is_read_once_also_those_of_the_next_process(tmp_path: Path) -> None:
    running = replica("r", tmp_path / "s")
    wish = Observe(key="r1", answers_percent=100)
    reports = Reports(replicas={"r": running})
    watch = RolloutWatch(
        evidence=RolloutEvidenceState.start(CanarySpec()),
        counter=IntervalCounter(warmup_s=0.0),
        pairing=Pairing(metric=DisagreementSpec()),
        names=Names(),
        saved_at=0.0,
    )

    async def ids() -> list[str]:
        await reports.request_all([running], lambda _: wish)
        page = await reports.answers(running, watch.after(running))
        watch.positions["r"] = running.process, page.cursor
        return [answer.answer_id for answer in page.answers]

    first = Keeping("a", "b", "c")
    async with await asyncio.start_unix_server(first, tmp_path / "s"):
        assert [await ids(), await ids()] == [["a", "b", "c"], []]
        first.shelf.add(RecordedAnswer("d"), 1)
        assert await ids() == ["d"]
    running = replace(running, pid=2)
    (tmp_path / "s").unlink(missing_ok=True)
    async with await asyncio.start_unix_server(Keeping(*"efghij"), tmp_path / "s"):
        assert await ids() == list("efghij")
