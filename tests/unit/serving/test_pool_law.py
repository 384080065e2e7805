"""Laws of a pool's concurrent loads: sizes, failures, callers that leave; in virtual time."""

import asyncio
import logging
from collections import Counter
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.core import ReplicaSettings
from headrace.scoring.loading import LoadedModel
from headrace.serving.exchange import Exchange
from headrace.testing import VirtualTimeLoop
from tests.unit.serving.parts import read
from tests.unit.serving.pool_parts import BROKEN, Hosting, Loads, Trier, entry

LIMIT_BYTES = 100
LATEST_S = 10_000.0
"""All loads of one example end long before."""


@dataclass
class MeteredLoads(Loads):
    """Counts what is in memory: a model from the start of its load to the end of its freeing."""

    sizes: dict[str, int] = field(default_factory=dict)
    free_s: float = 0.01
    in_memory: Counter[str] = field(default_factory=Counter)
    peak_bytes: int = 0
    peak_models: int = 0
    names: dict[int, str] = field(default_factory=dict)

    async def load(self, settings: ReplicaSettings) -> LoadedModel:
        name = settings.model_name
        self.in_memory[name] += 1
        self.peak_bytes = max(
            self.peak_bytes, sum(self.sizes[n] * count for n, count in self.in_memory.items())
        )
        self.peak_models = max(self.peak_models, self.in_memory.total())
        try:
            loaded = await super().load(settings)
        except BaseException:
            self.in_memory[name] -= 1
            raise
        self.names[id(loaded)] = name
        return loaded

    async def free(self, loaded: LoadedModel) -> None:
        await asyncio.sleep(self.free_s)
        self.freed.append(loaded)
        self.in_memory[self.names[id(loaded)]] -= 1


@dataclass(frozen=True)
class Kind:
    """One model: how large it is, how long it loads, and whether it can."""

    size: int
    trial_s: float
    load_s: float
    fails: str = ""


@dataclass(frozen=True)
class Call:
    """A request for a model; its caller leaves after `leaves_s`, or stays."""

    model: int
    leaves_s: float | None = None


@dataclass(frozen=True)
class Burst:
    """Requests that come in one turn of the loop, `after_s` those before; one model is replaced."""

    calls: list[Call]
    after_s: float
    replaced: int | None


DURATIONS = st.sampled_from([0.0, 0.01, 0.1, 0.5])
KINDS = st.lists(
    st.builds(
        Kind,
        size=st.integers(1, 60),
        trial_s=DURATIONS,
        load_s=DURATIONS,
        fails=st.sampled_from(["", "", "", "", "trial", "load"]),
    ),
    min_size=2,
    max_size=12,
)
BURSTS = st.lists(
    st.builds(
        Burst,
        calls=st.lists(
            st.builds(
                Call,
                model=st.integers(0, 11),
                leaves_s=st.one_of(st.none(), st.none(), DURATIONS),
            ),
            min_size=1,
            max_size=6,
        ),
        after_s=st.sampled_from([0.0, 0.05, 0.3, 2.0, 10.0]),
        replaced=st.one_of(st.none(), st.none(), st.integers(0, 11)),
    ),
    min_size=2,
    max_size=12,
)


@settings(max_examples=150)
@given(KINDS, BURSTS, st.integers(1, 5), st.sampled_from([0.0, 0.01, 0.4]))
def test_concurrent_loads_stay_within_the_bounds_and_every_good_model_answers(
    kinds: list[Kind], bursts: list[Burst], max_loaded: int, free_s: float
) -> None:
    named = {f"m{i}": kind for i, kind in enumerate(kinds)}
    sizes = {name: kind.size for name, kind in named.items()}
    loads = MeteredLoads(
        seconds={name: kind.load_s for name, kind in named.items()},
        errors={name: BROKEN for name, kind in named.items() if kind.fails == "load"},
        sizes=sizes,
        free_s=free_s,
    )
    trier = Trier(
        seconds={name: kind.trial_s for name, kind in named.items()},
        errors={name: "broken" for name, kind in named.items() if kind.fails == "trial"},
        sizes=sizes,
    )

    async def run() -> tuple[Hosting, list[tuple[str, Call, Exchange]]]:
        hosting = Hosting(
            trier=trier,
            loads=loads,
            memory_bytes=LIMIT_BYTES,
            max_loaded=max_loaded,
            load_timeout_s=LATEST_S,
        )
        exchanges = []
        async with hosting.pool:
            declared = {name: entry(name) for name in named}
            hosting.declare(*declared.values())
            for number, burst in enumerate(bursts):
                await asyncio.sleep(burst.after_s)
                if burst.replaced is not None:
                    name = f"m{burst.replaced % len(kinds)}"
                    declared[name] = entry(name, path=f"{name}-{number}")
                    hosting.declare(*declared.values())
                for call in burst.calls:
                    name = f"m{call.model % len(kinds)}"
                    exchange = hosting.infer(name)
                    exchanges.append((name, call, exchange))
                    if call.leaves_s is not None:
                        loop = asyncio.get_running_loop()
                        loop.call_later(call.leaves_s, leave, hosting, exchange)
            await asyncio.sleep(LATEST_S)
        return hosting, exchanges

    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        hosting, exchanges = runner.run(run())

    for name, call, exchange in exchanges:
        if call.leaves_s is None:
            assert read(exchange).status == (503 if named[name].fails else 200)
    assert loads.peak_bytes <= LIMIT_BYTES
    assert loads.peak_models <= max_loaded
    assert len({id(loaded) for loaded in loads.freed}) == len(loads.freed)
    reports = [hosting.model(name) for name in named]
    resident = {report.model for report in reports if report.phase == "loaded"}
    assert resident == {name for name, count in loads.in_memory.items() if count}
    assert hosting.pool.report().loaded_bytes == sum(sizes[name] for name in resident)
    assert {r.phase for r in reports} <= {"loaded", "unloaded", "failed"}


def leave(hosting: Hosting, exchange: Exchange) -> None:
    if exchange.answer is None:
        hosting.application.cancel(exchange)


def test_two_loads_in_one_turn_of_the_loop_evict_different_models(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def run() -> list[int]:
        hosting = Hosting(max_loaded=2)
        async with hosting.pool:
            hosting.declare(*map(entry, "abcd"))
            for name in "abcd":
                hosting.infer(name)
                await asyncio.sleep(1)
            pair = [hosting.infer("a"), hosting.infer("b")]
            await asyncio.sleep(5)
        return [read(exchange).status for exchange in pair]

    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner, caplog.at_level(logging.ERROR):
        assert runner.run(run()) == [200, 200]
    assert caplog.text == ""
