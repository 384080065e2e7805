"""Recordings of single requests, fetched from replicas and forwarded.

Replicas have no network and no files: they buffer spans and payloads for some seconds, and the
control plane fetches them. Without a control plane they drop and count what exceeds the buffer.
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
"""Seconds between resends of settings: a pool may reload a model, which loses them."""
_TIMEOUT_S: Final = 2.0
_MAX_CONCURRENT: Final = 16
_MAX_PAGES: Final = 100
_HTTP_OK: Final = 200
_NOTHING: Final = RecordingSettings()

PageT = TypeVar("PageT", SpansPage, SamplesPage, FeaturesPage)


class SpanSink(Protocol):
    """Receiver of spans. Blocking."""

    def export(self, records: Sequence[SpanRecord]) -> bool:
        """Export spans; return whether the receiver accepted them."""


class PayloadSink(Protocol):
    """Receiver of payloads; never blocks."""

    def add(
        self,
        endpoint: str,
        version: str,
        settings: PayloadLogSpec,
        samples: Sequence[PayloadSample],
    ) -> None:
        """Add samples, or drop and count them."""

    def lost(self, endpoint: str, count: int) -> None:
        """Count samples that a replica dropped."""


class FeatureSink(Protocol):
    """Receiver of served features. Blocking."""

    def append(self, service: str, lines: Sequence[str]) -> None:
        """Store lines of `headrace.features.ServedRow`, or drop and count them."""


@dataclass(slots=True)
class _Acknowledged:
    """Settings that a replica's process acknowledged, and its read positions."""

    process: int
    recording: RecordingSettings
    sent_at: float
    cursor: dict[str, int] = field(default_factory=dict)
    dropped: dict[str, int] = field(default_factory=dict)


@dataclass(slots=True, kw_only=True)
class Recordings:
    """Sends recording settings to replicas, and fetches recordings every second."""

    replicas: Callable[[], Iterable[Replica]]
    """Returns the ready replicas."""
    payload_logs: Callable[[], Mapping[str, PayloadLogSpec]]
    """Returns the payload logs by endpoint; other endpoints have none."""
    payloads: PayloadSink
    monotonic: Callable[[], float]
    """Monotonic clock in seconds."""
    features: FeatureSink | None = None
    """Receiver of served features; None if they are not recorded."""
    features_ratios: Callable[[], Mapping[str, float]] = dict
    """Returns the ratios of recorded features by endpoint; other endpoints record none."""
    spans: SpanSink | None = None
    """Receiver of spans; None without tracing."""
    ask: Callable[..., Awaitable[FetchResponse]] = fetch
    """Sends a request to a replica."""
    faults: Faults = field(default_factory=Faults)
    spans_sent: int = 0
    spans_dropped: int = 0
    _was_taken: bool = True
    _acknowledged_by: dict[str, _Acknowledged] = field(default_factory=dict)
    _asking: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(_MAX_CONCURRENT))

    async def run(self) -> None:
        """Fetch recordings until cancelled. A slow trace collector does not delay payloads."""
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
        """Send each replica its recording settings once."""
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
        """Fetch all spans and export them."""
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
        if taken != self._was_taken:  # log once, not every second
            self._was_taken = taken
            _LOG.warning("the collector accepts spans %s", "again" if taken else "no more")

    async def fetch_payloads(self) -> None:
        """Fetch all samples and pass them to the payload sink."""
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
        """Fetch served features and store them."""
        if self.features is None or not self._acknowledged_by:
            return
        replicas = [r for r in self.replicas() if self._acknowledged(r).features_ratio > 0]
        for _, page in await self._pages(
            replicas, "features", msgspec.json.Decoder(FeaturesPage).decode
        ):
            if page.lines:
                await asyncio.to_thread(self.features.append, page.service, page.lines)

    def families(self) -> list[Family]:
        """Return the counts of exported and lost spans as metrics."""
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
                return  # retried after 1 s
        if answer.status != _HTTP_OK:
            return
        if state is None or is_new:
            self._acknowledged_by[replica.name] = _Acknowledged(replica.process, recording, now)
        else:
            state.recording, state.sent_at = recording, now

    async def _pages(
        self, replicas: Iterable[Replica], description: str, decode: Callable[[bytes], PageT]
    ) -> list[tuple[tuple[Replica, int], PageT]]:
        """Return all recordings that replicas hold, each with the loss since the last call."""
        results = await asyncio.gather(
            *(self._of(replica, description, decode) for replica in replicas)
        )
        return [page for pages in results for page in pages]

    async def _of(
        self, replica: Replica, description: str, decode: Callable[[bytes], PageT]
    ) -> list[tuple[tuple[Replica, int], PageT]]:
        state = self._acknowledged_by.get(replica.name)
        if state is None:
            return []
        pages: list[tuple[tuple[Replica, int], PageT]] = []
        async with self._asking:
            for _ in range(_MAX_PAGES):
                after = state.cursor.get(description, 0)
                path = f"/internal/{description}?after={after}&{replica.query}"
                try:
                    answer = await self.ask(replica.address, path, timeout_s=_TIMEOUT_S)
                    if answer.status != _HTTP_OK:
                        break
                    page = decode(answer.body)
                except (HeadraceError, *UNDECODABLE):
                    break
                lost = max(page.dropped - state.dropped.get(description, 0), 0)
                state.dropped[description] = page.dropped
                if page.cursor == after and not lost:
                    break
                state.cursor[description] = page.cursor
                pages.append(((replica, lost), page))
        return pages


def recorded_replicas(target_state: TargetState) -> Iterator[Replica]:
    """Yield replicas that may record: ready ones, and models that pools host."""
    reconciler = target_state.reconciler
    ready = [
        replica for replica in reconciler.replicas.values() if replica.phase is ReplicaPhase.READY
    ]
    yield from (replica for replica in ready if not replica.endpoint.startswith(POOL_PREFIX))
    copies = [replica for replica in ready if replica.endpoint.startswith(POOL_PREFIX)]
    for endpoint in reconciler.desired.endpoints if copies else ():
        yield from hosted_replicas(endpoint, copies, reconciler.hosted)
