"""Report of a load: text for people, a document for programs."""

from collections.abc import Sequence
from typing import Any, Final

from rich.text import Text

from headrace.cli.output import table
from headrace.core.text import duration_text, percent_text
from headrace.load import Interval, Judgement, LoadPlan, LoadResult, Target, Verdict
from headrace.load.summary import rounded_up

_WORDS: Final = {
    Verdict.MET: "met",
    Verdict.MISSED: "MISSED",
    Verdict.UNKNOWN: "not enough evidence",
}
_STYLES: Final = {Verdict.MET: "green", Verdict.MISSED: "bold red", Verdict.UNKNOWN: "yellow"}
_NO: Final = "-"


def announcement(plan: LoadPlan, target: Target, what: str) -> str:
    """What will be sent where, before it is."""
    where = target.server.uds or target.server.authority
    machine = "" if target.server.uds or target.server.is_loopback else ", another machine"
    return (
        f"sending {plan.rate_per_s:g} requests/s ({plan.arrivals}) for {plan.warm_up_s:g} + "
        f"{plan.seconds:g} s to {target.model} at {where}{machine}: {what}"
    )


def quantile_name(quantile: float) -> str:
    """`p99.9`."""
    return f"p{round(100 * quantile, 6):g}"


def report(result: LoadResult) -> list["Text"]:
    """One run as tables."""
    latencies = [
        (quantile_name(quantile), *_latency_cells(interval))
        for quantile, interval in result.latency_s.items()
    ]
    parts = [
        table(_head(result)),
        Text(),
        table(latencies, "latency", "measured", "95 % interval", ""),
    ]
    if result.judgements:
        rows = [_judgement_cells(judgement) for judgement in result.judgements]
        parts += [Text(), table(rows, "objective", "verdict", "measured", "95 % interval", "")]
    if result.limited_by:
        parts += [Text(), Text(result.limited_by, style="yellow")]
    return parts


def _head(result: LoadResult) -> list[tuple[str, str]]:
    asked = f"{result.plan.rate_per_s:,.1f} /s, {result.plan.arrivals} arrivals"
    rows = [
        ("asked", asked),
        (
            "achieved",
            f"{result.achieved_per_s:,.1f} /s, {result.requests:,} requests in "
            f"{result.seconds:.3g} s" + (", ended by hand" if result.interrupted else ""),
        ),
        ("errors", _errors_text(result)),
    ]
    if result.lag is not None:
        lag = result.lag
        rows.append(
            (
                "generator lag",
                ", ".join(
                    f"{name} {duration_text(value)}"
                    for name, value in (("p50", lag.p50_s), ("p99", lag.p99_s), ("max", lag.max_s))
                ),
            )
        )
    connections = f"{result.connections:,} opened"
    if result.waited:
        connections += (
            f"; {result.waited:,} requests waited for one (--connections {result.plan.connections})"
        )
    rows.append(("connections", connections))
    return rows


def _errors_text(result: LoadResult) -> str:
    if result.error_ratio is None:
        return _NO
    ratio = result.error_ratio
    kinds = ", ".join(f"{count:,} {kind}" for kind, count in result.errors.items())
    bounds = f"{percent_text(ratio.value)}, {percent_text(ratio.low)} to {percent_text(ratio.high)}"
    return f"{result.failed:,} ({bounds})" + (f": {kinds}" if kinds else "")


def _latency_cells(interval: Interval | None) -> tuple[str, str, str]:
    if interval is None:
        return _NO, _NO, ""
    return _seconds(interval.value), _bounds(interval), _needed(interval)


def _bounds(interval: Interval) -> str:
    if not interval.is_known:
        return _NO
    return f"{_seconds(interval.low)} to {_seconds(interval.high)}"


def _needed(interval: Interval) -> str:
    if interval.is_known or not interval.needed:
        return ""
    return f"an interval takes about {rounded_up(interval.needed):,} requests"


def _judgement_cells(judgement: Judgement) -> "tuple[Text | str, ...]":

    objective, measured = judgement.objective, judgement.measured
    verdict = Text(_WORDS[judgement.verdict], style=_STYLES[judgement.verdict])
    if objective.quantile is None:
        limit = percent_text(objective.limit)
        figures = (
            (_NO, _NO)
            if measured is None
            else (
                percent_text(measured.value),
                f"{percent_text(measured.low)} to {percent_text(measured.high)}",
            )
        )
    else:
        limit = duration_text(objective.limit)
        figures = (_NO, _NO) if measured is None else (_seconds(measured.value), _bounds(measured))
    return f"{objective.name} <= {limit}", verdict, *figures, judgement.reason


