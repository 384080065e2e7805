"""Pod templates of replicas and pools, and the settings that their processes read. Pure.

An init container fetches the model and checks its digest; then the replica starts as on any other
machine. Pods of a pool start without a model: the control plane sends each the models to host, and
it fetches them from the shared store. No container runs as root, writes to its image, or has a
credential of the cluster.
"""

import hashlib
import math
import re
from collections.abc import Iterable, Sequence
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
from headrace.core.devices import GPUS, Device
from headrace.core.gateways import pre_stop_s
from headrace.core.images import OPENAI_RUNTIMES, image_name
from headrace.core.settings import OPENAI_PORT
from headrace.core.spec.kubernetes import (
    KubernetesSpec,
    PodsSpec,
    ResourcesSpec,
    VariableSpec,
)
from headrace.core.spec.pod_template import merged

HTTP_PORT: Final = 8000
GRPC_PORT: Final = 8001
"""gRPC port of replicas that serve gRPC; the driver's do not, because the gateway translates."""
METRICS_PORT: Final = 8002
USER: Final = 65532
_USER_FIELDS: Final = ("runAsUser", "runAsGroup", "fsGroup")
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
LOAD_TIMEOUT_S: Final = 600
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
    path: str,
    settings_digest: str,
    installation: InstallationName,
) -> Object:
    """Return the template of a revision's pods.

    Args:
        digest: Digest of the artifact that they run; unused for a pool.
        path: Path of the model in them; unused for a pool.
        settings_digest: Digest of the settings that they read; a change replaces the pods.
    """
    is_pool = revision.hosts is not None
    common = _common(revision, pods, installation)
    ports = ports_of(revision.settings)
    replica = _replica(common, installation, ports=ports, is_pool=is_pool)
    volumes: list[Object] = [
        {"name": "models", **_models_volume(revision, pods, digest)},
        {"name": "tmp", "emptyDir": {}},
        {
            "name": "settings",
            "configMap": {"name": name_of(revision, instance=installation.instance)},
        },
    ]
    if installation.internal_secret:
        secret = {"secretName": installation.internal_secret, "optional": True}
        volumes.append({"name": "internal", "secret": secret})
    if pods.shm_size:
        volumes.append(
            {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": pods.shm_size}}
        )
        replica["volumeMounts"].append({"name": "shm", "mountPath": "/dev/shm"})  # noqa: S108  # as above
    user: Object = {} if installation.is_platform_uid else dict.fromkeys(_USER_FIELDS, USER)
    containers: Object = {"containers": [replica]}
    if not is_pool:
        containers["initContainers"] = [_fetcher(common, pods, digest, path, installation)]
        if pods.node_cache is not None:
            replica["volumeMounts"][0]["subPath"] = _cached(digest)
            user["fsGroupChangePolicy"] = "OnRootMismatch"
    template = {
        "metadata": {
            "labels": {
                **pods.pod_labels,
                **labels_of(revision, instance=installation.instance),
            },
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
                **user,
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
            **scheduling_of(pods, installation),
            "terminationGracePeriodSeconds": grace_s(installation),
            **containers,
            "volumes": volumes,
        },
    }
    patched: Object = merged(template, pods.pod_template)
    return patched


def _fetcher(
    common: Object, pods: PodsSpec, digest: str, path: str, installation: InstallationName
) -> Object:
    """Return the init container that downloads the model, or checks that of a volume."""
    mount: Object = {**_MODELS}
    if pods.model_volume is not None:
        args = [digest, "--from", path]
        mount["readOnly"] = True
    else:
        output = MODELS_DIR if pods.node_cache is None else f"{MODELS_DIR}/{_cached(digest)}"
        args = [digest, "--artifacts", installation.artifacts_url, "--output", output]
        common = _with_store(common, installation)
    return {
        **common,
        "name": FETCHER,
        "command": ["headrace", "models", "fetch"],
        "args": args,
        "volumeMounts": [mount, _TMP],
        "terminationMessagePolicy": "FallbackToLogsOnError",
    }


def _with_store(container: Object, installation: InstallationName) -> Object:
    """Return a container with the credentials of the artifact store, if they are in a Secret."""
    if not installation.store_secret:
        return container
    return {**container, "envFrom": [{"secretRef": {"name": installation.store_secret}}]}


def _cached(digest: str) -> str:
    """Return the directory of an artifact in a node cache."""
    return digest.replace(":", "/")


def _models_volume(revision: Revision, pods: PodsSpec, digest: str) -> Object:
    """Return the source of the volume `models`."""
    source, cache = pods.model_volume, pods.node_cache
    if revision.hosts is not None or (source is None and cache is None):
        return {"emptyDir": {}}
    if source is not None and source.image:
        reference = _filled(source.image, revision, digest=digest)
        return {"image": {"reference": reference, "pullPolicy": pods.pull_policy}}
    if source is not None:
        return {"persistentVolumeClaim": {"claimName": source.claim, "readOnly": True}}
    assert cache is not None
    if cache.claim:
        return {"persistentVolumeClaim": {"claimName": cache.claim}}
    return {"hostPath": {"path": cache.path, "type": "Directory"}}


def model_path(revision: Revision, pods: PodsSpec, *, digest: str, filename: str) -> str:
    """Return the path of a revision's model in its pods."""
    if pods.model_volume is None:
        return f"{MODELS_DIR}/{filename}"
    path = _filled(pods.model_volume.path, revision, digest=digest, filename=filename)
    return f"{MODELS_DIR}/{path}"


def _filled(text: str, revision: Revision, *, digest: str, filename: str = "") -> str:
    for name, value in (
        ("endpoint", revision.endpoint),
        ("model", revision.model.partition(":")[0]),
        ("version", revision.version),
        ("digest", digest.partition(":")[2]),
        ("file", filename),
    ):
        text = text.replace(f"{{{name}}}", value)
    return text


def grace_s(installation: InstallationName) -> int:
    """Return the termination grace period: time to answer requests, to drain and to exit."""
    return (
        pre_stop_s(installation.max_behind_s) + math.ceil(installation.drain_timeout_s) + _GRACE_S
    )


def image_of(
    pods: PodsSpec, installation: InstallationName, *, runtime: str = "", device: Device
) -> str:
    """Return the image of replicas: the spec's, or ours for a runtime and a device.

    Raises:
        FailedPreconditionError: Neither the spec nor the installation has one that fits.
    """
    if pods.image:
        return pods.image
    if not installation.image_registry:
        raise FailedPreconditionError(
            "the pods have no image: push the images (make push PREFIX=REGISTRY/PATH) and name the "
            "registry with --image-registry, or set `kubernetes.image`"
        )
    name = image_name(runtime, device, has_gpu=gpus_of(pods.resources, device) > 0)
    return f"{installation.image_registry}/{name}:{headrace.__version__}"


def scheduling_of(pods: PodsSpec, installation: InstallationName) -> Object:
    """Return a pod's scheduling fields and service account; unset fields are absent."""
    secrets = dict.fromkeys((*installation.pull_secrets, *pods.pull_secrets))
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
        "imagePullSecrets": [{"name": name} for name in secrets],
    }
    return {key: value for key, value in fields.items() if value}


