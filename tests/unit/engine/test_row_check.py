"""Checks of rows: how often, when, and what they find."""

import asyncio
import heapq
import random
import threading
from collections.abc import Callable, Iterator, Sequence
from itertools import count, pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.core import (
    BatchingSpec,
    InferRequest,
    InferResponse,
    ModelSignature,
    PaddingSpec,
    RuntimeFailedError,
    Tensors,
)
from headrace.engine import Batch, Engine, PaddingPlan, RowChecker, ServiceTimes, padding_plan
from headrace.engine.row_check import FIRST_CHECKS, MIN_INTERVAL_S
from headrace.engine.run import run_batch
from headrace.observe import ModelStatistics, PhaseHistograms
from headrace.observe.row_checks import RowCheckCounts, RowOutcome
from headrace.runtimes import Model
from tests.unit.engine.models import LENGTHS, ROWS, Doubling
from tests.unit.engine.tickets import Recorded, a_ticket

Listener = Callable[[Batch], None] | None


class Rows:
    """A model whose answer to a batch a test chooses."""

    concurrent = True

    def __init__(
        self, answer: Callable[[Tensors], Tensors], signature: ModelSignature = ROWS
    ) -> None:
        self.signature = signature
        self._answer = answer
        self.runs: list[int] = []

    def run(self, inputs: Tensors, outputs: Sequence[str] | None = None) -> Tensors:
        self.runs.append(len(inputs["x"]))
        answers = self._answer(inputs)
        return answers if outputs is None else {name: answers[name] for name in outputs}

    def close(self) -> None:
        pass


def doubled(inputs: Tensors) -> Tensors:
    return {"y": inputs["x"] * 2, "z": inputs["x"].sum(axis=1)}


def centred(inputs: Tensors) -> Tensors:
    return {"y": inputs["x"] - inputs["x"].mean(axis=0), "z": inputs["x"].sum(axis=1)}


class World:
    """A checker in virtual time, with an engine that ends each run after `run_s`."""

    def __init__(
        self,
        model: Model,
        *,
        ratio: float = 1.0,
        plan: PaddingPlan | None = None,
        only_padded: bool = False,
    ) -> None:
        self.model = model
        self.now = 0.0
        self.run_s = 0.0
        self.has_room = True
        self.listener: Listener = None
        self.started: list[float] = []
        self.counts = RowCheckCounts()
        self.statistics = ModelStatistics(name="m", version="1")
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = count()
        self.plan = plan
        self.checker = RowChecker(
            statistics=self.statistics,
            plan=plan,
            only_padded=only_padded,
            ratio=ratio,
            counts=self.counts,
            listen=self._listen,
            run_in_thread=self._run_in_thread,
            later=self._later,
            soon=lambda call: self._later(0.0, call),
            chance=random.Random(7),  # noqa: S311  # sampling
            clock=lambda: self.now,
        )
        self.checker.start()

    def _listen(self, listener: Listener) -> None:
        self.listener = listener

    def _later(self, delay_s: float, call: Callable[[], None]) -> None:
        heapq.heappush(self._timers, (self.now + delay_s, next(self._numbers), call))

    def _run_in_thread(self, work: Callable[[Model], None], on_ended: Callable[[], None]) -> bool:
        if not self.has_room:
            return False
        self.started.append(self.now)
        work(self.model)
        self._later(self.run_s, on_ended)
        return True

    def advance(self, seconds: float) -> None:
        """Let time pass, and what is due happen."""
        until = self.now + seconds
        while self._timers and self._timers[0][0] <= until:
            self.now, _, call = heapq.heappop(self._timers)
            call()
        self.now = until

    def batch(self, *tickets: Recorded, took_s: float = 0.0) -> None:
        """A batch runs now; it is heard of as an engine says it, then its callers are answered."""
        found = Batch(
            tickets=list(tickets), rows=sum(one.rows for one in tickets), formed_at=self.now
        )
        run_batch(self.model, found, self.plan)
        found.computed_at = found.joined_at + took_s
        self.statistics.execution_count += found.executions
        if self.listener is not None:
            self.listener(found)

    @property
    def due(self) -> int:
        return len(self._timers)

    @property
    def outcomes(self) -> dict[RowOutcome, int]:
        return {outcome: n for outcome, n in self.counts.outcomes.items() if n}


def pair(first: float = 1.0, second: float = 4.0) -> tuple[Recorded, Recorded]:
    return a_ticket(value=first), a_ticket(value=second)


