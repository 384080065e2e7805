"""Parts of a running system from the management API's documents, and as Mermaid. Pure."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

import msgspec

from headrace.core.text import duration_text

MAX_ENDPOINTS: Final = 40
"""More are counted, not drawn: nobody could read it."""

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
    """One version behind an endpoint: its share of the requests, its copies.

    `server`: an upstream that somebody else runs, which has no `model`; empty for copies of ours.
    `mirror_percent`: of the endpoint's requests it gets copies, whose answers nobody waits for.
    """

    name: str
    model: str
    weight: int
    ready: int
    desired: int
    server: str = ""
    mirror_percent: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class DiagramEndpoint:
    """One endpoint; `state` is a word, `rollout` says what is under way, or is empty."""

    name: str
    state: str
    requests_per_s: float
    p99_s: float | None
    rollout: str
    versions: tuple[VersionPart, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """The system's parts. `more`: endpoints that are there and not drawn."""

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


def picture_of(
    status: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    rollouts: Sequence[Mapping[str, Any]] = (),
    *,
    search: str = "",
    limit: int = MAX_ENDPOINTS,
) -> Picture:
    """The picture of what `/api/v1/status`, `/overview` and `/rollouts?active=true` say.

    Args:
        search: Only endpoints with this in their name.
        limit: The busiest so many, and those that are not well before all others.
    """
    found = msgspec.convert(status, _Status)
    glances = {row.name: row for row in msgspec.convert(rows, list[_Glance])}
    active = {one.endpoint: one for one in msgspec.convert(rollouts, list[_Rollout])}
    wanted = [one for one in found.endpoints if search.strip().lower() in one.name.lower()]
    parts = [_endpoint(one, glances.get(one.name), active.get(one.name)) for one in wanted]
    shown = sorted(parts, key=_rank)[: max(limit, 0)]
    revisions = [revision for one in found.endpoints for revision in one.revisions]
    addresses = found.addresses
    return Picture(
        http=_place(addresses.get("http", "")),
        grpc=addresses.get("grpc", ""),
        metrics=_place(addresses.get("metrics", "")),
        management=_place(addresses.get("admin", "")),
        gateway_ready=found.gateway.ready,
        encrypted=addresses.get("http", "").startswith("https:"),
        management_encrypted=addresses.get("admin", "").startswith("https:"),
        generation=found.generation,
        version=found.version,
        requests_per_s=sum(row.requests_per_s for row in glances.values()),
        models=len({one.model for one in revisions if one.model and not _server(one.model)}),
        replicas=sum(len(one.replicas) for one in revisions),
        endpoints=tuple(sorted(shown, key=lambda part: part.name)),
        more=len(parts) - len(shown),
    )


def described(picture: Picture) -> list[str]:
    """The same in sentences, for whoever cannot see it."""
    tls = "encrypted" if picture.encrypted else "not encrypted"
    lines = [
        (
            f"Callers send {picture.requests_per_s:,.1f} requests per second to the gateway at "
            f"{picture.http} and {picture.grpc}, {tls}."
        ),
        (
            f"The control plane at {picture.management} tells the gateway its routes and runs "
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
    """What a version gets of its endpoint's requests."""
    if version.mirror_percent:
        return f"copies of {version.mirror_percent} %"
    return f"{version.weight} %"


def copies_text(version: VersionPart) -> str:
    """How many copies there are, or whose server it is."""
    if version.server:
        return f"at {version.server}"
    noun = "replica" if version.desired == 1 else "replicas"
    return f"{version.ready} of {version.desired} {noun} ready"


def traffic_text(endpoint: DiagramEndpoint) -> str:
    """What an endpoint got in the last minute."""
    rate = f"{endpoint.requests_per_s:,.1f} requests/s"
    if endpoint.p99_s is None:
        return rate
    return f"{rate}, p99 {duration_text(endpoint.p99_s)}"


_WORST_FIRST: Final = ("failing", "warning", "ok", "idle")


def _rank(part: DiagramEndpoint) -> tuple[bool, float, str]:
    is_well = part.state not in _WORST_FIRST[:2]
    return is_well, -part.requests_per_s, part.name


def _endpoint(
    found: _Endpoint, glance: _Glance | None, rollout: _Rollout | None
) -> DiagramEndpoint:
    state = ("ok" if found.ready else "warning") if glance is None else glance.state
    said = "" if rollout is None else f"{rollout.strategy} {rollout.phase.replace('_', ' ')}"
    return DiagramEndpoint(
        name=found.name,
        state=state,
        requests_per_s=0.0 if glance is None else glance.requests_per_s,
        p99_s=None if glance is None else glance.p99_s,
        rollout=said,
        versions=tuple(
            _version(revision, rollout)
            for revision in found.revisions
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
    """Host and port of an upstream; empty for a model of the registry, or a file's path."""
    scheme, separator, rest = model.partition("://")
    if not separator or not scheme.isalpha():
        return ""
    return _printable(rest.partition("/")[0].rpartition("@")[2])


def _printable(text: str) -> str:
    """`text` without what no drawing can hold."""
    return "".join(char for char in text if char.isprintable())


def _place(url: str) -> str:
    """Host and port of a URL."""
    return urlsplit(url).netloc or url


def mermaid(picture: Picture) -> str:
    """The source of a flowchart from left to right."""
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
        said = (f"version {version.name}", version.model, copies_text(version))
        yield f"  {node}[{_mermaid_label(*said)}]"
        yield f"  {name} {arrow}|{_mermaid_label(share_text(version))}| {node}"


def _mermaid_label(*lines: str) -> str:
    escaped = ("".join(_ESCAPES.get(char, char) for char in line) for line in lines if line)
    return f'"{"<br>".join(escaped)}"'
