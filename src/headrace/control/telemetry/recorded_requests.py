"""Recordings of single requests, read from replicas and passed on.

Replicas have no network and no files: they keep spans and payloads for some seconds, and the
control plane comes for them. While it is away they keep what fits and count the rest.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol, TypeVar

import msgspec

from headrace.control.base.faults import LOOP, Faults
from headrace.control.desired.target import TargetState
from headrace.control.model.desired import POOL_PREFIX
from headrace.control.model.observed import Replica, ReplicaPhase
from headrace.control.reconcile.pools import hosted_replicas
from headrace.core import HeadraceError
from headrace.core.error_kind import UNDECODABLE
from headrace.core.fetch import FetchResponse, fetch
from headrace.core.spec.observe import PayloadLogSpec
from headrace.observe.metrics import Family, counter
from headrace.observe.spans import SpanRecord
from headrace.serving.telemetry.report import (
    FeaturesPage,
    PayloadSample,
    RecordingSettings,
    SamplesPage,
    SpansPage,
)

_LOG: Final = logging.getLogger("headrace.control")
_INTERVAL_S: Final = 1.0
_RESEND_INTERVAL_S: Final = 30.0
"""A pool makes a model anew, and that one was told nothing."""
_TIMEOUT_S: Final = 2.0
_AT_ONCE: Final = 16
_MOST_PAGES: Final = 100
_HTTP_OK: Final = 200
_NOTHING: Final = RecordingSettings()

PageT = TypeVar("PageT", SpansPage, SamplesPage, FeaturesPage)


class SpanSink(Protocol):
    """Where spans go. Blocking."""

    def export(self, records: Sequence[SpanRecord]) -> bool:
        """Whether they arrived."""


class PayloadSink(Protocol):
    """Where payloads go; never waits."""

    def add(
        self,
        endpoint: str,
        version: str,
        settings: PayloadLogSpec,
        samples: Sequence[PayloadSample],
    ) -> None:
        """Take samples, or drop and count them."""

    def lost(self, endpoint: str, count: int) -> None:
        """Count samples that were dropped before they came."""


class FeatureSink(Protocol):
    """Where served features go. Blocking."""

    def append(self, service: str, lines: Sequence[str]) -> None:
        """Keep lines of `headrace.features.ServedRow`, or drop and count them."""


@dataclass(slots=True)
class _Acknowledged:
    """What a replica's process was told, and how far it was read."""

    process: int
    recording: RecordingSettings
    sent_at: float
    cursor: dict[str, int] = field(default_factory=dict)
    dropped: dict[str, int] = field(default_factory=dict)


