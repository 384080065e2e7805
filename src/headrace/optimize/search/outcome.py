"""Report and version metadata of a search. Pure."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

from headrace.optimize.report import (
    CandidateReport,
    MeasurementSettings,
    OptimizeReport,
    QualityEvidence,
)
from headrace.optimize.search.journal import (
    AGAIN,
    COLD,
    FINAL,
    CandidateResult,
    SearchState,
    Timings,
    cost_note,
    cost_per_million,
    is_of_all_cores,
)
from headrace.optimize.search.plan import CandidateStatus, SearchDecision, decide, unbatched_text
from headrace.optimize.search.process import SearchRequest
from headrace.optimize.timing import Timing
from headrace.runtimes.optimized.file import Processor

_NO_LABELS: Final = (
    "Without labels, fidelity only: answers were compared with the model's own on {} examples. "
    "That shows how many changed, not whether they got worse; labelled examples (--data) would."
)
_GENERATED: Final = " The examples were generated, and real requests may behave differently."


def report_of(
    state: SearchState,
    request: SearchRequest,
    *,
    reference: str,
    created_at: float = 0.0,
    cost_per_hour: float | None = None,
) -> OptimizeReport:
    """Return the report of a search, finished or not.

    Args:
        reference: Display name of the model.
        created_at: Seconds since 1970; 0 for none.
        cost_per_hour: Price of the machine's cores, in any currency.
    """
    started = state.started
    assert started is not None, "a search that found a baseline has begun"
    timings = Timings(request.seed)
    alone, final, cold = (
        timings.individual(state),
        timings.of_group(state, FINAL),
        timings.of_group(state, COLD),
    )
    decision = decide(state, request, alone, final)
    entries = {
        name: _entry(
            state,
            request,
            state.candidates.get(name) or CandidateResult(name, name),
            decision,
            cold=cold.get(name),
            price=cost_per_hour,
        )
        for name in decision.statuses
    }
    baseline = entries[state.baseline]
    by: dict[CandidateStatus, list[CandidateReport]] = {kind: [] for kind in CandidateStatus}
    for name, kind in decision.statuses.items():
        by[kind].append(entries[name])
    return OptimizeReport(
        model=reference,
        model_digest=request.digest,
        model_class=started.model_class,
        processor=Processor(name=started.processor_name, features=started.processor_features),
        versions=dict(started.versions),
        settings=MeasurementSettings(
            threads=request.threads,
            batch=request.rows,
            length=started.length,
            shape=started.request,
            target=request.target,
            max_loss=request.max_loss,
            blocks=final[state.baseline].blocks if state.baseline in final else None,
        ),
        data=_evidence(state, request),
        baseline=baseline,
        chosen=entries[decision.chosen],
        references=by[CandidateStatus.REFERENCE],
        candidates=sorted(by[CandidateStatus.GOOD], key=_by_cut),
        rejected=sorted(by[CandidateStatus.REJECTED], key=_by_cut),
        notes=_notes(state, final, cost_note(cost_per_hour, started, request)),
        elapsed_s=state.at_s,
        created_at=datetime.fromtimestamp(created_at, UTC).isoformat(timespec="seconds")
        if created_at
        else "",
    )


def lineage(report: OptimizeReport, *, runtime: str, filename: str) -> dict[str, str]:
    """Return the metadata of the optimized version."""
    selected, base = report.chosen, report.baseline
    metadata = {
        "optimized_from": report.model_digest,
        "optimized_model": report.model,
        "optimized_file": filename,
        "optimized_runtime": runtime,
        "optimized_by": selected.name,
        "optimized_target": report.settings.target,
        "optimized_on": report.processor.name,
        "optimized_features": " ".join(report.processor.features),
        "baseline": base.name,
        "baseline_p50_s": _number(base.p50_s),
        "p50_s": _number(selected.p50_s),
        "p50_ci_s": _interval(selected.p50_ci_s),
        "cut_ratio": _number(selected.cut_ratio),
        "cut_ci_ratio": _interval(selected.cut_ci_ratio),
        "calibration_sha256": report.data.calibration_sha256,
        "metric": report.data.metric if report.data.is_labelled else "",
        "metric_value": _number(selected.accuracy),
        "metric_loss": _number(selected.accuracy_loss),
        "metric_loss_ci": _interval(selected.accuracy_loss_ci),
        "judged_examples": str(selected.n or ""),
        "agreement_ratio": _number(selected.agreement_ratio),
    }
    return {name: value for name, value in metadata.items() if value}


def _by_cut(entry: CandidateReport) -> float:
    return -(entry.cut_ratio if entry.cut_ratio is not None else -10.0)


def _entry(
    state: SearchState,
    request: SearchRequest,
    result: CandidateResult,
    decision: SearchDecision,
    *,
    cold: Timing | None,
    price: float | None,
) -> CandidateReport:
    """Return a candidate's report."""
    name, built, timing = result.name, result.built, decision.timings.get(result.name)
    fields: dict[str, Any] = {}
    if built is not None:
        fields |= {"recipe": dict(built.recipe), "build_s": built.build_s}
        fields |= {"size_bytes": built.size_bytes}
    if result.unbatched is not None:
        fields |= {"unbatched": unbatched_text(result.unbatched)}
        fields |= {"batch_cut_ratio": result.unbatched.cut_ratio}
    # The measured time is of one run; a timed call consists of this many.
    calls = state.started.calls if state.started and is_of_all_cores(request) else 1
    if timing is not None:
        interval, rate = timing.p50_ci_s, timing.throughput_per_s * calls
        fields |= {
            "p50_s": timing.p50_s / calls,
            "p50_ci_s": interval and (interval[0] / calls, interval[1] / calls),
            "p90_s": timing.p90_s / calls,
            "p99_s": timing.p99_s / calls,
            "throughput_per_s": rate,
            "cut_ratio": timing.cut_ratio,
            "cut_ci_ratio": timing.cut_ci_ratio,
            "disturbed": timing.disturbed,
        }
        if state.started is not None:
            cost = cost_per_million(price, rate, state.started, request)
            fields |= {"cost_per_million": cost}
    if timing is not None and cold is not None:
        fields |= {
            "cold_p50_s": cold.p50_s / calls,
            "cold_cut_ratio": cold.cut_ratio,
            "cold_cut_ci_ratio": cold.cut_ci_ratio,
        }
    verdict = result.verdict or result.screened
    if name == state.baseline and (scored := state.scored) is not None:
        fields |= {"accuracy": scored.value, "n": scored.n}
        fields |= {"accuracy_loss": 0.0, "agreement_ratio": 1.0}
    elif verdict is not None:
        fields |= {
            "accuracy": verdict.accuracy,
            "accuracy_loss": verdict.loss,
            "accuracy_loss_ci": verdict.loss_ci,
            "p_value": verdict.p_value,
            "lost": verdict.lost,
            "gained": verdict.gained,
            "n": verdict.n,
            "agreement_ratio": verdict.agreement_ratio,
        }
    elif (fidelity := result.fidelity) is not None:
        fields |= {"agreement_ratio": fidelity.agreement_ratio, "n": fidelity.n}
    return CandidateReport(
        name=name,
        title=result.title,
        reason=decision.reasons[name],
        memory_bytes=result.memory_bytes or None,
        load_s=result.load_s or None,
        **fields,
    )


