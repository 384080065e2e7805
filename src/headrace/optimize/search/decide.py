"""Which candidate is chosen, and why is each other one not? Pure."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from headrace.optimize.search.asked import SearchRequest, Target
from headrace.optimize.search.journal import AGAIN, Unbatched
from headrace.optimize.search.plan import beaten_by, best, is_worth_judging
from headrace.optimize.search.state import State, Tried
from headrace.optimize.timing import Timing

_NEVER: Final = "not tried: the budget of {:g} s was over before its turn"


class Standing(StrEnum):
    """What became of a candidate."""

    BASELINE = "baseline"
    CHOSEN = "chosen"
    REFERENCE = "reference"
    GOOD = "good"
    REJECTED = "rejected"


@dataclass(frozen=True, slots=True, kw_only=True)
class Standings:
    """Who was chosen (the baseline where nothing is better), and why the others were not.

    `timings`: the last word on each; `reasons`: by name, as all below.
    """

    chosen: str
    timings: Mapping[str, Timing]
    standing: Mapping[str, Standing]
    reasons: Mapping[str, str]


def decide(
    state: State,
    request: SearchRequest,
    timed: Mapping[str, Timing],
    final: Mapping[str, Timing],
) -> Standings:
    """The candidates' standings.

    Args:
        timed: Each alone with the baseline.
        final: The finalists and the baseline together, on measurements of their own; may be empty.
    """
    timings = {**timed, **final}
    noise_ratio = _noise_ratio(final)
    chosen = _chosen(state, request, timed, final, noise_ratio)
    standing, reasons = {}, {}
    for name, tried in state.tried.items():
        standing[name], reasons[name] = _standing(
            state, request, tried, timings, chosen, noise_ratio
        )
    started = state.started
    for recipe in (*started.recipes, *started.later) if started else ():
        if recipe not in state.ended and recipe not in state.tried:
            standing[recipe] = Standing.REJECTED
            reasons[recipe] = _NEVER.format(request.budget_s)
    return Standings(chosen=chosen, timings=timings, standing=standing, reasons=reasons)


def members_of(state: State, chosen: str) -> list[tuple[str, int | None]]:
    """What the result consists of: engines by the batch's size where that was found out."""
    if state.mixed is not None and state.mixed.members:
        return list(state.mixed.members)
    return [(chosen, None)]


def _chosen(
    state: State,
    request: SearchRequest,
    timed: Mapping[str, Timing],
    final: Mapping[str, Timing],
    noise_ratio: float,
) -> str:
    """The best finalist that is better than the baseline beyond doubt."""
    known = {name: timing for name, timing in (final or timed).items() if name in timed}
    ranked = best(state, request, known)
    if request.target is Target.MEMORY:
        before = state.tried[state.baseline].memory_bytes if state.baseline else None
        smaller = [
            tried
            for tried in ranked
            if tried.memory_bytes is not None and before and tried.memory_bytes < before
        ]
        return smaller[0].name if smaller else state.baseline
    sure = [tried for tried in ranked if _is_sure(known[tried.name], noise_ratio)]
    return sure[0].name if sure else state.baseline


def _standing(  # noqa: C901, PLR0911, PLR0917  # a reason each, of all that is known
    state: State,
    request: SearchRequest,
    tried: Tried,
    timings: Mapping[str, Timing],
    chosen: str,
    noise_ratio: float,
) -> tuple[Standing, str]:
    name = tried.name
    if name == chosen:
        return Standing.CHOSEN, _why_chosen(state, request, tried)
    if name == state.baseline:
        return Standing.BASELINE, "what the others are measured against"
    if tried.failed:
        return Standing.REJECTED, tried.failed
    if tried.is_reference:
        return Standing.REFERENCE, "the model in its own framework, to compare with"
    timing = timings.get(name)
    if timing is None:
        return Standing.REJECTED, "it was not timed: the search ended before"
    judged = tried.verdict or tried.fidelity
    if judged is not None and not judged.passes:
        return Standing.REJECTED, judged.reason
    if tried.unbatched and request.needs_batches:
        what = "it loses batching, which the load that was asked for needs"
        return Standing.REJECTED, f"{what}: {unbatched_text(tried.unbatched)}"
    if request.target is not Target.MEMORY and _least_cut(timing) <= 0:
        return Standing.REJECTED, slower_text(timing)
    if judged is None:
        return Standing.REJECTED, _why_unjudged(state, request, tried, timings)
    if request.target is not Target.MEMORY and not _is_sure(timing, noise_ratio):
        what = f"the baseline differed from itself by up to {noise_ratio:.1%} meanwhile"
        return Standing.REJECTED, f"cut {timing.cut_ratio:.1%}, and {what}: no gain beyond doubt"
    return Standing.GOOD, f"{judged.reason}; {chosen} is better"


def _why_unjudged(
    state: State, request: SearchRequest, tried: Tried, timings: Mapping[str, Timing]
) -> str:
    """Why nobody knows whether a candidate that is faster is good enough."""
    kind = state.started.model_class if state.started else ""
    if not is_worth_judging(request, timings[tried.name], kind):
        return slower_text(timings[tried.name])
    faster = beaten_by(state, request, timings, tried.name)
    if tried.screened is not None:
        why = f"{faster} is faster beyond doubt" if faster else "the budget was over"
        return f"{tried.screened.reason}; the others were not asked, as {why}"
    if faster:
        return f"{faster} is faster beyond doubt; its answers were not looked at in the budget"
    return "the budget was over before its answers were looked at"


def _why_chosen(state: State, request: SearchRequest, tried: Tried) -> str:
    if tried.name == state.baseline:
        return "nothing that was tried is better beyond doubt: serve the model as it is"
    what = {
        Target.LATENCY: "the lowest p50",
        Target.THROUGHPUT: "the highest throughput",
        Target.COST: "the lowest cost",
        Target.MEMORY: "the least memory",
    }[request.target]
    judged = tried.verdict or tried.fidelity
    said = f"; {judged.reason}" if judged else ""
    if judged is None and tried.screened is not None:
        said = f"; {tried.screened.reason}; the budget was over before any was asked all of them"
    return f"{what} of all that lose no more than they may{said}"


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


def _noise_ratio(final: Mapping[str, Timing]) -> float:
    """By how much the baseline may have been faster than itself, in the same minutes."""
    again = final.get(AGAIN)
    return max(again.cut_ci_ratio[1], 0.0) if again and again.cut_ci_ratio else 0.0


def _is_sure(timing: Timing, noise_ratio: float) -> bool:
    """Whether a candidate is better by more than chance and the machine would make it."""
    return _least_cut(timing) > 0 and timing.cut_ratio > noise_ratio


def _least_cut(timing: Timing) -> float:
    """What a candidate gains at least; nothing where that is not known."""
    return 0.0 if timing.cut_ci_ratio is None else timing.cut_ci_ratio[0]
