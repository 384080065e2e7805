"""Export of an endpoint as an Argo Rollout, analysed by Prometheus queries.

https://argo-rollouts.readthedocs.io/en/stable/features/specification/
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from headrace.control.kubernetes.manifests import bounds_of, hpa_of
from headrace.control.kubernetes.pods import HTTP_PORT
from headrace.core.spec.kubernetes import USUAL_PROMETHEUS, Autoscaler
from headrace.core.spec.rollout import (
    AbSpec,
    BlueGreenSpec,
    CanarySpec,
    CanaryStepSpec,
    LatencySpec,
    ShadowSpec,
    error_threshold,
)
from headrace.deploy.export import (
    NO_AUTHENTICATION,
    Body,
    ClusterTarget,
    Export,
    ExportDocument,
    finish,
    implied_access,
    labels,
    manifest,
    object_name,
)
from headrace.deploy.facts import Endpoint, ExportFacts, Version
from headrace.deploy.features import ExportNote, ExportTarget, Loss
from headrace.deploy.gateway_api import GatewayApiOptions, http_rules, route
from headrace.deploy.pods import (
    PodOptions,
    image_losses,
    model_losses,
    service,
    workload,
)

Rollout = CanarySpec | BlueGreenSpec | AbSpec | ShadowSpec
WINDOW: Final = "5m"
_SLO_QUANTILE: Final = 0.99
_BROKEN: Final = "BACKEND|REJECTED"
_REFUSED: Final = "OTHER"
_ANY_FAILURE: Final = "BACKEND|REJECTED|OTHER"  # who left did not judge it


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricCheck:
    """A limit on one number."""

    name: str
    query: str
    """PromQL that returns one sample or none."""
    max_value: float


def checks_of(
    endpoint: Endpoint, version: Version, rollout: Rollout, pods: str
) -> Iterator[MetricCheck]:
    """Yield the checks that judge `version` in its rollout, on the metrics of the replicas.

    Args:
        pods: Matchers of the pods of all versions of the endpoint.
    """
    model = f'{pods},model="{endpoint.name}"'
    new, old = f'{model},version="{version.number}"', f'{model},version!="{version.number}"'
    metrics, slo = rollout.metrics, endpoint.spec.slo
    enough = f"{_count(new, 'increase')} >= {rollout.min_samples}"

    def check(name: str, query: str, max_value: float) -> MetricCheck:
        return MetricCheck(name=name, query=f"({query}) and on () ({enough})", max_value=max_value)

    if metrics.errors is not None:
        yield check("errors", f"{_errors(new)} - ({_errors(old)})", metrics.errors.margin)
        threshold = error_threshold(rollout, slo)
        if threshold is not None:
            yield check("errors-limit", _errors(new), threshold)
    if metrics.rejections is not None:
        difference = f"{_share(new, _REFUSED)} - ({_share(old, _REFUSED)})"
        yield check("rejections", difference, metrics.rejections.margin)
    latency = metrics.latency
    if latency is not None:
        yield check("latency", _slower(new, old, latency), 0.0)
        if latency.max_s is not None:
            yield check("latency-limit", _quantile(new, latency.quantile), latency.max_s)
        elif slo is not None and slo.latency_s is not None:
            yield check("latency-limit", _quantile(new, _SLO_QUANTILE), slo.latency_s)


def _failed(labels: str, reasons: str, function: str) -> str:
    # The series does not exist before the first request.
    series = f'nv_inference_request_failure{{{labels},reason=~"{reasons}"}}'
    return f"(sum({function}({series}[{WINDOW}])) or vector(0))"


def _count(labels: str, function: str) -> str:
    successes = f"sum({function}(nv_inference_request_success{{{labels}}}[{WINDOW}]))"
    return f"(({successes} or vector(0)) + {_failed(labels, _ANY_FAILURE, function)})"


def _share(labels: str, reasons: str) -> str:
    return f"{_failed(labels, reasons, 'rate')} / {_count(labels, 'rate')}"


def _errors(labels: str) -> str:
    return _share(labels, _BROKEN)


def _quantile(labels: str, quantile: float) -> str:
    buckets = f"sum by (le) (rate(headrace_request_seconds_bucket{{{labels}}}[{WINDOW}]))"
    return f"histogram_quantile({quantile:g}, {buckets})"


def _slower(new: str, old: str, latency: LatencySpec) -> str:
    """Return the excess of the new version over both tolerances; the larger tolerance counts."""
    new_quantile, old_quantile = _quantile(new, latency.quantile), _quantile(old, latency.quantile)
    by_ratio = f"{new_quantile} - {latency.margin_ratio:g} * {old_quantile}"
    by_time = f"{new_quantile} - {old_quantile} - {latency.margin_s:g}"
    return (
        f'min(label_replace({by_ratio}, "above", "ratio", "", "") or '
        f'label_replace({by_time}, "above", "time", "", ""))'
    )


_API: Final = "argoproj.io/v1alpha1"
_PLUGIN: Final = "argoproj-labs/gatewayAPI"
_INTERVAL_S: Final = 60
_CHECKS: Final = 5
_FULL: Final = 100
_POD_PREFIX: Final = 57
"""Characters of a Rollout's name with which the names of all its pods begin, at least."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ArgoOptions:
    """Options of the target."""

    prometheus: str = USUAL_PROMETHEUS
    """Address of Prometheus as seen from the cluster."""
    pods: PodOptions = field(default_factory=PodOptions)
    routes: GatewayApiOptions = field(default_factory=GatewayApiOptions)


