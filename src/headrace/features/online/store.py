"""Online store interface, and the registry of its kinds.

A package adds a kind with an entry point in the group `headrace.online_stores`, named as the
scheme:

    [project.entry-points."headrace.online_stores"]
    mine = "my_package:open_my_store"      # opens mine://...

Built-in kinds are not entry points: looking up entry points reads the metadata of every installed
package, which takes longer than the rest of opening a store.
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
"""By scheme: the module, imported on demand, and its function that opens a store."""
_SHOWN: Final = 20


class StoreOpener(Protocol):
    """Creates the store of a URL; connects on first use."""

    def __call__(
        self, url: str, *, namespace: str, timeout_s: float, read_only: bool
    ) -> "OnlineStore":
        """Open the store of `url`; see `open_online_store`."""


def store_opener(scheme: str) -> StoreOpener:
    """Return the function that opens stores of this scheme.

    Raises:
        InvalidArgumentError: The scheme is unknown; the message lists the available ones.
        FailedPreconditionError: The function cannot be loaded; the message contains the reason.
    """
    builtin = _OURS.get(scheme)
    if builtin is not None:
        module, name = builtin
        opener: StoreOpener = getattr(import_module(module), name)
        return opener
    others = {entry.name: entry for entry in entry_points(group=ENTRY_POINT_GROUP)}
    entry = others.get(scheme)
    if entry is None:
        installed = "".join(f", {name}://..." for name in sorted(others))
        message = (
            f"{scheme[:_SHOWN]!r} is not a known kind of online store; use sqlite:///PATH, "
            "redis://HOST:PORT/DB, rediss:// (TLS), unix:///SOCKET, feast://PATH of a Feast "
            f"repository, hopsworks://HOST:PORT/FEATURE_STORE{installed}"
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
"""The address of a record: an entity's key and the name of a view."""
DEFAULT_TIMEOUT_S: Final = 5.0


class OnlineStore(Protocol):
    """One record per view and entity. Safe to use from several threads and processes."""

    name: str
    """The name in messages, without passwords."""

    def read(
        self, keys: Sequence[Key], views: Sequence[str], *, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> Mapping[Place, Record]:
        """Return the stored records of `keys` in `views`, each from one point in time.

        Raises:
            DeadlineExceededError: The read took longer than `timeout_s`.
            UnavailableError: The store cannot be reached; waiting may help.
            FailedPreconditionError: The store cannot be read; the message contains the remedy.
        """

    def write(self, view: str, keys: Sequence[Key], records: Sequence[Record]) -> int:
        """Write a record per key; return how many were written.

        A record with an earlier event time than the stored one is skipped, so that an older value
        never replaces a newer one, regardless of the order of writes. At equal times the later
        write wins, which allows corrections. Each record is written whole or not at all.

        Raises:
            UnavailableError: The store cannot be reached, or other writers block it for too long.
            FailedPreconditionError: The store cannot be written; the message contains the remedy.
        """

    def watermark(self, name: str) -> int | None:
        """Return the event time (us since 1970) up to which `name` was written; None at first."""

    def raise_watermark(self, name: str, event_us: int) -> None:
        """Store a watermark; it never falls."""

    def close(self) -> None:
        """Close all connections; idempotent."""


@runtime_checkable
class ForeignStore(Protocol):
    """A store that another system writes in its own format, which is converted to records."""

    def expect(self, views: "Sequence[FeatureView]") -> None:
        """Register the views of a reader; each reader calls it before it reads.

        Raises:
            FailedPreconditionError: The store has no data for these views.
        """


def open_online_store(
    url: str,
    *,
    namespace: str = "default",
    timeout_s: float = DEFAULT_TIMEOUT_S,
    read_only: bool = False,
) -> OnlineStore:
    """Return the store at `url`; connects on first use.

    Args:
        url: `sqlite:///PATH` (`sqlite:////abs/path`), a path, or a Redis or Valkey server:
            `redis://[USER:PASSWORD@]HOST:PORT/DB`, `rediss://` with TLS, `unix:///SOCKET`. Or
            `feast://PATH`: the store named in the feature_store.yaml of a Feast repository. Or
            `hopsworks://HOST:PORT/FEATURE_STORE`. Or the scheme of an entry point in the group
            `headrace.online_stores`.
        namespace: Separates several projects in one Redis server.
        timeout_s: Timeout of a connection, a write or a lock; a read has its own timeout.
        read_only: For a process without write permission: the store must exist.

    Raises:
        InvalidArgumentError: The URL is not valid.
        FailedPreconditionError: Its client is not installed or cannot be loaded, or the Feast
            repository cannot be read.
    """
    if not url or "\0" in url:
        raise InvalidArgumentError("the URL of the online store is empty, or contains a zero byte")
    scheme, is_url, _ = url.partition("://")
    opener = store_opener(scheme.lower() if is_url else "sqlite")
    return opener(url, namespace=namespace, timeout_s=timeout_s, read_only=read_only)


def without_password(url: str) -> str:
    """Return `url` without secrets, for messages."""
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
