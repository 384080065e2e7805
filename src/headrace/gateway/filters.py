"""HTTP filters of every request, and each route's authentication.

Beyond loopback every route authenticates callers, except health routes and those of public
endpoints; on loopback only endpoints whose spec requires it do. A filter is in a stream only if the
stream's first route configures it, so public routes have no cost.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Final

from headrace.core.headers import INTERNAL_HEADERS
from headrace.core.spec.access import CorsSpec, EndpointAccess
from headrace.core.spec.rollout import StickySpec
from headrace.gateway.callers import FLOOD, IDENTIFY, LIMITS, Extension
from headrace.gateway.limits import FILTERS as LIMIT_FILTERS
from headrace.gateway.limits import limit_filters
from headrace.gateway.resources import Json, Resource, any_of, typed
from headrace.gateway.scripts import (
    CHECK_NAMES,
    CHECK_NAMES_SOURCE,
    CORS,
    CORS_SOURCE,
    INFLATE,
    INFLATE_SOURCE,
    REFUSE,
    REFUSE_SOURCE,
    SELECT,
    SELECT_SOURCE,
    UNIT,
    UNIT_SOURCE,
)
from headrace.gateway.scripts_auth import AUTHORIZE, AUTHORIZE_SOURCE, EVERY, KEEP, LISTED, NAMED
from headrace.gateway.scripts_auth import IDENTIFY as IDENTIFY_SCRIPT
from headrace.gateway.scripts_openai import OPENAI, OPENAI_SOURCE
from headrace.gateway.settings import EndpointRoute, EnvoySettings

if TYPE_CHECKING:
    from headrace.protocol.pages import ListTemplate

CREDENTIALS: Final = ("authorization", "x-api-key")
"""Headers with callers' credentials; they are never forwarded to replicas."""
AUTHORIZE_FILTER: Final = "headrace.authorize"
GUARDS: Final = (IDENTIFY.filter_name, AUTHORIZE_FILTER)
"""Authentication filters; the system's own requests, by the private socket, bypass them."""
_ANY_AUTHENTICATED: Final = EndpointAccess()


@dataclass(frozen=True, slots=True, kw_only=True)
class AuthFilters:
    """Authentication filters of a gateway's routes."""

    closed: bool
    """Whether endpoints without their own `access` require an authenticated caller."""
    has_public: bool = False
    """Whether some endpoint is public."""
    requires_caller: bool = True
    """Whether some endpoint requires an authenticated caller."""

    def access(self, endpoint: EndpointRoute) -> EndpointAccess | None:
        """Return the authentication that `endpoint` requires; None for none."""
        access = endpoint.access or (_ANY_AUTHENTICATED if self.closed else None)
        return None if access is None or access.public else access

    def endpoint(self, endpoint: EndpointRoute, version: str = "") -> Resource:
        """Return the filters of an HTTP route to `endpoint`, or to one version of it."""
        access = self.access(endpoint)
        return {} if access is None else _identify(_rule(access, endpoint.name, version))

    def grpc_endpoint(self, endpoint: EndpointRoute, version: str = "") -> Resource:
        """Return the filters of a gRPC route: it is chosen after the caller was identified."""
        access = self.access(endpoint)
        return {} if access is None else _authorize(_rule(access, endpoint.name, version))

    @property
    def identifies_callers(self) -> bool:
        """Whether some route identifies callers, so that responses may depend on them."""
        return self.closed or self.requires_caller

    def unknown(self) -> Resource:
        """Return the filters of a route to a missing endpoint: as for one with authentication."""
        return _identify(_rule(_ANY_AUTHENTICATED, NAMED)) if self.identifies_callers else {}

    def grpc_unknown(self) -> Resource:
        """Return the same for a gRPC route that is chosen after the model's name was read."""
        return _authorize(_rule(_ANY_AUTHENTICATED, NAMED)) if self.identifies_callers else {}

    def every(self) -> Resource:
        """Return the filters of a route about all endpoints."""
        return _identify(_rule(_ANY_AUTHENTICATED, EVERY)) if self.identifies_callers else {}

    def listing(
        self,
        endpoints: Sequence[EndpointRoute],
        template: "ListTemplate",
        *,
        is_public: bool = False,
    ) -> Resource:
        """Return the filters of a route that lists the endpoints that the caller may use.

        Args:
            is_public: Whether callers without authentication get the public endpoints, also where
                others require it.
        """
        if not self.identifies_callers:
            return {}
        marked = [
            (
                ("!" if self.access(e) else "") + ("@" if e.serves_openai else "") + e.name,
                "".join(f"={alias.name}" for alias in e.aliases if e.serves_openai),
            )
            for e in sorted(endpoints, key=lambda endpoint: endpoint.name)
        ]
        needs_caller = self.closed and not is_public
        rule = _rule(_ANY_AUTHENTICATED, LISTED) if needs_caller else f"{LISTED}||"
        return _identify(
            rule,
            endpoints=" ".join(name + aliases for name, aliases in marked),
            **asdict(template),
        )

    def some(self) -> Resource:
        """Return the filters of a route for any authenticated caller, if callers are identified."""
        return _identify(_rule(_ANY_AUTHENTICATED)) if self.identifies_callers else {}

    def server(self) -> Resource:
        """Return the filters of a route without endpoint, for any authenticated caller."""
        return _identify(_rule(_ANY_AUTHENTICATED)) if self.closed else {}

    def grpc_check(self, *, health: bool = False, every: bool = False) -> Resource:
        """Return the filters of a gRPC call's first route, before its model is known.

        Messages are buffered and read only if some endpoint is public.

        Args:
            every: Whether a call that names none is about all endpoints.
        """
        if not self.identifies_callers:
            return {}
        needs_caller = self.closed and not health
        at_once = _rule(_ANY_AUTHENTICATED) if needs_caller and not self.has_public else ""
        after = _AUTHORIZE_IDLE
        if needs_caller or every:
            after = _authorize(_rule(_ANY_AUTHENTICATED, EVERY if every else ""))
        return {**_identify(f"{KEEP}{at_once}"), **after}


