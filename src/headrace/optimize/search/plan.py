"""Next step of a search, and its choice. Pure: the state and the time decide."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from headrace.optimize.candidate import ModelClass
from headrace.optimize.search.journal import AGAIN, FINAL, CandidateResult, SearchState, Unbatched
from headrace.optimize.search.process import SearchRequest, SearchTarget
from headrace.optimize.timing import Timing

FINALISTS: Final = 3
"""Accepted candidates that are compared once more, on measurements that chose none of them."""
_BUILD, _JUDGE, _FINAL = 0.50, 0.82, 0.92
"""Shares of the budget by which each part is over; what ends early leaves its time to the rest."""
_OF_MORE: Final = 0.55
"""With recipes that build on the best of the others, those get only so much of their shares,"""
LEAST_FOR_MORE_S: Final = 290.0
"""where the budget suffices for both; else others get what is left."""
SCREENED: Final = 512
"""Of how many examples every candidate is asked, before one is asked the others: enough to give up
what a wrong option ruined. At most half of all, else it is not worth two rounds."""
_SCORE: Final = 0.4
"""Of the time that is left until nobody is judged any more, for the baseline's own answers: no
candidate is judged on more than those. Where they take longer, the first ones have to do."""
_LEAST_SCORE_S: Final = 5.0
_SCREEN: Final = 0.4
"""Of the share for judging: what was not screened by then waits until it is judged fully."""
_LEAST_FINAL_S: Final = 3.0
_LEAST_MIX_S: Final = 10.0
_WORTH_JUDGING: Final = 0.02
"""A candidate that is slower than the baseline by more than so much is not asked for answers."""


class StepKind(StrEnum):
    """What a search does at a time."""

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
    """One step. `name`: of a recipe or candidate; `names`: several; `until_s`: by when it ends."""

    kind: StepKind
    name: str = ""
    names: tuple[str, ...] = ()
    until_s: float = 0.0


def next_step(  # noqa: PLR0911  # a step each, in their order
    state: SearchState,
    request: SearchRequest,
    timed: Mapping[str, Timing],
    *,
    now_s: float,
) -> SearchStep:
    """The step that is next.

    Args:
        timed: Of each candidate that was timed alone with the baseline.
        now_s: How long the search has run.
    """
    if StepKind.WRITE in state.ended:
        return SearchStep(kind=StepKind.DONE)
    budget_s = request.budget_s
    assert state.started is not None, "the journal begins with it"
    first, later = state.started.recipes, state.started.later
    less = _OF_MORE if later and budget_s >= LEAST_FOR_MORE_S else 1.0
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
        until_s = max(_FINAL * budget_s, now_s + _LEAST_FINAL_S)
        names = (state.baseline, *(result.name for result in finalists))
        return SearchStep(kind=StepKind.COMPARE, names=names, until_s=until_s)
    if now_s < budget_s and (step := _weigh(state, finalists, budget_s)):
        return step
    is_trees = state.started.model_class == ModelClass.TREES
    if is_trees and state.mixed is None and StepKind.MIX not in state.ended:
        names = (state.baseline, *(result.name for result in _usable(state)))
        return SearchStep(
            kind=StepKind.MIX, names=names, until_s=max(budget_s, now_s + _LEAST_MIX_S)
        )
    return SearchStep(kind=StepKind.WRITE)


def asked_until_s(now_s: float, budget_s: float) -> float:
    """By when the baseline has to have answered, so that there is time left for candidates."""
    return now_s + max(_SCORE * (_JUDGE * budget_s - now_s), _LEAST_SCORE_S)


def _usable(state: SearchState) -> list[CandidateResult]:
    """The accepted candidates, however fast at the size of batch that was timed."""
    return [
        result
        for name, result in state.candidates.items()
        if name != state.baseline and result.is_accepted and not result.is_reference
    ]


def best(
    state: SearchState, request: SearchRequest, timed: Mapping[str, Timing]
) -> list[CandidateResult]:
    """The accepted candidates that are better than the baseline, the best one first.

    If no candidate was asked all examples and passed, those that pass in what they were asked.
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
    # The share that was cut in blocks shared with the baseline, as absolute times drift.
    return sorted(faster, key=lambda result: -timed[result.name].cut_ratio)


def _size(state: SearchState, result: CandidateResult) -> float:
    built = state.candidates[result.name].built
    on_disk = built.size_bytes if built else float("inf")
    return float(result.memory_bytes if result.memory_bytes is not None else on_disk)


