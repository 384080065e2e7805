"""Feature skew watch: stores served features, and compares them with training features."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from headrace.control.base.faults import LOOP, Faults, write_events
from headrace.control.model.records import Event
from headrace.core import Clock, FeatureWatch, HeadraceError, UnavailableError
from headrace.core.error_kind import UNDECODABLE
from headrace.core.processes import Exceeded, python_module, run
from headrace.features.skew_process import SkewedFeature, SkewSummary
from headrace.observe.metrics import Family, gauge

if TYPE_CHECKING:
    from headrace.features.served_writer import ServedFile

_LOG: Final = logging.getLogger("headrace.control")
_POLL_INTERVAL_S: Final = 1.0
_TIMEOUT_S: Final = 600.0
_SHOWN: Final = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureSkewStatus:
    """Result of the last comparison of a service's served features with training features.

    `checked_at` is in seconds since 1970.
    """

    service: str
    checked_at: float
    rows: int
    features: tuple[SkewedFeature, ...] = ()
    """Differing features, each with its differing rows, all compared rows and the reason."""
    message: str = ""
    """Reason why they could not be compared."""


@dataclass(slots=True, kw_only=True)
class SkewWatch:
    """Compares the served features of each monitored service."""

    watches: Callable[[], Mapping[str, FeatureWatch]]
    """Returns the monitored services by endpoint."""
    compare: Callable[[str], Awaitable[SkewSummary]]
    """Runs one comparison of a service, which may take long."""
    emit: Callable[[Sequence[Event]], Awaitable[None]]
    clock: Clock
    faults: Faults = field(default_factory=Faults)
    summaries: dict[str, SkewSummary] = field(default_factory=dict)
    """The last comparison of each service."""
    checked_at: dict[str, float] = field(default_factory=dict)
    """Unix time of the last comparison by service."""
    _due: dict[str, float] = field(default_factory=dict)

    async def run(self) -> None:
        """Run due comparisons until cancelled, one service at a time."""
        while True:
            with self.faults.contain(LOOP, "feature skew"):
                for service in self.due():
                    with self.faults.contain("feature service", service):
                        await self._check(service)
            await asyncio.sleep(_POLL_INTERVAL_S)

    def due(self) -> list[str]:
        """Return the services whose comparison is due, at the earliest after one interval."""
        every: dict[str, float] = {}
        for watch in self.watches().values():
            every[watch.service] = min(watch.skew_every_s, every.get(watch.service, float("inf")))
        now = self.clock.monotonic()
        self._due = {
            service: min(self._due.get(service, now + period), now + period)
            for service, period in every.items()
        }
        for removed in self.summaries.keys() - every.keys():
            del self.summaries[removed]
        self.faults.keep_only("feature service", every)
        return [service for service, due_at in self._due.items() if due_at <= now]

    def statuses(self) -> tuple[FeatureSkewStatus, ...]:
        """Return the newest result of each service."""
        return tuple(
            FeatureSkewStatus(
                service=service,
                checked_at=self.checked_at[service],
                rows=summary.rows,
                features=summary.skewed,
                message=summary.message,
            )
            for service, summary in self.summaries.items()
        )

    def families(self) -> list[Family]:
        """Return the ratio of differing rows of each differing feature as metrics."""
        samples = [
            ((("service", service), ("feature", skew.feature)), skew.differing / max(skew.rows, 1))
            for service, summary in self.summaries.items()
            for skew in summary.skewed
        ]
        text = "Share of served rows that differ from the training data."
        return [gauge("headrace_feature_skew_ratio", text, samples)]

    async def _check(self, service: str) -> None:
        self._due.pop(service, None)
        try:
            summary = await self.compare(service)
        except HeadraceError as error:
            summary = SkewSummary(service=service, rows=0, message=str(error))
        except Exception as error:
            summary = SkewSummary(service=service, rows=0, message=type(error).__name__)
            self.summaries[service], self.checked_at[service] = summary, self.clock.now()
            raise
        before = self.summaries.get(service)
        self.summaries[service] = summary
        self.checked_at[service] = self.clock.now()
        event = skew_event(before, summary, timestamp=self.clock.now())
        if event is None:
            return
        _LOG.log(logging.WARNING if summary.skewed else logging.INFO, event.message)
        await write_events(self.emit, [event])


def skew_event(before: SkewSummary | None, after: SkewSummary, *, timestamp: float) -> Event | None:
    """Return the event of a comparison if other features differ than last time; else None."""
    if after.message or not after.rows:
        return None
    previous = set() if before is None else {skew.feature for skew in before.skewed}
    names = [skew.feature for skew in after.skewed]
    if set(names) == previous:
        return None
    shown = ", ".join(
        f"{skew.feature} in {skew.differing} of {skew.rows} rows "
        f"({', '.join(f'{cause} {count}' for cause, count in skew.causes.items())})"
        for skew in after.skewed[:_SHOWN]
    )
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    message = f"features of '{after.service}' differ between serving and training:  "
    return Event(
        at=timestamp,
        endpoint="",
        kind="features",
        reason="FeatureSkew" if names else "FeatureSkewEnded",
        message=f"{message}{shown}{more}"
        if names
        else f"features of '{after.service}' match between serving and training again",
        data={"service": after.service, "features": names, "rows": after.rows},
    )


async def compare_served(
    service: str,
    *,
    home: Path,
    log: Path,
    timeout_s: float = _TIMEOUT_S,
    command: Sequence[str] | None = None,
) -> SkewSummary:
    """Run one comparison in a child process.

    Args:
        log: File to which its standard error is appended.
        command: Command line; None for `headrace.features.skew_process`.

    Raises:
        UnavailableError: The process could not be started, or failed.
    """
    lines: list[bytes] = []

    def is_result(line: bytes) -> bool:
        lines.append(line)
        return True

    ended = await run(
        command or python_module("headrace.features.skew_process", str(home), service),
        timeout_s=timeout_s,
        log=log,
        on_line=is_result,
    )
    if ended.exceeded is Exceeded.TIME:
        raise UnavailableError(f"the comparison exceeded {timeout_s:g} s and was stopped")
    try:
        return msgspec.json.decode(b"".join(lines), type=SkewSummary)
    except UNDECODABLE:
        msg = f"the process exited with status {ended.status}; see {log}"
        raise UnavailableError(msg) from None


class ServedFeaturesStore:
    """Writes a directory of bounded size for each service. For one thread at a time."""

    def __init__(self, home: Path) -> None:
        self.written = 0
        self.dropped = 0
        self._home = home
        self._files: dict[str, ServedFile] = {}

    def append(self, service: str, lines: Sequence[str]) -> None:
        """Write lines; those that cannot be written are dropped and counted."""
        from headrace.features import served_directory  # noqa: PLC0415  # few need it
        from headrace.features.served_writer import ServedFile  # noqa: PLC0415  # few need it

        if service not in self._files:
            self._files[service] = ServedFile(served_directory(self._home, service))
        try:
            self._files[service].append("".join(f"{line}\n" for line in lines).encode())
        except OSError as error:
            if not self.dropped:
                extra = {"service": service, "error": str(error)}
                _LOG.error("cannot store served features", extra=extra)
            self.dropped += len(lines)
        else:
            self.written += len(lines)
