"""Topics and groups of a Kafka cluster: made, looked at and moved."""

import logging
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from confluent_kafka import (
    ConsumerGroupTopicPartitions,
    KafkaError,
    KafkaException,
    TopicPartition,
)
from confluent_kafka.admin import AdminClient, OffsetSpec  # type: ignore[attr-defined]  # not listed
from confluent_kafka.cimpl import NewTopic

from headrace.core import FailedPreconditionError, HeadraceError
from headrace.core.clock import Clock
from headrace.streaming.brokers.kafka_errors import UNSTABLE, error_of, failure
from headrace.streaming.brokers.kafka_options import KafkaOptions
from headrace.streaming.brokers.kafka_reader import ASK_S, made
from headrace.streaming.records import Place

if TYPE_CHECKING:
    from concurrent.futures import Future

_log = logging.getLogger(__name__)

_LATEST: Final = OffsetSpec.latest()  # type: ignore[no-untyped-call]  # has no types
_LOOK_EVERY_S: Final = 1.0
_AGAIN_S: Final = 0.1
_THE_CLUSTERS_OWN: Final = -1
_MEMBERS_RUN: Final = frozenset(
    {
        KafkaError.NON_EMPTY_GROUP,
        KafkaError.UNKNOWN_MEMBER_ID,
        KafkaError.ILLEGAL_GENERATION,
        KafkaError.FENCED_INSTANCE_ID,
        KafkaError.REBALANCE_IN_PROGRESS,
    }
)


class KafkaAdmin:
    """Keeps its client: one that goes out of scope forgets what it was asked."""

    def __init__(self, options: KafkaOptions, clock: Clock) -> None:
        self._address = options.address
        self._clock = clock
        settings = options.client()
        self._client = made(lambda: AdminClient(settings, logger=_log), options.address)

    def create_topic(self, topic: str, partitions: int) -> None:
        """Make a topic, with as many replicas as the cluster's own default says."""
        doing = f"make topic '{topic}'"
        new = NewTopic(topic, partitions, _THE_CLUSTERS_OWN)
        try:
            self._answer(self._client.create_topics([new], request_timeout=ASK_S)[topic], doing)
        except KafkaException as error:
            if error_of(error).code() != KafkaError.TOPIC_ALREADY_EXISTS:
                raise self._failure(error, doing) from error

    def committed(self, group: str, places: Sequence[Place]) -> dict[Place, int]:
        """Where a group is; places where it never was are left out.

        Raises:
            UnavailableError: A transaction that may move it has been open for long.
        """
        doing = f"look at group '{group}'"
        asked = ConsumerGroupTopicPartitions(group, [TopicPartition(*one) for one in places])
        until = self._clock.monotonic() + ASK_S
        while True:
            found: list[TopicPartition] = []
            try:
                # Stable: what a transaction is about to keep is waited for (KIP-447).
                told = self._client.list_consumer_group_offsets(
                    [asked], require_stable=True, request_timeout=ASK_S
                )[group]
                found = self._answer(told, doing).topic_partitions
                error = next((one.error for one in found if one.error is not None), None)
            except KafkaException as raised:
                error = error_of(raised)
            if error is None:
                return {
                    Place(one.topic, one.partition): one.offset for one in found if one.offset >= 0
                }
            if error.code() != UNSTABLE or self._clock.monotonic() >= until:
                raise failure(error, doing=doing, address=self._address)
            time.sleep(_AGAIN_S)

    def set_committed(self, group: str, offsets: Mapping[Place, int]) -> None:
        """Put a group, of which no member runs, somewhere else."""
        doing = f"move group '{group}'"
        partitions = [TopicPartition(*place, offset) for place, offset in offsets.items()]
        asked = ConsumerGroupTopicPartitions(group, partitions)
        try:
            if self._has_members(group):
                raise self._runs(group)
            told = self._client.alter_consumer_group_offsets([asked], request_timeout=ASK_S)[group]
            found = self._answer(told, doing).topic_partitions
        except KafkaException as error:
            if error_of(error).code() in _MEMBERS_RUN:
                raise self._runs(group) from error
            raise self._failure(error, doing) from error
        for one in found:
            if one.error is not None and one.error.code() in _MEMBERS_RUN:
                raise self._runs(group)
            if one.error is not None:
                raise failure(one.error, doing=doing, address=self._address)

    def ask_ends(self, places: Sequence[Place]) -> dict[Place, "Future[Any]"]:
        """Ask for the next offsets that will be written, without waiting for the answers."""
        wanted = {TopicPartition(*place): _LATEST for place in places}
        told = self._client.list_offsets(wanted, request_timeout=ASK_S)
        return {Place(one.topic, one.partition): future for one, future in told.items()}

    def _has_members(self, group: str) -> bool:
        told = self._client.describe_consumer_groups([group], request_timeout=ASK_S)[group]
        try:
            return bool(self._answer(told, "look at a group").members)
        except KafkaException as error:
            if error_of(error).code() == KafkaError.GROUP_ID_NOT_FOUND:
                return False
            raise

    def _runs(self, group: str) -> FailedPreconditionError:
        message = (
            f"a member of group '{group}' runs, or ended so short a while ago that it may come "
            "back; stop the stream first, and wait for its session_timeout_s"
        )
        return FailedPreconditionError(message)

    def _answer(self, told: "Future[Any]", doing: str) -> Any:  # noqa: ANN401  # one type a call
        try:
            return told.result(ASK_S + 1)
        except TimeoutError:
            raise failure(
                KafkaError(KafkaError.REQUEST_TIMED_OUT), doing=doing, address=self._address
            ) from None

    def _failure(self, error: KafkaException, doing: str) -> HeadraceError:
        return failure(error_of(error), doing=doing, address=self._address)


class Following:
    """The next offsets of places; asked each second, not waited for."""

    def __init__(self, admin: KafkaAdmin, clock: Clock) -> None:
        self._admin = admin
        self._clock = clock
        self._known: dict[Place, int] = {}
        self._asked: dict[Place, Future[Any]] = {}
        self._ask_at = 0.0

    def __call__(self, places: Sequence[Place]) -> Mapping[Place, int]:
        """What is known by now."""
        for place, future in list(self._asked.items()):
            if future.done():
                del self._asked[place]
                if future.exception() is None:
                    self._known[place] = future.result().offset
        now = self._clock.monotonic()
        if not self._asked and now >= self._ask_at:
            self._ask_at = now + _LOOK_EVERY_S
            self._asked = self._admin.ask_ends(places)
        return self._known
