"""NATS connection for blocking callers, consumer groups, and publishing.

JetStream has no members; a group is a durable consumer. Each member therefore subscribes to two
subjects: `headrace.groups.TOPIC.GROUP`, where it answers liveness requests, and
`headrace.members.TOPIC.GROUP.MEMBER`, where it is notified that another member took its name. A
joining member takes over its name; of two that reconnect after an outage, the one that joined later
keeps it.
"""

import asyncio
import datetime as dt
import threading
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, Final, TypeVar
from urllib.parse import unquote, urlsplit

import nats.errors
import nats.js.errors
from nats.aio.client import Client
from nats.js import api

from headrace.core import (
    FailedPreconditionError,
    HeadraceError,
    InvalidArgumentError,
    NotFoundError,
    UnavailableError,
)
from headrace.streaming.broker import Membership, StartPosition
from headrace.streaming.brokers.checks import TLS_FILES, shown, split_options, tls_context
from headrace.streaming.brokers.nats.messages import headers_of, token_of
from headrace.streaming.records import NewRecord, PartitionLag

_MAX_IN_FLIGHT: Final = 65_536
_MAX_NAME: Final = 200
_REPLY_TIMEOUT_S: Final = 1.0


def group_subject(topic: str, group: str) -> str:
    """Return the subject of all members of a group."""
    return f"headrace.groups.{token_of(topic)}.{token_of(group)}"


def member_subject(topic: str, group: str, member: str) -> str:
    """Return the subject of one member."""
    return f"headrace.members.{token_of(topic)}.{token_of(group)}.{token_of(member)}"


def consumer_of(group: str) -> str:
    """Return the name of a group's consumer.

    Raises:
        InvalidArgumentError: The name is too long.
    """
    name = token_of(group)
    if len(name) > _MAX_NAME:
        raise InvalidArgumentError(
            f"group '{group[:60]}…' has a name too long for NATS; shorten it"
        )
    return name


T = TypeVar("T")
TIMEOUT_S: Final = 5.0


