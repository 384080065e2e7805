"""Output of commands: data on standard output, messages on standard error, exit statuses."""

# ruff: noqa: PLC0415  # a command imports what it uses, so that each starts fast

import functools
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, TextIO

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.text import Text


def say(text: str = "") -> None:
    """Print a message to standard error."""
    print(text, file=sys.stderr)  # noqa: T201  # this is the program's output


def write(text: str) -> None:
    """Print a line of data to standard output."""
    print(text)  # noqa: T201  # this is the program's output


def write_json(document: object) -> None:
    """Print a document to standard output: indented on a terminal, else on one line."""
    import msgspec
    import orjson

    options = orjson.OPT_SERIALIZE_NUMPY | (orjson.OPT_INDENT_2 if sys.stdout.isatty() else 0)
    plain = functools.partial(msgspec.to_builtins, str_keys=True)
    write(orjson.dumps(document, default=plain, option=options).decode())


def show(*renderables: "RenderableType") -> None:
    """Print tables and text to standard output."""
    console = _console(stderr=False)
    for renderable in renderables:
        console.print(renderable, soft_wrap=True, highlight=False, markup=False)


def columns(rows: Sequence[tuple[str, str]]) -> list[str]:
    """Return labels and values in two columns, as `table` does, without loading rich."""
    width = max((len(label) for label, _ in rows), default=0)
    return [f"{label:<{width}}  {value}" for label, value in rows]


def table(rows: Iterable["Sequence[str | Text]"], *columns: str) -> "Text":
    """Return rows as a table; without `columns`, of labels and values.

    Nothing is truncated or wrapped to fit a terminal, so that pipes get whole lines.
    """
    from rich.text import Text

    head = [tuple(Text(name, style="bold") for name in columns)] if columns else []
    body = [tuple(Text(c) if isinstance(c, str) else c for c in row) for row in rows]
    lines = [*head, *body]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    rows_of_text = []
    for *cells, last in lines:  # no padding after the last column
        padded = (c + " " * (width - len(c)) for c, width in zip(cells, widths, strict=False))
        rows_of_text.append(Text("  ").join([*padded, last]))
    return Text("\n").join(rows_of_text)


Column = str | Callable[[Any], "str | Text"]
"""A cell of a row: the row's key, or a function of the row."""


def rows_text(rows: Iterable[Any], columns: Mapping[str, Column]) -> "Text":
    """Return the table of documents.

    Args:
        columns: Each heading's cell; a key's empty value is shown as `-`, and a list by its parts.
    """
    return table((row_cells(row, columns) for row in rows), *columns)


def row_cells(row: Any, columns: Mapping[str, Column]) -> "list[str | Text]":  # noqa: ANN401  # JSON
    """Return the cells of a document in a table."""
    return [_cell(row, column) for column in columns.values()]


def show_document(
    document: object,
    rows: Iterable[Any],
    columns: Mapping[str, Column],
    *,
    json: bool,
    empty: str = "",
) -> None:
    """Print a document as the API returns it: as JSON, or the table of its rows.

    Args:
        rows: Rows of the table.
        columns: Columns as in `rows_text`.
        empty: Message if there are no rows; empty shows the headings alone.
    """
    listed = list(rows)
    if json:
        write_json(document)
    elif not listed and empty:
        say(empty)
    else:
        show(rows_text(listed, columns))


def show_answer(document: object, *lines: str, json: bool) -> None:
    """Print the response to a change: JSON, or lines on standard error."""
    if json:
        write_json(document)
        return
    for line in lines:
        say(line)


def _cell(row: Any, column: Column) -> "str | Text":  # noqa: ANN401  # JSON
    if callable(column):
        return column(row)
    value = row[column]
    if isinstance(value, list | tuple):
        return " ".join(map(str, value)) or "-"
    return "-" if value in (None, "") else f"{value:,}" if isinstance(value, int) else str(value)


def columns_from(cells: Callable[[Any], Sequence[str]], *names: str) -> dict[str, Column]:
    """Return columns whose cells one function of a row makes, in the order of `names`."""

    def column(i: int) -> Column:
        return lambda row: cells(row)[i]

    return {name: column(i) for i, name in enumerate(names)}


def styled(key: str, styles: Mapping[str, str], other: str = "") -> Callable[[Any], "Text"]:
    """Return the column of a key's text, styled by `styles`."""
    from rich.text import Text

    return lambda row: Text(row[key], style=styles.get(row[key], other))


def clock_text(moment: float | None, missing: str = "-") -> str:
    """Return a Unix time in the local time zone; `missing` for None."""
    if moment is None:
        return missing
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(moment))


def clock_column(key: str, missing: str = "-") -> Callable[[Any], str]:
    """Return the column of a row's Unix time."""
    return lambda row: clock_text(row[key], missing)


def show_live(frames: "Iterable[RenderableType]") -> None:
    """Show frames in place on a terminal, else one after the other, one per second."""
    from rich.live import Live

    console = _console(stderr=False)
    if not console.is_terminal:
        for frame in frames:
            show(frame)
            time.sleep(_FRAME_S)
        return
    with Live(console=console, auto_refresh=False, screen=False) as live:
        for frame in frames:
            live.update(frame, refresh=True)
            time.sleep(_FRAME_S)


