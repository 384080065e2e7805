"""How does a generator open connections? The server's name is looked up once, not for each."""

import asyncio
import socket
import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, cast
from urllib.parse import urlsplit

from headrace.client.credentials import tls_context
from headrace.core import UnavailableError
from headrace.load.connection import Connection
from headrace.load.target import Target

_TLS_PORT: Final = 443
_PORT: Final = 80


async def dialler(target: Target) -> "SocketDialler":
    """What opens connections to `target`.

    Raises:
        UnavailableError: The name means no address.
    """
    server = target.server
    if server.uds:
        return SocketDialler(uds=server.uds)
    parts = urlsplit(f"//{server.authority}")
    host = parts.hostname or ""
    port = parts.port or (_TLS_PORT if server.tls else _PORT)
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        msg = f"cannot connect to {server.authority}: {error.strerror or error}"
        raise UnavailableError(msg, retry_after_s=None) from error
    context = tls_context(target.manner.trust) if server.tls else None
    if context is True:
        context = ssl.create_default_context()
    return SocketDialler(
        addresses=[str(info[4][0]) for info in found],
        port=port,
        context=context or None,
        server_name=target.manner.trust.server_name or host,
    )


@dataclass(slots=True, kw_only=True)
class SocketDialler:
    """Opens connections to the first address that takes one."""

    uds: str = ""
    addresses: Sequence[str] = ()
    port: int = 0
    context: ssl.SSLContext | None = None
    server_name: str = ""

    async def connect(self, make: Callable[[], Connection]) -> Connection:
        """See `Dialler`."""
        loop = asyncio.get_running_loop()
        if self.uds:
            _, connection = await loop.create_unix_connection(make, self.uds)
            return connection
        failure: OSError | None = None
        for address in self.addresses:
            try:
                _, connection = await loop.create_connection(
                    make,
                    address,
                    self.port,
                    ssl=self.context,
                    server_hostname=self.server_name if self.context else None,
                )
            except OSError as error:
                failure = failure or error
            else:
                self.addresses = [address]
                return connection
        raise cast("OSError", failure)
