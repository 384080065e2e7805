"""A connection to NATS for callers that block: the client's event loop runs in its own thread."""

import asyncio
import ssl
import threading
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, Final, TypeVar
from urllib.parse import unquote, urlsplit

import nats.errors
import nats.js.errors
from nats.aio.client import Client

from headrace.core import (
    FailedPreconditionError,
    HeadraceError,
    InvalidArgumentError,
    NotFoundError,
    UnavailableError,
)
from headrace.streaming.brokers.checks import shown, split_options

T = TypeVar("T")
_TLS: Final = ("tls", "tls_ca_file", "tls_cert_file", "tls_key_file")
OPTIONS: Final = ("creds", "nkey", "domain", "inbox_prefix", *_TLS)
TIMEOUT_S: Final = 5.0
_CONNECT_TIMEOUT_S: Final = 3
_PING_S: Final = 5
_RECONNECT_WAIT_S: Final = 0.2


class NatsLink:
    """Connects at once, and stays connected: while the server is away, `trouble` says so.

    Args:
        on_back: Called in the loop when the server is back.

    Raises:
        UnavailableError: The server cannot be reached.
        FailedPreconditionError: It refuses who is in the URL.
    """

    def __init__(self, url: str, *, on_back: Callable[[], Awaitable[None]] | None = None) -> None:
        self.name = shown(url)
        self._on_back = on_back
        self._trouble = ""
        self._said, options = _read(url)
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
    def trouble(self) -> str:
        """Why nothing goes; empty if all is well."""
        return "" if self.client.is_connected else self._trouble or f"{self.name} is away"

    def ask(self, doing: str, work: Coroutine[Any, Any, T], *, timeout_s: float = TIMEOUT_S) -> T:
        """The result of `work` in the loop, with its errors in our words."""
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
            raise told(error, doing, self.name) from error

    def begin(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Let `work` run in the loop."""
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def check_connected(self) -> None:
        """Raises UnavailableError while the server is away: the client would keep what is sent."""
        if not self.client.is_connected:
            raise UnavailableError(self.trouble or f"{self.name} is away")

    def close(self) -> None:
        """Hang up and end the loop; twice is once."""
        if self._is_closed:
            return
        self._is_closed = True
        future = asyncio.run_coroutine_threadsafe(self._hang_up(), self._loop)
        with suppress(TimeoutError):
            future.result(TIMEOUT_S)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(TIMEOUT_S)
        if not self._thread.is_alive():
            self._loop.close()

    async def _connect(self) -> None:
        # Tried once, so that what is wrong is told; the client would try for ever.
        trial = Client()
        try:
            await trial.connect(
                **self._said,
                allow_reconnect=False,
                max_reconnect_attempts=1,  # 0 would be for ever
                reconnect_time_wait=0,
                connect_timeout=_CONNECT_TIMEOUT_S,
                error_cb=self._on_error,
            )
        except nats.errors.NoServersError:
            raise UnavailableError(self._trouble) from None
        finally:
            await trial.close()
        await self.client.connect(
            **self._said,
            connect_timeout=_CONNECT_TIMEOUT_S,
            max_reconnect_attempts=-1,
            reconnect_time_wait=_RECONNECT_WAIT_S,  # type: ignore[arg-type]  # it only sleeps so long
            ping_interval=_PING_S,
            error_cb=self._on_error,
            disconnected_cb=self._on_disconnected,
            reconnected_cb=self._on_reconnected,
        )

    async def _hang_up(self) -> None:
        if self.client.is_connected or self.client.is_reconnecting:
            with suppress(nats.errors.Error, OSError):
                await self.client.close()
        rest = asyncio.all_tasks() - {asyncio.current_task()}
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)

    async def _on_error(self, error: Exception) -> None:
        if not self.client.is_connected:
            self._trouble = f"{self.name} is away: {str(error) or type(error).__name__}"
            # The client forgets a connection to a server that then says nothing: it would stay.
            transport = self.client._transport  # noqa: SLF001  # it has no other name
            if transport is not None:
                transport.close()  # type: ignore[no-untyped-call]  # it says nothing

    async def _on_disconnected(self) -> None:
        self._trouble = self._trouble or f"{self.name} is away: it hung up"

    async def _on_reconnected(self) -> None:
        self._trouble = ""
        if self._on_back is not None:
            await self._on_back()


def told(error: Exception, doing: str, server: str) -> HeadraceError:
    """What a caller is told of an error of the client's or the server's."""
    cannot = f"cannot {doing} in {server}"
    said = str(error) or type(error).__name__
    refused = ("authorization", "authentication", "invalid credentials", "permissions violation")
    if isinstance(error, nats.errors.AuthorizationError) or any(
        word in said.lower() for word in refused
    ):
        reason = "the server refuses who is named in its URL"
        return FailedPreconditionError(f"{cannot}: {reason} ({said})")
    if isinstance(error, nats.js.errors.ServiceUnavailableError | nats.errors.NoRespondersError):
        reason = "its JetStream does not answer; start the server with -js"
        return UnavailableError(f"{cannot}: {reason}")
    if isinstance(error, nats.js.errors.NotFoundError):
        return NotFoundError(f"{cannot}: {error.description or said}")
    if isinstance(error, nats.js.errors.APIError):
        return FailedPreconditionError(f"{cannot}: {error.description or said}")
    if isinstance(error, nats.errors.BadSubjectError | ValueError):
        return InvalidArgumentError(f"{cannot}: {said}")
    return UnavailableError(f"{cannot}: {said}")


def _read(url: str) -> tuple[dict[str, Any], Mapping[str, str]]:
    """Arguments of the client's `connect`, and our options."""
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
    said: dict[str, Any] = {"servers": servers}
    user, has_password, password = who.partition(":")
    if has_password:
        said |= {"user": unquote(user), "password": unquote(password)}
    elif user:
        said["token"] = unquote(user)
    if "creds" in options:
        said["user_credentials"] = options["creds"]
    if "nkey" in options:
        said["nkeys_seed"] = options["nkey"]
    if "inbox_prefix" in options:
        said["inbox_prefix"] = options["inbox_prefix"]
    if any(name in options for name in _TLS):
        said["tls"] = _tls(options)
    return said, options


def _tls(options: Mapping[str, str]) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=options.get("tls_ca_file"))
        if "tls_cert_file" in options:
            context.load_cert_chain(options["tls_cert_file"], options.get("tls_key_file"))
    except OSError as error:
        raise FailedPreconditionError(f"a file for TLS to NATS cannot be read: {error}") from error
    return context
