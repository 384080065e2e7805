"""Free ports, checked before anything is started, so that a conflict has no effect."""

import contextlib
import errno
import random
import socket
from contextlib import ExitStack
from typing import Final

from headrace.core import FailedPreconditionError, InvalidArgumentError
from headrace.core.processes import port_user

_BACKLOG: Final = 128
_PICKED_FROM: Final = range(20_000, 32_000)
"""Below the range of outgoing connections, which begins at 32768 on Linux by default."""
_TRIES: Final = 50


def listen(host: str, port: int, *, description: str, flag: str) -> socket.socket:
    """Return a listening socket; port 0 picks a free port.

    Args:
        what: The purpose of the port; `flag` sets the port. Both appear in the message.

    Raises:
        FailedPreconditionError: Another process uses the port.
    """
    sock = _bind(host, port, description=description, flag=flag)
    sock.listen(_BACKLOG)
    sock.setblocking(False)  # noqa: FBT003  # the standard library's signature
    return sock


def pick_ports(host: str, requested: dict[str, int]) -> dict[str, int]:
    """Return the port of each flag in `requested`, each checked to be free; 0 picks one.

    Equal numbers other than 0 share a port.

    Raises:
        FailedPreconditionError: Another process uses a port.
    """
    picked: dict[str, int] = {}
    with ExitStack() as stack:
        # All stay bound until all are picked; otherwise two requests for 0 may get the same port.
        for flag, port in requested.items():
            if port and port in picked.values():
                picked[flag] = port
                continue
            sock = stack.enter_context(
                _bind(host, port, description="the gateway", flag=flag)
                if port
                else _bind_free(host, flag)
            )
            picked[flag] = sock.getsockname()[1]
    return picked


def _bind_free(host: str, flag: str) -> socket.socket:
    """Return a socket on a port outside the kernel's ephemeral range.

    The gateway binds it a moment later: a port from the kernel's own range could meanwhile become
    the local port of an outgoing connection.
    """
    for port in random.sample(_PICKED_FROM, _TRIES):
        with contextlib.suppress(FailedPreconditionError):
            return _bind(host, port, description="the gateway", flag=flag)
    return _bind(host, 0, description="the gateway", flag=flag)


def _bind(host: str, port: int, *, description: str, flag: str) -> socket.socket:
    try:
        family, kind, _, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError as error:
        raise InvalidArgumentError(
            f"cannot bind {description} to host {host!r}: {error}"
        ) from error
    sock = socket.socket(family, kind)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
    except OSError as error:
        sock.close()
        raise FailedPreconditionError(_why(error, host, port, description, flag)) from error
    return sock


def _why(error: OSError, host: str, port: int, description: str, flag: str) -> str:
    if error.errno == errno.EADDRINUSE:
        user = port_user(port)
        by = f" by {user}" if user else ""
        choose = f"choose another with {flag}, 0 picks one"
        return f"port {port} on {host} ({description}) is in use{by}; {choose}"
    if error.errno == errno.EACCES:
        return (
            f"port {port} on {host} ({description}) needs more rights; choose one above "
            f"1023: {flag}"
        )
    return f"cannot bind {description} to {host}:{port}: {error.strerror}"