class NatsLink:
    """Connection that is opened at once and reconnects; `problem` reports an outage.

    Args:
        on_reconnected: Called in the loop after reconnecting.

    Raises:
        UnavailableError: The server cannot be reached.
        FailedPreconditionError: The server refuses the credentials in the URL.
    """

    def __init__(
        self, url: str, *, on_reconnected: Callable[[], Awaitable[None]] | None = None
    ) -> None:
        self.name = shown(url)
        self._reconnected_callback = on_reconnected
        self._problem = ""
        self._arguments, options = _read(url)
        self.domain = options.get("domain", "")
        self.api = f"$JS.{self.domain}.API" if self.domain else "$JS.API"
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="nats", daemon=True)
        self._thread.start()
        self._is_closed = False
        self.client = Client()
        self.stream_api = self.client.jetstream(domain=self.domain or None, timeout=TIMEOUT_S)
        """JetStream's own calls, for the loop."""
        try:
            self.ask("connect", self._connect())
        except BaseException:
            self.close()
            raise

    @property
    def problem(self) -> str:
        """Why the connection is down; empty if it is up."""
        return "" if self.client.is_connected else self._problem or f"{self.name} is unavailable"

    def ask(
        self, operation: str, work: Coroutine[Any, Any, T], *, timeout_s: float = TIMEOUT_S
    ) -> T:
        """Run `work` in the loop and return its result; errors are translated."""
        if self._is_closed:
            work.close()
            raise FailedPreconditionError(f"the connection to {self.name} is closed; open it again")
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result(timeout_s + _CONNECT_TIMEOUT_S)
        except HeadraceError:
            raise
        except (TimeoutError, nats.errors.Error, OSError, ValueError) as error:
            future.cancel()
            raise translate_error(error, operation, self.name) from error

    def begin(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Start `work` in the loop."""
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def check_connected(self) -> None:
        """Raise UnavailableError during an outage, in which the client would buffer messages."""
        if not self.client.is_connected:
            raise UnavailableError(self.problem or f"{self.name} is unavailable")

    def close(self) -> None:
        """Disconnect and end the loop. Idempotent."""
        if self._is_closed:
            return
        self._is_closed = True
        future = asyncio.run_coroutine_threadsafe(self._disconnect_client(), self._loop)
        with suppress(TimeoutError):
            future.result(TIMEOUT_S)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(TIMEOUT_S)
        if not self._thread.is_alive():
            self._loop.close()

    async def _connect(self) -> None:
        # One attempt, so that its error is reported; the client would retry forever.
        trial = Client()
        try:
            await trial.connect(
                **self._arguments,
                allow_reconnect=False,
                max_reconnect_attempts=1,  # 0 would retry forever
                reconnect_time_wait=0,
                connect_timeout=_CONNECT_TIMEOUT_S,
                error_cb=self._on_error,
            )
        except nats.errors.NoServersError:
            raise UnavailableError(self._problem) from None
        finally:
            await trial.close()
        await self.client.connect(
            **self._arguments,
            connect_timeout=_CONNECT_TIMEOUT_S,
            max_reconnect_attempts=-1,
            reconnect_time_wait=_RECONNECT_WAIT_S,  # type: ignore[arg-type]  # it only sleeps so long
            ping_interval=_PING_S,
            error_cb=self._on_error,
            disconnected_cb=self._on_disconnected,
            reconnected_cb=self._on_reconnected,
        )

    async def _disconnect_client(self) -> None:
        if self.client.is_connected or self.client.is_reconnecting:
            with suppress(nats.errors.Error, OSError):
                await self.client.close()
        rest = asyncio.all_tasks() - {asyncio.current_task()}
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)

    async def _on_error(self, error: Exception) -> None:
        if not self.client.is_connected:
            self._problem = f"{self.name} is unavailable: {str(error) or type(error).__name__}"
            # The client drops a connection to an unresponsive server without closing it.
            transport = self.client._transport  # noqa: SLF001  # no public attribute
            if transport is not None:
                transport.close()  # type: ignore[no-untyped-call]  # asyncio's stub

    async def _on_disconnected(self) -> None:
        self._problem = self._problem or f"{self.name} is unavailable: it closed the connection"

    async def _on_reconnected(self) -> None:
        self._problem = ""
        if self._reconnected_callback is not None:
            await self._reconnected_callback()


async def stream_of(link: NatsLink, topic: str) -> str:
    """Return the stream that stores a topic.

    Raises:
        NotFoundError: No stream stores it.
    """
    try:
        return await link.stream_api.find_stream_name_by_subject(topic)
    except nats.js.errors.NotFoundError:
        message = f"{link.name} has no topic '{topic}'; create it first"
        raise NotFoundError(message) from None


async def info_of(link: NatsLink, stream: str, consumer: str) -> api.ConsumerInfo | None:
    """Return a group's consumer; None if it does not exist."""
    try:
        info: api.ConsumerInfo = await link.stream_api.consumer_info(stream, consumer)
    except nats.js.errors.NotFoundError:
        return None
    return info


def position_of(info: api.ConsumerInfo) -> int:
    """Return the offset below which all records are acknowledged."""
    assert info.ack_floor is not None
    assert info.delivered is not None
    sequence = info.ack_floor if info.num_ack_pending else info.delivered
    return sequence.stream_seq + 1


async def ensure(link: NatsLink, membership: Membership, topic: str, stream: str) -> None:
    """Create the group's consumer unless it exists; set its timeout to this member's."""
    consumer = consumer_of(membership.group)
    info = await info_of(link, stream, consumer)
    if info is not None:
        if info.config.ack_wait == membership.session_timeout_s:
            return
        config = info.config.evolve(ack_wait=membership.session_timeout_s)
    else:
        config = _base(consumer, topic, membership.session_timeout_s)
        if membership.start_s is not None:
            config.deliver_policy = api.DeliverPolicy.BY_START_TIME
            config.opt_start_time = dt.datetime.fromtimestamp(membership.start_s, dt.UTC)
        elif membership.start is not StartPosition.EARLIEST:
            config.deliver_policy = api.DeliverPolicy.NEW
    await link.stream_api.add_consumer(stream, config)


async def move(
    link: NatsLink, stream: str, topic: str, group: str, *, offset: int, ack_wait_s: float
) -> None:
    """Recreate a group's consumer at an offset."""
    consumer = consumer_of(group)
    info = await info_of(link, stream, consumer)
    if info is not None:
        ack_wait_s = info.config.ack_wait or ack_wait_s
        await link.stream_api.delete_consumer(stream, consumer)
    config = _base(consumer, topic, ack_wait_s).evolve(
        deliver_policy=api.DeliverPolicy.BY_START_SEQUENCE, opt_start_seq=max(offset, 1)
    )
    await link.stream_api.add_consumer(stream, config)


async def responds(link: NatsLink, subject: str, payload: bytes = b"?") -> bool:
    """Return whether a member answers on a subject."""
    try:
        await link.client.request(subject, payload, timeout=_REPLY_TIMEOUT_S)
    except (nats.errors.NoRespondersError, nats.errors.TimeoutError):
        return False
    return True


async def lag_of(
    link: NatsLink, stream: str, consumer: str, topic: str, *, now_s: float
) -> PartitionLag | None:
    """Return the lag of a group at a Unix time; None without the group."""
    info = await info_of(link, stream, consumer)
    if info is None:
        return None
    records = (info.num_pending or 0) + (info.num_ack_pending or 0)
    seconds = None if records else 0.0
    if records:
        with suppress(nats.js.errors.NotFoundError):
            oldest = await link.stream_api.get_msg(
                stream, seq=position_of(info), subject=topic, next=True
            )
            if oldest.time is not None:
                seconds = max(now_s - oldest.time.timestamp(), 0.0)
    return PartitionLag(records=records, seconds=seconds)


def _base(consumer: str, topic: str, ack_wait_s: float) -> api.ConsumerConfig:
    return api.ConsumerConfig(
        durable_name=consumer,
        ack_policy=api.AckPolicy.EXPLICIT,
        ack_wait=ack_wait_s,
        max_deliver=-1,
        filter_subject=topic,
        max_ack_pending=_MAX_IN_FLIGHT,
    )


_TLS: Final = ("tls", *TLS_FILES)
OPTIONS: Final = ("creds", "nkey", "domain", "inbox_prefix", *_TLS)
_CONNECT_TIMEOUT_S: Final = 3
_PING_S: Final = 5
_RECONNECT_WAIT_S: Final = 0.2


def translate_error(error: Exception, operation: str, server: str) -> HeadraceError:
    """Return the exception for an error of the client or the server."""
    cannot = f"cannot {operation} in {server}"
    text = str(error) or type(error).__name__
    refused = ("authorization", "authentication", "invalid credentials", "permissions violation")
    if isinstance(error, nats.errors.AuthorizationError) or any(
        word in text.lower() for word in refused
    ):
        reason = "the server refuses the credentials in the URL"
        return FailedPreconditionError(f"{cannot}: {reason} ({text})")
    if isinstance(error, nats.js.errors.ServiceUnavailableError | nats.errors.NoRespondersError):
        reason = "its JetStream does not answer; start the server with -js"
        return UnavailableError(f"{cannot}: {reason}")
    if isinstance(error, nats.js.errors.NotFoundError):
        return NotFoundError(f"{cannot}: {error.description or text}")
    if isinstance(error, nats.js.errors.APIError):
        return FailedPreconditionError(f"{cannot}: {error.description or text}")
    if isinstance(error, nats.errors.BadSubjectError | ValueError):
        return InvalidArgumentError(f"{cannot}: {text}")
    return UnavailableError(f"{cannot}: {text}")


def _read(url: str) -> tuple[dict[str, Any], Mapping[str, str]]:
    """Return the arguments of the client's `connect`, and Headrace's options."""
    rest, options = split_options(url, OPTIONS)
    parts = urlsplit(rest)
    unreadable = f"the URL of the broker cannot be read ({shown(url)})"
    if parts.query:
        message = f"{unreadable}: its options are {', '.join(OPTIONS)}"
        raise InvalidArgumentError(message)
    who, _, hosts = parts.netloc.rpartition("@")
    servers = [f"nats://{host}" for host in hosts.split(",") if host]
    try:
        ports = [urlsplit(server).port for server in servers]
    except ValueError:
        raise InvalidArgumentError(f"{unreadable}: special characters are %XX") from None
    if not ports:
        raise InvalidArgumentError(f"{unreadable}: it names no host")
    arguments: dict[str, Any] = {"servers": servers}
    user, has_password, password = who.partition(":")
    if has_password:
        arguments |= {"user": unquote(user), "password": unquote(password)}
    elif user:
        arguments["token"] = unquote(user)
    if "creds" in options:
        arguments["user_credentials"] = options["creds"]
    if "nkey" in options:
        arguments["nkeys_seed"] = options["nkey"]
    if "inbox_prefix" in options:
        arguments["inbox_prefix"] = options["inbox_prefix"]
    if any(name in options for name in _TLS):
        arguments["tls"] = tls_context(options, server="NATS")
    return arguments, options


_OVERHEAD_BYTES: Final = 64
_LINE_BYTES: Final = 4


async def publish(link: NatsLink, records: Sequence[NewRecord], *, sender: str) -> None:
    """Publish records and wait for each acknowledgement.

    Args:
        sender: See `headers_of`.

    Raises:
        InvalidArgumentError: A message exceeds the server's limit; none was published.
        UnavailableError: An acknowledgement is missing; some messages may be stored.
        NotFoundError: A topic does not exist.
    """
    link.check_connected()
    max_bytes = link.client.max_payload
    messages: list[tuple[str, bytes, dict[str, str]]] = []
    for record in records:
        payload = record.value or b""
        headers = headers_of(record, sender=sender)
        size = sum(len(name) + len(value) + _LINE_BYTES for name, value in headers.items())
        size_bytes = len(payload) + size + _OVERHEAD_BYTES
        if size_bytes > max_bytes:
            message = (
                f"a record for {record.topic} has {size_bytes} bytes with its headers, and the "
                f"server takes {max_bytes}; raise its max_payload, or write smaller answers"
            )
            raise InvalidArgumentError(message)
        messages.append((record.topic, payload, headers))
    waiting = [
        await link.stream_api.publish_async(topic, payload, headers=headers or None)
        for topic, payload, headers in messages
    ]
    if not waiting:
        return
    done, late = await asyncio.wait(waiting, timeout=TIMEOUT_S)
    for future in late:
        future.cancel()
    if late:
        message = f"{link.name} did not acknowledge within {TIMEOUT_S:g} s what was written"
        raise UnavailableError(message)
    errors = [error for future in done if (error := future.exception()) is not None]
    if not errors:
        return
    for topic in {record.topic for record in records}:
        await stream_of(link, topic)
    raise errors[0]


async def acknowledge(link: NatsLink, replies: Sequence[str], *, is_confirmed: bool) -> None:
    """Acknowledge messages; wait for the server's confirmation if `is_confirmed`."""
    link.check_connected()
    if is_confirmed:
        waits = (link.client.request(reply, b"", timeout=TIMEOUT_S) for reply in replies)
        await asyncio.gather(*waits)
        return
    for reply in replies:
        await link.client.publish(reply, b"")
