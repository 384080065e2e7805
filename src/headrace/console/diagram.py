"""Diagram of the running system: callers, gateway, endpoints, versions, replicas. Pure.

Each kind has its own column; a row is as high as its children.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from headrace.console.view import PageRequest, PageView
from headrace.control.agents.registry import GatewayState, SyncStatus
from headrace.control.plane.status import GatewayStatus, SystemStatus
from headrace.control.reconcile.status import EndpointStatus, RevisionStatus

MOST: Final = 20
_MAX_REPLICAS: Final = 8
_MAX_GATEWAYS: Final = 6
_WIDTH: Final = 176
_BOX: Final = 46
_ROW: Final = 60
_GAP: Final = 64
_EDGE: Final = 8
_LABEL: Final = 20
_HEADS: Final = ("Callers", "Gateway", "Endpoints", "Versions", "Replicas")


@dataclass(frozen=True, slots=True, kw_only=True)
class DiagramNode:
    """Node; `state` is `ok`, `warning`, `failing` or `idle`; `link` is a page, or empty."""

    x: int
    y: int
    name: str
    detail: str
    state: str
    link: str = ""
    width: int = _WIDTH
    height: int = _BOX


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrow:
    """Arrow along which requests flow; `is_idle` if none flow now."""

    path: str
    label: str
    label_x: int
    label_y: int
    is_idle: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagram:
    """Diagram; `heads` are the columns' names with their positions."""

    width: int
    height: int
    heads: tuple[tuple[int, str], ...]
    boxes: tuple[DiagramNode, ...]
    arrows: tuple[Arrow, ...]


async def diagram(request: PageRequest) -> PageView:
    """Return the page of the diagram."""
    status = await request.visitor.get("/api/v1/status", SystemStatus)
    endpoints = [endpoint for endpoint in status.endpoints if request.matches_search(endpoint.name)]
    return PageView(
        template="diagram.html",
        title="Diagram",
        section="diagram",
        announcement="The gateway is ready."
        if status.gateway.ready
        else "The gateway is not ready.",
        values={
            "diagram": draw_diagram(status, endpoints[:MOST]),
            "status": status,
            "endpoints": endpoints[:MOST],
            "total": len(endpoints),
        },
    )


