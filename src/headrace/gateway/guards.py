"""What each route asks of its callers.

Beyond loopback every route asks who calls, except those about health and those of public
endpoints; on loopback only endpoints whose spec says so do. A filter is in a stream only if the
stream's first route configures it, so what is open pays nothing.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from headrace.core.spec_access import EndpointAccess
from headrace.gateway.extensions import IDENTIFY
from headrace.gateway.resources import Json, Resource, any_of
from headrace.gateway.scripts_auth import AUTHORIZE, EVERY, KEEP, LISTED, NAMED
from headrace.gateway.scripts_auth import IDENTIFY as IDENTIFY_SCRIPT
from headrace.gateway.settings import EndpointRoute, GatewaySettings

CREDENTIALS: Final = ("authorization", "x-api-key")
"""The headers by which callers show who they are; no replica gets them."""
AUTHORIZE_FILTER: Final = "headrace.authorize"
GUARDS: Final = (IDENTIFY.filter_name, AUTHORIZE_FILTER)
"""The filters that ask; our own requests, by the private socket, do not meet them."""

_LUA_PER_ROUTE: Final = "envoy.extensions.filters.http.lua.v3.LuaPerRoute"
_ANYBODY_KNOWN: Final = EndpointAccess()


@dataclass(frozen=True, slots=True, kw_only=True)
class Guard:
    """What routes have to know to ask. `closed`: an endpoint that says nothing asks for anything.

    `has_jwt`: there are identity providers whose tokens are worth a look. `has_public`: some
    endpoint asks for nothing. `asks`: some endpoint does.
    """

    closed: bool
    has_public: bool = False
    asks: bool = True

    def access(self, endpoint: EndpointRoute) -> EndpointAccess | None:
        """What `endpoint` asks for; None for nothing."""
        found = endpoint.access or (_ANYBODY_KNOWN if self.closed else None)
        return None if found is None or found.public else found

    def endpoint(self, endpoint: EndpointRoute, version: str = "") -> Resource:
        """Filters of an HTTP route to `endpoint`, or to one version of it."""
        access = self.access(endpoint)
        return {} if access is None else _identify(_rule(access, endpoint.name, version))

    def grpc_endpoint(self, endpoint: EndpointRoute, version: str = "") -> Resource:
        """Filters of a gRPC route: the caller is known when it is chosen."""
        access = self.access(endpoint)
        return {} if access is None else _authorize(_rule(access, endpoint.name, version))

    @property
    def knows_callers(self) -> bool:
        """Whether callers are authenticated anywhere, so that they may be told different things."""
        return self.closed or self.asks

    def unknown(self) -> Resource:
        """Filters of a route to an endpoint that is not there: answered as one that asks."""
        return _identify(_rule(_ANYBODY_KNOWN, NAMED)) if self.knows_callers else {}

    def grpc_unknown(self) -> Resource:
        """The same for a gRPC route that is chosen after the model's name was read."""
        return _authorize(_rule(_ANYBODY_KNOWN, NAMED)) if self.knows_callers else {}

    def every(self) -> Resource:
        """Filters of a route about all endpoints."""
        return _identify(_rule(_ANYBODY_KNOWN, EVERY)) if self.knows_callers else {}

    def listing(self, endpoints: Sequence[EndpointRoute]) -> Resource:
        """Filters of a route that names endpoints: those that the caller may use."""
        if not self.knows_callers:
            return {}
        marked = sorted((e.name, "!" if self.access(e) else "") for e in endpoints)
        rule = _rule(_ANYBODY_KNOWN, LISTED) if self.closed else f"{LISTED}||"
        return _identify(rule, endpoints=" ".join(mark + name for name, mark in marked))

    def server(self) -> Resource:
        """Filters of a route that is about no endpoint: whoever is known may use it."""
        return _identify(_rule(_ANYBODY_KNOWN)) if self.closed else {}

    def grpc_look(self, *, health: bool = False, every: bool = False) -> Resource:
        """Filters of the first route of a gRPC call, before it is known which model it names.

        Nobody's messages are held and read where no endpoint is for everybody.

        Args:
            every: Whether a call that names none is about all endpoints.
        """
        if not self.knows_callers:
            return {}
        known = self.closed and not health
        at_once = _rule(_ANYBODY_KNOWN) if known and not self.has_public else ""
        after = _AUTHORIZE_IDLE
        if known or every:
            after = _authorize(_rule(_ANYBODY_KNOWN, EVERY if every else ""))
        return {**_identify(f"{KEEP}{at_once}"), **after}


def guard_of(settings: GatewaySettings, endpoints: Iterable[EndpointRoute]) -> Guard:
    """What this gateway asks where."""
    plain = Guard(closed=not settings.is_loopback)
    asked = [plain.access(endpoint) is not None for endpoint in endpoints]
    return Guard(
        closed=plain.closed,
        has_public=not all(asked),
        asks=any(asked),
    )


def without_credentials(action: Resource) -> Resource:
    """`action`, of a route or of one cluster of a split, that passes on no credentials."""
    return {**action, "request_headers_to_remove": CREDENTIALS}


def _identify(rule: str, **more: Json) -> Resource:
    context: Resource = {"rule": rule, **more}
    script = any_of(_LUA_PER_ROUTE, {"name": IDENTIFY_SCRIPT, "filter_context": context})
    return {IDENTIFY.filter_name: script}


def _authorize(rule: str) -> Resource:
    context: Resource = {"rule": rule}
    return {
        AUTHORIZE_FILTER: any_of(_LUA_PER_ROUTE, {"name": AUTHORIZE, "filter_context": context})
    }


def _rule(access: EndpointAccess, endpoint: str = "", version: str = "") -> str:
    """`ENDPOINT|VERSION|METHODS`, which the scripts take apart once and remember."""
    methods = ",".join(str(method) for method in access.any_of)
    return f"{endpoint}|{version}|{methods}"


# There but idle: the route that is chosen in the end may have it run.
_AUTHORIZE_IDLE: Final[Resource] = {AUTHORIZE_FILTER: any_of(_LUA_PER_ROUTE, {"disabled": True})}
