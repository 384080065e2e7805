"""The driver: who gets which answer, and when not."""

import asyncio
import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from headrace.core import (
    BatchingSpec,
    DeadlineExceededError,
    FeaturesUnavailableError,
    HeadraceError,
    InferRequest,
    InferResponse,
    InvalidArgumentError,
    OverloadedError,
    PaddingSpec,
    RequestedOutput,
    RuntimeFailedError,
    Tensors,
    UnavailableError,
)
from headrace.core.encoders import TOKEN_COUNT
from headrace.engine import Engine, PaddingPlan, ServiceTimes, padding_plan
from headrace.observe import ModelStatistics, PhaseHistograms
from headrace.runtimes import Model
from tests.unit.engine.models import LENGTHS, ROWS, Doubling, Echoing
from tests.unit.engine.tickets import Recorded, a_ticket

pytestmark = pytest.mark.anyio


class Time:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def an_engine(
    model: Model,
    *,
    seconds: float | None = 1e-6,
    seconds_a_row: float = 0.0,
    clock: Callable[[], float] | None = None,
    plan: PaddingPlan | None = None,
    **settings: object,
) -> Engine:
    """An engine that thinks a run takes so long: inline when short, in a thread when long."""
    times = ServiceTimes(max_batch_size=int(str(settings.get("max_batch_size", 32))))
    if seconds is not None:
        for power in range(6):
            run_s = seconds + seconds_a_row * (1 << power)
            times.observe(rows=1 << power, length=1, seconds=run_s)
    return Engine(
        model,
        settings=BatchingSpec(**settings),  # type: ignore[arg-type]  # a test names what it needs
        statistics=ModelStatistics(name="m", version="1"),
        phases=PhaseHistograms(),
        times=times,
        plan=plan,
        clock=clock or Time(),
    )


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def outcome(ticket: Recorded) -> InferResponse | HeadraceError:
    async with asyncio.timeout(10):
        while not ticket.outcomes:  # noqa: ASYNC110  # an event per ticket would hide a second outcome
            await asyncio.sleep(0.001)
    assert len(ticket.outcomes) == 1
    return ticket.outcomes[0]


def value_of(found: InferResponse | HeadraceError) -> float:
    assert isinstance(found, InferResponse)
    return float(found.outputs["y"][0, 0])


async def test_requests_of_one_moment_share_a_batch_and_get_their_own_rows() -> None:
    model = Doubling()
    engine = an_engine(model)
    tickets = [a_ticket(value=v, rows=r) for v, r in ((1, 1), (2, 3), (3, 2))]

    for ticket in tickets:
        engine.submit(ticket, 0.0)
    await settle()

    assert model.batches == [6]
    for ticket, value in zip(tickets, (2, 4, 6), strict=True):
        answer = ticket.outcomes[0]
        assert isinstance(answer, InferResponse)
        np.testing.assert_array_equal(answer.outputs["y"], np.full((ticket.rows, 2), value))
        assert answer.outputs["z"].shape == (ticket.rows,)


async def test_long_runs_go_to_threads_and_what_waits_meanwhile_is_batched() -> None:
    model = Doubling()
    model.gate.clear()
    engine = an_engine(model, seconds=0.1, max_concurrent_runs=1)
    first = a_ticket(value=1)
    engine.submit(first, 0.0)
    await settle()
    later = [a_ticket(value=v) for v in (2, 3, 4)]
    for ticket in later:
        engine.submit(ticket, 0.0)
    assert engine.in_flight == 4

    model.gate.set()

    assert [value_of(await outcome(t)) for t in (first, *later)] == [2, 4, 6, 8]
    assert model.batches == [1, 3]
    await engine.stop(timeout_s=1)


async def test_time_in_flight_is_that_of_all_who_wait_or_run() -> None:
    model = Doubling()
    model.gate.clear()
    engine = an_engine(model, seconds=0.1, max_concurrent_runs=1)
    running, waiting, leaving = (a_ticket(queued_at=at) for at in (1.0, 2.0, 2.5))
    engine.submit(running, 1.0)
    await settle()
    engine.submit(waiting, 2.0)
    engine.submit(leaving, 2.5)
    both = engine.in_flight_s(3.0)
    engine.cancel(leaving)
    one = engine.in_flight_s(3.0)
    engine.cancel(running)

    assert (both, one, engine.in_flight_s(3.0)) == (3.5, 3.0, 1.0)

    model.gate.set()
    await outcome(waiting)
    await engine.stop(timeout_s=1)
    assert engine.in_flight_s(9.0) == 0