def replica_container(revision: Revision, pods: PodsSpec, installation: InstallationName) -> Object:
    """Return the container that serves the model in `/models` with the file in `SETTINGS_DIR`."""
    common = _common(revision, pods, installation)
    ports = ports_of(msgspec.structs.replace(revision.settings, grpc_port=None))
    return _replica(common, installation, ports=ports, is_pool=False)


def _common(revision: Revision, pods: PodsSpec, installation: InstallationName) -> Object:
    """Return the fields that all containers of a pod share."""
    # HOME for a user without a home directory: libraries store caches there.
    home = VariableSpec(name="HOME", value="/tmp")  # noqa: S108  # a volume of the pod's own
    device = device_of(revision)
    return {
        "image": image_of(pods, installation, runtime=revision.settings.runtime, device=device),
        "imagePullPolicy": pods.pull_policy,
        "securityContext": _LOCKED_DOWN,
        "resources": resources_of(pods.resources, device),
        "env": variables_of([home, *pods.replica_env]),
    }


def device_of(revision: Revision) -> Device:
    """Return the device that a revision requires."""
    device = revision.settings.device
    return Device.AUTO if isinstance(device, msgspec.UnsetType) else device


def gpus_of(resources: ResourcesSpec, device: Device) -> int:
    """Return the number of GPUs of a pod."""
    return int(device in GPUS) if resources.gpus is None else resources.gpus


def ports_of(settings: ReplicaSettings) -> tuple[tuple[str, int], ...]:
    """Return the ports of a replica and its Service, by name."""
    grpc = (("grpc", GRPC_PORT),) if settings.grpc_port is not None else ()
    openai = (("openai", OPENAI_PORT),) if settings.runtime in OPENAI_RUNTIMES else ()
    return (("http", HTTP_PORT), *grpc, ("metrics", METRICS_PORT), *openai)


