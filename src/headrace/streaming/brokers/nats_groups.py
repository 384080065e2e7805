"""Groups of NATS: a durable consumer each, and members that hear of each other.

JetStream hands messages to whoever asks, and knows no members. Each therefore listens to two
subjects: `headrace.groups.TOPIC.GROUP`, where it answers that it lives, and
`headrace.members.TOPIC.GROUP.MEMBER`, where it hears that another took its name. A name goes to the
one that joins; of two that come back after the server was away, to the one that joined later.
"""

import datetime as dt
from typing import Final

import nats.errors
import nats.js.errors
from nats.js import api

from headrace.core import InvalidArgumentError, NotFoundError
from headrace.streaming.broker import Membership, Start
from headrace.streaming.brokers.nats_link import NatsLink
from headrace.streaming.brokers.nats_messages import token_of

_MOST_UNDER_WAY: Final = 65_536
_LONGEST_NAME: Final = 200
_ANSWER_S: Final = 1.0


def group_subject(topic: str, group: str) -> str:
    """Where all members listen."""
    return f"headrace.groups.{token_of(topic)}.{token_of(group)}"


def member_subject(topic: str, group: str, member: str) -> str:
    """Where one member listens."""
    return f"headrace.members.{token_of(topic)}.{token_of(group)}.{token_of(member)}"


def consumer_of(group: str) -> str:
    """The name of a group's consumer.

    Raises:
        InvalidArgumentError: It is too long.
    """
    name = token_of(group)
    if len(name) > _LONGEST_NAME:
        raise InvalidArgumentError(f"group '{group[:60]}…' is too long a name for NATS; shorten it")
    return name


async def stream_of(link: NatsLink, topic: str) -> str:
    """The stream that keeps a topic.

    Raises:
        NotFoundError: None does.
    """
    try:
        return await link.stream_api.find_stream_name_by_subject(topic)
    except nats.js.errors.NotFoundError:
        message = f"{link.name} has no topic '{topic}'; make it first"
        raise NotFoundError(message) from None


async def info_of(link: NatsLink, stream: str, consumer: str) -> api.ConsumerInfo | None:
    """A group's consumer; None if it never was."""
    try:
        found: api.ConsumerInfo = await link.stream_api.consumer_info(stream, consumer)
    except nats.js.errors.NotFoundError:
        return None
    return found


def position_of(info: api.ConsumerInfo) -> int:
    """The offset below which all is done."""
    assert info.ack_floor is not None
    assert info.delivered is not None
    at = info.ack_floor if info.num_ack_pending else info.delivered
    return at.stream_seq + 1


async def ensure(link: NatsLink, membership: Membership, topic: str, stream: str) -> None:
    """Make the group's consumer if there is none; its time is what this member says."""
    consumer = consumer_of(membership.group)
    info = await info_of(link, stream, consumer)
    if info is None:
        await link.stream_api.add_consumer(stream, _config(membership, topic))
    elif info.config.ack_wait != membership.session_timeout_s:
        changed = info.config.evolve(ack_wait=membership.session_timeout_s)
        await link.stream_api.add_consumer(stream, changed)


async def move(
    link: NatsLink, stream: str, topic: str, group: str, *, offset: int, ack_wait_s: float
) -> None:
    """Let a group go on there."""
    consumer = consumer_of(group)
    info = await info_of(link, stream, consumer)
    if info is not None:
        ack_wait_s = info.config.ack_wait or ack_wait_s
        await link.stream_api.delete_consumer(stream, consumer)
    config = _base(consumer, topic, ack_wait_s).evolve(
        deliver_policy=api.DeliverPolicy.BY_START_SEQUENCE, opt_start_seq=max(offset, 1)
    )
    await link.stream_api.add_consumer(stream, config)


async def is_heard(link: NatsLink, subject: str, said: bytes = b"?") -> bool:
    """Whether a member answers there."""
    try:
        await link.client.request(subject, said, timeout=_ANSWER_S)
    except (nats.errors.NoRespondersError, nats.errors.TimeoutError):
        return False
    return True


async def lag_of(
    link: NatsLink, stream: str, consumer: str, topic: str
) -> tuple[int, float | None] | None:
    """How many messages wait, and when the oldest was written; None if there is no such group."""
    info = await info_of(link, stream, consumer)
    if info is None:
        return None
    records = (info.num_pending or 0) + (info.num_ack_pending or 0)
    if not records:
        return 0, None
    try:
        oldest = await link.stream_api.get_msg(
            stream, seq=position_of(info), subject=topic, next=True
        )
    except nats.js.errors.NotFoundError:
        return records, None
    return records, None if oldest.time is None else oldest.time.timestamp()


def _base(consumer: str, topic: str, ack_wait_s: float) -> api.ConsumerConfig:
    return api.ConsumerConfig(
        durable_name=consumer,
        ack_policy=api.AckPolicy.EXPLICIT,
        ack_wait=ack_wait_s,
        max_deliver=-1,
        filter_subject=topic,
        max_ack_pending=_MOST_UNDER_WAY,
    )


def _config(membership: Membership, topic: str) -> api.ConsumerConfig:
    config = _base(consumer_of(membership.group), topic, membership.session_timeout_s)
    if membership.start_s is not None:
        at = dt.datetime.fromtimestamp(membership.start_s, dt.UTC)
        return config.evolve(deliver_policy=api.DeliverPolicy.BY_START_TIME, opt_start_time=at)
    is_first = membership.start is Start.EARLIEST
    return config.evolve(
        deliver_policy=api.DeliverPolicy.ALL if is_first else api.DeliverPolicy.NEW
    )