async def test_as_many_runs_at_once_as_allowed() -> None:
    model = Doubling()
    model.gate.clear()
    engine = an_engine(model, seconds=0.1, max_concurrent_runs=2, max_batch_size=1)
    tickets = [a_ticket(value=v) for v in range(3)]
    for ticket in tickets:
        engine.submit(ticket, 0.0)
    await settle()
    assert engine.waiting == 1

    model.gate.set()

    assert [value_of(await outcome(t)) for t in tickets] == [0, 2, 4]
    await engine.stop(timeout_s=1)


async def test_a_model_that_is_not_concurrent_runs_one_batch_at_a_time_and_never_inline() -> None:
    model = Doubling(concurrent=False)
    model.gate.clear()
    engine = an_engine(model, max_concurrent_runs=4, max_batch_size=1)
    tickets = [a_ticket(value=v) for v in range(3)]
    for ticket in tickets:
        engine.submit(ticket, 0.0)
    await settle()
    assert engine.waiting == 2

    model.gate.set()

    for ticket in tickets:
        await outcome(ticket)
    await engine.stop(timeout_s=1)


@pytest.mark.parametrize("seconds", [1e-6, 0.1])
@pytest.mark.parametrize("position", [0, 1, 2])
async def test_a_caller_who_leaves_a_waiting_batch_costs_the_others_nothing(
    position: int, seconds: float
) -> None:
    engine = an_engine(Doubling(), seconds=seconds)
    tickets = [a_ticket(value=v) for v in (1, 2, 3)]
    for ticket in tickets:
        engine.submit(ticket, 0.0)

    engine.cancel(tickets[position])
    rest = [ticket for i, ticket in enumerate(tickets) if i != position]

    for ticket in rest:
        assert value_of(await outcome(ticket)) == 2 * ticket.request.inputs["x"][0, 0]
    assert tickets[position].outcomes == []
    assert engine.statistics.failures["CANCELED"] == 1
    await engine.stop(timeout_s=1)


@pytest.mark.parametrize("seconds", [1e-6, 0.1])
async def test_a_model_without_a_batch_axis_runs_one_request_at_a_time(seconds: float) -> None:
    model = Doubling()
    model.signature = dataclasses.replace(ROWS, batched=False)
    engine = an_engine(model, seconds=seconds)
    tickets = [a_ticket(value=v) for v in (1, 2, 3)]
    for ticket in tickets:
        engine.submit(ticket, 0.0)

    assert [value_of(await outcome(ticket)) for ticket in tickets] == [2, 4, 6]
    assert model.batches == [1, 1, 1]
    await engine.stop(timeout_s=1)


@pytest.mark.parametrize("position", [0, 1, 2])
async def test_a_caller_who_leaves_a_running_batch_costs_the_others_nothing(position: int) -> None:
    model = Doubling()
    model.gate.clear()
    engine = an_engine(model, seconds=0.1)
    tickets = [a_ticket(value=v) for v in (1, 2, 3)]
    for ticket in tickets:
        engine.submit(ticket, 0.0)
    await settle()

    engine.cancel(tickets[position])
    engine.cancel(tickets[position])
    model.gate.set()

    for i, ticket in enumerate(tickets):
        if i != position:
            await outcome(ticket)
    assert model.batches == [3]
    assert tickets[position].outcomes == []
    assert engine.statistics.failures["CANCELED"] == 1
    await engine.stop(timeout_s=1)


@pytest.mark.parametrize("seconds", [1e-6, 0.1])
@pytest.mark.parametrize("position", range(5))
async def test_one_bad_row_fails_alone(position: int, seconds: float) -> None:
    engine = an_engine(Doubling(bad=99), seconds=seconds)
    values = [1.0, 2.0, 3.0, 4.0, 5.0]
    values[position] = 99
    tickets = [a_ticket(value=v) for v in values]
    for ticket in tickets:
        engine.submit(ticket, 0.0)

    found = [await outcome(ticket) for ticket in tickets]

    assert isinstance(found[position], InvalidArgumentError)
    assert [value_of(o) for i, o in enumerate(found) if i != position] == [
        2 * v for v in values if v != 99
    ]
    await engine.stop(timeout_s=1)


