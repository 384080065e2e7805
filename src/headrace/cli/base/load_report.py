"""Load report as text and as JSON document."""

from collections.abc import Callable, Sequence
from typing import Any, Final

from rich.text import Text

from headrace.cli.base.output import Column, rows_text, table
from headrace.core.text import duration_text, percent_text
from headrace.load import (
    ConfidenceInterval,
    Judgement,
    LoadPlan,
    LoadResult,
    LoadTarget,
    ObjectiveVerdict,
)
from headrace.load.summary import rounded_up

_WORDS: Final = {
    ObjectiveVerdict.MET: "met",
    ObjectiveVerdict.MISSED: "MISSED",
    ObjectiveVerdict.UNKNOWN: "not enough evidence",
}
_STYLES: Final = {
    ObjectiveVerdict.MET: "green",
    ObjectiveVerdict.MISSED: "bold red",
    ObjectiveVerdict.UNKNOWN: "yellow",
}
_NO: Final = "-"


def announcement(plan: LoadPlan, target: LoadTarget, description: str) -> str:
    """Return the announcement of the requests and their target."""
    location = target.server.uds or target.server.authority
    machine = "" if target.server.uds or target.server.is_loopback else ", another machine"
    return (
        f"sending {plan.rate_per_s:g} requests/s ({plan.arrivals}) for {plan.warm_up_s:g} + "
        f"{plan.seconds:g} s to {target.model} at {location}{machine}: {description}"
    )


def quantile_name(quantile: float) -> str:
    """Return a quantile's name: `p99.9`."""
    return f"p{round(100 * quantile, 6):g}"


def report(result: LoadResult) -> list[Text]:
    """Return one run as tables."""
    parts = [
        table(_head(result)),
        Text(),
        rows_text(result.latency_s.items(), _LATENCY_COLUMNS),
    ]
    if result.judgements:
        parts += [Text(), rows_text(result.judgements, _OBJECTIVE_COLUMNS)]
    if result.limited_by:
        parts += [Text(), Text(result.limited_by, style="yellow")]
    return parts


def _head(result: LoadResult) -> list[tuple[str, str]]:
    plan, ratio, lag = result.plan, result.error_ratio, result.lag
    errors = _NO
    if ratio is not None:
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in result.errors.items())
        errors = f"{result.failed:,} ({percent_text(ratio.value)}, {_between(ratio, percent_text)})"
        errors += f": {kinds}" if kinds else ""
    connections = f"{result.connections:,} opened"
    if result.waited:
        limit = f"--connections {plan.connections}"
        connections += f"; {result.waited:,} requests waited for one ({limit})"
    rows = [
        ("asked", f"{plan.rate_per_s:,.1f} /s, {plan.arrivals} arrivals"),
        (
            "achieved",
            f"{result.achieved_per_s:,.1f} /s, {result.requests:,} requests in "
            f"{result.seconds:.3g} s" + (", interrupted" if result.interrupted else ""),
        ),
        ("errors", errors),
    ]
    if lag is not None:
        figures = (("p50", lag.p50_s), ("p99", lag.p99_s), ("max", lag.max_s))
        texts = (f"{name} {duration_text(value)}" for name, value in figures)
        rows.append(("generator lag", ", ".join(texts)))
    return [*rows, ("connections", connections)]


def _seconds(value: float | None) -> str:
    return "failed" if value == float("inf") else duration_text(value)


def _measured(
    interval: ConfidenceInterval | None, text: Callable[[float | None], str] = _seconds
) -> str:
    return _NO if interval is None else text(interval.value)


def _between(
    interval: ConfidenceInterval | None, text: Callable[[float | None], str] = _seconds
) -> str:
    """Return the bounds as text; a ratio's are always known."""
    if interval is None or (text is _seconds and not interval.is_known):
        return _NO
    return f"{text(interval.low)} to {text(interval.high)}"


