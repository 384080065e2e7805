"""Planning of a search: next step, ranking and final decision. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from headrace.optimize.candidate import ModelClass
from headrace.optimize.search.journal import AGAIN, FINAL, CandidateResult, SearchState, Unbatched
from headrace.optimize.search.process import SearchRequest, SearchTarget
from headrace.optimize.timing import Timing

FINALISTS: Final = 3
"""Accepted candidates of the final comparison, which uses fresh measurements."""
_BUILD, _JUDGE, _FINAL = 0.50, 0.82, 0.92
"""Shares of the budget by which building, judging and the final comparison end."""
_OF_MORE: Final = 0.55
"""Factor of the first recipes' shares if later recipes build on the best of them."""
MIN_FOR_MORE_S: Final = 290.0
"""Budget from which `_OF_MORE` applies; below it, later recipes get the remaining time."""
SCREENED: Final = 512
"""Examples of the screening, which suffice to reject ruined candidates. Screening needs more than
twice as many examples."""
_SCORE: Final = 0.4
"""Share of the judging time for the baseline's answers. Candidates are judged on no more examples
than the baseline answered."""
_MIN_SCORE_S: Final = 5.0
_SCREEN: Final = 0.4
"""Share of the judging time for screening; remaining candidates are judged fully."""
_MIN_FINAL_S: Final = 3.0
_MIN_MIX_S: Final = 10.0
_WORTH_JUDGING: Final = 0.02
"""Slowdown above which a candidate is not judged."""


class StepKind(StrEnum):
    """Kind of a search step."""

    BUILD = "build"
    TRY = "try"
    SCORE = "score"
    SCREEN = "screen"
    JUDGE = "judge"
    COMPARE = "compare"
    WEIGH = "weigh"
    MIX = "mix"
    WRITE = "write"
    DONE = "done"


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchStep:
    """One step of a search."""

    kind: StepKind
    name: str = ""
    """Recipe or candidate of the step."""
    names: tuple[str, ...] = ()
    """Candidates of a step with several."""
    until_s: float = 0.0
    """Search time by which the step ends."""


def next_step(  # noqa: PLR0911  # one step per branch, in order
    state: SearchState,
    request: SearchRequest,
    timed: Mapping[str, Timing],
    *,
    now_s: float,
) -> SearchStep:
    """Return the next step.

    Args:
        timed: Timing of each candidate with the baseline.
        now_s: Elapsed time of the search.
    """
    if StepKind.WRITE in state.ended:
        return SearchStep(kind=StepKind.DONE)
    budget_s = request.budget_s
    assert state.started is not None, "the journal begins with it"
    first, later = state.started.recipes, state.started.later
    less = _OF_MORE if later and budget_s >= MIN_FOR_MORE_S else 1.0
    parts = ((first, _BUILD * less, _JUDGE * less), (later, (_BUILD + _JUDGE) / 2, _JUDGE))
    for recipes, build, judge in parts:
        if step := _build(state, recipes, now_s=now_s, until_s=build * budget_s):
            return step
        built_s, until_s = build * budget_s, judge * budget_s
        if step := _ask(state, request, timed, now_s=now_s, built_s=built_s, until_s=until_s):
            return step
    finalists = best(state, request, timed)[:FINALISTS]
    if request.target is SearchTarget.MEMORY and (step := _weigh(state, finalists, budget_s)):
        return step
    if finalists and not {FINAL, StepKind.COMPARE} & state.ended:
        until_s = max(_FINAL * budget_s, now_s + _MIN_FINAL_S)
        names = (state.baseline, *(result.name for result in finalists))
        return SearchStep(kind=StepKind.COMPARE, names=names, until_s=until_s)
    if now_s < budget_s and (step := _weigh(state, finalists, budget_s)):
        return step
    is_trees = state.started.model_class == ModelClass.TREES
    if is_trees and state.mixed is None and StepKind.MIX not in state.ended:
        names = (state.baseline, *(result.name for result in _usable(state)))
        return SearchStep(kind=StepKind.MIX, names=names, until_s=max(budget_s, now_s + _MIN_MIX_S))
    return SearchStep(kind=StepKind.WRITE)


def asked_until_s(now_s: float, budget_s: float) -> float:
    """Return the time by which the baseline's evaluation ends, to leave time for candidates."""
    return now_s + max(_SCORE * (_JUDGE * budget_s - now_s), _MIN_SCORE_S)


