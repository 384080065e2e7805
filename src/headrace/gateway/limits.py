"""Rate and size limits: limits that Envoy counts itself, and limits of the rate limit service.

Envoy counts requests per second in buckets that are only reset by another set of limits: their
configuration is in a separate file, so that a new route table does not refill them. The control
plane's rate limit service counts limits that must be shared, persist or depend on the response; if
it does not respond, requests pass. Floods of one caller do not reach it: requests far beyond a
limit per second are refused first.
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
from headrace.gateway.resources import (
    RUNTIME_KEY,
    Json,
    Resource,
    any_of,
    seconds,
    set_header,
    typed,
)
from headrace.gateway.scripts import USAGE_METADATA
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
"""All rate limit filters; the system's own requests bypass them."""

_NAMESPACE: Final = "headrace"
# For a descriptor with an open value Envoy keeps this many buckets and evicts the least recently
# used, by default 20: callers who change their name would thereby get a full bucket again.
_MAX_CALLERS: Final = 10_000
_SERVICE_TIMEOUT_S: Final = 0.1
_FLOOD: Final = 2
"""Multiple of a service's limit beyond which requests are refused without asking the service."""
_FEWEST_FILL_S: Final = 0.05
_MAX_TOKENS: Final = 2**32 - 1
_IPV6_NETWORK: Final = 64  # the owner of one address owns its network
_HIT: Final[Resource] = any_of("envoy.config.route.v3.FilterConfig", {"config": {}})
_ALWAYS: Final[Resource] = {
    "default_value": {"numerator": 100},
    "runtime_key": RUNTIME_KEY,
}


class LimitCounter(StrEnum):
    """Counter of a set of limits."""

    NOBODY = "nobody"
    GATEWAY = "gateway"
    SERVICE = "service"


@dataclass(frozen=True, slots=True, kw_only=True)
class RateLimitPlan:
    """Rate limits that a gateway's routes apply."""

    shared: bool = False
    """Whether limits are shared by all gateways, as `AccessSettings.shared_limits`."""
    tiers: LimitCounter = LimitCounter.NOBODY
    """Counter of requests of tiers."""
    ranks: bool = False
    """Whether callers have different priorities."""

    @classmethod
    def of(cls, access: AccessSettings) -> "RateLimitPlan":
        """Return the plan that `access` requires."""
        tiers = LimitCounter.NOBODY
        if access.are_tiers_counted_by_service:
            tiers = LimitCounter.SERVICE
        elif any(not tier.limits.is_unlimited for tier in access.tiers):
            tiers = LimitCounter.GATEWAY
        return cls(shared=access.shared_limits, tiers=tiers, ranks=bool(access.tiers))

    def counter(self, limits: EndpointLimitsSpec) -> LimitCounter:
        """Return the counter of an endpoint's limits."""
        if limits.is_unlimited:
            return LimitCounter.NOBODY
        by_service = limits.is_counted_by_service(shared=self.shared)
        return LimitCounter.SERVICE if by_service else LimitCounter.GATEWAY

    def limited(self, route: Resource, endpoint: EndpointRoute) -> Resource:
        """Return `route` to `endpoint` with its limits; Envoy's own responses do not count."""
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
        """Return the filters of a gRPC call's first route that any endpoint's route may need."""
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
        """Return the endpoint's descriptor values; each key belongs to `_local` or `_asked`."""
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
            headers.append(set_header(PRIORITY_HEADER, str(DEFAULT_LEVEL), replaces=False))
            if endpoint.slo_latency_s is not None:
                headers.append(set_header(SLO_HEADER, f"{endpoint.slo_latency_s:g}"))
        if LimitCounter.SERVICE in {self.counter(endpoint.limits), self.tiers}:
            headers.append(set_header(WANT_HEADER, "rows"))
        return headers


def limit_filters(*, local: Resource, flood: Resource, has_service: bool) -> Sequence[Resource]:
    """Return the filters, in order; each is in a stream only if a route configures it.

    Args:
        local: The filter that counts here, with its configuration or where that is read from.
        flood: The flood filter that precedes the service, with the same alternatives.
        has_service: Whether there is a service to ask.
    """
    rows = _disabled(_ROWS_FILTER, _ROWS_TYPE, _ROWS)
    service = (flood, rows, _shared_filter()) if has_service else (flood,)
    return [_disabled(_BODY_FILTER, _MATCHING, _NO_BODY_LIMIT), _retry_filter(), local, *service]


