"""The route that the gateway gets of a published one, and the limiter's rules. Pure."""

from collections.abc import Iterable
from dataclasses import replace

import msgspec

from headrace.control.gateway_tls import lacks_secret
from headrace.control.limits.rules import LimitedEndpoint, Rules, make_rules
from headrace.control.routes import live_weights
from headrace.core.spec_access import AccessSettings
from headrace.gateway import EndpointRoute


def gateway_route(route: EndpointRoute, missing: frozenset[str] = frozenset()) -> EndpointRoute:
    """`route` as Envoy gets it: weights of versions that cannot answer go to the others.

    In a sticky split the gateway does that, so that no other caller is moved. Each endpoint splits
    its callers by a salt of its own: two on one key are independent.

    Args:
        missing: Secrets that there are none of: upstreams that need one get no requests.
    """
    route = reachable_route(route, missing)
    sticky = route.sticky
    if sticky is not None:
        salted = sticky if sticky.salt else msgspec.structs.replace(sticky, salt=route.name)
        return replace(route, sticky=salted)
    weights = live_weights(route)
    return replace(route, arms=tuple(replace(arm, weight=weights[arm.key]) for arm in route.arms))


def reachable_route(route: EndpointRoute, missing: frozenset[str]) -> EndpointRoute:
    """`route`, with nobody behind the arms whose upstream cannot be spoken to."""
    if not any(lacks_secret(arm.upstream, missing) for arm in route.arms):
        return route
    arms = tuple(
        replace(arm, upstream=None) if lacks_secret(arm.upstream, missing) else arm
        for arm in route.arms
    )
    return replace(route, arms=arms)


def rules_of(access: AccessSettings, routes: Iterable[EndpointRoute]) -> Rules:
    """Which limits gateways ask the rate limit service for, of these endpoints."""
    return make_rules(
        access,
        (
            LimitedEndpoint(name=route.name, limits=route.limits, timeout_s=route.timeout_s)
            for route in routes
        ),
    )
