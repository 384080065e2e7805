"""Rate and size limits: limits that Envoy counts itself, and limits of the rate limit service.

Requests per second are counted in Envoy, in buckets that only another set of limits replaces: their
configuration stands in a file of its own, so that a new route table does not fill them again. What
has to be shared, to survive or to know the answer is counted by the rate limit service of the
control plane; if that does not answer, requests pass. A flood of one caller does not reach it: what
is far beyond a limit per second is refused before.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from headrace.core.headers import (
    CALLER_HEADER,
    LEASE_HEADER,
    PRIORITY_HEADER,
    ROWS_HEADER,
    SLO_HEADER,
    TIER_HEADER,
    WANT_HEADER,
)
from headrace.core.priorities import DEFAULT_LEVEL
from headrace.core.spec.access import AccessSettings, EndpointLimitsSpec, LimitSpec
from headrace.gateway.clusters import CONTROL, LIMITS
from headrace.gateway.resources import Json, Resource, any_of, seconds, set_header, typed
from headrace.gateway.settings import EndpointRoute

DOMAIN: Final = "headrace"

LOCAL_FILTER: Final = "headrace.limits"
LOCAL_TYPE: Final = "envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit"
FLOOD_FILTER: Final = "headrace.flood"
_SHARED_FILTER: Final = "headrace.shared_limits"
_SHARED_TYPE: Final = "envoy.extensions.filters.http.ratelimit.v3.RateLimit"
_ROWS_FILTER: Final = "headrace.rows"
_ROWS_TYPE: Final = "envoy.extensions.filters.http.header_to_metadata.v3.Config"
_RETRY_FILTER: Final = "headrace.retry_after"
_BODY_FILTER: Final = "headrace.endpoint_body"
_BODY_TYPE: Final = "envoy.extensions.filters.http.body_size_limit.v3.BodySizeLimit"
_MATCHING: Final = "envoy.extensions.common.matching.v3.ExtensionWithMatcher"
FILTERS: Final = (
    _BODY_FILTER,
    _RETRY_FILTER,
    LOCAL_FILTER,
    FLOOD_FILTER,
    _ROWS_FILTER,
    _SHARED_FILTER,
)
"""All filters that limit; our own requests do not meet them."""

_NAMESPACE: Final = "headrace"
# Of a descriptor with a name left open Envoy keeps so many buckets and drops the longest unused,
# by default 20: callers who change their name would fill their bucket again by themselves.
_MOST_CALLERS: Final = 10_000
_SERVICE_TIMEOUT_S: Final = 0.1
_FLOOD: Final = 2
"""So many times a limit that the service counts is refused without asking it."""
_FEWEST_FILL_S: Final = 0.05
_MOST_TOKENS: Final = 2**32 - 1
_IPV6_NETWORK: Final = 64  # who has one address of it has all of them
_RUNTIME_KEY: Final = "headrace.none"  # Envoy wants a name for an override that nobody sets
_HIT: Final[Resource] = any_of("envoy.config.route.v3.FilterConfig", {"config": {}})
_ALWAYS: Final[Resource] = {
    "default_value": {"numerator": 100},
    "runtime_key": _RUNTIME_KEY,
}


class LimitCounter(StrEnum):
    """Who counts a set of limits."""

    NOBODY = "nobody"
    GATEWAY = "gateway"
    SERVICE = "service"


@dataclass(frozen=True, slots=True, kw_only=True)
class RateLimitPlan:
    """Rate limits that a gateway's routes apply."""

    shared: bool = False
    """Whether limits are shared by all gateways, as of `AccessSettings.shared_limits`."""
    tiers: LimitCounter = LimitCounter.NOBODY
    """Where requests of tiers are counted."""
    ranks: bool = False
    """Whether callers differ in priority."""

    @classmethod
    def of(cls, access: AccessSettings) -> "RateLimitPlan":
        """What `access` asks for."""
        tiers = LimitCounter.NOBODY
        if access.are_tiers_counted_by_service:
            tiers = LimitCounter.SERVICE
        elif any(not tier.limits.is_unlimited for tier in access.tiers):
            tiers = LimitCounter.GATEWAY
        return cls(shared=access.shared_limits, tiers=tiers, ranks=bool(access.tiers))

    def counter(self, limits: EndpointLimitsSpec) -> LimitCounter:
        """Who counts an endpoint's limits."""
        if limits.is_unlimited:
            return LimitCounter.NOBODY
        by_service = limits.is_counted_by_service(shared=self.shared)
        return LimitCounter.SERVICE if by_service else LimitCounter.GATEWAY

    def limited(self, route: Resource, endpoint: EndpointRoute) -> Resource:
        """`route` to `endpoint`, with what limits it; what Envoy answers itself is free."""
        action = route.get("route")
        if not isinstance(action, Mapping) or action.get("cluster") == CONTROL:
            return route
        existing = route.get("typed_per_filter_config", {})
        assert isinstance(existing, Mapping)
        filters = {**self._filters(endpoint), **existing}
        changes: dict[str, Json] = {}
        if filters:
            changes["typed_per_filter_config"] = filters
        if marks := self._marks(endpoint):
            changes["metadata"] = {"filter_metadata": {_NAMESPACE: marks}}
        if headers := self._headers(endpoint):
            present = route.get("request_headers_to_add", [])
            assert isinstance(present, list)
            changes["request_headers_to_add"] = [*present, *headers]
        return {**route, **changes}

    def first_check(self, endpoints: Iterable[EndpointRoute]) -> Resource:
        """Filters of the first route of a gRPC call: those that any endpoint's route may need."""
        needed = {name for endpoint in endpoints for name in self._filters(endpoint)}
        return {name: _HIT for name in FILTERS if name in needed}

    def _filters(self, endpoint: EndpointRoute) -> dict[str, Json]:
        filters: dict[str, Json] = {}
        limit = endpoint.limits.max_body_bytes
        if limit is not None:
            filters[_BODY_FILTER] = _body_limit(limit)
        counters = {self.counter(endpoint.limits), self.tiers}
        if LimitCounter.GATEWAY in counters:
            filters |= {_RETRY_FILTER: _HIT, LOCAL_FILTER: _HIT}
        if LimitCounter.SERVICE in counters:
            filters |= {FLOOD_FILTER: _HIT, _ROWS_FILTER: _HIT, _SHARED_FILTER: _HIT}
        return filters

    def _marks(self, endpoint: EndpointRoute) -> dict[str, Json]:
        """What the filters know an endpoint by: each key is one of `_local`'s or `_asked`'s."""
        counter = self.counter(endpoint.limits)
        if counter is LimitCounter.SERVICE:
            return {"shared": endpoint.name}
        marks: dict[str, Json] = {}
        if counter is LimitCounter.GATEWAY:
            marks["endpoint"] = endpoint.name
        if self.tiers is LimitCounter.SERVICE:
            marks["tiered"] = endpoint.name
        return marks

    def _headers(self, endpoint: EndpointRoute) -> list[Json]:
        headers: list[Json] = []
        if self.ranks:
            level: Resource = {"key": PRIORITY_HEADER, "value": str(DEFAULT_LEVEL)}
            headers.append({"header": level, "append_action": "ADD_IF_ABSENT"})
            if endpoint.slo_latency_s is not None:
                headers.append(set_header(SLO_HEADER, f"{endpoint.slo_latency_s:g}"))
        if LimitCounter.SERVICE in {self.counter(endpoint.limits), self.tiers}:
            headers.append(set_header(WANT_HEADER, "rows"))
        return headers


