"""Factory of sources by URL or file suffix."""

import os
from pathlib import Path

from headrace.core import InvalidArgumentError
from headrace.core.variables import filled_in, url_filled_in
from headrace.jobs.messages import SourceLocation
from headrace.jobs.sources.csv import CsvSource
from headrace.jobs.sources.images import ImagesSource
from headrace.jobs.sources.json_lines import JsonLinesSource
from headrace.jobs.sources.parquet import ArrowSource, ParquetSource
from headrace.jobs.sources.source import JobSource, is_url, kind_of, list_files
from headrace.jobs.sources.sql import SqlSource, is_database, without_password

KINDS = ("parquet", "csv", "jsonl", "arrow", "images", "sql")


def open_source(
    url: str, *, kind: str = "", query: str = "", key: str = ""
) -> tuple[SourceLocation, JobSource]:
    """Return the location to record, and the opened source.

    Args:
        url: A path, a glob, a folder or a URL. `${NAME}` stands for a variable of the environment.
        kind: One of `KINDS`; empty to detect it.

    Raises:
        InvalidArgumentError: The input does not exist, or has no known format.
        FailedPreconditionError: A library is missing.
    """
    # In a path, a variable's value is not percent-encoded: `%20` would name another file.
    fill_in = url_filled_in if is_url(url) or is_database(url) else filled_in
    whole = fill_in(url, description="the input")
    if kind not in {"", *KINDS}:
        raise InvalidArgumentError(f"'{kind}' is not an input format; use {', '.join(KINDS)}")
    if is_database(whole):
        settings = SourceLocation(kind="sql", url=without_password(url), query=query, key=key)
        return settings, SqlSource(settings, whole)
    if query or key:
        msg = f"--sql needs a database, but {url} is not one: sqlite:///PATH or postgresql://HOST/NAME"
        raise InvalidArgumentError(msg)
    files = list_files(whole)
    if not kind:
        kind, files = kind_of(files)
    location = url if is_url(url) else str(Path(os.path.abspath(url)))  # noqa: PTH100  # may be a glob
    settings = SourceLocation(kind=kind, url=without_password(location))
    if not is_url(whole):
        files = [str(Path(name).absolute()) for name in files]
    return settings, _opened(kind, files, whole)


def _opened(kind: str, files: list[str], url: str) -> JobSource:
    match kind:
        case "parquet":
            return ParquetSource(files)
        case "csv":
            return CsvSource(files)
        case "jsonl":
            return JsonLinesSource(files)
        case "arrow":
            return ArrowSource(files)
        case "images":
            return ImagesSource(files, str(Path(url).absolute()))
        case _:
            raise InvalidArgumentError(
                f"{url} is not a database: sqlite:///PATH or postgresql://HOST/NAME"
            )
