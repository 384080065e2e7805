import json
import logging
import sys

import pytest

from headrace.observe import configure_logging
from headrace.observe.logs import JsonFormatter, TextFormatter


def record(message: str = "hello %s", *args: object, **extra: object) -> logging.LogRecord:
    made = logging.makeLogRecord(
        {"name": "headrace.x", "levelno": logging.INFO, "levelname": "INFO", "created": 0.25}
    )
    made.msg, made.args = message, args
    vars(made).update(extra)
    return made


def with_error() -> logging.LogRecord:
    made = record("failed")
    try:
        1 / 0  # noqa: B018  # to have a traceback
    except ZeroDivisionError:
        made.exc_info = sys.exc_info()
    return made


def test_a_json_line_has_what_a_machine_needs() -> None:
    line = JsonFormatter().format(record("hello %s", "wörld", model="m", seconds=1.5))

    assert "\n" not in line
    assert json.loads(line) == {
        "time": "1970-01-01T00:00:00.250+00:00",
        "level": "info",
        "logger": "headrace.x",
        "message": "hello wörld",
        "model": "m",
        "seconds": 1.5,
    }


def test_json_takes_any_value_and_carries_the_traceback() -> None:
    made = with_error()
    made.path = sys
    line = json.loads(JsonFormatter().format(made))

    assert "ZeroDivisionError" in line["error"]
    assert "module" in line["path"]


def test_a_text_line_is_for_people() -> None:
    line = TextFormatter().format(record("hello %s", "world", model="m"))

    assert line == "00:00:00.250 INFO    headrace.x  hello world model=m"


def test_a_text_line_ends_with_the_traceback() -> None:
    assert TextFormatter().format(with_error()).endswith("ZeroDivisionError: division by zero")


def test_what_a_caller_sent_stays_on_its_line_and_off_the_terminal() -> None:
    line = TextFormatter().format(record("bad %s", "a\nb\x1b[31m", id="c\rd"))

    assert line.endswith(r"bad a\nb\x1b[31m id=c\rd")


@pytest.mark.parametrize(
    ("log_format", "formatter"), [("text", TextFormatter), ("json", JsonFormatter)]
)
def test_configuring_replaces_earlier_handlers(log_format: str, formatter: type) -> None:
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    try:
        root.handlers = [logging.NullHandler()]
        configure_logging(log_format=log_format, level="WARNING")  # type: ignore[arg-type]  # a table of literals

        (handler,) = root.handlers
        assert isinstance(handler.formatter, formatter)
        assert root.level == logging.WARNING
    finally:
        root.handlers = before
        root.setLevel(level)
