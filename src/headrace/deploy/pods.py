"""What runs a model version in a cluster: the replica's settings and its pod, as plain objects."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import msgspec
import orjson

from headrace import __version__
from headrace.control.kubernetes.pods import AS_FIRST
from headrace.core.devices import Device
from headrace.core.settings import ReplicaSettings
from headrace.deploy.export import Body, Place
from headrace.deploy.facts import Endpoint, Facts, Version
from headrace.deploy.losses import Loss
from headrace.deploy.names import GRPC_PORT, HTTP_PORT, METRICS_PORT, labels

SETTINGS_DIR: Final = "/etc/headrace"
MODELS_DIR: Final = "/models"
SETTINGS_KEY: Final = "replica.json"
_USER: Final = 65532
_STOP_PAUSE_S: Final = 5
_DRAIN_SLACK_S: Final = 15


@dataclass(frozen=True, slots=True, kw_only=True)
class PodOptions:
    """`image`: of a replica. `artifacts`: URL of the store that models are fetched from."""

    image: str = f"headrace/replica:{__version__}"
    artifacts: str = ""


def replica_settings(
    facts: Facts, endpoint: Endpoint, version: Version, directory: str = MODELS_DIR
) -> ReplicaSettings:
    """What the version's replicas are told; the model lies in `directory`."""
    spec = endpoint.spec
    filename = version.artifact.filename if version.artifact else ""
    runtime = spec.runtime or (version.artifact.runtime if version.artifact else "")
    return ReplicaSettings(
        model_name=endpoint.name,
        model_version=version.number,
        path=f"{directory}/{filename}" if filename else directory,
        runtime=runtime,
        host="0.0.0.0",  # noqa: S104  # a pod's own network
        port=HTTP_PORT,
        grpc_port=GRPC_PORT,
        metrics_port=METRICS_PORT,
        batching=spec.batching.settings(timeout_s=spec.timeout_s),
        intra_op_threads=spec.batching.intra_op_threads,
        max_body_bytes=spec.limits.max_body_bytes or facts.body_bytes,
        log_format="json",
        labels={name: list(classes) for name, classes in spec.labels.items()},
        device=Device(spec.device) if spec.device != "auto" else msgspec.UNSET,
    )


def settings_map(
    place: Place,
    name: str,
    facts: Facts,
    *,
    endpoint: Endpoint,
    version: Version,
    directory: str = MODELS_DIR,
) -> Body:
    """The ConfigMap with a version's settings."""
    settings = replica_settings(facts, endpoint, version, directory)
    plain = msgspec.to_builtins(settings)
    default = msgspec.to_builtins(ReplicaSettings(model_name="", model_version="", path=""))
    said = {key: value for key, value in plain.items() if value != default.get(key)}
    text = orjson.dumps(said, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE).decode()
    named = labels(place.instance, "replica", endpoint=endpoint.name, version=version.number)
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": place.metadata(name, named),
        "data": {SETTINGS_KEY: text},
    }


def pod_template(
    place: Place, config_map: str, endpoint: Endpoint, version: Version, options: PodOptions
) -> Body:
    """The template of a version's pods."""
    named = labels(place.instance, "replica", endpoint=endpoint.name, version=version.number)
    drain_s = ReplicaSettings(model_name="", model_version="", path="").drain_timeout_s
    digest = version.artifact.digest if version.artifact else ""
    fetch: Body = {
        "name": "model",
        "image": options.image,
        "args": [
            "models",
            "fetch",
            digest,
            "--artifacts",
            options.artifacts,
            "--output",
            MODELS_DIR,
        ],
        "command": ["headrace"],
        "securityContext": _CONTAINER_SECURITY,
        "volumeMounts": [{"name": "models", "mountPath": MODELS_DIR}, _TMP_MOUNT],
    }
    return {
        "metadata": {"labels": named},
        "spec": {
            "automountServiceAccountToken": False,
            "terminationGracePeriodSeconds": round(drain_s) + _DRAIN_SLACK_S,
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": _USER,
                "runAsGroup": _USER,
                "fsGroup": _USER,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "initContainers": [fetch],
            "containers": [replica_container(options.image, MODELS_DIR)],
            "volumes": [
                {"name": "settings", "configMap": {"name": config_map}},
                {"name": "models", "emptyDir": {}},
                {"name": "tmp", "emptyDir": {}},
            ],
        },
    }


def replica_container(image: str, models: str = "") -> Body:
    """The container that serves; `models`: where its model is mounted, empty where it is not."""
    mounts: list[Body] = [{"name": "settings", "mountPath": SETTINGS_DIR, "readOnly": True}]
    if models:
        mounts.append({"name": "models", "mountPath": models, "readOnly": True})
    return {
        "name": "replica",
        "image": image,
        "command": [*AS_FIRST, "python", "-m", "headrace.serving"],
        "args": ["--settings", f"{SETTINGS_DIR}/{SETTINGS_KEY}"],
        "ports": [
            {"name": "http", "containerPort": HTTP_PORT},
            {"name": "grpc", "containerPort": GRPC_PORT},
            {"name": "metrics", "containerPort": METRICS_PORT},
        ],
        "startupProbe": _probe("ready", periodSeconds=2, failureThreshold=150),
        "readinessProbe": _probe("ready", periodSeconds=2),
        "livenessProbe": _probe("live", periodSeconds=10, failureThreshold=3),
        "lifecycle": {"preStop": {"sleep": {"seconds": _STOP_PAUSE_S}}},
        "securityContext": _CONTAINER_SECURITY,
        "volumeMounts": [*mounts, _TMP_MOUNT],
    }


def service(place: Place, name: str, selector: Body, named: Body) -> Body:
    """A Service before pods that `selector` chooses."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": place.metadata(name, named),
        "spec": {
            "selector": selector,
            "ports": [
                {"name": "http", "port": HTTP_PORT, "targetPort": "http"},
                {
                    "name": "grpc",
                    "port": GRPC_PORT,
                    "targetPort": "grpc",
                    "appProtocol": "kubernetes.io/h2c",
                },
            ],
        },
    }


def model_losses(facts: Facts, *, fetched: bool) -> Iterator[Loss]:
    """Models that a pod could not get, or must not run.

    Args:
        fetched: Whether pods fetch them from the store, by digest.
    """
    for endpoint in facts.endpoints:
        version = endpoint.newest
        artifact = version.artifact
        if version.upstream is not None:
            continue
        if artifact is None or (fetched and not artifact.digest):
            yield Loss(
                f"{version.place}.model",
                f"fetches a model by its digest, and {version.model!r} is in no registry here",
                "push it (`headrace models push`) and name it NAME:VERSION",
            )
        elif artifact.runs_code and not endpoint.spec.allow_code:
            yield Loss(
                f"{version.place}.model",
                "would run its author's code, which nobody allowed",
                "say `allow_code: true` at the endpoint",
            )


def _probe(path: str, **more: int) -> dict[str, Any]:
    return {"httpGet": {"path": f"/v2/health/{path}", "port": "http"}, "timeoutSeconds": 2, **more}


_TMP_MOUNT: Final[Body] = {"name": "tmp", "mountPath": "/tmp"}  # noqa: S108  # a volume of the pod's own
_CONTAINER_SECURITY: Final[Body] = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
}
