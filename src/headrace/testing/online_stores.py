"""Contract test suite for online stores, to be subclassed in their tests.

pytest.register_assert_rewrite("headrace.testing.online_stores")  # in conftest.py

from headrace.testing.online_stores import OnlineStoreContract

class TestMine(OnlineStoreContract):
    @pytest.fixture
    def url(self):
        return "mine://localhost:1234"      # an entry point in the group headrace.online_stores

A store that another system writes and Headrace only reads has to pass `ForeignStoreContract`.
"""

# ruff: noqa: PLR2004  # a contract suite consists of asserts

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from uuid import uuid4

import numpy as np
import pytest

from headrace.core import (
    Datatype,
    DeadlineExceededError,
    FailedPreconditionError,
)
from headrace.features import (
    DataSource,
    Entity,
    Feature,
    FeatureReader,
    FeatureService,
    FeatureStatus,
    FeatureView,
    ForeignStore,
    OnlineStore,
    Record,
    open_online_store,
    record_time_us,
)
from headrace.features.records import RecordLayout, ValueColumn, encode_keys

VIEW = FeatureView(
    name="stats",
    entities=(Entity(name="customer", join_key="customer"),),
    features=(Feature(name="score", datatype=Datatype.FP32),),
    source=DataSource(path=Path("unused.parquet")),
)
LAYOUT = RecordLayout(VIEW)


def record(event_us: int, score: float = 0.0) -> Record:
    """Return a record of `VIEW` with this event time."""
    column = ValueColumn(values=np.array([score]), is_present=np.array([True]))
    return LAYOUT.encode(np.array([event_us]), [column])[0]


def key(name: str = "anna") -> bytes:
    """Return the key of an entity of `VIEW`."""
    return encode_keys(VIEW, [[name]])[0]


def time_of(store: OnlineStore, name: str = "anna", view: str = "stats") -> int | None:
    """Return the event time of a stored record; None without a record."""
    stored = store.read([key(name)], [view]).get((key(name), view))
    return None if stored is None else record_time_us(stored)


