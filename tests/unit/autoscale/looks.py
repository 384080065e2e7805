"""Loads that come second by second, without chance."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import msgspec

from headrace.autoscale import ScaleDecision, ScalerState, Signals, begin, decide
from headrace.core.spec.scale import AutoscaleSpec

T0 = 1_790_000_000.0
SERVICE_S = 0.1


def load(arrivals: float, *, ready: int, **other: Any) -> Signals:  # noqa: ANN401  # any field
    """A look at `ready` copies that keep up with `arrivals` requests per second."""
    signals = Signals(
        observed_at=0.0,
        ready=ready,
        in_flight=arrivals * SERVICE_S,
        arrivals=arrivals,
        queue_wait_s=0.0,
        service_s=SERVICE_S,
        run_s=SERVICE_S,
    )
    return msgspec.structs.replace(signals, **other)


def missing(*, ready: int) -> Signals:
    return Signals(observed_at=0.0, ready=ready)


def follow(
    settings: AutoscaleSpec,
    look: Callable[[int, ScalerState], Signals],
    *,
    seconds: int,
    state: ScalerState,
) -> list[ScaleDecision]:
    """One decision a second on what `look` makes of the second and the state."""
    decisions = []
    for second in range(seconds):
        decision = decide(state, look(second, state), settings, now=state.observed_at + 1.0)
        state = decision.state
        decisions.append(decision)
    return decisions


def play(
    settings: AutoscaleSpec,
    rates: Iterable[float | None],
    *,
    replicas: int = 1,
    state: ScalerState | None = None,
) -> list[ScaleDecision]:
    """`follow` for `rates`, with copies that are ready at once; None: no metrics."""
    known = list(rates)

    def look(second: int, state: ScalerState) -> Signals:
        rate, ready = known[second], state.replicas
        return missing(ready=ready) if rate is None else load(rate, ready=ready)

    begun = begin(replicas, now=T0) if state is None else state
    return follow(settings, look, seconds=len(known), state=begun)


def counts(decisions: Sequence[ScaleDecision]) -> list[int]:
    return [decision.replicas for decision in decisions]
