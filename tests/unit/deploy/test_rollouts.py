"""Plans of rollouts as Argo Rollouts has them."""

from typing import Any

import msgspec
import pytest

from headrace.core import ReplicaSettings
from headrace.deploy import (
    ArgoOptions,
    Artifact,
    ClusterTarget,
    ExportTarget,
    LiveEndpoint,
    NotExpressibleError,
    PodOptions,
    VersionShare,
    argo_rollouts,
)
from tests.kube import complaints
from tests.unit.deploy.specs import EXPORTERS, PODS, bodies, facts_of


def _argo(said: dict[str, Any], kind: str) -> dict[str, Any]:
    return bodies(argo_rollouts(facts_of(said), ClusterTarget(), ArgoOptions(pods=PODS)), kind)[0]


def _canary(*steps: dict[str, Any], **more: Any) -> dict[str, Any]:  # noqa: ANN401  # as a file has it
    return {"rollout": {"strategy": "canary", **({"steps": list(steps)} if steps else {}), **more}}


def test_argo_holds_each_step_as_the_plan_says() -> None:
    said = _canary(
        {"weight": 5, "until": "verdict"},
        {"weight": 40, "pause_s": 90.4},
        {"weight": 80, "pause_s": 10, "until": "approval"},
    )

    canary = _argo(said, "Rollout")["spec"]["strategy"]["canary"]

    assert canary["steps"] == [
        {"setWeight": 5},
        {"analysis": {"templates": [{"templateName": "headrace-fraud"}]}},
        {"setWeight": 40},
        {"pause": {"duration": "90s"}},
        {"setWeight": 80},
        {"pause": {"duration": "10s"}},
        {"pause": {}},
    ]
    assert canary["trafficRouting"]["plugins"] == {
        "argoproj-labs/gatewayAPI": {"httpRoute": "headrace-fraud", "namespace": "default"}
    }


def test_the_usual_plan_is_exported_where_none_is_written() -> None:
    steps = _argo(_canary(), "Rollout")["spec"]["strategy"]["canary"]["steps"]

    assert [step["setWeight"] for step in steps if "setWeight" in step] == [5, 25, 50]


def test_argos_route_leads_to_both_services_and_all_to_the_stable_one() -> None:
    objects = bodies(argo_rollouts(facts_of(_canary()), ClusterTarget(), ArgoOptions(pods=PODS)))
    names = {(one["kind"], one["metadata"]["name"]) for one in objects}
    route = next(one for one in objects if one["kind"] == "HTTPRoute")

    refs = [ref for rule in route["spec"]["rules"] for ref in rule["backendRefs"]]
    assert [(ref["name"], ref["weight"]) for ref in refs] == [
        ("headrace-fraud-stable", 100),
        ("headrace-fraud-canary", 0),
    ]
    assert {("Service", ref["name"]) for ref in refs} <= names


def test_blue_green_waits_for_a_person_or_for_its_preview() -> None:
    waiting = {"rollout": {"strategy": "blue-green", "approval": True, "keep_s": 120}}
    timed = {"rollout": {"strategy": "blue-green", "preview_s": 300}}

    asked = _argo(waiting, "Rollout")["spec"]["strategy"]["blueGreen"]
    alone = _argo(timed, "Rollout")["spec"]["strategy"]["blueGreen"]

    assert asked["autoPromotionEnabled"] is False
    assert asked["scaleDownDelaySeconds"] == 120
    assert alone["autoPromotionSeconds"] == 300


def test_a_template_has_a_check_for_each_metric_and_limit() -> None:
    said = {
        **_canary(metrics={"errors": {"margin": 0.02, "max_ratio": 0.1}}, min_samples=50),
        "slo": {"latency_s": 0.25},
    }
    metrics = _argo(said, "AnalysisTemplate")["spec"]["metrics"]

    by_name = {metric["name"]: metric for metric in metrics}
    assert list(by_name) == ["errors", "errors-limit", "rejections", "latency", "latency-limit"]
    assert by_name["errors"]["failureCondition"] == "len(result) > 0 && result[0] > 0.02"
    assert by_name["latency-limit"]["successCondition"] == "len(result) > 0 && result[0] <= 0.25"
    assert all(">= 50" in m["provider"]["prometheus"]["query"] for m in metrics)


def test_queries_and_monitors_are_of_the_pods_of_this_rollout() -> None:
    facts = facts_of({"name": "a" * 90, "model": "fraud:2", **_canary()})
    target = ClusterTarget(namespace="shop", instance="team-a")
    objects = {
        one["kind"]: one
        for one in bodies(argo_rollouts(facts, target, ArgoOptions(pods=PODS)))
        if one["kind"] != "Service"
    }

    name = objects["Rollout"]["metadata"]["name"]
    queries = [
        metric["provider"]["prometheus"]["query"]
        for metric in objects["AnalysisTemplate"]["spec"]["metrics"]
    ]
    matchers = f'{{namespace="shop",pod=~"{name[:57]}.*",'
    assert all(query.count("{") == query.count(matchers) > 0 for query in queries)
    selector = objects["Rollout"]["spec"]["selector"]
    assert objects["PodMonitor"]["spec"]["selector"] == selector
    assert objects["PodDisruptionBudget"]["spec"]["selector"] == selector


_SCALING = {
    "min_replicas": 2,
    "max_replicas": 9,
    "target_in_flight": 4.5,
    "scale_down_delay_s": 90,
    "max_scale_up_ratio": 3,
}


