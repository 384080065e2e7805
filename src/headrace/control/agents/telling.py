"""What are people and Prometheus told of gateways on other hosts? Pure."""

from collections.abc import Sequence
from typing import Final, assert_never

from headrace.control.agents.roster import GatewayState, Turn
from headrace.control.agents.standing import Standing
from headrace.control.state.records import Event
from headrace.observe.metrics import Family, gauge

_REASONS: Final = {
    Standing.CURRENT: "GatewayCurrent",
    Standing.WAITING: "GatewayWaiting",
    Standing.REFUSED: "GatewayRefused",
    Standing.BEHIND: "GatewayBehind",
    Standing.LOST: "GatewayLost",
}


def event_of(turn: Turn, *, at: float) -> Event:
    """What is written when a gateway stands otherwise than before."""
    state = turn.state
    return Event(
        at=at,
        endpoint="",
        kind="gateway",
        reason=_REASONS[turn.now],
        message=f"gateway '{turn.name}' {_text(turn)}",
        data={
            "gateway": turn.name,
            "version": state.version,
            "behind_s": state.behind_s,
            "seen_s": state.seen_s,
        },
    )


def _text(turn: Turn) -> str:
    state = turn.state
    match turn.now:
        case Standing.CURRENT if turn.before is None:
            return f"is connected and serves version {state.version}"
        case Standing.CURRENT:
            return f"has caught up: it serves version {state.version}"
        case Standing.WAITING:
            return "takes the newest version"
        case Standing.REFUSED:
            return f"refused the newest version and serves {state.version}: {state.reason}"
        case Standing.BEHIND:
            why = f": {state.reason}" if state.reason else ""
            return (
                f"is behind by {state.behind_s:.0f} s and serves version "
                f"{state.version or 'nothing'}{why}"
            )
        case Standing.LOST:
            return (
                f"was not heard for {state.seen_s:.0f} s; it served version "
                f"{state.version or 'nothing'}, and may go on"
            )
        case _:
            assert_never(turn.now)


def families(states: Sequence[GatewayState]) -> list[Family]:
    """How each gateway is, as metrics."""
    connected, ready, behind_s, seen_s = [], [], [], []
    for state in states:
        labels = (("gateway", state.name),)
        connected.append((labels, float(state.standing is not Standing.LOST)))
        ready.append((labels, float(state.ready)))
        behind_s.append((labels, state.behind_s))
        seen_s.append((labels, state.seen_s))
    return [
        gauge("headrace_gateway_connected", "1 while the gateway's agent is heard.", connected),
        gauge("headrace_gateway_ready", "1 while the gateway serves.", ready),
        gauge(
            "headrace_gateway_behind_seconds",
            "For how long there has been something newer than what is in force there.",
            behind_s,
        ),
        gauge("headrace_gateway_seen_seconds", "How long ago the gateway was heard last.", seen_s),
    ]
