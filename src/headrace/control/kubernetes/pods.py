"""Pod templates of replicas and pools, and the settings that their processes read. Pure.

An init container fetches the model and checks its digest; then the replica starts as on any other
machine. Pods of a pool start without a model: the control plane sends each the models to host, and
it fetches them from the shared store. No container runs as root, writes to its image, or has a
credential of the cluster.
"""

import hashlib
import math
import re
from collections.abc import Iterable
from decimal import Decimal
from typing import Final

import msgspec

import headrace
from headrace.control.kubernetes.names import (
    ENDPOINT,
    MODEL,
    REVISION_ID,
    SETTINGS_DIGEST,
    InstallationName,
    Object,
    labels_of,
    name_of,
    selector_of,
)
from headrace.control.model.desired import ArtifactPath, Revision, artifact_at
from headrace.core import (
    ArtifactsSettings,
    FailedPreconditionError,
    PoolReplicaSettings,
    ReplicaSettings,
)
from headrace.core.gateways import pre_stop_s
from headrace.core.spec.kubernetes import (
    KubernetesSpec,
    PodsSpec,
    ResourcesSpec,
    VariableSpec,
)

HTTP_PORT: Final = 8000
GRPC_PORT: Final = 8001
"""gRPC port of replicas that serve gRPC; the driver's do not, because the gateway translates."""
METRICS_PORT: Final = 8002
USER: Final = 65532
CONTAINER: Final = "replica"
FETCHER: Final = "fetch-model"
AS_FIRST: Final = ("tini", "--")
"""Init process before a container's command. Without it a SIGTERM while Python starts is lost,
because the kernel drops signals that PID 1 does not handle yet."""
SETTINGS_DIR: Final = "/etc/headrace"
SETTINGS_KEY: Final = "replica.json"
"""Key in a ConfigMap's data, and name of the file in `SETTINGS_DIR`."""
_MAX_SETTINGS_BYTES: Final = 1_000_000
MODELS_DIR: Final = "/models"
INTERNAL_DIR: Final = "/etc/headrace-internal"
_TOKEN_FILE: Final = "HEADRACE_INTERNAL_TOKEN_FILE"  # noqa: S105  # a path
_GRACE_S: Final = 10
"""Seconds that a drained replica needs to exit."""
_LOAD_TIMEOUT_S: Final = 600
_STARTUP_PERIOD_S: Final = 2
_QUANTITY: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?)(m|[kMGTPE]|[KMGTPE]i)?")
_UNITS: Final = {
    "": Decimal(1),
    "m": Decimal("0.001"),
    **{unit: Decimal(1000) ** (i + 1) for i, unit in enumerate("kMGTPE")},
    **{f"{unit}i": Decimal(1024) ** (i + 1) for i, unit in enumerate("KMGTPE")},
}
_LOCKED_DOWN: Final = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
}
_MODELS: Final = {"name": "models", "mountPath": MODELS_DIR}
_TMP: Final = {"name": "tmp", "mountPath": "/tmp"}  # noqa: S108  # a volume of the pod's own


def pod_template(
    revision: Revision,
    pods: PodsSpec,
    *,
    digest: str,
    settings_digest: str,
    installation: InstallationName,
) -> Object:
    """Return the template of a revision's pods.

    Args:
        digest: Digest of the artifact that they fetch; unused for a pool.
        settings_digest: Digest of the settings that they read; a change replaces the pods.
    """
    is_pool = revision.hosts is not None
    common = _common(pods)
    fetcher = {
        **common,
        "name": FETCHER,
        "command": ["headrace", "models", "fetch"],
        "args": [digest, "--artifacts", installation.artifacts_url, "--output", MODELS_DIR],
        "volumeMounts": [_MODELS, _TMP],
    }
    serves_grpc = revision.settings.grpc_port is not None
    volumes: list[Object] = [
        {"name": "models", "emptyDir": {}},
        {"name": "tmp", "emptyDir": {}},
        {
            "name": "settings",
            "configMap": {"name": name_of(revision, instance=installation.instance)},
        },
    ]
    if installation.internal_secret:
        secret = {"secretName": installation.internal_secret, "optional": True}
        volumes.append({"name": "internal", "secret": secret})
    return {
        "metadata": {
            "labels": labels_of(revision, instance=installation.instance),
            "annotations": {
                **pods.pod_annotations,
                ENDPOINT: revision.endpoint,
                REVISION_ID: revision.id,
                MODEL: revision.model,
                SETTINGS_DIGEST: settings_digest,
            },
        },
        "spec": {
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
                    "labelSelector": {
                        "matchLabels": selector_of(revision, instance=installation.instance)
                    },
                }
                for key in ("kubernetes.io/hostname", "topology.kubernetes.io/zone")
            ],
            **scheduling_of(pods),
            "terminationGracePeriodSeconds": grace_s(installation),
            **({} if is_pool else {"initContainers": [fetcher]}),
            "containers": [
                _replica(common, installation, serves_grpc=serves_grpc, is_pool=is_pool)
            ],
            "volumes": volumes,
        },
    }


