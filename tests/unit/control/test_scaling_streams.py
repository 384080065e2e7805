"""Language models are scaled by the time to the first token: a simulated law."""

import random
from collections import Counter
from dataclasses import dataclass, field

import pytest

from headrace.autoscale import Signals, begin, decide
from headrace.control.scaling.signals import with_first_tokens
from headrace.core.spec.scale import AutoscaleSpec
from headrace.gateway.statistics import ArmStatistics
from headrace.monitor import Buckets, RequestHistory
from headrace.monitor.history import bucket_of, index_of

SLO_S = 1.0
T0 = 1_790_000_000.0
SLOTS = 16


@dataclass
class Simulation:
    """Streams on replicas that read a prompt the slower, the more streams they have.

    `prompt_s` is what a replica takes for a prompt alone. A stream is counted at its end.
    """

    seed: int
    settings: AutoscaleSpec
    prompt_s: float = 0.2
    start_s: int = 5
    second: int = 0
    counts: list[int] = field(default_factory=list)
    times: list[tuple[int, float]] = field(default_factory=list)
    _streams: list[tuple[float, int, float]] = field(default_factory=list)
    _ready_at: list[int] = field(default_factory=lambda: [0])
    _ended: Counter[tuple[float, float]] = field(default_factory=Counter)
    _history: RequestHistory = field(default_factory=RequestHistory)

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)  # noqa: S311  # no secret
        self._state = begin(1, now=T0)

    def run(self, seconds: int, rate: float) -> None:
        for _ in range(seconds):
            self._second(rate)

    def p99(self, since: int) -> float:
        times = sorted(value for second, value in self.times if second >= since)
        return times[int(0.99 * len(times))]

    def _second(self, rate: float) -> None:
        self.second += 1
        ready = sum(at <= self.second for at in self._ready_at)
        for end, _, first_s in self._streams:
            if end <= self.second:
                self._ended[bucket_of(index_of((first_s, 0.0)))] += 1
        self._streams = [stream for stream in self._streams if stream[0] > self.second]
        arrived = sum(self._random.random() < rate / 20 for _ in range(20))
        for _ in range(arrived):
            loads = Counter(replica for _, replica, _ in self._streams)
            replica = min(self._random.sample(range(ready), min(ready, 2)), key=lambda i: loads[i])
            peers = loads[replica]
            first_s = self.prompt_s * (1 + peers)
            self.times.append((self.second, first_s))
            self._streams.append((self.second + 2.0 * (1 + 0.2 * peers), replica, first_s))
        now = T0 + self.second
        latency: Buckets = dict(self._ended)
        totals = ArmStatistics(requests=sum(latency.values()), latency=latency)
        self._history.add(now, "chat", "1", totals)
        signals = Signals(
            observed_at=now,
            ready=ready,
            starting=len(self._ready_at) - ready,
            in_flight=float(len(self._streams)),
            arrivals=0.0,
            concurrency=SLOTS,
        )
        last_step = max(self._state.raised_at or 0.0, self._state.starting_at or 0.0)
        seconds = min(self.settings.stable_window_s, now - last_step)
        if self.settings.slo_latency_s is not None and seconds > 0:
            streams = self._history.window("chat", until=now, seconds=seconds)
            signals = with_first_tokens(signals, self._state, streams)
        self._state = decide(self._state, signals, self.settings, now=now).state
        count = self._state.replicas
        more = count - len(self._ready_at)
        self._ready_at = self._ready_at[:count] + [self.second + self.start_s] * more
        self._streams = [stream for stream in self._streams if stream[1] < count]
        self.counts.append(count)


def settings(slo_latency_s: float | None = SLO_S) -> AutoscaleSpec:
    return AutoscaleSpec(max_replicas=8, slo_latency_s=slo_latency_s)


@pytest.mark.parametrize("seed", range(10))
def test_replicas_are_added_until_first_tokens_are_in_time_and_stay(seed: int) -> None:
    without = Simulation(seed, settings(None))
    without.run(1500, 1.2)
    assert set(without.counts) == {1}
    assert without.p99(600) > SLO_S

    scaled = Simulation(seed, settings())
    scaled.run(1500, 1.2)
    assert set(scaled.counts[600:]) == {3}
    assert scaled.counts == sorted(scaled.counts), "nothing is taken away under this load"
    assert scaled.p99(600) <= SLO_S

    scaled.run(900, 0.05)
    assert scaled.counts[1500:] == sorted(scaled.counts[1500:], reverse=True)
    assert scaled.counts[-1] == 1


@pytest.mark.parametrize("seed", range(10))
def test_a_prompt_that_is_long_alone_adds_no_replica(seed: int) -> None:
    scaled = Simulation(seed, settings(), prompt_s=3.0)
    scaled.run(1500, 0.1)
    assert scaled.p99(0) > SLO_S
    assert set(scaled.counts) == {1}


def test_few_streams_have_no_p99() -> None:
    state = begin(1, now=T0)
    history = RequestHistory()
    history.advance(T0)
    history.add(T0 + 1, "chat", "1", ArmStatistics(requests=5, latency={(2.0, 0.1): 5}))
    signals = Signals(observed_at=T0 + 1, ready=1, in_flight=9.0, arrivals=0.0)

    seen = with_first_tokens(signals, state, history.window("chat", until=T0 + 2, seconds=2.0))

    assert seen.p99_s is None
