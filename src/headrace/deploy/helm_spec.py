"""Export of a Helm chart: its options, and settings of a spec that a cluster does not take."""

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
from headrace.deploy.features import Loss, is_within, written

_MOUNT: Final = re.compile(r"(?P<kind>[a-z]+):(?P<name>[^=]+)=(?P<path>/.*)")
_NAME: Final = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")
Values = dict[str, Any]
"""A part of a chart's values."""


class HelmMode(StrEnum):
    """Who makes the objects of model versions."""

    DRIVER = "driver"
    """The control plane, in the cluster."""
    STATIC = "static"
    """The chart itself, for clusters without our control plane."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mount:
    """Files of a Secret, a ConfigMap or a claim, and where pods have them."""

    kind: str
    name: str
    path: PurePosixPath

    @classmethod
    def parsed(cls, text: str) -> Self:
        """`secret:NAME=/PATH`, `config:NAME=/PATH` or `claim:NAME=/PATH`.

        Raises:
            InvalidArgumentError: It is written otherwise.
        """
        found = _MOUNT.fullmatch(text)
        if found is None or found["kind"] not in _SOURCES or not _NAME.fullmatch(found["name"]):
            msg = (
                f"--mount {text!r} is not KIND:NAME=/PATH, such as secret:trust=/etc/trust; "
                "kinds are secret, config and claim"
            )
            raise InvalidArgumentError(msg)
        path = PurePosixPath(found["path"])
        if ".." in path.parts or path == PurePosixPath("/") or path.is_relative_to("/etc/headrace"):
            msg = f"--mount {text!r}: {path} is no folder that files may be mounted to"
            raise InvalidArgumentError(msg)
        return cls(kind=found["kind"], name=found["name"], path=path)

    @property
    def is_writable(self) -> bool:
        """Whether pods can write there."""
        return self.kind == "claim"

    def has(self, path: str) -> bool:
        """Whether a path lies in it."""
        there = PurePosixPath(path)
        return ".." not in there.parts and there.is_relative_to(self.path)


_SOURCES: Final[Mapping[str, tuple[str, str]]] = {
    "secret": ("secret", "secretName"),
    "config": ("configMap", "name"),
    "claim": ("persistentVolumeClaim", "claimName"),
}


def volumes_of(mounts: Iterable[Mount]) -> Values:
    """The values by which pods have `mounts`."""
    volumes, places = [], []
    for i, mount in enumerate(mounts):
        source, key = _SOURCES[mount.kind]
        volumes.append({"name": f"mount-{i}", source: {key: mount.name}})
        place: Values = {"name": f"mount-{i}", "mountPath": str(mount.path)}
        places.append(place if mount.is_writable else {**place, "readOnly": True})
    return {"extraVolumes": volumes, "extraVolumeMounts": places}


@dataclass(frozen=True, slots=True, kw_only=True)
class HelmOptions:
    """What no spec says.

    `jobs_apart`, `streams_apart`: as CronJobs and Deployments of their own, and not by the control
    plane. `lag_records`: how many records one worker may be behind, for KEDA; None for what ten
    batches hold. `nats_monitoring`: HOST:PORT of NATS' own statistics. `keda_authentication`: the
    TriggerAuthentication by which KEDA asks brokers. `allowed`: settings that may be left out.
    """

    mode: HelmMode = HelmMode.DRIVER
    artifacts: str = ""
    mounts: tuple[Mount, ...] = ()
    jobs_apart: bool = True
    streams_apart: bool = True
    lag_records: int | None = None
    nats_monitoring: str = ""
    keda_authentication: str = ""
    allowed: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ArtifactFile:
    """What pods fetch: the artifact's digest, and the file or folder in it that a runtime loads."""

    digest: str
    filename: str


@dataclass(frozen=True, slots=True, kw_only=True)
class HelmExport:
    """Values for the chart, and what has to be said beside them."""

    values: Values
    notes: tuple[str, ...] = field(default=())


