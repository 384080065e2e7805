"""Facts of a spec that other systems need, read once for all targets."""

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
    """What the registry knows of a model.

    `digest`: `sha256:...`; empty where it is in no registry. `filename`: what a runtime loads.
    `runtime`: empty where nobody knows. `sha256`: of a lone file, which a replica checks by itself.
    `labels`: class names by output.
    """

    filename: str
    version: str = ""
    digest: str = ""
    runtime: str = ""
    runs_code: bool = False
    sha256: str = ""
    labels: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionShare:
    """One version's share of the requests, as a running system has it now.

    `revision`: the id of what its pods run; empty where nobody runs it in pods.
    """

    version: str
    weight: int
    model: str = ""
    replicas: int = 1
    revision: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveEndpoint:
    """What a running system does with an endpoint: a rollout may be half way.

    `mirror`: the version that gets copies of `mirror_percent` of the requests; empty for none.
    """

    shares: tuple[VersionShare, ...]
    mirror: str = ""
    mirror_percent: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """One version behind an endpoint. `model`: empty for an upstream; `place`: in the spec.

    `revision`: its id, by which the driver names its Service; empty where nobody knows.
    """

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
    """One endpoint: its spec, and the versions that answer for it in the spec's order."""

    spec: EndpointSpec
    location: str
    versions: tuple[Version, ...]
    mirror: str = ""
    mirror_percent: int = 0

    @property
    def name(self) -> str:
        """What callers name."""
        return self.spec.name

    @property
    def split(self) -> tuple[Version, ...]:
        """The versions that take requests which name none."""
        return tuple(version for version in self.versions if version.weight > 0)

    @property
    def newest(self) -> Version:
        """The version that was listed last of those that take requests."""
        return self.split[-1]

    def stable(self) -> "Endpoint":
        """The same with the first version of the split alone, for all requests."""
        return replace(self, versions=(replace(self.split[0], weight=_FULL),))

    def version(self, number: str) -> Version:
        """The version of that number; StopIteration if there is none."""
        return next(version for version in self.versions if version.number == number)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportFacts:
    """A spec, read for an export. `allowed`: fields that may be lost."""

    spec: SystemSpec
    endpoints: tuple[Endpoint, ...]
    allowed: tuple[str, ...] = ()
    key_sets: Mapping[str, str] = field(default_factory=dict)
    """Public keys (RFC 7517) of identity providers whose spec names a file, by their name."""

    @property
    def body_bytes(self) -> int:
        """How large a request may be."""
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
    """The facts that `spec` holds.

    Args:
        artifacts: What is known of models, by the spec's `model`.
        observed: What a running system does, by endpoint; else the spec's own split counts.
        only: Names of the endpoints that are wanted; empty for all.
        revisions: Ids of what a control plane would run, by endpoint and version.

    Raises:
        InvalidArgumentError: With all that is missing: endpoints, versions' numbers.
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
            mistakes.append(f"{location}: no version of {endpoint.name!r} takes requests now")
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
        mistakes.append("endpoints: there is none, so there is nothing to export")
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
    place: str,
    artifacts: Mapping[str, Artifact],
    live: LiveEndpoint | None,
    mistakes: list[str],
) -> Iterator[Version]:
    """The versions of an endpoint; what is wrong with them goes to `mistakes`."""
    if live is not None:
        yield from _observed(endpoint, place, artifacts, live)
        return
    rows = endpoint.split()
    taken: set[str] = set()
    for j, row in enumerate(rows):
        where = place if endpoint.versions is None else f"{place}.versions[{j}]"
        number = _number(row, artifacts, alone=len(rows) == 1)
        if not number:
            mistakes.append(
                f"{where}.model: {row.model!r} says not which version it is; push it "
                "(`headrace models push`) and name it NAME:VERSION, or export with --from-system"
            )
            continue
        if number in taken:
            mistakes.append(f"{where}: version {number} of {endpoint.name!r} is there twice")
        taken.add(number)
        yield Version(
            number=number,
            weight=row.weight,
            location=where,
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
    """The version's number; a file that stands alone is 1, as `headrace serve FILE` calls it."""
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