def argo_rollouts(facts: ExportFacts, target: ClusterTarget, options: ArgoOptions) -> Export:
    """Export each endpoint as a Rollout with its Services, route, settings and analysis.

    Raises:
        NotExpressibleError: Argo Rollouts cannot express the spec.
    """
    documents = [
        document
        for endpoint in facts.endpoints
        for document in _documents(facts, endpoint, target, options)
    ]
    losses = [
        *implied_access(facts, *NO_AUTHENTICATION),
        *model_losses(facts, fetched=True),
        *image_losses(facts, options.pods),
        *(loss for e in facts.endpoints for loss in _losses(e)),
    ]
    notes = [
        ExportNote(
            "paths with a version number go through the split, and the other version responds 404",
            endpoint.location,
        )
        for endpoint in facts.endpoints
    ]
    if not options.pods.artifacts:
        text = "models: without --artifacts URL, pods cannot fetch them"
        notes.append(ExportNote(text))
    return finish(ExportTarget.ARGO_ROLLOUTS, facts, documents, losses=losses, notes=notes)


def _losses(endpoint: Endpoint) -> Iterator[Loss]:
    """Yield losses of rollout strategies that Argo does not have."""
    rollout = endpoint.spec.rollout
    if rollout is not None and rollout.strategy in {"ab", "shadow"}:
        yield Loss(
            f"{endpoint.location}.rollout.strategy",
            f"has no {rollout.strategy!r} strategy with sticky callers or comparison of "
            "predictions",
            "let Headrace roll it out, or use `canary` or `blue-green`",
        )
    if endpoint.spec.versions is None and len(endpoint.split) > 1:
        yield Loss(
            endpoint.location,
            f"starts its own rollout, and {endpoint.name!r} has an active one",
            "wait until it is over, or export routes (`gateway-api`)",
        )


def _documents(
    facts: ExportFacts, endpoint: Endpoint, location: ClusterTarget, options: ArgoOptions
) -> Iterator[ExportDocument]:
    version = endpoint.newest
    name = object_name(location.instance, endpoint.name)
    stable = object_name(location.instance, endpoint.name, "stable")
    canary = object_name(location.instance, endpoint.name, "canary")
    pods = workload(location, facts, endpoint, version, options.pods)
    named = labels(location.instance, "replica", endpoint=endpoint.name)
    selector = {key: named[key] for key in _SELECTED}
    yield pods.settings
    for service_name in (stable, canary):
        yield service(location, service_name, selector, named)
    rollout = endpoint.spec.rollout
    # The route whose weights Argo changes; all traffic initially goes to the stable Service.
    split: list[Body] = [{"name": stable, "port": HTTP_PORT, "weight": 100}]
    if not isinstance(rollout, BlueGreenSpec):
        split.append({"name": canary, "port": HTTP_PORT, "weight": 0})
    of_gateway = labels(location.instance, "gateway", endpoint=endpoint.name)
    metadata = location.metadata(name, of_gateway)
    yield route("HTTPRoute", metadata, options.routes, http_rules(endpoint, split, {}))
    matching = f'namespace="{location.namespace}",pod=~"{name[:_POD_PREFIX]}.*"'
    checks = () if rollout is None else tuple(checks_of(endpoint, version, rollout, matching))
    metadata = location.metadata(name, named)
    budget: Body = {
        "maxUnavailable": 1,
        "unhealthyPodEvictionPolicy": "AlwaysAllow",
        "selector": {"matchLabels": selector},
    }
    yield manifest("policy/v1", "PodDisruptionBudget", metadata, spec=budget)
    if rollout is not None and checks:
        metrics = _metrics(rollout, options.prometheus, checks)
        yield manifest(_API, "AnalysisTemplate", metadata, spec={"metrics": metrics})
        monitor: Body = {
            "selector": {"matchLabels": selector},
            "scrapeClassicHistograms": True,
            "podMetricsEndpoints": [{"port": "metrics", "path": "/metrics"}],
        }
        yield manifest("monitoring.coreos.com/v1", "PodMonitor", metadata, spec=monitor)
    scaler = _hpa(facts, endpoint, location, name)
    spec: Body = {
        **({} if scaler else {"replicas": version.replicas}),
        "selector": {"matchLabels": selector},
        "template": pods.template,
        "strategy": _strategy(endpoint, location, name, stable, canary, judged=bool(checks)),
    }
    if rollout is not None:
        spec["progressDeadlineSeconds"] = round(rollout.ready_timeout_s)
        spec["progressDeadlineAbort"] = True
    yield manifest(_API, "Rollout", metadata, spec=spec)
    if scaler is not None:
        yield ExportDocument(name=f"horizontalpodautoscaler-{name}", body=scaler)


