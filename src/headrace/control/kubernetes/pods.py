"""What is a replica's pod like? Pure.

An init container fetches the model and checks its digest; then the replica starts as it does on any
machine. Neither is root, writes to its image, or holds a credential of the cluster's.
"""

import math
from collections.abc import Iterable
from typing import Final

import headrace
from headrace.control.desired import Revision
from headrace.control.kubernetes.names import (
    ENDPOINT,
    MODEL,
    REVISION_ID,
    SETTINGS_DIGEST,
    Object,
    Place,
    labels_of,
    name_of,
    selector_of,
)
from headrace.core.gateways import pre_stop_s
from headrace.core.spec_kubernetes import PodsSpec, ResourcesSpec, VariableSpec

HTTP_PORT: Final = 8000
GRPC_PORT: Final = 8001
"""Where a replica that serves gRPC does; the driver's do not, for its gateway translates."""
METRICS_PORT: Final = 8002
USER: Final = 65532
CONTAINER: Final = "replica"
FETCHER: Final = "fetch-model"
AS_FIRST: Final = ("tini", "--")
"""Before a command that is a container's first process: else a SIGTERM while Python starts is lost,
as the kernel keeps from a first process every signal that it does not handle yet."""
SETTINGS_DIR: Final = "/etc/headrace"
MODELS_DIR: Final = "/models"
INTERNAL_DIR: Final = "/etc/headrace-internal"
_TOKEN_FILE: Final = "HEADRACE_INTERNAL_TOKEN_FILE"  # noqa: S105  # where one lies
_GRACE_S: Final = 10
"""What a replica that has drained takes to end."""
_LOAD_TIMEOUT_S: Final = 600
_STARTUP_PERIOD_S: Final = 2
_LOCKED_DOWN: Final = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
}
_MODELS: Final = {"name": "models", "mountPath": MODELS_DIR}
_TMP: Final = {"name": "tmp", "mountPath": "/tmp"}  # noqa: S108  # a volume of the pod's own


def pod_template(
    revision: Revision, pods: PodsSpec, *, digest: str, settings_digest: str, place: Place
) -> Object:
    """The template of a revision's pods.

    Args:
        digest: Of the artifact that they fetch; nothing of a pool's, which is told later.
        settings_digest: Of what they are told; another one starts them anew.
    """
    annotations = {
        **pods.pod_annotations,
        ENDPOINT: revision.endpoint,
        REVISION_ID: revision.id,
        MODEL: revision.model,
        SETTINGS_DIGEST: settings_digest,
    }
    return {
        "metadata": {
            "labels": labels_of(revision, instance=place.instance),
            "annotations": annotations,
        },
        "spec": {**_where(revision, pods, place), **_what(revision, pods, digest, place)},
    }


def grace_s(place: Place) -> int:
    """How long a pod gets to end: it still answers, then drains, then ends."""
    return pre_stop_s(place.max_behind_s) + math.ceil(place.drain_timeout_s) + _GRACE_S


def image_of(pods: PodsSpec) -> str:
    """The image of replicas."""
    return pods.image or f"headrace/replica:{headrace.__version__}"


def _where(revision: Revision, pods: PodsSpec, place: Place) -> Object:
    """On which nodes, as whom."""
    selector = {"matchLabels": selector_of(revision, instance=place.instance)}
    spec: Object = {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER,
            "runAsGroup": USER,
            "fsGroup": USER,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "topologySpreadConstraints": [
            {
                "maxSkew": 1,
                "topologyKey": key,
                "whenUnsatisfiable": "ScheduleAnyway",
                "labelSelector": selector,
            }
            for key in ("kubernetes.io/hostname", "topology.kubernetes.io/zone")
        ],
    }
    return spec | nodes_of(pods)


def nodes_of(pods: PodsSpec) -> Object:
    """What a pod says of where it may run, and as whom; nothing that is not set."""
    told = {
        "serviceAccountName": pods.service_account,
        "runtimeClassName": pods.runtime_class,
        "priorityClassName": pods.priority_class,
        "nodeSelector": dict(pods.node_selector),
        "tolerations": [
            {key: value for key, value in _fields(taint).items() if value}
            for taint in pods.tolerations
        ],
        "imagePullSecrets": [{"name": name} for name in dict.fromkeys(pods.pull_secrets)],
    }
    return {key: value for key, value in told.items() if value}


def _fields(taint: object) -> dict[str, str]:
    return {key: getattr(taint, key) for key in ("key", "operator", "value", "effect")}


def replica_container(pods: PodsSpec, place: Place) -> Object:
    """The container that serves the model under `/models`, as it is told in `SETTINGS_DIR`."""
    return _replica(_common(pods), place, serves_grpc=False, is_pool=False)


def _common(pods: PodsSpec) -> Object:
    """What all containers of a pod are like."""
    return {
        "image": image_of(pods),
        "imagePullPolicy": pods.pull_policy,
        "securityContext": _LOCKED_DOWN,
        "resources": resources_of(pods.resources),
        "env": _environment(pods.replica_env),
    }


