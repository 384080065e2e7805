"""What do replicas say about themselves? The newest report of each that somebody asks about."""

import asyncio
import logging
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from typing import Final

import msgspec

from headrace.control.faults import LOOP, Faults
from headrace.control.observed import Replica
from headrace.core import HeadraceError
from headrace.core.error_kind import UNDECODABLE
from headrace.core.fetch import fetch
from headrace.serving.report import Answer, AnswersPage, Observe, ReplicaReport

_LOG: Final = logging.getLogger("headrace.control")
_EVERY_S: Final = 1.0
_TIMEOUT_S: Final = 1.0
_AT_ONCE: Final = 16
_MOST_PAGES: Final = 40
"""All that a replica keeps."""
_HTTP_OK: Final = 200


@dataclass(slots=True, kw_only=True)
class Reports:
    """Asks replicas every second, and tells them what to look at.

    `wanted`: which ones, each time anew. `observe`: what a replica shall look at. `known`: the
    names of all that there are; what others said is forgotten.
    """

    wanted: Callable[[], Iterable[Replica]]
    known: Callable[[], Collection[str]]
    observe: Callable[[Replica], Observe]
    faults: Faults = field(default_factory=Faults)
    _latest: dict[str, ReplicaReport] = field(default_factory=dict)
    _together: dict[str, ReplicaReport] = field(default_factory=dict)
    _answer_bytes: dict[str, float] = field(default_factory=dict)
    _told: dict[str, tuple[int, Observe]] = field(default_factory=dict)
    _asking: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(_AT_ONCE))

    def latest(self, name: str) -> ReplicaReport | None:
        """The newest report of a replica; None if it never answered."""
        return self._latest.get(name)

    def together(self, name: str) -> ReplicaReport | None:
        """What a replica said when all were asked last; None if it did not answer then.

        For who compares replicas: `latest` of one may be older than that of another, or from a
        round that is not over.
        """
        return self._together.get(name)

    async def run(self) -> None:
        """Ask until cancelled."""
        while True:
            with self.faults.contain(LOOP, "reports"):
                await self.ask_all()
            await asyncio.sleep(_EVERY_S)

    async def ask_all(self) -> None:
        """Ask every wanted replica once."""
        replicas = list(self.wanted())
        for name in self._latest.keys() - {*self.known(), *(r.name for r in replicas)}:
            del self._latest[name]
            self._answer_bytes.pop(name, None)
            self._told.pop(name, None)
        self.faults.keep_only("replica", [replica.name for replica in replicas])
        said = await asyncio.gather(*(self._ask(replica) for replica in replicas))
        self._together = {
            replica.name: report
            for replica, report in zip(replicas, said, strict=True)
            if report is not None
        }

    async def answers(self, replica: Replica, after: int) -> AnswersPage:
        """A replica's answers after the cursor `after`; empty if it does not say.

        A replica hands them out in pages, so that no request waits for a long one to be written.
        """
        answers: list[Answer] = []
        async with self._asking:
            for _ in range(_MOST_PAGES):
                page = await self._page(replica, after)
                if page is None or not page.answers:
                    break
                after = page.cursor
                answers += page.answers
        return AnswersPage(cursor=after, answers=answers)

    def answer_bytes(self, name: str) -> float:
        """Mean size of the answers in the newest page of a replica; 0 before the first."""
        return self._answer_bytes.get(name, 0.0)

    async def _page(self, replica: Replica, cursor: int) -> AnswersPage | None:
        path = f"/internal/answers?after={cursor}&{replica.query}"
        try:
            answer = await fetch(replica.address, path, timeout_s=_TIMEOUT_S)
            if answer.status != _HTTP_OK:
                return None
            page = msgspec.msgpack.decode(answer.body, type=AnswersPage)
        except (HeadraceError, *UNDECODABLE):
            return None
        if page.answers:
            self._answer_bytes[replica.name] = len(answer.body) / len(page.answers)
        return page

    async def _ask(self, replica: Replica) -> ReplicaReport | None:
        async with self._asking:
            with self.faults.contain("replica", replica.name):
                try:
                    await self._tell(replica)
                    answer = await fetch(
                        replica.address, f"/internal/report?{replica.query}", timeout_s=_TIMEOUT_S
                    )
                    if answer.status == _HTTP_OK:
                        report = msgspec.json.decode(answer.body, type=ReplicaReport)
                        self._latest[replica.name] = report
                        return report
                except (HeadraceError, *UNDECODABLE) as error:
                    extra = {"replica": replica.name, "error": str(error)}
                    _LOG.debug("replica does not report", extra=extra)
        return None

    async def _tell(self, replica: Replica) -> None:
        """Say what to look at, once to each process."""
        wish = self.observe(replica)
        if self._told.get(replica.name, (replica.process, Observe())) == (replica.process, wish):
            return
        body = msgspec.json.encode(wish)
        headers = {"content-type": "application/json"}
        answer = await fetch(
            replica.address,
            f"/internal/observe?{replica.query}",
            timeout_s=_TIMEOUT_S,
            method="PUT",
            headers=headers,
            body=body,
        )
        if answer.status < 300:  # noqa: PLR2004  # any success
            self._told[replica.name] = (replica.process, wish)