def _build(
    state: SearchState, recipes: Sequence[str], *, now_s: float, until_s: float
) -> SearchStep | None:
    """The next recipe, or a candidate of the last one that was not run yet."""
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
    """The candidates that have to be judged, the fastest or smallest first."""
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
    """Whose answers are looked at next: the baseline's, then some of all candidates', then all."""
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
    # Where there are many examples, the fastest candidate that was asked nothing yet.
    if new and answered > 2 * SCREENED and now_s < screened_s and len(waiting) > 1:
        return SearchStep(kind=StepKind.SCREEN, name=new[0].name, until_s=screened_s)
    if now_s >= until_s:
        return None
    # The fastest candidate that may win; then the most doubtful of those that can win no more: the
    # loss so far decides, as a report is to show what a recipe costs, and which ones to avoid.
    may_win = [result for result in waiting if not beaten_by(state, request, timed, result.name)]
    most_doubtful = max(
        waiting, key=lambda result: result.screened.loss if result.screened else 0.0
    )
    chosen = may_win[0] if may_win else most_doubtful
    return SearchStep(kind=StepKind.JUDGE, name=chosen.name, until_s=until_s)


def beaten_by(
    state: SearchState, request: SearchRequest, timed: Mapping[str, Timing], name: str
) -> str:
    """Which accepted candidate is faster than this one beyond doubt; empty for none.

    That is not asked where speed, or that with one size of batch, decides too little.
    """
    kind = state.started.model_class if state.started else ""
    own = timed[name].cut_ci_ratio if name in timed else None
    if own is None or request.target is SearchTarget.MEMORY or kind == ModelClass.TREES:
        return ""
    for other in best(state, request, timed):
        theirs = timed[other.name].cut_ci_ratio
        if other.is_accepted and theirs is not None and theirs[0] > own[1]:
            return other.name
    return ""


def is_worth_judging(
    request: SearchRequest, timing: Timing, model_class: str = ModelClass.OTHER
) -> bool:
    """Whether a candidate can be chosen, if its answers are good: trees for other batches too."""
    can_be_small = request.target is SearchTarget.MEMORY or model_class == ModelClass.TREES
    return can_be_small or timing.cut_ratio > -_WORTH_JUDGING


def _weigh(
    state: SearchState, finalists: Sequence[CandidateResult], budget_s: float
) -> SearchStep | None:
    """Who was not weighed: the baseline and those that may be chosen."""
    candidates = [state.candidates[state.baseline], *finalists] if finalists else []
    for result in candidates:
        if result.memory_bytes is None and not result.failed:
            return SearchStep(kind=StepKind.WEIGH, name=result.name, until_s=budget_s)
    return None


_NEVER: Final = "not tried: the budget of {:g} s was over before its turn"


class CandidateStatus(StrEnum):
    """What became of a candidate."""

    BASELINE = "baseline"
    CHOSEN = "chosen"
    REFERENCE = "reference"
    GOOD = "good"
    REJECTED = "rejected"


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchDecision:
    """Who was chosen (the baseline where nothing is better), and why the others were not.

    `timings`: the last word on each; `reasons`: by name, as all below.
    """

    chosen: str
    timings: Mapping[str, Timing]
    statuses: Mapping[str, CandidateStatus]
    reasons: Mapping[str, str]


def decide(
    state: SearchState,
    request: SearchRequest,
    timed: Mapping[str, Timing],
    final: Mapping[str, Timing],
) -> SearchDecision:
    """The candidates' standings.

    Args:
        timed: Each alone with the baseline.
        final: The finalists and the baseline together, on measurements of their own; may be empty.
    """
    timings = {**timed, **final}
    # By how much the baseline may have been faster than itself, in the same minutes.
    again = final.get(AGAIN)
    noise_ratio = max(again.cut_ci_ratio[1], 0.0) if again and again.cut_ci_ratio else 0.0
    chosen = _chosen(state, request, timed, final, noise_ratio)
    statuses, reasons = {}, {}
    for name, result in state.candidates.items():
        statuses[name], reasons[name] = _status(
            state, request, result, timings, chosen, noise_ratio
        )
    started = state.started
    for recipe in (*started.recipes, *started.later) if started else ():
        if recipe not in state.ended and recipe not in state.candidates:
            statuses[recipe] = CandidateStatus.REJECTED
            reasons[recipe] = _NEVER.format(request.budget_s)
    return SearchDecision(chosen=chosen, timings=timings, statuses=statuses, reasons=reasons)


def members_of(state: SearchState, chosen: str) -> list[tuple[str, int | None]]:
    """What the result consists of: engines by the batch's size where that was found out."""
    if state.mixed is not None and state.mixed.members:
        return list(state.mixed.members)
    return [(chosen, None)]


def _chosen(
    state: SearchState,
    request: SearchRequest,
    timed: Mapping[str, Timing],
    final: Mapping[str, Timing],
    noise_ratio: float,
) -> str:
    """The best finalist that is better than the baseline beyond doubt."""
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


