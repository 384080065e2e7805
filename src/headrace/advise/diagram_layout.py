"""Where does each part of the picture go? Boxes and lines on a plane. Pure."""

from dataclasses import dataclass, field, replace
from typing import Final

from headrace.advise.diagram import (
    EndpointPart,
    Picture,
    copies_text,
    share_text,
    traffic_text,
)

_MARGIN: Final = 24.0
_TOP: Final = 24.0
_CALLERS_W: Final = 170.0
_GATEWAY_X: Final = 260.0
_GATEWAY_W: Final = 280.0
_ENDPOINT_X: Final = 620.0
_ENDPOINT_W: Final = 280.0
_VERSION_X: Final = 1030.0
_VERSION_W: Final = 270.0
_GAP: Final = 14.0
_BETWEEN: Final = 22.0
_APART: Final = 64.0
LINE_H: Final = 19.0
PADDING: Final = 11.0
FONT: Final = 14.0
_CHAR_W: Final = 0.53 * FONT
_MARK_W: Final = 12.0
_LEAST_STROKE: Final = 1.25
_MOST_STROKE: Final = 4.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Box:
    """A part: the first of its `lines` is its name. `kind`: what it is, for its colour."""

    x: float
    y: float
    width: float
    lines: tuple[str, ...]
    kind: str = "part"

    @property
    def height(self) -> float:
        """By the number of lines."""
        return len(self.lines) * LINE_H + 2 * PADDING - 4

    @property
    def middle(self) -> float:
        """The y of its middle."""
        return self.y + self.height / 2

    def fitted(self, line: str) -> str:
        """`line`, cut so that it stays within the box."""
        room = int((self.width - 2 * PADDING - _MARK_W) / _CHAR_W)
        return line if len(line) <= room else f"{line[: room - 1]}…"


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """An arrow from one point to another; bent unless it is straight. `label` stands at it."""

    x1: float
    y1: float
    x2: float
    y2: float
    label: str = ""
    dashed: bool = False
    stroke: float = _LEAST_STROKE

    @property
    def middle(self) -> tuple[float, float]:
        """Where its label stands."""
        return (self.x1 + self.x2) / 2, (self.y1 + self.y2) / 2

    @property
    def is_vertical(self) -> bool:
        """Whether it goes up or down."""
        return self.x1 == self.x2


@dataclass(slots=True, kw_only=True)
class Drawing:
    """Everything that is drawn."""

    width: float = _VERSION_X + _VERSION_W + _MARGIN
    height: float = 0.0
    boxes: list[Box] = field(default_factory=list)
    lines: list[Line] = field(default_factory=list)

    def add(self, box: Box) -> Box:
        """Place `box`, and grow with it."""
        self.boxes.append(box)
        self.height = max(self.height, box.y + box.height + _MARGIN)
        return box

    def join(self, one: Box, other: Box, *, label: str = "", dashed: bool = False) -> None:
        """An arrow from the right of `one` to the left of `other`."""
        self.lines.append(
            Line(
                x1=one.x + one.width,
                y1=one.middle,
                x2=other.x,
                y2=other.middle,
                label=label,
                dashed=dashed,
            )
        )


def layout(picture: Picture) -> Drawing:
    """The picture on a plane: from callers on the left to replicas on the right."""
    drawing = Drawing()
    gateway = _left(picture, drawing)
    y = _TOP
    for endpoint in picture.endpoints:
        y = _endpoint(endpoint, drawing, gateway, y) + _BETWEEN
    if picture.more:
        text = f"and {picture.more:,} more endpoints"
        more = Box(x=_ENDPOINT_X, y=y, width=_ENDPOINT_W, lines=(text,), kind="idle")
        drawing.join(gateway, drawing.add(more))
    if not picture.endpoints and not picture.more:
        lines = ("No endpoints yet", "`headrace apply` adds some")
        drawing.add(Box(x=_ENDPOINT_X, y=y, width=_ENDPOINT_W, lines=lines, kind="idle"))
    return drawing


