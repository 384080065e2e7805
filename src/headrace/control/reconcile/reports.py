"""Newest reports of replicas, and the row independence in them."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, NamedTuple

import msgspec

from headrace.control.base.faults import LOOP, Faults
from headrace.control.model.observed import Replica, ReplicaPhase
from headrace.control.model.records import Event
from headrace.core import Clock, HeadraceError
from headrace.core.devices import DeviceUse
from headrace.core.fetch import ask, fetch
from headrace.observe.metrics import Family, Labels, gauge
from headrace.observe.row_checks import BatchingReport, RowDifference
from headrace.serving.telemetry.report import AnswersPage, Observe, RecordedAnswer, ReplicaReport

_INTERVAL_S: Final = 1.0
_TIMEOUT_S: Final = 1.0
_MAX_CONCURRENT: Final = 16
_MAX_PAGES: Final = 40
"""Most pages read at once: all answers that a replica keeps."""


def _together(reports: Sequence[BatchingReport], previous: RowDifference | None) -> BatchingReport:
    """Return the merged reports of an arm's replicas, with the newest difference ever reported."""
    differences = [report.difference for report in reports if report.difference is not None]
    checks: dict[str, int] = {}
    for report in reports:
        for outcome, count in report.checks.items():
            checks[outcome] = checks.get(outcome, 0) + count
    newest = max(differences, key=lambda difference: difference.at, default=previous)
    return replace(reports[0], checks=checks, difference=newest)


@dataclass(slots=True, kw_only=True)
class Reports:
    """Polls replicas every second, and sets what they observe."""

    replicas: Mapping[str, Replica]
    """All replicas by name; reports of other replicas are dropped."""
    faults: Faults = field(default_factory=Faults)
    _latest: dict[str, ReplicaReport] = field(default_factory=dict)
    _together: dict[str, ReplicaReport] = field(default_factory=dict)
    _answer_bytes: dict[str, float] = field(default_factory=dict)
    _observed_by: dict[str, tuple[int, Observe]] = field(default_factory=dict)
    _asking: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(_MAX_CONCURRENT))

    def latest(self, name: str) -> ReplicaReport | None:
        """Return the newest report of a replica; None if it never answered."""
        return self._latest.get(name)

    def together(self, name: str) -> ReplicaReport | None:
        """Return a replica's report of the last complete round; None if it did not answer in it.

        Use it to compare replicas: `latest` of one may be older than that of another, or from an
        incomplete round.
        """
        return self._together.get(name)

    def device(self, name: str) -> DeviceUse | None:
        """Return the device on which a replica runs its model; None before its first report."""
        report = self._latest.get(name)
        return None if report is None else report.device

    async def run(
        self,
        needed: Callable[[], Iterable[Replica]],
        observe: Callable[[Replica], Observe],
    ) -> None:
        """Poll replicas until cancelled.

        Args:
            needed: Returns the replicas whose reports are needed now. Ready replicas that never
                reported are polled too, to learn their device.
            observe: Returns what a replica must observe.
        """
        while True:
            with self.faults.contain(LOOP, "reports"):
                ready = (r for r in self.replicas.values() if r.phase is ReplicaPhase.READY)
                silent = [replica for replica in ready if replica.name not in self._latest]
                await self.request_all([*needed(), *silent], observe)
            await asyncio.sleep(_INTERVAL_S)

    async def request_all(
        self, needed: Iterable[Replica], observe: Callable[[Replica], Observe]
    ) -> None:
        """Poll each of these replicas once."""
        replicas = {replica.name: replica for replica in needed}
        for name in self._latest.keys() - {*self.replicas, *replicas}:
            del self._latest[name]
            self._answer_bytes.pop(name, None)
            self._observed_by.pop(name, None)
        self.faults.keep_only("replica", replicas)
        answers = await asyncio.gather(*(self._ask(r, observe) for r in replicas.values()))
        self._together = {
            name: report
            for name, report in zip(replicas, answers, strict=True)
            if report is not None
        }

    async def answers(self, replica: Replica, after: int) -> AnswersPage:
        """Return a replica's recorded answers after the cursor `after`; empty if it does not reply.

        A replica sends them in pages, so that encoding a long one does not delay requests.
        """
        answers: list[RecordedAnswer] = []
        async with self._asking:
            for _ in range(_MAX_PAGES):
                page = await self._page(replica, after)
                if page is None or not page.answers:
                    break
                after = page.cursor
                answers += page.answers
        return AnswersPage(cursor=after, answers=answers)

    def answer_bytes(self, name: str) -> float:
        """Return the mean size in bytes of the answers in a replica's newest page; 0 before it."""
        return self._answer_bytes.get(name, 0.0)

    async def _page(self, replica: Replica, cursor: int) -> AnswersPage | None:
        path = f"/internal/answers?after={cursor}&{replica.query}"

        def sized(body: bytes) -> tuple[int, AnswersPage]:
            return len(body), msgspec.msgpack.decode(body, type=AnswersPage)

        answer = await ask(replica.address, path, sized, timeout_s=_TIMEOUT_S)
        if answer is None:
            return None
        size, page = answer
        if page.answers:
            self._answer_bytes[replica.name] = size / len(page.answers)
        return page

    async def _ask(
        self, replica: Replica, observe: Callable[[Replica], Observe]
    ) -> ReplicaReport | None:
        report: ReplicaReport | None = None
        async with self._asking:
            with self.faults.contain("replica", replica.name):
                if await self._send_observe(replica, observe(replica)):
                    decode = msgspec.json.Decoder(ReplicaReport).decode
                    path = f"/internal/report?{replica.query}"
                    report = await ask(replica.address, path, decode, timeout_s=_TIMEOUT_S)
        if report is not None:
            self._latest[replica.name] = report
        return report

    async def _send_observe(self, replica: Replica, observe: Observe) -> bool:
        """Set what a process observes, once per process; return whether it answered."""
        if self._observed_by.get(replica.name, (replica.process, Observe())) == (
            replica.process,
            observe,
        ):
            return True
        try:
            answer = await fetch(
                replica.address,
                f"/internal/observe?{replica.query}",
                timeout_s=_TIMEOUT_S,
                method="PUT",
                headers={"content-type": "application/json"},
                body=msgspec.json.encode(observe),
            )
        except HeadraceError:
            return False
        if answer.status < 300:  # noqa: PLR2004  # any success
            self._observed_by[replica.name] = (replica.process, observe)
        return True