def draw_diagram(status: SystemStatus, endpoints: Sequence[EndpointStatus]) -> Diagram:
    """Return the diagram of some endpoints of a system."""
    boxes: list[DiagramNode] = []
    arrows: list[Arrow] = []
    y = _EDGE + _LABEL
    middles = []
    for endpoint in endpoints:
        high = _add_endpoint(endpoint, y, boxes, arrows)
        middles.append((y + (high - _ROW) // 2, endpoint))
        y += high
    height = max(y, _EDGE + _LABEL + _ROW)
    middle = _EDGE + _LABEL + (height - _EDGE - _LABEL - _ROW) // 2
    boxes.append(
        DiagramNode(x=_x(0), y=middle, name="callers", detail="HTTP and gRPC", state="idle")
    )
    gateways = gateway_boxes(status.gateway, middle)
    boxes += gateways
    height = max(height, *(box.y + _ROW for box in gateways))
    arrows += [
        _arrow(0, middle, box.y, label="", is_idle=not endpoints or box.state == "failing")
        for box in gateways
    ]
    arrows += [
        _arrow(1, middle, center, label="", is_idle=not endpoint.ready)
        for center, endpoint in middles
    ]
    return Diagram(
        width=_x(len(_HEADS) - 1) + _WIDTH + _EDGE,
        height=height + _EDGE,
        heads=tuple((_x(i), head) for i, head in enumerate(_HEADS)),
        boxes=tuple(boxes),
        arrows=tuple(arrows),
    )


def gateway_boxes(gateway: GatewayStatus, middle: int) -> list[DiagramNode]:
    """Return the local Envoy, if there is one, and each remote one, around a position."""
    gateways: list[tuple[str, str, str]] = []
    if gateway.pid is not None or not gateway.gateways:
        detail = "ready" if gateway.ready else (gateway.reason or "not ready")
        gateways.append(("Envoy", detail, "ok" if gateway.ready else "failing"))
    gateways += [
        (remote.name, *_gateway_words(remote)) for remote in gateway.gateways[:_MAX_GATEWAYS]
    ]
    if (more := len(gateway.gateways) - _MAX_GATEWAYS) > 0:
        gateways.append((f"{more} more gateways", "see `headrace status`", "idle"))
    top = max(middle - _ROW * (len(gateways) - 1) // 2, _EDGE + _LABEL)
    return [
        DiagramNode(x=_x(1), y=top + number * _ROW, name=name, detail=detail, state=state)
        for number, (name, detail, state) in enumerate(gateways)
    ]


def _gateway_words(gateway: GatewayState) -> tuple[str, str]:
    """Return the state of a remote gateway as text and as CSS state."""
    match gateway.standing:
        case SyncStatus.CURRENT | SyncStatus.WAITING if gateway.ready:
            return f"version {gateway.version[:8]}, last report {gateway.seen_s:.0f} s ago", "ok"
        case SyncStatus.BEHIND:
            return f"configuration outdated for {gateway.behind_s:,.0f} s", "warning"
        case SyncStatus.REFUSED:
            return "rejected the newest version", "warning"
        case SyncStatus.LOST:
            return f"no report for {gateway.seen_s:,.0f} s", "failing"
        case _:
            return gateway.reason or "not ready", "failing"


def _add_endpoint(
    endpoint: EndpointStatus, y: int, boxes: list[DiagramNode], arrows: list[Arrow]
) -> int:
    """Draw one endpoint from `y` on; return its height."""
    state = "ok" if endpoint.ready else "failing" if endpoint.failed else "warning"
    tops = []
    below = y
    for revision in endpoint.revisions:
        high = max(len(_names_of(revision)), 1) * _ROW
        tops.append((below + (high - _ROW) // 2, below, revision))
        below += high
    high = max(below - y, _ROW)
    center = y + (high - _ROW) // 2
    boxes.append(
        DiagramNode(
            x=_x(2),
            y=center,
            name=endpoint.name,
            detail="ready" if endpoint.ready else "not ready",
            state=state,
            link=f"/endpoints/{endpoint.name}",
        )
    )
    for middle, top, revision in tops:
        _add_revision(revision, middle, top, boxes, arrows)
        label = f"{revision.weight} %"
        arrows.append(_arrow(2, center, middle, label=label, is_idle=not revision.weight))
    return high


def _add_revision(
    revision: RevisionStatus, middle: int, top: int, boxes: list[DiagramNode], arrows: list[Arrow]
) -> None:
    names = _names_of(revision)
    ready = sum(replica.state == "ready" for replica in revision.replicas)
    detail = f"{ready} of {revision.desired_replicas} ready"
    state = "ok" if ready >= revision.desired_replicas else "warning"
    boxes.append(
        DiagramNode(
            x=_x(3),
            y=middle,
            name=f"version {revision.version}" + (f", {revision.role}" if revision.role else ""),
            detail=revision.model or detail,
            state=state if revision.desired_replicas else "idle",
        )
    )
    for i, (name, detail_, is_ready) in enumerate(names):
        top_ = top + i * _ROW
        boxes.append(
            DiagramNode(
                x=_x(4), y=top_, name=name, detail=detail_, state="ok" if is_ready else "warning"
            )
        )
        arrows.append(_arrow(3, middle, top_, label="", is_idle=not is_ready))


def _names_of(revision: RevisionStatus) -> list[tuple[str, str, bool]]:
    """Return the replicas to draw; the last stands for all that do not fit."""
    replicas = [
        (
            replica.name,
            f"{replica.state}, pid {replica.pid}" if replica.pid else replica.state,
            replica.state == "ready",
        )
        for replica in revision.replicas
    ]
    if len(replicas) <= _MAX_REPLICAS:
        return replicas
    rest = replicas[_MAX_REPLICAS - 1 :]
    more = (f"{len(rest)} more", "", all(is_ready for _, _, is_ready in rest))
    return [*replicas[: _MAX_REPLICAS - 1], more]


def _x(column: int) -> int:
    return _EDGE + column * (_WIDTH + _GAP)


def _arrow(column: int, y: int, to_y: int, *, label: str, is_idle: bool) -> Arrow:
    """Return an arrow from a box of a column at `y` to one of the next at `to_y`."""
    half = _BOX // 2
    start, end = _x(column) + _WIDTH, _x(column + 1)
    middle = (start + end) // 2
    return Arrow(
        path=f"M{start} {y + half}C{middle} {y + half} {middle} {to_y + half} {end} {to_y + half}",
        label=label,
        label_x=end - 6,
        label_y=to_y + half + (15 if to_y > y else -6),
        is_idle=is_idle,
    )
