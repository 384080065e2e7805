"""Asks NATS for the messages of one place as they are wanted, in the event loop of the client."""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import msgspec
from nats.aio.msg import Msg

from headrace.core import FailedPreconditionError, HeadraceError
from headrace.streaming.brokers.inbox import Inbox
from headrace.streaming.brokers.nats_link import NatsLink
from headrace.streaming.brokers.nats_messages import STATUS, record_of
from headrace.streaming.records import Place

if TYPE_CHECKING:
    from nats.aio.subscription import Subscription

_EXPIRES_S: Final = 10.0
_LATE_S: Final = 1.0
_MOST_BYTES: Final = 64 << 20  # of one request; the server allows no larger message
_PENDING: Final = "Nats-Pending-Messages"
_DESCRIPTION: Final = "Description"
_encode: Final = msgspec.json.Encoder().encode


class NatsPull:
    """Requests, and the messages that they bring into `inbox`."""

    def __init__(
        self,
        link: NatsLink,
        place: Place,
        *,
        stream: str,
        consumer: str,
        inbox: Inbox[str],
        fail: Callable[[HeadraceError], None],
    ) -> None:
        self.stream = stream
        self.consumer = consumer
        self._link = link
        self._place = place
        self._next = f"{link.api}.CONSUMER.MSG.NEXT.{stream}.{consumer}"
        self._inbox = inbox
        self._fail = fail
        self._reply = ""
        self._sub: Subscription | None = None
        self._asked = 0
        self._asked_until = 0.0

    def missing(self, most: int) -> int:
        """How many should be asked for, so that `most` are under way; 0 if that is not worth it."""
        asked = self._asked if time.monotonic() < self._asked_until else 0
        return most - asked if asked * 2 < most else 0

    def forget(self) -> None:
        """The server knows nothing any more of what it was asked."""
        self._asked = 0

    def gone(self) -> HeadraceError:
        """What is to be said when the group is there no more."""
        message = (
            f"the group at topic {self._place.topic} was deleted or moved in "
            f"{self._link.name}; start again to make it anew"
        )
        return FailedPreconditionError(message)

    async def open(self) -> None:
        """Be ready to hear."""
        self._reply = self._link.client.new_inbox()
        self._sub = await self._link.client.subscribe(self._reply, cb=self._came)

    async def ask(self, most: int) -> None:
        """Ask for so many more."""
        if not self._link.client.is_connected:
            return
        request = {"batch": most, "max_bytes": _MOST_BYTES, "expires": int(_EXPIRES_S * 1e9)}
        self._asked = (self._asked if time.monotonic() < self._asked_until else 0) + most
        self._asked_until = time.monotonic() + _EXPIRES_S + _LATE_S
        await self._link.client.publish(self._next, _encode(request), reply=self._reply)

    async def close(self) -> None:
        """Hear no more; what was sent before is in the inbox."""
        if self._sub is not None:
            await self._sub.drain()  # type: ignore[no-untyped-call]  # it says nothing

    async def _came(self, message: Msg) -> None:
        headers = message.headers or {}
        if STATUS in headers:
            self._told(headers)
            return
        about = message.metadata
        record = record_of(
            self._place,
            about.sequence.stream,
            message.data,
            headers,
            written_s=about.timestamp.timestamp(),
            deliveries=about.num_delivered,
        )
        self._asked = max(self._asked - 1, 0)
        self._inbox.offer([(record, message.reply)])

    def _told(self, headers: dict[str, str]) -> None:
        """A request is over: its time has passed, or the server has changed."""
        self._asked = max(self._asked - int(headers.get(_PENDING, self._asked)), 0)
        said = headers.get(_DESCRIPTION, "")
        if "consumer deleted" in said.lower():
            self._fail(self.gone())