def auth_filters(settings: EnvoySettings, endpoints: Iterable[EndpointRoute]) -> AuthFilters:
    """Return the authentication filters of this gateway."""
    plain = AuthFilters(closed=not settings.is_loopback)
    authenticates = [plain.access(endpoint) is not None for endpoint in endpoints]
    return AuthFilters(
        closed=plain.closed,
        has_public=not all(authenticates),
        requires_caller=any(authenticates),
    )


def without_credentials(action: Resource) -> Resource:
    """Return `action`, of a route or of a split's cluster, without forwarded credentials."""
    return {**action, "request_headers_to_remove": CREDENTIALS}


def _identify(rule: str, **actions: Json) -> Resource:
    context: Resource = {"rule": rule, **actions}
    script = any_of(_LUA_PER_ROUTE, {"name": IDENTIFY_SCRIPT, "filter_context": context})
    return {IDENTIFY.filter_name: script}


def _authorize(rule: str) -> Resource:
    context: Resource = {"rule": rule}
    return {
        AUTHORIZE_FILTER: any_of(_LUA_PER_ROUTE, {"name": AUTHORIZE, "filter_context": context})
    }


def _rule(access: EndpointAccess, endpoint: str = "", version: str = "") -> str:
    """Return `ENDPOINT|VERSION|METHODS`, which the scripts parse once and cache."""
    methods = ",".join(str(method) for method in access.any_of)
    return f"{endpoint}|{version}|{methods}"


