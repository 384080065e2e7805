"""How soon does a stream's worker answer over each broker, and how fast does it drain a backlog?

The worker is its own process, as the control plane starts it: records are JSON, scored by a small
model in ONNX Runtime. Latency is taken in an open loop, from the moment a record was due to be sent
until a consumer of the sink has its answer. `bench.brokers` tells which servers these are.
"""

import http.client
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final
from uuid import uuid4

import msgspec

from bench import cpu, processes
from bench.brokers import BROKERS, NoBrokerError
from bench.context import Context
from bench.results import SuiteResult, Table, Target, cell
from bench.windows import Arm, Figures, Rounds, figure, interleave
from headrace.core import ReplicaSettings
from headrace.core.spec.stream_parts import FailurePolicy, StreamErrorsSpec, StreamOutputSpec
from headrace.streaming.broker import Broker, Delivery, Membership, StartPosition
from headrace.streaming.brokers import open_broker
from headrace.streaming.records import NewRecord, TopicPartition
from headrace.streaming.settings import StreamStatus, WorkerSettings, WorkerState
from headrace.testing import models

BACKLOG: Final = {"log": 200_000, "kafka": 100_000, "nats": 40_000, "redis": 40_000}
"""Some seconds' worth of each."""
RATES: Final = (200, 2000)
PER_CORE: Final = 100_000.0
P99_MS: Final = {Delivery.AT_LEAST_ONCE: 20.0, Delivery.EXACTLY_ONCE: 50.0}
_MAX_CONCURRENT: Final = 2000
_SOURCE: Final = "backlog"
_TICK_S: Final = 0.001
_WARM_UP_S: Final = 1.0
_LONGEST_S: Final = 120.0


def run(context: Context) -> SuiteResult:
    """Each broker by itself: records that come at a rate, then a backlog."""
    model = context.home / "m.onnx"
    model.write_bytes(models.matmul())
    taken: Rounds = {}
    notes: list[str] = []
    for name, server in BROKERS.items():
        try:
            with server(context) as url:
                taken = {**taken, **_over(context, name, url, model)}
        except NoBrokerError as error:
            notes.append(f"{name} left out: {error}")
    return SuiteResult(
        name="worker", table=_table(taken), targets=_targets(taken), notes=notes, rounds=taken
    )


