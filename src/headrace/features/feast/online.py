"""The newest values in an online store of Feast's, in the form of ours.

Read only: `feast materialize` and Feast's push write it. Unlike Feast's own read, ours tells how
old a value is, so that a view's time to live counts.
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
    """How one view stands in the store: `stored_as` is what Feast calls it there."""

    name: str
    stored_as: str
    features: tuple[str, ...]
    prefix: bytes
    keys: KeyWriter
    records: RecordWriter


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredRow:
    """What stands for one entity in one view: a message of Feast's, or None, for each feature.

    `event_us` is None where its time cannot be read.
    """

    event_us: int | None
    values: Sequence[bytes | None]


Wanted = Sequence[tuple[FeastView, Sequence[bytes]]]
"""Views, each with the keys, as Feast writes them, of the entities in question."""


class FeastFetcher(Protocol):
    """Knows where one kind of store keeps its values."""

    name: str

    def fetch(
        self, wanted: Wanted, *, timeout_s: float
    ) -> Iterator[tuple[FeastView, bytes, StoredRow]]:
        """What there is of them; errors as `OnlineStore.read` has them."""

    def close(self) -> None:
        """Close all connections; twice is once."""


class FeastOnlineStore:
    """An `OnlineStore` on what Feast wrote."""

    def __init__(self, repository: FeastRepository, fetcher: FeastFetcher) -> None:
        self.name = fetcher.name
        self._repository = repository
        self._fetcher = fetcher
        self._views: dict[str, FeastView] = {}

    def expect(self, views: Sequence[FeatureView]) -> None:
        """Give records in the form of these views; others are as Feast defines them now.

        Raises:
            FailedPreconditionError: Feast's registry cannot be read, or has no such view any more.
        """
        registry = self._repository.registry()
        specs = {one.spec.name: one for one in views_of(registry, self._repository.project)}
        for view in views:
            found = specs.get(view.name)
            types = {} if found is None else key_types(found.spec)
            if found is None or any(key not in types for key in view.join_keys):
                message = (
                    f"{self._repository.registry_path} has no feature view {view.name!r} with the "
                    f"join keys {', '.join(view.join_keys)} any more; `headrace features apply "
                    "--from-feast` reads what there is"
                )
                raise FailedPreconditionError(message)
            version = found.meta.version if self._repository.is_versioned else 0
            self._views[view.name] = FeastView(
                name=view.name,
                stored_as=f"{view.name}_v{version}" if version else view.name,
                features=tuple(feature.name for feature in view.features),
                prefix=key_prefix(view),
                keys=KeyWriter(view, types),
                records=RecordWriter(RecordLayout(view), [one.datatype for one in view.features]),
            )

    def read(
        self, keys: Sequence[Key], views: Sequence[str], *, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> Mapping[Place, Record]:
        """The records that there are; see `OnlineStore`."""
        deadline = time.monotonic() + timeout_s
        wanted: list[tuple[FeastView, list[bytes]]] = []
        ours: dict[tuple[str, bytes], Key] = {}
        for name in views:
            view = self._views.get(name) or self._as_defined_now(name)
            theirs = []
            for key in keys:
                written = view.keys.write(key) if key.startswith(view.prefix) else None
                if written is not None:
                    theirs.append(written)
                    ours[name, written] = key
            if theirs:
                wanted.append((view, theirs))
        found = {}
        remaining_s = deadline - time.monotonic()
        for view, key, row in self._fetcher.fetch(wanted, timeout_s=remaining_s):
            found[ours[view.name, key], view.name] = (
                DAMAGED if row.event_us is None else view.records.write(row.event_us, row.values)
            )
        return found

    def write(self, view: str, keys: Sequence[Key], records: Sequence[Record]) -> int:  # noqa: ARG002  # as `OnlineStore`
        """Refused: Feast writes its stores itself."""
        self._refuse(f"the values of {view}")

    def watermark(self, name: str) -> int | None:
        """Up to when Feast materialized the view, as its registry says."""
        view = name.rpartition(":")[0] or name
        for one in views_of(self._repository.registry(), self._repository.project):
            if one.spec.name == view:
                ends = [i.end.seconds * _US + i.end.nanos // 1000 for i in one.meta.intervals]
                return max(ends, default=None)
        return None

    def raise_watermark(self, name: str, event_us: int) -> None:  # noqa: ARG002  # as `OnlineStore`
        """Refused: Feast writes its registry itself."""
        self._refuse(f"how far {name} is materialized")

    def close(self) -> None:
        """Close all connections; twice is once."""
        self._fetcher.close()

    def _as_defined_now(self, name: str) -> FeastView:
        # Loaded where it is used: a reader names its views first, and does not pay for pydantic.
        from headrace.features.spec import parse_definitions  # noqa: PLC0415

        document = import_definitions(self._repository).document
        if all(view["name"] != name for view in document["feature_views"]):
            raise NotFoundError(f"there is no feature view {name[:200]!r} in Feast's registry")
        definitions = parse_definitions(document, base_dir=self._repository.path)
        self.expect([definitions.view(name)])
        return self._views[name]

    def _refuse(self, what: str) -> NoReturn:
        message = (
            f"{what} cannot be written in {self.name}: it is Feast's, and `feast materialize` or "
            "Feast's push write it; name a store of ours with --online-store to fill that"
        )
        raise FailedPreconditionError(message)


def open_feast_store(
    url: str,
    *,
    namespace: str,  # noqa: ARG001  # as `StoreOpener`
    timeout_s: float,  # noqa: ARG001  # a read brings its own
    read_only: bool,  # noqa: ARG001  # it always is
) -> FeastOnlineStore:
    """The online store of the repository at `feast://PATH`; connects to nothing yet.

    Raises:
        FailedPreconditionError: The repository cannot be read, its store is of a kind that is not
            read, or Redis's client is not installed.
    """
    repository = read_repository(Path(url.removeprefix("feast://")))
    kind = repository.online.get("type")
    # Each loaded where it is used, as Redis's client is an extra.
    if kind == "sqlite":
        from headrace.features.feast.sqlite import SqliteFetcher  # noqa: PLC0415

        return FeastOnlineStore(repository, SqliteFetcher(repository))
    if kind == "redis":
        from headrace.features.feast.redis import RedisFetcher  # noqa: PLC0415

        return FeastOnlineStore(repository, RedisFetcher(repository))
    message = (
        f"{repository.path}: an online store of type {str(kind)[:60]!r} is not read; of Feast's "
        "there are sqlite and redis. Else fill a store of ours: `headrace features materialize "
        "--online-store URL`"
    )
    raise FailedPreconditionError(message)
