"""Receives for a member of a group of a Pulsar topic, in a thread, as `poll` wants messages."""

import threading
from typing import Final, cast

import pulsar

from headrace.streaming.brokers.inbox import Inbox
from headrace.streaming.brokers.pulsar_messages import Message, MessageId, offset_of, record_of
from headrace.streaming.records import Place

_WAIT_S: Final = 0.2
_AWAY_PAUSE_S: Final = 0.1


class PulsarReader:
    """One thread and one consumer of a topic, which it closes."""

    def __init__(
        self, consumer: pulsar.Consumer, place: Place, inbox: Inbox[MessageId], name: str
    ) -> None:
        self._consumer = consumer
        self._place = place
        self._inbox = inbox
        self._name = name
        self._is_closed = threading.Event()
        self.newest = 0
        """The highest offset that came."""
        self._thread = threading.Thread(target=self._run, name="pulsar-reader", daemon=True)
        self._thread.start()

    @property
    def trouble(self) -> str:
        """Why nothing comes; empty if all is well."""
        return "" if self._consumer.is_connected() else f"{self._name} is away"

    def last_offset(self) -> int:
        """Of the last message that was written; of the newest that came if nobody can tell."""
        try:
            return offset_of(cast("MessageId", self._consumer.get_last_message_id()))
        except pulsar.PulsarException:
            return self.newest  # not of a topic that has none

    def acknowledge(self, message_id: MessageId) -> None:
        """Be done with a message."""
        self._consumer.acknowledge(message_id)

    def close(self) -> None:
        """End the thread and leave; the broker hands out again at once what is not done."""
        self._is_closed.set()
        self._thread.join()
        try:
            self._consumer.close()
        except pulsar.PulsarException:
            return  # the broker is away, and knows it

    def _run(self) -> None:
        while not self._is_closed.is_set():
            most, places = self._inbox.wait_for_want(_WAIT_S)
            if not most or self._place not in places:
                if most:
                    self._is_closed.wait(_AWAY_PAUSE_S)
                continue
            try:
                message = cast("Message", self._consumer.receive(int(_WAIT_S * 1000)))
            except pulsar.Timeout:
                continue
            except pulsar.PulsarException:
                self._is_closed.wait(_AWAY_PAUSE_S)
                continue
            self.newest = max(self.newest, offset_of(message.message_id()))
            self._inbox.offer([(record_of(self._place, message), message.message_id())])
