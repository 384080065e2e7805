"""The chart makes of a revision what the control plane's driver makes of it."""

from dataclasses import replace
from typing import Any

import msgspec
import pytest
from ruamel.yaml import YAML

from headrace.control.kubernetes import InstallationName, objects_of
from headrace.control.model.desired import DesiredEndpoint
from headrace.core.gateways import MAX_BEHIND_S
from headrace.core.spec.scale import AutoscaleSpec
from headrace.deploy.helm_values import arms_of, version_values, with_grpc
from tests.kube import CHART, Object, needs, rendered
from tests.unit.control.kubernetes.states import PLACE, a_state, an_arm, an_endpoint

pytestmark = [pytest.mark.e2e, pytest.mark.kube, pytest.mark.slow, needs("helm")]

SCALE = AutoscaleSpec(min_replicas=2, max_replicas=9, target_in_flight=7.5)
WAITS = AutoscaleSpec(
    min_replicas=1, max_replicas=3, target_in_flight=4.0, target_queue_wait_s=0.05
)
PODS: dict[str, Any] = {
    "image": "registry.example/replica@sha256:" + "12" * 32,
    "pull_policy": "Always",
    "pull_secrets": ["registry"],
    "resources": {"cpu": "500m", "memory": "2Gi", "cpu_limit": "2", "gpus": 1},
    "node_selector": {"pool": "gpu"},
    "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}],
    "replica_env": [
        {"name": "AWS_REGION", "value": "eu-west-1"},
        {"name": "AWS_SECRET_ACCESS_KEY", "secret": "artifacts", "key": "secret"},
    ],
    "service_account": "models",
    "runtime_class": "nvidia",
    "priority_class": "important",
    "pod_annotations": {"example.com/note": "a"},
}


def plain(one: Object) -> Object:
    """An object without what only says who made it, and where defaults may be left out."""
    labels = one["metadata"]["labels"]
    assert labels["app.kubernetes.io/managed-by"] in {"Helm", "headrace"}
    copied: Object = _without_maker(one)
    return copied


def _without_maker(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            key: _without_maker(one)
            for key, one in value.items()
            if key != "app.kubernetes.io/managed-by"
        }
    return [_without_maker(one) for one in value] if isinstance(value, list) else value


def both(
    endpoint: DesiredEndpoint, *, installation: InstallationName = PLACE, **kubernetes: Any
) -> tuple[list[Object], list[Object]]:
    """What the driver and the chart make of an endpoint, in the same order."""
    desired = a_state(endpoint, **kubernetes)
    # The chart's replicas serve gRPC: before them is a gateway that is not ours.
    served = msgspec.structs.replace(endpoint, arms=tuple(map(with_grpc, endpoint.arms)))
    driver = objects_of(a_state(served, **kubernetes), installation=installation)
    rows = [
        version_values(endpoint, arm, spec=desired.spec, installation=installation)
        for _, endpoint, arm in arms_of(desired.endpoints)
    ]
    values = {
        "artifacts": {"url": PLACE.artifacts_url},
        "workloads": {"mode": "static", "versions": rows},
        "tests": {"enabled": False},
        "networkPolicy": {"enabled": False},
        "gateway": {"maxBehindSeconds": int(installation.max_behind_s)},
    }
    chart = rendered(values, namespace=PLACE.namespace)

    def key(one: Object) -> tuple[str, str]:
        return one["kind"], one["metadata"]["name"]

    return sorted(map(plain, driver), key=key), sorted(map(plain, chart), key=key)


@pytest.mark.parametrize(
    ("endpoint", "kubernetes"),
    [
        pytest.param(an_endpoint(), {}, id="plain"),
        pytest.param(
            an_endpoint(an_arm(weight=90, replicas=3), an_arm(version="2", weight=10)),
            {},
            id="split",
        ),
        pytest.param(an_endpoint(), PODS, id="pods"),
        pytest.param(an_endpoint(name="Fraud.Score_v2" + "x" * 80), {}, id="long name"),
        pytest.param(an_endpoint(autoscale=SCALE), {"autoscaler": "headrace"}, id="our scaler"),
        pytest.param(an_endpoint(autoscale=SCALE), {"autoscaler": "hpa"}, id="hpa"),
        pytest.param(
            an_endpoint(autoscale=WAITS),
            {"autoscaler": "keda", "prometheus_url": "http://prometheus:9090"},
            id="keda",
        ),
    ],
)
def test_chart_and_driver_make_the_same_objects(
    endpoint: DesiredEndpoint, kubernetes: dict[str, Any]
) -> None:
    driver, chart = both(endpoint, **kubernetes)

    assert [one["kind"] for one in chart] == [one["kind"] for one in driver]
    for ours, theirs in zip(chart, driver, strict=True):
        assert ours == theirs


@pytest.mark.parametrize("max_behind_s", [1, 10, 3600])
def test_pods_that_leave_answer_as_long_in_both_for_a_gateway_that_lags(max_behind_s: int) -> None:
    driver, chart = both(an_endpoint(), installation=replace(PLACE, max_behind_s=max_behind_s))

    assert chart == driver


def test_the_control_plane_of_the_chart_is_told_what_its_replicas_are_made_for() -> None:
    values = {"gateway": {"maxBehindSeconds": 25}}
    (control,) = [
        one["spec"]["template"]["spec"]["containers"][0]
        for one in rendered(values)
        if one["kind"] == "Deployment" and one["metadata"]["name"] == "headrace-control"
    ]

    assert "--gateway-max-behind-s=25" in control["args"]
    told = YAML(typ="safe").load(CHART / "values.yaml")
    assert told["gateway"]["maxBehindSeconds"] == MAX_BEHIND_S