@contextmanager
def progress(text: str) -> Iterator[None]:
    """Show a spinner on a terminal; erased at the end."""
    if not sys.stderr.isatty():
        yield
        return
    with _console(stderr=True).status(text):
        yield


@contextmanager
def progress_bar(text: str, total: float | None) -> Iterator[Callable[..., None]]:
    """Show a progress bar on a terminal; erased at the end.

    Lines of `say` appear above it.

    Args:
        total: Total amount; None if unknown.

    Yields:
        What takes the changes: `completed`, `advance`, `description`, and a `note` beside the bar.
    """
    if not sys.stderr.isatty():
        yield lambda **_: None
        return
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    description, note = TextColumn("{task.description}"), TextColumn("{task.fields[note]}")
    columns = (description, BarColumn(), note, TimeRemainingColumn())
    with Progress(*columns, console=_console(stderr=True), transient=True) as bar:
        task = bar.add_task(text, total=total, note="")
        yield functools.partial(bar.update, task)


def _console(*, stderr: bool) -> "Console":
    from rich.console import Console

    return Console(stderr=stderr)  # it supports NO_COLOR itself


OK: Final = 0
FAILED: Final = 1
USAGE: Final = 2
NOT_READY: Final = 3
INTERRUPTED: Final = 130
EXIT_CODES: Final = (
    "Exit status: 0 success; 1 failure; 2 wrong command line; 3 not running, not ready, or timeout."
)


def report(error: Exception, *, debug: bool) -> int:
    """Print to standard error why a command failed; return its exit status."""
    if debug:
        traceback.print_exception(error, file=sys.stderr)
    if isinstance(error, BrokenPipeError):
        # The reader of the output has closed it, as `head` does. Python would report it again when
        # it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    if type(error).__name__ == "NoArgsIsHelpError":  # a command group without a command
        write(str(error))
        return USAGE
    message, code = _explain(error)
    say(f"headrace: {message}")
    return code


def _explain(error: Exception) -> tuple[str, int]:
    if hasattr(error, "format_message"):  # typer's errors, whose classes moved
        context = getattr(error, "ctx", None)
        command = context.command_path if context is not None else "headrace"
        return f"{str(error.format_message()).rstrip('.')} (see `{command} --help`)", USAGE
    from headrace.core import DeadlineExceededError, HeadraceError, UnavailableError

    if isinstance(error, DeadlineExceededError | UnavailableError):
        return str(error), NOT_READY
    if isinstance(error, HeadraceError):
        return str(error), FAILED
    if isinstance(error, OSError) and error.strerror:
        location = f": {error.filename}" if error.filename else ""
        return f"{error.strerror}{location}", FAILED
    missing = getattr(error, "name", "") if isinstance(error, ModuleNotFoundError) else ""
    if missing and missing.partition(".")[0] != "headrace":
        return (
            f"this command needs the package '{missing}', which is not installed; small "
            "container images omit it: use the image headrace/standalone"
        ), FAILED
    kind = type(error).__name__
    return f"unexpected {kind}: {error} (a bug; `headrace --debug …` shows where)", FAILED


AFTER_S: Final = 2.0
_FRAME_S: Final = 1.0
_EACH_S: Final = 0.2
_EACH_IN_A_LOG_S: Final = 10.0


class TransferView:
    """Display of transfers: a changing line on a terminal, a few lines in a log.

    Args:
        stream: Output stream; None for standard error.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._what = ""
        self._began = 0.0
        self._display: float | None = None

    def update(
        self, description: str, done: int, total: int | None, *, now: float | None = None
    ) -> None:
        """Update the display if it is due.

        Args:
            total: None if unknown.
            now: Monotonic; None for now.
        """
        now = time.monotonic() if now is None else now
        if description != self._what:
            self._what, self._began, self._display = description, now, None
        is_live = self._stream.isatty()
        interval_s = _EACH_S if is_live else _EACH_IN_A_LOG_S
        is_last = total is not None and done >= total and self._display is not None
        is_due = now - self._began >= AFTER_S and (
            self._display is None or now - self._display >= interval_s
        )
        if not is_last and not is_due:
            return
        from headrace.core.text import bytes_text

        rate = done / max(now - self._began, 0.001)
        amount = bytes_text(done) + ("" if total is None else f" of {bytes_text(total)}")
        text = f"{description}: {amount}, {bytes_text(rate)}/s"
        if is_live:
            self._stream.write(f"\r\x1b[K{text}" + ("\n" if is_last else ""))
        else:
            self._stream.write(f"{text}\n")
        self._stream.flush()
        self._display = None if is_last else now


def batching_lines(endpoints: Sequence[Mapping[str, Any]], *, differ: bool = False) -> list[str]:
    """Return a line for each version whose rows are not proven to be independent.

    Args:
        differ: Only those of which a check found a difference; else only the others.
    """
    return [
        f"{endpoint['name']} {revision['version']}: {revision['batching_message']}"
        for endpoint in endpoints
        for revision in endpoint["revisions"]
        if (report := revision.get("batching"))
        and bool(report["difference"]) is differ
        and (differ or not report["batched"] or report["independence"] == "declared")
    ]