def _what(revision: Revision, pods: PodsSpec, digest: str, place: Place) -> Object:
    """What runs in it."""
    common = _common(pods)
    serves_grpc = revision.settings.grpc_port is not None
    is_pool = revision.hosts is not None
    fetcher = {
        **common,
        "name": FETCHER,
        "command": ["headrace", "models", "fetch"],
        "args": [digest, "--artifacts", place.artifacts_url, "--output", MODELS_DIR],
        "volumeMounts": [_MODELS, _TMP],
    }
    return {
        "terminationGracePeriodSeconds": grace_s(place),
        **({} if is_pool else {"initContainers": [fetcher]}),
        "containers": [_replica(common, place, serves_grpc=serves_grpc, is_pool=is_pool)],
        "volumes": _volumes(revision, place),
    }


def _environment(told: Iterable[VariableSpec]) -> list[Object]:
    # The home of a user without one: libraries keep their caches there.
    home = VariableSpec(name="HOME", value="/tmp")  # noqa: S108  # a volume of the pod's own
    return variables_of([home, *told])


def ports_of(*, serves_grpc: bool) -> tuple[tuple[str, int], ...]:
    """The ports of a replica, and of the Service before it, by name."""
    grpc = (("grpc", GRPC_PORT),) if serves_grpc else ()
    return (("http", HTTP_PORT), *grpc, ("metrics", METRICS_PORT))


def _replica(common: Object, place: Place, *, serves_grpc: bool, is_pool: bool) -> Object:
    """Of a pool, it fetches models itself, and has started before anybody tells it which."""
    mounts: list[Object] = [
        _MODELS if is_pool else {**_MODELS, "readOnly": True},
        _TMP,
        {"name": "settings", "mountPath": SETTINGS_DIR, "readOnly": True},
    ]
    env = common["env"]
    if place.internal_secret:
        mounts.append({"name": "internal", "mountPath": INTERNAL_DIR, "readOnly": True})
        path = f"{INTERNAL_DIR}/token"
        others = [one for one in env if one["name"] != _TOKEN_FILE]
        env = [*others, {"name": _TOKEN_FILE, "value": path}]
    return {
        **common,
        "name": CONTAINER,
        "command": [*AS_FIRST, "python", "-m", "headrace.serving"],
        "args": ["--settings", f"{SETTINGS_DIR}/replica.json"],
        "env": env,
        "ports": [
            {"name": name, "containerPort": port, "protocol": "TCP"}
            for name, port in ports_of(serves_grpc=serves_grpc)
        ],
        "volumeMounts": mounts,
        "startupProbe": _probe(
            "live" if is_pool else "ready",
            periodSeconds=_STARTUP_PERIOD_S,
            failureThreshold=_LOAD_TIMEOUT_S // _STARTUP_PERIOD_S,
        ),
        "readinessProbe": _probe("ready", periodSeconds=2, failureThreshold=2),
        "livenessProbe": _probe("live", periodSeconds=10, failureThreshold=6),
        # Until every gateway knows that it leaves, it still answers.
        "lifecycle": {"preStop": {"sleep": {"seconds": pre_stop_s(place.max_behind_s)}}},
        "terminationMessagePolicy": "FallbackToLogsOnError",
    }


def _volumes(revision: Revision, place: Place) -> list[Object]:
    name = name_of(revision, instance=place.instance)
    volumes: list[Object] = [
        {"name": "models", "emptyDir": {}},
        {"name": "tmp", "emptyDir": {}},
        {"name": "settings", "configMap": {"name": name}},
    ]
    if place.internal_secret:
        secret = {"secretName": place.internal_secret, "optional": True}
        volumes.append({"name": "internal", "secret": secret})
    return volumes


def _probe(what: str, **numbers: int) -> Object:
    return {
        "httpGet": {"path": f"/v2/health/{what}", "port": "http"},
        "timeoutSeconds": 2,
        **numbers,
    }


def resources_of(told: ResourcesSpec) -> Object:
    """ResourcesSpec as a container has them."""
    requests = {"cpu": told.cpu, "memory": told.memory}
    limits = {"memory": told.memory_limit or told.memory}
    if told.cpu_limit:
        limits["cpu"] = told.cpu_limit
    if told.gpus:
        requests[told.gpu_resource] = limits[told.gpu_resource] = str(told.gpus)
    return {"requests": requests, "limits": limits}


def variables_of(told: Iterable[VariableSpec]) -> list[Object]:
    """Variables as a container has them, each once, as told last: a cluster takes none twice."""
    return list({one.name: _variable(one) for one in told}.values())


def _variable(one: VariableSpec) -> Object:
    if one.secret:
        reference = {"secretKeyRef": {"name": one.secret, "key": one.key}}
        return {"name": one.name, "valueFrom": reference}
    return {"name": one.name, "value": one.value}