def _usable(state: SearchState) -> list[CandidateResult]:
    """Return the accepted candidates, regardless of speed."""
    return [
        result
        for name, result in state.candidates.items()
        if name != state.baseline and result.is_accepted and not result.is_reference
    ]


def best(
    state: SearchState, request: SearchRequest, timed: Mapping[str, Timing]
) -> list[CandidateResult]:
    """Return the accepted candidates that are better than the baseline, best first.

    Without a finally accepted candidate, those that pass on the first examples count.
    """
    able = [
        result
        for name, result in state.candidates.items()
        if name != state.baseline
        and name in timed
        and not result.is_reference
        and not (result.unbatched and request.needs_batches)
    ]
    accepted = [result for result in able if result.is_accepted]
    accepted = accepted or [result for result in able if result.passes_so_far]
    if request.target is SearchTarget.MEMORY:
        return sorted(accepted, key=lambda result: _size(state, result))
    faster = [result for result in accepted if timed[result.name].cut_ratio > 0]
    # The time saved in blocks shared with the baseline, as absolute times drift.
    return sorted(faster, key=lambda result: -timed[result.name].cut_ratio)


def _size(state: SearchState, result: CandidateResult) -> float:
    built = state.candidates[result.name].built
    on_disk = built.size_bytes if built else float("inf")
    return float(result.memory_bytes if result.memory_bytes is not None else on_disk)


def _build(
    state: SearchState, recipes: Sequence[str], *, now_s: float, until_s: float
) -> SearchStep | None:
    """Return the next recipe to build, or a built candidate to try."""
    for name, result in state.candidates.items():
        is_new = name != state.baseline and name not in state.windows
        if is_new and result.built and not result.failed:
            return SearchStep(kind=StepKind.TRY, name=name, until_s=until_s)
    for recipe in recipes:
        is_needed = not state.baseline
        if recipe not in state.ended and (now_s < until_s or is_needed):
            return SearchStep(kind=StepKind.BUILD, name=recipe, until_s=until_s)
    return None


def _waiting(
    state: SearchState, request: SearchRequest, timed: Mapping[str, Timing]
) -> list[CandidateResult]:
    """Return the candidates to judge, the fastest or smallest first."""
    assert state.started is not None, "the journal begins with it"
    waiting = [
        result
        for name, result in state.candidates.items()
        if name != state.baseline
        and name in timed
        and not result.failed
        and not result.is_reference
        and not result.is_judged
        and is_worth_judging(request, timed[name], state.started.model_class)
    ]
    if request.target is SearchTarget.MEMORY:
        return sorted(waiting, key=lambda result: _size(state, result))
    return sorted(waiting, key=lambda result: -timed[result.name].cut_ratio)


def _ask(
    state: SearchState,
    request: SearchRequest,
    timed: Mapping[str, Timing],
    *,
    now_s: float,
    built_s: float,
    until_s: float,
) -> SearchStep | None:
    """Return the next evaluation: the baseline, then screening of all candidates, then judging."""
    assert state.started is not None, "the journal begins with it"
    if state.started.labelled and state.scored is None:
        return SearchStep(kind=StepKind.SCORE, name=state.baseline, until_s=until_s)
    waiting = _waiting(state, request, timed)
    if not waiting:
        return None
    begun_s = max(built_s, state.scored.at_s if state.scored is not None else 0.0)
    screened_s = begun_s + _SCREEN * (until_s - begun_s)
    answered = state.scored.n if state.scored is not None else 0
    new = [result for result in waiting if result.screened is None]
    # With many examples: the fastest candidate without any evaluation yet.
    if new and answered > 2 * SCREENED and now_s < screened_s and len(waiting) > 1:
        return SearchStep(kind=StepKind.SCREEN, name=new[0].name, until_s=screened_s)
    if now_s >= until_s:
        return None
    # The fastest candidate that may win; then the most uncertain of those that cannot win any more,
    # by the loss so far, because a report should show what a recipe costs, and which ones to avoid.
    may_win = [
        result for result in waiting if not faster_candidate(state, request, timed, result.name)
    ]
    most_doubtful = max(
        waiting, key=lambda result: result.screened.loss if result.screened else 0.0
    )
    selected = may_win[0] if may_win else most_doubtful
    return SearchStep(kind=StepKind.JUDGE, name=selected.name, until_s=until_s)


