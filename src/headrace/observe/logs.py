"""Log lines on standard error, one per event, as `text` or `json`.

Lines hold no secrets, tracebacks included: see `headrace.core.redact`.
"""

import json
import logging
import sys
from datetime import UTC, datetime
from types import TracebackType
from typing import Final, Literal

from headrace.core.redact import redact_text

LogFormat = Literal["text", "json"]

_STANDARD: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class JsonFormatter(logging.Formatter):
    """Formatter of JSON lines: `time`, `level`, `logger`, `message`, fields of `extra`, `error`."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as one line of JSON."""
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line.update(_extra(record))
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return redact_text(json.dumps(line, default=str, ensure_ascii=False))


class TextFormatter(logging.Formatter):
    """Formatter of text lines: `12:00:00.123 INFO    headrace.engine  message key=value`."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as one line, then the traceback if it has one."""
        when = datetime.fromtimestamp(record.created, UTC).strftime("%H:%M:%S.%f")[:-3]
        # A message may quote a caller's text: escapes keep it on one line and disable terminal
        # controls.
        message = _one_line(record.getMessage())
        extra = "".join(f" {key}={_one_line(str(value))}" for key, value in _extra(record).items())
        line = f"{when} {record.levelname:<7} {record.name}  {message}{extra}"
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return redact_text(line)


def configure_logging(*, log_format: LogFormat = "text", level: str = "INFO") -> None:
    """Send this process's log to standard error in `log_format`; replaces earlier handlers."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if log_format == "json" else TextFormatter())
    logging.basicConfig(level=level, handlers=[handler], force=True)
    sys.excepthook = _log_uncaught


def _log_uncaught(
    kind: type[BaseException], error: BaseException, traceback: TracebackType | None
) -> None:
    """Log an exception that ends this process; Python's traceback would show resolved secrets."""
    if issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, traceback)
    else:
        logging.getLogger("headrace").critical("uncaught", exc_info=(kind, error, traceback))


def _extra(record: logging.LogRecord) -> dict[str, object]:
    return {key: value for key, value in vars(record).items() if key not in _STANDARD}


def _one_line(text: str) -> str:
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
