"""Elements of a system's diagram, from the management API's documents, and as Mermaid. Pure."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

import msgspec

from headrace.core.text import duration_text

MAX_ENDPOINTS: Final = 40
"""Maximum number of drawn endpoints; further ones are counted."""

_READY: Final = "ready"


class _Replica(msgspec.Struct, frozen=True, kw_only=True):
    state: str


class _Revision(msgspec.Struct, frozen=True, kw_only=True):
    version: str
    model: str
    weight: int
    desired_weight: int
    desired_replicas: int
    replicas: list[_Replica]
    role: str = ""


class _Endpoint(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    ready: bool
    revisions: list[_Revision]


class _Gateway(msgspec.Struct, frozen=True, kw_only=True):
    ready: bool


class _Status(msgspec.Struct, frozen=True, kw_only=True):
    version: str
    generation: int
    gateway: _Gateway
    endpoints: list[_Endpoint]
    addresses: dict[str, str]


class _Glance(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    state: str
    requests_per_s: float
    p99_s: float | None


class _Rollout(msgspec.Struct, frozen=True, kw_only=True):
    endpoint: str
    strategy: str
    phase: str
    to_version: str
    mirror_percent: int = 0


_ESCAPES: Final = {
    "&": "#amp;",
    '"': "#quot;",
    "<": "#lt;",
    ">": "#gt;",
    "`": "#96;",
    "#": "#35;",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionPart:
    """One version of an endpoint: its share of the requests and its replicas."""

    name: str

    model: str
    """Name of the model; empty for an upstream."""

    weight: int
    """Percent of the endpoint's requests."""

    ready: int
    """Number of ready replicas."""

    desired: int
    """Number of desired replicas."""

    server: str = ""
    """Address of an upstream; empty for local replicas."""

    mirror_percent: int = 0
    """Percent of the endpoint's requests that are mirrored to it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DiagramEndpoint:
    """One endpoint."""

    name: str

    state: str
    """failing, warning, ok or idle."""

    requests_per_s: float

    p99_s: float | None

    rollout: str
    """The active rollout; empty for none."""

    versions: tuple[VersionPart, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """The elements of a system's diagram."""

    http: str
    grpc: str
    metrics: str
    management: str
    gateway_ready: bool
    encrypted: bool
    management_encrypted: bool
    generation: int
    version: str
    requests_per_s: float
    models: int
    replicas: int
    endpoints: tuple[DiagramEndpoint, ...]
    more: int = 0
    """Number of endpoints that are not drawn."""


def picture_of(
    status: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    rollouts: Sequence[Mapping[str, Any]] = (),
    *,
    search: str = "",
    limit: int = MAX_ENDPOINTS,
) -> Picture:
    """Return the picture of the documents `/status`, `/overview` and `/rollouts?active=true`.

    Args:
        search: Only endpoints with this text in their name.
        limit: Number of endpoints: failing ones first, then the busiest.
    """
    parsed = msgspec.convert(status, _Status)
    glances = {row.name: row for row in msgspec.convert(rows, list[_Glance])}
    active = {rollout.endpoint: rollout for rollout in msgspec.convert(rollouts, list[_Rollout])}
    matching = [
        endpoint for endpoint in parsed.endpoints if search.strip().lower() in endpoint.name.lower()
    ]
    parts = [
        _endpoint(endpoint, glances.get(endpoint.name), active.get(endpoint.name))
        for endpoint in matching
    ]
    shown = sorted(parts, key=_rank)[: max(limit, 0)]
    revisions = [revision for endpoint in parsed.endpoints for revision in endpoint.revisions]
    addresses = parsed.addresses
    return Picture(
        http=_place(addresses.get("http", "")),
        grpc=addresses.get("grpc", ""),
        metrics=_place(addresses.get("metrics", "")),
        management=_place(addresses.get("admin", "")),
        gateway_ready=parsed.gateway.ready,
        encrypted=addresses.get("http", "").startswith("https:"),
        management_encrypted=addresses.get("admin", "").startswith("https:"),
        generation=parsed.generation,
        version=parsed.version,
        requests_per_s=sum(row.requests_per_s for row in glances.values()),
        models=len(
            {
                revision.model
                for revision in revisions
                if revision.model and not _server(revision.model)
            }
        ),
        replicas=sum(len(revision.replicas) for revision in revisions),
        endpoints=tuple(sorted(shown, key=lambda part: part.name)),
        more=len(parts) - len(shown),
    )


def describe_picture(picture: Picture) -> list[str]:
    """Return the picture as sentences, for readers who cannot see it."""
    tls = "encrypted" if picture.encrypted else "not encrypted"
    lines = [
        (
            f"Callers send {picture.requests_per_s:,.1f} requests per second to the gateway at "
            f"{picture.http} and {picture.grpc}, {tls}."
        ),
        (
            f"The control plane at {picture.management} publishes routes to the gateway and runs "
            f"{picture.replicas} replicas of {picture.models} model versions."
        ),
    ]
    for endpoint in picture.endpoints:
        shares = ", ".join(
            f"version {version.name} {share_text(version)}, {copies_text(version)}"
            for version in endpoint.versions
        )
        rollout = f"; {endpoint.rollout}" if endpoint.rollout else ""
        lines.append(f"Endpoint {endpoint.name} is {endpoint.state}: {shares or '-'}{rollout}.")
    if picture.more:
        lines.append(f"{picture.more:,} more endpoints are not shown.")
    return lines


def share_text(version: VersionPart) -> str:
    """Return a version's share of its endpoint's requests."""
    if version.mirror_percent:
        return f"copies of {version.mirror_percent} %"
    return f"{version.weight} %"


