"""The system as a Mermaid flowchart, as wikis and code hosts draw it."""

from collections.abc import Iterator
from typing import Final

from headrace.advise.diagram import (
    EndpointPart,
    Picture,
    copies_text,
    share_text,
    traffic_text,
)

_ESCAPES: Final = {
    "&": "#amp;",
    '"': "#quot;",
    "<": "#lt;",
    ">": "#gt;",
    "`": "#96;",
    "#": "#35;",
}


def mermaid(picture: Picture) -> str:
    """The source of a flowchart from left to right."""
    return "".join(f"{line}\n" for line in _lines(picture))


def _lines(picture: Picture) -> Iterator[str]:
    yield "flowchart LR"
    yield f"  callers([{_label('Callers')}])"
    tls = "TLS" if picture.encrypted else "no TLS"
    state = "ready" if picture.gateway_ready else "not ready"
    gateway = ("Gateway (Envoy)", f"HTTP, gRPC {picture.http}", f"gRPC {picture.grpc}")
    yield f"  gateway[{_label(*gateway, f'{tls}, {state}')}]"
    control = (
        "Control plane",
        f"management {picture.management}",
        f"metrics {picture.metrics}",
        f"generation {picture.generation}",
    )
    yield f"  operators([{_label('Operators')}])"
    yield f"  control[{_label(*control)}]"
    yield f"  registry[({_label('Registry', f'{picture.models} model versions in use')})]"
    rate = f"{picture.requests_per_s:,.1f} requests/s"
    yield f"  callers -->|{_label(rate)}| gateway"
    yield "  operators --> control"
    yield f"  control -.->|{_label('routes')}| gateway"
    yield "  registry --> control"
    for number, endpoint in enumerate(picture.endpoints):
        yield from _endpoint(endpoint, f"e{number}")
    if picture.more:
        yield f"  more[{_label(f'{picture.more:,} more endpoints')}]"
        yield "  gateway --> more"
    yield "  classDef ok stroke:#1d6f42"
    yield "  classDef idle stroke:#5c636b"
    yield "  classDef warning stroke:#8a6100,stroke-width:2px"
    yield "  classDef failing stroke:#b3123b,stroke-width:3px"


def _endpoint(endpoint: EndpointPart, name: str) -> Iterator[str]:
    words = [endpoint.name, endpoint.state, traffic_text(endpoint)]
    if endpoint.rollout:
        words.append(endpoint.rollout)
    yield f"  {name}[{_label(*words)}]:::{endpoint.state}"
    yield f"  gateway --> {name}"
    for number, version in enumerate(endpoint.versions):
        node = f"{name}v{number}"
        arrow = "-.->" if version.mirror_percent else "-->"
        said = (f"version {version.name}", version.model, copies_text(version))
        yield f"  {node}[{_label(*said)}]"
        yield f"  {name} {arrow}|{_label(share_text(version))}| {node}"


def _label(*lines: str) -> str:
    escaped = ("".join(_ESCAPES.get(char, char) for char in line) for line in lines if line)
    return f'"{"<br>".join(escaped)}"'
