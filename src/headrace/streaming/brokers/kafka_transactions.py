"""Exactly once: the answers and what is done with them in one transaction, or nothing of it.

Each member has a transactional id of its own, so that who comes back by that name ends what was
left open, and fences off whom it replaces (KIP-98); the group's generation, which goes along with
the offsets, fences off who lost its places (KIP-447).
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Final

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition

from headrace.core import HeadraceError
from headrace.core.clock import Clock
from headrace.streaming.brokers.kafka_errors import TIMED_OUT, error_of, failure
from headrace.streaming.brokers.kafka_records import Writing, partitions_of
from headrace.streaming.records import NewRecord, Place

_WHOLE_S: Final = 15.0
_STEP_S: Final = 5.0
_JOIN_S: Final = 15.0
_ABORT_S: Final = 2.0
_PAUSE_S: Final = 0.05


class Transactions:
    """See `Writer`. Each `deliver` is a transaction.

    Raises:
        HeadraceError: The cluster gives no transactions.
    """

    def __init__(
        self,
        producer: Producer,
        consumer: Consumer,
        writing: Writing,
        *,
        address: str,
        clock: Clock,
    ) -> None:
        self._producer = producer
        self._consumer = consumer
        self._writing = writing
        self._address = address
        self._clock = clock
        self._failed: tuple[KafkaError, str] | None = None
        self._retried(
            lambda: producer.init_transactions(_STEP_S),
            "begin transactions",
            until=clock.monotonic() + _JOIN_S,
        )

    trouble = ""

    def begin_at(self, starts: Mapping[Place, int]) -> None:
        """By a transaction too: a commit of its own might arrive after the next one."""
        self.deliver([], starts)

    def deliver(self, records: Sequence[NewRecord], done: Mapping[Place, int]) -> None:
        """All or nothing, before it returns."""
        self._failed = None
        doing = "deliver a transaction"
        until = self._clock.monotonic() + _WHOLE_S
        try:
            self._producer.begin_transaction()
        except KafkaException as error:
            raise self._error(error_of(error), doing) from error
        try:
            self._writing.put(records, self._report)
            if done:
                metadata = self._consumer.consumer_group_metadata()
                offsets = partitions_of(dict(done))
                self._retried(
                    lambda: self._producer.send_offsets_to_transaction(offsets, metadata, _STEP_S),
                    doing,
                    until=until,
                )
            self._retried(lambda: self._producer.commit_transaction(_STEP_S), doing, until=until)
        except HeadraceError:
            self._abort()
            raise

    def serve(self) -> None:
        """Nothing is under way between transactions."""
        self._writing.serve()

    def flush(
        self,
        timeout_s: float,  # noqa: ARG002  # what was delivered is safe
        serve_consumer: Callable[[], None] | None,  # noqa: ARG002  # as above
    ) -> bool:
        """True; see `Writer`."""
        return True

    def forget(self, places: Sequence[Place]) -> None:
        """Nothing is under way."""

    def committed(self, error: KafkaError | None, partitions: Sequence[TopicPartition]) -> None:
        """Offsets are kept by transactions."""

    def close(self) -> None:
        """Nothing is under way."""
        with suppress(HeadraceError):
            self._writing.serve()

    def _report(self, error: KafkaError | None, message: Message) -> None:
        if error is not None and self._failed is None:
            self._failed = error, message.topic() or ""

    def _abort(self) -> None:
        """Those who read committed records go on at once; else they wait until its time is over."""
        with suppress(KafkaException):  # fenced, or away: the next of this name, or time, ends it
            self._producer.abort_transaction(_ABORT_S)

    def _retried(self, call: Callable[[], None], doing: str, *, until: float) -> None:
        while True:
            try:
                return call()
            except KafkaException as error:
                kafka_error = error_of(error)
                if not kafka_error.retriable() or self._clock.monotonic() >= until:
                    raise self._error(kafka_error, doing) from error
                self._writing.serve(0 if kafka_error.code() == TIMED_OUT else _PAUSE_S)

    def _error(self, error: KafkaError, doing: str) -> Exception:
        """What a record met says more than what the transaction met thereby."""
        with suppress(HeadraceError):
            self._writing.serve()
        if self._failed is not None and not error.fatal():
            return self._writing.failed(self._failed[0], None, self._failed[1])
        return failure(error, doing=doing, address=self._address)