def test_row_that_is_answered_alike_alone_is_no_difference() -> None:
    world = World(Rows(doubled))
    world.batch(*pair())
    world.advance(1)
    assert world.outcomes == {RowOutcome.SAME: 1}
    assert world.counts.difference is None


def test_model_that_mixes_rows_is_found_with_the_output_and_the_size() -> None:
    world = World(Rows(centred))
    world.batch(*pair(1.0, 4.0))
    world.advance(1)

    assert world.outcomes == {RowOutcome.DIFFERENT: 1}
    found = world.counts.difference
    assert found is not None
    assert (found.output, found.requests, found.rows, found.padded) == ("y", 2, 2, False)
    assert found.ratio == pytest.approx(1.0)


def test_other_shape_alone_is_a_difference_without_a_size() -> None:
    def as_many(inputs: Tensors) -> Tensors:
        rows = len(inputs["x"])
        return {"y": np.ones((rows, rows), np.int64)}

    world = World(Rows(as_many))
    world.batch(*pair())
    world.advance(1)
    assert world.outcomes == {RowOutcome.DIFFERENT: 1}
    assert world.counts.difference is not None
    assert world.counts.difference.ratio is None


def test_model_with_noise_is_not_blamed() -> None:
    noise = np.random.default_rng(1)
    world = World(Rows(lambda inputs: {"y": inputs["x"] + noise.random(inputs["x"].shape)}))
    world.batch(*pair())
    world.advance(1)
    assert world.outcomes == {RowOutcome.UNREPEATABLE: 1}


def test_model_whose_state_changed_after_the_batch_is_not_blamed() -> None:
    offsets = iter([0.0, 1.0, 1.0, 1.0])
    world = World(Rows(lambda inputs: {"y": inputs["x"] + next(offsets)}))
    world.batch(*pair())
    world.advance(1)
    assert world.outcomes == {RowOutcome.UNREPEATABLE: 1}


def test_model_that_fails_on_the_row_alone_is_counted_and_not_blamed() -> None:
    def never_alone(inputs: Tensors) -> Tensors:
        if len(inputs["x"]) == 1:
            raise RuntimeFailedError("no")
        return doubled(inputs)

    world = World(Rows(never_alone))
    world.batch(*pair())
    world.advance(1)
    assert world.outcomes == {RowOutcome.FAILED: 1}


@given(
    st.floats(1e-6, 1e6),
    st.floats(-1e-5, 1e-5),
    st.sampled_from([np.float32, np.float64, np.float16]),
)
@settings(deadline=None)
def test_rounding_is_no_difference(scale: float, relative: float, dtype: type) -> None:
    """Alone, each answer is off by a part of the batch's largest value, as kernels round."""
    scale = min(scale, 1e3) if dtype is np.float16 else scale

    def rounded(inputs: Tensors) -> Tensors:
        rows = len(inputs["x"])
        if rows > 1:
            return {"y": np.array([[scale], [scale * 1e-3]]).astype(dtype)}
        own = scale if float(inputs["x"][0, 0]) == 1.0 else scale * 1e-3
        return {"y": np.array([[own + relative * scale]]).astype(dtype)}

    world = World(Rows(rounded))
    world.batch(*pair(1.0, 2.0))
    world.advance(1)
    assert world.outcomes == {RowOutcome.SAME: 1}


def test_model_that_changes_its_inputs_in_place_is_judged_by_what_callers_sent() -> None:
    def in_place(inputs: Tensors) -> Tensors:
        inputs["x"] -= inputs["x"].mean(axis=0)
        inputs["x"] += 1
        return {"y": inputs["x"]}

    world = World(Rows(in_place))
    tickets = pair(1.0, 4.0)
    world.batch(*tickets)
    world.advance(1)
    assert world.outcomes == {RowOutcome.DIFFERENT: 1}
    assert [float(one.request.inputs["x"][0, 0]) for one in tickets] == [1.0, 4.0]


def test_model_that_is_loaded_anew_again_and_again_has_one_look_due() -> None:
    world = World(Rows(doubled), ratio=0.001)
    for _ in range(FIRST_CHECKS):
        world.batch(*pair())
        world.advance(1.001)
    for _ in range(100):
        world.checker.start()
    assert world.due <= 1


