"""A member of a group in a process of its own, to be killed.

`half` is done with half of the records that it takes; `copy` copies them to `sink`, and ends when
nothing has come for a while since it has partitions: a group that lost a member without a word
gives it none until the session of that member times out.
"""

import sys
import time
from pathlib import Path

import msgspec

from headrace.streaming.broker import ConsumerSession, Membership
from headrace.streaming.brokers import open_broker
from headrace.streaming.records import NewRecord, Record
from tests.contract.brokers.rig import Listener, after

MOST = 100
IDLE_S = 3.0


def main() -> None:
    *_, mode, sink, url, home = sys.argv
    membership = msgspec.json.decode(sys.argv[1], type=Membership)
    broker = open_broker(url, home=Path(home))
    listener = Listener()
    session = broker.join(membership, listener)
    print("joined", flush=True)  # noqa: T201  # the parent reads it
    if mode == "copy":
        copy(session, listener, sink)
        session.flush(30)
        session.close()
        broker.close()
        return
    found: list[Record] = []
    while len(found) < 2:  # so that it has halves
        found += session.poll(MOST, 0.5)
    deliver(session, found[: len(found) // 2], sink)
    session.flush(30)
    print("holds", flush=True)  # noqa: T201  # the parent reads it
    while True:
        session.poll(0, 0.2)


def copy(session: ConsumerSession, listener: Listener, sink: str) -> None:
    idle_since = time.monotonic()
    started = False
    while time.monotonic() - idle_since < IDLE_S or session.problem:
        had_partitions = listener.told
        found = session.poll(MOST, 0.2)
        if not had_partitions:
            idle_since = time.monotonic()
        if found:
            deliver(session, found, sink)
            idle_since = time.monotonic()
            if not started:
                print("copies", flush=True)  # noqa: T201  # the parent reads it
                started = True


def deliver(session: ConsumerSession, records: list[Record], sink: str) -> None:
    copies = [NewRecord(topic=sink, key=one.key, value=one.value, source=one) for one in records]
    session.produce(copies, after(records))


if __name__ == "__main__":
    main()
