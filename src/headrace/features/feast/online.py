"""Online store that reads the values that Feast wrote, as Headrace records.

Read only: `feast materialize` and Feast's push write it. Unlike Feast's own read, this one returns
the age of a value, so that a view's time to live applies.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NoReturn, Protocol

from headrace.core import FailedPreconditionError, NotFoundError
from headrace.features.definitions import FeatureView
from headrace.features.feast.importing import import_definitions, key_types, views_of
from headrace.features.feast.repository import FeastRepository, read_repository
from headrace.features.feast.values import DAMAGED, KeyWriter, RecordWriter
from headrace.features.online.store import DEFAULT_TIMEOUT_S, Place
from headrace.features.records import Key, Record, RecordLayout, key_prefix

_US: Final = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class FeastView:
    """Location and format of one view in the store."""

    name: str
    """The view's name."""

    stored_as: str
    """Feast's name of the view in the store."""

    features: tuple[str, ...]
    prefix: bytes
    keys: KeyWriter
    records: RecordWriter


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredRow:
    """The stored values of one entity in one view."""

    event_us: int | None
    """Event time; None if it cannot be read."""

    values: Sequence[bytes | None]
    """An encoded Feast value, or None, for each feature."""


Lookups = Sequence[tuple[FeastView, Sequence[bytes]]]
"""Views, each with the keys, in Feast's encoding, of the entities to read."""


class FeastFetcher(Protocol):
    """Reads values from one kind of store."""

    name: str

    def fetch(
        self, lookups: Lookups, *, timeout_s: float
    ) -> Iterator[tuple[FeastView, bytes, StoredRow]]:
        """Yield the stored rows of these keys; the errors are those of `OnlineStore.read`."""

    def close(self) -> None:
        """Close all connections; idempotent."""


class FeastOnlineStore:
    """An `OnlineStore` on data that Feast wrote."""

    def __init__(self, repository: FeastRepository, fetcher: FeastFetcher) -> None:
        self.name = fetcher.name
        self._repository = repository
        self._fetcher = fetcher
        self._views: dict[str, FeastView] = {}

    def expect(self, views: Sequence[FeatureView]) -> None:
        """Return records in the form of these views; others follow Feast's current definition.

        Raises:
            FailedPreconditionError: Feast's registry cannot be read, or no longer has such a view.
        """
        registry = self._repository.registry()
        specs = {view.spec.name: view for view in views_of(registry, self._repository.project)}
        for view in views:
            spec = specs.get(view.name)
            types = {} if spec is None else key_types(spec.spec)
            if spec is None or any(key not in types for key in view.join_keys):
                message = (
                    f"{self._repository.registry_path} has no feature view {view.name!r} with the "
                    f"join keys {', '.join(view.join_keys)} any more; `headrace features apply "
                    "--from-feast` reads what there is"
                )
                raise FailedPreconditionError(message)
            version = spec.meta.version if self._repository.is_versioned else 0
            self._views[view.name] = FeastView(
                name=view.name,
                stored_as=f"{view.name}_v{version}" if version else view.name,
                features=tuple(feature.name for feature in view.features),
                prefix=key_prefix(view),
                keys=KeyWriter(view, types),
                records=RecordWriter(
                    RecordLayout(view), [feature.datatype for feature in view.features]
                ),
            )

    def read(
        self, keys: Sequence[Key], views: Sequence[str], *, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> Mapping[Place, Record]:
        """Return the stored records; see `OnlineStore`."""
        deadline = time.monotonic() + timeout_s
        lookups: list[tuple[FeastView, list[bytes]]] = []
        keys_by_feast_key: dict[tuple[str, bytes], Key] = {}
        for name in views:
            view = self._views.get(name) or self._as_defined_now(name)
            feast_keys = []
            for key in keys:
                feast_key = view.keys.write(key) if key.startswith(view.prefix) else None
                if feast_key is not None:
                    feast_keys.append(feast_key)
                    keys_by_feast_key[name, feast_key] = key
            if feast_keys:
                lookups.append((view, feast_keys))
        records = {}
        remaining_s = deadline - time.monotonic()
        for view, key, row in self._fetcher.fetch(lookups, timeout_s=remaining_s):
            records[keys_by_feast_key[view.name, key], view.name] = (
                DAMAGED if row.event_us is None else view.records.write(row.event_us, row.values)
            )
        return records

    def write(self, view: str, keys: Sequence[Key], records: Sequence[Record]) -> int:  # noqa: ARG002  # as `OnlineStore`
        """Raise FailedPreconditionError: Feast writes its stores itself."""
        self._refuse(f"the values of {view}")

    def watermark(self, name: str) -> int | None:
        """Return the event time up to which Feast materialized the view, from its registry."""
        view_name = name.rpartition(":")[0] or name
        for record in views_of(self._repository.registry(), self._repository.project):
            if record.spec.name == view_name:
                ends = [i.end.seconds * _US + i.end.nanos // 1000 for i in record.meta.intervals]
                return max(ends, default=None)
        return None

    def raise_watermark(self, name: str, event_us: int) -> None:  # noqa: ARG002  # as `OnlineStore`
        """Raise FailedPreconditionError: Feast writes its registry itself."""
        self._refuse(f"the watermark of {name}")

    def close(self) -> None:
        """Close all connections; idempotent."""
        self._fetcher.close()

    def _as_defined_now(self, name: str) -> FeastView:
        # Imported here: a reader that calls `expect` first does not import pydantic.
        from headrace.features.spec import parse_definitions  # noqa: PLC0415

        document = import_definitions(self._repository).document
        if all(view["name"] != name for view in document["feature_views"]):
            raise NotFoundError(f"Feast's registry has no feature view {name[:200]!r}")
        definitions = parse_definitions(document, base_dir=self._repository.path)
        self.expect([definitions.view(name)])
        return self._views[name]

    def _refuse(self, description: str) -> NoReturn:
        message = (
            f"{description} cannot be written to {self.name}: it belongs to Feast, and `feast "
            "materialize` or "
            "Feast's push write it; name another store with --online-store"
        )
        raise FailedPreconditionError(message)


def open_feast_store(
    url: str,
    *,
    namespace: str,  # noqa: ARG001  # as `StoreOpener`
    timeout_s: float,  # noqa: ARG001  # each read has its own timeout
    read_only: bool,  # noqa: ARG001  # always true
) -> FeastOnlineStore:
    """Return the online store of the repository at `feast://PATH`; connects on first use.

    Raises:
        FailedPreconditionError: The repository cannot be read, its kind of store is not supported,
            or Redis's client is not installed.
    """
    repository = read_repository(Path(url.removeprefix("feast://")))
    kind = repository.online.get("type")
    # Imported here, as Redis's client is an optional dependency.
    if kind == "sqlite":
        from headrace.features.feast.sqlite import SqliteFetcher  # noqa: PLC0415

        return FeastOnlineStore(repository, SqliteFetcher(repository))
    if kind == "redis":
        from headrace.features.feast.redis import RedisFetcher  # noqa: PLC0415

        return FeastOnlineStore(repository, RedisFetcher(repository))
    message = (
        f"{repository.path}: an online store of type {str(kind)[:60]!r} is not supported; "
        "supported are sqlite and redis. Or fill another store: `headrace features materialize "
        "--online-store URL`"
    )
    raise FailedPreconditionError(message)