def limit_filters(*, local: Resource, flood: Resource, has_service: bool) -> Sequence[Resource]:
    """The filters, in order; each is in a stream only where a route configures it.

    Args:
        local: The filter that counts here, with its configuration or where that is read from.
        flood: The same of the one that keeps floods from the service.
        has_service: Whether there is a service to ask.
    """
    rows = _disabled(_ROWS_FILTER, _ROWS_TYPE, _ROWS)
    service = (flood, rows, _shared_filter()) if has_service else (flood,)
    return [_disabled(_BODY_FILTER, _MATCHING, _NO_BODY_LIMIT), _retry_filter(), local, *service]


def local_config(access: AccessSettings, endpoints: Iterable[EndpointRoute]) -> Resource:
    """What Envoy counts itself."""
    return {
        **_config(_descriptors(access, endpoints, counter=LimitCounter.GATEWAY)),
        "enable_x_ratelimit_headers": "DRAFT_VERSION_03",
        "rate_limits": _local_actions("endpoint"),
    }


def flood_config(access: AccessSettings, endpoints: Iterable[EndpointRoute]) -> Resource:
    """What is far beyond a limit that the service counts, and need not be asked.

    The service tells callers how a limit stands, so this one does not.
    """
    return {
        **_config(_descriptors(access, endpoints, counter=LimitCounter.SERVICE, factor=_FLOOD)),
        "response_headers_to_add": [set_header("retry-after", "1")],
        "rate_limits": _local_actions("shared"),
    }


