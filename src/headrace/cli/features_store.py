"""Which feature service and online store does a command mean? What the commands share."""

# ruff: noqa: PLC0415  # a command imports what it uses, so that each starts fast

from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from headrace.features import OnlineStore

Service = Annotated[str, typer.Argument(help="The feature service.", show_default=False)]
Store = Annotated[
    str,
    typer.Option(
        "--online-store",
        envvar="HEADRACE_ONLINE_STORE",
        metavar="URL",
        help="sqlite:///PATH, redis://HOST:PORT/DB, rediss://, unix:///SOCKET, feast://REPO "
        "or hopsworks://HOST/STORE.",
        show_default="features/online/online.db in --home, or Feast's",
    ),
]


@contextmanager
def opened(url: str, home: Path) -> "Iterator[OnlineStore]":
    """The online store at `url`; the home's, or Feast's, if that is empty."""
    from headrace.features import default_online_store, open_online_store

    store = open_online_store(url or default_online_store(home))
    try:
        yield store
    finally:
        store.close()


def plain(value: object) -> object:
    """A report as JSON has it."""
    import msgspec

    return msgspec.to_builtins(value)
