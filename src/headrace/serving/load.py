"""How busy is each model of this process? Running totals, which the control plane often asks for.

One short document for all models: a pool may host hundreds, and histograms are long.
"""

import time
from collections.abc import Iterable
from dataclasses import replace

import msgspec

from headrace.observe.row_checks import BatchingReport, report_of
from headrace.serving.exchange import Exchange
from headrace.serving.report import ModelLoad
from headrace.serving.state import ReplicaState


def send_loads(exchange: Exchange, states: Iterable[ReplicaState]) -> None:
    """GET /internal/load: a `ModelLoad` for each model."""
    exchange.send_json(msgspec.json.encode([model_load(state) for state in states]))


def model_load(state: ReplicaState) -> ModelLoad:
    """The load of one model, from what is counted anyway. Called on the event loop's thread."""
    now = time.monotonic()
    engine = state.served.engine if state.served else None
    statistics, phases = state.statistics, state.phases
    ended_s = (statistics.success.ns + statistics.fail.ns) / 1e9
    return ModelLoad(
        model=state.name,
        version=state.version,
        since=state.since,
        at=now,
        batches=phases.batch_rows.count,
        rows=int(phases.batch_rows.sum),
        waited=phases.queue_wait.count,
        queue_s=phases.queue_wait.sum,
        in_flight_s=ended_s + (engine.in_flight_s(now) if engine else 0.0),
        batching=_batching_report(state),
    )


def _batching_report(state: ReplicaState) -> BatchingReport | None:
    if state.described is None:
        return None
    declared = state.settings.batching.rows_independent is True
    report = replace(report_of(state.described.signature), declared=declared)
    checks = state.row_checks
    if checks is None:
        return report
    counts = {str(outcome): count for outcome, count in checks.outcomes.items()}
    return replace(report, checks=counts, difference=checks.difference)
