"""What is a route in the gateway's words, and in the limiter's? Pure."""

from collections.abc import Iterable

import msgspec

from headrace.control.gateway_tls import lacks_secret
from headrace.control.limits.rules import LimitedEndpoint, Rules, make_rules
from headrace.control.observed import Route
from headrace.control.routes import live_weights
from headrace.core.spec_access import AccessSettings
from headrace.core.spec_rollout import StickySpec
from headrace.gateway import EndpointRoute, MirrorTarget, RevisionTarget


def endpoint_route(route: Route, missing: frozenset[str] = frozenset()) -> EndpointRoute:
    """`route` in the gateway's words: weights of versions that cannot answer go to the others.

    In a sticky split the gateway does that, so that no other caller is moved.

    Args:
        missing: Secrets that there are none of: upstreams that need one get no requests.
    """
    route = reachable_route(route, missing)
    weights = {arm.key: arm.weight for arm in route.arms}
    if route.sticky is None:
        weights = live_weights(route)
    targets = tuple(
        RevisionTarget(
            version=arm.version,
            replicas=arm.replicas,
            weight=weights[arm.key],
            role=arm.role,
            upstream=arm.upstream,
            pooled=arm.pooled,
        )
        for arm in route.arms
    )
    mirror = route.mirror
    return EndpointRoute(
        name=route.name,
        revisions=targets,
        timeout_s=route.timeout_s,
        sticky=_salted(route),
        mirror=None if mirror is None else MirrorTarget(key=mirror.key, percent=mirror.percent),
        split_id=route.split_id,
        held=route.held,
        hold_s=route.hold_s,
        access=route.access,
        limits=route.limits,
        slo_latency_s=route.slo_latency_s,
        request_log=route.request_log,
    )


def reachable_route(route: Route, missing: frozenset[str]) -> Route:
    """`route`, with nobody behind the arms whose upstream cannot be spoken to."""
    if not any(lacks_secret(arm.upstream, missing) for arm in route.arms):
        return route
    arms = tuple(
        msgspec.structs.replace(arm, upstream=None) if lacks_secret(arm.upstream, missing) else arm
        for arm in route.arms
    )
    return msgspec.structs.replace(route, arms=arms)


def _salted(route: Route) -> StickySpec | None:
    """Each endpoint splits its callers anew: two on one key are independent."""
    sticky = route.sticky
    if sticky is None or sticky.salt:
        return sticky
    return msgspec.structs.replace(sticky, salt=route.name)


def rules_of(access: AccessSettings, routes: Iterable[Route]) -> Rules:
    """Which limits gateways ask the rate limit service for, of these endpoints."""
    return make_rules(
        access,
        (
            LimitedEndpoint(name=route.name, limits=route.limits, timeout_s=route.timeout_s)
            for route in routes
        ),
    )