async def test_what_no_row_has_caused_is_not_tried_again_for_half_of_them() -> None:
    model = Doubling(bad=7, error=lambda: FeaturesUnavailableError("no store"))
    engine = an_engine(model)
    tickets = [a_ticket(value=7 if i == 3 else i) for i in range(8)]
    for ticket in tickets:
        engine.submit(ticket, 0.0)
    for ticket in tickets:
        await outcome(ticket)
    assert model.batches == [8]
    assert {str(ticket.outcomes[0]) for ticket in tickets} == {"no store"}
    await engine.stop(timeout_s=1)


async def test_a_model_that_may_wait_never_runs_on_the_event_loop() -> None:
    model = Doubling()
    model.may_wait = True  # type: ignore[attr-defined]
    model.gate.clear()
    engine = an_engine(model)
    ticket = a_ticket()
    engine.submit(ticket, 0.0)
    await asyncio.sleep(0.02)  # on the loop, it would not come back from here
    assert not ticket.outcomes
    model.gate.set()
    await outcome(ticket)
    await engine.stop(timeout_s=1)


async def test_a_model_that_asks_is_told_when_the_first_caller_stops_waiting() -> None:
    told: list[float | None] = []

    class Asking(Doubling):
        takes_deadline = True

        def run(
            self,
            inputs: Tensors,
            outputs: Sequence[str] | None = None,
            *,
            deadline: float | None = None,
        ) -> Tensors:
            told.append(deadline)
            return super().run(inputs, outputs)

    engine = an_engine(Asking(), clock=Time())
    tickets = [a_ticket(deadline=math.inf), a_ticket(deadline=30.0), a_ticket(deadline=20.0)]
    for ticket in tickets:
        engine.submit(ticket, 0.0)
    for ticket in tickets:
        await outcome(ticket)
    assert told == [20.0]
    await engine.stop(timeout_s=1)


async def test_what_a_plug_in_raises_becomes_an_error_that_hides_its_text() -> None:
    engine = an_engine(Doubling(bad=1, error=lambda: ZeroDivisionError("secret path")))
    ticket = a_ticket(value=1)

    engine.submit(ticket, 0.0)
    found = await outcome(ticket)

    assert isinstance(found, RuntimeFailedError)
    assert "secret" not in str(found)
    assert isinstance(found.__cause__, ZeroDivisionError)
    assert engine.statistics.failures["BACKEND"] == 1


async def test_an_output_that_does_not_follow_the_batch_fails_and_is_named() -> None:
    class Summing(Doubling):
        def run(self, inputs, outputs=None):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202, ARG002  # as above
            return {"y": inputs["x"].sum(axis=0, keepdims=True)}

    engine = an_engine(Summing())
    tickets = [a_ticket(value=1, rows=2), a_ticket(value=2, rows=2)]
    for ticket in tickets:
        engine.submit(ticket, 0.0)

    for ticket in tickets:
        assert isinstance(await outcome(ticket), InferResponse)  # each was run alone in the end


async def test_a_full_queue_refuses_with_a_time_to_come_back() -> None:
    engine = an_engine(Doubling(), max_queue_size=2)
    engine.submit(a_ticket(), 0.0)
    engine.submit(a_ticket(), 0.0)

    with pytest.raises(OverloadedError, match=r"full \(2 requests\)") as caught:
        engine.submit(a_ticket(), 0.0)

    assert caught.value.retry_after_s is not None
    assert engine.statistics.failures["REJECTED"] == 1


async def test_a_full_queue_gives_the_place_of_the_least_important_to_a_more_important_one() -> (
    None
):
    engine = an_engine(Doubling(), max_queue_size=3)
    high, low, lower = a_ticket(priority=2), a_ticket(priority=8), a_ticket(priority=9)
    for ticket in (high, lower, low):
        engine.submit(ticket, 0.0)
    important = a_ticket(value=1.0, priority=2)

    engine.submit(important, 0.0)

    error = await outcome(lower)
    assert isinstance(error, OverloadedError)
    assert error.retry_after_s is not None
    assert "higher priority" in str(error)
    assert value_of(await outcome(important)) == 2
    assert isinstance(await outcome(low), InferResponse)
    assert isinstance(await outcome(high), InferResponse)
    assert engine.statistics.failures["REJECTED"] == 1