def _config(descriptors: Sequence[Json]) -> Resource:
    return {
        "stat_prefix": "headrace",
        "filter_enabled": _ALWAYS,
        "filter_enforced": _ALWAYS,
        "always_consume_default_token_bucket": False,
        "max_dynamic_descriptors": _MOST_CALLERS,
        "rate_limited_as_resource_exhausted": True,
        "descriptors": descriptors,
    }


def _descriptors(
    access: AccessSettings,
    endpoints: Iterable[EndpointRoute],
    *,
    counter: LimitCounter,
    factor: int = 1,
) -> list[Json]:
    """The buckets of all limits per second that `counter` counts, so many times as large."""
    limiting = RateLimitPlan.of(access)
    descriptors: list[Json] = []
    for endpoint in endpoints:
        if limiting.counter(endpoint.limits) is counter:
            where: Resource = {"key": "endpoint", "value": endpoint.name}
            address: Resource = {"key": "masked_remote_address"}
            per_caller = endpoint.limits.per_caller
            descriptors += _descriptor(endpoint.limits.total, factor, where)
            descriptors += _descriptor(per_caller, factor, where, {"key": "caller"})
            descriptors += _descriptor(per_caller, factor, where, _ANONYMOUS, address)
    if limiting.tiers is counter:
        for tier in access.tiers:
            named: Resource = {"key": "tier", "value": tier.name}
            descriptors += _descriptor(tier.limits, factor, named, {"key": "caller"})
    return descriptors


def bucket(limits: LimitSpec, factor: int = 1) -> Resource:
    """Envoy's bucket of tokens: it is filled all the time, at tokens per fill by the interval."""
    assert limits.requests_per_s is not None
    rate = limits.requests_per_s * factor
    # Envoy reads the interval in milliseconds: a second or more keeps the rate true to 0.1 %.
    tokens = max(math.ceil(rate), 1)
    return {
        "max_tokens": min(limits.most_at_once * factor, _MOST_TOKENS),
        "tokens_per_fill": min(tokens, _MOST_TOKENS),
        "fill_interval": seconds(max(tokens / rate, _FEWEST_FILL_S)),
    }


def _descriptor(limits: LimitSpec, factor: int, *entries: Resource) -> list[Json]:
    if limits.requests_per_s is None:
        return []
    return [{"entries": entries, "token_bucket": bucket(limits, factor)}]


def _disabled(name: str, kind: str, config: Resource) -> Resource:
    return {**typed(name, kind, config), "disabled": True}


def _header(name: str, key: str, *, may_lack: bool = False) -> Resource:
    header: Resource = {"header_name": name, "descriptor_key": key}
    return {"request_headers": {**header, **({"skip_if_absent": True} if may_lack else {})}}


def _mark(name: str, key: str) -> Resource:
    """The value that a route has for `name`; without one the whole descriptor is left out."""
    where: Resource = {"key": _NAMESPACE, "path": [{"key": name}]}
    return {
        "metadata": {"descriptor_key": key, "source": "ROUTE_ENTRY", "metadata_key": where},
    }


def _local_actions(mark: str) -> Json:
    """What describes a request on a route with `mark`, and one of a caller with a tier."""
    endpoint = _mark(mark, "endpoint")
    return [
        {"actions": [endpoint]},
        {"actions": [endpoint, _header(CALLER_HEADER, "caller")]},
        {"actions": [endpoint, _NOT_NAMED, _ADDRESS]},
        {"actions": [_header(TIER_HEADER, "tier"), _header(CALLER_HEADER, "caller")]},
    ]


def _body_limit(limit_bytes: int) -> Resource:
    """The filter has no configuration by route, but one that chooses filters by request has."""
    limit = typed("headrace.limit", _BODY_TYPE, {"max_request_bytes": limit_bytes})
    execute = "envoy.extensions.filters.http.composite.v3.ExecuteFilterAction"
    action = typed("limit", execute, {"typed_config": limit})
    return any_of(f"{_MATCHING}PerRoute", {"xds_matcher": {"on_no_match": {"action": action}}})


