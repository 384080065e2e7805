"""Watch of row independence: what replicas report of batching, per version of each endpoint.

A difference stays until the version's settings change or the version goes: the model mixes rows
whether or not another row shows it, and a replica that starts again counts from 0.
"""

from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, NamedTuple

from headrace.control.state.records import Event
from headrace.core import Clock
from headrace.observe.metrics import Family, Labels, gauge
from headrace.observe.row_checks import BatchingReport, RowDifference

INCOMPARABLE_RATIO: Final = 1.0
"""The size of a difference that has none: another shape, or a value that is not finite."""


class ArmReports(NamedTuple):
    """What the replicas of one arm say of its batching now."""

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
    """Keeps the newest report of every arm. `emit`: writes events."""

    emit: Callable[[Sequence[Event]], Awaitable[None]]
    clock: Clock
    _arms: dict[tuple[str, str], _Watched] = field(default_factory=dict)

    async def note(self, arms: Iterable[ArmReports]) -> None:
        """Take what all arms report; those that are not among them are forgotten."""
        before, self._arms = self._arms, {}
        events = []
        for arm in arms:
            watched = before.get((arm.endpoint, arm.key))
            if watched is None or watched.revision_id != arm.revision_id:
                watched = _Watched(arm.revision_id, arm.version)
            self._arms[arm.endpoint, arm.key] = watched
            if arm.reports:
                former = None if watched.report is None else watched.report.difference
                watched.report = _together(arm.reports, former)
                if former is None and watched.report.difference is not None:
                    events.append(self._event(arm, watched.report, watched.report.difference))
        if events:
            await self.emit(events)

    def report(self, endpoint: str, key: str, revision_id: str) -> BatchingReport | None:
        """What is known of a revision; None before a replica loaded its model."""
        watched = self._arms.get((endpoint, key))
        return watched.report if watched and watched.revision_id == revision_id else None

    def differing(self, endpoint: str) -> tuple[float | None, str]:
        """The size of an endpoint's largest difference and what it is; None if nothing is known."""
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
        """Differences as a metric, of arms that have one."""
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


def _together(reports: Sequence[BatchingReport], former: RowDifference | None) -> BatchingReport:
    """The reports of an arm's replicas as one, with the newest difference that there ever was."""
    differences = [report.difference for report in reports if report.difference is not None]
    checks: dict[str, int] = {}
    for report in reports:
        for outcome, count in report.checks.items():
            checks[outcome] = checks.get(outcome, 0) + count
    newest = max(differences, key=lambda difference: difference.at, default=former)
    return replace(reports[0], checks=checks, difference=newest)


def _differences(arms: Iterable[_Watched]) -> Iterable[tuple[_Watched, RowDifference]]:
    for arm in arms:
        if arm.report is not None and arm.report.difference is not None:
            yield arm, arm.report.difference


def _ratio(difference: RowDifference) -> float:
    return INCOMPARABLE_RATIO if difference.ratio is None else difference.ratio
