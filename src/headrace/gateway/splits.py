"""Traffic splits: weights, keys that keep callers on one arm, and copies for shadows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from headrace.core.headers import (
    HOSTED_VERSION_HEADER,
    PAIR_HEADER,
    SHADOW_HEADER,
    SPLIT_HEADER,
    UNIT_HEADER,
    WEIGHTS_HEADER,
)
from headrace.core.spec.rollout import StickySpec
from headrace.core.spec.upstream import UpstreamProtocol
from headrace.gateway.clusters import (
    SHADOW,
    cluster_name,
    fallback_cluster,
    openai_cluster,
    shadow_route,
)
from headrace.gateway.filters import (
    BRIDGED_ELSEWHERE,
    CREDENTIALS,
    MODEL_HEADER,
    reading_unit,
    without_credentials,
)
from headrace.gateway.resources import Json, Resource, set_header
from headrace.gateway.settings import EndpointRoute, RevisionTarget

_ANY_VALUE: Final[Resource] = {"safe_regex": {"regex": ".+"}}


class CallProtocol(StrEnum):
    """Protocol by which callers reach an endpoint."""

    V2 = "the Open Inference Protocol over HTTP (/v2/models)"
    V1 = "TensorFlow Serving's REST API (/v1/models)"
    GRPC = "the Open Inference Protocol over gRPC"
    OPENAI = "OpenAI's API (/v1/chat/completions, ...)"
    PLAIN = "plain HTTP (/endpoints)"


_SUPPORTED_PROTOCOLS: Final = {
    UpstreamProtocol.V2: {CallProtocol.V2, CallProtocol.PLAIN},
    UpstreamProtocol.V1: {CallProtocol.V1, CallProtocol.PLAIN},
    UpstreamProtocol.GRPC: {CallProtocol.GRPC},
    UpstreamProtocol.TORCHSERVE: {CallProtocol.PLAIN},
    UpstreamProtocol.OPENAI: {CallProtocol.OPENAI, CallProtocol.PLAIN},
    UpstreamProtocol.HTTP: {CallProtocol.PLAIN},
}


@dataclass(frozen=True, slots=True)
class Variant:
    """Route of a split: additional conditions on a request, and its target."""

    headers: Sequence[Resource]
    action: Resource


def supports_protocol(arm: RevisionTarget, protocol: CallProtocol) -> bool:
    """Whether an arm supports calls by `protocol`; local replicas support all but OpenAI's API."""
    if arm.upstream is None:
        return protocol is not CallProtocol.OPENAI or arm.serves_openai
    return protocol in _SUPPORTED_PROTOCOLS[arm.upstream.protocol]


def live_split(endpoint: EndpointRoute) -> tuple[tuple[RevisionTarget, int], ...]:
    """Return the arms of unversioned requests, in order, and their weights.

    The share of an arm without live servers goes to the others: another version's response is
    better than none. In a sticky split its callers all go to the last live arm, in the dead arm's
    position, so that no other caller moves; an arm may then occur twice, and weights sum to 100.
    """
    weighted = [arm for arm in endpoint.arms if arm.weight > 0]
    live = [arm for arm in weighted if arm.is_live]
    if endpoint.sticky is None or not live:
        return tuple((arm, arm.weight) for arm in live)
    return tuple((arm if arm.is_live else live[-1], arm.weight) for arm in weighted)


def split_variants(
    endpoint: EndpointRoute, limits: Resource, *, protocol: CallProtocol
) -> tuple[Variant, ...]:
    """Return the routes of a split with live arms, in match order."""
    sticky = endpoint.sticky
    if sticky is None:
        return (Variant((), _split(endpoint, limits, protocol=protocol)),)
    key = sticky.header or UNIT_HEADER
    by_key = _split(endpoint, limits, protocol=protocol, sticky=sticky)
    keyless = _split(endpoint, limits, protocol=protocol)
    if not sticky.header:
        keyless = with_filters(keyless, reading_unit(sticky))
    return (Variant(({"name": key, "string_match": _ANY_VALUE},), by_key), Variant((), keyless))


def arm_action(
    endpoint: EndpointRoute, arm: RevisionTarget, limits: Resource, protocol: CallProtocol
) -> Resource:
    """Return the action of a route to one arm, independent of the split and without fallbacks."""
    action: Resource = {"route": {"cluster": _cluster(endpoint, arm, protocol), **limits}}
    return _to_arm(action, arm, protocol)


def with_filters(action: Resource, filters: Resource) -> Resource:
    """Return `action` with additional filter configuration."""
    if not filters:
        return action
    match action:
        case {"typed_per_filter_config": Mapping() as present}:
            return {**action, "typed_per_filter_config": {**present, **filters}}
        case _:
            return {**action, "typed_per_filter_config": filters}


