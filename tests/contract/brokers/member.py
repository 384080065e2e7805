"""A member of a group in a process of its own, to be killed.

`hold` takes records and does nothing with them; `half` is done with the first of them only;
`copy` copies them to `sink`, and ends when nothing has come for a while since it has partitions: a
group that lost a member without a word gives it none until the session of that member times out.
"""

import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from headrace.streaming.broker import (
    ConsumerSession,
    Delivery,
    GroupProtocol,
    Membership,
    StartPosition,
)
from headrace.streaming.brokers import open_broker
from headrace.streaming.records import NewRecord, Record, TopicPartition

MOST = 100
IDLE_S = 3.0


class Silent:
    """Keeps no state of its own."""

    has_gained = False

    def on_assigned(
        self, partitions: Sequence[TopicPartition]
    ) -> Mapping[TopicPartition, int] | None:
        self.has_gained = self.has_gained or bool(partitions)
        return None

    def on_revoked(self, partitions: Sequence[TopicPartition]) -> None: ...
    def on_lost(self, partitions: Sequence[TopicPartition]) -> None: ...


def main() -> None:
    said = json.loads(sys.argv[1])
    broker = open_broker(said["url"], home=Path(said["home"]))
    membership = Membership(
        group=said["group"],
        member=said["member"],
        topics=(said["topic"],),
        delivery=Delivery(said["delivery"]),
        start=StartPosition.EARLIEST,
        session_timeout_s=said["session_timeout_s"],
        protocol=GroupProtocol(said["protocol"]),
    )
    listener = Silent()
    session = broker.join(membership, listener)
    print("joined", flush=True)  # noqa: T201  # the parent reads it
    if said["mode"] == "copy":
        copy(session, listener, said["sink"])
        session.flush(30)
        session.close()
        broker.close()
        return
    found: list[Record] = []
    while len(found) < 2:  # so that `half` has halves
        found += session.poll(MOST, 0.5)
    if said["mode"] == "half":
        first = found[: len(found) // 2]
        session.produce(copies(first, said["sink"]), after(first))
        session.flush(30)
        found = found[len(found) // 2 :]
    print("holds", len(found), flush=True)  # noqa: T201  # the parent reads it
    while True:
        session.poll(0, 0.2)


def copy(session: ConsumerSession, listener: Silent, sink: str) -> None:
    idle_since = time.monotonic()
    started = False
    while time.monotonic() - idle_since < IDLE_S or session.problem:
        had_partitions = listener.has_gained
        found = session.poll(MOST, 0.2)
        if not had_partitions:
            idle_since = time.monotonic()
        if found:
            session.produce(copies(found, sink), after(found))
            idle_since = time.monotonic()
            if not started:
                print("copies", flush=True)  # noqa: T201  # the parent reads it
                started = True


def copies(records: Sequence[Record], sink: str) -> list[NewRecord]:
    return [NewRecord(topic=sink, key=one.key, value=one.value, source=one) for one in records]


def after(records: Sequence[Record]) -> dict[TopicPartition, int]:
    return {one.topic_partition: one.offset + 1 for one in records}


if __name__ == "__main__":
    main()
