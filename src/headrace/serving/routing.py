"""Request routing of a replica: paths, and the caller and deadline headers of the gateway.

The gateway removes these headers from callers' requests. A replica without a gateway trusts them:
they grant nothing beyond the request's own priority.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final
from urllib.parse import unquote_to_bytes

from headrace.core import (
    HeadraceError,
    InvalidArgumentError,
    ModelNotFoundError,
    NotFoundError,
    UnsupportedError,
)
from headrace.core.headers import PRIORITY_HEADER, SLO_HEADER, TIMEOUT_HEADER
from headrace.core.priorities import LEVELS
from headrace.protocol.pages import MODEL_PATHS, not_found_text
from headrace.serving.exchange import Exchange

_GRPC_PREFIX: Final = b"/inference.GRPCInferenceService/"
Handler = Callable[[Exchange], None]
_MODEL_PATH: Final = re.compile(
    rb"/v2/models/(?P<name>[^/]+)(?:/versions/(?P<version>[0-9]+))?(?P<verb>/[a-z_]+(?:/[a-z_]+)?)?"
    rb"|/v1/models/(?P<v1name>[^/:]+)(?P<v1verb>:[a-z]+)?"
)


class MethodNotAllowedError(HeadraceError):
    """The path exists, but not for this method."""

    def __init__(self, allowed: list[bytes]) -> None:
        super().__init__("Method Not Allowed")
        self.allowed = b", ".join(sorted(allowed))


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRoutes:
    """Paths of one model version; each exists with and without the version."""

    name: str
    version: str
    handlers: dict[tuple[bytes, bytes], Handler]
    """Handlers by method and by what follows the model's name or version, for example `/infer`."""
    v1_handlers: dict[tuple[bytes, bytes], Handler]
    """Handlers by method and by what follows `/v1/models/NAME`, for example `:predict`."""
    endpoint_handlers: dict[tuple[bytes, bytes], Handler]
    """Handlers by method and by what follows `/endpoints/NAME`, for example `/invocations`."""

    def table(self) -> "Table":
        """Return all paths with their handlers."""
        name, version = self.name.encode(), self.version.encode()
        table: Table = {}
        for (method, verb), handler in self.handlers.items():
            for base in (b"/v2/models/" + name, b"/v2/models/%b/versions/%b" % (name, version)):
                table.setdefault(base + verb, {})[method] = handler
        for (method, verb), handler in self.v1_handlers.items():
            table.setdefault(b"/v1/models/" + name + verb, {})[method] = handler
        for (method, verb), handler in self.endpoint_handlers.items():
            table.setdefault(b"/endpoints/" + name + verb, {})[method] = handler
        return table


Table = dict[bytes, dict[bytes, Handler]]
"""Handlers by path and method."""


class Router:
    """All paths of a process.

    Args:
        why_not: The error for a path that is not in the table.
    """

    def __init__(self, table: Table, why_not: Callable[[bytes], HeadraceError]) -> None:
        self._table = table
        self._why_not = why_not

    def find(self, exchange: Exchange) -> Handler:
        """Return the handler of `exchange`; sets its `query`.

        Raises:
            NotFoundError: The path does not exist, or names a model that is not served here.
            MethodNotAllowedError: The path exists, but not for this method.
        """
        methods = self._table.get(exchange.path)
        if methods is None:
            methods = self._find_slowly(exchange)
        handler = methods.get(exchange.method)
        if handler is not None:
            return handler
        if exchange.method == b"HEAD" and b"GET" in methods:
            exchange.is_head = True
            return methods[b"GET"]
        raise MethodNotAllowedError(list(methods))

    def _find_slowly(self, exchange: Exchange) -> dict[bytes, Handler]:
        """Return the handlers of a path with a query, an escape or a trailing slash."""
        path, _, exchange.query = exchange.path.partition(b"?")
        path = unquote_to_bytes(path)
        if len(path) > 1:
            path = path.removesuffix(b"/")
        methods = self._table.get(path)
        if methods is not None:
            return methods
        raise self._why_not(path)


def why_no_model(path: bytes, *, knows: Callable[[str, str], bool]) -> HeadraceError:
    """Return the error for a path without a handler.

    Args:
        knows: Whether a model of this name and version exists; an empty version matches any.
    """
    match = _MODEL_PATH.fullmatch(path)
    if match is None:
        return _why_no_path(path)
    name = (match["name"] or match["v1name"]).decode(errors="replace")[:200]
    version = (match["version"] or b"").decode()[:50]
    if knows(name, version):
        verb = b"/v2" + (match["verb"] or b"")
        return _why_unsupported(verb) or NotFoundError(MODEL_PATHS)
    if match["v1name"]:
        return NotFoundError(f"Model with name {name} does not exist.")
    return ModelNotFoundError(name, version)


def _why_no_path(path: bytes) -> HeadraceError:
    reason = _why_unsupported(path)
    return reason or NotFoundError(not_found_text(path.decode(errors="replace")))


def _why_unsupported(path: bytes) -> HeadraceError | None:
    if path.startswith((b"/v2/systemsharedmemory", b"/v2/cudasharedmemory")):
        return UnsupportedError("Client shared memory is not supported: send tensors in requests")
    if path.startswith((b"/v2/trace", b"/v2/logging")):
        return UnsupportedError("trace and log settings cannot be changed by requests")
    if path.startswith(_GRPC_PREFIX):
        rpc = path.removeprefix(_GRPC_PREFIX).decode(errors="replace")[:100]
        return UnsupportedError(f"there is no unary rpc '{rpc}'")
    return None


def add_routes(table: Table, routes: dict[tuple[bytes, bytes], Handler]) -> Table:
    """Return `table` with handlers added by method and path."""
    for (method, path), handler in routes.items():
        table.setdefault(path, {})[method] = handler
    return table


_PRIORITY: Final = PRIORITY_HEADER.encode()
_SLO: Final = SLO_HEADER.encode()
_TIMEOUT: Final = TIMEOUT_HEADER.encode()
_ENVOY_TIMEOUT: Final = b"x-envoy-expected-rq-timeout-ms"


def rank(exchange: "Exchange") -> None:
    """Set the request's priority and target response time from its headers, for the queue.

    Raises:
        InvalidArgumentError: A header is not a valid number.
    """
    headers = exchange.headers
    level = headers.get(_PRIORITY)
    if level is not None:
        if len(level) != 1 or not b"1" <= level <= b"%d" % LEVELS:
            msg = f"header {PRIORITY_HEADER} must be 1 to {LEVELS}"
            raise InvalidArgumentError(msg)
        exchange.floor = int(level)
    aim = headers.get(_SLO)
    if aim is not None:
        exchange.slo_s = _positive(aim, SLO_HEADER)


def timeout_s(headers: dict[bytes, bytes]) -> float:
    """Return how long the caller waits, according to the caller or the gateway; infinity if unset.

    Raises:
        InvalidArgumentError: A timeout is not a positive number.
    """
    limit = math.inf
    own = headers.get(_TIMEOUT)
    if own is not None:
        limit = _positive(own, TIMEOUT_HEADER)
    envoys = headers.get(_ENVOY_TIMEOUT)
    if envoys is not None:
        limit = min(limit, _positive(envoys, "x-envoy-expected-rq-timeout-ms") / 1000)
    return limit


def _positive(text: bytes, name: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not value > 0:
        msg = f"header {name} must be a positive number, got {text[:50].decode('latin-1')!r}"
        raise InvalidArgumentError(msg)
    return value