def _hpa(facts: ExportFacts, endpoint: Endpoint, target: ClusterTarget, name: str) -> Body | None:
    """Return the HPA of the Rollout, as the driver creates it; None without scaling by HPA."""
    scaling = endpoint.spec.autoscale
    is_by_hpa = facts.spec.kubernetes.autoscaler == Autoscaler.HPA
    if scaling is None or scaling.target_in_flight is None or not is_by_hpa:
        return None
    min_replicas, max_replicas = bounds_of(scaling, _FULL)
    metadata = target.metadata(name, labels(target.instance, "replica", endpoint=endpoint.name))
    rollout: Body = {"apiVersion": _API, "kind": "Rollout", "name": name}
    return hpa_of(
        metadata, scaling, min_replicas, max_replicas, target=scaling.target_in_flight, of=rollout
    )


_SELECTED: Final = (
    "app.kubernetes.io/name",
    "app.kubernetes.io/instance",
    "headrace.dev/endpoint",
)


def _strategy(
    endpoint: Endpoint,
    location: ClusterTarget,
    name: str,
    stable: str,
    canary: str,
    *,
    judged: bool,
) -> Body:
    rollout = endpoint.spec.rollout
    if isinstance(rollout, BlueGreenSpec):
        strategy: Body = {
            "activeService": stable,
            "previewService": canary,
            "autoPromotionEnabled": not rollout.approval,
            "scaleDownDelaySeconds": round(rollout.keep_s),
        }
        if rollout.preview_s and not rollout.approval:
            strategy["autoPromotionSeconds"] = max(round(rollout.preview_s), 1)
        if judged:
            strategy["postPromotionAnalysis"] = {"templates": [{"templateName": name}]}
        return {"blueGreen": strategy}
    routing = {"plugins": {_PLUGIN: {"httpRoute": name, "namespace": location.namespace}}}
    strategy = {
        "stableService": stable,
        "canaryService": canary,
        "maxUnavailable": 0,
        "trafficRouting": routing,
    }
    if isinstance(rollout, CanarySpec):
        steps = rollout.steps
        strategy["steps"] = [body for step in steps for body in _steps(step, name, judged=judged)]
    return {"canary": strategy}


def _steps(step: CanaryStepSpec, template: str, *, judged: bool) -> Iterator[Body]:
    """Yield one step of the plan: its weight, its duration, and its condition."""
    yield {"setWeight": step.weight}
    if step.pause_s:
        yield {"pause": {"duration": f"{max(round(step.pause_s), 1)}s"}}
    if step.until == "verdict" and judged:
        yield {"analysis": {"templates": [{"templateName": template}]}}
    if step.until == "approval":
        yield {"pause": {}}


def _metrics(rollout: Rollout, prometheus: str, checks: tuple[MetricCheck, ...]) -> list[Body]:
    return [
        {
            "name": check.name,
            "initialDelay": f"{max(round(rollout.warmup_s), 0) + _INTERVAL_S}s",
            "interval": f"{_INTERVAL_S}s",
            "count": _CHECKS,
            # No sample means too few requests. Neither condition holds then, so the analysis is
            # inconclusive: the rollout waits for a person after the last check.
            "successCondition": f"len(result) > 0 && result[0] <= {check.max_value:g}",
            "failureCondition": f"len(result) > 0 && result[0] > {check.max_value:g}",
            "failureLimit": 0,
            "inconclusiveLimit": _CHECKS - 1,
            "provider": {"prometheus": {"address": prometheus, "query": check.query}},
        }
        for check in checks
    ]
