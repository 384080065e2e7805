"""Options of the Helm export, and settings that a cluster cannot express."""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import PurePosixPath
from typing import Any, Final, Self

from headrace.core import InvalidArgumentError
from headrace.core.redact import VARIABLE
from headrace.core.spec.kubernetes import Autoscaler
from headrace.core.spec.parse import SystemSpec, is_model_path
from headrace.deploy.features import Loss, explicit_settings, is_within

_MOUNT: Final = re.compile(r"(?P<kind>[a-z]+):(?P<name>[^=]+)=(?P<path>/.*)")
_NAME: Final = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")
Values = dict[str, Any]
"""A part of a chart's values."""


class HelmMode(StrEnum):
    """Creator of the objects of model versions."""

    DRIVER = "driver"
    """The control plane in the cluster."""
    STATIC = "static"
    """The chart, for clusters without a control plane."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mount:
    """Files of a Secret, ConfigMap or claim, and their path in pods."""

    kind: str
    name: str
    path: PurePosixPath

    @classmethod
    def parsed(cls, text: str) -> Self:
        """Parse `secret:NAME=/PATH`, `config:NAME=/PATH` or `claim:NAME=/PATH`.

        Raises:
            InvalidArgumentError: The text has another form.
        """
        match = _MOUNT.fullmatch(text)
        if match is None or match["kind"] not in _SOURCES or not _NAME.fullmatch(match["name"]):
            msg = (
                f"--mount {text!r} is not KIND:NAME=/PATH, such as secret:trust=/etc/trust; "
                "kinds are secret, config and claim"
            )
            raise InvalidArgumentError(msg)
        path = PurePosixPath(match["path"])
        if ".." in path.parts or path == PurePosixPath("/") or path.is_relative_to("/etc/headrace"):
            msg = f"--mount {text!r}: {path} is not a folder where files may be mounted"
            raise InvalidArgumentError(msg)
        return cls(kind=match["kind"], name=match["name"], path=path)

    @property
    def is_writable(self) -> bool:
        """Whether pods can write to it."""
        return self.kind == "claim"

    def has(self, path: str) -> bool:
        """Whether it contains a path."""
        candidate = PurePosixPath(path)
        return ".." not in candidate.parts and candidate.is_relative_to(self.path)


_SOURCES: Final[Mapping[str, tuple[str, str]]] = {
    "secret": ("secret", "secretName"),
    "config": ("configMap", "name"),
    "claim": ("persistentVolumeClaim", "claimName"),
}


def volumes_of(mounts: Iterable[Mount]) -> Values:
    """Return the values that mount `mounts` into pods."""
    volumes, volume_mounts = [], []
    for i, mount in enumerate(mounts):
        source, key = _SOURCES[mount.kind]
        volumes.append({"name": f"mount-{i}", source: {key: mount.name}})
        volume_mount: Values = {"name": f"mount-{i}", "mountPath": str(mount.path)}
        volume_mounts.append(
            volume_mount if mount.is_writable else {**volume_mount, "readOnly": True}
        )
    return {"extraVolumes": volumes, "extraVolumeMounts": volume_mounts}


@dataclass(frozen=True, slots=True, kw_only=True)
class HelmOptions:
    """Options of the export that are not in the spec."""

    mode: HelmMode = HelmMode.DRIVER

    artifacts: str = ""

    mounts: tuple[Mount, ...] = ()

    separate_jobs: bool = True
    """Jobs as CronJobs, not run by the control plane."""

    separate_streams: bool = True
    """Streams as Deployments, not run by the control plane."""

    lag_records: int | None = None
    """Records that one worker may lag, for KEDA; None for ten batches."""

    nats_monitoring: str = ""
    """HOST:PORT of NATS monitoring."""

    keda_authentication: str = ""
    """TriggerAuthentication with which KEDA authenticates to brokers."""

    allowed: tuple[str, ...] = ()
    """Settings that may be left out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ArtifactFile:
    """An artifact for pods: its digest, and the file or folder in it that a runtime loads."""

    digest: str
    filename: str


@dataclass(frozen=True, slots=True, kw_only=True)
class HelmExport:
    """Values for the chart, and notes."""

    values: Values
    notes: tuple[str, ...] = field(default=())


_PUSH: Final = "push it (`headrace models push NAME FILE`) and set NAME:VERSION"
_LOCAL_URL: Final = re.compile(r"(sqlite|unix|file|feast|log):")
_URLS: Final = ("url", "broker")
_NO_CONTROL: Final = (
    "belongs to the gateway or the control plane, which --mode static does not have"
)
_STATIC: Final = (
    "version", "kubernetes", "jobs", "streams", "alerts", "security", "online_stores",
    "gateway.max_body_bytes",
    *(
        f"endpoints[].{name}"
        for name in (
            "name", "model", "versions", "replicas", "batching", "timeout_s", "runtime", "device",
            "labels", "nulls", "slo", "autoscale", "allow_code", "network", "features",
        )
    ),
)  # fmt: skip
"""Settings that static objects, or their alerts, express."""
_OF_POOLS: Final = ("pools", "endpoints[].pool")


def spec_losses(spec: SystemSpec, mounts: Iterable[Mount]) -> list[Loss]:
    """Return losses that no cluster can express: local files and settings of local gateways."""
    document = spec.document()
    losses = list(_endpoint_losses(spec))
    for name in ("limits_listen", "limits_service"):
        if getattr(spec.gateway, name) is not None:
            way = "leave it out: the control plane counts for all gateways of the chart"
            losses.append(Loss(f"gateway.{name}", "connects gateways of one machine", way))
    endpoints = {key: value for key, value in document.items() if key not in {"jobs", "streams"}}
    return losses + path_losses(endpoints, "", tuple(mounts))


