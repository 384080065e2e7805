"""The diagram as a self-contained SVG: with light and dark mode, and a text description."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from html import escape
from typing import Final

from headrace.advise.diagram.parts import (
    DiagramEndpoint,
    Picture,
    copies_text,
    describe_picture,
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
_LINE_H: Final = 19.0
_PADDING: Final = 11.0
_FONT: Final = 14.0
_CHAR_W: Final = 0.53 * _FONT
_MARK_W: Final = 12.0
_MIN_STROKE: Final = 1.25
_MAX_STROKE: Final = 4.0
_STYLE: Final = """\
svg { color-scheme: light dark; --paper: #fff; --ink: #1c1e21; --soft: #5c636b; --line: #7a828b;
  --panel: #f5f6f8; --ok: #1d6f42; --warning: #8a6100; --failing: #b3123b; --part: #2f6690 }
@media (prefers-color-scheme: dark) { svg { --paper: #15171a; --ink: #e8eaed; --soft: #a2a9b1;
  --line: #8b939c; --panel: #1e2125; --ok: #6fce99; --warning: #e5bd55; --failing: #ff7a9a;
  --part: #83bbe5 } }
.paper { fill: var(--paper) }
text { font: 14px system-ui, -apple-system, "Segoe UI", sans-serif; fill: var(--ink) }
.name { font-weight: 600 } .soft { fill: var(--soft) }
.label { font-size: 13px; fill: var(--ink); stroke: var(--paper); stroke-width: 5px;
  paint-order: stroke; text-anchor: middle }
rect.box { fill: var(--panel); stroke: var(--line) }
.mark { fill: var(--part) } .outside .mark, .idle .mark, .version .mark { fill: var(--line) }
.ok .mark { fill: var(--ok) } .warning .mark { fill: var(--warning) }
.failing .mark { fill: var(--failing) }
.outside rect.box { fill: none; stroke-dasharray: 4 3 }
path.line { fill: none; stroke: var(--line) } path.dashed { stroke-dasharray: 6 4 }
marker path { fill: var(--line) }"""


@dataclass(frozen=True, slots=True, kw_only=True)
class DiagramBox:
    """A box with lines of text; the first line is its name. `kind` selects its colour."""

    x: float
    y: float
    width: float
    lines: tuple[str, ...]
    kind: str = "part"

    @property
    def height(self) -> float:
        """Return the height for its number of lines."""
        return len(self.lines) * _LINE_H + 2 * _PADDING - 4

    @property
    def middle(self) -> float:
        """Return the y coordinate of its centre."""
        return self.y + self.height / 2

    def fitted(self, line: str) -> str:
        """Return `line`, truncated to the box's width."""
        max_chars = int((self.width - 2 * _PADDING - _MARK_W) / _CHAR_W)
        return line if len(line) <= max_chars else f"{line[: max_chars - 1]}…"


@dataclass(frozen=True, slots=True, kw_only=True)
class DiagramArrow:
    """An arrow between two points; curved unless it is horizontal or vertical."""

    x1: float
    y1: float
    x2: float
    y2: float
    label: str = ""
    dashed: bool = False
    stroke: float = _MIN_STROKE

    @property
    def middle(self) -> tuple[float, float]:
        """Return the position of its label."""
        return (self.x1 + self.x2) / 2, (self.y1 + self.y2) / 2

    @property
    def is_vertical(self) -> bool:
        """Whether it is vertical."""
        return self.x1 == self.x2


@dataclass(slots=True, kw_only=True)
class Drawing:
    """All shapes of the diagram."""

    width: float = _VERSION_X + _VERSION_W + _MARGIN
    height: float = 0.0
    boxes: list[DiagramBox] = field(default_factory=list)
    lines: list[DiagramArrow] = field(default_factory=list)

    def add(self, box: DiagramBox) -> DiagramBox:
        """Add `box`, and extend the height to include it."""
        self.boxes.append(box)
        self.height = max(self.height, box.y + box.height + _MARGIN)
        return box

    def join(
        self, start: DiagramBox, end: DiagramBox, *, label: str = "", dashed: bool = False
    ) -> None:
        """Add an arrow from the right of `start` to the left of `end`."""
        self.lines.append(
            DiagramArrow(
                x1=start.x + start.width,
                y1=start.middle,
                x2=end.x,
                y2=end.middle,
                label=label,
                dashed=dashed,
            )
        )


def layout(picture: Picture) -> Drawing:
    """Lay out the picture: from callers on the left to replicas on the right."""
    drawing = Drawing()
    gateway = _left(picture, drawing)
    y = _TOP
    for endpoint in picture.endpoints:
        y = _place_endpoint(endpoint, drawing, gateway, y) + _BETWEEN
    if picture.more:
        text = f"and {picture.more:,} more endpoints"
        more = DiagramBox(x=_ENDPOINT_X, y=y, width=_ENDPOINT_W, lines=(text,), kind="idle")
        drawing.join(gateway, drawing.add(more))
    if not picture.endpoints and not picture.more:
        lines = ("No endpoints yet", "`headrace apply` adds some")
        drawing.add(DiagramBox(x=_ENDPOINT_X, y=y, width=_ENDPOINT_W, lines=lines, kind="idle"))
    return drawing


def _left(picture: Picture, drawing: Drawing) -> DiagramBox:
    """Add callers, gateway, operators, control plane and registry; return the gateway's box."""
    gateway = drawing.add(
        DiagramBox(
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
        DiagramBox(
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
        DiagramBox(
            x=_GATEWAY_X,
            y=control.y + control.height + _APART,
            width=_GATEWAY_W,
            lines=("Registry", f"{picture.models} model versions in use"),
        )
    )
    rate = f"{picture.requests_per_s:,.1f} requests/s"
    callers = drawing.add(_box_left_of(gateway, ("Callers", rate)))
    operators = drawing.add(_box_left_of(control, ("Operators", "CLI, console, CI")))
    drawing.join(callers, gateway)
    drawing.join(operators, control)
    x = _GATEWAY_X + _GATEWAY_W / 2
    drawing.lines += (
        DiagramArrow(
            x1=x, y1=control.y, x2=x, y2=gateway.y + gateway.height, label="routes", dashed=True
        ),
        DiagramArrow(x1=x, y1=registry.y, x2=x, y2=control.y + control.height, label="models"),
    )
    return gateway


def _box_left_of(box: DiagramBox, lines: tuple[str, ...]) -> DiagramBox:
    """Return a box to the left of `box`, vertically centred on it."""
    outside = DiagramBox(x=_MARGIN, y=0, width=_CALLERS_W, lines=lines, kind="outside")
    return replace(outside, y=box.middle - outside.height / 2)


def _place_endpoint(
    endpoint: DiagramEndpoint, drawing: Drawing, gateway: DiagramBox, y: float
) -> float:
    """Add an endpoint and its versions at `y`; return the y coordinate of their end."""
    state = f"{endpoint.state}, {endpoint.rollout}" if endpoint.rollout else endpoint.state
    lines = (endpoint.name, state, traffic_text(endpoint))
    card = DiagramBox(x=_ENDPOINT_X, y=0, width=_ENDPOINT_W, lines=lines, kind=endpoint.state)
    boxes = [
        DiagramBox(
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
    versions: list[DiagramBox] = []
    for box in boxes:
        versions.append(drawing.add(replace(box, y=below)))
        below += box.height + _GAP
    placed = drawing.add(replace(card, y=y + (height - card.height) / 2))
    drawing.join(gateway, placed)
    for version, box in zip(endpoint.versions, versions, strict=True):
        drawing.lines.append(
            DiagramArrow(
                x1=placed.x + placed.width,
                y1=placed.middle,
                x2=box.x,
                y2=box.middle,
                label=share_text(version),
                dashed=bool(version.mirror_percent) or not version.weight,
                stroke=_MIN_STROKE + (_MAX_STROKE - _MIN_STROKE) * version.weight / 100,
            )
        )
    return y + height


def svg(picture: Picture, *, id_prefix: str = "system") -> str:
    """Render the picture as an SVG document.

    Args:
        id_prefix: Prefix of its ids, for embedding in a page.
    """
    return "".join(f"{line}\n" for line in _lines(picture, id_prefix))


def _lines(picture: Picture, prefix: str) -> Iterator[str]:
    drawing = layout(picture)
    size = f"{drawing.width:.0f} {drawing.height:.0f}"
    yield (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {size}" '
        f'width="{drawing.width:.0f}" height="{drawing.height:.0f}" role="img" '
        f'aria-labelledby="{prefix}-title {prefix}-desc">'
    )
    yield f'<title id="{prefix}-title">Current state of the inference system</title>'
    yield f'<desc id="{prefix}-desc">{escape(" ".join(describe_picture(picture)))}</desc>'
    yield f"<style>{_STYLE}</style>"
    yield (
        f'<defs><marker id="{prefix}-arrow" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" '
        'markerHeight="8" markerUnits="userSpaceOnUse" orient="auto"><path d="M0 0L8 4L0 8z"/>'
        "</marker></defs>"
    )
    yield '<rect class="paper" width="100%" height="100%"/>'
    for line in drawing.lines:
        yield (
            f'<path class="{"line dashed" if line.dashed else "line"}" d="{_path_data(line)}" '
            f'stroke-width="{line.stroke:.2f}" marker-end="url(#{prefix}-arrow)"/>'
        )
    for box in drawing.boxes:
        yield from _box(box)
    for line in drawing.lines:
        if line.label:
            x, y = line.middle
            yield f'<text class="label" x="{x:.1f}" y="{y + 4:.1f}">{escape(line.label)}</text>'
    yield "</svg>"


def _path_data(line: DiagramArrow) -> str:
    begin, end = f"M{line.x1:.1f} {line.y1:.1f}", f"{line.x2:.1f} {line.y2:.1f}"
    if line.is_vertical or line.y1 == line.y2:
        return f"{begin}L{end}"
    middle_x = (line.x1 + line.x2) / 2
    return f"{begin}C{middle_x:.1f} {line.y1:.1f} {middle_x:.1f} {line.y2:.1f} {end}"


def _box(box: DiagramBox) -> Iterator[str]:
    yield f'<g class="{box.kind}">'
    whole = [line for line in box.lines if box.fitted(line) != line]
    if whole:
        yield f"<title>{escape(', '.join(whole))}</title>"
    position = f'x="{box.x:.1f}" y="{box.y:.1f}"'
    yield (
        f'<rect class="box" {position} width="{box.width:.1f}" height="{box.height:.1f}" rx="6"/>'
        f'<rect class="mark" {position} width="5" height="{box.height:.1f}" rx="2.5"/>'
    )
    for number, line in enumerate(box.lines):
        style = "soft" if number else "name"
        x, y = box.x + _PADDING + 5, box.y + _PADDING + number * _LINE_H + _FONT - 2
        yield f'<text class="{style}" x="{x:.1f}" y="{y:.1f}">{escape(box.fitted(line))}</text>'
    yield "</g>"