def test_an_hpa_scales_what_is_rolled_out_where_the_spec_says_so() -> None:
    facts = facts_of({"autoscale": _SCALING, "replicas": 3}, kubernetes={"autoscaler": "hpa"})

    objects = bodies(EXPORTERS[ExportTarget.ARGO_ROLLOUTS](facts))

    assert complaints(objects) == []
    scaled = next(one for one in objects if one["kind"] == "Rollout")
    assert "replicas" not in scaled["spec"]  # else each apply would undo what the HPA did
    (spec,) = (one["spec"] for one in objects if one["kind"] == "HorizontalPodAutoscaler")
    name = scaled["metadata"]["name"]
    of = {"apiVersion": "argoproj.io/v1alpha1", "kind": "Rollout", "name": name}
    assert spec["scaleTargetRef"] == of
    assert (spec["minReplicas"], spec["maxReplicas"]) == (2, 9)
    assert spec["metrics"][0]["pods"]["target"]["averageValue"] == "4500m"
    assert spec["behavior"]["scaleDown"]["stabilizationWindowSeconds"] == 90
    assert spec["behavior"]["scaleUp"]["policies"][0]["value"] == 200


def test_without_an_hpa_the_spec_says_how_many_pods_there_are() -> None:
    facts = facts_of({"replicas": 3}, kubernetes={"autoscaler": "hpa"})

    objects = bodies(EXPORTERS[ExportTarget.ARGO_ROLLOUTS](facts))

    assert not [one for one in objects if one["kind"] == "HorizontalPodAutoscaler"]
    assert 3 in {one["spec"].get("replicas") for one in objects if "spec" in one}


def test_what_no_hpa_knows_is_refused_also_where_one_scales() -> None:
    facts = facts_of({"autoscale": {**_SCALING, "idle_s": 30}}, kubernetes={"autoscaler": "hpa"})

    with pytest.raises(NotExpressibleError) as caught:
        EXPORTERS[ExportTarget.ARGO_ROLLOUTS](facts)

    assert [loss.location for loss in caught.value.losses] == ["endpoints[0].autoscale.idle_s"]


@pytest.mark.parametrize("strategy", ["ab", "shadow"])
def test_rollouts_that_compare_callers_or_answers_are_headraces_own(strategy: str) -> None:
    facts = facts_of({"rollout": {"strategy": strategy}})

    with pytest.raises(NotExpressibleError, match=r"endpoints\[0\]\.rollout\.strategy"):
        EXPORTERS[ExportTarget.ARGO_ROLLOUTS](facts)


def test_a_rollout_that_goes_on_is_not_begun_again() -> None:
    shares = tuple(VersionShare(version=v, weight=50, model=f"fraud:{v}") for v in ("1", "2"))
    facts = facts_of(_canary(), observed={"fraud": LiveEndpoint(shares=shares)})

    with pytest.raises(NotExpressibleError, match="has an active one"):
        EXPORTERS[ExportTarget.ARGO_ROLLOUTS](facts)


@pytest.mark.parametrize("target", list(ExportTarget))
def test_a_shadow_is_copied_to_or_refused(target: ExportTarget) -> None:
    shares = (
        VersionShare(version="1", weight=100, model="fraud:1"),
        VersionShare(version="2", weight=0, model="fraud:2"),
    )
    seen = {"fraud": LiveEndpoint(shares=shares, mirror="2", mirror_percent=30)}
    facts = facts_of(observed=seen)

    if target in {ExportTarget.GATEWAY_API, ExportTarget.ENVOY, ExportTarget.AWS_APIGATEWAY}:
        assert EXPORTERS[target](facts).documents
    else:
        with pytest.raises(NotExpressibleError, match="does not mirror requests"):
            EXPORTERS[target](facts)


def test_a_pod_fetches_its_model_by_digest_and_may_do_nothing_else() -> None:
    pods = _argo({"batching": {"max_batch_size": 8}}, "Rollout")["spec"]["template"]["spec"]

    (fetch,) = pods["initContainers"]
    assert fetch["args"][:3] == [f"sha256:{'2' * 64}", "--artifacts", "s3://models"]
    (container,) = pods["containers"]
    for each in (fetch, container):
        assert each["securityContext"]["readOnlyRootFilesystem"] is True
        assert each["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert pods["automountServiceAccountToken"] is False
    assert pods["securityContext"]["runAsNonRoot"] is True


def test_settings_are_what_a_replica_reads() -> None:
    said = {"batching": {"max_batch_size": 8}, "timeout_s": 2.5, "device": "cuda"}
    text = _argo(said, "ConfigMap")["data"]["replica.json"]

    settings = msgspec.json.decode(text, type=ReplicaSettings)
    assert settings.model_name == "fraud"
    assert settings.model_version == "2"
    assert settings.path == "/models/model.onnx"
    assert settings.batching.max_batch_size == 8
    assert settings.batching.default_timeout_s == 2.5
    assert settings.device == "cuda"


@pytest.mark.parametrize(
    ("artifact", "told"),
    [
        (None, "is not in the registry"),
        (Artifact(filename="m.py", digest="sha256:1", runs_code=True), "author's code"),
    ],
)
def test_a_model_that_cannot_be_had_or_must_not_run_is_refused(
    artifact: Artifact | None, told: str
) -> None:
    known = {} if artifact is None else {"fraud:2": artifact}
    with pytest.raises(NotExpressibleError, match=told):
        argo_rollouts(facts_of(artifacts=known), ClusterTarget(), ArgoOptions(pods=PodOptions()))