INCOMPARABLE_RATIO: Final = 1.0
"""Size of a difference in shape or of a value that is not finite, which have no ratio."""


class ArmReports(NamedTuple):
    """Current batching reports of one arm's replicas."""

    endpoint: str
    key: str
    version: str
    revision_id: str
    reports: Sequence[BatchingReport]


@dataclass(slots=True)
class _Watched:
    revision_id: str
    version: str
    report: BatchingReport | None = None


@dataclass(slots=True, kw_only=True)
class RowWatch:
    """Keeps the newest report of every arm."""

    emit: Callable[[Sequence[Event]], Awaitable[None]]
    """Records events."""
    clock: Clock
    _arms: dict[tuple[str, str], _Watched] = field(default_factory=dict)

    async def note(self, arms: Iterable[ArmReports]) -> None:
        """Take the reports of all arms; drop those of other arms."""
        before, self._arms = self._arms, {}
        events = []
        for arm in arms:
            watched = before.get((arm.endpoint, arm.key))
            if watched is None or watched.revision_id != arm.revision_id:
                watched = _Watched(arm.revision_id, arm.version)
            self._arms[arm.endpoint, arm.key] = watched
            if arm.reports:
                previous = None if watched.report is None else watched.report.difference
                watched.report = _together(arm.reports, previous)
                if previous is None and watched.report.difference is not None:
                    events.append(self._event(arm, watched.report, watched.report.difference))
        if events:
            await self.emit(events)

    def report(self, endpoint: str, key: str, revision_id: str) -> BatchingReport | None:
        """Return a revision's batching report; None before a replica loaded its model."""
        watched = self._arms.get((endpoint, key))
        return watched.report if watched and watched.revision_id == revision_id else None

    def differing(self, endpoint: str) -> tuple[float | None, str]:
        """Return size and description of an endpoint's largest difference; None if unknown."""
        arms = [arm for (name, _), arm in self._arms.items() if name == endpoint and arm.report]
        worst = max(
            (
                (_ratio(difference), arm.version, difference)
                for arm, difference in _differences(arms)
            ),
            default=None,
            key=lambda item: item[0],
        )
        if worst is None:
            return (0.0 if arms else None), ""
        ratio, version, difference = worst
        return ratio, f"version {version}: {difference.text}"

    def families(self) -> list[Family]:
        """Return the differences of arms as a metric."""
        samples: list[tuple[Labels, float]] = [
            (
                (("endpoint", name), ("version", arm.version), ("output", difference.output)),
                _ratio(difference),
            )
            for (name, _), watched in self._arms.items()
            for arm, difference in _differences([watched])
        ]
        text = (
            "Difference of a row's answer alone from that in a batch, over the output's largest "
            "value; 1 for another shape. Only of versions that have one."
        )
        return [gauge("headrace_row_difference", text, samples)]

    def _event(self, arm: ArmReports, report: BatchingReport, difference: RowDifference) -> Event:
        return Event(
            at=self.clock.now(),
            endpoint=arm.endpoint,
            kind="batching",
            reason="RowsDiffer",
            message=f"version {arm.version}: {report.text}",
            data={
                "version": arm.version,
                "output": difference.output,
                "ratio": difference.ratio,
                "requests": difference.requests,
                "padded": difference.padded,
            },
        )


def _differences(arms: Iterable[_Watched]) -> Iterable[tuple[_Watched, RowDifference]]:
    for arm in arms:
        if arm.report is not None and arm.report.difference is not None:
            yield arm, arm.report.difference


def _ratio(difference: RowDifference) -> float:
    return INCOMPARABLE_RATIO if difference.ratio is None else difference.ratio
