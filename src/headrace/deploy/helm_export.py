"""What comes out of the export of a Helm chart, and what it may be told besides the spec?"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import PurePosixPath
from typing import Any, Final, Self

from headrace.core import InvalidArgumentError

_MOUNT: Final = re.compile(r"(?P<kind>[a-z]+):(?P<name>[^=]+)=(?P<path>/.*)")
_NAME: Final = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")

Values = dict[str, Any]
"""A part of a chart's values."""


class Mode(StrEnum):
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

    mode: Mode = Mode.DRIVER
    artifacts: str = ""
    mounts: tuple[Mount, ...] = ()
    jobs_apart: bool = True
    streams_apart: bool = True
    lag_records: int | None = None
    nats_monitoring: str = ""
    keda_authentication: str = ""
    allowed: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """What pods fetch: the artifact's digest, and the file or folder in it that a runtime loads."""

    digest: str
    filename: str


@dataclass(frozen=True, slots=True, kw_only=True)
class HelmExport:
    """Values for the chart, and what has to be said beside them."""

    values: Values
    notes: tuple[str, ...] = field(default=())
