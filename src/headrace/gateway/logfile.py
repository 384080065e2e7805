"""What Envoy's own log says, and how it is told to say it."""

import json
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from headrace.observe import LogFormat

# spdlog's patterns: %j is the message escaped for JSON, %_ the message with escaped line breaks.
_JSON_PATTERN: Final = '{"time":"%Y-%m-%dT%T.%e","level":"%l","logger":"envoy.%n","message":"%j"}'
_TEXT_PATTERN: Final = "%T.%e %l envoy.%n  %_"
_REJECTED: Final = re.compile(
    r"rejected|Error adding|cannot bind|Unable to|not found|unknown|invalid|fail|error",
    re.IGNORECASE,
)
_BAD_LEVELS: Final = frozenset({"warning", "error", "critical"})
_LONGEST_REASON: Final = 2000


def log_pattern(log_format: LogFormat) -> str:
    """The argument of Envoy's `--log-format`."""
    return _JSON_PATTERN if log_format == "json" else _TEXT_PATTERN


def read_from(path: Path, offset: int) -> str:
    """The log from byte `offset`; empty if there is none."""
    try:
        with path.open("rb") as file:
            file.seek(offset)
            return file.read().decode(errors="replace")
    except FileNotFoundError:
        return ""


def size_of(path: Path) -> int:
    """The file's size in bytes, 0 if there is none."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def reason_in(text: str) -> str:
    """Why Envoy refused something, by the warnings in its log; empty if it says nothing."""
    messages = (message for level, message in _lines(text) if level in _BAD_LEVELS)
    reasons = dict.fromkeys(message for message in messages if _REJECTED.search(message))
    return "; ".join(reasons)[:_LONGEST_REASON]


def last_lines(text: str, count: int) -> str:
    """The end of the log, for people."""
    return " | ".join(text.strip().splitlines()[-count:])[:_LONGEST_REASON]


def _lines(text: str) -> Iterable[tuple[str, str]]:
    for line in text.splitlines():
        if line.startswith("{"):
            try:
                entry = json.loads(line)
            except ValueError:  # a line that Envoy is still writing
                continue
            yield str(entry.get("level", "")), str(entry.get("message", ""))
        else:
            _, _, rest = line.partition(" ")
            level, _, rest = rest.partition(" ")
            yield level, rest.partition("  ")[2]


def truncate(path: Path, *, max_bytes: int) -> bool:
    """Move what a log holds to `<name>.1` once it is larger than `max_bytes`.

    Its writer keeps the file open to append, so the file is emptied, not replaced.
    """
    if size_of(path) <= max_bytes:
        return False
    old = path.with_name(f"{path.name}.1")
    old.write_bytes(path.read_bytes())
    old.chmod(0o600)
    os.truncate(path, 0)
    return True