def _left(picture: Picture, drawing: Drawing) -> Box:
    """Callers, gateway, operators, control plane and registry; the gateway."""
    gateway = drawing.add(
        Box(
            x=_GATEWAY_X,
            y=_TOP,
            width=_GATEWAY_W,
            lines=(
                "Gateway (Envoy)",
                f"HTTP, gRPC  {picture.http}",
                f"gRPC  {picture.grpc}",
                (
                    f"{'TLS' if picture.encrypted else 'no TLS'}, "
                    f"{'ready' if picture.gateway_ready else 'not ready'}"
                ),
            ),
            kind="gateway" if picture.gateway_ready else "failing",
        )
    )
    control = drawing.add(
        Box(
            x=_GATEWAY_X,
            y=gateway.y + gateway.height + _APART,
            width=_GATEWAY_W,
            lines=(
                "Control plane",
                f"management  {picture.management}",
                f"metrics  {picture.metrics}",
                (
                    f"{'TLS' if picture.management_encrypted else 'no TLS'}, "
                    f"generation {picture.generation}"
                ),
                f"runs {picture.replicas} replicas, Headrace {picture.version}",
            ),
        )
    )
    registry = drawing.add(
        Box(
            x=_GATEWAY_X,
            y=control.y + control.height + _APART,
            width=_GATEWAY_W,
            lines=("Registry", f"{picture.models} model versions in use"),
        )
    )
    rate = f"{picture.requests_per_s:,.1f} requests/s"
    callers = drawing.add(_beside(gateway, ("Callers", rate)))
    operators = drawing.add(_beside(control, ("Operators", "CLI, console, CI")))
    drawing.join(callers, gateway)
    drawing.join(operators, control)
    x = _GATEWAY_X + _GATEWAY_W / 2
    drawing.lines += (
        Line(x1=x, y1=control.y, x2=x, y2=gateway.y + gateway.height, label="routes", dashed=True),
        Line(x1=x, y1=registry.y, x2=x, y2=control.y + control.height, label="models"),
    )
    return gateway


def _beside(box: Box, lines: tuple[str, ...]) -> Box:
    """A box to the left of `box`, at half its height."""
    found = Box(x=_MARGIN, y=0, width=_CALLERS_W, lines=lines, kind="outside")
    return replace(found, y=box.middle - found.height / 2)


def _endpoint(endpoint: EndpointPart, drawing: Drawing, gateway: Box, y: float) -> float:
    """Place an endpoint and its versions from `y` on; where they end."""
    state = f"{endpoint.state}, {endpoint.rollout}" if endpoint.rollout else endpoint.state
    lines = (endpoint.name, state, traffic_text(endpoint))
    card = Box(x=_ENDPOINT_X, y=0, width=_ENDPOINT_W, lines=lines, kind=endpoint.state)
    boxes = [
        Box(
            x=_VERSION_X,
            y=0,
            width=_VERSION_W,
            lines=tuple(
                filter(None, (f"version {version.name}", version.model, copies_text(version)))
            ),
            kind="version",
        )
        for version in endpoint.versions
    ]
    stack = sum(box.height + _GAP for box in boxes) - _GAP
    height = max(stack, card.height)
    below = y + (height - stack) / 2
    versions: list[Box] = []
    for box in boxes:
        versions.append(drawing.add(replace(box, y=below)))
        below += box.height + _GAP
    placed = drawing.add(replace(card, y=y + (height - card.height) / 2))
    drawing.join(gateway, placed)
    for version, box in zip(endpoint.versions, versions, strict=True):
        drawing.lines.append(
            Line(
                x1=placed.x + placed.width,
                y1=placed.middle,
                x2=box.x,
                y2=box.middle,
                label=share_text(version),
                dashed=bool(version.mirror_percent) or not version.weight,
                stroke=_LEAST_STROKE + (_MOST_STROKE - _LEAST_STROKE) * version.weight / 100,
            )
        )
    return y + height