class OnlineStoreContract:
    """Contract suite of `headrace.features.OnlineStore`.

    Subclasses define the fixture `url` of a store. The store need not be empty if it supports
    namespaces: each test uses a new one.
    """

    @pytest.fixture
    def url(self) -> str:
        """Return the URL for `open_online_store`."""
        raise NotImplementedError

    @pytest.fixture
    def namespace(self) -> str:
        """Return an unused namespace."""
        return uuid4().hex

    @pytest.fixture
    def store(self, url: str, namespace: str) -> Iterator[OnlineStore]:
        """Yield the store under test."""
        opened = open_online_store(url, namespace=namespace)
        yield opened
        opened.close()

    def test_what_is_written_is_read(self, store: OnlineStore) -> None:
        """Reading returns the written record unchanged."""
        written = store.write("stats", [key()], [record(7, 0.5)])

        assert written == 1
        assert store.read([key()], ["stats"]) == {(key(), "stats"): record(7, 0.5)}

    def test_what_nobody_wrote_is_not_there(self, store: OnlineStore) -> None:
        """Reads of another entity, another view or no entity return nothing."""
        store.write("stats", [key("anna")], [record(7)])

        assert store.read([key("bert")], ["stats"]) == {}
        assert store.read([key("anna")], ["other"]) == {}
        assert store.read([], ["stats"]) == {}

    def test_one_read_brings_several_views_of_several_entities(self, store: OnlineStore) -> None:
        """A request reads all of its rows at once."""
        store.write("stats", [key("anna"), key("bert")], [record(1), record(2)])
        store.write("risk", [key("bert")], [record(3)])

        rows = store.read([key("anna"), key("bert"), key("carl")], ["stats", "risk"])

        assert {entity_view: record_time_us(record) for entity_view, record in rows.items()} == {
            (key("anna"), "stats"): 1,
            (key("bert"), "stats"): 2,
            (key("bert"), "risk"): 3,
        }

    def test_an_older_value_never_replaces_a_newer_one(self, store: OnlineStore) -> None:
        """The event time decides, not the order of writes."""
        store.write("stats", [key()], [record(20)])

        written = store.write("stats", [key()], [record(10)])

        assert written == 0
        assert time_of(store) == 20

    def test_of_equal_times_the_later_write_counts(self, store: OnlineStore) -> None:
        """This allows corrections of values."""
        store.write("stats", [key()], [record(20, 1.0)])

        written = store.write("stats", [key()], [record(20, 2.0)])

        assert written == 1
        assert store.read([key()], ["stats"]) == {(key(), "stats"): record(20, 2.0)}

    def test_times_are_compared_to_the_microsecond_also_before_1970(
        self, store: OnlineStore
    ) -> None:
        """Comparison has the precision of records."""
        late = (1 << 53) - 1
        store.write("stats", [key("anna"), key("bert")], [record(late), record(-5)])

        store.write("stats", [key("anna"), key("bert")], [record(late - 1), record(-6)])

        assert time_of(store, "anna") == late
        assert time_of(store, "bert") == -5

    def test_within_one_write_the_newest_of_an_entity_stays(self, store: OnlineStore) -> None:
        """The order of rows within a write does not matter."""
        store.write("stats", [key(), key(), key()], [record(1), record(3), record(2)])

        assert time_of(store) == 3

    def test_more_entities_than_fit_one_round_trip(self, store: OnlineStore) -> None:
        """The maximum size of a batch is that of a read."""
        keys = [key(str(i)) for i in range(1_201)]
        written = store.write("stats", keys, [record(i) for i in range(1_201)])

        rows = store.read(keys, ["stats"])

        assert written == 1_201
        assert [record_time_us(rows[entity, "stats"]) for entity in keys] == list(range(1_201))

    @pytest.mark.parametrize(
        "name", ["Ж 東京 🚂", "a\0b", "'; DROP TABLE records; --", "\r\nGET x", "x" * 1024]
    )
    def test_any_text_names_an_entity(self, store: OnlineStore, name: str) -> None:
        """Keys are arbitrary bytes, and are never interpreted as commands."""
        store.write("stats", [key(name)], [record(5)])

        assert time_of(store, name) == 5
        assert time_of(store, name[:-1] or "y") is None

    def test_a_watermark_never_falls(self, store: OnlineStore) -> None:
        """Each name has its own watermark."""
        before = store.watermark("stats:1")
        store.raise_watermark("stats:1", 1_800_000_000_000_000)
        store.raise_watermark("stats:1", 5)

        assert before is None
        assert store.watermark("stats:1") == 1_800_000_000_000_000
        assert store.watermark("stats:2") is None

    def test_the_newest_of_many_writers_stays(self, url: str, namespace: str) -> None:
        """The event time is compared atomically across connections."""

        def write(first: int) -> None:
            own = open_online_store(url, namespace=namespace)
            for i in range(first, 200, 4):
                own.write("stats", [key(), key("bert")], [record(i), record(500 - i)])
            own.close()

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(write, range(4)))

        store = open_online_store(url, namespace=namespace)
        assert (time_of(store, "anna"), time_of(store, "bert")) == (199, 500)
        store.close()

    def test_a_closed_store_opens_again(self, store: OnlineStore) -> None:
        """`close` is idempotent, and the next call reconnects."""
        store.write("stats", [key()], [record(5)])
        store.close()
        store.close()

        assert time_of(store) == 5