async def test_a_full_queue_of_equals_refuses_who_comes_last() -> None:
    engine = an_engine(Doubling(), max_queue_size=1)
    first = a_ticket(priority=8)
    engine.submit(first, 0.0)

    with pytest.raises(OverloadedError):
        engine.submit(a_ticket(priority=8), 0.0)
    with pytest.raises(OverloadedError):
        engine.submit(a_ticket(priority=9), 0.0)

    assert isinstance(await outcome(first), InferResponse)


async def test_nobody_loses_a_place_to_a_request_that_is_refused_for_its_deadline() -> None:
    model = Doubling()
    model.gate.clear()
    engine = an_engine(
        model, seconds=1.0, max_concurrent_runs=1, max_batch_size=1, max_queue_size=2
    )
    engine.submit(a_ticket(), 0.0)
    await settle()
    low, middle = a_ticket(priority=9), a_ticket(priority=3)
    for ticket in (low, middle):
        engine.submit(ticket, 0.0)

    with pytest.raises(DeadlineExceededError):
        engine.submit(a_ticket(priority=3, deadline=0.5), 0.0)

    assert not low.outcomes
    model.gate.set()
    await engine.stop(timeout_s=5)


async def test_what_would_be_late_behind_more_important_ones_is_refused_for_the_slo() -> None:
    model = Doubling()
    model.gate.clear()
    engine = an_engine(model, seconds=1.0, max_concurrent_runs=1, max_batch_size=1)
    for _ in range(4):
        engine.submit(a_ticket(priority=4, slo_s=0.1), 0.0)  # equals are not refused for it
    await settle()

    with pytest.raises(OverloadedError, match="higher priority") as caught:
        engine.submit(a_ticket(priority=5, slo_s=0.1), 0.0)
    assert caught.value.retry_after_s is not None
    engine.submit(a_ticket(priority=5, slo_s=1000.0), 0.0)
    engine.submit(a_ticket(priority=3, slo_s=0.1), 0.0)

    model.gate.set()
    await engine.stop(timeout_s=5)


async def test_what_is_late_by_its_own_rows_is_refused_for_the_slo() -> None:
    model = Doubling()
    model.gate.clear()
    engine = an_engine(
        model, seconds=1.0, seconds_a_row=0.5, max_concurrent_runs=1, max_batch_size=8
    )
    engine.submit(a_ticket(priority=4), 0.0)
    await settle()
    engine.submit(a_ticket(priority=4, rows=2), 0.0)

    with pytest.raises(OverloadedError, match="higher priority"):
        engine.submit(a_ticket(priority=5, slo_s=7.0, rows=4), 0.0)
    engine.submit(a_ticket(priority=5, slo_s=7.0, rows=1), 0.0)

    model.gate.set()
    await engine.stop(timeout_s=5)


async def test_a_caller_s_floor_bounds_the_priority_that_it_asks_for() -> None:
    engine = an_engine(Doubling(), max_queue_size=1)
    greedy = a_ticket(priority=1, floor=5)
    engine.submit(greedy, 0.0)

    engine.submit(a_ticket(priority=0, floor=4), 0.0)

    assert isinstance(await outcome(greedy), OverloadedError)


async def test_more_rows_than_a_batch_takes_are_refused() -> None:
    engine = an_engine(Doubling(), max_batch_size=4)

    with pytest.raises(InvalidArgumentError, match="batch-size must be <= 4"):
        engine.submit(a_ticket(rows=5), 0.0)


async def test_a_deadline_that_passed_is_refused_at_the_door() -> None:
    engine = an_engine(Doubling())

    with pytest.raises(DeadlineExceededError):
        engine.submit(a_ticket(deadline=1.0), 1.0)


async def test_the_requests_own_timeout_sets_its_deadline() -> None:
    engine = an_engine(Doubling(), default_timeout_s=5.0)
    own, default = a_ticket(queued_at=1.0), a_ticket(queued_at=1.0)
    own.request = InferRequest(model_name="m", inputs=own.request.inputs, timeout_s=2.0)

    engine.submit(own, 1.0)
    engine.submit(default, 1.0)

    assert own.deadline == 3.0
    assert default.deadline == 6.0