def _split(
    endpoint: EndpointRoute,
    limits: Resource,
    *,
    protocol: CallProtocol,
    sticky: StickySpec | None = None,
) -> Resource:
    """Return the action for callers with the key of `sticky`; None for all others."""
    split = live_split(endpoint)
    (first, _), *_ = split
    mirror = endpoint.shadow
    by_hash = {} if sticky is None else {"hash_policy": [_hash_policy(endpoint, sticky)]}
    if all(arm is first for arm, _ in split):
        cluster = _cluster(endpoint, first, protocol, falls_back=True)
        action = _to_arm({"route": {"cluster": cluster, **limits}}, first, protocol, mirror)
    else:
        clusters: list[Json] = [
            _to_arm({"name": cluster, "weight": w}, arm, protocol, mirror)
            for arm, w in split
            for cluster in (_cluster(endpoint, arm, protocol, falls_back=True),)
        ]
        weighted: Resource = {"clusters": clusters, **({"use_hash_policy": True} if sticky else {})}
        action = {"route": {"weighted_clusters": weighted, **limits, **by_hash}}
    if mirror is not None:
        action = _mirrored(endpoint, mirror, action, protocol)
    if endpoint.counts_copies and protocol is not CallProtocol.OPENAI:
        return action  # copies of these requests are not counted, so the requests are not either
    return _with_headers(action, _marked(endpoint, sticky))


def _cluster(
    endpoint: EndpointRoute,
    arm: RevisionTarget,
    protocol: CallProtocol,
    *,
    falls_back: bool = False,
) -> str:
    if protocol is not CallProtocol.OPENAI:
        return cluster_name(endpoint.name, arm.key)
    if falls_back and endpoint.fallbacks:
        return fallback_cluster(endpoint.name, arm.key)
    return openai_cluster(endpoint.name, arm)


def _to_arm(
    action: Resource,
    arm: RevisionTarget,
    protocol: CallProtocol,
    mirror: RevisionTarget | None = None,
) -> Resource:
    """Return `action`, or a split's cluster, with the settings of the path to `arm`.

    A request and its copy for `mirror` get a common id if both go to replicas. Envoy creates it for
    each request before it makes the copy, which therefore has the same one. The caller's
    `x-request-id` is not used because callers may repeat it.

    Upstreams' clusters remove API keys themselves: another `authorization` may be meant for them.
    gRPC servers get gRPC unchanged.
    """
    action = _with_headers(action, _named(arm))
    if arm.upstream is not None:
        return with_filters(action, BRIDGED_ELSEWHERE) if protocol is CallProtocol.GRPC else action
    if mirror is not None and mirror.upstream is None:
        action = _with_headers(action, [set_header(PAIR_HEADER, "%UNIQUE_ID%")])
    return without_credentials(action)


def _hash_policy(endpoint: EndpointRoute, sticky: StickySpec) -> Resource:
    """Return a hash of the salted key: without a salt, all splits on one key would choose alike."""
    salt = (sticky.salt or endpoint.split_id or endpoint.name).replace("\\", "\\\\")
    rewrite: Resource = {"pattern": {"regex": "^.*$"}, "substitution": f"{salt}:\\0"}
    header: Resource = {"header_name": sticky.header or UNIT_HEADER, "regex_rewrite": rewrite}
    return {"header": header, "terminal": True}


def _with_headers(action: Resource, headers: Sequence[Json]) -> Resource:
    """Return `action`, or a split's cluster, with headers for the servers."""
    if not headers:
        return action
    present = action.get("request_headers_to_add", [])
    assert isinstance(present, list)
    return {**action, "request_headers_to_add": [*present, *headers]}


def _named(arm: RevisionTarget) -> list[Json]:
    """Return the header with the version, for replicas that host several."""
    return [set_header(HOSTED_VERSION_HEADER, arm.version)] if arm.pooled else []


def _marked(endpoint: EndpointRoute, sticky: StickySpec | None) -> list[Json]:
    """Return headers that mark a request with its split and arm, for replicas and statistics."""
    if not endpoint.split_id:
        return []
    headers: list[Json] = [set_header(SPLIT_HEADER, endpoint.split_id)]
    if weights := endpoint.logged_weights:
        headers.append(set_header(WEIGHTS_HEADER, weights))
    if sticky is not None and sticky.header and sticky.header.lower() not in CREDENTIALS:
        headers.append(set_header(UNIT_HEADER, f"%REQ({sticky.header.upper()})%"))
    return headers


def _mirrored(
    endpoint: EndpointRoute, arm: RevisionTarget, action: Resource, protocol: CallProtocol
) -> Resource:
    """Return `action` with copies to `arm`.

    Envoy drops their responses before its filters and logs. Copies for a language model pass
    a listener within Envoy first, whose filters count their tokens and times.
    """
    route = action["route"]
    assert isinstance(route, Mapping)
    assert endpoint.mirror is not None
    removed = CREDENTIALS if arm.upstream is None else ()
    cluster, headers = _cluster(endpoint, arm, protocol), [set_header(SHADOW_HEADER, "1")]
    if arm.generates and protocol is CallProtocol.OPENAI:
        cluster = SHADOW
        headers.append(set_header(MODEL_HEADER, shadow_route(endpoint.name)))
    policy: Resource = {
        "cluster": cluster,
        "runtime_fraction": {"default_value": {"numerator": endpoint.mirror.percent}},
        "disable_shadow_host_suffix_append": True,
        "request_headers_mutations": [
            *({"append": header} for header in (*headers, *_named(arm))),
            *({"remove": header} for header in removed),
        ],
    }
    return {**action, "route": {**route, "request_mirror_policies": [policy]}}