def faster_candidate(
    state: SearchState, request: SearchRequest, timed: Mapping[str, Timing], name: str
) -> str:
    """Return an accepted candidate that is significantly faster; empty for none.

    Always empty for the memory target and for trees, where this speed does not decide.
    """
    kind = state.started.model_class if state.started else ""
    own = timed[name].cut_ci_ratio if name in timed else None
    if own is None or request.target is SearchTarget.MEMORY or kind == ModelClass.TREES:
        return ""
    for other in best(state, request, timed):
        other_ci = timed[other.name].cut_ci_ratio
        if other.is_accepted and other_ci is not None and other_ci[0] > own[1]:
            return other.name
    return ""


def is_worth_judging(
    request: SearchRequest, timing: Timing, model_class: str = ModelClass.OTHER
) -> bool:
    """Return whether a candidate could be chosen if its answers are good."""
    can_be_small = request.target is SearchTarget.MEMORY or model_class == ModelClass.TREES
    return can_be_small or timing.cut_ratio > -_WORTH_JUDGING


def _weigh(
    state: SearchState, finalists: Sequence[CandidateResult], budget_s: float
) -> SearchStep | None:
    """Return the next memory measurement: the baseline, then the finalists."""
    candidates = [state.candidates[state.baseline], *finalists] if finalists else []
    for result in candidates:
        if result.memory_bytes is None and not result.failed:
            return SearchStep(kind=StepKind.WEIGH, name=result.name, until_s=budget_s)
    return None


_NEVER: Final = "not tried: the budget of {:g} s was used up"


class CandidateStatus(StrEnum):
    """Final status of a candidate."""

    BASELINE = "baseline"
    CHOSEN = "chosen"
    REFERENCE = "reference"
    GOOD = "good"
    REJECTED = "rejected"


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchDecision:
    """Chosen candidate (the baseline if nothing is better), with statuses and reasons of all."""

    chosen: str
    timings: Mapping[str, Timing]
    """Final timing by name."""
    statuses: Mapping[str, CandidateStatus]
    reasons: Mapping[str, str]
    """Reason by name."""


def decide(
    state: SearchState,
    request: SearchRequest,
    timed: Mapping[str, Timing],
    final: Mapping[str, Timing],
) -> SearchDecision:
    """Decide a search.

    Args:
        timed: Timing of each candidate with the baseline.
        final: Timings of the final comparison; may be empty.
    """
    timings = {**timed, **final}
    # Upper bound of the difference between the baseline and its own second entry in the same
    # minutes.
    again = final.get(AGAIN)
    noise_ratio = max(again.cut_ci_ratio[1], 0.0) if again and again.cut_ci_ratio else 0.0
    selected = _chosen(state, request, timed, final, noise_ratio)
    statuses, reasons = {}, {}
    for name, result in state.candidates.items():
        statuses[name], reasons[name] = _status(
            state, request, result, timings, selected, noise_ratio
        )
    started = state.started
    for recipe in (*started.recipes, *started.later) if started else ():
        if recipe not in state.ended and recipe not in state.candidates:
            statuses[recipe] = CandidateStatus.REJECTED
            reasons[recipe] = _NEVER.format(request.budget_s)
    return SearchDecision(chosen=selected, timings=timings, statuses=statuses, reasons=reasons)


def members_of(state: SearchState, selected: str) -> list[tuple[str, int | None]]:
    """Return the result's members: engines by batch size if measured, else the chosen one."""
    if state.mixed is not None and state.mixed.members:
        return list(state.mixed.members)
    return [(selected, None)]


def _chosen(
    state: SearchState,
    request: SearchRequest,
    timed: Mapping[str, Timing],
    final: Mapping[str, Timing],
    noise_ratio: float,
) -> str:
    """Return the best finalist that is significantly better than the baseline."""
    timings = {name: timing for name, timing in (final or timed).items() if name in timed}
    ranked = best(state, request, timings)
    if request.target is SearchTarget.MEMORY:
        before = state.candidates[state.baseline].memory_bytes if state.baseline else None
        smaller = [
            result
            for result in ranked
            if result.memory_bytes is not None and before and result.memory_bytes < before
        ]
        return smaller[0].name if smaller else state.baseline
    sure = [result for result in ranked if _is_sure(timings[result.name], noise_ratio)]
    return sure[0].name if sure else state.baseline


