"""Which kinds of online stores are there? Ours, and those of entry points, by the scheme of a URL.

A package adds one with an entry point in the group `headrace.online_stores`, named as the scheme:

    [project.entry-points."headrace.online_stores"]
    mine = "my_package:open_my_store"      # opens mine://...

Ours are no entry points: to look for these reads what every installed package says, which takes
longer than all the rest of opening a store.
"""

from collections.abc import Mapping
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Final, Protocol

from headrace.core import FailedPreconditionError, HeadraceError, InvalidArgumentError

if TYPE_CHECKING:
    from headrace.features.online import OnlineStore

ENTRY_POINT_GROUP: Final = "headrace.online_stores"
_REDIS: Final = ("headrace.features.online_redis", "open_redis_store")
_HOPSWORKS: Final = ("headrace.features.hopsworks.online", "open_hopsworks_store")
_OURS: Final[Mapping[str, tuple[str, str]]] = {
    "sqlite": ("headrace.features.online_sqlite", "open_sqlite_store"),
    **dict.fromkeys(("redis", "rediss", "unix", "valkey", "valkeys"), _REDIS),
    "feast": ("headrace.features.feast.online", "open_feast_store"),
    **dict.fromkeys(("hopsworks", "hopsworks+http"), _HOPSWORKS),
}
"""Scheme ▸ the module, loaded when it is asked for, and what opens a store in it."""
_SHOWN: Final = 20


class StoreOpener(Protocol):
    """Makes the store that a URL names; connects to nothing yet."""

    def __call__(
        self, url: str, *, namespace: str, timeout_s: float, read_only: bool
    ) -> "OnlineStore":
        """As `open_online_store` does it."""


def store_opener(scheme: str) -> StoreOpener:
    """What opens stores of this scheme.

    Raises:
        InvalidArgumentError: There is none; the message says which there are.
        FailedPreconditionError: It cannot be loaded; the message says why.
    """
    ours = _OURS.get(scheme)
    if ours is not None:
        module, name = ours
        opener: StoreOpener = getattr(import_module(module), name)
        return opener
    others = {entry.name: entry for entry in entry_points(group=ENTRY_POINT_GROUP)}
    entry = others.get(scheme)
    if entry is None:
        installed = "".join(f", {name}://..." for name in sorted(others))
        message = (
            f"{scheme[:_SHOWN]!r} names no online store; use sqlite:///PATH, "
            "redis://HOST:PORT/DB, rediss:// (TLS), unix:///SOCKET, feast://PATH of a repository "
            f"of Feast's, hopsworks://HOST:PORT/FEATURE_STORE{installed}"
        )
        raise InvalidArgumentError(message)
    return _loaded(entry)


def _loaded(entry: EntryPoint) -> StoreOpener:
    try:
        opener: StoreOpener = entry.load()
    except Exception as error:
        reason = (
            str(error) if isinstance(error, HeadraceError) else f"{type(error).__name__}: {error}"
        )
        message = f"online store '{entry.name}' ({entry.value}) cannot be loaded: {reason}"
        raise FailedPreconditionError(message) from error
    return opener