def grace_s(installation: InstallationName) -> int:
    """Return the termination grace period: time to answer requests, to drain and to exit."""
    return (
        pre_stop_s(installation.max_behind_s) + math.ceil(installation.drain_timeout_s) + _GRACE_S
    )


def image_of(pods: PodsSpec) -> str:
    """Return the image of replicas."""
    return pods.image or f"headrace/replica:{headrace.__version__}"


def scheduling_of(pods: PodsSpec) -> Object:
    """Return a pod's scheduling fields and service account; unset fields are absent."""
    fields = {
        "serviceAccountName": pods.service_account,
        "runtimeClassName": pods.runtime_class,
        "priorityClassName": pods.priority_class,
        "nodeSelector": dict(pods.node_selector),
        "tolerations": [
            {
                key: value
                for key in ("key", "operator", "value", "effect")
                if (value := getattr(taint, key))
            }
            for taint in pods.tolerations
        ],
        "imagePullSecrets": [{"name": name} for name in dict.fromkeys(pods.pull_secrets)],
    }
    return {key: value for key, value in fields.items() if value}


def replica_container(pods: PodsSpec, installation: InstallationName) -> Object:
    """Return the container that serves the model in `/models` with the file in `SETTINGS_DIR`."""
    return _replica(_common(pods), installation, serves_grpc=False, is_pool=False)


def _common(pods: PodsSpec) -> Object:
    """Return the fields that all containers of a pod share."""
    # HOME for a user without a home directory: libraries store caches there.
    home = VariableSpec(name="HOME", value="/tmp")  # noqa: S108  # a volume of the pod's own
    return {
        "image": image_of(pods),
        "imagePullPolicy": pods.pull_policy,
        "securityContext": _LOCKED_DOWN,
        "resources": resources_of(pods.resources),
        "env": variables_of([home, *pods.replica_env]),
    }


def ports_of(*, serves_grpc: bool) -> tuple[tuple[str, int], ...]:
    """Return the ports of a replica and its Service, by name."""
    grpc = (("grpc", GRPC_PORT),) if serves_grpc else ()
    return (("http", HTTP_PORT), *grpc, ("metrics", METRICS_PORT))


def _replica(
    common: Object, installation: InstallationName, *, serves_grpc: bool, is_pool: bool
) -> Object:
    """Return the replica's container; in a pool it starts without models and fetches them."""
    mounts: list[Object] = [
        _MODELS if is_pool else {**_MODELS, "readOnly": True},
        _TMP,
        {"name": "settings", "mountPath": SETTINGS_DIR, "readOnly": True},
    ]
    env = common["env"]
    if installation.internal_secret:
        mounts.append({"name": "internal", "mountPath": INTERNAL_DIR, "readOnly": True})
        path = f"{INTERNAL_DIR}/token"
        others = [variable for variable in env if variable["name"] != _TOKEN_FILE]
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
        # It still answers until every gateway has stopped routing to it.
        "lifecycle": {"preStop": {"sleep": {"seconds": pre_stop_s(installation.max_behind_s)}}},
        "terminationMessagePolicy": "FallbackToLogsOnError",
    }


def _probe(description: str, **numbers: int) -> Object:
    return {
        "httpGet": {"path": f"/v2/health/{description}", "port": "http"},
        "timeoutSeconds": 2,
        **numbers,
    }


def resources_of(resources: ResourcesSpec) -> Object:
    """Return the ResourcesSpec in the form of a container."""
    requests = {"cpu": resources.cpu, "memory": resources.memory}
    limits = {"memory": resources.memory_limit or resources.memory}
    if resources.cpu_limit:
        limits["cpu"] = resources.cpu_limit
    if resources.gpus:
        requests[resources.gpu_resource] = limits[resources.gpu_resource] = str(resources.gpus)
    return {"requests": requests, "limits": limits}


def variables_of(variables: Iterable[VariableSpec]) -> list[Object]:
    """Return a container's variables, only the last per name: clusters refuse duplicates."""
    entries: dict[str, Object] = {}
    for variable in variables:
        source: Object = {"value": variable.value}
        if variable.secret:
            reference = {"name": variable.secret, "key": variable.key}
            source = {"valueFrom": {"secretKeyRef": reference}}
        entries[variable.name] = {"name": variable.name, **source}
    return list(entries.values())


def artifact_and_settings(
    revision: Revision, installation: InstallationName
) -> tuple[ArtifactPath, str]:
    """Return the artifact that a revision's pods fetch, and the settings of their replicas.

    Raises:
        FailedPreconditionError: The revision cannot run on a cluster; the text has the remedy.
    """
    if revision.pool:
        raise FailedPreconditionError(
            f"{revision.model}: pods of pool {revision.pool!r} host it, and who hosts what a "
            "control plane tells them: where there is none, leave 'pool' out"
        )
    artifact = _artifact_of(revision)
    _check_artifacts(revision.model, installation)
    path = f"{MODELS_DIR}/{artifact.filename}"
    return artifact, settings_text(revision, installation, path=path)


