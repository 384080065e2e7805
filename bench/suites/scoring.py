"""Cost and latency of a stream's worker beside a loop written by hand, on one Kafka.

Both score the same JSON records with the same small model (a matrix product of four features) in
ONNX Runtime and promise the same delivery; see `bench.scoring_loop`. They run in turn on the same
core and the same broker. Latency is taken in an open loop by plain clients, from the moment a
record was due to be sent until a consumer of the sink has its answer. `KAFKA_BOOTSTRAP=HOST:PORT`
measures another cluster than the broker of `bench.brokers`.
"""

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit
from uuid import uuid4

import msgspec
from confluent_kafka import Consumer, Producer

from bench import processes
from bench.brokers import BROKERS, NoBrokerError
from bench.context import Context
from bench.results import SuiteResult, Table, Target, cell
from bench.suites.worker import Rig
from bench.windows import Arm, Figures, Rounds, figure, interleave, ratio
from headrace.streaming.broker import Delivery, StartPosition
from headrace.streaming.brokers import open_broker
from headrace.streaming.settings import WorkerState
from headrace.testing import models

RECORDS: Final = 600_000
RATES: Final = (200, 1000)
COST_OF_HAND: Final = {Delivery.AT_LEAST_ONCE: 0.85, Delivery.EXACTLY_ONCE: 0.9}
"""So much of the hand-written loop's records per CPU second is asked for."""
P50_OF_HAND: Final = {Delivery.AT_LEAST_ONCE: 1.3, Delivery.EXACTLY_ONCE: 1.0}
"""So much of its p50 at 1,000 records a second is allowed."""
_WARM_UP_S: Final = 1.0
_LONGEST_S: Final = 120.0
_SOURCE: Final = "scoring-backlog"


class _Answer(msgspec.Struct):
    at: int


def run(context: Context) -> SuiteResult:
    """Records that come at a rate, then a backlog; ours and by hand in turn."""
    model = context.home / "m.onnx"
    model.write_bytes(models.matmul())
    try:
        with BROKERS["kafka"](context) as url:
            rounds = _over(_Bench(context=context, url=url, model=model))
    except NoBrokerError as error:
        return SuiteResult(name="scoring", skipped=str(error))
    return SuiteResult(
        name="scoring", table=_table(rounds), targets=_targets(rounds), rounds=rounds
    )