_LUA_PER_ROUTE: Final = "envoy.extensions.filters.http.lua.v3.LuaPerRoute"
# Present but idle: the finally chosen route may activate it.
_AUTHORIZE_IDLE: Final[Resource] = {AUTHORIZE_FILTER: any_of(_LUA_PER_ROUTE, {"disabled": True})}
MODEL_HEADER: Final = "x-model"
"""Model that a gRPC call names; with the version after a tilde, if it names one."""
VERSION_HEADER: Final = "x-model-version"
"""Version header of a replica's own gRPC port; behind the gateway only the message counts."""
SERVICE: Final = "inference.GRPCInferenceService"
HEALTH_CHECK: Final = "grpc.health.v1.Health/Check"
MODEL_RPCS: Final = {
    "ModelInfer": ("model_name", "model_version"),
    "ModelReady": ("name", "version"),
    "ModelMetadata": ("name", "version"),
    "ModelConfig": ("name", "version"),
    "ModelStatistics": ("name", "version"),
}
"""Unary RPCs that name a model, and their fields with the name."""
_EXTRACTION_FILTER: Final = "envoy.filters.http.grpc_field_extraction"
_BRIDGE_FILTER: Final = "headrace.bridge"
_BRIDGE: Final = "envoy.extensions.filters.http.grpc_http1_reverse_bridge"
_SELECT_FILTER: Final = "headrace.select"
_REFUSE_FILTER: Final = "headrace.refuse"
_UNIT_FILTER: Final = "headrace.unit"
_OPENAI_FILTER: Final = "headrace.openai"
_CORS_FILTER: Final = "headrace.cors"
_CORS_METHODS: Final = "GET, HEAD, POST"
_CORS_REQUEST_HEADERS: Final = "*, authorization"  # `*` does not include `authorization`
_CORS_RESPONSE_HEADERS: Final = (
    "inference-header-content-length",
    "retry-after",
    "www-authenticate",
    "x-ratelimit-limit",
    "x-ratelimit-remaining",
    "x-ratelimit-reset",
    "x-request-id",
)
_LUA: Final = "envoy.extensions.filters.http.lua.v3.Lua"
_GRPC_ONLY: Final[Resource] = {
    _EXTRACTION_FILTER: any_of("envoy.config.route.v3.FilterConfig", {"config": {}}),
    _BRIDGE_FILTER: any_of(f"{_BRIDGE}.v3.FilterConfigPerRoute", {"disabled": False}),
    # Present but idle: the finally chosen route may activate it.
    _REFUSE_FILTER: any_of(_LUA_PER_ROUTE, {"disabled": True}),
}
BRIDGING: Final[Resource] = _GRPC_ONLY
"""Per-route configuration of gRPC calls: only their streams have the gRPC filters."""
SELECTING: Final[Resource] = {
    **_GRPC_ONLY,
    _SELECT_FILTER: any_of(_LUA_PER_ROUTE, {"name": SELECT}),
}
"""Per-route configuration: read the model's name and choose the route again."""
INFLATING: Final[Resource] = {
    **{name: config for name, config in _GRPC_ONLY.items() if name != _EXTRACTION_FILTER},
    _SELECT_FILTER: any_of(_LUA_PER_ROUTE, {"name": INFLATE}),
}
"""Per-route configuration: the same for messages that may be compressed."""
OPENAI_MEASURING: Final[Resource] = {_OPENAI_FILTER: any_of(_LUA_PER_ROUTE, {"name": OPENAI})}
"""Per-route configuration: read the tokens and times of the response."""


def reading_openai(endpoints: Sequence[EndpointRoute]) -> Resource:
    """Return per-route configuration that reads the model's name from a body of OpenAI's API.

    The route is then chosen again. An alias in the body becomes the name that it stands for.
    """
    aliases: dict[str, Json] = {
        alias.name: f"{endpoint.name}:{alias.version}" if alias.version else endpoint.name
        for endpoint in endpoints
        if endpoint.serves_openai
        for alias in endpoint.aliases
    }
    script: Resource = {"name": OPENAI, **({"filter_context": aliases} if aliases else {})}
    return {
        _OPENAI_FILTER: any_of(_LUA_PER_ROUTE, script),
        # Present but idle: the finally chosen route may activate it.
        _REFUSE_FILTER: any_of(_LUA_PER_ROUTE, {"disabled": True}),
    }


UNIT_IDLE: Final[Resource] = {_UNIT_FILTER: any_of(_LUA_PER_ROUTE, {"disabled": True})}
"""Per-route configuration: the sticky key may have to be read once the model is known."""
BRIDGED_ELSEWHERE: Final[Resource] = {
    _BRIDGE_FILTER: any_of(f"{_BRIDGE}.v3.FilterConfigPerRoute", {"disabled": True})
}
"""Per-route configuration: gRPC is forwarded as gRPC."""
REFUSING: Final[Resource] = {_REFUSE_FILTER: any_of(_LUA_PER_ROUTE, {"name": REFUSE})}
"""Per-route configuration: respond that the model does not exist."""
CHECKING_NAMES: Final[Resource] = {_REFUSE_FILTER: any_of(_LUA_PER_ROUTE, {"name": CHECK_NAMES})}
"""Per-route configuration: refuse headers that a server behind this gateway may misread."""


def allowing_origins(cors: CorsSpec | None) -> Resource:
    """Return the configuration of all routes that answers scripts of other origins."""
    if cors is None:
        return {}
    context: Resource = {
        "origins": " ".join(cors.allow_origins),
        "methods": _CORS_METHODS,
        "request_headers": _CORS_REQUEST_HEADERS,
        "response_headers": ", ".join(_CORS_RESPONSE_HEADERS),
        "max_age": str(cors.max_age_s),
    }
    return {_CORS_FILTER: any_of(_LUA_PER_ROUTE, {"name": CORS, "filter_context": context})}


def reading_unit(sticky: StickySpec) -> Resource:
    """Return the per-route configuration that reads the sticky key and chooses the route again."""
    context: Resource = {"cookie": sticky.cookie} if sticky.cookie else {"claim": sticky.claim}
    return {_UNIT_FILTER: any_of(_LUA_PER_ROUTE, {"name": UNIT, "filter_context": context})}


