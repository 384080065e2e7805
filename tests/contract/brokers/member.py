"""A member of a group in a process of its own, to be killed.

`half` is done with half of the records that it takes; `copy` copies them to `sink`, and ends when
nothing has come for a while since it has all partitions: a group that lost a member without a word
keeps those of that member until its session times out.
"""

import sys
import time
from contextlib import closing
from functools import cache
from pathlib import Path

import msgspec

from headrace.core import UnavailableError
from headrace.streaming.broker import Broker, ConsumerSession, Membership
from headrace.streaming.brokers import open_broker
from headrace.streaming.records import NewRecord, Record
from tests.contract.brokers.rig import Listener, after, joined, retried

MOST = 100
IDLE_S = 3.0


@cache
def tell(word: str) -> None:
    """Print it once, for the parent."""
    print(word, flush=True)  # noqa: T201  # the parent reads it


def main() -> None:
    *_, mode, sink, url, home = sys.argv
    membership = msgspec.json.decode(sys.argv[1], type=Membership)
    with closing(open_broker(url, home=Path(home))) as broker:
        if mode == "copy":
            # As a worker does: Kafka may refuse a member until the one before it is dead.
            retried(lambda: copy(broker, membership, sink), UnavailableError)
        else:
            half(broker, membership, sink)


def half(broker: Broker, membership: Membership, sink: str) -> None:
    with joined(broker, membership) as session:
        tell("joined")
        found: list[Record] = []
        while len(found) < 2:  # so that it has halves
            found += session.poll(MOST, 0.5)
        deliver(session, found[: len(found) // 2], sink)
        session.flush(30)
        tell("holds")
        while True:
            session.poll(0, 0.2)


def copy(broker: Broker, membership: Membership, sink: str) -> None:
    listener, idle_since = Listener(), time.monotonic()
    partitions = sum(len(broker.ends(topic)) for topic in membership.topics)
    with joined(broker, membership, listener) as session:
        tell("joined")
        while time.monotonic() - idle_since < IDLE_S or session.problem:
            had_all = len(listener.held) == partitions
            found = session.poll(MOST, 0.2)
            if found:
                deliver(session, found, sink)
                tell("copies")
            if found or not had_all:
                idle_since = time.monotonic()
        session.flush(30)


def deliver(session: ConsumerSession, records: list[Record], sink: str) -> None:
    copies = [NewRecord(topic=sink, key=one.key, value=one.value, source=one) for one in records]
    session.produce(copies, after(records))


if __name__ == "__main__":
    main()
