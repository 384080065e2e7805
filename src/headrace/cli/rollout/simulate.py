"""`headrace rollout simulate`: decisions and errors of simulated rollouts."""

# ruff: noqa: PLC0415  # plots need an extra

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Final

import numpy as np
import typer
from msgspec.structs import replace
from rich.text import Text

from headrace.cli.base.options import Json, option
from headrace.cli.base.output import Column, progress_bar, rows_text, show, table, write_json
from headrace.core.spec.rollout import (
    CanarySpec,
    LatencySpec,
    MetricsSpec,
    OutputTokensSpec,
    TimePerOutputTokenSpec,
)
from headrace.core.text import duration_text
from headrace.rollout.simulate import Power, Result, changes, power_table
from headrace.rollout.simulate import simulate as run
from headrace.rollout.simulated_traffic import SimulatedBaseline, SimulatedCandidate

_BAR: Final = 20
_NARROW: Final = 10


def result_document(result: Result, *, is_same: bool) -> dict[str, object]:
    """Return one candidate as JSON. `is_same`: every decision against it is a false alarm."""
    document: dict[str, object] = {
        "candidate": result.candidate,
        "rolled_back_ratio": result.rolled_back,
        "promoted_ratio": result.promoted,
        "undecided_ratio": result.undecided,
        "median_s": result.median_s,
        "rolled_back_by": result.by_metric,
        "ever_rolled_back_ratio": len(result.ever_rolled_back_s) / result.runs,
        "naive_ever_rejected_ratio": len(result.naive_s) / result.runs,
        "naive_fixed_horizon_ratio": result.naive_at_the_end / result.runs,
    }
    if is_same:
        document["false_decision_ratio"] = document["ever_rolled_back_ratio"]
        document["naive_false_decision_ratio"] = document["naive_ever_rejected_ratio"]
    return document


def power_document(row: Power) -> dict[str, object]:
    """Return one row of the power table as JSON."""
    return {
        "change": row.result.candidate,
        "metric": row.expected.metric,
        "expected_requests_until_worse": row.expected.until_worse,
        "expected_requests_until_tolerated": row.expected.until_tolerated,
        "expected_s": row.expected_s,
        **result_document(row.result, is_same=False),
    }


def result_text(result: Result, *, alpha: float, is_same: bool) -> list[Text]:
    """Return the result of one candidate as text."""
    anytime, fixed_horizon = (
        len(times) / result.runs for times in (result.ever_rolled_back_s, result.naive_s)
    )
    rows = [
        ("promoted", _bar_of(result.promoted, "green")),
        ("rolled back", _bar_of(result.rolled_back, "red")),
        ("undecided at the end", _bar_of(result.undecided, "yellow")),
        ("median time to decision", Text(duration_text(result.median_s))),
    ]
    if is_same:
        rows = [
            *rows,
            (f"false rollbacks (limit {100 * alpha:g} %)", _bar_of(anytime, "red")),
            ("z test of errors, repeated every second", _bar_of(fixed_horizon, "red")),
            (
                "z test of errors, once at the end",
                _bar_of(result.naive_at_the_end / result.runs, "red"),
            ),
        ]
    first = f"{result.runs:,} rollouts, candidate: {result.candidate}"
    return [Text(first, style="bold"), table(rows)]


def power_text(rows: list[Power], duration_s: int) -> list[Text]:
    """Return the power table as text."""
    columns: dict[str, Column] = {
        "change": lambda row: row.result.candidate,
        "requests to reject": lambda row: _number(row.expected.until_worse),
        "requests to accept": lambda row: _number(row.expected.until_tolerated),
        "expected": lambda row: duration_text(row.expected_s),
        "median decision": lambda row: duration_text(row.result.median_s),
        "rolled back": lambda row: _bar_of(row.result.rolled_back, "red", width=_NARROW),
        "promoted": lambda row: _bar_of(row.result.promoted, "green", width=_NARROW),
    }
    note = (
        f"expected: for the changed metric only, in requests to both versions at this rate; "
        f"the last three columns are simulated over {duration_s:,} s"
    )
    return [rows_text(rows, columns), Text(note, style="dim")]


def _bar_of(ratio: float, style: str, *, width: int = _BAR) -> Text:
    full = round(width * ratio)
    return Text.assemble(
        ("█" * full, style), ("░" * (width - full), "dim"), f" {100 * ratio:5.1f} %"
    )


def _number(requests: float | None) -> str:
    return "never" if requests is None else f"{float(f'{requests:.2g}'):,.0f}"