async def test_what_cannot_be_in_time_behind_a_queue_is_refused_at_the_door() -> None:
    model = Doubling()
    model.gate.clear()
    engine = an_engine(model, seconds=0.1, max_concurrent_runs=1, max_batch_size=1)
    waiting = [a_ticket() for _ in range(20)]
    for ticket in waiting:
        engine.submit(ticket, 0.0)
    await settle()

    with pytest.raises(DeadlineExceededError, match="cannot be met") as caught:
        engine.submit(a_ticket(deadline=1.0), 0.0)
    assert caught.value.retry_after_s is not None
    with pytest.raises(DeadlineExceededError, match="cannot be met") as caught:
        engine.submit(a_ticket(deadline=0.05), 0.0)
    assert caught.value.retry_after_s is None  # a run alone takes longer
    engine.submit(a_ticket(deadline=100.0), 0.0)

    model.gate.set()
    await engine.stop(timeout_s=5)


async def test_a_wrong_estimate_does_not_shut_an_idle_engine() -> None:
    engine = an_engine(Doubling(), seconds=1000.0)
    ticket = a_ticket(value=1, deadline=1.0)

    engine.submit(ticket, 0.0)

    assert value_of(await outcome(ticket)) == 2
    assert await engine.stop(timeout_s=1)


async def test_a_deadline_that_passes_in_the_queue_is_answered_without_a_run() -> None:
    model = Doubling()
    model.gate.clear()
    time = Time()
    engine = an_engine(model, seconds=0.1, max_concurrent_runs=1, clock=time)
    engine.submit(a_ticket(), 0.0)
    await settle()
    engine.model = model
    late = a_ticket(deadline=math.inf)
    engine.submit(late, 0.0)
    late.deadline = 0.5
    time.now = 1.0
    engine._queue._earliest = 0.5

    engine._on_timer()

    assert isinstance(await outcome(late), DeadlineExceededError)
    model.gate.set()
    await engine.stop(timeout_s=5)
    assert model.batches == [1]


async def test_a_deadline_is_answered_in_time_even_if_the_run_does_not_end() -> None:
    model = Doubling()
    model.gate.clear()
    engine = an_engine(
        model, seconds=0.1, max_concurrent_runs=1, clock=asyncio.get_running_loop().time
    )
    now = asyncio.get_running_loop().time()
    stuck = a_ticket(queued_at=now, deadline=now + 0.02)
    engine.submit(stuck, now)
    await settle()

    found = await outcome(stuck)

    assert isinstance(found, DeadlineExceededError)
    assert "while it ran" in str(found)
    model.gate.set()
    await engine.stop(timeout_s=5)
    assert len(stuck.outcomes) == 1


async def test_no_run_is_spent_on_what_would_come_too_late() -> None:
    model = Doubling()
    model.gate.clear()
    time = Time()
    engine = an_engine(model, seconds=0.1, max_concurrent_runs=1, max_batch_size=1, clock=time)
    first = a_ticket()
    engine.submit(first, 0.0)
    await settle()
    hopeless, fine = a_ticket(deadline=1.0), a_ticket(deadline=50.0)
    engine.submit(hopeless, 0.0)
    engine.submit(fine, 0.0)
    time.now = 0.95  # a run takes 0.1 s

    model.gate.set()

    found = await outcome(hopeless)
    assert isinstance(found, DeadlineExceededError)
    assert "would pass" in str(found)
    assert value_of(await outcome(fine)) == 0
    assert model.batches == [1, 1]
    await engine.stop(timeout_s=1)


async def test_the_earliest_of_several_deadlines_is_kept_in_time() -> None:
    loop = asyncio.get_running_loop()
    model = Doubling()
    model.gate.clear()
    engine = an_engine(
        model, seconds=0.005, max_concurrent_runs=1, max_batch_size=1, clock=loop.time
    )
    now = loop.time()
    running = a_ticket(queued_at=now, deadline=now + 30)
    engine.submit(running, now)
    await settle()
    late = [a_ticket(queued_at=now, deadline=now + wait) for wait in (0.2, 0.1)]
    for ticket in late:
        engine.submit(ticket, now)

    for ticket in reversed(late):
        assert isinstance(await outcome(ticket), DeadlineExceededError)
    assert running.outcomes == []
    model.gate.set()
    await outcome(running)
    await engine.stop(timeout_s=1)