class ForeignStoreContract:
    """Contract suite of stores that another system writes.

    Subclasses define the fixtures `url`; `service`, whose values the store has; and `known` and
    `unknown`: the join keys of an entity with values in all views, and of an entity without values.
    """

    @pytest.fixture
    def url(self) -> str:
        """Return the URL for `open_online_store`."""
        raise NotImplementedError

    @pytest.fixture
    def service(self) -> FeatureService:
        """Return a service with views of the store, without a time to live."""
        raise NotImplementedError

    @pytest.fixture
    def known(self) -> Mapping[str, object]:
        """Return the join keys of an entity with values."""
        raise NotImplementedError

    @pytest.fixture
    def unknown(self) -> Mapping[str, object]:
        """Return the join keys of an entity without values."""
        raise NotImplementedError

    @pytest.fixture
    def store(self, url: str) -> Iterator[OnlineStore]:
        """Yield the store under test."""
        opened = open_online_store(url)
        yield opened
        opened.close()

    def test_it_is_told_which_views_are_read(self, store: OnlineStore) -> None:
        """The store converts values to records, so it needs the views of the reader."""
        assert isinstance(store, ForeignStore)
        assert store.name

    def test_an_entity_with_values_is_present_and_one_without_is_missing(
        self,
        store: OnlineStore,
        service: FeatureService,
        known: Mapping[str, object],
        unknown: Mapping[str, object],
    ) -> None:
        """This holds for both in one read, and for repeated entities."""
        reader = FeatureReader(service, store)
        keys = {name: [unknown[name], known[name], unknown[name], known[name]] for name in known}

        rows = reader.read(keys)

        there, removed = FeatureStatus.PRESENT, FeatureStatus.MISSING
        for view in service.views:
            assert rows.statuses[view.name] == [removed, there, removed, there]
        for column in rows.columns.values():
            assert str(column[1]) == str(column[3])

    def test_no_rows_are_no_mistake(
        self, store: OnlineStore, service: FeatureService, known: Mapping[str, object]
    ) -> None:
        """An empty batch has empty columns."""
        rows = FeatureReader(service, store).read({name: [] for name in known})

        assert [len(column) for column in rows.columns.values()] == [0] * len(service.columns)

    def test_more_entities_than_fit_one_round_trip_are_read(
        self, store: OnlineStore, service: FeatureService, known: Mapping[str, object]
    ) -> None:
        """The maximum size of a batch is that of a read."""
        rows = FeatureReader(service, store).read({n: [v] * 1_201 for n, v in known.items()})

        for view in service.views:
            assert rows.statuses[view.name] == [FeatureStatus.PRESENT] * 1_201

    def test_threads_get_their_own_answers(
        self,
        store: OnlineStore,
        service: FeatureService,
        known: Mapping[str, object],
        unknown: Mapping[str, object],
    ) -> None:
        """All requests of a process share a store."""
        reader = FeatureReader(service, store)
        view = service.views[0].name

        def status(asked: Mapping[str, object]) -> FeatureStatus:
            rows = reader.read({name: [value] for name, value in asked.items()})
            return rows.statuses[view][0]

        with ThreadPoolExecutor(4) as pool:
            statuses = list(pool.map(status, [known, unknown] * 20))

        assert statuses == [FeatureStatus.PRESENT, FeatureStatus.MISSING] * 20

    def test_it_is_not_written(self, store: OnlineStore, service: FeatureService) -> None:
        """The owning system would not know of the write."""
        with pytest.raises(FailedPreconditionError):
            store.write(service.views[0].name, [b"x:1"], [b""])
        with pytest.raises(FailedPreconditionError):
            store.raise_watermark(f"{service.views[0].name}:0", 1)

    def test_a_read_whose_time_is_over_is_not_begun(
        self, store: OnlineStore, service: FeatureService, known: Mapping[str, object]
    ) -> None:
        """A read fails at its deadline, regardless of the store."""
        FeatureReader(service, store)
        view = service.views[0]
        keys = encode_keys(view, [[known[name]] for name in view.join_keys])

        with pytest.raises(DeadlineExceededError):
            store.read(keys, [view.name], timeout_s=0.0)

    def test_a_closed_store_opens_again(
        self, store: OnlineStore, service: FeatureService, known: Mapping[str, object]
    ) -> None:
        """`close` is idempotent, and the next call reconnects."""
        reader = FeatureReader(service, store)
        store.close()
        store.close()

        rows = reader.read({name: [value] for name, value in known.items()})

        assert rows.statuses[service.views[0].name] == [FeatureStatus.PRESENT]
