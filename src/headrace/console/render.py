"""Renderer of views as HTML: Jinja templates, always escaped, and their live parts."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Final

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from headrace import __version__
from headrace.console.view import View
from headrace.core import text

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
"""What templates call to write numbers."""
_LIVE_BLOCK: Final = "live_"
_MENU: Final = (
    ("fleet", "/", "Fleet"),
    ("rollouts", "/rollouts", "Rollouts"),
    ("streams", "/streams", "Streams"),
    ("jobs", "/jobs", "Jobs"),
    ("models", "/models", "Models"),
    ("alerts", "/alerts", "Alerts"),
    ("activity", "/activity", "Activity"),
    ("diagram", "/diagram", "Diagram"),
)


@cache
def static_path(name: str) -> str:
    """Where a static file is, by its content: browsers keep it until it changes."""
    digest = hashlib.sha256((STATIC / name).read_bytes()).hexdigest()[:12]
    return f"/static/{name}?v={digest}"


@cache
def _environment() -> Environment:
    """Compiled once: it takes longer than a page."""
    found = Environment(
        loader=FileSystemLoader(HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.globals.update(static=static_path, menu=_MENU, version=__version__)
    found.globals.update({function.__name__: function for function in _TEXTS})
    # A live part is rendered without its page, and so without what a page would import.
    found.globals["ui"] = found.get_template("ui.html").module
    return found


@dataclass(slots=True)
class Renderer:
    """Writes views as HTML."""

    environment: Environment = field(default_factory=_environment)

    def page(self, view: View, frame: Mapping[str, object]) -> str:
        """The whole page.

        Args:
            frame: What every page needs: who looks, the form's token, whether it is live.
        """
        return self.environment.get_template(view.template).render(self._values(view, frame))

    def live_parts(self, view: View, frame: Mapping[str, object]) -> dict[str, str]:
        """The parts of the page that change by themselves, by name."""
        template = self.environment.get_template(view.template)
        values = self._values(view, frame)
        return {
            name.removeprefix(_LIVE_BLOCK): "".join(block(template.new_context(dict(values))))
            for name, block in template.blocks.items()
            if name.startswith(_LIVE_BLOCK)
        }

    def _values(self, view: View, frame: Mapping[str, object]) -> Mapping[str, object]:
        return {**frame, **view.values, "view": view}
