"""Which candidate is chosen, and why are the others not?"""

import pytest
from msgspec.structs import replace

from headrace.optimize.search.journal import (
    AGAIN,
    FINAL,
    Event,
    Timings,
    Unbatched,
    Weighed,
    state_of,
)
from headrace.optimize.search.outcome import report_of
from headrace.optimize.search.plan import Standing, Standings, decide
from headrace.optimize.search.process import SearchRequest, Target
from tests.unit.optimize.search.made import (
    BASE,
    SCORED,
    built,
    compared,
    failed,
    judged,
    screened,
    started,
    timed,
)

REQUEST = SearchRequest(source="m", budget_s=100.0)


def decided(events: list[Event], request: SearchRequest = REQUEST) -> Standings:
    state, timings = state_of(events), Timings(0)
    return decide(state, request, timings.alone(state), timings.final(state))


def made(*candidates: tuple[str, float, bool]) -> list[Event]:
    events: list[Event] = [started(*(name for name, _, _ in candidates)), *built(BASE), SCORED]
    for name, ratio, passes in candidates:
        events += [*built(name), *timed(name, (name, ratio)), judged(name, passes=passes)]
    return events


def test_the_fastest_of_those_that_lose_nothing_is_chosen() -> None:
    found = decided(made(("good", 0.5, True), ("better", 0.4, True), ("wrong", 0.3, False)))

    assert found.chosen == "better"
    assert found.standing == {
        BASE: Standing.BASELINE,
        "good": Standing.GOOD,
        "better": Standing.CHOSEN,
        "wrong": Standing.REJECTED,
    }
    assert found.reasons["wrong"] == "it loses accuracy, and not by chance"


@pytest.mark.parametrize(
    ("request_", "is_chosen"),
    [
        (REQUEST, True),
        (replace(REQUEST, target=Target.MEMORY), True),
        (replace(REQUEST, rows=8), False),
        (replace(REQUEST, target=Target.THROUGHPUT), False),
        (replace(REQUEST, target=Target.COST), False),
    ],
)
def test_what_loses_batching_is_not_chosen_where_the_load_needs_batches(
    request_: SearchRequest,
    is_chosen: bool,  # noqa: FBT001  # a parameter
) -> None:
    lost = Unbatched(
        at_s=3.0, name="int8", reason="MatMulInteger scales by all rows", rows=8, cut_ratio=-1.5
    )
    weights = [
        Weighed(at_s=4.0, name=n, memory_bytes=m, load_s=0.1) for n, m in ((BASE, 9), ("int8", 5))
    ]
    events = [*made(("int8", 0.4, True), ("fp32", 0.9, True)), lost, *weights]
    found = decided(events, request_)
    report = report_of(state_of(events), request_, reference="m:1")

    assert (found.chosen == "int8") == is_chosen
    if not is_chosen:
        assert found.chosen == "fp32"
        assert found.reasons["int8"] == (
            "it loses batching, which the load that was asked for needs: a batch of 8 rows, run "
            "row by row, takes 2.50 times the baseline's time (MatMulInteger scales by all rows)"
        )
    [note] = [note for note in report.notes if "one request at a time" in note]
    assert "2.50 times the baseline's time (MatMulInteger scales by all rows)" in note
    entry = next(e for e in (report.chosen, *report.rejected) if e.name == "int8")
    assert entry.batch_cut_ratio == -1.5
    assert "run row by row" in entry.unbatched


def test_a_slower_one_is_rejected_with_how_much_slower_it_is() -> None:
    events = [started("slow"), *built(BASE), SCORED, *built("slow"), *timed("slow", ("slow", 3.4))]

    found = decided(events)

    assert found.chosen == BASE
    assert found.reasons["slow"].startswith("slower than the baseline: 3.4")


def test_nothing_is_chosen_on_noise() -> None:
    events = [started("same"), *built(BASE), SCORED, *built("same"), judged("same", passes=True)]
    events += timed("same", ("same", 0.999), spread=0.1)

    found = decided(events)

    assert found.chosen == BASE
    assert found.standing["same"] is Standing.REJECTED
    assert "no difference" in found.reasons["same"]
    assert "as it is" in found.reasons[BASE]