def _shared_filter() -> Resource:
    timeout = seconds(_SERVICE_TIMEOUT_S)
    service: Resource = {"envoy_grpc": {"cluster_name": LIMITS}, "timeout": timeout}
    config: Resource = {
        "domain": DOMAIN,
        "timeout": timeout,
        "failure_mode_deny": False,
        "rate_limited_as_resource_exhausted": True,
        "disable_x_envoy_ratelimited_header": True,
        "rate_limit_service": {"transport_api_version": "V3", "grpc_service": service},
        "rate_limits": _ASKED_ACTIONS,
    }
    return _disabled(_SHARED_FILTER, _SHARED_TYPE, config)


def _retry_filter() -> Resource:
    """Tell who is refused when to come back, in the header that everybody knows.

    It stands before the filter that refuses, so that it sees the answer after that.
    """
    value: Resource = {"key": "retry-after", "value": "%RESP(X-RATELIMIT-RESET)%"}
    added: Json = [{"append": {"header": value, "append_action": "ADD_IF_ABSENT"}}]
    mutation = typed(
        "headrace.mutation",
        "envoy.extensions.filters.http.header_mutation.v3.HeaderMutation",
        {"mutations": {"response_mutations": added}},
    )
    refused: Json = [_response_is(":status", "429"), _response_is("grpc-status", "8")]
    skip: Resource = {
        "predicate": {"not_matcher": {"or_matcher": {"predicate": refused}}},
        "on_match": {"action": _SKIP},
    }
    matcher: Resource = {"matcher_list": {"matchers": [skip]}}
    config: Resource = {"extension_config": mutation, "xds_matcher": matcher}
    return _disabled(_RETRY_FILTER, _MATCHING, config)


def _response_is(name: str, value: str) -> Resource:
    kind = "envoy.type.matcher.v3.HttpResponseHeaderMatchInput"
    header = typed("header", kind, {"header_name": name})
    return {"single_predicate": {"input": header, "value_match": {"exact": value}}}


_SKIP: Final = typed("skip", "envoy.extensions.filters.common.matcher.action.v3.SkipFilter")
_ANONYMOUS: Final[Resource] = {"key": "anonymous", "value": "1"}
_NOT_NAMED: Final[Resource] = {
    "header_value_match": {
        "descriptor_key": "anonymous",
        "descriptor_value": "1",
        "expect_match": False,
        "headers": [{"name": CALLER_HEADER, "present_match": True}],
    }
}
_ADDRESS: Final[Resource] = {
    "masked_remote_address": {"v4_prefix_mask_len": 32, "v6_prefix_mask_len": _IPV6_NETWORK}
}
_ASKED_ACTIONS: Final[Json] = [
    {
        "actions": [
            _mark("shared", "endpoint"),
            _header(CALLER_HEADER, "caller", may_lack=True),
            _header(TIER_HEADER, "tier", may_lack=True),
            _ADDRESS,
        ]
    },
    {
        "actions": [
            _mark("tiered", "endpoint"),
            _header(TIER_HEADER, "tier"),
            _header(CALLER_HEADER, "caller"),
        ]
    },
    # Who was refused has no lease, and the end of that is not told. Where no answer came there are
    # no rows, and Envoy leaves the second descriptor out.
    {"actions": [_header(LEASE_HEADER, "lease")], "apply_on_stream_done": True},
    {
        "actions": [_header(LEASE_HEADER, "rows_of")],
        "apply_on_stream_done": True,
        "hits_addend": {"format": f"%DYNAMIC_METADATA({_NAMESPACE}:rows)%"},
    },
]
_ROWS: Final[Resource] = {
    "response_rules": [
        {
            "header": ROWS_HEADER,
            "on_header_present": {
                "metadata_namespace": _NAMESPACE,
                "key": "rows",
                "type": "STRING",
            },
            # A server that someone else runs tells no rows: a request is one.
            "on_header_missing": {
                "metadata_namespace": _NAMESPACE,
                "key": "rows",
                "type": "STRING",
                "value": "1",
            },
            "remove": True,
        }
    ]
}
_NO_BODY_LIMIT: Final[Resource] = {
    "extension_config": typed("composite", "envoy.extensions.filters.http.composite.v3.Composite"),
    "xds_matcher": {
        "matcher_list": {
            "matchers": [
                {
                    "predicate": {
                        "single_predicate": {
                            "input": typed(
                                "header",
                                "envoy.type.matcher.v3.HttpRequestHeaderMatchInput",
                                {"header_name": LEASE_HEADER},
                            ),
                            "value_match": {"exact": "never"},
                        }
                    },
                    "on_match": {"action": _SKIP},
                }
            ]
        }
    },
}