def _over(context: Context, name: str, url: str, model: Path) -> Rounds:
    rig = Rig(context=context, url=url, model=model)
    count = BACKLOG[name] // 10 if context.quick else BACKLOG[name]
    arms = [
        Arm(name=_paced(name, delivery, rate), measure=partial(rig.latency, delivery, rate))
        for delivery in Delivery
        for rate in RATES
    ]
    rounds = interleave(arms, rounds=context.rounds)
    rig.fill(count)
    drains = [
        Arm(name=_drained(name, delivery), measure=partial(rig.drain, delivery, count))
        for delivery in Delivery
    ]
    return {**rounds, **interleave(drains, rounds=context.rounds)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Rig:
    """One broker, and the model that scores what is in it."""

    context: Context
    url: str
    model: Path

    def latency(self, delivery: Delivery, rate: int) -> Figures:
        """In milliseconds."""
        told = self.settings(delivery, topic=_new(), start=StartPosition.EARLIEST)
        with self._broker() as broker:
            broker.create_topic(told.topics[0])
            broker.create_topic(told.sink)
            with self.worker(told) as worker:
                worker.wait(
                    lambda status: status.state is WorkerState.RUNNING and bool(status.partitions)
                )
                took = self._pass_through(broker, told, rate)
        took.sort()
        return {"p50_ms": _at(took, 0.5), "p99_ms": _at(took, 0.99)}

    def fill(self, count: int) -> None:
        """Write the backlog that each drain reads."""
        with self._broker() as broker:
            broker.create_topic(_SOURCE)
            for begin in range(0, count, _MAX_CONCURRENT):
                broker.send(
                    [
                        _record(_SOURCE, at)
                        for at in range(begin, min(begin + _MAX_CONCURRENT, count))
                    ]
                )

    def drain(self, delivery: Delivery, count: int, *, topic: str = _SOURCE) -> Figures:
        """Records a second, of the clock and of a core; from when they may be taken."""
        told = self.settings(delivery, topic=topic, start=StartPosition.EARLIEST, paused=True)
        with self._broker() as broker:
            broker.create_topic(told.sink)
            with self.worker(told) as worker:
                worker.wait(
                    lambda status: status.state is WorkerState.PAUSED and bool(status.partitions)
                )
                began, cpu_began = time.perf_counter(), cpu.process_s(worker.pid)
                worker.resume()
                # Asked of the broker: the worker would answer on the measured core, and what it
                # has handed to the broker's client is not there yet.
                deadline = time.monotonic() + _LONGEST_S
                while sum(end for _, end in broker.ends(told.sink).values()) < count:
                    if time.monotonic() > deadline:
                        raise processes.StartError("the worker does not drain the backlog")
                    time.sleep(0.02)
                took_s = time.perf_counter() - began
                cpu_s = cpu.process_s(worker.pid) - cpu_began
        return {"per_s": count / took_s, "per_core_s": count / cpu_s}

    @contextmanager
    def _broker(self) -> Iterator[Broker]:
        broker = open_broker(self.url, home=self.context.home)
        try:
            yield broker
        finally:
            broker.close()

    def settings(
        self, delivery: Delivery, *, topic: str, start: StartPosition, paused: bool = False
    ) -> WorkerSettings:
        name = _new()
        return WorkerSettings(
            name="bench",
            broker=self.url,
            topics=[topic],
            group=name,
            member="one",
            sink=f"{name}-answers",
            model=ReplicaSettings(model_name="m", model_version="1", path=str(self.model)),
            output=StreamOutputSpec(fields=["at"]),
            errors=StreamErrorsSpec(policy=FailurePolicy.STOP),
            delivery=delivery,
            start=start,
            paused=paused,
            home=str(self.context.home),
            uds=str(self.context.home / f"{name}.sock"),
        )

    @contextmanager
    def worker(self, told: WorkerSettings) -> Iterator["_Worker"]:
        file = self.context.home / f"{told.group}.json"
        file.write_bytes(msgspec.json.encode(told))
        argv = [sys.executable, "-m", "headrace.streaming", "--settings", str(file)]
        with processes.running(
            argv,
            part="worker",
            cores=self.context.placement.server,
            log=self.context.home / f"{told.group}.log",
            is_ready=Path(told.uds).exists,
        ) as process:
            yield _Worker(uds=told.uds, pid=process.pid)

    def _pass_through(self, broker: Broker, told: WorkerSettings, rate: int) -> list[float]:
        """How long each took that was sent after the warm-up, in milliseconds."""
        count = round(rate * (self.context.seconds + _WARM_UP_S))
        reader = broker.join(
            Membership(
                group=_new(), member="reader", topics=(told.sink,), start=StartPosition.EARLIEST
            ),
            _Silent(),
        )
        try:
            reader.poll(1, 0.2)  # who reads is there before anything is sent
            sender = threading.Thread(target=self._send, args=(told.topics[0], rate, count))
            sender.start()
            took: dict[int, float] = {}
            deadline = time.monotonic() + _LONGEST_S
            while len(took) < count:
                found = reader.poll(_MAX_CONCURRENT, 0.5)
                now = time.monotonic_ns()
                for record in found:
                    at = msgspec.json.decode(record.value or b"", type=_Answer).at
                    took.setdefault(at, (now - at) / 1e6)
                if found:
                    reader.produce([], {found[-1].topic_partition: found[-1].offset + 1})
                if time.monotonic() > deadline:
                    raise processes.StartError(f"{len(took)} of {count} answers came")
            sender.join()
        finally:
            reader.close()
        warm = sorted(took)[round(rate * _WARM_UP_S)]
        return [ms for at, ms in took.items() if at >= warm]

    def _send(self, topic: str, rate: int, count: int) -> None:
        """Records bear the moment at which they were due, however late they are sent."""
        with self._broker() as broker:
            begin, sent = time.monotonic_ns(), 0
            while sent < count:
                due = min(count, 1 + (time.monotonic_ns() - begin) * rate // 10**9)
                if due == sent:
                    time.sleep(_TICK_S)
                    continue
                broker.send(
                    [_record(topic, begin + number * 10**9 // rate) for number in range(sent, due)]
                )
                sent = due


class _Answer(msgspec.Struct):
    at: int


class _Silent:
    """Keeps no state of its own."""

    def on_assigned(
        self,
        partitions: Sequence[TopicPartition],  # noqa: ARG002  # the protocol's
    ) -> Mapping[TopicPartition, int] | None:
        return None

    def on_revoked(self, partitions: Sequence[TopicPartition]) -> None: ...
    def on_lost(self, partitions: Sequence[TopicPartition]) -> None: ...


class _Unix(http.client.HTTPConnection):
    def connect(self) -> None:  # as the base class names it
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(self.host)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Worker:
    uds: str
    pid: int

    def wait(self, holds: Callable[[StreamStatus], bool]) -> None:
        """Until its status is so; asked rarely, as the worker answers on the measured core."""
        deadline = time.monotonic() + _LONGEST_S
        while not holds(msgspec.json.decode(self._ask("GET", "status"), type=StreamStatus)):
            if time.monotonic() > deadline:
                raise processes.StartError("the worker does not get there")
            time.sleep(0.02)

    def resume(self) -> None:
        self._ask("POST", "resume")

    def _ask(self, method: str, what: str) -> bytes:
        connection = _Unix(self.uds)
        try:
            connection.request(method, f"/internal/{what}")
            return connection.getresponse().read()
        finally:
            connection.close()


def _record(topic: str, at: int) -> NewRecord:
    value = b'{"x":[%d.5,2.25,-1.5,0.125],"at":%d}' % (at % 100, at)
    return NewRecord(topic=topic, key=None, value=value)


def _new() -> str:
    return f"t-{uuid4().hex[:12]}"


def _at(ordered: Sequence[float], share: float) -> float:
    return ordered[min(round(share * len(ordered)), len(ordered) - 1)]


def _paced(broker: str, delivery: Delivery, rate: int) -> str:
    return f"{broker}, {delivery}, {rate}/s"


def _drained(broker: str, delivery: Delivery) -> str:
    return f"{broker}, {delivery}, backlog"


def _table(rounds: Rounds) -> Table:
    rows = []
    for name, windows in rounds.items():
        if "p99_ms" in windows[0].figures:
            times = [cell(figure(rounds, name, key), 1) for key in ("p50_ms", "p99_ms")]
            rows.append([name, *times, "", ""])
        else:
            speeds = [cell(figure(rounds, name, key)) for key in ("per_s", "per_core_s")]
            rows.append([name, "", "", *speeds])
    return Table(
        headings=["arm", "p50 ms", "p99 ms", "records/s", "records/s of a core"], rows=rows
    )


def _targets(rounds: Rounds) -> list[Target]:
    targets = [
        Target(
            text=f"in to out, {name}, p99",
            value=figure(rounds, name, "p99_ms").median,
            limit=P99_MS[delivery],
            unit="ms",
            is_ceiling=True,
        )
        for delivery in Delivery
        for rate in RATES
        for broker in BROKERS
        if (name := _paced(broker, delivery, rate)) in rounds
    ]
    name = _drained("log", Delivery.AT_LEAST_ONCE)
    if name in rounds:
        value = figure(rounds, name, "per_core_s").median
        text = "drain of the log, of one core"
        targets.append(Target(text=text, value=value, limit=PER_CORE, unit="records/s"))
    return targets
