"""Who decides in a simulation? Headrace, a perfect oracle, fixed sizes, and a CPU target."""

import math
from collections import deque
from dataclasses import dataclass, field
from typing import Final, Protocol

from headrace.autoscale.capacity import late_ratio
from headrace.autoscale.decide import decide
from headrace.autoscale.signals import Signals
from headrace.autoscale.state import ScalerState, begin
from headrace.autoscale.traces import Trace
from headrace.core.autoscale_settings import AutoscaleSettings

_LATE_RATIO: Final = 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """What a policy sees each second; `cpu` is the busy part (0 to 1) of the ready copies."""

    second: int
    current: int
    signals: Signals
    cpu: float | None


class Policy(Protocol):
    """Names a count each second."""

    name: str

    def count(self, view: View) -> int:
        """How many copies from now on."""


@dataclass(slots=True)
class Headrace:
    """`decide`, as the control plane uses it."""

    settings: AutoscaleSettings
    name: str = "headrace"
    state: ScalerState | None = None

    def count(self, view: View) -> int:
        """How many copies from now on."""
        now = float(view.second)
        state = begin(view.current, now=now) if self.state is None else self.state
        decision = decide(state, view.signals, self.settings, now=now)
        self.state = decision.state
        return decision.replicas


@dataclass(slots=True)
class Fixed:
    """The same count always."""

    replicas: int
    name: str

    def count(self, _view: View) -> int:
        """How many copies from now on."""
        return self.replicas


@dataclass(slots=True)
class CpuTarget:
    """Kubernetes' HorizontalPodAutoscaler on CPU with its defaults, as documented for v2.

    Each 15 s: ready copies x busy / 0.7; within a tenth of the target nothing happens; up by at
    most 4 or twofold per 15 s; down by the largest wish of the last 300 s. Without metrics nothing
    happens. The busy part is averaged over 30 s, as its metrics pipeline does.
    """

    max_replicas: int
    name: str = "cpu-target"
    target: float = 0.7
    _busy: deque[float] = field(default_factory=lambda: deque(maxlen=30))
    _wishes: deque[int] = field(default_factory=lambda: deque(maxlen=20))

    def count(self, view: View) -> int:
        """How many copies from now on."""
        if view.cpu is not None:
            self._busy.append(view.cpu)
        if view.second % 15 or view.cpu is None:
            return view.current
        signals = view.signals
        busy = sum(self._busy) / len(self._busy)
        all_of_them = signals.ready + signals.starting
        ratio = busy / self.target
        if ratio > 1.0:
            # Copies that are not ready yet count as idle when the wish is to grow, and never
            # turn it into a wish to shrink.
            ratio = max(ratio * signals.ready / max(all_of_them, 1), 1.0)
        wish = view.current if abs(ratio - 1.0) <= 0.1 else math.ceil(all_of_them * ratio)  # noqa: PLR2004  # its tolerance
        wish = min(max(wish, 1), max(view.current + 4, 2 * view.current), self.max_replicas)
        self._wishes.append(wish)
        return max(wish, *self._wishes) if wish < view.current else wish


class Oracle:
    """Knows the future: has just enough copies ready in every second.

    Just enough: with as many servers behind one queue, at most 1 % wait longer than the SLO leaves.
    """

    name = "oracle"

    def __init__(self, trace: Trace) -> None:
        ahead = math.ceil(trace.start_s + trace.warm_s) + 1
        enough = [enough_copies(trace, float(rate)) for rate in trace.rates]
        self._counts = [max(enough[i : i + ahead + 1]) for i in range(len(enough))]

    @property
    def counts(self) -> list[int]:
        """The count of every second."""
        return self._counts

    def count(self, view: View) -> int:
        """How many copies from now on."""
        return self._counts[min(view.second, len(self._counts) - 1)]


def enough_copies(trace: Trace, rate: float) -> int:
    """The fewest copies that answer 99 % of `rate` requests/s within the SLO; at least 1."""
    slack = trace.slo_latency_s / trace.service_s - 1.0 - 2.0 * trace.service_cv
    for copies in range(1, trace.max_replicas):
        servers = copies * trace.concurrency
        utilisation = rate * trace.service_s / servers
        if utilisation >= 1.0:
            continue
        late = late_ratio(servers=servers, utilisation=utilisation, slack=slack)
        if late <= _LATE_RATIO:
            return copies
    return trace.max_replicas


def policies(trace: Trace, settings: AutoscaleSettings) -> list[Policy]:
    """Everybody, in the order of the table."""
    oracle = Oracle(trace)
    mean = math.ceil(sum(oracle.counts) / len(oracle.counts))
    return [
        oracle,
        Headrace(settings),
        CpuTarget(trace.max_replicas),
        Fixed(mean, "fixed-mean"),
        Fixed(max(oracle.counts), "fixed-peak"),
    ]
