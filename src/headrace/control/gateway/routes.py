"""Routes as gateways get them, and what a publication of routes raises."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Protocol

import msgspec

from headrace.control.gateway.tls import lacks_secret
from headrace.core import HeadraceError, InvalidArgumentError
from headrace.gateway import EndpointRoute, GatewayUnavailableError, SnapshotRejectedError


class RoutesLeftOutError(InvalidArgumentError):
    """The gateway follows the new routes, but for those of endpoints whose route is not valid."""

    def __init__(self, in_force: tuple[EndpointRoute, ...], reasons: Mapping[str, str]) -> None:
        text = "; ".join(f"endpoint '{name}': {why}" for name, why in sorted(reasons.items()))
        super().__init__(f"routes are not valid, and the former ones stay in force: {text}")
        self.in_force = in_force
        """All routes that the gateway follows now."""
        self.reasons = dict(reasons)
        """Why a route is left out, by endpoint."""


class GatewayRefusedError(SnapshotRejectedError):
    """Gateways refused a snapshot; what each had before is in force there."""

    def __init__(self, refusals: Mapping[str, str]) -> None:
        text = "; ".join(f"gateway '{name}': {reason}" for name, reason in refusals.items())
        HeadraceError.__init__(self, f"refused by {text}")
        self.refusals = dict(refusals)
        self.reason = "; ".join(refusals.values())


class NoGatewayError(GatewayUnavailableError):
    """No gateway is connected: routes are kept for the first that comes."""


def log_level_of(error: Exception) -> int:
    """The log level of a failed publication: a gateway that is still to come is no error."""
    return logging.INFO if isinstance(error, NoGatewayError) else logging.ERROR


class RoutePublisher(Protocol):
    """What carries routes to the gateway."""

    async def publish(self, routes: Sequence[EndpointRoute]) -> None:
        """Return when requests follow `routes`.

        Raises:
            RoutesLeftOutError: They do, but for some endpoints.
            HeadraceError: The gateway refused them or does not run; what it had is in force.
        """


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


def live_weights(route: EndpointRoute) -> dict[str, int]:
    """Weights by arm's key over arms that can answer: those that cannot give theirs to the others.

    Sums to 100 again, by largest remainder. If nobody can answer, the intended weights stay.
    """
    intended = {arm.key: arm.weight for arm in route.arms}
    live = {arm.key: arm.weight for arm in route.arms if arm.is_live and arm.weight}
    total = sum(live.values())
    if total in {0, 100}:
        return intended
    return dict.fromkeys(intended, 0) | scaled(live, 100)


def scaled(weights: Mapping[str, int], total: int) -> dict[str, int]:
    """`weights` in the same proportion, summing to `total`: by largest remainder."""
    whole = sum(weights.values())
    shares = {key: divmod(weight * total, whole) for key, weight in weights.items()}
    missing = total - sum(quotient for quotient, _ in shares.values())
    by_rest = sorted(shares, key=lambda key: -shares[key][1])
    extra = set(by_rest[:missing])
    return {key: quotient + (key in extra) for key, (quotient, _) in shares.items()}
