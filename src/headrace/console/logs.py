"""Page of the logs of all processes, with filters."""

from typing import Final

import msgspec

from headrace.console.view import PageRequest, PageView, Params, RefusedError
from headrace.control.api.events import LogSources
from headrace.core.error_kind import UNDECODABLE

_LINES: Final = 200
_MAX_TEXT: Final = 200
_LEVELS: Final = {
    "debug": "all",
    "info": "info and above",
    "warning": "warnings and errors",
    "error": "errors",
}


class ShownLine(msgspec.Struct, frozen=True):
    """A line of a log."""

    source: object
    level: object
    text: str
    """Time, message and further fields, such as those of a request in the log of requests."""


async def logs(request: PageRequest) -> PageView:
    """Return the newest lines that match the filter."""
    listed = await request.visitor.get("/api/v1/logs/sources", LogSources)
    source = request.word("source", "", *listed.sources)
    level = request.word("level", *_LEVELS)
    text = request.query.get("text", "").strip()[:_MAX_TEXT]
    parameters: Params = {
        "source": source,
        "level": level,
        "text": text,
        "tail": _LINES,
        "format": "json",
    }
    lines = (await request.visitor.text("/api/v1/logs", parameters)).splitlines()
    return PageView(
        template="logs.html",
        title="Logs",
        section="logs",
        values={
            "lines": [_line(line) for line in reversed(lines)],
            "source": source,
            "sources": listed.sources,
            "level": level,
            "levels": _LEVELS,
            "text": text,
            "most": _LINES,
        },
    )


def _line(text: str) -> ShownLine:
    try:
        fields = msgspec.json.decode(text, type=dict[str, object])
    except UNDECODABLE as error:
        raise RefusedError.of(500, f"the management API sent an unreadable line: {error}") from None
    source, level = fields.pop("source", ""), fields.pop("level", "info")
    head = [str(fields.pop(name)) for name in ("time", "logger", "message") if fields.get(name)]
    more = [f"{name}={value}" for name, value in fields.items() if value not in (None, "")]
    return ShownLine(source, level, " ".join(head + more))