def _needed(interval: ConfidenceInterval | None) -> str:
    if interval is None or interval.is_known or not interval.needed:
        return ""
    return f"an interval takes about {rounded_up(interval.needed):,} requests"


def _unit(judgement: Judgement) -> Callable[[float | None], str]:
    """Return the formatter of an objective's values: of errors, or of a latency."""
    return percent_text if judgement.objective.quantile is None else _seconds


def _verdict(verdict: ObjectiveVerdict | None) -> Text:
    return Text(_NO) if verdict is None else Text(_WORDS[verdict], style=_STYLES[verdict])


def _step_verdict(result: LoadResult) -> Text:
    slow = Text(" (generator)" if result.limited_by else "", style="yellow")
    return _verdict(result.verdict) + slow


_LATENCY_COLUMNS: Final[dict[str, Column]] = {
    "latency": lambda row: quantile_name(row[0]),
    "measured": lambda row: _measured(row[1]),
    "95 % interval": lambda row: _between(row[1]),
    "": lambda row: _needed(row[1]),
}
_OBJECTIVE_COLUMNS: Final[dict[str, Column]] = {
    "objective": lambda row: f"{row.objective.name} <= {_unit(row)(row.objective.limit)}",
    "verdict": lambda row: _verdict(row.verdict),
    "measured": lambda row: _measured(row.measured, _unit(row)),
    "95 % interval": lambda row: _between(row.measured, _unit(row)),
    "": lambda row: row.reason,
}
_STEP_COLUMNS: Final[dict[str, Column]] = {
    "asked/s": lambda result: f"{result.plan.rate_per_s:,.1f}",
    "achieved/s": lambda result: f"{result.achieved_per_s:,.1f}",
    "p50": lambda result: _measured(result.latency_s[0.5]),
    "p99": lambda result: _measured(result.latency_s[0.99]),
    "95 % interval": lambda result: _between(result.latency_s[0.99]),
    "errors": lambda result: _measured(result.error_ratio, percent_text),
    "objectives": _step_verdict,
}


def steps_report(results: Sequence[LoadResult]) -> list[Text]:
    """Return several rates as one table, and the highest that met all objectives."""
    parts = [rows_text(results, _STEP_COLUMNS)]
    best = highest_met(results)
    if any(result.judgements for result in results):
        text = "none of these rates met all objectives"
        if best is not None:
            text = f"the highest rate that met all objectives: {best:g} /s"
        parts += [Text(), Text(text)]
    return parts


def highest_met(results: Sequence[LoadResult]) -> float | None:
    """Return the highest rate that met all objectives; None without any."""
    met = [result.plan.rate_per_s for result in results if result.verdict is ObjectiveVerdict.MET]
    return max(met, default=None)


def document(result: LoadResult, url: str, model: str) -> dict[str, Any]:
    """Return one run as a JSON document; seconds and ratios, null for unknown values."""
    plan, lag = result.plan, result.lag
    latencies = {quantile_name(quantile): of for quantile, of in result.latency_s.items()}
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
        "latency_s": {name: _value(interval) for name, interval in latencies.items()},
        "latency_ci_s": {name: _pair(interval) for name, interval in latencies.items()},
        "requests_needed": {
            name: interval.needed
            for name, interval in latencies.items()
            if interval is not None and interval.needed
        },
        "lag_s": lag and {"p50": lag.p50_s, "p99": lag.p99_s, "max": lag.max_s},
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
    """Return several rates as a JSON document."""
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


def _value(interval: ConfidenceInterval | None) -> float | None:
    return None if interval is None else _finite(interval.value)


def _pair(interval: ConfidenceInterval | None) -> list[float | None] | None:
    """Return both bounds, or null if one is unknown."""
    if interval is None or not interval.is_known:
        return None
    return [_finite(interval.low), _finite(interval.high)]


def _finite(value: float | None) -> float | None:
    return None if value is None or value == float("inf") else value
