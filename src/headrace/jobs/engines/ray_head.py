"""Check of a Ray cluster's address, before Ray's own library connects to it.

Ray's library tries for minutes, and its error seldom names the reason. A connection and one gRPC
call tell within seconds whether a head listens there and whether it asks for a token.
"""

import os
import socket
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Final
from urllib.parse import urlsplit

import grpc

from headrace.core import InvalidArgumentError

LOCAL: Final = "local"
"""A cluster on this machine that ends with the job."""
AUTO: Final = "auto"
"""The cluster that runs on this machine, or that `RAY_ADDRESS` names."""
ANSWER_S: Final = 10.0
ASKS: Final = (
    "it asks for a token: set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN, unless the token is in "
    "~/.ray/auth_token"
)
WRONG: Final = "is RAY_AUTH_TOKEN, or else ~/.ray/auth_token, that of the cluster?"
# The service is in Ray's `gcs_service.proto`. Any answer will do, that the method is unknown too.
_METHOD: Final = "/ray.rpc.NodeInfoGcsService/GetClusterId"
_SILENT: Final = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)

HostPort = tuple[str, int]
Connect = Callable[[HostPort, float], AbstractContextManager[object]]


def check_address(address: str) -> str:
    """`address`, if Ray can take it.

    Raises:
        InvalidArgumentError: It is neither a word that Ray knows, nor `HOST:PORT`, nor a URL.
    """
    if address not in {LOCAL, AUTO} and "://" not in address and ":" not in address:
        msg = f"--address {address} is none of Ray's: say HOST:PORT, auto or ray://HOST:PORT"
        raise InvalidArgumentError(msg)
    host_of(address)
    return address


def host_of(address: str) -> HostPort | None:
    """The host and port of `HOST:PORT` and `ray://HOST:PORT`; None for words and other schemes.

    Raises:
        InvalidArgumentError: It has no host, or no port.
    """
    scheme, has_scheme, rest = address.rpartition("://")
    if (has_scheme and scheme != "ray") or not (has_scheme or ":" in address):
        return None
    try:
        parts = urlsplit(f"//{rest.partition('/')[0]}")
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if not host or not port:
        msg = f"--address {address} names no HOST:PORT, with a port from 1 to 65535"
        raise InvalidArgumentError(msg)
    return host, port


def why_unreachable(address: str) -> str:
    """Why Ray cannot connect to `address`; empty if Ray can try."""
    # Where Ray itself looks for the address, this variable takes precedence.
    named = os.environ.get("RAY_ADDRESS", "") if address == AUTO else ""
    head = host_of(named or address)
    if head is None:
        return ""
    return why_silent(head) or _why_no_head(*head)


def why_silent(head: HostPort, connect: Connect = socket.create_connection) -> str:
    """Why nothing accepts a connection at `head`; empty if something does."""
    try:
        with connect(head, ANSWER_S):
            return ""
    except OSError as error:
        late = f"no answer within {ANSWER_S:g} s"
        why = late if isinstance(error, TimeoutError) else error.strerror or str(error)
        return f"{head[0]}:{head[1]}: {why}"


def _why_no_head(host: str, port: int) -> str:
    if os.environ.get("RAY_USE_TLS", "0") not in {"", "0"}:
        return ""  # with certificates that Ray knows where to find
    target = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    # As Ray does: its clusters are not behind the proxy of a company.
    with grpc.insecure_channel(target, options=[("grpc.enable_http_proxy", 0)]) as channel:
        try:
            channel.unary_unary(_METHOD)(b"", timeout=ANSWER_S)
        except grpc.RpcError as error:
            return why_refused(error.code(), f"{host}:{port}", shows_token=has_token())
    return ""


def has_token() -> bool:
    """Whether Ray is set up to show a token."""
    return os.environ.get("RAY_AUTH_MODE", "").lower() == "token"


def why_refused(code: grpc.StatusCode, head: str, *, shows_token: bool) -> str:
    """What an answer means for a driver that wants to connect; empty if it can try."""
    if code in _SILENT:
        return f"{head}: what listens there does not answer as Ray does"
    if code is grpc.StatusCode.UNAUTHENTICATED and not shows_token:
        return ASKS
    return ""
