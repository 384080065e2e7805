"""Log files of all processes: tails, bounded sizes, one merged stream."""

import contextlib
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import msgspec

from headrace.core.error_kind import UNDECODABLE
from headrace.core.files import size_of

MAX_LOG_BYTES: Final = 32 << 20
_BLOCK: Final = 64 << 10
_READ_BYTES: Final = 1 << 20
_SHOWN: Final = 500
_DAY_S: Final = 86_400.0
_CLOCK_SLACK_S: Final = 2.0

_JSON_TIME: Final = re.compile(r'"(?:time|start_time)":\s*"[^"T]*T(\d\d):(\d\d):(\d\d(?:\.\d+)?)')
_TEXT_TIME: Final = re.compile(r"^\[?(?:\d{4}-\d\d-\d\d[ T])?(\d\d):(\d\d):(\d\d(?:[.,]\d+)?)")


@dataclass(frozen=True, slots=True)
class LogLine:
    """A line and the name of the process that wrote it."""

    source: str
    text: str


def tail(path: Path, count: int) -> list[str]:
    """Return the last `count` lines of a file, oldest first; empty if there is no file."""
    if count <= 0:
        return []
    try:
        with path.open("rb") as file:
            position = file.seek(0, 2)
            data = b""
            while position > 0 and data.count(b"\n") <= count:
                step = min(_BLOCK, position)
                position = file.seek(position - step)
                data = file.read(step) + data
    except FileNotFoundError:
        return []
    return data.decode("utf-8", "replace").splitlines()[-count:]


def last_line(path: Path) -> str:
    """Return the message of the last line of `path`, without time and level."""
    for line in reversed(tail(path, 20)):
        if line.strip():
            return _message(line.strip())[:_SHOWN]
    return ""


def _message(line: str) -> str:
    if line.startswith("{"):
        try:
            record = msgspec.json.decode(line, type=dict[str, object])
        except UNDECODABLE:
            return line
        return str(record.get("message", line))
    # `12:00:00.123 INFO    headrace.serving  message`: the message follows two spaces.
    head = re.match(r"\d\d:\d\d:\d\d\.\d+ [A-Z]+ +\S+  ", line)
    return line[head.end() :] if head else line


@dataclass(frozen=True, slots=True, kw_only=True)
class LogFiles:
    """Log files of all processes: `NAME.log` in `directory`, and others by name.

    `on_request` are logs that are read only by name, because they have one line per request.
    """

    directory: Path
    others: Mapping[str, Path] = field(default_factory=dict)
    on_request: Mapping[str, Path] = field(default_factory=dict)
    only: frozenset[str] | None = None
    """Names of the logs that may be read; None for all."""

    def paths(self, source: str = "") -> dict[str, Path]:
        """Return the existing logs by process name; only `source` if given."""
        paths = {path.stem: path for path in sorted(self.directory.glob("*.log"))}
        paths |= self.others
        if source:
            # The name comes from a caller: it is looked up and never used in a path.
            paths |= self.on_request
            paths = {name: path for name, path in paths.items() if name == source}
        if self.only is not None:
            paths = {name: path for name, path in paths.items() if name in self.only}
        return {name: path for name, path in paths.items() if path.exists()}

    def names(self) -> list[str]:
        """Return every name in `paths`."""
        names = {*self.paths(), *self.on_request}
        return sorted(names if self.only is None else names & self.only)


def merged_tail(
    files: LogFiles, count: int, *, now_of_day_s: float, source: str = ""
) -> list[LogLine]:
    """Return the last `count` lines of all logs together, sorted by time.

    Args:
        now_of_day_s: Seconds since midnight UTC: a later time of a line is from yesterday.
        source: Only this process; empty for all.
    """
    rows: list[tuple[float, LogLine]] = []
    for name, path in files.paths(source).items():
        when = -_DAY_S
        for text in tail(path, count):
            # A line without a time, as in a traceback, belongs to the previous line.
            when = _age_key(text, now_of_day_s, when)
            rows.append((when, LogLine(name, text)))
    rows.sort(key=lambda row: row[0])
    return [line for _, line in rows[-count:]] if count else []


def _age_key(text: str, now_of_day_s: float, before: float) -> float:
    match = _TEXT_TIME.match(text) or _JSON_TIME.search(text)
    if match is None:
        return before
    hours, minutes, seconds = match.groups()
    of_day = int(hours) * 3600 + int(minutes) * 60 + float(seconds.replace(",", "."))
    return of_day if of_day <= now_of_day_s + _CLOCK_SLACK_S else of_day - _DAY_S


class LogFollower:
    """Reader of complete lines that are appended to all logs after its creation.

    Args:
        source: Only this process; empty for all.
    """

    def __init__(self, files: LogFiles, *, source: str = "") -> None:
        self._files = files
        self._source = source
        self._offsets = {path: size_of(path) for path in files.paths(source).values()}

    def read_new(self) -> Iterator[LogLine]:
        """Yield the lines that were completed since the last call."""
        for name, path in self._files.paths(self._source).items():
            for text in self._read_file(path):
                yield LogLine(name, text)

    def _read_file(self, path: Path) -> list[str]:
        offset = self._offsets.get(path, 0)
        size = size_of(path)
        if size < offset:
            offset = 0  # the file was truncated when it grew too large
        if size == offset:
            return []
        with path.open("rb") as file:
            file.seek(offset)
            data = file.read(_READ_BYTES)
        end = data.rfind(b"\n") + 1
        if end == 0 and len(data) == _READ_BYTES:
            end = len(data)  # an overlong line is returned in parts
        self._offsets[path] = offset + end
        return data[:end].decode("utf-8", "replace").splitlines()


def cut_large(logs: Path, *, limit_bytes: int = MAX_LOG_BYTES) -> list[Path]:
    """Move the content of logs above `limit_bytes` to `NAME.log.1`; return the truncated files.

    The writers have their logs open for appending, so the file is truncated and not renamed; a line
    written between copy and truncation is lost.
    """
    cut = []
    for path in logs.glob("*.log"):
        if size_of(path) > limit_bytes:
            shutil.copyfile(path, path.with_suffix(".log.1"))
            with path.open("r+b") as file:
                file.truncate(0)
            cut.append(path)
    return cut


def render_line(line: LogLine, *, log_format: str) -> str:
    """Return a line of the merged stream: prefixed with its source, or as JSON with `source`."""
    if log_format != "json":
        return f"{line.source:<16} | {line.text}"
    record: dict[str, object] = {"message": line.text}
    if line.text.startswith("{"):
        with contextlib.suppress(*UNDECODABLE):
            record = msgspec.json.decode(line.text, type=dict[str, object])
    return msgspec.json.encode({"source": line.source, **record}).decode()