def _check_artifacts(description: str, installation: InstallationName) -> None:
    if not installation.artifacts_url:
        raise FailedPreconditionError(
            f"{description}: pods have to fetch it from somewhere, and the control plane has no "
            "store for artifacts that they reach: give it one (--artifacts URL)"
        )


def _artifact_of(revision: Revision) -> ArtifactPath:
    artifact = artifact_at(revision.settings.path)
    if artifact is None:
        raise FailedPreconditionError(
            f"{revision.model} is served where it lies, at {revision.settings.path}, which no pod "
            "can read: push it (headrace models push NAME FILE) and name it as NAME:VERSION"
        )
    return artifact


def settings_text(revision: Revision, installation: InstallationName, *, path: str) -> str:
    """Return the encoded settings of a revision's replicas.

    Args:
        path: Path of the model in their pods.

    Raises:
        FailedPreconditionError: The settings exceed the size of a ConfigMap.
    """
    settings = msgspec.structs.replace(
        revision.settings,
        path=path,
        uds="",
        host="0.0.0.0",  # noqa: S104  # the pod's address; a NetworkPolicy restricts access
        port=HTTP_PORT,
        grpc_port=None if revision.settings.grpc_port is None else GRPC_PORT,
        metrics_port=METRICS_PORT,
        drain_timeout_s=installation.drain_timeout_s,
        log_format=installation.log_format,
    )
    text = msgspec.json.format(msgspec.json.encode(settings), indent=2).decode()
    if len(text) > _MAX_SETTINGS_BYTES:
        raise FailedPreconditionError(
            f"{revision.model}: its settings have {len(text)} bytes, more than a ConfigMap "
            f"holds ({_MAX_SETTINGS_BYTES}): use fewer 'labels'"
        )
    return text


def digest_of(settings: str) -> str:
    """Return the digest of settings, which marks the pods that read them."""
    return hashlib.sha256(settings.encode()).hexdigest()[:16]


def pool_settings_text(hosts: PoolReplicaSettings, installation: InstallationName) -> str:
    """Return the encoded settings of a pool's processes.

    Raises:
        FailedPreconditionError: The pool cannot run on a cluster; the text has the remedy.
    """
    _check_artifacts(f"pool {hosts.name!r}", installation)
    if not installation.internal_secret:
        raise FailedPreconditionError(
            f"pool {hosts.name!r}: its pods receive their models over the network and require the "
            "internal token: store a token in a Secret and name it with --internal-secret"
        )
    settings = msgspec.structs.replace(
        hosts,
        uds="",
        host="0.0.0.0",  # noqa: S104  # as above
        port=HTTP_PORT,
        metrics_port=METRICS_PORT,
        drain_timeout_s=installation.drain_timeout_s,
        log_format=installation.log_format,
        artifacts=ArtifactsSettings(url=installation.artifacts_url, directory=MODELS_DIR),
    )
    return msgspec.json.format(msgspec.json.encode(settings), indent=2).decode()


def hosted_settings(revision: Revision) -> ReplicaSettings:
    """Return the settings of a model in a pool's pod, with the artifact to fetch.

    Raises:
        FailedPreconditionError: The model is only on the control plane's machine.
    """
    artifact = _artifact_of(revision)
    path = f"{artifact.digest.replace(':', '/')}/{artifact.filename}"
    return msgspec.structs.replace(revision.settings, path=path)


def pods_of_pool(hosts: PoolReplicaSettings, settings: KubernetesSpec) -> PodsSpec:
    """Return the pod settings of a pool: the common ones, with memory for its models.

    Settings in the spec for this pool are used unchanged.

    Raises:
        FailedPreconditionError: They give less memory than the models of the pool may take.
    """
    own = settings.pools.get(hosts.name)
    if own is not None:
        limit = own.resources.memory_limit or own.resources.memory
        if (quantity(limit) or 0) <= hosts.memory_bytes:
            raise FailedPreconditionError(
                f"pool {hosts.name!r}: its models may take {hosts.memory_bytes} bytes "
                f"(memory_bytes), and its pods no more than {limit}: give "
                f"kubernetes.pools.{hosts.name}.resources more memory than that"
            )
        return own
    resources = settings.resources
    limit = resources.memory_limit and _with_bytes(resources.memory_limit, hosts.memory_bytes)
    more: ResourcesSpec = msgspec.structs.replace(
        resources, memory=_with_bytes(resources.memory, hosts.memory_bytes), memory_limit=limit
    )
    return msgspec.structs.replace(settings, resources=more)


def quantity(value: object) -> Decimal | None:
    """Return the number of a quantity such as 2Gi or 500m; None if it is invalid."""
    match = _QUANTITY.fullmatch(str(value))
    return None if match is None else Decimal(match[1]) * _UNITS[match[2] or ""]


def _with_bytes(memory: str, added_bytes: int) -> str:
    """Return a quantity of memory plus `added_bytes`, in whole KiB."""
    kib = ((quantity(memory) or Decimal(0)) + added_bytes) / 1024
    return f"{int(kib.to_integral_value(rounding='ROUND_CEILING'))}Ki"
