"""What the control plane tells replicas to record, and what becomes of what they hand out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import msgspec
import pytest

from headrace.control.model.observed import Replica, ReplicaPhase
from headrace.control.telemetry.recorded_requests import Recordings
from headrace.core import UnavailableError
from headrace.core.fetch import FetchResponse
from headrace.core.spec.observe import PayloadLogSpec
from headrace.observe.spans import SpanContext, SpanRecord
from headrace.serving.telemetry.report import (
    FeaturesPage,
    PayloadSample,
    RecordingSettings,
    SamplesPage,
    SpansPage,
)
from tests.metrics import exposed

pytestmark = pytest.mark.anyio

LOG = PayloadLogSpec(sample_ratio=0.5, drop=("input.x",))
SPAN = SpanRecord(SpanContext("a" * 32, "b" * 16), "c" * 16, "infer m", 1.0, 2.0)
SAMPLE = PayloadSample(
    request_id="r", trace_id="", caller="", at=1.0, duration_s=0.1, code="OK", inputs=[], outputs=[]
)
ALPHA = Replica(
    name="m-1",
    serial=1,
    endpoint="m",
    version="1",
    revision_id="r",
    address="unix:/m-1",
    phase=ReplicaPhase.READY,
    since=0.0,
    pid=1,
)


@dataclass
class World:
    """Replicas that answer as they are told to, and what was done with it."""

    replicas: list[Replica] = field(default_factory=lambda: [ALPHA])
    logs: dict[str, PayloadLogSpec] = field(default_factory=dict)
    spans: list[SpanRecord] = field(default_factory=list)
    samples: list[PayloadSample] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    ratios: dict[str, float] = field(default_factory=dict)
    kept: list[tuple[str, str]] = field(default_factory=list)
    spans_lost: int = 0
    samples_lost: int = 0
    is_silent: bool = False
    collector_takes: bool = True
    now: float = 0.0
    told: list[RecordingSettings] = field(default_factory=list)
    asked: int = 0
    sent: list[SpanRecord] = field(default_factory=list)
    written: list[tuple[str, str, str]] = field(default_factory=list)
    dropped: dict[str, int] = field(default_factory=dict)

    async def ask(
        self,
        address: str,
        path: str,
        *,
        timeout_s: float,
        method: str = "GET",
        headers: Mapping[str, str] | None = None,
        body: bytes = b"",
    ) -> FetchResponse:
        self.asked += 1
        if self.is_silent:
            raise UnavailableError(f"{address} {method} {headers} {timeout_s}")
        what, _, query = path.removeprefix("/internal/").partition("?")
        after = int(query.partition("after=")[2].partition("&")[0] or 0)
        if what == "record":
            self.told.append(msgspec.json.decode(body, type=RecordingSettings))
            page = b"{}"
        elif what == "features":
            lines = self.lines[after : after + 2]
            page = msgspec.json.encode(
                FeaturesPage(cursor=after + len(lines), service="fraud", lines=lines)
            )
        elif what == "spans":
            spans = self.spans[after : after + 2]
            page = msgspec.json.encode(
                SpansPage(cursor=after + len(spans), spans=spans, dropped=self.spans_lost)
            )
        else:
            samples = self.samples[after : after + 2]
            page = msgspec.msgpack.encode(
                SamplesPage(cursor=after + len(samples), samples=samples, dropped=self.samples_lost)
            )
        return FetchResponse(status=200, headers={}, body=page)

    def export(self, records: Sequence[SpanRecord]) -> bool:
        self.sent += records if self.collector_takes else []
        return self.collector_takes

    def add(
        self,
        endpoint: str,
        version: str,
        settings: PayloadLogSpec,
        samples: Sequence[PayloadSample],
    ) -> None:
        assert settings == self.logs[endpoint]
        self.written += [(endpoint, version, sample.request_id) for sample in samples]

    def append(self, service: str, lines: Sequence[str]) -> None:
        self.kept += [(service, line) for line in lines]

    def lost(self, endpoint: str, count: int) -> None:
        self.dropped[endpoint] = self.dropped.get(endpoint, 0) + count

    def recordings(self, *, traces: bool = False) -> Recordings:
        return Recordings(
            replicas=lambda: self.replicas,
            payload_logs=lambda: self.logs,
            payloads=self,
            monotonic=lambda: self.now,
            features=self,
            features_ratios=lambda: self.ratios,
            spans=self if traces else None,
            ask=self.ask,
        )


async def turn(recordings: Recordings) -> None:
    await recordings.send_settings()
    await recordings.fetch_spans()
    await recordings.fetch_payloads()


async def test_nobody_is_asked_while_nothing_is_wanted() -> None:
    world = World()
    recordings = world.recordings()

    await turn(recordings)

    assert world.asked == 0
    assert not exposed(recordings.families())


async def test_a_replica_is_told_once_and_again_when_its_process_is_another() -> None:
    world = World(logs={"m": LOG})
    recordings = world.recordings(traces=True)

    await turn(recordings)
    await turn(recordings)
    world.replicas = [replace(ALPHA, pid=2)]
    await turn(recordings)

    assert world.told == [RecordingSettings(traces=True, sample_ratio=0.5, drop=("input.x",))] * 2


async def test_a_replica_is_reminded_now_and_then() -> None:
    world = World(logs={"m": LOG})
    recordings = world.recordings()

    await turn(recordings)
    world.now = 31.0
    await turn(recordings)

    assert len(world.told) == 2


async def test_a_log_that_is_turned_off_ends_the_recording() -> None:
    world = World(logs={"m": LOG})
    recordings = world.recordings()

    await turn(recordings)
    world.logs.clear()
    await turn(recordings)
    asked = world.asked
    world.now = 100.0
    await turn(recordings)

    assert world.told[-1] == RecordingSettings()
    assert world.asked == asked


async def test_everything_is_fetched_and_nothing_twice() -> None:
    samples = [msgspec.structs.replace(SAMPLE, request_id=name) for name in "abcde"]
    world = World(logs={"m": LOG}, spans=[SPAN] * 5, samples=samples)
    recordings = world.recordings(traces=True)

    await turn(recordings)
    await turn(recordings)

    assert world.written == [("m", "1", name) for name in "abcde"]
    assert world.sent == [SPAN] * 5
    assert "headrace_spans_sent_total 5" in exposed(recordings.families())


async def test_what_a_replica_lost_is_counted_once() -> None:
    world = World(logs={"m": LOG}, samples_lost=3, spans_lost=2)
    recordings = world.recordings(traces=True)

    await turn(recordings)
    world.samples_lost = 4
    await turn(recordings)
    await turn(recordings)

    assert world.dropped == {"m": 4}
    assert "headrace_spans_dropped_total 2" in exposed(recordings.families())


async def test_spans_that_the_collector_refuses_are_counted() -> None:
    world = World(spans=[SPAN], collector_takes=False)
    recordings = world.recordings(traces=True)

    await turn(recordings)

    assert "headrace_spans_dropped_total 1" in exposed(recordings.families())
    assert "headrace_spans_sent_total 0" in exposed(recordings.families())


async def test_a_replica_that_is_silent_is_asked_again() -> None:
    world = World(logs={"m": LOG}, samples=[SAMPLE], is_silent=True)
    recordings = world.recordings()

    await turn(recordings)
    world.is_silent = False
    await turn(recordings)

    assert world.written == [("m", "1", "r")]


async def test_a_replica_that_left_is_forgotten() -> None:
    world = World(logs={"m": LOG})
    recordings = world.recordings()

    await turn(recordings)
    world.replicas = []
    await turn(recordings)
    world.replicas = [ALPHA]
    await turn(recordings)

    assert len(world.told) == 2


async def test_features_that_were_served_are_fetched_once_and_kept() -> None:
    world = World(ratios={"m": 0.25}, lines=["one", "two", "three"])
    recordings = world.recordings()
    await recordings.send_settings()
    await recordings.fetch_features()
    await recordings.fetch_features()
    assert world.told == [RecordingSettings(features_ratio=0.25)]
    assert world.kept == [("fraud", "one"), ("fraud", "two"), ("fraud", "three")]

    world.ratios = {}
    await recordings.send_settings()
    world.lines.append("four")
    await recordings.fetch_features()
    assert world.told[-1] == RecordingSettings()
    assert len(world.kept) == 3