class Scenario(StrEnum):
    """Simulated candidate."""

    AA = "aa"
    BURSTS = "bursts"
    ERRORS = "errors"
    LATENCY = "latency"
    PREDICTIONS = "predictions"
    TIME_PER_OUTPUT_TOKEN = "time_per_output_token"  # noqa: S105  # a metric
    OUTPUT_TOKENS = "output_tokens"
    POWER = "power"


_SAME: Final = {Scenario.AA, Scenario.BURSTS}
_STREAMS: Final = {Scenario.TIME_PER_OUTPUT_TOKEN, Scenario.OUTPUT_TOKENS}
_RUNS: Final = {
    Scenario.AA: 2000,
    Scenario.BURSTS: 2000,
    Scenario.POWER: 100,
    **dict.fromkeys(_STREAMS, 100),
}
_DURATION_S: Final = {Scenario.POWER: 1800}
_EFFECTS: Final = {
    Scenario.ERRORS: (0.05, "more_errors", "errors {percent:g} points higher"),
    Scenario.LATENCY: (2.0, "times_slower", "latency times {size:g}"),
    Scenario.PREDICTIONS: (0.2, "moved_answers", "{percent:g} % of answers moved"),
    Scenario.TIME_PER_OUTPUT_TOKEN: (
        1.3,
        "times_slower_per_token",
        "time per output token times {size:g}",
    ),
    Scenario.OUTPUT_TOKENS: (2.0, "times_longer", "output tokens times {size:g}"),
}
"""Usual size of the change of the scenario's metric, its field and its name."""


def simulate(
    *,
    scenario: Annotated[
        Scenario,
        option(
            "aa: both versions are equal. bursts: equal, and both stall occasionally. errors, "
            "latency, predictions: the new version differs by --effect. time_per_output_token, "
            "output_tokens: the same of a language model. power: a table of changes."
        ),
    ] = Scenario.AA,
    runs: Annotated[
        int | None,
        option(
            "Number of simulated rollouts per change.",
            min=1,
            max=100_000,
            shown="2000 for aa and bursts, 100 for power and tokens, else 500",
        ),
    ] = None,
    alpha: Annotated[
        float,
        option(
            "Maximum probability that a version within the margins is rolled back, or one "
            "beyond them promoted.",
            min=1e-9,
            max=0.5,
        ),
    ] = 0.05,
    effect: Annotated[
        float | None,
        option(
            "errors: added to the error ratio. latency, time_per_output_token, output_tokens: a "
            "factor. predictions: share of answers that change their class.",
            min=0.0,
            shown="0.05, 2, 1.3, 2, 0.2",
        ),
    ] = None,
    margin: Annotated[
        float | None,
        option(
            "Tolerated difference, in the unit of --effect.",
            min=0.0,
            shown="as in a spec: 0.005, 1.25, 1.1, 0.1, 0.1",
        ),
    ] = None,
    rate: Annotated[float, option("Requests per second.", min=0.1, max=10_000.0)] = 50.0,
    weight: Annotated[int, option("Weight of the new version in percent.", min=1, max=99)] = 10,
    steps: Annotated[
        str,
        option(
            "Steps instead of one weight, each held until the verdict: 5,25,50.",
            shown="one constant weight",
        ),
    ] = "",
    duration_s: Annotated[
        int | None,
        option(
            "Duration of each rollout in seconds, evaluated every second.",
            min=1,
            max=1_000_000,
            shown="600, and 1800 for power",
        ),
    ] = None,
    base_errors: Annotated[
        float, option("Error ratio of the old version.", min=0.0, max=1.0)
    ] = 0.01,
    quantile: Annotated[
        float, option("Coefficient of variation of the latency.", min=0.01, max=0.999)
    ] = 0.99,
    min_samples: Annotated[int, option("Requests per version before a promotion.", min=1)] = 200,
    steady: Annotated[
        bool | None,
        option(
            "Whether traffic and base rates are constant, or vary with drift and incidents.",
            "--steady/--moving",
            shown="moving; steady for power",
        ),
    ] = None,
    seed: Annotated[int, option("Random seed.", min=0)] = 1,
    json: Json = False,
    plot: Annotated[
        Path | None, option("Write a plot to this file (.png, .svg, .pdf).", dir_okay=False)
    ] = None,
) -> None:
    """Simulate rollout decisions: false alarms, power and time to decision.

    Errors, rejections, latency and predictions are tested together (of a language model its tokens
    too), and compared with a repeated textbook z test.

    For example:

        headrace rollout simulate --scenario aa --runs 2000 --alpha 0.05

        headrace rollout simulate --scenario errors --effect 0.02 --rate 20 --steps 5,25,50
    """
    if plot is not None:
        from headrace.cli.base.plots import check_plot

        check_plot(plot)
    world = SimulatedBaseline(
        requests_per_s=rate,
        weight=weight / 100,
        errors=base_errors,
        moves=scenario is not Scenario.POWER if steady is None else not steady,
        bursts=scenario is Scenario.BURSTS,
        streams=scenario in _STREAMS,
    )
    metrics = _metrics(scenario, margin, quantile)
    settings = CanarySpec(alpha=alpha, min_samples=min_samples, metrics=metrics)
    runs = _RUNS.get(scenario, 500) if runs is None else runs
    duration_s = _DURATION_S.get(scenario, 600) if duration_s is None else duration_s
    candidates = _candidates(scenario, world, effect)
    weights = [part.strip() for part in steps.split(",") if part.strip()]
    if any(not text.isdecimal() or not 1 <= int(text) <= 99 for text in weights):  # noqa: PLR2004  # percent
        msg = f"'{steps}' is not a list of weights from 1 to 99; write 5,25,50"
        raise typer.BadParameter(msg, param_hint="--steps")
    shares = [int(text) / 100 for text in weights]
    with progress_bar(f"{runs * len(candidates):,} rollouts of {duration_s:,} s", 1.0) as update:
        results = run(
            world,
            candidates,
            settings,
            runs=runs,
            duration_s=duration_s,
            rng=np.random.default_rng(seed),
            steps=shares,
            progress=lambda done: update(completed=done),
        )
    head = {
        "scenario": scenario.value,
        "runs": runs,
        "alpha": alpha,
        "requests_per_s": rate,
        "weight": weight,
        "steps": [round(100 * share) for share in shares],
        "duration_s": duration_s,
        "base_errors": base_errors,
        "moving": world.moves,
        "seed": seed,
    }
    if scenario is Scenario.POWER:
        rows = power_table(world, settings, results)
        document: dict[str, object] = {**head, "rows": [power_document(row) for row in rows]}
        text = power_text(rows, duration_s)
    else:
        is_same = scenario in _SAME
        document = {**head, **result_document(results[0], is_same=is_same)}
        text = result_text(results[0], alpha=alpha, is_same=is_same)
    if plot is not None:
        from headrace.cli.base.plots import draw_rollouts

        draw_rollouts(plot, results, alpha=alpha, duration_s=duration_s)
    if json:
        write_json(document)
    else:
        show(*text)