_PUSH: Final = "push it (`headrace models push NAME FILE`) and name it NAME:VERSION"
_OF_ONE_MACHINE: Final = re.compile(r"(sqlite|unix|file|feast|log):")
_URLS: Final = ("url", "broker")
_NO_CONTROL: Final = (
    "is the gateway's or the control plane's, and with --mode static there is neither"
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
"""What static objects, or the alerts beside them, say."""
_OF_POOLS: Final = ("pools", "endpoints[].pool")


def spec_losses(spec: SystemSpec, mounts: Iterable[Mount]) -> list[Loss]:
    """What no cluster can express: files of one machine, and what joins processes of one."""
    document = spec.document()
    found = list(_endpoint_losses(spec))
    for name in ("limits_listen", "limits_service"):
        if getattr(spec.gateway, name) is not None:
            way = "leave it out: the control plane counts for all gateways of the chart"
            found.append(Loss(f"gateway.{name}", "joins gateways of one machine", way))
    endpoints = {key: value for key, value in document.items() if key not in {"jobs", "streams"}}
    return found + path_losses(endpoints, "", tuple(mounts))


def _endpoint_losses(spec: SystemSpec) -> Iterator[Loss]:
    for i, endpoint in enumerate(spec.endpoints):
        place = f"endpoints[{i}]"
        if endpoint.features is not None and endpoint.features.online_store is None:
            yield Loss(
                f"{place}.features.online_store",
                "is not set, and a pod does not see the home's own store",
                "name one of `online_stores` that pods reach, such as redis://HOST:PORT/DB",
            )
        for j, version in enumerate(endpoint.split()):
            where = place if endpoint.versions is None else f"{place}.versions[{j}]"
            if version.model is not None and is_model_path(version.model):
                why = f"is {version.model}, a file of this machine that no pod can read"
                yield Loss(f"{where}.model", why, _PUSH)


def path_losses(value: object, place: str, mounts: tuple[Mount, ...]) -> list[Loss]:
    """Files and stores of this machine that the document names, where no mount has them."""
    if isinstance(value, list | tuple):
        return [
            loss
            for i, one in enumerate(value)
            for loss in path_losses(one, f"{place}[{i}]", mounts)
        ]
    if not isinstance(value, Mapping):
        return []
    found: list[Loss] = []
    for key, one in value.items():
        where = f"{place}.{key}" if place else str(key)
        if str(key).endswith("_file") or key == "trusted_keys":
            paths = one if isinstance(one, list | tuple) else [one]
            found += [loss for path in paths for loss in _file_loss(where, path, mounts)]
        elif key in _URLS and isinstance(one, str) and _OF_ONE_MACHINE.match(one):
            why = f"is {one.partition(':')[0]}:…, which lies on one machine"
            found.append(Loss(where, why, "name a server that pods reach"))
        else:
            found += path_losses(one, where, mounts)
    return found


def _file_loss(place: str, path: object, mounts: tuple[Mount, ...]) -> Iterator[Loss]:
    if isinstance(path, str) and path.startswith("/") and not any(m.has(path) for m in mounts):
        yield Loss(
            place,
            f"is {path}, which pods do not have",
            f"mount it: --mount secret:NAME={path.rpartition('/')[0] or '/FOLDER'}",
        )


def static_losses(spec: SystemSpec) -> list[Loss]:
    """What needs a gateway or a control plane of ours, outermost settings only."""
    found = list(_pool_losses(spec))
    for one in written(spec):
        is_told = any(
            is_within(one.field, known) or is_within(known, one.field)
            for known in (*_STATIC, *_OF_POOLS)
        )
        if is_told or any(is_within(one.place, loss.place) for loss in found):
            continue
        way = "leave it to --mode driver, or to the gateway of your cluster"
        found.append(Loss(one.place, _NO_CONTROL, way))
    for i, endpoint in enumerate(spec.endpoints):
        place = f"endpoints[{i}]"
        if endpoint.access is None:
            found.append(
                Loss(
                    f"{place}.access",
                    "is not set, so that Headrace asks who calls beyond loopback, and "
                    "with --mode static nobody is asked",
                    "say `access: public`, or have something else ask",
                )
            )
        if endpoint.autoscale is not None and spec.kubernetes.autoscaler == Autoscaler.HEADRACE:
            why = "is what the control plane scales by, and with --mode static there is none"
            way = "say who does it: kubernetes.autoscaler, hpa or keda"
            found.append(Loss(f"{place}.autoscale", why, way))
        found += [
            Loss(f"{place}.versions[{j}].upstream", "is a server of somebody else's", "route to it")
            for j, version in enumerate(endpoint.versions or ())
            if version.upstream is not None
        ]
    public = {
        f"endpoints[{i}].access" for i, e in enumerate(spec.endpoints) if e.access == "public"
    }
    return [loss for loss in found if loss.place not in public]


def _pool_losses(spec: SystemSpec) -> Iterator[Loss]:
    why = "is told which models it hosts by the control plane, and with --mode static there is none"
    way = "leave it out, with every endpoint's 'pool': each gets pods of its own"
    yield from (Loss(f"pools[{i}]", why, way) for i, _ in enumerate(spec.pools))
    for i, endpoint in enumerate(spec.endpoints):
        if endpoint.pool is not None:
            why = "names a pool, which nobody tells its models without a control plane"
            yield Loss(f"endpoints[{i}].pool", why, "leave it out")


def variables_of(document: object) -> tuple[str, ...]:
    """The variables of the environment that a document names, in order."""
    if isinstance(document, str):
        return tuple(dict.fromkeys(VARIABLE.findall(document)))
    parts: Iterable[object] = ()
    if isinstance(document, Mapping):
        parts = document.values()
    elif isinstance(document, list | tuple):
        parts = document
    return tuple(dict.fromkeys(name for part in parts for name in variables_of(part)))


def models_apart(spec: SystemSpec) -> Iterator[tuple[str, str]]:
    """Place and reference of each model that jobs and streams run by themselves."""
    for i, job in enumerate(spec.jobs):
        yield f"jobs[{i}].model", job.model
    for i, stream in enumerate(spec.streams):
        if stream.model is not None:
            yield f"streams[{i}].model", stream.model


def model_path_loss(place: str, model: str) -> Iterator[Loss]:
    """A model that lies on this machine only."""
    if is_model_path(model):
        yield Loss(place, f"is {model}, a file of this machine that no pod can read", _PUSH)