def _endpoint_losses(spec: SystemSpec) -> Iterator[Loss]:
    for i, endpoint in enumerate(spec.endpoints):
        location = f"endpoints[{i}]"
        if endpoint.features is not None and endpoint.features.online_store is None:
            yield Loss(
                f"{location}.features.online_store",
                "is not set, and a pod cannot access the home's store",
                "set one of `online_stores` that pods can reach, such as redis://HOST:PORT/DB",
            )
        for j, version in enumerate(endpoint.split()):
            source = location if endpoint.versions is None else f"{location}.versions[{j}]"
            if version.model is not None and is_model_path(version.model):
                reason = f"is {version.model}, a file of this machine that no pod can read"
                yield Loss(f"{source}.model", reason, _PUSH)


def path_losses(value: object, location: str, mounts: tuple[Mount, ...]) -> list[Loss]:
    """Return losses of local files and stores in a document, unless a mount contains them."""
    if isinstance(value, list | tuple):
        return [
            loss
            for i, item in enumerate(value)
            for loss in path_losses(item, f"{location}[{i}]", mounts)
        ]
    if not isinstance(value, Mapping):
        return []
    losses: list[Loss] = []
    for key, item in value.items():
        source = f"{location}.{key}" if location else str(key)
        if str(key).endswith("_file") or key == "trusted_keys":
            paths = item if isinstance(item, list | tuple) else [item]
            losses += [loss for path in paths for loss in _file_loss(source, path, mounts)]
        elif key in _URLS and isinstance(item, str) and _LOCAL_URL.match(item):
            reason = f"is {item.partition(':')[0]}:…, which is local to one machine"
            losses.append(Loss(source, reason, "set a server that pods can reach"))
        else:
            losses += path_losses(item, source, mounts)
    return losses


def _file_loss(location: str, path: object, mounts: tuple[Mount, ...]) -> Iterator[Loss]:
    if isinstance(path, str) and path.startswith("/") and not any(m.has(path) for m in mounts):
        yield Loss(
            location,
            f"is {path}, which does not exist in pods",
            f"mount it: --mount secret:NAME={path.rpartition('/')[0] or '/FOLDER'}",
        )


def static_losses(spec: SystemSpec) -> list[Loss]:
    """Return losses of settings that need Headrace's gateway or control plane, outermost only."""
    losses = list(_pool_losses(spec))
    for setting in explicit_settings(spec):
        is_covered = any(
            is_within(setting.field, supported) or is_within(supported, setting.field)
            for supported in (*_STATIC, *_OF_POOLS)
        )
        if is_covered or any(is_within(setting.location, loss.location) for loss in losses):
            continue
        way = "use --mode driver, or the gateway of your cluster"
        losses.append(Loss(setting.location, _NO_CONTROL, way))
    for i, endpoint in enumerate(spec.endpoints):
        location = f"endpoints[{i}]"
        if endpoint.access is None:
            losses.append(
                Loss(
                    f"{location}.access",
                    "is not set, so Headrace requires authentication beyond loopback, and "
                    "--mode static has none",
                    "set `access: public`, or authenticate elsewhere",
                )
            )
        if endpoint.autoscale is not None and spec.kubernetes.autoscaler == Autoscaler.HEADRACE:
            reason = "needs the control plane, which --mode static does not have"
            way = "set kubernetes.autoscaler to hpa or keda"
            losses.append(Loss(f"{location}.autoscale", reason, way))
        losses += [
            Loss(
                f"{location}.versions[{j}].upstream",
                "is an external server",
                "route to it",
            )
            for j, version in enumerate(endpoint.versions or ())
            if version.upstream is not None
        ]
    public = {
        f"endpoints[{i}].access" for i, e in enumerate(spec.endpoints) if e.access == "public"
    }
    return [loss for loss in losses if loss.location not in public]


def _pool_losses(spec: SystemSpec) -> Iterator[Loss]:
    reason = "gets its models from the control plane, which --mode static does not have"
    way = "leave it out, with every endpoint's 'pool': each then gets its own pods"
    yield from (Loss(f"pools[{i}]", reason, way) for i, _ in enumerate(spec.pools))
    for i, endpoint in enumerate(spec.endpoints):
        if endpoint.pool is not None:
            reason = "is a pool, which needs a control plane"
            yield Loss(f"endpoints[{i}].pool", reason, "leave it out")


def variables_of(document: object) -> tuple[str, ...]:
    """Return the environment variables that a document refers to, in order."""
    if isinstance(document, str):
        return tuple(dict.fromkeys(VARIABLE.findall(document)))
    parts: Iterable[object] = ()
    if isinstance(document, Mapping):
        parts = document.values()
    elif isinstance(document, list | tuple):
        parts = document
    return tuple(dict.fromkeys(name for part in parts for name in variables_of(part)))


def worker_models(spec: SystemSpec) -> Iterator[tuple[str, str]]:
    """Yield location and reference of each model that jobs and streams run themselves."""
    for i, job in enumerate(spec.jobs):
        yield f"jobs[{i}].model", job.model
    for i, stream in enumerate(spec.streams):
        if stream.model is not None:
            yield f"streams[{i}].model", stream.model


def model_path_loss(location: str, model: str) -> Iterator[Loss]:
    """Yield the loss of a model that is a local file."""
    if is_model_path(model):
        yield Loss(location, f"is {model}, a file of this machine that no pod can read", _PUSH)
