"""What people and programs see: data on standard output, everything else on standard error."""

# ruff: noqa: PLC0415  # a command imports what it uses, so that each starts fast

import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import Console, RenderableType
    from rich.text import Text


def say(text: str = "") -> None:
    """A line for people, on standard error."""
    print(text, file=sys.stderr)  # noqa: T201  # this is the program's output


def write(text: str) -> None:
    """A line of data, on standard output."""
    print(text)  # noqa: T201  # this is the program's output


def write_json(document: object) -> None:
    """A document, on standard output: indented for a terminal, one line for a pipe."""
    import orjson

    options = orjson.OPT_SERIALIZE_NUMPY | (orjson.OPT_INDENT_2 if sys.stdout.isatty() else 0)
    write(orjson.dumps(document, default=_plain, option=options).decode())


def show(*renderables: "RenderableType") -> None:
    """Tables and text for people, on standard output."""
    console = _console(stderr=False)
    for renderable in renderables:
        console.print(renderable, soft_wrap=True, highlight=False, markup=False)


def columns(rows: Sequence[tuple[str, str]]) -> list[str]:
    """Labels and values below each other; what `table` makes, without loading rich."""
    width = max((len(label) for label, _ in rows), default=0)
    return [f"{label:<{width}}  {value}" for label, value in rows]


def table(rows: Iterable["Sequence[str | Text]"], *columns: str) -> "Text":
    """Rows below each other; without `columns`, labels and values.

    Nothing is cut or wrapped to fit a terminal, so that pipes get whole lines.
    """
    from rich.text import Text

    head = [tuple(Text(name, style="bold") for name in columns)] if columns else []
    body = [tuple(Text(c) if isinstance(c, str) else c for c in row) for row in rows]
    lines = [*head, *body]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return Text("\n").join(_line(cells, widths) for cells in lines)


def _line(cells: "Sequence[Text]", widths: Sequence[int]) -> "Text":
    from rich.text import Text

    parts = [
        cell + " " * (width - len(cell)) for cell, width in zip(cells[:-1], widths, strict=False)
    ]
    return Text("  ").join([*parts, cells[-1]])


@contextmanager
def progress(text: str) -> Iterator[None]:
    """Show that something goes on, where somebody watches; erased at the end."""
    if not sys.stderr.isatty():
        yield
        return
    with _console(stderr=True).status(text):
        yield


@contextmanager
def transfer(text: str, total_bytes: int) -> "Iterator[Callable[[int], None]]":
    """Show how far something large has come, where somebody watches; give it the bytes done."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
    with Progress(*columns, TransferSpeedColumn(), console=_console(stderr=True)) as bar:
        task = bar.add_task(text, total=total_bytes)
        yield lambda done: bar.update(task, completed=done)


def _console(*, stderr: bool) -> "Console":
    from rich.console import Console

    return Console(stderr=stderr)  # it honours NO_COLOR by itself


def _plain(value: object) -> object:
    import msgspec

    return msgspec.to_builtins(value, str_keys=True)
