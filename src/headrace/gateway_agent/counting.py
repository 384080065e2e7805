"""What does one Envoy count? Everything that the control plane asks its own one for."""

from headrace.control.agents.messages import Active, Arm, Bundle, Counts, UpstreamState
from headrace.control.keeper import GatewayKeeper
from headrace.gateway import Handshakes


async def read_counts(keeper: GatewayKeeper, bundle: Bundle) -> Counts:
    """One look at everything.

    Raises:
        HeadraceError: Envoy does not answer.
    """
    names = {route.name for route in bundle.routes}
    compared = {route.name for route in bundle.routes if route.split_id}
    lead_out = any(arm.upstream is not None for route in bundle.routes for arm in route.arms)
    every = await keeper.read_endpoints(names)
    splits = await keeper.read_arms(compared) if compared else None
    active = await keeper.in_flight()
    shaken = await keeper.handshakes() if lead_out else {}
    healthy = {} if splits is None else splits.healthy
    return Counts(
        epoch=every.epoch,
        every=tuple(Arm.of(arm, totals) for arm, totals in every.totals.items()),
        # Of another process than the rest: then it counts from the next look on.
        splits=tuple(Arm.of(arm, totals) for arm, totals in splits.totals.items())
        if splits is not None and splits.epoch == every.epoch
        else (),
        active=tuple(
            Active(endpoint=name, key=key, requests=count) for (name, key), count in active.items()
        ),
        upstreams=tuple(
            UpstreamState(
                endpoint=name,
                key=key,
                handshakes=shaken.get((name, key), Handshakes()),
                healthy=healthy.get((name, key)),
            )
            for name, key in sorted(shaken.keys() | healthy.keys())
        ),
    )