def _replica(
    common: Object,
    installation: InstallationName,
    *,
    ports: Sequence[tuple[str, int]],
    is_pool: bool,
) -> Object:
    """Return the replica's container; in a pool it starts without models and fetches them."""
    mounts: list[Object] = [
        {**_MODELS} if is_pool else {**_MODELS, "readOnly": True},
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
        **(_with_store(common, installation) if is_pool else common),
        "name": CONTAINER,
        "command": [*AS_FIRST, "python", "-m", "headrace.serving"],
        "args": ["--settings", f"{SETTINGS_DIR}/replica.json"],
        "env": env,
        "ports": [{"name": name, "containerPort": port, "protocol": "TCP"} for name, port in ports],
        "volumeMounts": mounts,
        "startupProbe": _probe(
            "live" if is_pool else "ready",
            periodSeconds=_STARTUP_PERIOD_S,
            failureThreshold=LOAD_TIMEOUT_S // _STARTUP_PERIOD_S,
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


def resources_of(resources: ResourcesSpec, device: Device) -> Object:
    """Return the ResourcesSpec in the form of a container, for a model on this device."""
    requests = {"cpu": resources.cpu, "memory": resources.memory}
    limits = {"memory": resources.memory_limit or resources.memory}
    if resources.cpu_limit:
        limits["cpu"] = resources.cpu_limit
    if gpus := gpus_of(resources, device):
        requests[resources.gpu_resource] = limits[resources.gpu_resource] = str(gpus)
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


def model_and_settings(
    revision: Revision, pods: PodsSpec, installation: InstallationName
) -> tuple[str, str, str]:
    """Return the digest of a revision's model, its path in the pods, and the replicas' settings.

    Raises:
        FailedPreconditionError: The revision cannot run on a cluster; the text has the remedy.
    """
    if revision.pool:
        raise FailedPreconditionError(
            f"{revision.model}: pods of pool {revision.pool!r} host it, and who hosts what a "
            "control plane tells them: where there is none, leave 'pool' out"
        )
    artifact = _artifact_of(revision)
    if pods.model_volume is None:
        _check_artifacts(revision.model, installation)
    path = model_path(revision, pods, digest=artifact.digest, filename=artifact.filename)
    return artifact.digest, path, settings_text(revision, installation, path=path)


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
    ports = dict(ports_of(revision.settings))
    text = _encoded(
        revision.settings,
        installation,
        path=path,
        grpc_port=ports.get("grpc"),
        openai_port=ports.get("openai", msgspec.UNSET),
    )
    if len(text) > _MAX_SETTINGS_BYTES:
        raise FailedPreconditionError(
            f"{revision.model}: its settings have {len(text)} bytes, more than a ConfigMap "
            f"holds ({_MAX_SETTINGS_BYTES}): use fewer 'labels'"
        )
    return text


def _encoded(
    settings: ReplicaSettings | PoolReplicaSettings,
    installation: InstallationName,
    **changes: object,
) -> str:
    """Return settings with `changes` and with what all processes in pods have in common."""
    changed = msgspec.structs.replace(
        settings,
        **changes,
        uds="",
        host="0.0.0.0",  # noqa: S104  # the pod's address; a NetworkPolicy restricts access
        port=HTTP_PORT,
        metrics_port=METRICS_PORT,
        drain_timeout_s=installation.drain_timeout_s,
        log_format=installation.log_format,
    )
    return msgspec.json.format(msgspec.json.encode(changed), indent=2).decode()


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
    artifacts = ArtifactsSettings(url=installation.artifacts_url, directory=MODELS_DIR)
    return _encoded(hosts, installation, artifacts=artifacts)


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
    pods = settings.with_own(own)
    if own is not None and "resources" in own.model_fields_set:
        limit = own.resources.memory_limit or own.resources.memory
        if (quantity(limit) or 0) <= hosts.memory_bytes:
            raise FailedPreconditionError(
                f"pool {hosts.name!r}: its models may take {hosts.memory_bytes} bytes "
                f"(memory_bytes), and its pods no more than {limit}: give "
                f"kubernetes.pools.{hosts.name}.resources more memory than that"
            )
        return pods
    resources = settings.resources
    limit = resources.memory_limit and _with_bytes(resources.memory_limit, hosts.memory_bytes)
    more: ResourcesSpec = msgspec.structs.replace(
        resources, memory=_with_bytes(resources.memory, hosts.memory_bytes), memory_limit=limit
    )
    return msgspec.structs.replace(pods, resources=more)


def quantity(value: object) -> Decimal | None:
    """Return the number of a quantity such as 2Gi or 500m; None if it is invalid."""
    match = _QUANTITY.fullmatch(str(value))
    return None if match is None else Decimal(match[1]) * _UNITS[match[2] or ""]


def _with_bytes(memory: str, added_bytes: int) -> str:
    """Return a quantity of memory plus `added_bytes`, in whole KiB."""
    kib = ((quantity(memory) or Decimal(0)) + added_bytes) / 1024
    return f"{int(kib.to_integral_value(rounding='ROUND_CEILING'))}Ki"