def _status(  # noqa: C901, PLR0911, PLR0917  # a reason each, of all that is known
    state: SearchState,
    request: SearchRequest,
    result: CandidateResult,
    timings: Mapping[str, Timing],
    chosen: str,
    noise_ratio: float,
) -> tuple[CandidateStatus, str]:
    name = result.name
    if name == chosen:
        return CandidateStatus.CHOSEN, _why_chosen(state, request, result)
    if name == state.baseline:
        return CandidateStatus.BASELINE, "what the others are measured against"
    if result.failed:
        return CandidateStatus.REJECTED, result.failed
    if result.is_reference:
        return CandidateStatus.REFERENCE, "the model in its own framework, to compare with"
    timing = timings.get(name)
    if timing is None:
        return CandidateStatus.REJECTED, "it was not timed: the search ended before"
    judged = result.verdict or result.fidelity
    if judged is not None and not judged.passes:
        return CandidateStatus.REJECTED, judged.reason
    if result.unbatched and request.needs_batches:
        what = "it loses batching, which the load that was asked for needs"
        return CandidateStatus.REJECTED, f"{what}: {unbatched_text(result.unbatched)}"
    if request.target is not SearchTarget.MEMORY and _least_cut(timing) <= 0:
        return CandidateStatus.REJECTED, slower_text(timing)
    if judged is None:
        return CandidateStatus.REJECTED, _why_unjudged(state, request, result, timings)
    if request.target is not SearchTarget.MEMORY and not _is_sure(timing, noise_ratio):
        what = f"the baseline differed from itself by up to {noise_ratio:.1%} meanwhile"
        return (
            CandidateStatus.REJECTED,
            f"cut {timing.cut_ratio:.1%}, and {what}: no gain beyond doubt",
        )
    return CandidateStatus.GOOD, f"{judged.reason}; {chosen} is better"


def _why_unjudged(
    state: SearchState,
    request: SearchRequest,
    result: CandidateResult,
    timings: Mapping[str, Timing],
) -> str:
    """Why nobody knows whether a candidate that is faster is good enough."""
    kind = state.started.model_class if state.started else ""
    if not is_worth_judging(request, timings[result.name], kind):
        return slower_text(timings[result.name])
    faster = beaten_by(state, request, timings, result.name)
    if result.screened is not None:
        why = f"{faster} is faster beyond doubt" if faster else "the budget was over"
        return f"{result.screened.reason}; the others were not asked, as {why}"
    if faster:
        return f"{faster} is faster beyond doubt; its answers were not looked at in the budget"
    return "the budget was over before its answers were looked at"


def _why_chosen(state: SearchState, request: SearchRequest, result: CandidateResult) -> str:
    if result.name == state.baseline:
        return "nothing that was tried is better beyond doubt: serve the model as it is"
    what = {
        SearchTarget.LATENCY: "the lowest p50",
        SearchTarget.THROUGHPUT: "the highest throughput",
        SearchTarget.COST: "the lowest cost",
        SearchTarget.MEMORY: "the least memory",
    }[request.target]
    judged = result.verdict or result.fidelity
    judgement = f"; {judged.reason}" if judged else ""
    if judged is None and result.screened is not None:
        judgement = (
            f"; {result.screened.reason}; the budget was over before any was asked all of them"
        )
    return f"{what} of all that lose no more than they may{judgement}"


def unbatched_text(lost: Unbatched) -> str:
    """What the loss of batching costs, and why it is lost."""
    cost = "not timed"
    if lost.cut_ratio is not None:
        bounds = ""
        if lost.cut_ci_ratio is not None:
            low, high = lost.cut_ci_ratio
            bounds = f" [{1 - high:.2f}, {1 - low:.2f}]"
        cost = f"{1 - lost.cut_ratio:.2f} times the baseline's time{bounds}"
    return f"a batch of {lost.rows} rows, run row by row, takes {cost} ({lost.reason})"


def slower_text(timing: Timing) -> str:
    """Why a candidate is no gain: slower, or not surely faster."""
    if timing.cut_ci_ratio is None:
        return "it was timed too seldom to say whether it is faster"
    low, high = timing.cut_ci_ratio
    if high < 0:
        bounds = f"[{1 - high:.2f}, {1 - low:.2f}]"
        return f"slower than the baseline: {1 - timing.cut_ratio:.2f} times its p50 {bounds}"
    cut = f"{timing.cut_ratio:.1%} [{low:.1%}, {high:.1%}]"
    return f"no difference to the baseline beyond doubt: cut {cut}"


def _is_sure(timing: Timing, noise_ratio: float) -> bool:
    """Whether a candidate is better by more than chance and the machine would make it."""
    return _least_cut(timing) > 0 and timing.cut_ratio > noise_ratio


def _least_cut(timing: Timing) -> float:
    """What a candidate gains at least; nothing where that is not known."""
    return 0.0 if timing.cut_ci_ratio is None else timing.cut_ci_ratio[0]