async def test_a_run_that_ends_after_the_loop_is_gone_bothers_nobody() -> None:
    model = Doubling()
    model.gate.clear()
    engine = an_engine(model, seconds=0.1, max_concurrent_runs=1)
    left, stays = a_ticket(), a_ticket()
    for ticket in (left, stays):
        engine.submit(ticket, 0.0)
    await settle()
    engine.cancel(left)
    await engine.stop(timeout_s=0)
    assert isinstance(stays.outcomes[0], UnavailableError)

    class ClosedLoop:
        def call_soon_threadsafe(self, *_: object) -> None:
            raise RuntimeError("Event loop is closed")

    engine._loop = ClosedLoop()  # type: ignore[assignment]  # as after the process's end began
    model.gate.set()
    (thread,) = engine._threads
    await asyncio.to_thread(thread.join, 10)

    assert not thread.is_alive()


async def test_only_outputs_that_somebody_wants_are_computed() -> None:
    model = Doubling()
    engine = an_engine(model)
    only_z, both = a_ticket(value=1), a_ticket(value=2)
    only_z.request = InferRequest(
        model_name="m", inputs=only_z.request.inputs, outputs=(RequestedOutput(name="z"),)
    )

    engine.submit(only_z, 0.0)
    await settle()
    engine.submit(only_z_again := a_ticket(), 0.0)
    engine.submit(both, 0.0)
    await settle()

    assert model.wanted == [("z",), None]
    answer = only_z.outcomes[0]
    assert isinstance(answer, InferResponse)
    assert list(answer.outputs) == ["z"]
    assert len(only_z_again.outcomes) == 1


class Counting(Doubling):
    """Counts the tokens of a row: its first number."""

    counts_tokens = True

    def run(self, inputs: Tensors, outputs: Sequence[str] | None = None) -> Tensors:
        answers = super().run(inputs)
        self.wanted[-1] = outputs
        answers[TOKEN_COUNT] = inputs["x"][:, 0].astype(np.int64)
        return {name: answers[name] for name in outputs or ("y", "z")}


@pytest.mark.parametrize("is_first", [True, False])
async def test_token_counts_go_only_to_requests_that_name_them(is_first: bool) -> None:  # noqa: FBT001  # a parameter
    model = Counting()
    engine = an_engine(model)
    counted, everything = a_ticket(value=5), a_ticket(value=2)
    outputs = (RequestedOutput(name="y"), RequestedOutput(name=TOKEN_COUNT))
    counted.request = InferRequest(model_name="m", inputs=counted.request.inputs, outputs=outputs)

    for ticket in (counted, everything) if is_first else (everything, counted):
        engine.submit(ticket, 0.0)
    await settle()

    (with_count,), (without,) = counted.outcomes, everything.outcomes
    assert model.wanted == [("y", "z", TOKEN_COUNT)]
    assert isinstance(with_count, InferResponse)
    assert isinstance(without, InferResponse)
    assert list(with_count.outputs) == ["y", TOKEN_COUNT]
    assert with_count.outputs[TOKEN_COUNT].tolist() == [5]
    assert list(without.outputs) == ["y", "z"]


async def test_near_lengths_are_padded_together_and_cut_back() -> None:
    model = Echoing()
    plan = padding_plan(LENGTHS, PaddingSpec(axis=1, max_ratio=1.5), {"y": (1,)})
    engine = an_engine(model, plan=plan)
    tickets = []
    for length in (3, 4):
        ticket = a_ticket()
        x = np.arange(length, dtype=np.float32)[None]
        ticket.request = InferRequest(model_name="m", inputs={"x": x})
        tickets.append(ticket)
        engine.submit(ticket, 0.0)

    for ticket, length in zip(tickets, (3, 4), strict=True):
        answer = await outcome(ticket)
        assert isinstance(answer, InferResponse)
        np.testing.assert_array_equal(answer.outputs["y"], np.arange(length)[None])
    assert model.shapes == [(2, 4)]