@dataclass(slots=True, kw_only=True)
class Recordings:
    """Tells replicas what to record, and fetches it every second."""

    replicas: Callable[[], Iterable[Replica]]
    """Those that are ready."""
    payload_logs: Callable[[], Mapping[str, PayloadLogSpec]]
    """By endpoint; of others nothing is kept."""
    payloads: PayloadSink
    monotonic: Callable[[], float]
    """The clock."""
    features: FeatureSink | None = None
    """Where what was served goes."""
    features_ratios: Callable[[], Mapping[str, float]] = dict
    """By endpoint; of others nothing is kept."""
    spans: SpanSink | None = None
    """None where nothing is traced."""
    ask: Callable[..., Awaitable[FetchResponse]] = fetch
    """How a replica is asked."""
    faults: Faults = field(default_factory=Faults)
    spans_sent: int = 0
    spans_dropped: int = 0
    _was_taken: bool = True
    _acknowledged_by: dict[str, _Acknowledged] = field(default_factory=dict)
    _asking: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(_AT_ONCE))

    async def run(self) -> None:
        """Fetch until cancelled. A collector that is slow holds up no payload."""
        async with asyncio.TaskGroup() as group:
            for turn in (
                self.send_settings,
                self.fetch_spans,
                self.fetch_payloads,
                self.fetch_features,
            ):
                group.create_task(self._every_second(turn))

    async def _every_second(self, turn: Callable[[], Awaitable[None]]) -> None:
        while True:
            with self.faults.contain(LOOP, f"recordings: {turn.__name__}"):
                await turn()
            await asyncio.sleep(_INTERVAL_S)

    async def send_settings(self) -> None:
        """Tell each replica once what to record."""
        logs, ratios = self.payload_logs(), self.features_ratios()
        if self.spans is None and not logs and not ratios and not self._acknowledged_by:
            return
        replicas = list(self.replicas())
        for name in self._acknowledged_by.keys() - {replica.name for replica in replicas}:
            del self._acknowledged_by[name]
        updates = []
        for replica in replicas:
            log = logs.get(replica.endpoint)
            recording = RecordingSettings(
                traces=self.spans is not None,
                sample_ratio=0.0 if log is None else log.sample_ratio,
                drop=() if log is None else log.drop,
                features_ratio=ratios.get(replica.endpoint, 0.0),
            )
            updates.append(self._send_settings(replica, recording))
        await asyncio.gather(*updates)

    async def fetch_spans(self) -> None:
        """Fetch all spans and send them on."""
        if self.spans is None:
            return
        replicas = [r for r in self.replicas() if self._acknowledged(r).traces]
        pages = await self._pages(replicas, "spans", msgspec.json.Decoder(SpansPage).decode)
        spans = [span for _, page in pages for span in page.spans]
        self.spans_dropped += sum(lost for (_, lost), _ in pages)
        if not spans:
            return
        taken = await asyncio.to_thread(self.spans.export, spans)
        if taken:
            self.spans_sent += len(spans)
        else:
            self.spans_dropped += len(spans)
        if taken != self._was_taken:  # once, not every second
            self._was_taken = taken
            _LOG.warning("the collector accepts spans %s", "again" if taken else "no more")

    async def fetch_payloads(self) -> None:
        """Fetch all samples and hand them to who writes them."""
        if not self._acknowledged_by:
            return
        replicas = [r for r in self.replicas() if self._acknowledged(r).sample_ratio > 0]
        logs = self.payload_logs()
        for (replica, lost), page in await self._pages(
            replicas, "samples", msgspec.msgpack.Decoder(SamplesPage).decode
        ):
            settings = logs.get(replica.endpoint)
            if lost:
                self.payloads.lost(replica.endpoint, lost)
            if settings is not None and page.samples:
                self.payloads.add(replica.endpoint, replica.version, settings, page.samples)

    async def fetch_features(self) -> None:
        """Fetch what features were served, and keep it."""
        if self.features is None or not self._acknowledged_by:
            return
        replicas = [r for r in self.replicas() if self._acknowledged(r).features_ratio > 0]
        for _, page in await self._pages(
            replicas, "features", msgspec.json.Decoder(FeaturesPage).decode
        ):
            if page.lines:
                await asyncio.to_thread(self.features.append, page.service, page.lines)

    def families(self) -> list[Family]:
        """How many spans went on, and how many were lost."""
        if self.spans is None:
            return []
        return [
            counter(
                "headrace_spans_sent_total",
                "Spans that the collector accepted.",
                [((), self.spans_sent)],
            ),
            counter(
                "headrace_spans_dropped_total",
                "Spans that were lost: they arrived too fast, or the collector rejected them.",
                [((), self.spans_dropped)],
            ),
        ]

    def _acknowledged(self, replica: Replica) -> RecordingSettings:
        state = self._acknowledged_by.get(replica.name)
        return _NOTHING if state is None else state.recording

    async def _send_settings(self, replica: Replica, recording: RecordingSettings) -> None:
        now = self.monotonic()
        state = self._acknowledged_by.get(replica.name)
        is_new = state is None or state.process != replica.process
        before = _NOTHING if state is None or is_new else state.recording
        is_due = (
            recording != _NOTHING
            and state is not None
            and now - state.sent_at >= _RESEND_INTERVAL_S
        )
        if recording == before and not is_due:
            return
        async with self._asking:
            try:
                answer = await self.ask(
                    replica.address,
                    f"/internal/record?{replica.query}",
                    timeout_s=_TIMEOUT_S,
                    method="PUT",
                    headers={"content-type": "application/json"},
                    body=msgspec.json.encode(recording),
                )
            except HeadraceError:
                return  # it is asked again in a second
        if answer.status != _HTTP_OK:
            return
        if state is None or is_new:
            self._acknowledged_by[replica.name] = _Acknowledged(replica.process, recording, now)
        else:
            state.recording, state.sent_at = recording, now

    async def _pages(
        self, replicas: Iterable[Replica], what: str, decode: Callable[[bytes], PageT]
    ) -> list[tuple[tuple[Replica, int], PageT]]:
        """Everything that replicas hold, with how much each lost since the last time."""
        results = await asyncio.gather(*(self._of(replica, what, decode) for replica in replicas))
        return [page for pages in results for page in pages]

    async def _of(
        self, replica: Replica, what: str, decode: Callable[[bytes], PageT]
    ) -> list[tuple[tuple[Replica, int], PageT]]:
        state = self._acknowledged_by.get(replica.name)
        if state is None:
            return []
        pages: list[tuple[tuple[Replica, int], PageT]] = []
        async with self._asking:
            for _ in range(_MOST_PAGES):
                after = state.cursor.get(what, 0)
                path = f"/internal/{what}?after={after}&{replica.query}"
                try:
                    answer = await self.ask(replica.address, path, timeout_s=_TIMEOUT_S)
                    if answer.status != _HTTP_OK:
                        break
                    page = decode(answer.body)
                except (HeadraceError, *UNDECODABLE):
                    break
                lost = max(page.dropped - state.dropped.get(what, 0), 0)
                state.dropped[what] = page.dropped
                if page.cursor == after and not lost:
                    break
                state.cursor[what] = page.cursor
                pages.append(((replica, lost), page))
        return pages


def recorded_replicas(target_state: TargetState) -> Iterator[Replica]:
    """Replicas that may record: those that are ready, and models that pools host."""
    reconciler = target_state.reconciler
    ready = [
        replica for replica in reconciler.replicas.values() if replica.phase is ReplicaPhase.READY
    ]
    yield from (replica for replica in ready if not replica.endpoint.startswith(POOL_PREFIX))
    copies = [replica for replica in ready if replica.endpoint.startswith(POOL_PREFIX)]
    for endpoint in reconciler.desired.endpoints if copies else ():
        yield from hosted_replicas(endpoint, copies, reconciler.hosted)