def _seconds(value: float | None) -> str:
    if value == float("inf"):
        return "failed"
    return duration_text(value)


def steps_report(results: Sequence[LoadResult]) -> list["Text"]:
    """Several rates as one table, and the highest that met everything."""
    rows = [_step_cells(result) for result in results]
    parts = [
        table(rows, "asked/s", "achieved/s", "p50", "p99", "95 % interval", "errors", "objectives")
    ]
    best = highest_met(results)
    if any(result.judgements for result in results):
        found = "none of these rates met all objectives"
        if best is not None:
            found = f"the highest rate that met all objectives: {best:g} /s"
        parts += [Text(), Text(found)]
    return parts


def _step_cells(result: LoadResult) -> "tuple[Text | str, ...]":

    p50, p99 = result.latency_s[0.5], result.latency_s[0.99]
    verdict = result.verdict
    said = Text(_NO) if verdict is None else Text(_WORDS[verdict], style=_STYLES[verdict])
    if result.limited_by:
        said = said + Text(" (generator)", style="yellow")
    return (
        f"{result.plan.rate_per_s:,.1f}",
        f"{result.achieved_per_s:,.1f}",
        _latency_cells(p50)[0],
        *_latency_cells(p99)[:2],
        percent_text(result.error_ratio.value) if result.error_ratio else _NO,
        said,
    )


def highest_met(results: Sequence[LoadResult]) -> float | None:
    """The highest rate at which every objective was met; None if at none."""
    met = [result.plan.rate_per_s for result in results if result.verdict is Verdict.MET]
    return max(met, default=None)


def document(result: LoadResult, url: str, model: str) -> dict[str, Any]:
    """One run for programs; seconds and ratios throughout, null where nothing is known."""
    plan = result.plan
    return {
        "url": url,
        "model": model,
        "arrivals": plan.arrivals.value,
        "seed": plan.seed,
        "rate_per_s": plan.rate_per_s,
        "achieved_per_s": result.achieved_per_s,
        "seconds": result.seconds,
        "warm_up_s": plan.warm_up_s,
        "requests": result.requests,
        "errors": result.failed,
        "error_ratio": _value(result.error_ratio),
        "error_ratio_ci": _pair(result.error_ratio),
        "errors_by_kind": dict(result.errors),
        "latency_s": {
            quantile_name(quantile): _value(interval)
            for quantile, interval in result.latency_s.items()
        },
        "latency_ci_s": {
            quantile_name(quantile): _pair(interval)
            for quantile, interval in result.latency_s.items()
        },
        "requests_needed": {
            quantile_name(quantile): interval.needed
            for quantile, interval in result.latency_s.items()
            if interval is not None and interval.needed
        },
        "lag_s": None
        if result.lag is None
        else {"p50": result.lag.p50_s, "p99": result.lag.p99_s, "max": result.lag.max_s},
        "generator_was_limit": bool(result.limited_by),
        "generator_reason": result.limited_by,
        "not_sent": result.not_sent,
        "left_out": result.left_out,
        "connections": result.connections,
        "waited_for_connection": result.waited,
        "interrupted": result.interrupted,
        "slo": [_judgement_document(judgement) for judgement in result.judgements],
        "verdict": None if result.verdict is None else result.verdict.value,
    }


def steps_document(results: Sequence[LoadResult], url: str, model: str) -> dict[str, Any]:
    """Several rates for programs."""
    return {
        "url": url,
        "model": model,
        "highest_met_per_s": highest_met(results),
        "steps": [document(result, url, model) for result in results],
    }


def _judgement_document(judgement: Judgement) -> dict[str, Any]:
    objective = judgement.objective
    unit = "ratio" if objective.quantile is None else "s"
    return {
        "objective": objective.name,
        f"limit_{unit}": objective.limit,
        f"measured_{unit}": _value(judgement.measured),
        f"ci_{unit}": _pair(judgement.measured),
        "verdict": judgement.verdict.value,
        "reason": judgement.reason,
    }


def _value(interval: Interval | None) -> float | None:
    return None if interval is None else _finite(interval.value)


def _pair(interval: Interval | None) -> list[float | None] | None:
    """Both bounds, or null: half an interval is none."""
    if interval is None or not interval.is_known:
        return None
    return [_finite(interval.low), _finite(interval.high)]


def _finite(value: float | None) -> float | None:
    return None if value is None or value == float("inf") else value
