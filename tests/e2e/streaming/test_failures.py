"""What can go wrong under a stream that runs: what it does then, on real brokers."""

import os
import signal
import time
from collections import Counter
from pathlib import Path

import pytest

from headrace.streaming.broker import Broker, Delivery
from headrace.streaming.settings import StreamStatus, WorkerSettings, WorkerState
from tests.contract.brokers.rig import everything
from tests.e2e.streaming.conftest import wait_for
from tests.e2e.streaming.servers import Away, Site, fed, site
from tests.e2e.streaming.workers import (
    DEAD,
    IN,
    OUT,
    WITHIN_S,
    Worker,
    double,
    keys,
    numbered,
    running,
    settings,
    two_numbers,
)

pytestmark = pytest.mark.e2e

LOG, KAFKA, NATS, REDIS = "log", "kafka", "nats", "redis"
ONCE, AT_LEAST_ONCE = Delivery.EXACTLY_ONCE, Delivery.AT_LEAST_ONCE
AWAY_FOR_S = 3.0
LONG = pytest.mark.long
"""One broker shows what the worker does; what each of them does, `make test SUITE=long`."""


def told(where: Site, folder: Path, scorer: Path, **changes: object) -> WorkerSettings:
    said = {
        "broker": where.url,
        "session_timeout_s": where.session_timeout_s,
        "model_threads": 1,
        **changes,
    }
    return settings(folder, scorer, **said)


def wait_until_answered(broker: Broker, worker: Worker) -> None:
    """Until every record that is there has an answer."""
    until = time.monotonic() + WITHIN_S
    while missing := keys(broker, IN).keys() - keys(broker, OUT).keys():
        assert worker.process.poll() is None, worker.log_text()
        assert time.monotonic() < until, f"{len(missing)} have none: {worker.status()}"
        time.sleep(0.2)


def check(broker: Broker, delivery: Delivery) -> None:
    """Nothing is lost; exactly once: nothing is there twice."""
    asked, found = keys(broker, IN), keys(broker, OUT)
    assert found.keys() == asked.keys()
    if delivery is ONCE:
        assert found == asked
    assert everything(broker, DEAD) == []


@pytest.mark.parametrize(
    ("name", "how", "delivery"),
    [
        pytest.param(KAFKA, Away.KILLED, AT_LEAST_ONCE, marks=[pytest.mark.jvm, LONG]),
        pytest.param(KAFKA, Away.KILLED, ONCE, marks=pytest.mark.jvm),
        pytest.param(KAFKA, Away.FROZEN, ONCE, marks=[pytest.mark.jvm, LONG]),
        pytest.param(NATS, Away.STOPPED, AT_LEAST_ONCE, marks=LONG),
        pytest.param(NATS, Away.KILLED, ONCE, marks=LONG),
        pytest.param(NATS, Away.FROZEN, ONCE, marks=LONG),
        (REDIS, Away.STOPPED, AT_LEAST_ONCE),
        pytest.param(REDIS, Away.KILLED, ONCE, marks=LONG),
        pytest.param(REDIS, Away.FROZEN, ONCE, marks=LONG),
    ],
)
def test_a_broker_that_is_away_under_load_is_waited_for_and_nothing_is_lost(
    tmp_path: Path, name: str, how: Away, delivery: Delivery
) -> None:
    with site(name) as (where, broker):
        said = told(where, where.home, double(tmp_path), delivery=delivery, max_batch_size=16)
        with running(where.home, said) as worker, fed(where, two_numbers) as feeder:
            worker.wait_until(lambda s: s.answered > 100)
            with where.away(how):
                since = time.monotonic()
                away = worker.wait_until(lambda s: bool(s.problem))
                metrics = worker.metrics()
                time.sleep(max(since + AWAY_FOR_S - time.monotonic(), 0.0))
            worker.wait_until(lambda s: s.answered > away.answered + 100 and s.problem == "")
            feeder.stop()
            wait_until_answered(broker, worker)
            assert worker.stop() == 0

        assert away.state in {WorkerState.RETRYING, WorkerState.RECONNECTING}
        assert str(where.port) in away.problem
        assert 'headrace_stream_trouble{stream="s"} 1' in metrics
        check(broker, delivery)


@pytest.mark.parametrize(
    "name", [LOG, pytest.param(NATS, marks=LONG), pytest.param(REDIS, marks=LONG)]
)
def test_a_worker_that_stood_still_for_longer_than_its_session_does_nothing_twice(
    tmp_path: Path, name: str
) -> None:
    with site(name) as (where, broker):
        scorer = double(tmp_path, delay_s=0.05)
        one, two = (
            told(where, where.home, scorer, delivery=ONCE, max_batch_size=4, member=member)
            for member in ("one", "two")
        )
        with running(where.home, one) as heir, running(where.home, two) as zombie:
            for worker in (heir, zombie):
                worker.wait_until(
                    lambda s: len(s.partitions) == 1 and s.state is WorkerState.RUNNING
                )
            broker.send(numbered(range(200)))
            zombie.wait_until(lambda s: s.in_flight > 0)
            os.kill(zombie.process.pid, signal.SIGSTOP)
            try:
                wait_until_answered(broker, heir)  # what it had too: others took it over
            finally:
                os.kill(zombie.process.pid, signal.SIGCONT)
            broker.send(numbered(range(200, 300)))
            wait_until_answered(broker, heir)
            zombie.wait_until(lambda s: s.state is WorkerState.RUNNING and s.in_flight == 0)
            assert [zombie.stop(), heir.stop()] == [0, 0]

        check(broker, ONCE)