def _over(bench: "_Bench") -> Rounds:
    sides: dict[str, Callable[..., Figures]] = {"ours": bench.ours, "by hand": bench.by_hand}
    count = RECORDS // 10 if bench.context.quick else RECORDS
    bench.fill(count)
    arms = [
        Arm(name=_name(side, delivery, rate), measure=partial(measure, delivery, rate, count))
        for rate in (*RATES, 0)
        for delivery in Delivery
        for side, measure in sides.items()
    ]
    return interleave(arms, rounds=bench.context.rounds)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Bench:
    """One broker, and the model that scores what is in it. A rate of 0 is the backlog."""

    context: Context
    url: str
    model: Path

    def ours(self, delivery: Delivery, rate: int, count: int) -> Figures:
        """A worker, started as the control plane starts it."""
        rig = Rig(context=self.context, url=self.url, model=self.model)
        if not rate:
            return rig.drain(delivery, count, topic=_SOURCE)
        told = rig.settings(delivery, topic=self._topic(), start=StartPosition.EARLIEST)
        self._topic(told.sink)
        with rig.worker(told) as worker:
            worker.wait(
                lambda status: status.state is WorkerState.RUNNING and bool(status.partitions)
            )
            return self._latency(told.topics[0], told.sink, rate)

    def by_hand(self, delivery: Delivery, rate: int, count: int) -> Figures:
        """The loop."""
        topic, sink = self._topic() if rate else _SOURCE, self._topic()
        with self._loop(delivery, topic, sink, 0 if rate else count) as log:
            if rate:
                return self._latency(topic, sink, rate)
            deadline = time.monotonic() + _LONGEST_S
            while len(words := log.read_text().split()) < 3:  # joined, two times
                if time.monotonic() > deadline:
                    raise processes.StartError("the loop does not end")
                time.sleep(0.05)
        took_s, cpu_s = map(float, words[-2:])
        return {"per_s": count / took_s, "per_core_s": count / cpu_s}

    def fill(self, count: int) -> None:
        """Write the backlog that each drain reads."""
        self._topic(_SOURCE)
        producer = self._producer(linger_ms=5)
        for number in range(count):
            producer.produce(_SOURCE, _value(number))
            if number % 10_000 == 0:
                producer.flush(_LONGEST_S)
        producer.flush(_LONGEST_S)

    @contextmanager
    def _loop(self, delivery: Delivery, topic: str, sink: str, count: int) -> Iterator[Path]:
        log = self.context.home / f"{uuid4().hex}.log"
        what = [delivery, urlsplit(self.url).netloc, topic, sink, str(count), str(self.model)]
        with processes.running(
            [sys.executable, "-m", "bench.scoring_loop", *what],
            part="worker",
            cores=self.context.placement.server,
            log=log,
            is_ready=lambda: "joined" in log.read_text(),
        ):
            yield log

    def _latency(self, topic: str, sink: str, rate: int) -> Figures:
        """In milliseconds, of what was due after the warm-up."""
        count = round(rate * (self.context.seconds + _WARM_UP_S))
        sender = threading.Thread(target=self._send, args=(topic, rate, count))
        consumer = Consumer(
            {
                "bootstrap.servers": urlsplit(self.url).netloc,
                "group.id": uuid4().hex,
                "auto.offset.reset": "earliest",
                "isolation.level": "read_committed",
            }
        )
        consumer.subscribe([sink])
        while not consumer.assignment():
            consumer.poll(0.1)
        sender.start()
        took: dict[int, float] = {}
        deadline = time.monotonic() + _LONGEST_S
        while len(took) < count:
            message = consumer.poll(0.5)
            now = time.monotonic_ns()
            if message is not None and message.error() is None:
                at = msgspec.json.decode(message.value() or b"", type=_Answer).at
                took.setdefault(at, (now - at) / 1e6)
            if time.monotonic() > deadline:
                raise processes.StartError(f"{len(took)} of {count} answers came")
        sender.join()
        consumer.close()
        times = sorted(took[at] for at in sorted(took)[round(rate * _WARM_UP_S) :])
        return {"p50_ms": _at(times, 0.5), "p99_ms": _at(times, 0.99)}

    def _send(self, topic: str, rate: int, count: int) -> None:
        """Records bear the moment at which they were due, however late they are sent."""
        producer = self._producer(linger_ms=0)
        begin = time.monotonic_ns()
        for number in range(count):
            due = begin + number * 10**9 // rate
            while (left_ns := due - time.monotonic_ns()) > 0:
                time.sleep(left_ns / 1e9)
            producer.produce(topic, _value(due))
            producer.poll(0)
        producer.flush(_LONGEST_S)

    def _topic(self, name: str = "") -> str:
        name = name or f"t-{uuid4().hex[:12]}"
        broker = open_broker(self.url, home=self.context.home)
        try:
            broker.create_topic(name)
        finally:
            broker.close()
        return name

    def _producer(self, *, linger_ms: int) -> Producer:
        return Producer({"bootstrap.servers": urlsplit(self.url).netloc, "linger.ms": linger_ms})


def _value(at: int) -> bytes:
    return b'{"x":[%d.5,2.25,-1.5,0.125],"at":%d}' % (at % 100, at)


def _at(ordered: list[float], share: float) -> float:
    return ordered[min(round(share * len(ordered)), len(ordered) - 1)]


def _name(side: str, delivery: Delivery, rate: int) -> str:
    return f"{side}, {delivery}, {f'{rate}/s' if rate else 'backlog'}"


def _table(rounds: Rounds) -> Table:
    rows = []
    for name, windows in rounds.items():
        keys = windows[0].figures
        rows.append(
            [
                name,
                *(
                    cell(figure(rounds, name, key), 1 if key.endswith("ms") else 0)
                    if key in keys
                    else ""
                    for key in ("p50_ms", "p99_ms", "per_s", "per_core_s")
                ),
            ]
        )
    return Table(
        headings=["arm", "p50 ms", "p99 ms", "records/s", "records per CPU second"], rows=rows
    )


def _targets(rounds: Rounds) -> list[Target]:
    targets = []
    for delivery in Delivery:
        ours, hand = (_name(side, delivery, 0) for side in ("ours", "by hand"))
        targets.append(
            Target(
                text=f"records per CPU second, {delivery}, of a loop by hand",
                value=ratio(rounds, ours, hand, "per_core_s").median,
                limit=COST_OF_HAND[delivery],
            )
        )
        ours, hand = (_name(side, delivery, 1000) for side in ("ours", "by hand"))
        targets.append(
            Target(
                text=f"p50 at 1,000/s, {delivery}, of a loop by hand",
                value=ratio(rounds, ours, hand, "p50_ms").median,
                limit=P50_OF_HAND[delivery],
                is_ceiling=True,
            )
        )
    return targets