def early_mutations() -> Sequence[Resource]:
    """Return the removal of gateway-only headers, before any filter reads a header.

    `x-model` would name another model than the one in the body. (Envoy removes `x-envoy-*` itself,
    since no address counts as internal; callers may set the deadline in `TIMEOUT_HEADER`.)
    """
    mutations: Sequence[Resource] = [
        {"remove": header} for header in (MODEL_HEADER, VERSION_HEADER, *INTERNAL_HEADERS)
    ]
    return [
        typed(
            "headrace.strip",
            "envoy.extensions.http.early_header_mutation.header_mutation.v3.HeaderMutation",
            {"mutations": mutations},
        )
    ]


def http_filters(
    settings: EnvoySettings, configs: Mapping[Extension, Resource] | None = None
) -> Sequence[Resource]:
    """Return the HTTP filters in order, from the body limit to the router.

    Args:
        configs: Configurations of extensions; None for their files.
    """
    from headrace.protocol import DESCRIPTOR_SET_PATH  # noqa: PLC0415  # loads the codecs

    extensions = {
        extension: _extension(settings, extension, configs)
        for extension in (IDENTIFY, LIMITS, FLOOD)
    }
    return [
        # Before authentication: a browser sends no credentials in a preflight request.
        _script(_CORS_FILTER, **{CORS: CORS_SOURCE}),
        typed(
            "headrace.body_size_limit",
            "envoy.extensions.filters.http.body_size_limit.v3.BodySizeLimit",
            {"max_request_bytes": settings.max_body_bytes},
        ),
        extensions[IDENTIFY],
        _on_some_routes(
            _EXTRACTION_FILTER,
            "envoy.extensions.filters.http.grpc_field_extraction.v3.GrpcFieldExtractionConfig",
            {
                "descriptor_set": {"filename": str(DESCRIPTOR_SET_PATH)},
                "extractions_by_method": _extractions(),
            },
        ),
        _script(_SELECT_FILTER, **{SELECT: SELECT_SOURCE, INFLATE: INFLATE_SOURCE}),
        _script(_OPENAI_FILTER, **{OPENAI: OPENAI_SOURCE}),
        _script(_UNIT_FILTER, **{UNIT: UNIT_SOURCE}),
        _script(AUTHORIZE_FILTER, **{AUTHORIZE: AUTHORIZE_SOURCE}),
        *limit_filters(
            local=extensions[LIMITS],
            flood=extensions[FLOOD],
            has_service=settings.has_limits,
        ),
        _script(_REFUSE_FILTER, **{REFUSE: REFUSE_SOURCE, CHECK_NAMES: CHECK_NAMES_SOURCE}),
        _on_some_routes(
            _BRIDGE_FILTER,
            f"{_BRIDGE}.v3.FilterConfig",
            # With withheld frames Envoy would derive the status from HTTP alone, and an error of
            # the replica would reach the caller as OK with an empty message.
            {"content_type": "application/grpc", "withhold_grpc_frames": False},
        ),
        typed("headrace.router", "envoy.extensions.filters.http.router.v3.Router"),
    ]


def _extension(
    settings: EnvoySettings, extension: Extension, configs: Mapping[Extension, Resource] | None
) -> Resource:
    if configs is None:
        return {**extension.discovered(settings.run_dir), "disabled": True}
    return _on_some_routes(extension.filter_name, extension.type_name, configs[extension])


def without_auth_filters(filters: Sequence[Resource]) -> Sequence[Resource]:
    """Return `filters` without authentication and rate limits."""
    left_out = {*GUARDS, *LIMIT_FILTERS}
    return [http_filter for http_filter in filters if http_filter["name"] not in left_out]


def _script(name: str, **sources: str) -> Resource:
    """Return a Lua filter; routes choose which of `sources` it runs, by name."""
    codes: Resource = {script: {"inline_string": source} for script, source in sources.items()}
    return _on_some_routes(name, _LUA, {"source_codes": codes})


def _on_some_routes(name: str, kind: str, config: Resource) -> Resource:
    """Return a filter only for streams whose first route configures it; each costs 1 µs."""
    return {**typed(name, kind, config), "disabled": True}


def _extractions() -> Resource:
    methods: dict[str, Json] = {
        f"{SERVICE}.{rpc}": {"request_field_extractions": {name: {}, version: {}}}
        for rpc, (name, version) in MODEL_RPCS.items()
    }
    methods[HEALTH_CHECK.replace("/", ".")] = {"request_field_extractions": {"service": {}}}
    return methods