def _metrics(scenario: Scenario, margin: float | None, quantile: float) -> MetricsSpec:
    metrics = MetricsSpec(
        latency=LatencySpec(quantile=quantile),
        time_per_output_token=TimePerOutputTokenSpec() if scenario in _STREAMS else None,
        output_tokens=OutputTokensSpec() if scenario in _STREAMS else None,
    )
    if margin is None:
        return metrics
    if scenario not in _EFFECTS:
        msg = f"the scenario {scenario} has several metrics; it takes the spec's margins"
        raise typer.BadParameter(msg, param_hint="--margin")
    judged = getattr(metrics, scenario)
    is_factor = hasattr(judged, "margin_ratio")
    if is_factor and margin < 1.0:
        msg = f"{margin:g} is below 1; the margin of a latency is a factor of at least 1"
        raise typer.BadParameter(msg, param_hint="--margin")
    judged = replace(judged, **{"margin_ratio" if is_factor else "margin": margin})
    return replace(metrics, **{scenario: judged})


def _candidates(
    scenario: Scenario, world: SimulatedBaseline, effect: float | None
) -> list[SimulatedCandidate]:
    if scenario not in _EFFECTS:
        if effect is not None:
            msg = f"the scenario {scenario} has no effect to set"
            raise typer.BadParameter(msg, param_hint="--effect")
        is_power = scenario is Scenario.POWER
        return [c for _, c in changes(world)] if is_power else [SimulatedCandidate()]
    usual, field, text = _EFFECTS[scenario]
    size = usual if effect is None else effect
    if field.startswith("times") and size <= 0.0:
        msg = f"{scenario} cannot be multiplied by 0; use 1 for no change"
        raise typer.BadParameter(msg, param_hint="--effect")
    name = text.format(size=size, percent=100 * size)
    return [SimulatedCandidate(name=name, **{field: size})]