def copies_text(version: VersionPart) -> str:
    """Return the number of replicas, or the address of an upstream."""
    if version.server:
        return f"at {version.server}"
    noun = "replica" if version.desired == 1 else "replicas"
    return f"{version.ready} of {version.desired} {noun} ready"


def traffic_text(endpoint: DiagramEndpoint) -> str:
    """Return an endpoint's traffic in the last minute."""
    rate = f"{endpoint.requests_per_s:,.1f} requests/s"
    if endpoint.p99_s is None:
        return rate
    return f"{rate}, p99 {duration_text(endpoint.p99_s)}"


_WORST_FIRST: Final = ("failing", "warning", "ok", "idle")


def _rank(part: DiagramEndpoint) -> tuple[bool, float, str]:
    is_well = part.state not in _WORST_FIRST[:2]
    return is_well, -part.requests_per_s, part.name


def _endpoint(
    endpoint: _Endpoint, snapshot: _Glance | None, rollout: _Rollout | None
) -> DiagramEndpoint:
    state = ("ok" if endpoint.ready else "warning") if snapshot is None else snapshot.state
    rollout_text = (
        "" if rollout is None else f"{rollout.strategy} {rollout.phase.replace('_', ' ')}"
    )
    return DiagramEndpoint(
        name=endpoint.name,
        state=state,
        requests_per_s=0.0 if snapshot is None else snapshot.requests_per_s,
        p99_s=None if snapshot is None else snapshot.p99_s,
        rollout=rollout_text,
        versions=tuple(
            _version(revision, rollout)
            for revision in endpoint.revisions
            if revision.desired_replicas or revision.desired_weight or revision.replicas
        ),
    )


def _version(revision: _Revision, rollout: _Rollout | None) -> VersionPart:
    is_candidate = rollout is not None and rollout.to_version == revision.version
    return VersionPart(
        name=f"{revision.version} {revision.role}".strip(),
        model="" if _server(revision.model) else _printable(revision.model),
        weight=revision.weight,
        ready=sum(replica.state == _READY for replica in revision.replicas),
        desired=revision.desired_replicas,
        server=_server(revision.model),
        mirror_percent=rollout.mirror_percent if rollout is not None and is_candidate else 0,
    )


def _server(model: str) -> str:
    """Return host and port of an upstream; empty for a model of the registry or a file."""
    scheme, separator, rest = model.partition("://")
    if not separator or not scheme.isalpha():
        return ""
    return _printable(rest.partition("/")[0].rpartition("@")[2])


def _printable(text: str) -> str:
    """Return `text` without unprintable characters."""
    return "".join(char for char in text if char.isprintable())


def _place(url: str) -> str:
    """Return host and port of a URL."""
    return urlsplit(url).netloc or url


def mermaid(picture: Picture) -> str:
    """Return the source of a flowchart from left to right."""
    return "".join(f"{line}\n" for line in _mermaid_lines(picture))


def _mermaid_lines(picture: Picture) -> Iterator[str]:
    yield "flowchart LR"
    yield f"  callers([{_mermaid_label('Callers')}])"
    tls = "TLS" if picture.encrypted else "no TLS"
    state = "ready" if picture.gateway_ready else "not ready"
    gateway = ("Gateway (Envoy)", f"HTTP, gRPC {picture.http}", f"gRPC {picture.grpc}")
    yield f"  gateway[{_mermaid_label(*gateway, f'{tls}, {state}')}]"
    control = (
        "Control plane",
        f"management {picture.management}",
        f"metrics {picture.metrics}",
        f"generation {picture.generation}",
    )
    yield f"  operators([{_mermaid_label('Operators')}])"
    yield f"  control[{_mermaid_label(*control)}]"
    yield f"  registry[({_mermaid_label('Registry', f'{picture.models} model versions in use')})]"
    rate = f"{picture.requests_per_s:,.1f} requests/s"
    yield f"  callers -->|{_mermaid_label(rate)}| gateway"
    yield "  operators --> control"
    yield f"  control -.->|{_mermaid_label('routes')}| gateway"
    yield "  registry --> control"
    for number, endpoint in enumerate(picture.endpoints):
        yield from _mermaid_endpoint(endpoint, f"e{number}")
    if picture.more:
        yield f"  more[{_mermaid_label(f'{picture.more:,} more endpoints')}]"
        yield "  gateway --> more"
    yield "  classDef ok stroke:#1d6f42"
    yield "  classDef idle stroke:#5c636b"
    yield "  classDef warning stroke:#8a6100,stroke-width:2px"
    yield "  classDef failing stroke:#b3123b,stroke-width:3px"


def _mermaid_endpoint(endpoint: DiagramEndpoint, name: str) -> Iterator[str]:
    words = [endpoint.name, endpoint.state, traffic_text(endpoint)]
    if endpoint.rollout:
        words.append(endpoint.rollout)
    yield f"  {name}[{_mermaid_label(*words)}]:::{endpoint.state}"
    yield f"  gateway --> {name}"
    for number, version in enumerate(endpoint.versions):
        node = f"{name}v{number}"
        arrow = "-.->" if version.mirror_percent else "-->"
        lines = (f"version {version.name}", version.model, copies_text(version))
        yield f"  {node}[{_mermaid_label(*lines)}]"
        yield f"  {name} {arrow}|{_mermaid_label(share_text(version))}| {node}"


def _mermaid_label(*lines: str) -> str:
    escaped = ("".join(_ESCAPES.get(char, char) for char in line) for line in lines if line)
    return f'"{"<br>".join(escaped)}"'
