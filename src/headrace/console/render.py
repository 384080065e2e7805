"""HTML of views, by Jinja templates with autoescaping; live updates and security headers."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Final

import msgspec
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from headrace import __version__
from headrace.console.view import PageView
from headrace.core import HeadraceError, text

HERE: Final = Path(__file__).parent
STATIC: Final = HERE / "static"
_TEXTS: Final = (
    text.bound_text,
    text.bytes_text,
    text.coarse_span,
    text.duration_text,
    text.effect_text,
    text.iso_text,
    text.measure_text,
    text.metric_text,
    text.moment_text,
    text.number_text,
    text.percent_text,
    text.plain_text,
    text.span,
)
"""Functions by which templates format numbers."""
_LIVE_BLOCK: Final = "live_"
_MENU: Final = (
    ("fleet", "/", "Fleet"),
    ("rollouts", "/rollouts", "Rollouts"),
    ("streams", "/streams", "Streams"),
    ("jobs", "/jobs", "Jobs"),
    ("models", "/models", "Models"),
    ("usage", "/usage", "Usage"),
    ("alerts", "/alerts", "Alerts"),
    ("activity", "/activity", "Activity"),
    ("logs", "/logs", "Logs"),
    ("access", "/access", "Access"),
    ("diagram", "/diagram", "Diagram"),
)


@cache
def static_path(name: str) -> str:
    """Return the URL of a static file, with a hash of its content, so that browsers cache it."""
    digest = hashlib.sha256((STATIC / name).read_bytes()).hexdigest()[:12]
    return f"/static/{name}?v={digest}"


@cache
def _environment() -> Environment:
    """Return the environment, created once: it takes longer than a page."""
    environment = Environment(
        loader=FileSystemLoader(HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(static=static_path, menu=_MENU, version=__version__)
    environment.globals.update({function.__name__: function for function in _TEXTS})
    # A live part is rendered without its page, and so without the page's imports.
    environment.globals["ui"] = environment.get_template("ui.html").module
    return environment


@dataclass(slots=True)
class Renderer:
    """Renderer of views as HTML."""

    environment: Environment = field(default_factory=_environment)

    def page(self, view: PageView, frame: Mapping[str, object]) -> str:
        """Return the whole page.

        Args:
            frame: Common values of pages: the visitor, the form's token, whether it is live.
        """
        return self.environment.get_template(view.template).render(self._values(view, frame))

    def live_parts(self, view: PageView, frame: Mapping[str, object]) -> dict[str, str]:
        """Return the live parts of the page, by name."""
        template = self.environment.get_template(view.template)
        values = self._values(view, frame)
        return {
            name.removeprefix(_LIVE_BLOCK): "".join(block(template.new_context(dict(values))))
            for name, block in template.blocks.items()
            if name.startswith(_LIVE_BLOCK)
        }

    def _values(self, view: PageView, frame: Mapping[str, object]) -> Mapping[str, object]:
        return {**frame, **view.values, "view": view}


EVERY_S: Final = 2.0
MAX_STREAMS: Final = 64
_STOP_POLL_S: Final = 0.5
_HEARTBEAT_S: Final = 15.0
_RETRY: Final = b"retry: 3000\n\n"
_HEARTBEAT: Final = b": still there\n\n"
_GONE: Final = b"event: gone\ndata: {}\n\n"
Parts = Mapping[str, str]
"""Parts of a page by name; `say` is the announcement for screen readers."""


class PagePart(msgspec.Struct, frozen=True):
    """One part of a page that changed."""

    part: str
    html: str


@dataclass(slots=True, kw_only=True)
class Changes:
    """Comparison of parts with those that were sent last."""

    _sent: dict[str, int] = field(default_factory=dict)

    def of(self, parts: Parts) -> list[PagePart]:
        """Return the changed parts."""
        new = [name for name, html in parts.items() if self._sent.get(name) != hash(html)]
        self._sent.update({name: hash(parts[name]) for name in new})
        return [PagePart(name, parts[name]) for name in new]


async def stream(
    observation: Callable[[], Awaitable[Parts]],
    *,
    is_stopping: Callable[[], bool],
    every_s: float = EVERY_S,
) -> AsyncIterator[bytes]:
    """Yield server-sent events for changed parts, until the system stops or the API refuses."""
    changes, quiet_s = Changes(), 0.0
    yield _RETRY
    while not is_stopping():
        try:
            changed = changes.of(await observation())
        except HeadraceError:
            yield _GONE  # the object does not exist any more, or the visitor has no access
            return
        for part in changed:
            yield encoded(part)
        quiet_s = 0.0 if changed else quiet_s + every_s
        if quiet_s >= _HEARTBEAT_S:
            quiet_s = 0.0
            yield _HEARTBEAT
        left_s = every_s
        while left_s > 0 and not is_stopping():
            await asyncio.sleep(min(left_s, _STOP_POLL_S))
            left_s -= _STOP_POLL_S


def encoded(part: PagePart) -> bytes:
    """Return a part as an event; JSON contains no line breaks."""
    return b"event: part\ndata: %s\n\n" % msgspec.json.encode(part)


POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
ALWAYS: Final[Sequence[tuple[str, str]]] = (
    ("content-security-policy", POLICY),
    ("x-content-type-options", "nosniff"),
    ("x-frame-options", "DENY"),
    ("referrer-policy", "same-origin"),
    ("cross-origin-opener-policy", "same-origin"),
    ("permissions-policy", "camera=(), geolocation=(), microphone=()"),
)
"""Headers of every response of the console."""
