"""The chart makes of a revision what the control plane's driver makes of it."""

import hashlib
from dataclasses import replace
from typing import Any

import msgspec
import pytest
from ruamel.yaml import YAML

from headrace.control.kubernetes import InstallationName, name_of, objects_of
from headrace.control.kubernetes.names import ENDPOINT, REVISION, VERSION, label_value
from headrace.control.model.desired import DesiredArm, DesiredEndpoint
from headrace.core.gateways import MAX_BEHIND_S
from headrace.core.spec.scale import AutoscaleSpec
from headrace.deploy.helm_values import arms_of, version_values, with_grpc
from tests.e2e.chart.sample_values import arm_name
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


SHAPE: dict[str, Any] = {
    "pod_labels": {"team": "ml"},
    "shm_size": "2Gi",
    "tolerations": [{"key": "gpu", "operator": "Exists"}],
    "pod_template": {
        "metadata": {"labels": {"sidecar.istio.io/inject": "true"}},
        "spec": {
            "schedulerName": "volcano",
            "securityContext": {"supplementalGroups": [2000]},
            "tolerations": [{"key": "gpu", "operator": "Exists"}, {"key": "spot"}],
            "affinity": {"podAntiAffinity": {}},
            "topologySpreadConstraints": [
                {
                    "maxSkew": 2,
                    "topologyKey": "kubernetes.io/hostname",
                    "whenUnsatisfiable": "ScheduleAnyway",
                }
            ],
            "resourceClaims": [{"name": "gpu", "resourceClaimTemplateName": "mig"}],
            "volumes": [{"name": "trust", "configMap": {"name": "trust"}}],
            "containers": [
                {
                    "name": "replica",
                    "env": [{"name": "HOME", "value": "/home"}, {"name": "TZ", "value": "UTC"}],
                    "resources": {"claims": [{"name": "gpu"}]},
                    "volumeMounts": [{"name": "trust", "mountPath": "/etc/trust"}],
                    "securityContext": {"capabilities": {"drop": ["ALL", "NET_RAW"]}},
                },
                {"name": "proxy", "image": "registry.test/proxy:1", "args": ["run"]},
            ],
        },
    },
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


def as_arm(objects: list[Object], number: int, arm: DesiredArm) -> list[Object]:
    """The driver's objects of a revision under the chart's names and selectors, which stay."""
    endpoint = arm.revision.endpoint
    name = arm_name(endpoint, number + 1)
    (settings,) = (o["data"]["replica.json"] for o in objects if o["kind"] == "ConfigMap")
    digest = hashlib.sha256(settings.encode()).hexdigest()[:8]

    def renamed(value: Any, key: str = "") -> Any:
        if isinstance(value, list):
            return [renamed(item) for item in value]
        if isinstance(value, str) and key != "replica.json":
            return value.replace(name_of(arm.revision), name)
        if not isinstance(value, dict):
            return value
        if REVISION in value:
            is_selector = VERSION not in value
            value = {**value, ENDPOINT: label_value(endpoint), "headrace.dev/arm": str(number + 1)}
            if is_selector:
                del value[REVISION]
        if key == "configMap" and value.get("name") == name_of(arm.revision):
            return {"name": f"{name}-{digest}"}
        return {field: renamed(item, field) for field, item in value.items()}

    changed: list[Object] = renamed(objects)
    for one in changed:
        if one["kind"] == "ConfigMap":
            one["metadata"]["name"] += f"-{digest}"
    return changed


def both(
    endpoint: DesiredEndpoint, *, installation: InstallationName = PLACE, **kubernetes: Any
) -> tuple[list[Object], list[Object]]:
    """What the driver and the chart make of an endpoint, in the same order."""
    desired = a_state(endpoint, **kubernetes)
    # The chart's replicas serve gRPC: before them is a gateway that is not ours.
    served = msgspec.structs.replace(endpoint, arms=tuple(map(with_grpc, endpoint.arms)))
    driver: list[Object] = []
    rows = []
    for number, _, arm in arms_of(desired.endpoints):
        of_arm = msgspec.structs.replace(served, arms=(served.arms[number],))
        made = objects_of(a_state(of_arm, **kubernetes), installation=installation)
        driver += as_arm(made, number, arm)
        rows.append(
            version_values(endpoint, arm, number=number, spec=desired.spec, installation=PLACE)
        )
    values = {
        "artifacts": {"url": PLACE.artifacts_url, "existingSecret": installation.store_secret},
        "image": {
            "registry": installation.image_registry,
            "pullSecrets": [*installation.pull_secrets],
        },
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
        pytest.param(an_endpoint(), SHAPE, id="shape"),
        pytest.param(an_endpoint(), {"model_volume": {"claim": "models"}}, id="claim"),
        pytest.param(an_endpoint(), {"model_volume": {"image": "r/m:1"}}, id="oci"),
        pytest.param(an_endpoint(), {"node_cache": {"claim": "cache"}}, id="cache"),
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


def test_an_installation_s_settings_reach_the_pods_of_both() -> None:
    installation = replace(PLACE, pull_secrets=("images",), store_secret="artifacts")  # noqa: S106  # its name
    driver, chart = both(an_endpoint(), installation=installation)

    assert chart == driver


def test_another_version_keeps_every_name_but_that_of_its_settings() -> None:
    (_, before), (_, after) = both(an_endpoint()), both(an_endpoint(an_arm(version="2")))

    names = [{(o["kind"], o["metadata"]["name"]) for o in made} for made in (before, after)]
    assert {kind for kind, _ in names[0] ^ names[1]} == {"ConfigMap"}
    deployments = [o["spec"] for made in (before, after) for o in made if o["kind"] == "Deployment"]
    assert deployments[0]["selector"] == deployments[1]["selector"]
    assert deployments[0]["strategy"]["rollingUpdate"] == {"maxUnavailable": 0, "maxSurge": 1}


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
