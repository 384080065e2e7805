from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from headrace.optimize.profiling.grid import (
    best_rows,
    doubling,
    is_worth_more,
    main_length,
    plan_of,
    remaining,
    window_s,
)
from headrace.optimize.profiling.messages import ProfileRequest
from tests.unit.optimize.profiling.made import cell


def request(**given_: object) -> ProfileRequest:
    return ProfileRequest(path="m", **given_)  # type: ignore[arg-type]  # named by the tests


@given(st.integers(1, 10_000))
def test_sizes_double_and_end_with_the_most(most: int) -> None:
    found = doubling(most)

    assert found[0] == 1
    assert found[-1] == most
    assert all(a < b <= 2 * a for a, b in pairwise(found))


def test_the_first_wanted_length_is_the_main_one_else_one_near_32() -> None:
    assert main_length((16, 32, 64), ()) == 32
    assert main_length((128, 256), ()) == 128
    assert main_length((16, 64), (64, 16)) == 64


def test_a_plan_leaves_out_what_the_model_cannot_do() -> None:
    plan = plan_of(request(cores=4), batched=False, concurrent=False, lengths=(0,), length=0)

    assert plan.rows == (1,)
    assert plan.runs == (1,)
    assert plan.threads == (1, 2, 4)
    assert plan.lengths == ()


def test_what_was_asked_for_is_measured_and_nothing_else() -> None:
    asked = request(cores=4, rows=(8, 1), threads=(1,), runs=(1, 3))

    plan = plan_of(asked, batched=True, concurrent=True, lengths=(16, 32), length=32)

    assert plan.rows == (1, 8)
    assert plan.runs == (1, 3)
    assert {setting.threads for setting in remaining(plan, (1, 8), 8, cores=4)} == {1}


def test_threads_times_runs_never_exceed_the_cores() -> None:
    plan = plan_of(request(cores=6), batched=True, concurrent=True, lengths=(0,), length=0)

    found = remaining(plan, (1, 2, 4), 2, cores=6)

    assert all(one.threads * one.runs <= 6 for one in found)
    assert len(set(found)) == len(found)


def test_long_inputs_come_last_as_they_take_the_longest() -> None:
    lengths = (256, 16, 32)
    plan = plan_of(request(cores=2), batched=True, concurrent=True, lengths=lengths, length=32)

    found = remaining(plan, (1, 2, 4), 4, cores=2)

    kinds = [(one.threads, one.length) for one in found]
    assert list(dict.fromkeys(kinds)) == [(1, 32), (2, 32), (1, 16), (1, 256)]


def test_a_batch_that_costs_each_row_more_ends_the_search() -> None:
    better = [cell(1, 0.010), cell(2, 0.016), cell(4, 0.028), cell(8, 0.050)]
    worse = [*better, cell(16, 0.16)]

    assert is_worth_more(better, budget_s=60.0)
    assert not is_worth_more(worse, budget_s=60.0)


def test_batches_that_gain_nothing_any_more_end_the_search() -> None:
    flat = [cell(rows, 0.010 * rows) for rows in (1, 2, 4, 8)]

    assert is_worth_more(flat[:3], budget_s=60.0)
    assert not is_worth_more(flat, budget_s=60.0)


def test_a_batch_that_would_take_much_of_the_time_is_not_tried() -> None:
    assert not is_worth_more([cell(1, 1.3)], budget_s=60.0)


def test_the_best_batch_is_the_smallest_that_is_nearly_the_best() -> None:
    assert best_rows([cell(1, 0.010), cell(4, 0.020), cell(8, 0.0396)]) == 4
    assert best_rows([]) == 1


def test_settings_share_the_time_that_is_left() -> None:
    assert window_s(left_s=10.0, settings_left=10) == 1.0
    assert window_s(left_s=100.0, settings_left=1) == 4.0
    assert window_s(left_s=-1.0, settings_left=3) > 0.0
