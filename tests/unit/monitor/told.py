"""Windows and promises that tests make up."""

from dataclasses import dataclass

from headrace.monitor.slo import CountWindow, EndpointObjective, Windows

PROMISE = EndpointObjective(endpoint="fraud", latency_s=0.2, availability=0.999)


@dataclass(frozen=True, slots=True)
class Counted:
    """A window in which all requests took the same time."""

    requests: int = 0
    errors: int = 0
    latency_s: float = 0.01
    known_ratio: float = 1.0

    def quantile(self, _q: float, /) -> float | None:
        return self.latency_s if self.requests else None


def windows(default: Counted, **by_length: Counted) -> Windows:
    """What was counted, by length: `s300` is that of five minutes."""

    def window(seconds: float) -> CountWindow:
        return by_length.get(f"s{seconds:g}", default)

    return window
