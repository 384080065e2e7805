import json
import re
from dataclasses import replace

import kubernetes_validate
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.control.kubernetes import (
    InstallationName,
    labels_of,
    name_of,
    objects_of,
    selector_of,
)
from headrace.control.kubernetes.names import Object, OwnerObject, label_value
from headrace.control.model.desired import DesiredArm, DesiredState, Revision
from headrace.core import FailedPreconditionError, ReplicaSettings
from headrace.core.names import NAME_PATTERN
from headrace.core.spec.scale import AutoscaleSpec
from tests.unit.control.kubernetes.states import (
    PLACE,
    a_revision,
    a_state,
    an_arm,
    an_endpoint,
)

DNS_LABEL = re.compile(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?")
LABEL_VALUE = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?")
SCALE = AutoscaleSpec(min_replicas=2, max_replicas=8, target_in_flight=4.0)


def one(objects: list[Object], kind: str) -> Object:
    (found,) = [each for each in objects if each["kind"] == kind]
    return found


def deployment(state: DesiredState, installation: InstallationName = PLACE) -> Object:
    return one(objects_of(state, installation=installation), "Deployment")


def test_a_revision_becomes_four_objects_of_one_name() -> None:
    objects = objects_of(a_state(), installation=PLACE)

    assert [each["kind"] for each in objects] == [
        "ConfigMap",
        "Service",
        "PodDisruptionBudget",
        "Deployment",
    ]
    assert {each["metadata"]["name"] for each in objects} == {name_of(a_revision())}


@pytest.mark.parametrize("autoscaler", ["headrace", "hpa"])
def test_every_object_is_valid_to_the_published_schemas(autoscaler: str) -> None:
    owner = OwnerObject(
        api_version="apps/v1", kind="Deployment", name="headrace-control", uid="u-1"
    )
    installation = InstallationName(
        namespace="models",
        artifacts_url="s3://artifacts",
        internal_secret="headrace-internal",  # noqa: S106  # its name only
        owners=(owner,),
    )
    state = a_state(
        an_endpoint(autoscale=SCALE),
        autoscaler=autoscaler,
        resources={"cpu": "500m", "memory": "2Gi", "gpus": 1},
        node_selector={"pool": "gpu"},
        tolerations=[{"key": "gpu", "operator": "Exists", "effect": "NoSchedule"}],
        replica_env=[
            {"name": "A", "value": "1"},
            {"name": "KEY", "secret": "s3", "key": "secret-key"},
        ],
        pull_secrets=["registry"],
        runtime_class="nvidia",
        priority_class="high",
        service_account="replicas",
        pod_annotations={"prometheus.io/scrape": "true"},
    )

    for each in objects_of(state, installation=installation):
        kubernetes_validate.validate(each, "1.37", strict=True)


def test_replicas_are_told_where_the_model_will_lie_and_where_to_listen() -> None:
    told = one(objects_of(a_state(), installation=PLACE), "ConfigMap")["data"]["replica.json"]

    settings = msgspec.json.decode(told, type=ReplicaSettings)
    assert settings.path == "/models/model.onnx"
    assert (settings.host, settings.port, settings.metrics_port) == ("0.0.0.0", 8000, 8002)  # noqa: S104  # as a pod has to
    assert settings.uds == ""
    assert settings.sha256 == a_revision().settings.sha256


def test_an_init_container_fetches_the_artifact_by_its_digest() -> None:
    spec = deployment(a_state())["spec"]["template"]["spec"]

    (fetcher,) = spec["initContainers"]
    assert [*fetcher["command"], *fetcher["args"]] == [
        "headrace",
        "models",
        "fetch",
        f"sha256:{a_revision().settings.sha256}",
        "--artifacts",
        "s3://artifacts",
        "--output",
        "/models",
    ]


def test_pods_are_nobody_and_hold_no_credential() -> None:
    spec = deployment(a_state())["spec"]["template"]["spec"]

    assert spec["automountServiceAccountToken"] is False
    assert spec["securityContext"]["runAsNonRoot"] is True
    for container in (*spec["initContainers"], *spec["containers"]):
        security = container["securityContext"]
        assert security["readOnlyRootFilesystem"] is True
        assert security["allowPrivilegeEscalation"] is False
        assert security["capabilities"] == {"drop": ["ALL"]}


def test_a_pod_gets_longer_to_end_than_it_may_drain() -> None:
    spec = deployment(a_state())["spec"]["template"]["spec"]
    (replica,) = spec["containers"]

    pause_s = replica["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert spec["terminationGracePeriodSeconds"] == 45 > PLACE.drain_timeout_s + pause_s


@pytest.mark.parametrize("max_behind_s", [0.1, 10.0, 10.4, 3600.0])
def test_a_pod_that_leaves_answers_for_longer_than_a_gateway_may_lag(max_behind_s: float) -> None:
    installation = replace(PLACE, max_behind_s=max_behind_s)
    spec = deployment(a_state(), installation)["spec"]["template"]["spec"]
    (replica,) = spec["containers"]

    pause_s = replica["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert isinstance(pause_s, int)
    assert pause_s >= max_behind_s + 5
    assert spec["terminationGracePeriodSeconds"] > PLACE.drain_timeout_s + pause_s


def test_only_replicas_that_serve_grpc_have_a_port_for_it() -> None:
    def ports(revision: Revision) -> list[tuple[object, ...]]:
        arm = DesiredArm(revision=revision, weight=100, replicas=1)
        objects = {o["kind"]: o for o in objects_of(a_state(an_endpoint(arm)), installation=PLACE)}
        (replica,) = objects["Deployment"]["spec"]["template"]["spec"]["containers"]
        told = json.loads(objects["ConfigMap"]["data"]["replica.json"])
        service = [(p["name"], p["port"]) for p in objects["Service"]["spec"]["ports"]]
        container = [(p["name"], p["containerPort"]) for p in replica["ports"]]
        assert service == container
        return [*service, ("told", told["grpc_port"])]

    both = [("http", 8000), ("metrics", 8002)]
    assert ports(a_revision()) == [*both, ("told", None)]
    assert ports(a_revision(grpc_port=0)) == [both[0], ("grpc", 8001), both[1], ("told", 8001)]


def test_a_variable_or_secret_that_is_told_twice_is_said_once() -> None:
    told = [
        {"name": "HOME", "value": "/cache"},
        {"name": "A", "value": "1"},
        {"name": "A", "value": "2"},
        {"name": "HEADRACE_INTERNAL_TOKEN_FILE", "value": "/mine"},
    ]
    installation = replace(PLACE, internal_secret="s")  # noqa: S106  # a Secret's name
    objects = objects_of(
        a_state(replica_env=told, pull_secrets=["x", "x"]), installation=installation
    )
    (spec,) = [o["spec"]["template"]["spec"] for o in objects if o["kind"] == "Deployment"]

    (env,) = [container["env"] for container in spec["containers"]]

    assert [(one["name"], one["value"]) for one in env] == [
        ("HOME", "/cache"),
        ("A", "2"),
        ("HEADRACE_INTERNAL_TOKEN_FILE", "/etc/headrace-internal/token"),
    ]
    assert spec["imagePullSecrets"] == [{"name": "x"}]


def test_other_settings_start_pods_anew() -> None:
    before = deployment(a_state())
    after = deployment(
        a_state(), InstallationName(namespace="models", artifacts_url="s3://artifacts")
    )

    assert before["spec"]["template"]["metadata"] != after["spec"]["template"]["metadata"]


@pytest.mark.parametrize(
    ("autoscaler", "scaler"),
    [("hpa", "HorizontalPodAutoscaler"), ("keda", "ScaledObject"), ("headrace", "")],
)
def test_never_do_two_say_how_many_pods_there_are(autoscaler: str, scaler: str) -> None:
    prometheus = {"prometheus_url": "http://prometheus:9090"} if autoscaler == "keda" else {}
    state = a_state(an_endpoint(autoscale=SCALE), autoscaler=autoscaler, **prometheus)
    objects = objects_of(state, installation=PLACE)

    kinds = {each["kind"] for each in objects}
    assert ("replicas" in one(objects, "Deployment")["spec"]) is (scaler == "")
    assert kinds & {"HorizontalPodAutoscaler", "ScaledObject"} == ({scaler} if scaler else set())


def test_an_endpoint_without_autoscale_keeps_its_count_whoever_scales_others() -> None:
    objects = objects_of(
        a_state(an_endpoint(an_arm(replicas=3)), autoscaler="hpa"), installation=PLACE
    )

    assert one(objects, "Deployment")["spec"]["replicas"] == 3
    assert "HorizontalPodAutoscaler" not in {each["kind"] for each in objects}


def test_an_hpa_has_our_target_and_the_arms_part_of_the_bounds() -> None:
    arms = an_arm(version="1", weight=25), an_arm(version="2", weight=75)
    state = a_state(an_endpoint(*arms, autoscale=SCALE), autoscaler="hpa")
    small, large = [
        each["spec"]
        for each in objects_of(state, installation=PLACE)
        if each["kind"] == "HorizontalPodAutoscaler"
    ]

    assert (small["minReplicas"], small["maxReplicas"]) == (1, 2)
    assert (large["minReplicas"], large["maxReplicas"]) == (2, 6)
    (metric,) = large["metrics"]
    assert metric["pods"]["metric"]["name"] == "headrace_requests_in_flight"
    assert metric["pods"]["target"] == {"type": "AverageValue", "averageValue": "4"}


def test_keda_asks_for_the_queue_too_where_a_target_says_so() -> None:
    scale = AutoscaleSpec(target_in_flight=4.0, target_queue_wait_s=0.05)
    state = a_state(
        an_endpoint(autoscale=scale), autoscaler="keda", prometheus_url="http://prometheus:9090"
    )
    spec = one(objects_of(state, installation=PLACE), "ScaledObject")["spec"]

    flight, wait = spec["triggers"]
    assert flight["metadata"]["threshold"] == "4"
    assert "headrace_requests_in_flight" in flight["metadata"]["query"]
    assert (wait["metricType"], wait["metadata"]["threshold"]) == ("Value", "0.05")


def test_an_endpoint_may_have_pods_of_its_own_kind() -> None:
    state = a_state(
        an_endpoint(),
        an_endpoint(an_arm("large"), name="large"),
        resources={"memory": "1Gi"},
        endpoints={"large": {"resources": {"memory": "64Gi"}}},
    )
    memory = {
        each["metadata"]["labels"]["headrace.dev/endpoint"]: each["spec"]["template"]["spec"][
            "containers"
        ][0]["resources"]["limits"]["memory"]
        for each in objects_of(state, installation=PLACE)
        if each["kind"] == "Deployment"
    }

    assert memory == {"digits": "1Gi", "large": "64Gi"}


def test_a_model_that_lies_on_one_machine_is_refused_with_the_way_out() -> None:
    arm = an_arm()
    settings = msgspec.structs.replace(arm.revision.settings, path="/data/model.onnx")
    revision = msgspec.structs.replace(arm.revision, settings=settings)
    state = a_state(an_endpoint(msgspec.structs.replace(arm, revision=revision)))

    with pytest.raises(FailedPreconditionError, match="headrace models push"):
        objects_of(state, installation=PLACE)


def test_without_a_store_for_artifacts_the_way_out_is_named() -> None:
    with pytest.raises(FailedPreconditionError, match="--artifacts URL"):
        objects_of(a_state(), installation=InstallationName(namespace="models"))


names = st.from_regex(NAME_PATTERN, fullmatch=True)


@given(endpoint=names, version=st.from_regex(r"[0-9]{1,18}", fullmatch=True))
def test_every_name_and_label_is_one_that_kubernetes_takes(endpoint: str, version: str) -> None:
    revision = a_revision(endpoint, version)

    assert DNS_LABEL.fullmatch(name_of(revision, instance="h"))
    assert DNS_LABEL.fullmatch(
        name_of(revision, instance="an-instance-with-40-letters-in-its-name-x")
    )
    assert all(LABEL_VALUE.fullmatch(value) for value in labels_of(revision).values())
    assert selector_of(revision).items() <= labels_of(revision).items()


@given(endpoint=names, version=st.from_regex(r"[0-9]{1,18}", fullmatch=True))
def test_pods_can_be_found_by_the_name_of_their_deployment(endpoint: str, version: str) -> None:
    instance = "an-instance-with-40-letters-in-its-name-x"
    name = name_of(a_revision(endpoint, version), instance=instance)

    pod = f"{name}-5d4f8c7b9d-"[:58] + "x7k2p"  # as SimpleNameGenerator of Kubernetes has it

    assert re.fullmatch(f"{name}-.+", pod), "as KEDA's query asks"


@given(endpoints=st.lists(names, min_size=2, max_size=8, unique=True))
def test_no_two_endpoints_share_a_name_or_a_label(endpoints: list[str]) -> None:
    revisions = [a_revision(endpoint) for endpoint in endpoints]

    assert len({name_of(each) for each in revisions}) == len(endpoints)
    assert len({label_value(endpoint) for endpoint in endpoints}) == len(endpoints)
