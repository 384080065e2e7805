"""Options that several commands share, so that they are called and explained the same."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class LogFormat(StrEnum):
    """How log lines look."""

    TEXT = "text"
    JSON = "json"


class OutputFormat(StrEnum):
    """How an answer is printed."""

    TABLE = "table"
    JSON = "json"


DEFAULT_HOME = Path(".headrace")

Home = Annotated[
    Path,
    typer.Option(
        "--home",
        envvar="HEADRACE_HOME",
        help="Where models, state, sockets and logs live.",
        file_okay=False,
        show_default="./.headrace",
    ),
]
Json = Annotated[
    bool, typer.Option("--json", help="Print JSON, and nothing else, on standard output.")
]
LogFormatOption = Annotated[
    LogFormat | None,
    typer.Option(
        "--log-format",
        envvar="HEADRACE_LOG_FORMAT",
        help="How log lines look.",
        show_default="text",
    ),
]
LogLevel = Annotated[
    str,
    typer.Option(
        "--log-level",
        envvar="HEADRACE_LOG_LEVEL",
        help="debug, info, warning or error.",
        show_default="info",
    ),
]
Host = Annotated[
    str | None,
    typer.Option(
        "--host",
        envvar="HEADRACE_HOST",
        help="Address to listen on; 0.0.0.0 lets other machines in, and there is no "
        "authentication yet.",
        show_default="127.0.0.1",
    ),
]


def check_log_level(level: str) -> str:
    """`level` as `logging` calls it."""
    name = level.upper()
    if name not in {"DEBUG", "INFO", "WARNING", "ERROR"}:
        msg = f"'{level}' is no log level; use debug, info, warning or error"
        raise typer.BadParameter(msg, param_hint="--log-level")
    return name