def test_label_that_flips_beside_equal_scores_is_no_difference() -> None:
    def tied(inputs: Tensors) -> Tensors:
        rows = len(inputs["x"])
        return {"label": np.full(rows, rows, np.int64), "score": np.full(rows, 0.5, np.float32)}

    world = World(Rows(tied))
    world.batch(*pair())
    world.advance(1)
    assert world.outcomes == {RowOutcome.SAME: 1}


def test_request_alone_in_its_run_is_not_checked() -> None:
    world = World(Rows(doubled))
    world.batch(a_ticket(rows=4))
    world.advance(5)
    assert world.outcomes == {}
    world.batch(*pair())
    world.advance(1)
    assert world.outcomes == {RowOutcome.SAME: 1}


def test_model_that_takes_seconds_for_a_run_is_not_checked() -> None:
    world = World(Rows(centred))
    world.batch(*pair(), took_s=4.0)
    world.advance(1.5)
    assert world.outcomes == {RowOutcome.SKIPPED: 1}
    world.batch(*pair(), took_s=2.0)
    world.advance(1)
    assert world.outcomes == {RowOutcome.SKIPPED: 1, RowOutcome.DIFFERENT: 1}


def test_ratio_of_0_checks_nothing() -> None:
    world = World(Rows(centred), ratio=0.0)
    for _ in range(20):
        world.batch(*pair())
        world.advance(2)
    assert world.outcomes == {}


def test_check_waits_while_requests_leave_no_room() -> None:
    world = World(Rows(centred))
    world.has_room = False
    for _ in range(5):
        world.batch(*pair())
        world.advance(1)
    assert world.outcomes == {RowOutcome.SKIPPED: 5}
    world.has_room = True
    world.batch(*pair())
    world.advance(1)
    assert world.outcomes == {RowOutcome.SKIPPED: 5, RowOutcome.DIFFERENT: 1}


@given(st.lists(st.floats(0.001, 3.0), min_size=1, max_size=60), st.floats(0.0, 0.2))
@settings(deadline=None, max_examples=50)
def test_checks_are_a_second_apart_and_take_one_hundredth_of_the_time(
    gaps: list[float], run_s: float
) -> None:
    world = World(Rows(doubled))
    world.run_s = run_s
    for gap in gaps:
        world.batch(*pair())
        world.advance(gap)
    starts = world.started
    least = run_s + max(MIN_INTERVAL_S, 100 * run_s)
    assert all(after - before >= least - 1e-9 for before, after in pairwise(starts))


def test_first_checks_come_soon_and_later_ones_by_the_ratio() -> None:
    world = World(Rows(doubled), ratio=0.01)
    for _ in range(FIRST_CHECKS):
        world.batch(*pair())
        world.advance(1.001)
    assert world.outcomes == {RowOutcome.SAME: FIRST_CHECKS}

    for _ in range(20_000):
        world.batch(*pair())
        world.advance(1.0)
    later = world.counts.outcomes[RowOutcome.SAME] - FIRST_CHECKS
    assert 140 < later < 260  # 20,000 batches at 1 % are 200, and the standard deviation is 14


def test_between_checks_nobody_hears_of_batches() -> None:
    world = World(Rows(doubled), ratio=0.001)
    heard = 0
    for _ in range(2000):
        heard += world.listener is not None
        world.batch(*pair())
        world.advance(0.01)
    assert heard <= 30


def lengths(*sizes: int) -> Iterator[Recorded]:
    for size in sizes:
        ticket = Recorded(
            InferRequest(model_name="m", inputs={"x": np.ones((1, size), np.float32)}, rows=1)
        )
        ticket.length, ticket.group = size, ((),)
        yield ticket


PLAN = padding_plan(LENGTHS, PaddingSpec(max_ratio=9.0), {"y": (1,)})


def test_padding_that_changes_answers_is_found() -> None:
    def share_of_length(inputs: Tensors) -> Tensors:
        return {"y": inputs["x"] / inputs["x"].shape[1]}

    world = World(Rows(share_of_length, LENGTHS), plan=PLAN, only_padded=True)
    while not world.started:
        world.batch(*lengths(2, 4))
        world.advance(1)
    assert world.outcomes == {RowOutcome.DIFFERENT: 1}
    assert world.counts.difference is not None
    assert world.counts.difference.padded


def test_padding_that_changes_nothing_is_no_difference() -> None:
    world = World(Rows(lambda inputs: {"y": inputs["x"] * 3}, LENGTHS), plan=PLAN)
    for _ in range(6):
        world.batch(*lengths(2, 4))
        world.advance(1.001)
    assert world.outcomes == {RowOutcome.SAME: 6}


