"""Routes of a replica: request paths, and callers and deadlines as the gateway states them.

A caller's own headers of these names are removed at the gateway. A replica without one believes
them: they give nothing that the request's own priority does not.
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
from headrace.serving.exchange import Exchange

_GRPC_PREFIX: Final = b"/inference.GRPCInferenceService/"
Handler = Callable[[Exchange], None]
_MODEL_PATH: Final = re.compile(
    rb"/v2/models/(?P<name>[^/]+)(?:/versions/(?P<version>[0-9]+))?(?P<verb>/[a-z_]+(?:/[a-z_]+)?)?"
    rb"|/v1/models/(?P<v1name>[^/:]+)(?P<v1verb>:[a-z]+)?"
)


class MethodNotAllowedError(HeadraceError):
    """The path exists, the method is another one."""

    def __init__(self, allowed: list[bytes]) -> None:
        super().__init__("Method Not Allowed")
        self.allowed = b", ".join(sorted(allowed))


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRoutes:
    """The paths of one model version: all of them exist with and without the version."""

    name: str
    version: str
    handlers: dict[tuple[bytes, bytes], Handler]
    """By method and what follows the model's name or version, for instance `/infer`."""
    v1_handlers: dict[tuple[bytes, bytes], Handler]
    """By method and what follows `/v1/models/NAME`, for instance `:predict`."""

    def table(self) -> "Table":
        """All of them."""
        name, version = self.name.encode(), self.version.encode()
        table: Table = {}
        for (method, verb), handler in self.handlers.items():
            for base in (b"/v2/models/" + name, b"/v2/models/%b/versions/%b" % (name, version)):
                table.setdefault(base + verb, {})[method] = handler
        for (method, verb), handler in self.v1_handlers.items():
            table.setdefault(b"/v1/models/" + name + verb, {})[method] = handler
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
        """What answers `exchange`; sets its `query`.

        Raises:
            NotFoundError: No such path, or another model than the one that is served here.
            MethodNotAllowedError: The path is there, but not for this method.
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
        """A path with a query, an escape or a trailing slash; else say what is wrong with it."""
        path, _, exchange.query = exchange.path.partition(b"?")
        path = unquote_to_bytes(path)
        if len(path) > 1:
            path = path.removesuffix(b"/")
        methods = self._table.get(path)
        if methods is not None:
            return methods
        raise self._why_not(path)


def why_no_model(path: bytes, *, knows: Callable[[str, str], bool]) -> HeadraceError:
    """What is wrong with a path that no handler is for.

    Args:
        knows: Whether there is a model of this name and version, any one if that is empty.
    """
    match = _MODEL_PATH.fullmatch(path)
    if match is None:
        return _why_no_path(path)
    name = (match["name"] or match["v1name"]).decode(errors="replace")[:200]
    version = (match["version"] or b"").decode()[:50]
    if knows(name, version):
        return _why_no_path(b"/v2" + (match["verb"] or b""))
    if match["v1name"]:
        return NotFoundError(f"Model with name {name} does not exist.")
    return ModelNotFoundError(name, version)


def _why_no_path(path: bytes) -> HeadraceError:
    if path.startswith((b"/v2/systemsharedmemory", b"/v2/cudasharedmemory")):
        return UnsupportedError("Client shared memory is not supported: send tensors in requests")
    if path.startswith((b"/v2/trace", b"/v2/logging")):
        return UnsupportedError("trace and log settings cannot be changed by requests")
    if path.startswith(_GRPC_PREFIX):
        rpc = path.removeprefix(_GRPC_PREFIX).decode(errors="replace")[:100]
        return UnsupportedError(f"there is no unary rpc '{rpc}'")
    return NotFoundError("Not Found")


def add_routes(table: Table, routes: dict[tuple[bytes, bytes], Handler]) -> Table:
    """`table` with handlers by method and path."""
    for (method, path), handler in routes.items():
        table.setdefault(path, {})[method] = handler
    return table


_PRIORITY: Final = PRIORITY_HEADER.encode()
_SLO: Final = SLO_HEADER.encode()
_TIMEOUT: Final = TIMEOUT_HEADER.encode()
_ENVOY_TIMEOUT: Final = b"x-envoy-expected-rq-timeout-ms"


def rank(exchange: "Exchange") -> None:
    """Note the caller's priority and the endpoint's aim, for the queue.

    Raises:
        InvalidArgumentError: One of them is no such number.
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
    """How long the caller, or the gateway for it, waits; infinity if nobody says.

    Raises:
        InvalidArgumentError: A timeout is no positive number.
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