def test_the_comparison_of_the_best_has_the_last_word() -> None:
    events = made(("first", 0.4, True), ("second", 0.42, True))
    events += timed(FINAL, ("first", 0.45), ("second", 0.41), blocks=20)

    found = decided(events)

    assert found.chosen == "second"
    assert round(found.timings["second"].cut_ratio, 2) == 0.59


def test_a_recipe_that_could_not_be_made_says_why() -> None:
    events = [started("impossible"), *built(BASE), SCORED, failed("impossible", "it takes text")]

    assert decided(events).reasons["impossible"] == "it takes text"


def test_what_the_budget_did_not_reach_says_so() -> None:
    events = [started("fast", "late"), *built(BASE), *built("fast"), *timed("fast", ("fast", 0.5))]

    found = decided(events)

    assert "budget of 100 s" in found.reasons["late"]
    assert "before its answers were looked at" in found.reasons["fast"]
    assert found.chosen == BASE


def some_screened() -> list[Event]:
    events: list[Event] = [started("fast", "faster", labelled=5000), *built(BASE), SCORED]
    for name, ratio in (("fast", 0.5), ("faster", 0.3)):
        events += [*built(name), *timed(name, (name, ratio)), screened(name)]
    return events


def test_one_that_was_only_screened_loses_to_one_that_was_fully_judged() -> None:
    found = decided([*some_screened(), judged("fast", passes=True)])

    assert found.chosen == "fast"
    assert found.standing["faster"] is Standing.REJECTED
    assert found.reasons["faster"].startswith("on the first 512 of 5,000; the others were not ask")
    assert "the budget was over" in found.reasons["faster"]


def test_one_that_is_slower_beyond_doubt_says_than_which() -> None:
    found = decided([*some_screened(), judged("faster", passes=True)])

    assert found.chosen == "faster"
    assert found.reasons["fast"].endswith("not asked, as faster is faster beyond doubt")


def test_one_that_was_only_screened_is_chosen_where_no_other_passed_and_says_so() -> None:
    found = decided([*some_screened(), judged("faster", passes=False)])

    assert found.chosen == "fast"
    assert "on the first 512 of 5,000; the budget was over" in found.reasons["fast"]


def test_one_that_fails_in_what_it_was_asked_is_not_chosen() -> None:
    events: list[Event] = [started("fast", labelled=5000), *built(BASE), SCORED, *built("fast")]

    found = decided([*events, *timed("fast", ("fast", 0.5)), screened("fast", passes=False)])

    assert found.chosen == BASE
    assert found.standing["fast"] is Standing.REJECTED


def test_without_labels_fidelity_decides() -> None:
    events = [started("fast", "wild", labelled=0), *built(BASE)]
    for name, passes in (("fast", True), ("wild", False)):
        events += [*built(name), *timed(name, (name, 0.5)), compared(name, passes=passes)]

    found = decided(events)

    assert found.chosen == "fast"
    assert found.standing["wild"] is Standing.REJECTED


def test_for_memory_the_smallest_is_chosen_though_it_is_slower() -> None:
    request = SearchRequest(source="m", target=Target.MEMORY)
    events = made(("small", 1.3, True), ("fast", 0.5, True))
    events += [
        Weighed(at_s=4.0, name=name, memory_bytes=size, load_s=0.1)
        for name, size in ((BASE, 100), ("small", 40), ("fast", 90))
    ]

    assert decided(events, request).chosen == "small"


def test_a_gain_that_the_baseline_has_over_itself_is_none() -> None:
    events = made(("served", 0.98, True))
    events += timed(FINAL, ("served", 0.98), (AGAIN, 0.96), blocks=20)

    found = decided(events)

    assert found.chosen == BASE
    assert found.standing["served"] is Standing.REJECTED
    assert "the baseline differed from itself by up to 4" in found.reasons["served"]


def test_a_gain_beyond_what_the_baseline_has_over_itself_is_one() -> None:
    events = made(("better", 0.5, True))
    events += timed(FINAL, ("better", 0.5), (AGAIN, 0.96), blocks=20)

    assert decided(events).chosen == "better"