def local_config(access: AccessSettings, endpoints: Iterable[EndpointRoute]) -> Resource:
    """Return the limits that Envoy counts itself."""
    return {
        **_config(_descriptors(access, endpoints, counter=LimitCounter.GATEWAY)),
        "enable_x_ratelimit_headers": "DRAFT_VERSION_03",
        "rate_limits": _local_actions("endpoint"),
    }


def flood_config(access: AccessSettings, endpoints: Iterable[EndpointRoute]) -> Resource:
    """Return limits far beyond those of the service, so that it need not be asked.

    The service reports remaining limits to callers, so this filter does not.
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
        "max_dynamic_descriptors": _MAX_CALLERS,
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
    """Return the buckets of all limits per second of `counter`, multiplied by `factor`."""
    limiting = RateLimitPlan.of(access)
    descriptors: list[Json] = []
    for endpoint in endpoints:
        if limiting.counter(endpoint.limits) is counter:
            location: Resource = {"key": "endpoint", "value": endpoint.name}
            address: Resource = {"key": "masked_remote_address"}
            per_caller = endpoint.limits.per_caller
            descriptors += _descriptor(endpoint.limits.total, factor, location)
            descriptors += _descriptor(per_caller, factor, location, {"key": "caller"})
            descriptors += _descriptor(per_caller, factor, location, _ANONYMOUS, address)
    if limiting.tiers is counter:
        for tier in access.tiers:
            named: Resource = {"key": "tier", "value": tier.name}
            descriptors += _descriptor(tier.limits, factor, named, {"key": "caller"})
    return descriptors


def bucket(limits: LimitSpec, factor: int = 1) -> Resource:
    """Return Envoy's token bucket: it is filled continuously, at tokens per fill by interval."""
    assert limits.requests_per_s is not None
    rate = limits.requests_per_s * factor
    # Envoy reads the interval in milliseconds: a second or more keeps the rate accurate to 0.1 %.
    tokens = max(math.ceil(rate), 1)
    return {
        "max_tokens": min(limits.most_at_once * factor, _MAX_TOKENS),
        "tokens_per_fill": min(tokens, _MAX_TOKENS),
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
    """Return a route's value of `name`; without a value the whole descriptor is left out."""
    location: Resource = {"key": _NAMESPACE, "path": [{"key": name}]}
    return {
        "metadata": {"descriptor_key": key, "source": "ROUTE_ENTRY", "metadata_key": location},
    }


def _local_actions(mark: str) -> Json:
    """Return the descriptors of a request on a route with `mark`, and of a caller with a tier."""
    endpoint = _mark(mark, "endpoint")
    return [
        {"actions": [endpoint]},
        {"actions": [endpoint, _header(CALLER_HEADER, "caller")]},
        {"actions": [endpoint, _NOT_NAMED, _ADDRESS]},
        {"actions": [_header(TIER_HEADER, "tier"), _header(CALLER_HEADER, "caller")]},
    ]


def _body_limit(limit_bytes: int) -> Resource:
    """Return the body limit. It has no per-route configuration, but its selecting filter has."""
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
        "rate_limits": _LIMIT_ACTIONS,
    }
    return _disabled(_SHARED_FILTER, _SHARED_TYPE, config)


def _retry_filter() -> Resource:
    """Return the filter that tells refused callers when to retry, in the standard header.

    It precedes the filter that refuses, so that it processes the response after that.
    """
    added = set_header("retry-after", "%RESP(X-RATELIMIT-RESET)%", replaces=False)
    mutation = typed(
        "headrace.mutation",
        "envoy.extensions.filters.http.header_mutation.v3.HeaderMutation",
        {"mutations": {"response_mutations": [{"append": added}]}},
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
_TOKEN_ACTIONS: Final[list[Json]] = [
    {
        "actions": [_header(LEASE_HEADER, f"{kind}_tokens_of")],
        "apply_on_stream_done": True,
        "hits_addend": {"format": f"%DYNAMIC_METADATA({USAGE_METADATA}:{kind})%"},
    }
    for kind in ("input", "cached", "output", "reasoning")
]
_LIMIT_ACTIONS: Final[Json] = [
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
    # Refused requests have no lease, and its end is not reported. Without a response there is no
    # row count, and Envoy leaves the second descriptor out.
    {"actions": [_header(LEASE_HEADER, "lease")], "apply_on_stream_done": True},
    {
        "actions": [_header(LEASE_HEADER, "rows_of")],
        "apply_on_stream_done": True,
        "hits_addend": {"format": f"%DYNAMIC_METADATA({_NAMESPACE}:rows)%"},
    },
    *_TOKEN_ACTIONS,
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
            # External servers report no rows: a request counts as one.
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