@pytest.mark.jvm
@pytest.mark.long
def test_a_kafka_member_that_was_replaced_by_name_while_it_stood_still_is_fenced(
    tmp_path: Path,
) -> None:
    with site(KAFKA) as (where, broker):
        scorer, other = double(tmp_path, delay_s=0.05), where.home / "other"
        other.mkdir()
        said = told(where, where.home, scorer, delivery=ONCE, max_batch_size=4)
        again = told(where, other, scorer, delivery=ONCE, max_batch_size=4)
        broker.send(numbered(range(200)))
        with running(where.home, said) as zombie:
            zombie.wait_until(lambda s: s.answered > 0 and s.in_flight > 0)
            os.kill(zombie.process.pid, signal.SIGSTOP)
            with running(other, again) as heir:
                try:
                    wait_until_answered(broker, heir)
                finally:
                    os.kill(zombie.process.pid, signal.SIGCONT)
                # It ends, or a transaction fails first.
                wait_for(lambda: "this member's name" in zombie.log_text())
                # In the latter case it joins again, and fences the other one.
                zombie.kill()
                heir.kill()
        with running(other, again) as heir:
            broker.send(numbered(range(200, 300)))
            wait_until_answered(broker, heir)
            assert heir.stop() == 0

        check(broker, ONCE)


@pytest.mark.parametrize(
    ("name", "call_s"),
    [
        (LOG, 4.0),
        *(pytest.param(name, s, marks=LONG) for name, s in ((NATS, 4.0), (REDIS, 4.0))),
        pytest.param(KAFKA, 8.0, marks=[pytest.mark.jvm, LONG]),
    ],
)
def test_a_call_longer_than_the_session_keeps_the_membership_and_commands_are_heard(
    tmp_path: Path, name: str, call_s: float
) -> None:
    with site(name) as (where, broker):
        call_s = float(os.environ.get("CHAOS_CALL_S", call_s))  # half a minute in the suite `chaos`
        scorer = double(tmp_path, delay_s=call_s)
        broker.send(numbered(range(1)))
        with running(where.home, told(where, where.home, scorer, delivery=ONCE)) as worker:
            worker.wait_until(lambda s: s.in_flight == 1)
            begun = time.monotonic()
            worker.client.post("/internal/pause")
            paused = worker.wait_until(lambda s: s.state is WorkerState.PAUSED)
            worker.client.post("/internal/resume")
            resumed = worker.wait_until(lambda s: s.state is WorkerState.RUNNING)
            worker.wait_until(lambda _: time.monotonic() - begun > 1.2 * where.session_timeout_s)
            metrics = worker.metrics()
            stopped = worker.stop()  # in the middle of the call: its answer is waited for

        assert call_s > 1.2 * where.session_timeout_s
        assert (paused.in_flight, resumed.in_flight, stopped) == (1, 1, 0)
        assert 'headrace_stream_records_answered_total{stream="s"} 0' in metrics
        assert 'headrace_stream_sessions_total{stream="s"} 1' in metrics
        assert 'headrace_stream_places_lost_total{stream="s"} 0' in metrics
        check(broker, ONCE)


@pytest.mark.long
@pytest.mark.parametrize("name", [LOG, pytest.param(KAFKA, marks=pytest.mark.jvm), NATS, REDIS])
def test_a_model_slower_than_its_records_is_not_run_over(tmp_path: Path, name: str) -> None:
    # Kafka's client queues 64 MiB, and what one more fetch brings.
    count, limit_bytes = (8000, 114 << 20) if name == KAFKA else (4000, 64 << 20)
    batch = 4
    pad = "x" * 30_000
    with site(name) as (where, broker):
        scorer = double(tmp_path, delay_s=0.1)
        said = told(where, where.home, scorer, delivery=ONCE, max_batch_size=batch)
        with running(where.home, said) as worker:
            worker.wait_until(lambda s: s.state is WorkerState.RUNNING)
            before = rss_bytes(worker)
            for first in range(0, count, 100):
                broker.send(numbered(range(first, first + 100), pad=pad))
            seen: list[StreamStatus] = []
            until = time.monotonic() + 1.5 * where.session_timeout_s
            while time.monotonic() < until:
                seen.append(worker.status())
                time.sleep(0.1)
            grown_bytes = rss_bytes(worker) - before
            worker.wait_until(
                lambda s: lag_of(s) > count // 2 and any(p.lag_s for p in s.partitions)
            )
            metrics = worker.metrics()

        assert max(one.waiting for one in seen) <= 2 * batch
        assert max(one.in_flight for one in seen) <= 2 * batch
        assert grown_bytes < limit_bytes
        assert 'headrace_stream_sessions_total{stream="s"} 1' in metrics
        assert 'headrace_stream_places_lost_total{stream="s"} 0' in metrics


def lag_of(status: StreamStatus) -> int:
    return sum(partition.lag_records or 0 for partition in status.partitions)


def rss_bytes(worker: Worker) -> int:
    pages = Path(f"/proc/{worker.process.pid}/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def test_a_model_that_never_returns_does_not_keep_a_worker_from_ending(tmp_path: Path) -> None:
    with site(LOG) as (where, broker):
        hung = double(tmp_path, delay_s=3600.0)
        broker.send(numbered(range(1)))
        said = told(where, where.home, hung, delivery=ONCE, drain_timeout_s=0.5)
        with running(where.home, said) as worker:
            worker.wait_until(lambda s: s.in_flight == 1)
            assert worker.stop() == 0
        kept = keys(broker, OUT)
        mended = told(where, where.home, double(tmp_path), delivery=ONCE)
        with running(where.home, mended) as worker:
            wait_until_answered(broker, worker)
            assert worker.stop() == 0

        assert kept == Counter()
        check(broker, ONCE)
