"""How fast does a stream copy a topic of Kafka, next to a loop by hand, and how soon is it there?

Records are of 128 bytes, topics of one partition.
"""

import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit
from uuid import uuid4

from confluent_kafka import Consumer, Producer

from bench import processes
from bench.brokers import BROKERS, NoBrokerError
from bench.context import Context
from bench.results import SuiteResult, Table, Target, cell
from bench.streams import CAREFUL, PLAIN
from bench.windows import Arm, Figures, Rounds, figure, interleave, ratio
from headrace.streaming.broker import Delivery
from headrace.streaming.brokers import open_broker
from headrace.streaming.records import NewRecord

RECORDS: Final = 200_000
RATES: Final = (200, 2000)
PER_CORE: Final = 100_000.0
OF_PLAIN: Final = 0.8
P99_MS: Final = {Delivery.AT_LEAST_ONCE: 20.0, Delivery.EXACTLY_ONCE: 50.0}
_BYTES: Final = 128
_LONGEST_S: Final = 120.0
_WARM_UP_S: Final = 1.0
_MILLISECONDS: Final = 1000.0
_SOURCE: Final = "backlog"


def run(context: Context) -> SuiteResult:
    """Drain a backlog by hand and by us; then copy records that come at a rate."""
    try:
        return _over_kafka(context)
    except NoBrokerError as error:
        return SuiteResult(name="streams", skipped=str(error))


def _over_kafka(context: Context) -> SuiteResult:
    records = RECORDS // 10 if context.quick else RECORDS
    with BROKERS["kafka"](context) as url:
        address = urlsplit(url).netloc
        _fill(address, records)
        arms = [
            Arm(name=name, measure=partial(_drain, address, name, records))
            for name in (PLAIN, CAREFUL, *Delivery)
        ]
        rounds = dict(interleave(arms, rounds=context.rounds))
        paced = [
            Arm(
                name=_paced(delivery, rate),
                measure=partial(_latency, context, address, delivery, rate),
            )
            for delivery in Delivery
            for rate in RATES
        ]
        rounds |= interleave(paced, rounds=context.rounds)
    return SuiteResult(
        name="streams", table=_table(rounds), targets=_targets(rounds), rounds=rounds
    )


def _fill(address: str, count: int) -> None:
    broker = open_broker(f"kafka://{address}", home=Path())
    try:
        broker.create_topic(_SOURCE)
        value = bytes(_BYTES)
        broker.send([NewRecord(topic=_SOURCE, key=None, value=value) for _ in range(count)])
    finally:
        broker.close()


def _new_topic(address: str) -> str:
    broker = open_broker(f"kafka://{address}", home=Path())
    try:
        broker.create_topic(topic := f"t-{uuid4().hex}")
    finally:
        broker.close()
    return topic


@contextmanager
def _worker(
    arm: str, address: str, topic: str, sink: str, count: int
) -> Iterator["subprocess.Popen[str]"]:
    argv = [sys.executable, "-m", "bench.streams", arm, address, topic, sink, str(count)]
    with subprocess.Popen(
        argv, stdout=subprocess.PIPE, text=True, env=processes.environment("worker")
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def _drain(address: str, arm: str, count: int) -> Figures:
    sink = _new_topic(address)
    with _worker(arm, address, _SOURCE, sink, count) as process:
        said, _ = process.communicate(timeout=_LONGEST_S)
    took_s, cpu_s = map(float, said.split()[-2:])
    return {"per_s": count / took_s, "per_core_s": count / cpu_s}


def _latency(context: Context, address: str, delivery: Delivery, rate: int) -> Figures:
    """From before a record is given to a producer until a consumer of the sink has it."""
    topic, sink = _new_topic(address), _new_topic(address)
    with _worker(delivery, address, topic, sink, 0) as process:
        assert process.stdout is not None
        if not process.stdout.readline().startswith("joined"):
            raise processes.StartError("the worker joined no group")
        sender = threading.Thread(
            target=_send, args=(address, topic, rate, context.seconds + _WARM_UP_S)
        )
        count = round(rate * (context.seconds + _WARM_UP_S))
        sender.start()
        took = _receive(address, sink, count)
        sender.join()
    took = sorted(took[round(rate * _WARM_UP_S) :])
    return {"p50_ms": _at(took, 0.5), "p99_ms": _at(took, 0.99)}


def _send(address: str, topic: str, rate: int, seconds: float) -> None:
    producer = Producer({"bootstrap.servers": address, "linger.ms": 0})
    begin = time.monotonic()
    for number in range(round(rate * seconds)):
        while (left_s := begin + number / rate - time.monotonic()) > 0:
            time.sleep(left_s)
        producer.produce(topic, b"%d" % time.monotonic_ns() + bytes(_BYTES))
        producer.poll(0)
    producer.flush(10)


def _receive(address: str, sink: str, count: int) -> list[float]:
    """How long each took, in milliseconds."""
    consumer = Consumer(
        {"bootstrap.servers": address, "group.id": uuid4().hex, "auto.offset.reset": "earliest"}
    )
    consumer.subscribe([sink])
    took: list[float] = []
    deadline = time.monotonic() + _LONGEST_S
    while len(took) < count:
        message = consumer.poll(0.5)
        now = time.monotonic_ns()
        if time.monotonic() > deadline:
            raise processes.StartError(f"{len(took)} of {count} records came")
        if message is not None and message.error() is None:
            value = message.value() or b""
            took.append((now - int(value.rstrip(b"\0"))) / 1e6)
    consumer.close()
    return took


def _at(ordered: Sequence[float], share: float) -> float:
    return ordered[min(round(share * len(ordered)), len(ordered) - 1)]


def _paced(delivery: Delivery, rate: int) -> str:
    return f"{delivery}, {rate}/s"


def _table(rounds: Rounds) -> Table:
    rows = []
    for name in rounds:
        if name in {PLAIN, CAREFUL, *Delivery}:
            speeds = [cell(figure(rounds, name, key)) for key in ("per_s", "per_core_s")]
            rows.append([name, *speeds, "", ""])
        else:
            times = [cell(figure(rounds, name, key), 1) for key in ("p50_ms", "p99_ms")]
            rows.append([name, "", "", *times])
    return Table(
        headings=["arm", "records/s", "records/s of a core", "p50 ms", "p99 ms"], rows=rows
    )


def _targets(rounds: Rounds) -> list[Target]:
    ours = Delivery.AT_LEAST_ONCE
    targets = [
        Target(
            text="drain, of a loop by hand that promises the same",
            value=ratio(rounds, ours, CAREFUL, "per_core_s").median,
            limit=OF_PLAIN,
        ),
        Target(
            text="drain, of one core",
            value=figure(rounds, ours, "per_core_s").median,
            limit=PER_CORE,
            unit="records/s",
        ),
    ]
    for delivery, limit in P99_MS.items():
        for rate in RATES:
            name = _paced(delivery, rate)
            value = figure(rounds, name, "p99_ms").median
            text = f"in to out, {name}, p99"
            targets.append(Target(text=text, value=value, limit=limit, unit="ms", is_ceiling=True))
    return targets
