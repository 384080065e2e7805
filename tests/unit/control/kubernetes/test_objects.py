import json
import re
from dataclasses import replace
from typing import Any

import kubernetes_validate
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ruamel.yaml import YAML

from headrace import __version__
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
from headrace.core.devices import Device
from headrace.core.images import GPU_IMAGES, IMAGES
from headrace.core.names import NAME_PATTERN
from headrace.core.spec.scale import AutoscaleSpec
from headrace.runtimes import get_runtime
from scripts.images.requirements import IMAGES as BUILT
from tests.kube import ROOT
from tests.unit.control.kubernetes.states import (
    PLACE,
    POOLS_PLACE,
    a_pool,
    a_revision,
    a_state,
    an_arm,
    an_endpoint,
    with_pools,
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
    objects = objects_of(a_state(an_endpoint(an_arm(replicas=2))), installation=PLACE)

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
    installation = replace(
        PLACE,
        internal_secret="headrace-internal",  # noqa: S106  # its name only
        store_secret="artifacts",  # noqa: S106  # as above
        pull_secrets=("images",),
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
    after = deployment(a_state(), replace(PLACE, drain_timeout_s=30.0))

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


def test_without_a_store_for_artifacts_the_way_out_is_named() -> None:
    with pytest.raises(FailedPreconditionError, match="--artifacts URL"):
        objects_of(a_state(), installation=InstallationName(namespace="models"))


def pod_of(
    installation: InstallationName = PLACE,
    settings: dict[str, Any] | None = None,
    **kubernetes: Any,  # noqa: ANN401  # as a document has it
) -> Object:
    """The pod of `digits`, whose revision has `settings`."""
    arm = DesiredArm(revision=a_revision(**(settings or {})), weight=100, replicas=1)
    state = a_state(an_endpoint(arm), **kubernetes)
    pod: Object = deployment(state, installation)["spec"]["template"]
    return pod


@pytest.mark.parametrize(
    ("settings", "gpus", "image"),
    [
        ({}, None, "replica"),
        ({"runtime": "onnx"}, None, "replica"),
        ({"runtime": "onnx", "device": "cuda"}, None, "replica-gpu"),
        ({"runtime": "onnx"}, 1, "replica-gpu"),
        ({"runtime": "sklearn"}, 1, "replica-trees"),
        ({"runtime": "torchscript", "device": "gpu"}, 2, "replica-torch"),
        ({"runtime": "tflite"}, None, "replica-tensorflow"),
        ({"runtime": "openvino", "device": "openvino"}, None, "replica-openvino"),
        ({"runtime": "huggingface"}, None, "replica-pipeline"),
        ({"runtime": "gguf"}, None, "replica-llm"),
    ],
)
def test_runtime_and_device_select_the_image_and_the_gpus(
    settings: dict[str, Any], gpus: int | None, image: str
) -> None:
    if "device" in settings:
        settings = {**settings, "device": Device(settings["device"])}
    spec = pod_of(settings=settings, resources={"gpus": gpus})["spec"]

    containers = [*spec["initContainers"], *spec["containers"]]
    assert {c["image"] for c in containers} == {f"registry.test/ml/{image}:{__version__}"}
    wanted = gpus or (1 if settings.get("device") in {"cuda", "gpu"} else 0)
    limits = spec["containers"][0]["resources"]["limits"]
    assert limits.get("nvidia.com/gpu") == (str(wanted) if wanted else None)


@pytest.mark.parametrize(
    ("runtime", "device"),
    [("sklearn", Device.CUDA), ("onnx", Device.TENSORRT), ("onnx", Device.OPENVINO)],
)
def test_a_device_that_no_image_of_ours_has_is_refused(runtime: str, device: Device) -> None:
    settings = {"runtime": runtime, "device": device}

    with pytest.raises(FailedPreconditionError, match=r"set `kubernetes\.image`"):
        pod_of(settings=settings)

    (container,) = pod_of(settings=settings, image="mine:1")["spec"]["containers"]
    assert container["image"] == "mine:1"


def test_a_language_model_has_a_port_for_openais_api() -> None:
    (container,) = pod_of(settings={"runtime": "gguf"})["spec"]["containers"]

    assert {"name": "openai", "containerPort": 8003, "protocol": "TCP"} in container["ports"]
    (other,) = pod_of(settings={"runtime": "onnx"})["spec"]["containers"]
    assert "openai" not in {port["name"] for port in other["ports"]}


def test_images_are_those_that_are_built_with_the_runtimes_libraries() -> None:
    assert {*IMAGES.values(), *GPU_IMAGES.values()} <= BUILT.keys() | {"replica-torch"}
    for runtime, image in IMAGES.items():
        extra = getattr(get_runtime(runtime), "extra", "")
        assert not extra or image == "replica-torch" or extra in BUILT[image].extras


def test_the_guide_s_gpu_example_makes_a_pod_that_can_start() -> None:
    page = (ROOT / "docs/how-to/kubernetes.md").read_text().partition("### Pod settings")[2]
    spec = YAML(typ="safe").load(page.partition("```yaml\n")[2].partition("```")[0])
    device = Device(spec["endpoints"][1]["device"])
    arm = DesiredArm(
        revision=a_revision("reader", runtime="onnx", device=device), weight=100, replicas=1
    )
    installation = replace(PLACE, store_secret="artifacts")  # noqa: S106  # its name

    pod = deployment(a_state(an_endpoint(arm, name="reader"), **spec["kubernetes"]), installation)

    pod = pod["spec"]["template"]["spec"]
    (fetcher,), (replica,) = pod["initContainers"], pod["containers"]
    assert replica["image"].startswith("registry.test/ml/replica-gpu:")
    assert replica["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert fetcher["envFrom"], "the store's credentials"
    assert pod["nodeSelector"] == {"pool": "gpu"}
    assert "shm" in {mount["name"] for mount in replica["volumeMounts"]}


def test_without_a_registry_no_image_is_guessed() -> None:
    with pytest.raises(FailedPreconditionError, match=r"make push .* --image-registry"):
        pod_of(replace(PLACE, image_registry=""))


def test_an_installation_s_secrets_reach_the_containers_that_need_them() -> None:
    installation = replace(
        POOLS_PLACE,
        pull_secrets=("images", "own"),
        store_secret="artifacts",  # noqa: S106  # its name
    )
    spec = pod_of(installation, pull_secrets=["own"])["spec"]
    pool = deployment(with_pools(DesiredState(), a_pool()), installation)["spec"]["template"]

    store = [{"secretRef": {"name": "artifacts"}}]
    assert spec["imagePullSecrets"] == [{"name": "images"}, {"name": "own"}]
    assert spec["initContainers"][0]["envFrom"] == store
    assert "envFrom" not in spec["containers"][0], "a model does not get the store's credentials"
    assert pool["spec"]["containers"][0]["envFrom"] == store


def test_the_platform_may_choose_the_user() -> None:
    security = pod_of(replace(PLACE, is_platform_uid=True))["spec"]["securityContext"]

    assert security == {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}


@pytest.mark.parametrize(
    ("volume", "source", "path"),
    [
        (
            {"claim": "models"},
            {"persistentVolumeClaim": {"claimName": "models", "readOnly": True}},
            "/models/digits/1/model.onnx",
        ),
        (
            {"image": "registry.test/{model}:{version}", "path": "model"},
            {"image": {"reference": "registry.test/digits:1", "pullPolicy": "IfNotPresent"}},
            "/models/model",
        ),
    ],
)
def test_a_model_of_a_volume_is_checked_and_not_downloaded(
    volume: dict[str, str], source: Object, path: str
) -> None:
    installation = replace(PLACE, artifacts_url="", store_secret="s")  # noqa: S106  # its name
    state = a_state(model_volume=volume)
    spec = deployment(state, installation)["spec"]["template"]["spec"]

    (models,) = (v for v in spec["volumes"] if v["name"] == "models")
    (fetcher,) = spec["initContainers"]
    assert models == {"name": "models", **source}
    assert fetcher["args"] == [f"sha256:{a_revision().settings.sha256}", "--from", path]
    assert "envFrom" not in fetcher
    told = one(objects_of(state, installation=installation), "ConfigMap")["data"]["replica.json"]
    assert msgspec.json.decode(told, type=ReplicaSettings).path == path
    assert all(c["volumeMounts"][0]["readOnly"] for c in (fetcher, *spec["containers"]))


def test_pods_share_downloaded_models_but_see_only_their_own() -> None:
    spec = pod_of(node_cache={"claim": "cache"})["spec"]

    (fetcher,), (replica,) = spec["initContainers"], spec["containers"]
    directory = f"sha256/{a_revision().settings.sha256}"
    assert fetcher["args"][-1] == f"/models/{directory}"
    assert fetcher["volumeMounts"][0] == {"name": "models", "mountPath": "/models"}
    assert replica["volumeMounts"][0] == {
        "name": "models",
        "mountPath": "/models",
        "readOnly": True,
        "subPath": directory,
    }
    assert spec["securityContext"]["fsGroupChangePolicy"] == "OnRootMismatch"


def test_labels_of_other_tools_never_replace_ours() -> None:
    labels = pod_of(pod_labels={"kueue.x-k8s.io/queue-name": "ml"})["metadata"]["labels"]

    assert labels == {"kueue.x-k8s.io/queue-name": "ml", **labels_of(a_revision())}


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
