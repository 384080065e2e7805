import pytest

from headrace.optimize.profiling.overhead import (
    ReplicaTotals,
    RequestBlock,
    overhead_of,
    request_concurrently,
    request_sequentially,
)

RUN_S = 0.005
FRONT_S = 0.0004


class Replica:
    """Answers after a run and some work of its event loop, on a clock of its own."""

    def __init__(self, *, tells: bool = True) -> None:
        self.now = 0.0
        self.pauses: list[float] = []
        self._answers = 0
        self._loop_s = 0.0
        self._tells = tells

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds

    def ask(self) -> float:
        self.now += RUN_S + FRONT_S
        self._loop_s += FRONT_S / 2
        self._answers += 1
        return RUN_S + FRONT_S

    def ask_many(self) -> float:
        self.now += RUN_S + 16 * FRONT_S
        self._loop_s += FRONT_S / 4 + 16 * FRONT_S / 4
        self._answers += 16
        return RUN_S

    def totals(self) -> ReplicaTotals:
        answers = self._answers if self._tells else 0
        return ReplicaTotals(
            answers=answers, answer_s=answers * RUN_S, run_s=answers * RUN_S, loop_s=self._loop_s
        )


def test_what_a_caller_waits_beyond_the_run_is_told() -> None:
    replica = Replica()
    alone = request_sequentially(
        replica.ask, replica.totals, budget_s=1.0, clock=replica.clock, sleep=replica.sleep
    )
    together = request_concurrently(
        replica.ask_many, replica.totals, budget_s=0.1, clock=replica.clock
    )

    found = overhead_of(alone, together, way="made up", max_runs=1)

    assert found.run_s == pytest.approx(RUN_S)
    assert found.wall_s == pytest.approx(FRONT_S)
    # Alone the loop needs 1/2 of it, with fifteen more 1/4 + 16/4: so 1/4 each is for a request.
    assert found.cpu_s == pytest.approx((FRONT_S * 4.25 - FRONT_S / 2) / 15)
    assert found.wake_s + found.cpu_s == pytest.approx(FRONT_S / 2)
    assert found.p50_s == pytest.approx(RUN_S + FRONT_S)


def test_every_other_block_has_pauses() -> None:
    replica = Replica()

    alone = request_sequentially(
        replica.ask, replica.totals, budget_s=0.5, clock=replica.clock, sleep=replica.sleep
    )

    assert {block.paused for block in alone} == {True, False}
    assert len(replica.pauses) == 10 * sum(block.paused for block in alone)
    assert all(pause <= 0.05 for pause in replica.pauses)


def test_a_replica_that_counts_nothing_is_not_asked_for_ever() -> None:
    replica = Replica(tells=False)

    found = request_sequentially(
        replica.ask, replica.totals, budget_s=0.5, clock=replica.clock, sleep=replica.sleep
    )

    assert found == []
    assert replica.now < 2.0


def test_a_run_on_the_event_loop_is_no_part_of_the_overhead() -> None:
    run_s = 0.0001
    alone = [
        RequestBlock(
            walls_s=[run_s + 0.0003] * 10,
            answers=10,
            run_s=10 * run_s,
            answer_s=10 * run_s,
            loop_s=10 * (run_s + 0.0002),
        )
    ]

    found = overhead_of(alone, (), way="made up", max_runs=1)

    assert found.wall_s == pytest.approx(0.0003)
    assert found.cpu_s == pytest.approx(0.0002)
    assert found.wake_s == 0.0


def test_a_disturbed_block_does_not_count() -> None:
    def block(wall_s: float) -> RequestBlock:
        return RequestBlock(
            walls_s=[wall_s] * 10, answers=10, run_s=0.05, answer_s=0.05, loop_s=0.001
        )

    found = overhead_of([block(0.006), block(0.006), block(0.5)], (), way="", max_runs=1)

    assert found.wall_s == pytest.approx(0.001)


def test_how_single_requests_vary_is_kept_where_runs_are_short() -> None:
    run_s = 0.0001
    walls = [run_s + 0.0002] * 9 + [run_s + 0.0012]
    alone = [RequestBlock(walls_s=walls, answers=10, run_s=0.001, answer_s=0.001, loop_s=0.002)]

    found = overhead_of(alone, (), way="", max_runs=1)

    assert sum(found.spread) / len(found.spread) == pytest.approx(1.0)
    assert max(found.spread) == pytest.approx(4.0)


def test_where_runs_are_long_only_they_vary() -> None:
    alone = [RequestBlock(walls_s=[0.02] * 10, answers=10, run_s=0.1, answer_s=0.1, loop_s=0.001)]

    assert overhead_of(alone, (), way="", max_runs=1).spread == ()
