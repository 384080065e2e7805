"""What does a stream of server-sent events say? https://html.spec.whatwg.org/#server-sent-events."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerEvent:
    """One event: its id, its kind, and its data as text."""

    id: str
    kind: str
    data: str


def read_events(lines: Iterable[str]) -> Iterator[ServerEvent]:
    """The events in `lines`; comments, such as heartbeats, are passed over.

    An event that breaks off is none: only an empty line ends it.
    """
    last_id, kind, data = "", "", list[str]()
    for line in lines:
        text = line.rstrip("\r\n")
        if not text:
            if data:
                yield ServerEvent(id=last_id, kind=kind or "message", data="\n".join(data))
            kind, data = "", []
            continue
        name, _, value = text.partition(":")
        value = value.removeprefix(" ")
        match name:
            case "id":
                last_id = value
            case "event":
                kind = value
            case "data":
                data.append(value)
            case _:
                pass  # a comment, or a field of a later version