def _status(  # noqa: C901, PLR0911, PLR0917  # one reason per case
    state: SearchState,
    request: SearchRequest,
    result: CandidateResult,
    timings: Mapping[str, Timing],
    selected: str,
    noise_ratio: float,
) -> tuple[CandidateStatus, str]:
    name = result.name
    if name == selected:
        return CandidateStatus.CHOSEN, _chosen_reason(state, request, result)
    if name == state.baseline:
        return CandidateStatus.BASELINE, "reference of all other candidates"
    if result.failed:
        return CandidateStatus.REJECTED, result.failed
    if result.is_reference:
        return CandidateStatus.REFERENCE, "the model in its own framework, for comparison"
    timing = timings.get(name)
    if timing is None:
        return CandidateStatus.REJECTED, "not timed: the search ended before"
    judged = result.verdict or result.fidelity
    if judged is not None and not judged.passes:
        return CandidateStatus.REJECTED, judged.reason
    if result.unbatched and request.needs_batches:
        description = "it loses batching, which the requested load needs"
        return CandidateStatus.REJECTED, f"{description}: {unbatched_text(result.unbatched)}"
    if request.target is not SearchTarget.MEMORY and _least_cut(timing) <= 0:
        return CandidateStatus.REJECTED, slower_text(timing)
    if judged is None:
        return CandidateStatus.REJECTED, _unjudged_reason(state, request, result, timings)
    if request.target is not SearchTarget.MEMORY and not _is_sure(timing, noise_ratio):
        description = f"noise was up to {noise_ratio:.1%}"
        return (
            CandidateStatus.REJECTED,
            f"saving {timing.cut_ratio:.1%}, and {description}: no significant gain",
        )
    return CandidateStatus.GOOD, f"{judged.reason}; {selected} is better"


def _unjudged_reason(
    state: SearchState,
    request: SearchRequest,
    result: CandidateResult,
    timings: Mapping[str, Timing],
) -> str:
    """Return why a faster candidate was not judged."""
    kind = state.started.model_class if state.started else ""
    if not is_worth_judging(request, timings[result.name], kind):
        return slower_text(timings[result.name])
    faster = faster_candidate(state, request, timings, result.name)
    if result.screened is not None:
        reason = f"{faster} is significantly faster" if faster else "the budget was used up"
        return f"{result.screened.reason}; not evaluated further, as {reason}"
    if faster:
        return f"not evaluated: {faster} is significantly faster"
    return "not evaluated: the budget was used up"


def _chosen_reason(state: SearchState, request: SearchRequest, result: CandidateResult) -> str:
    if result.name == state.baseline:
        return "no candidate is significantly better: serve the unchanged model"
    description = {
        SearchTarget.LATENCY: "the lowest p50",
        SearchTarget.THROUGHPUT: "the highest throughput",
        SearchTarget.COST: "the lowest cost",
        SearchTarget.MEMORY: "the least memory",
    }[request.target]
    judged = result.verdict or result.fidelity
    judgement = f"; {judged.reason}" if judged else ""
    if judged is None and result.screened is not None:
        judgement = f"; {result.screened.reason}; the budget was used up before a full evaluation"
    return f"{description} of all accepted candidates{judgement}"


def unbatched_text(lost: Unbatched) -> str:
    """Describe the cost and reason of lost batching."""
    cost = "not timed"
    if lost.cut_ratio is not None:
        bounds = ""
        if lost.cut_ci_ratio is not None:
            low, high = lost.cut_ci_ratio
            bounds = f" [{1 - high:.2f}, {1 - low:.2f}]"
        cost = f"{1 - lost.cut_ratio:.2f} times the baseline's time{bounds}"
    return f"a batch of {lost.rows} rows, run row by row, takes {cost} ({lost.reason})"


def slower_text(timing: Timing) -> str:
    """Return why a candidate is not a gain: slower, or not significantly faster."""
    if timing.cut_ci_ratio is None:
        return "too few timings for a comparison"
    low, high = timing.cut_ci_ratio
    if high < 0:
        bounds = f"[{1 - high:.2f}, {1 - low:.2f}]"
        return f"slower than the baseline: {1 - timing.cut_ratio:.2f} times its p50 {bounds}"
    cut = f"{timing.cut_ratio:.1%} [{low:.1%}, {high:.1%}]"
    return f"no significant difference to the baseline: saving {cut}"


def _is_sure(timing: Timing, noise_ratio: float) -> bool:
    """Return whether a gain exceeds chance and noise."""
    return _least_cut(timing) > 0 and timing.cut_ratio > noise_ratio


def _least_cut(timing: Timing) -> float:
    """Return the lower bound of a candidate's gain; 0 if unknown."""
    return 0.0 if timing.cut_ci_ratio is None else timing.cut_ci_ratio[0]
