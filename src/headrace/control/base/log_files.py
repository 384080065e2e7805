"""Log files of all processes: tails, bounded sizes, one merged stream."""

import contextlib
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
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
_LEVEL: Final = re.compile(r'"level":\s*"(?P<json>\w+)"|^[\d:., -]+ (?P<text>[A-Za-z]+) ')
_SEARCHED_LINES: Final = 5000
"""Lines of each log that a filter reads."""
_TEXT_TIME: Final = re.compile(r"^\[?(?:\d{4}-\d\d-\d\d[ T])?(\d\d):(\d\d):(\d\d(?:[.,]\d+)?)")


class LogLevel(StrEnum):
    """Level of a line, in ascending order."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"

    @property
    def rank(self) -> int:
        """Position in the order of levels."""
        return tuple(LogLevel).index(self)


_OTHER_LEVELS: Final = {
    "trace": LogLevel.DEBUG,
    "warn": LogLevel.WARNING,
    "critical": LogLevel.ERROR,
    "fatal": LogLevel.ERROR,
}


def level_of(text: str) -> LogLevel | None:
    """Return the level of a line; None for a line without one, such as a traceback's."""
    match = _LEVEL.search(text)
    name = "" if match is None else (match["json"] or match["text"]).lower()
    return LogLevel(name) if name in set(LogLevel) else _OTHER_LEVELS.get(name)


@dataclass(frozen=True, slots=True)
class LogLine:
    """A line, the name of the process that wrote it, and its level.

    A line without a level has that of the line before it.
    """

    source: str
    text: str
    level: LogLevel = LogLevel.INFO


@dataclass(frozen=True, slots=True, kw_only=True)
class LogFilter:
    """Selection of lines: of one process, from a level upwards, with a text in any case."""

    source: str = ""
    """Name of the process; empty for all."""
    level: LogLevel = LogLevel.DEBUG
    text: str = ""

    def matches(self, line: LogLine) -> bool:
        """Whether a line of the process is selected."""
        is_level = line.level.rank >= self.level.rank
        return is_level and self.text.lower() in line.text.lower()

    @property
    def is_narrow(self) -> bool:
        """Whether lines of the process can be left out."""
        return self.level is not LogLevel.DEBUG or bool(self.text)


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


EVERY_LINE: Final = LogFilter()


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
    files: LogFiles, count: int, *, now_of_day_s: float, only: LogFilter = EVERY_LINE
) -> list[LogLine]:
    """Return the last `count` selected lines of all logs together, sorted by time.

    Args:
        now_of_day_s: Seconds since midnight UTC: a later time of a line is from yesterday.
        only: The selection, among the last lines of each log.
    """
    rows: list[tuple[float, LogLine]] = []
    searched = max(count, _SEARCHED_LINES) if only.is_narrow and count else count
    for name, path in files.paths(only.source).items():
        when, level = -_DAY_S, LogLevel.INFO
        for text in tail(path, searched):
            # A line without a time, as in a traceback, belongs to the previous line.
            when = _age_key(text, now_of_day_s, when)
            level = level_of(text) or level
            line = LogLine(name, text, level)
            if only.matches(line):
                rows.append((when, line))
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
        only: The selected lines.
    """

    def __init__(self, files: LogFiles, *, only: LogFilter = EVERY_LINE) -> None:
        self._files = files
        self._only = only
        self._offsets = {path: size_of(path) for path in files.paths(only.source).values()}
        self._levels: dict[Path, LogLevel] = {}

    def read_new(self) -> Iterator[LogLine]:
        """Yield the selected lines that were completed since the last call."""
        for name, path in self._files.paths(self._only.source).items():
            level = self._levels.get(path, LogLevel.INFO)
            for text in self._read_file(path):
                level = level_of(text) or level
                line = LogLine(name, text, level)
                if self._only.matches(line):
                    yield line
            self._levels[path] = level

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
    """Return a line of the merged stream: prefixed with its source, or as JSON.

    JSON has `source`, `level` and `message`, and the fields that the process wrote.
    """
    if log_format != "json":
        return f"{line.source:<16} | {line.text}"
    record: dict[str, object] = {"level": line.level, "message": line.text}
    if line.text.startswith("{"):
        with contextlib.suppress(*UNDECODABLE):
            record = msgspec.json.decode(line.text, type=dict[str, object])
    return msgspec.json.encode({"source": line.source, **record}).decode()