# With an engine, whose requests go first.


def an_engine(model: Model, *, runs: int, rows: int = 32) -> Engine:
    times = ServiceTimes(max_batch_size=32)
    times.observe(rows=1, length=1, seconds=0.1)  # long: in threads
    return Engine(
        model,
        settings=BatchingSpec(max_concurrent_runs=runs, max_batch_size=rows),
        statistics=ModelStatistics(name="m", version="1"),
        phases=PhaseHistograms(),
        times=times,
    )


def waited(event: threading.Event) -> None:
    event.wait(10)


async def answered(tickets: Sequence[Recorded]) -> None:
    async with asyncio.timeout(10):
        while not all(ticket.outcomes for ticket in tickets):  # noqa: ASYNC110  # as in test_engine
            await asyncio.sleep(0.001)


@pytest.mark.anyio
async def test_callers_have_their_answers_before_a_row_runs_again() -> None:
    model = Doubling()
    engine = an_engine(model, runs=2)
    tickets = [a_ticket(value=1), a_ticket(value=2)]
    seen: list[bool] = []

    def run_in_thread(work: Callable[[Model], None], on_ended: Callable[[], None]) -> bool:
        seen.append(all(isinstance(one.outcomes[0], InferResponse) for one in tickets))
        return engine.run_in_thread(work, on_ended)

    def listen(listener: Listener) -> None:
        engine.on_batch = listener

    counts = RowCheckCounts()
    loop = asyncio.get_running_loop()
    checker = RowChecker(
        statistics=engine.statistics,
        plan=None,
        only_padded=False,
        ratio=1.0,
        counts=counts,
        listen=listen,
        run_in_thread=run_in_thread,
        later=loop.call_later,
        soon=loop.call_soon,
    )
    checker.start()
    for ticket in tickets:
        engine.submit(ticket, 0.0)
    await answered(tickets)
    async with asyncio.timeout(10):
        while not counts.outcomes[RowOutcome.SAME]:  # noqa: ASYNC110  # as above
            await asyncio.sleep(0.001)

    assert seen == [True]
    assert model.batches == [2, 1]
    assert engine.statistics.execution_count == 1
    await engine.stop(timeout_s=1)


@pytest.mark.anyio
async def test_requests_are_answered_while_a_check_runs() -> None:
    model = Doubling()
    engine = an_engine(model, runs=2)
    ended = asyncio.Event()
    hold = threading.Event()

    assert engine.run_in_thread(lambda _: waited(hold), ended.set)
    assert engine.in_flight == 0
    ticket = a_ticket(value=2)
    engine.submit(ticket, 0.0)
    await answered([ticket])
    assert not ended.is_set()
    hold.set()
    await asyncio.wait_for(ended.wait(), 10)
    assert await engine.stop(timeout_s=1)


@pytest.mark.anyio
async def test_no_check_begins_while_requests_wait_or_half_of_the_places_are_taken() -> None:
    model = Doubling()
    model.gate.clear()
    engine = an_engine(model, runs=2, rows=1)
    tickets = [a_ticket(value=v) for v in range(3)]
    never: Callable[[], None] = lambda: None  # noqa: E731  # a callback

    engine.submit(tickets[0], 0.0)
    assert not engine.run_in_thread(lambda _: None, never)
    await asyncio.sleep(0)
    assert not engine.run_in_thread(lambda _: None, never)
    model.gate.set()
    await answered(tickets[:1])
    assert await engine.stop(timeout_s=1)
    assert not engine.run_in_thread(lambda _: None, never)


@pytest.mark.anyio
async def test_stop_waits_for_a_check_so_that_the_model_is_not_freed_under_it() -> None:
    engine = an_engine(Doubling(), runs=1)
    hold = threading.Event()

    assert engine.run_in_thread(lambda _: waited(hold), lambda: None)
    stopping = asyncio.ensure_future(engine.stop(timeout_s=10))
    await asyncio.sleep(0.01)
    assert not stopping.done()
    hold.set()
    assert await stopping


@pytest.mark.anyio
async def test_stop_says_that_a_check_still_uses_the_model() -> None:
    engine = an_engine(Doubling(), runs=1)
    hold = threading.Event()

    assert engine.run_in_thread(lambda _: waited(hold), lambda: None)
    assert not await engine.stop(timeout_s=0.0)
    hold.set()
