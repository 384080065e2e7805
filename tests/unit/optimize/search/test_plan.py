"""What does a search do next?"""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from headrace.optimize.search.journal import FINAL, Ended, Event, Timings, Weighed, Wrote, state_of
from headrace.optimize.search.plan import (
    SCREENED,
    Step,
    StepKind,
    asked_until_s,
    beaten_by,
    next_step,
)
from headrace.optimize.search.process import SearchRequest, Target
from tests.unit.optimize.search.made import (
    BASE,
    SCORED,
    built,
    failed,
    judged,
    scored,
    screened,
    started,
    timed,
)

REQUEST = SearchRequest(source="m", budget_s=100.0)


def step(events: list[Event], *, now_s: float = 5.0, request: SearchRequest = REQUEST) -> Step:
    state = state_of(events)
    return next_step(state, request, Timings(0).alone(state), now_s=now_s)


def test_the_baseline_is_made_first() -> None:
    assert step([started("fast")]).kind is StepKind.BUILD
    assert step([started("fast")]).name == BASE


def test_the_baseline_is_made_even_if_the_budget_is_over() -> None:
    assert step([started("fast")], now_s=1000.0).name == BASE


def test_a_candidate_is_timed_before_the_next_one_is_made() -> None:
    events = [started("fast", "small"), *built(BASE), *built("fast")]

    assert step(events) == Step(kind=StepKind.TRY, name="fast", until_s=50.0)


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
    request = SearchRequest(source="m", budget_s=100.0, target=Target.MEMORY)
    events = several(("fast", 0.3), ("other", 0.6), labelled=100)
    events += [judged("fast", passes=True)]

    assert not beaten_by(state_of(events), request, Timings(0).alone(state_of(events)), "other")


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
    assert step([*events, Ended(at_s=4.0, name=FINAL)]).kind is StepKind.WEIGH


def test_the_best_are_compared_even_where_the_budget_is_over() -> None:
    events = [started("a"), *built(BASE), *built("a"), *timed("a", ("a", 0.5)), SCORED]

    found = step([*events, judged("a", passes=True)], now_s=500.0)

    assert (found.kind, found.until_s) == (StepKind.COMPARE, 503.0)


def test_for_memory_candidates_are_weighed_before_one_is_chosen() -> None:
    request = SearchRequest(source="m", budget_s=100.0, target=Target.MEMORY)
    events = [started("small"), *built(BASE), *built("small", size_bytes=10), SCORED]
    events += [*timed("small", ("small", 1.5)), judged("small", passes=True)]

    assert step(events, request=request).kind is StepKind.WEIGH
    weighed = [Weighed(at_s=4.0, name=name, memory_bytes=5, load_s=0.1) for name in (BASE, "small")]
    assert step([*events, *weighed], request=request).kind is StepKind.COMPARE


def test_it_ends_after_the_result_was_written() -> None:
    events = [started("x"), *built(BASE), failed("x", "no"), SCORED]
    events += [Wrote(at_s=5.0, name="x", path="result"), Ended(at_s=5.0, name=StepKind.WRITE)]

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
    found: Step, of: dict[str, tuple[str, float]], now_s: float, labelled: int
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
            return [Ended(at_s=now_s, name=FINAL)]
        case StepKind.WEIGH:
            return [Weighed(at_s=now_s, name=name, memory_bytes=1, load_s=0.1)]
        case StepKind.WRITE:
            return [Ended(at_s=now_s, name=StepKind.WRITE)]
        case StepKind.MIX | StepKind.DONE:
            pytest.fail("asked for no more")