def _evidence(state: SearchState, request: SearchRequest) -> QualityEvidence:
    started, scored = state.started, state.scored
    assert started is not None, "checked before"
    reason = ""
    if not started.labelled:
        reason = _NO_LABELS.format(started.examples) + (_GENERATED if started.made_up else "")
    losses = [
        result.verdict.detectable_loss
        for result in state.candidates.values()
        if result.verdict is not None and result.verdict.passes
    ]
    return QualityEvidence(
        n=scored.n if scored else 0,
        metric=scored.metric if scored else request.metric or "accuracy",
        source=request.data,
        smallest_loss=max(losses) if losses else None,
        calibration_n=started.calibration,
        calibration_sha256=started.calibration_sha256,
        why_weaker=reason,
    )


def _notes(state: SearchState, final: Mapping[str, Timing], cost: str) -> list[str]:
    started = state.started
    assert started is not None, "checked before"
    notes = [f"class of model: {started.model_class} ({started.why_class})", *started.notes]
    if started.overlapping:
        notes.append(
            f"calibrated with {started.calibration} of the evaluation examples, without their "
            "labels; no candidate was accepted that is worse on the others"
        )
    if state.scored and state.scored.n < started.labelled:
        notes.append(
            f"the evaluation used {state.scored.n:,} of {started.labelled:,} examples, as more "
            "would have left no time for candidates; increase --budget to use all"
        )
    if state.scored and state.scored.warning:
        notes.append(state.scored.warning)
    if cost:
        notes.append(cost)
    if state.mixed is not None:
        notes += [text for text in (state.mixed.summary, *state.mixed.notes) if text]
    notes += [f"a step was abandoned: {reason}" for reason in state.problems]
    notes += [
        f"{result.name} runs one request at a time: {unbatched_text(result.unbatched)}; this "
        "matters under a load at which requests queue"
        for result in state.candidates.values()
        if result.unbatched and not result.failed
    ]
    if final:
        notes.append(
            "the chosen candidate and the baseline were timed in the final comparison, the others "
            "earlier: savings are comparable, absolute latencies less so"
        )
    again = final.get(AGAIN)
    if again is not None and again.cut_ci_ratio is not None:
        low, high = again.cut_ci_ratio
        notes.append(
            f"noise, measured as the baseline against itself: {again.cut_ratio:+.2%} "
            f"[{low:+.2%}, {high:+.2%}]"
        )
    return [text[:1].upper() + text[1:].rstrip(".") + "." for text in notes]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"


def _interval(bounds: tuple[float, float] | None) -> str:
    return "" if bounds is None else f"{bounds[0]:.6g} to {bounds[1]:.6g}"
