"""Next step of a search, and its choice."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from headrace.optimize.search.journal import (
    AGAIN,
    FINAL,
    Event,
    MemoryMeasured,
    RecipeEnded,
    Timings,
    Unbatched,
    Wrote,
    state_of,
)
from headrace.optimize.search.outcome import report_of
from headrace.optimize.search.plan import (
    SCREENED,
    CandidateStatus,
    SearchDecision,
    SearchStep,
    StepKind,
    asked_until_s,
    decide,
    faster_candidate,
    next_step,
)
from headrace.optimize.search.process import SearchRequest, SearchTarget
from tests.unit.optimize.search.made import (
    BASE,
    SCORED,
    built,
    compared,
    failed,
    judged,
    scored,
    screened,
    started,
    timed,
)

REQUEST = SearchRequest(source="m", budget_s=100.0)


def step(
    events: list[Event], *, now_s: float = 5.0, request: SearchRequest = REQUEST
) -> SearchStep:
    state = state_of(events)
    return next_step(state, request, Timings(0).individual(state), now_s=now_s)


def test_the_baseline_is_made_first() -> None:
    assert step([started("fast")]).kind is StepKind.BUILD
    assert step([started("fast")]).name == BASE


def test_the_baseline_is_made_even_if_the_budget_is_over() -> None:
    assert step([started("fast")], now_s=1000.0).name == BASE


def test_a_candidate_is_timed_before_the_next_one_is_made() -> None:
    events = [started("fast", "small"), *built(BASE), *built("fast")]

    assert step(events) == SearchStep(kind=StepKind.TRY, name="fast", until_s=50.0)


def test_recipes_are_left_out_once_half_of_the_budget_is_over() -> None:
    events = [started("fast", "small"), *built(BASE), *built("fast"), *timed("fast", ("fast", 0.5))]

    assert step(events, now_s=49.0).name == "small"
    assert step(events, now_s=51.0).kind is StepKind.SCORE


def test_the_fastest_is_judged_first() -> None:
    events = [started("fast", "faster"), *built(BASE)]
    for name, ratio in (("fast", 0.5), ("faster", 0.3)):
        events += [*built(name), *timed(name, (name, ratio))]

    assert step([*events, SCORED]).name == "faster"
    assert step([*events, SCORED, judged("faster", passes=False)]).name == "fast"


def several(*candidates: tuple[str, float], labelled: int = 5000) -> list[Event]:
    """Candidates that were timed, and a baseline that was asked all examples."""
    names = [name for name, _ in candidates]
    events: list[Event] = [started(*names, labelled=labelled), *built(BASE), scored(labelled)]
    for name, ratio in candidates:
        events += [*built(name), *timed(name, (name, ratio))]
    return events


def test_of_many_examples_all_candidates_are_asked_some_before_one_is_asked_all() -> None:
    events = several(("fast", 0.5), ("faster", 0.3), ("slow", 3.0))

    assert (step(events).kind, step(events).name) == (StepKind.SCREEN, "faster")
    events += [screened("faster")]
    assert (step(events).kind, step(events).name) == (StepKind.SCREEN, "fast")
    events += [judged("fast", passes=False)]
    assert (step(events).kind, step(events).name) == (StepKind.JUDGE, "faster")


def test_of_few_examples_all_are_asked_at_once() -> None:
    few = several(("fast", 0.5), ("faster", 0.3), labelled=2 * SCREENED)

    assert (step(few).kind, step(few).name) == (StepKind.JUDGE, "faster")


def test_what_counts_is_how_many_the_baseline_had_time_to_answer() -> None:
    events = [
        scored(300) if event == scored(5000) else event for event in several(("a", 0.5), ("b", 0.3))
    ]

    assert step(events).kind is StepKind.JUDGE


def test_the_baseline_leaves_most_of_the_time_to_the_candidates() -> None:
    assert asked_until_s(50.0, 100.0) == pytest.approx(50 + 0.4 * 32)
    assert asked_until_s(81.0, 100.0) == 86.0
    assert asked_until_s(90.0, 100.0) == 95.0


def test_a_single_candidate_is_asked_all_examples_at_once() -> None:
    assert step(several(("fast", 0.5))).kind is StepKind.JUDGE


def test_screening_leaves_most_of_the_time_for_judging() -> None:
    events = several(("fast", 0.5), ("faster", 0.3))

    assert step(events, now_s=62.0).kind is StepKind.SCREEN
    assert step(events, now_s=63.0).kind is StepKind.JUDGE


def test_candidates_are_screened_though_the_baseline_took_long() -> None:
    late = replace(scored(5000), at_s=70.0)
    events = [late if event == scored(5000) else event for event in several(("a", 0.5), ("b", 0.3))]

    assert step(events, now_s=74.0).kind is StepKind.SCREEN
    assert step(events, now_s=75.0).kind is StepKind.JUDGE


def test_who_may_still_win_is_judged_before_who_cannot() -> None:
    events = several(("best", 0.3), ("near", 0.3001), ("good", 0.6), ("doubtful", 0.7))
    events += [screened("near"), screened("good"), screened("doubtful", loss=0.02)]
    events += [judged("best", passes=True)]

    assert step(events).name == "near"
    assert step([*events, judged("near", passes=True)]).name == "doubtful"
    assert step([*events, judged("near", passes=True)]).kind is StepKind.JUDGE


def test_for_memory_the_faster_one_excludes_nobody() -> None:
    request = SearchRequest(source="m", budget_s=100.0, target=SearchTarget.MEMORY)
    events = several(("fast", 0.3), ("other", 0.6), labelled=100)
    events += [judged("fast", passes=True)]

    assert not faster_candidate(
        state_of(events), request, Timings(0).individual(state_of(events)), "other"
    )


def test_those_that_were_asked_some_are_compared_where_none_was_asked_all() -> None:
    events = [*several(("a", 0.5), ("b", 0.3)), screened("a"), screened("b", passes=False)]

    assert step(events, now_s=83.0).names == (BASE, "a")
    assert step([*events, judged("b", passes=True)], now_s=83.0).names == (BASE, "b")


def test_a_candidate_that_is_slower_is_not_asked_for_answers() -> None:
    events = [started("slow"), *built(BASE), *built("slow"), *timed("slow", ("slow", 3.0))]

    assert step([*events, SCORED]).kind is StepKind.WRITE


def test_a_candidate_that_failed_is_not_tried_again() -> None:
    events = [started("broken"), *built(BASE), *built("broken"), failed("broken", "it crashed")]

    assert step([*events, SCORED]).kind is StepKind.WRITE


def test_a_recipe_that_ended_the_process_is_not_tried_again() -> None:
    events = [started("deadly"), *built(BASE), failed("deadly", "SIGSEGV")]

    assert step([*events, SCORED]).kind is StepKind.WRITE


def test_those_that_build_on_the_best_come_after_it_was_judged() -> None:
    events = [
        started("fast", later=("pruned",)),
        *built(BASE),
        *built("fast"),
        *timed("fast", ("fast", 0.5)),
        SCORED,
    ]

    assert step(events).name == "fast"
    assert step([*events, judged("fast", passes=True)]).name == "pruned"


def test_time_is_set_aside_for_them_where_the_budget_suffices() -> None:
    events = [started("fast", "small", later=("pruned",)), *built(BASE), *built("fast")]
    events += timed("fast", ("fast", 0.5))
    ample = SearchRequest(source="m", budget_s=1000.0)

    assert step(events, now_s=49.0).name == "small"
    assert step(events, now_s=499.0, request=ample).kind is StepKind.SCORE


def test_the_best_are_compared_on_measurements_that_chose_none_of_them() -> None:
    events = [started("a", "b", "c", "d"), *built(BASE), SCORED]
    for name, ratio in (("a", 0.5), ("b", 0.4), ("c", 0.3), ("d", 0.2)):
        events += [*built(name), *timed(name, (name, ratio)), judged(name, passes=name != "d")]

    found = step(events)

    assert (found.kind, found.names) == (StepKind.COMPARE, (BASE, "c", "b", "a"))
    assert step([*events, RecipeEnded(at_s=4.0, name=FINAL)]).kind is StepKind.WEIGH


def test_the_best_are_compared_even_where_the_budget_is_over() -> None:
    events = [started("a"), *built(BASE), *built("a"), *timed("a", ("a", 0.5)), SCORED]

    found = step([*events, judged("a", passes=True)], now_s=500.0)

    assert (found.kind, found.until_s) == (StepKind.COMPARE, 503.0)


def test_for_memory_candidates_are_weighed_before_one_is_chosen() -> None:
    request = SearchRequest(source="m", budget_s=100.0, target=SearchTarget.MEMORY)
    events = [started("small"), *built(BASE), *built("small", size_bytes=10), SCORED]
    events += [*timed("small", ("small", 1.5)), judged("small", passes=True)]

    assert step(events, request=request).kind is StepKind.WEIGH
    weighed = [
        MemoryMeasured(at_s=4.0, name=name, memory_bytes=5, load_s=0.1) for name in (BASE, "small")
    ]
    assert step([*events, *weighed], request=request).kind is StepKind.COMPARE


def test_it_ends_after_the_result_was_written() -> None:
    events = [started("x"), *built(BASE), failed("x", "no"), SCORED]
    events += [Wrote(at_s=5.0, name="x", path="result"), RecipeEnded(at_s=5.0, name=StepKind.WRITE)]

    assert step(events).kind is StepKind.DONE


@given(
    outcomes=st.lists(
        st.tuples(st.sampled_from(["fails", "slow", "bad", "good"]), st.floats(0.1, 0.9)),
        max_size=6,
    ),
    seconds=st.lists(st.floats(0.0, 40.0), min_size=40, max_size=40),
    labelled=st.sampled_from([0, 1000, 5000]),
)
def test_every_search_ends_and_does_nothing_twice(
    outcomes: list[tuple[str, float]], seconds: list[float], labelled: int
) -> None:
    names = [f"c{number}" for number in range(len(outcomes))]
    of = dict(zip(names, outcomes, strict=True))
    events: list[Event] = [started(*names, labelled=labelled)]
    now_s, steps = 0.0, []
    for took_s in seconds:
        found = step(events, now_s=now_s)
        if found.kind is StepKind.DONE:
            break
        assert found not in steps
        steps.append(found)
        now_s += took_s
        events += _outcome(found, of, now_s, labelled)

    assert step(events, now_s=now_s).kind is StepKind.DONE


def _outcome(  # noqa: C901, PLR0911  # one for each step
    found: SearchStep, of: dict[str, tuple[str, float]], now_s: float, labelled: int
) -> list[Event]:
    name = found.name
    kind, ratio = of.get(name, ("good", 1.0))
    match found.kind:
        case StepKind.BUILD:
            if kind == "fails":
                return [failed(name, "cannot", at_s=now_s)]
            return built(name, at_s=now_s)
        case StepKind.TRY:
            return timed(name, (name, ratio if kind != "slow" else 1 / ratio), at_s=now_s)
        case StepKind.SCORE:
            return [scored(labelled)]
        case StepKind.SCREEN:
            return [screened(name, passes=kind == "good", at_s=now_s)]
        case StepKind.JUDGE:
            return [judged(name, passes=kind == "good", at_s=now_s)]
        case StepKind.COMPARE:
            return [RecipeEnded(at_s=now_s, name=FINAL)]
        case StepKind.WEIGH:
            return [MemoryMeasured(at_s=now_s, name=name, memory_bytes=1, load_s=0.1)]
        case StepKind.WRITE:
            return [RecipeEnded(at_s=now_s, name=StepKind.WRITE)]
        case StepKind.MIX | StepKind.DONE:
            pytest.fail("asked for no more")


def decided(events: list[Event], request: SearchRequest = REQUEST) -> SearchDecision:
    state, timings = state_of(events), Timings(0)
    return decide(state, request, timings.individual(state), timings.of_group(state, FINAL))


def made(*candidates: tuple[str, float, bool]) -> list[Event]:
    events: list[Event] = [started(*(name for name, _, _ in candidates)), *built(BASE), SCORED]
    for name, ratio, passes in candidates:
        events += [*built(name), *timed(name, (name, ratio)), judged(name, passes=passes)]
    return events


def test_the_fastest_of_those_that_lose_nothing_is_chosen() -> None:
    found = decided(made(("good", 0.5, True), ("better", 0.4, True), ("wrong", 0.3, False)))

    assert found.chosen == "better"
    assert found.statuses == {
        BASE: CandidateStatus.BASELINE,
        "good": CandidateStatus.GOOD,
        "better": CandidateStatus.CHOSEN,
        "wrong": CandidateStatus.REJECTED,
    }
    assert found.reasons["wrong"] == "it loses accuracy, and not by chance"


@pytest.mark.parametrize(
    ("request_", "is_chosen"),
    [
        (REQUEST, True),
        (replace(REQUEST, target=SearchTarget.MEMORY), True),
        (replace(REQUEST, rows=8), False),
        (replace(REQUEST, target=SearchTarget.THROUGHPUT), False),
        (replace(REQUEST, target=SearchTarget.COST), False),
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
        MemoryMeasured(at_s=4.0, name=n, memory_bytes=m, load_s=0.1)
        for n, m in ((BASE, 9), ("int8", 5))
    ]
    events = [*made(("int8", 0.4, True), ("fp32", 0.9, True)), lost, *weights]
    found = decided(events, request_)
    report = report_of(state_of(events), request_, reference="m:1")

    assert (found.chosen == "int8") == is_chosen
    if not is_chosen:
        assert found.chosen == "fp32"
        assert found.reasons["int8"] == (
            "it loses batching, which the requested load needs: a batch of 8 rows, run "
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
    assert found.statuses["same"] is CandidateStatus.REJECTED
    assert "no significant difference" in found.reasons["same"]
    assert "unchanged" in found.reasons[BASE]


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
    assert "not evaluated: the budget was used up" in found.reasons["fast"]
    assert found.chosen == BASE


def some_screened() -> list[Event]:
    events: list[Event] = [started("fast", "faster", labelled=5000), *built(BASE), SCORED]
    for name, ratio in (("fast", 0.5), ("faster", 0.3)):
        events += [*built(name), *timed(name, (name, ratio)), screened(name)]
    return events


def test_one_that_was_only_screened_loses_to_one_that_was_fully_judged() -> None:
    found = decided([*some_screened(), judged("fast", passes=True)])

    assert found.chosen == "fast"
    assert found.statuses["faster"] is CandidateStatus.REJECTED
    assert found.reasons["faster"].startswith(
        "on the first 512 of 5,000; not evaluated further, as"
    )
    assert "the budget was used up" in found.reasons["faster"]


def test_one_that_is_slower_beyond_doubt_says_than_which() -> None:
    found = decided([*some_screened(), judged("faster", passes=True)])

    assert found.chosen == "faster"
    assert found.reasons["fast"].endswith(
        "not evaluated further, as faster is significantly faster"
    )


def test_one_that_was_only_screened_is_chosen_where_no_other_passed_and_says_so() -> None:
    found = decided([*some_screened(), judged("faster", passes=False)])

    assert found.chosen == "fast"
    assert "on the first 512 of 5,000; the budget was used up" in found.reasons["fast"]


def test_one_that_fails_in_what_it_was_asked_is_not_chosen() -> None:
    events: list[Event] = [started("fast", labelled=5000), *built(BASE), SCORED, *built("fast")]

    found = decided([*events, *timed("fast", ("fast", 0.5)), screened("fast", passes=False)])

    assert found.chosen == BASE
    assert found.statuses["fast"] is CandidateStatus.REJECTED


def test_without_labels_fidelity_decides() -> None:
    events = [started("fast", "wild", labelled=0), *built(BASE)]
    for name, passes in (("fast", True), ("wild", False)):
        events += [*built(name), *timed(name, (name, 0.5)), compared(name, passes=passes)]

    found = decided(events)

    assert found.chosen == "fast"
    assert found.statuses["wild"] is CandidateStatus.REJECTED


def test_for_memory_the_smallest_is_chosen_though_it_is_slower() -> None:
    request = SearchRequest(source="m", target=SearchTarget.MEMORY)
    events = made(("small", 1.3, True), ("fast", 0.5, True))
    events += [
        MemoryMeasured(at_s=4.0, name=name, memory_bytes=size, load_s=0.1)
        for name, size in ((BASE, 100), ("small", 40), ("fast", 90))
    ]

    assert decided(events, request).chosen == "small"


def test_a_gain_that_the_baseline_has_over_itself_is_none() -> None:
    events = made(("served", 0.98, True))
    events += timed(FINAL, ("served", 0.98), (AGAIN, 0.96), blocks=20)

    found = decided(events)

    assert found.chosen == BASE
    assert found.statuses["served"] is CandidateStatus.REJECTED
    assert "noise was up to 4" in found.reasons["served"]


def test_a_gain_beyond_what_the_baseline_has_over_itself_is_one() -> None:
    events = made(("better", 0.5, True))
    events += timed(FINAL, ("better", 0.5), (AGAIN, 0.96), blocks=20)

    assert decided(events).chosen == "better"
