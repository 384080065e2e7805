"""An endpoint as a Canary of Flagger's, for clusters where Flagger shifts the traffic.

https://docs.flagger.app/usage/how-it-works
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from headrace.control.kubernetes.pods import HTTP_PORT
from headrace.core.kubernetes_settings import USUAL_PROMETHEUS
from headrace.core.rollout_settings import CanaryStep
from headrace.core.spec_rollout import BlueGreenSpec, CanarySpec
from headrace.deploy.argo_rollouts import rollout_losses, rollout_notes
from headrace.deploy.export import (
    ASKS_NOBODY,
    Body,
    Document,
    Export,
    Place,
    finish,
    implied_access,
)
from headrace.deploy.facts import Endpoint, Facts
from headrace.deploy.features import Target
from headrace.deploy.gateway_api import GatewayApiOptions, parent_refs
from headrace.deploy.hpa import API, KIND, hpa
from headrace.deploy.losses import Loss
from headrace.deploy.names import labels, object_name
from headrace.deploy.pods import (
    PodOptions,
    model_losses,
    workload,
)
from headrace.deploy.queries import Check, checks_of

_API: Final = "flagger.app/v1beta1"
_INTERVAL_S: Final = 60
_FAILED_CHECKS: Final = 10
_SELECTED: Final = "app"
_LONGEST: Final = 63 - len("-primary")


@dataclass(frozen=True, slots=True, kw_only=True)
class FlaggerOptions:
    """`prometheus`: its address, as Flagger reaches it."""

    prometheus: str = USUAL_PROMETHEUS
    pods: PodOptions = field(default_factory=PodOptions)
    routes: GatewayApiOptions = field(default_factory=GatewayApiOptions)


def flagger(facts: Facts, place: Place, options: FlaggerOptions) -> Export:
    """For each endpoint a Deployment, its settings, a Canary and its metrics.

    Raises:
        NotExpressibleError: The spec says what Flagger cannot.
    """
    documents = [
        document
        for endpoint in facts.endpoints
        for document in _documents(facts, endpoint, place, options)
    ]
    losses = [
        *implied_access(facts, *ASKS_NOBODY),
        *model_losses(facts, fetched=True),
        *(loss for e in facts.endpoints for loss in (*rollout_losses(e), *_losses(e))),
    ]
    return finish(
        Target.FLAGGER, facts, documents, losses=losses, notes=rollout_notes(facts, options.pods)
    )


def _documents(
    facts: Facts, endpoint: Endpoint, place: Place, options: FlaggerOptions
) -> Iterator[Document]:
    version = endpoint.newest
    # Flagger calls what it makes NAME-primary and NAME-canary.
    name = object_name(place.instance, endpoint.name, longest=_LONGEST)
    runs = workload(place, facts, endpoint, version, options.pods)
    named = labels(place.instance, "replica", endpoint=endpoint.name)
    yield Document(name=f"configmap-{runs.name}", body=runs.settings)
    # Flagger puts `-primary` behind the value of this label for the pods that it copies.
    runs.template["metadata"]["labels"][_SELECTED] = name
    scaler = hpa(place, facts, endpoint, _deployment_ref(name))
    deployment: Body = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": place.metadata(name, named),
        "spec": {
            **({} if scaler else {"replicas": version.replicas}),
            "selector": {"matchLabels": {_SELECTED: name}},
            "template": runs.template,
        },
    }
    yield Document(name=f"deployment-{name}", body=deployment)
    if scaler is not None:
        yield Document(name=f"horizontalpodautoscaler-{name}", body=scaler)
    checks = _checks(endpoint)
    for check in checks:
        template_name = object_name(place.instance, endpoint.name, check.name)
        body: Body = {
            "apiVersion": _API,
            "kind": "MetricTemplate",
            "metadata": place.metadata(template_name, named),
            "spec": {
                "provider": {"type": "prometheus", "address": options.prometheus},
                "query": check.query,
            },
        }
        yield Document(name=f"metrictemplate-{template_name}", body=body)
    canary: Body = {
        "apiVersion": _API,
        "kind": "Canary",
        "metadata": place.metadata(name, named),
        "spec": _canary(endpoint, place, options, name, checks),
    }
    if scaler is not None:
        # Flagger makes another for the copy that serves, and stops this one between rollouts.
        canary["spec"]["autoscalerRef"] = {"apiVersion": API, "kind": KIND, "name": name}
    yield Document(name=f"canary-{name}", body=canary)


def _deployment_ref(name: str) -> Body:
    return {"apiVersion": "apps/v1", "kind": "Deployment", "name": name}


def _canary(
    endpoint: Endpoint, place: Place, options: FlaggerOptions, name: str, checks: tuple[Check, ...]
) -> Body:
    rollout, timeout_s = endpoint.spec.rollout, endpoint.spec.timeout_s
    v1 = f"/v1/models/{endpoint.name}"
    found: Body = {
        "provider": "gatewayapi:v1",
        "targetRef": _deployment_ref(name),
        "service": {
            "port": HTTP_PORT,
            "targetPort": "http",
            "gatewayRefs": parent_refs(options.routes),
            "match": [
                {"uri": {"prefix": f"/v2/models/{endpoint.name}"}},
                {"uri": {"prefix": v1}},
                {"uri": {"exact": f"{v1}:predict"}},
            ],
            **({"hosts": list(options.routes.hostnames)} if options.routes.hostnames else {}),
            **({} if timeout_s is None else {"timeout": f"{math.ceil(timeout_s + 0.5)}s"}),
        },
        "analysis": {
            **_plan(endpoint),
            "threshold": _FAILED_CHECKS,
            "metrics": [_metric(endpoint, place, check) for check in checks],
        },
    }
    if rollout is None:
        found["skipAnalysis"] = True
    else:
        found["progressDeadlineSeconds"] = round(rollout.ready_timeout_s)
    return found


def _metric(endpoint: Endpoint, place: Place, check: Check) -> Body:
    template = object_name(place.instance, endpoint.name, check.name)
    return {
        "name": check.name,
        "templateRef": {"name": template, "namespace": place.namespace},
        "thresholdRange": {"max": check.max_value},
        "interval": f"{_INTERVAL_S}s",
    }


def _plan(endpoint: Endpoint) -> Body:
    rollout = endpoint.spec.rollout
    match rollout:
        case CanarySpec():
            steps = rollout.settings().steps
            return {"interval": _interval(steps), "stepWeights": [step.weight for step in steps]}
        case BlueGreenSpec():
            checks = max(math.ceil(rollout.preview_s / _INTERVAL_S), 1)
            return {"interval": f"{_INTERVAL_S}s", "iterations": checks}
        case _:
            return {"interval": f"{_INTERVAL_S}s", "iterations": 1}


def _interval(steps: tuple[CanaryStep, ...]) -> str:
    longest_s = max(step.pause_s for step in steps)
    return f"{max(math.ceil(longest_s), 1) if longest_s else _INTERVAL_S}s"


def _checks(endpoint: Endpoint) -> tuple[Check, ...]:
    rollout = endpoint.spec.rollout
    return () if rollout is None else checks_of(endpoint, endpoint.newest, rollout)


def _losses(endpoint: Endpoint) -> Iterator[Loss]:
    rollout, place = endpoint.spec.rollout, f"{endpoint.place}.rollout"
    if isinstance(rollout, BlueGreenSpec) and rollout.approval:
        yield Loss(
            f"{place}.approval",
            "asks a web service for approval, which is not ours",
            "leave it out, or add a webhook `confirm-promotion` by hand",
        )
    if endpoint.spec.timeout_s is None:
        yield Loss(f"{endpoint.place}.timeout_s", "has no route without one", "say how long")
    if not isinstance(rollout, CanarySpec):
        return
    steps = rollout.settings().steps
    if any(step.until == "approval" for step in steps):
        yield Loss(
            f"{place}.steps",
            "asks a web service for approval, which is not ours",
            "wait for the `verdict`, or export for Argo Rollouts",
        )
    if len({step.pause_s for step in steps}) > 1:
        yield Loss(
            f"{place}.steps",
            "holds all steps equally long",
            "give each the same `pause_s`, or export for Argo Rollouts",
        )
