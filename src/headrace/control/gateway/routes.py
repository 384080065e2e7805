"""Routes in the form for gateways, and errors of their publication."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Protocol

import msgspec

from headrace.control.gateway.tls import lacks_secret
from headrace.core import HeadraceError, InvalidArgumentError
from headrace.gateway import EndpointRoute, GatewayUnavailableError, SnapshotRejectedError


class RoutesLeftOutError(InvalidArgumentError):
    """The gateway has the new routes, except those of endpoints with an invalid route."""

    def __init__(self, in_force: tuple[EndpointRoute, ...], reasons: Mapping[str, str]) -> None:
        text = "; ".join(f"endpoint '{name}': {reason}" for name, reason in sorted(reasons.items()))
        super().__init__(f"routes are not valid, and the former ones stay in force: {text}")
        self.in_force = in_force
        """All routes in force at the gateway."""
        self.reasons = dict(reasons)
        """Reasons why routes are left out, by endpoint."""


class GatewayRefusedError(SnapshotRejectedError):
    """Gateways rejected a snapshot; each keeps its previous one."""

    def __init__(self, refusals: Mapping[str, str]) -> None:
        text = "; ".join(f"gateway '{name}': {reason}" for name, reason in refusals.items())
        HeadraceError.__init__(self, f"refused by {text}")
        self.refusals = dict(refusals)
        self.reason = "; ".join(refusals.values())


class NoGatewayError(GatewayUnavailableError):
    """No gateway is connected; the routes are kept for the first that connects."""


def log_level_of(error: Exception) -> int:
    """Return the log level of a failed publication: a missing gateway is not an error."""
    return logging.INFO if isinstance(error, NoGatewayError) else logging.ERROR


class RoutePublisher(Protocol):
    """Publisher of routes to the gateway."""

    async def publish(self, routes: Sequence[EndpointRoute]) -> None:
        """Publish `routes`; return when requests follow them.

        Raises:
            RoutesLeftOutError: The routes are in force except those of some endpoints.
            HeadraceError: The gateway rejected them or does not run; the old ones are in force.
        """


def gateway_route(route: EndpointRoute, missing: frozenset[str] = frozenset()) -> EndpointRoute:
    """Return `route` for Envoy: the other versions get the weights of unavailable ones.

    In a sticky split the gateway does that, so that no other caller is moved. Each endpoint has a
    separate salt for its callers, so splits of two endpoints on one key are independent.

    Args:
        missing: Names of missing secrets; upstreams that need one get no requests.
    """
    route = reachable_route(route, missing)
    sticky = route.sticky
    if sticky is not None:
        salted = sticky if sticky.salt else msgspec.structs.replace(sticky, salt=route.name)
        return replace(route, sticky=salted)
    weights = live_weights(route)
    return replace(route, arms=tuple(replace(arm, weight=weights[arm.key]) for arm in route.arms))


def reachable_route(route: EndpointRoute, missing: frozenset[str]) -> EndpointRoute:
    """Return `route` without addresses for arms whose upstream cannot be used."""
    if not any(lacks_secret(arm.upstream, missing) for arm in route.arms):
        return route
    arms = tuple(
        replace(arm, upstream=None) if lacks_secret(arm.upstream, missing) else arm
        for arm in route.arms
    )
    return replace(route, arms=arms)


def live_weights(route: EndpointRoute) -> dict[str, int]:
    """Return weights by arm key, with the weights of unavailable arms given to the others.

    They sum to 100 by largest remainder. If no arm is available, the desired weights stay.
    """
    intended = {arm.key: arm.weight for arm in route.arms}
    live = {arm.key: arm.weight for arm in route.arms if arm.is_live and arm.weight}
    total = sum(live.values())
    if total in {0, 100}:
        return intended
    return dict.fromkeys(intended, 0) | scaled(live, 100)


def scaled(weights: Mapping[str, int], total: int) -> dict[str, int]:
    """Return `weights` scaled to sum to `total`, by largest remainder."""
    whole = sum(weights.values())
    shares = {key: divmod(weight * total, whole) for key, weight in weights.items()}
    missing = total - sum(quotient for quotient, _ in shares.values())
    by_rest = sorted(shares, key=lambda key: -shares[key][1])
    extra = set(by_rest[:missing])
    return {key: quotient + (key in extra) for key, (quotient, _) in shares.items()}