async def test_a_delay_waits_for_company_but_not_when_full() -> None:
    loop = asyncio.get_running_loop()
    model = Doubling()
    engine = an_engine(model, max_queue_delay_s=0.02, max_batch_size=2, clock=loop.time)
    first = a_ticket(queued_at=loop.time())
    engine.submit(first, loop.time())
    await settle()
    assert model.batches == []
    second = a_ticket()
    engine.submit(second, loop.time())
    await settle()
    assert model.batches == [2]

    alone = a_ticket()
    engine.submit(alone, loop.time())
    await outcome(alone)
    assert model.batches == [2, 1]


async def test_stopping_answers_what_is_in_and_refuses_what_comes() -> None:
    model = Doubling()
    model.gate.clear()
    engine = an_engine(model, seconds=0.1, max_concurrent_runs=1)
    inside = [a_ticket(value=v) for v in (1, 2)]
    for ticket in inside:
        engine.submit(ticket, 0.0)
    await settle()
    stopping = asyncio.ensure_future(engine.stop(timeout_s=5))
    await settle()

    with pytest.raises(UnavailableError):
        engine.submit(a_ticket(), 0.0)
    model.gate.set()
    await stopping

    assert [value_of(await outcome(t)) for t in inside] == [2, 4]


async def test_stopping_ends_with_the_last_short_run_not_with_the_timeout() -> None:
    engine = an_engine(Doubling())
    ticket = a_ticket(value=1)
    engine.submit(ticket, 0.0)

    async with asyncio.timeout(5):
        await engine.stop(timeout_s=60)

    assert value_of(await outcome(ticket)) == 2


async def test_what_does_not_end_before_the_drain_does_gets_an_error() -> None:
    model = Doubling()
    model.gate.clear()
    engine = an_engine(model, seconds=0.1, max_concurrent_runs=1, max_batch_size=1)
    running, waiting = a_ticket(), a_ticket()
    engine.submit(running, 0.0)
    engine.submit(waiting, 0.0)
    await settle()

    is_idle = await engine.stop(timeout_s=0.01)

    assert not is_idle
    for ticket in (running, waiting):
        assert isinstance(await outcome(ticket), UnavailableError)
    model.gate.set()


async def test_what_is_counted() -> None:
    engine = an_engine(Doubling())
    for rows in (1, 2):
        engine.submit(a_ticket(rows=rows), 0.0)
    await settle()

    statistics = engine.statistics
    assert statistics.inference_count == 3
    assert statistics.execution_count == 1
    assert statistics.success.count == statistics.queue.count == 2
    assert list(statistics.batches) == [3]
    assert engine.phases.batch_rows.count == 1
    assert engine.phases.queue_wait.count == 2


async def test_an_answer_names_the_version_and_who_left_is_counted_with_his_time() -> None:
    time = Time()
    engine = an_engine(Doubling(), clock=time)
    stays, leaves = a_ticket(), a_ticket()
    engine.submit(stays, 0.0)
    engine.submit(leaves, 0.0)
    time.now = 0.5
    engine.cancel(leaves)

    answer = await outcome(stays)
    assert isinstance(answer, InferResponse)
    assert (answer.model_name, answer.model_version) == ("m", "1")
    assert engine.statistics.failures["CANCELED"] == 1
    assert engine.statistics.fail.ns == 500_000_000


async def test_an_engine_says_how_many_runs_it_has_at_once() -> None:
    engine = an_engine(Doubling(), max_concurrent_runs=3)
    alone = an_engine(Doubling(concurrent=False), max_concurrent_runs=3)

    assert engine.max_concurrent_runs == 3
    assert alone.max_concurrent_runs == 1


async def test_an_engine_is_stuck_while_nobody_waits_for_any_run_and_there_is_no_other_place() -> (
    None
):
    model, time = Doubling(), Time()
    model.gate.clear()
    engine = an_engine(model, clock=time, seconds=0.1, max_concurrent_runs=2, max_batch_size=1)
    first, second = a_ticket(), a_ticket()
    engine.submit(first, 0.0)
    await settle()
    engine.cancel(first)
    time.now = 3.0
    assert engine.stuck_s(3.0) == 0.0, "there is another place"
    engine.submit(second, 3.0)
    await settle()
    assert engine.stuck_s(9.0) == 0.0, "somebody waits for the second"

    engine.cancel(second)

    assert engine.stuck_s(9.0) == 6.0
    model.gate.set()
    async with asyncio.timeout(5):
        await engine.stop(timeout_s=60)
    assert engine.stuck_s(9.0) == 0.0
