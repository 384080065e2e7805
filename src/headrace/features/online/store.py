"""Online stores: the interface that readers and writers use, and the kinds that plug-ins add.

A package adds one with an entry point in the group `headrace.online_stores`, named as the scheme:

    [project.entry-points."headrace.online_stores"]
    mine = "my_package:open_my_store"      # opens mine://...

Ours are no entry points: to look for these reads what every installed package says, which takes
longer than all the rest of opening a store.
"""

from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Final, Protocol, runtime_checkable
from urllib.parse import urlsplit

from headrace.core import FailedPreconditionError, HeadraceError, InvalidArgumentError
from headrace.features.records import Key, Record

if TYPE_CHECKING:
    from headrace.features.definitions import FeatureView


ENTRY_POINT_GROUP: Final = "headrace.online_stores"
_REDIS: Final = ("headrace.features.online.redis", "open_redis_store")
_HOPSWORKS: Final = ("headrace.features.online.hopsworks", "open_hopsworks_store")
_OURS: Final[Mapping[str, tuple[str, str]]] = {
    "sqlite": ("headrace.features.online.sqlite", "open_sqlite_store"),
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
    try:
        opener = entry.load()
    except Exception as error:
        reason = (
            str(error) if isinstance(error, HeadraceError) else f"{type(error).__name__}: {error}"
        )
        message = f"online store '{entry.name}' ({entry.value}) cannot be loaded: {reason}"
        raise FailedPreconditionError(message) from error
    return opener


Place = tuple[Key, str]
"""Where a record stands: an entity's key, and the name of a view."""
DEFAULT_TIMEOUT_S: Final = 5.0


class OnlineStore(Protocol):
    """One record for each view and entity. Safe to use from several threads and processes.

    `name` is how messages call it, without passwords.
    """

    name: str

    def read(
        self, keys: Sequence[Key], views: Sequence[str], *, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> Mapping[Place, Record]:
        """The records that there are of any of `keys` in any of `views`, as of one moment each.

        Raises:
            DeadlineExceededError: It took longer than `timeout_s`.
            UnavailableError: The store cannot be reached; waiting may help.
            FailedPreconditionError: It cannot be read; the message says how to mend it.
        """

    def write(self, view: str, keys: Sequence[Key], records: Sequence[Record]) -> int:
        """Put a record in the place of each key; how many were.

        One whose event time is before that of the record that stands there is left out, so that an
        older value never replaces a newer one, whoever writes last. At equal times the later write
        counts: it is how a value is corrected. Each record is written whole or not at all.

        Raises:
            UnavailableError: The store cannot be reached, or others write for too long.
            FailedPreconditionError: It cannot be written; the message says how to mend it.
        """

    def watermark(self, name: str) -> int | None:
        """Up to which event time, in microseconds since 1970, `name` was written; None at first."""

    def raise_watermark(self, name: str, event_us: int) -> None:
        """Remember that; a watermark never falls."""

    def close(self) -> None:
        """Close all connections; twice is once."""


@runtime_checkable
class ForeignStore(Protocol):
    """A store whose values others wrote, in a form of theirs: it makes records of them."""

    def expect(self, views: "Sequence[FeatureView]") -> None:
        """Called by each reader, before it reads, with the views that it knows.

        Raises:
            FailedPreconditionError: There is nothing in the store to make their records of.
        """


def open_online_store(
    url: str,
    *,
    namespace: str = "default",
    timeout_s: float = DEFAULT_TIMEOUT_S,
    read_only: bool = False,
) -> OnlineStore:
    """The store that `url` names; nothing is connected to before it is used.

    Args:
        url: `sqlite:///PATH` (`sqlite:////abs/path`), a path, or Redis's or Valkey's:
            `redis://[USER:PASSWORD@]HOST:PORT/DB`, `rediss://` with TLS, `unix:///SOCKET`. Or
            `feast://PATH`: whatever a repository of Feast's names in its feature_store.yaml. Or
            `hopsworks://HOST:PORT/FEATURE_STORE`. Or one of an entry point in the group
            `headrace.online_stores`, by its scheme.
        namespace: Keeps several projects apart in one Redis.
        timeout_s: How long a connection, a write or a lock is waited for; a read brings its own.
        read_only: For a process that may not write: the store has to be there.

    Raises:
        InvalidArgumentError: The URL names no store.
        FailedPreconditionError: What reads it is not installed, or cannot be loaded; or it is
            Feast's, and its repository cannot be read.
    """
    if not url or "\0" in url:
        raise InvalidArgumentError("the URL of the online store is empty, or has a zero byte")
    scheme, is_url, _ = url.partition("://")
    opener = store_opener(scheme.lower() if is_url else "sqlite")
    return opener(url, namespace=namespace, timeout_s=timeout_s, read_only=read_only)


def without_password(url: str) -> str:
    """`url` for messages: who, where, and nothing secret."""
    scheme = url.partition("://")[0]
    try:
        parts = urlsplit(url)
        port = f":{parts.port}" if parts.port else ""
    except ValueError:
        return f"{scheme}://…"
    if "@" in f"{parts.path}{parts.query}{parts.fragment}":
        return f"{scheme}://…"  # a password with a slash that is not escaped
    user = f"{parts.username}@" if parts.username else ""
    return f"{scheme}://{user}{parts.hostname or ''}{port}{parts.path}"
