"""Facts of a spec for exports, read once for all targets."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import PurePath
from typing import Final

from headrace.core import InvalidArgumentError
from headrace.core.spec.parse import EndpointSpec, SystemSpec, VersionSpec, is_model_path
from headrace.core.spec.upstream import UpstreamSpec

_FULL: Final = 100
_VERSION: Final = re.compile(r"[0-9]{1,18}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """A model in the registry, or a file."""

    filename: str
    """The file that a runtime loads."""

    version: str = ""

    digest: str = ""
    """`sha256:...`; empty if it is not in a registry."""

    runtime: str = ""
    """Runtime; empty if unknown."""

    runs_code: bool = False

    sha256: str = ""
    """Hash of a single file, verified by the replica."""

    labels: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Class names by output."""

    encodes: bool = False
    """Whether it is an encoder of texts; False for a file outside of a registry."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionShare:
    """One version's current share of the requests in a running system."""

    version: str
    weight: int
    model: str = ""
    replicas: int = 1
    revision: str = ""
    """Id of the revision its pods run; empty without pods."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveEndpoint:
    """An endpoint in a running system, possibly during a rollout."""

    shares: tuple[VersionShare, ...]
    mirror: str = ""
    """The version that gets mirrored requests; empty for none."""

    mirror_percent: int = 0
    """Percent of requests that are mirrored."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """One version of an endpoint."""

    number: str
    weight: int
    location: str
    model: str = ""
    replicas: int = 1
    revision: str = ""
    upstream: UpstreamSpec | None = None
    artifact: Artifact | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """One endpoint: its spec and its versions in the spec's order."""

    spec: EndpointSpec
    location: str
    versions: tuple[Version, ...]
    mirror: str = ""
    mirror_percent: int = 0

    @property
    def name(self) -> str:
        """Return the name that callers use."""
        return self.spec.name

    @property
    def split(self) -> tuple[Version, ...]:
        """Return the versions in the traffic split."""
        return tuple(version for version in self.versions if version.weight > 0)

    @property
    def newest(self) -> Version:
        """Return the last listed version of the split."""
        return self.split[-1]

    def stable(self) -> "Endpoint":
        """Return a copy with the first version of the split alone, for all requests."""
        return replace(self, versions=(replace(self.split[0], weight=_FULL),))

    def version(self, number: str) -> Version:
        """Return the version with this number; StopIteration if it does not exist."""
        return next(version for version in self.versions if version.number == number)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportFacts:
    """The facts of a spec for an export."""

    spec: SystemSpec
    endpoints: tuple[Endpoint, ...]
    allowed: tuple[str, ...] = ()
    """Fields that may be lost."""
    key_sets: Mapping[str, str] = field(default_factory=dict)
    """Key sets (RFC 7517) of identity providers with a key file, by provider name."""

    @property
    def body_bytes(self) -> int:
        """Return the size limit of a request."""
        return self.spec.gateway.max_body_bytes


def read_facts(
    spec: SystemSpec,
    *,
    artifacts: Mapping[str, Artifact] | None = None,
    observed: Mapping[str, LiveEndpoint] | None = None,
    allowed: Sequence[str] = (),
    only: Sequence[str] = (),
    key_sets: Mapping[str, str] | None = None,
    revisions: Mapping[tuple[str, str], str] | None = None,
) -> ExportFacts:
    """Read the facts of `spec`.

    Args:
        artifacts: Known models, by the spec's `model`.
        observed: State of a running system by endpoint; else the spec's split is used.
        only: Names of endpoints to export; empty for all.
        revisions: Ids of the revisions that a control plane would run, by endpoint and version.

    Raises:
        InvalidArgumentError: Endpoints or version numbers are missing; all are listed.
    """
    unknown = [name for name in only if all(name != e.name for e in spec.endpoints)]
    mistakes = [f"--endpoint {name}: the spec has no endpoint of that name" for name in unknown]
    endpoints = []
    for i, endpoint in enumerate(spec.endpoints):
        if only and endpoint.name not in only:
            continue
        live = (observed or {}).get(endpoint.name)
        location = f"endpoints[{i}]"
        versions = tuple(
            replace(
                version,
                revision=version.revision
                or (revisions or {}).get((endpoint.name, version.number), ""),
            )
            for version in _versions(endpoint, location, artifacts or {}, live, mistakes)
        )
        if versions and not any(version.weight for version in versions):
            mistakes.append(f"{location}: no version of {endpoint.name!r} has traffic now")
        endpoints.append(
            Endpoint(
                spec=endpoint,
                location=location,
                versions=versions,
                mirror=live.mirror if live else "",
                mirror_percent=live.mirror_percent if live else 0,
            )
        )
    if not endpoints and not mistakes:
        mistakes.append("endpoints: the spec has none to export")
    if mistakes:
        raise InvalidArgumentError("cannot export this spec:\n  " + "\n  ".join(mistakes))
    return ExportFacts(
        spec=spec,
        endpoints=tuple(endpoints),
        allowed=tuple(allowed),
        key_sets=key_sets or {},
    )


def _versions(
    endpoint: EndpointSpec,
    path: str,
    artifacts: Mapping[str, Artifact],
    live: LiveEndpoint | None,
    mistakes: list[str],
) -> Iterator[Version]:
    """Yield the versions of an endpoint; their mistakes are added to `mistakes`."""
    if live is not None:
        yield from _observed(endpoint, path, artifacts, live)
        return
    rows = endpoint.split()
    taken: set[str] = set()
    for j, row in enumerate(rows):
        location = path if endpoint.versions is None else f"{path}.versions[{j}]"
        number = _number(row, artifacts, alone=len(rows) == 1)
        if not number:
            mistakes.append(
                f"{location}.model: {row.model!r} has no version number; push it "
                "(`headrace models push`) and name it NAME:VERSION, or export with --from-system"
            )
            continue
        if number in taken:
            mistakes.append(f"{location}: version {number} of {endpoint.name!r} is listed twice")
        taken.add(number)
        yield Version(
            number=number,
            weight=row.weight,
            location=location,
            model=row.model or "",
            replicas=row.replicas,
            upstream=row.upstream,
            artifact=_artifact(row.model, artifacts),
        )


def _observed(
    endpoint: EndpointSpec, location: str, artifacts: Mapping[str, Artifact], live: LiveEndpoint
) -> Iterator[Version]:
    upstreams = {row.version: row.upstream for row in endpoint.split() if row.upstream is not None}
    for share in live.shares:
        upstream = None if share.model else upstreams.get(share.version)
        yield Version(
            number=share.version,
            weight=share.weight,
            location=location,
            model="" if upstream else share.model,
            replicas=share.replicas,
            revision="" if upstream else share.revision,
            upstream=upstream,
            artifact=_artifact(share.model, artifacts),
        )


def _number(row: VersionSpec, artifacts: Mapping[str, Artifact], *, alone: bool) -> str:
    """Return the version number; a single file is 1, as in `headrace serve FILE`."""
    if row.model is None:
        return row.version
    if not is_model_path(row.model):
        _, _, number = row.model.partition(":")
        if _VERSION.fullmatch(number):
            return number
    artifact = artifacts.get(row.model)
    if artifact is not None and artifact.version:
        return artifact.version
    return "1" if alone and is_model_path(row.model) else ""


def _artifact(model: str | None, artifacts: Mapping[str, Artifact]) -> Artifact | None:
    if not model:
        return None
    artifact = artifacts.get(model)
    if artifact is None and is_model_path(model):
        return Artifact(filename=PurePath(model).name)
    return artifact
