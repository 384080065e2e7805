"""How would Prometheus judge a new version? A rollout's metrics as queries and thresholds.

Headrace itself tests sequentially; other tools compare a number with a threshold. The numbers here
are differences to the other versions of the endpoint, from the replicas' own metrics, and there
are none while the new version had too few requests.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from headrace.core.spec_rollout import (
    AbSpec,
    BlueGreenSpec,
    CanarySpec,
    LatencySpec,
    ShadowSpec,
    error_threshold,
)
from headrace.deploy.facts import Endpoint, Version

Rollout = CanarySpec | BlueGreenSpec | AbSpec | ShadowSpec
WINDOW: Final = "5m"
_SLO_QUANTILE: Final = 0.99
_BROKEN: Final = "BACKEND|REJECTED"
_REFUSED: Final = "OTHER"
_ANY_FAILURE: Final = "BACKEND|REJECTED|OTHER"  # who left did not judge it


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One number that may be `max_value` at most. `query`: PromQL, one sample or none."""

    name: str
    query: str
    max_value: float


def checks_of(endpoint: Endpoint, version: Version, rollout: Rollout) -> tuple[Check, ...]:
    """What judges `version` in its rollout, by the metrics that replicas have."""
    enough = f"{_count(_of(endpoint, version), 'increase')} >= {rollout.min_samples}"
    return tuple(
        Check(
            name=check.name,
            query=f"({check.query}) and on () ({enough})",
            max_value=check.max_value,
        )
        for check in _checks(endpoint, version, rollout)
    )


def _checks(endpoint: Endpoint, version: Version, rollout: Rollout) -> Iterator[Check]:
    new, old = _of(endpoint, version), _of(endpoint, version, other=True)
    metrics = rollout.metrics
    if metrics.errors is not None:
        difference = f"{_errors(new)} - ({_errors(old)})"
        yield Check(name="errors", query=difference, max_value=metrics.errors.margin)
        most = error_threshold(rollout, endpoint.spec.slo)
        if most is not None:
            yield Check(name="errors-limit", query=_errors(new), max_value=most)
    if metrics.rejections is not None:
        difference = f"{_share(new, _REFUSED)} - ({_share(old, _REFUSED)})"
        yield Check(name="rejections", query=difference, max_value=metrics.rejections.margin)
    latency = metrics.latency
    if latency is not None:
        yield Check(name="latency", query=_slower(new, old, latency), max_value=0.0)
        if latency.max_s is not None:
            query = _quantile(new, latency.quantile)
            yield Check(name="latency-limit", query=query, max_value=latency.max_s)
        elif endpoint.spec.slo is not None and endpoint.spec.slo.latency_s is not None:
            query = _quantile(new, _SLO_QUANTILE)
            yield Check(name="latency-limit", query=query, max_value=endpoint.spec.slo.latency_s)


def _of(endpoint: Endpoint, version: Version, *, other: bool = False) -> str:
    """The samples of a version, or of the endpoint's other ones."""
    sign = "!=" if other else "="
    return f'model="{endpoint.name}",version{sign}"{version.number}"'


def _failed(labels: str, reasons: str, function: str) -> str:
    # There is no such series before the first request.
    series = f'nv_inference_request_failure{{{labels},reason=~"{reasons}"}}'
    return f"(sum({function}({series}[{WINDOW}])) or vector(0))"


def _count(labels: str, function: str) -> str:
    done = f"sum({function}(nv_inference_request_success{{{labels}}}[{WINDOW}]))"
    return f"(({done} or vector(0)) + {_failed(labels, _ANY_FAILURE, function)})"


def _share(labels: str, reasons: str) -> str:
    return f"{_failed(labels, reasons, 'rate')} / {_count(labels, 'rate')}"


def _errors(labels: str) -> str:
    return _share(labels, _BROKEN)


def _quantile(labels: str, quantile: float) -> str:
    buckets = f"sum by (le) (rate(headrace_request_seconds_bucket{{{labels}}}[{WINDOW}]))"
    return f"histogram_quantile({quantile:g}, {buckets})"


def _slower(new: str, old: str, latency: LatencySpec) -> str:
    """How far the new version is above both tolerances; the larger of them is what counts."""
    mine, theirs = _quantile(new, latency.quantile), _quantile(old, latency.quantile)
    by_ratio = f"{mine} - {latency.margin_ratio:g} * {theirs}"
    by_time = f"{mine} - {theirs} - {latency.margin_s:g}"
    return (
        f'min(label_replace({by_ratio}, "above", "ratio", "", "") or '
        f'label_replace({by_time}, "above", "time", "", ""))'
    )
