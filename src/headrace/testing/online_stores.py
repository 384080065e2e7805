"""Contract test suite for online stores, to be subclassed in their tests.

pytest.register_assert_rewrite("headrace.testing.online_stores")  # in conftest.py

from headrace.testing.online_stores import OnlineStoreContract

class TestMine(OnlineStoreContract):
    @pytest.fixture
    def url(self):
        return "mine://localhost:1234"      # an entry point in the group headrace.online_stores

A store that others fill, which Headrace only reads, passes `ForeignStoreContract` instead.
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
    """A record of `VIEW` with this event time."""
    column = ValueColumn(values=np.array([score]), is_present=np.array([True]))
    return LAYOUT.encode(np.array([event_us]), [column])[0]


def key(name: str = "anna") -> bytes:
    """The key of an entity of `VIEW`."""
    return encode_keys(VIEW, [[name]])[0]


def time_of(store: OnlineStore, name: str = "anna", view: str = "stats") -> int | None:
    """The event time of the record that stands there, if one does."""
    stored = store.read([key(name)], [view]).get((key(name), view))
    return None if stored is None else record_time_us(stored)


class OnlineStoreContract:
    """What `headrace.features.OnlineStore` promises.

    Give the fixture `url`, which names a store; it need not be empty, as each test takes a
    namespace of its own, unless the store has none.
    """

    @pytest.fixture
    def url(self) -> str:
        """What `open_online_store` opens."""
        raise NotImplementedError

    @pytest.fixture
    def namespace(self) -> str:
        """One that nobody used."""
        return uuid4().hex

    @pytest.fixture
    def store(self, url: str, namespace: str) -> Iterator[OnlineStore]:
        """The store under test."""
        opened = open_online_store(url, namespace=namespace)
        yield opened
        opened.close()

    def test_what_is_written_is_read(self, store: OnlineStore) -> None:
        """A record comes back as it was."""
        written = store.write("stats", [key()], [record(7, 0.5)])

        assert written == 1
        assert store.read([key()], ["stats"]) == {(key(), "stats"): record(7, 0.5)}

    def test_what_nobody_wrote_is_not_there(self, store: OnlineStore) -> None:
        """Of another entity, of another view, and of no entity at all."""
        store.write("stats", [key("anna")], [record(7)])

        assert store.read([key("bert")], ["stats"]) == {}
        assert store.read([key("anna")], ["other"]) == {}
        assert store.read([], ["stats"]) == {}

    def test_one_read_brings_several_views_of_several_entities(self, store: OnlineStore) -> None:
        """A request asks once, for all of its rows."""
        store.write("stats", [key("anna"), key("bert")], [record(1), record(2)])
        store.write("risk", [key("bert")], [record(3)])

        rows = store.read([key("anna"), key("bert"), key("carl")], ["stats", "risk"])

        assert {entity_view: record_time_us(record) for entity_view, record in rows.items()} == {
            (key("anna"), "stats"): 1,
            (key("bert"), "stats"): 2,
            (key("bert"), "risk"): 3,
        }

    def test_an_older_value_never_replaces_a_newer_one(self, store: OnlineStore) -> None:
        """Whoever writes last."""
        store.write("stats", [key()], [record(20)])

        written = store.write("stats", [key()], [record(10)])

        assert written == 0
        assert time_of(store) == 20

    def test_of_equal_times_the_later_write_counts(self, store: OnlineStore) -> None:
        """Else no value could be corrected."""
        store.write("stats", [key()], [record(20, 1.0)])

        written = store.write("stats", [key()], [record(20, 2.0)])

        assert written == 1
        assert store.read([key()], ["stats"]) == {(key(), "stats"): record(20, 2.0)}

    def test_times_are_compared_to_the_microsecond_also_before_1970(
        self, store: OnlineStore
    ) -> None:
        """As exactly as records have them."""
        late = (1 << 53) - 1
        store.write("stats", [key("anna"), key("bert")], [record(late), record(-5)])

        store.write("stats", [key("anna"), key("bert")], [record(late - 1), record(-6)])

        assert time_of(store, "anna") == late
        assert time_of(store, "bert") == -5

    def test_within_one_write_the_newest_of_an_entity_stays(self, store: OnlineStore) -> None:
        """In whatever order its rows stand."""
        store.write("stats", [key(), key(), key()], [record(1), record(3), record(2)])

        assert time_of(store) == 3

    def test_more_entities_than_fit_one_round_trip(self, store: OnlineStore) -> None:
        """A batch may be as large as a read may be."""
        keys = [key(str(i)) for i in range(1_201)]
        written = store.write("stats", keys, [record(i) for i in range(1_201)])

        rows = store.read(keys, ["stats"])

        assert written == 1_201
        assert [record_time_us(rows[entity, "stats"]) for entity in keys] == list(range(1_201))

    @pytest.mark.parametrize(
        "name", ["Ж 東京 🚂", "a\0b", "'; DROP TABLE records; --", "\r\nGET x", "x" * 1024]
    )
    def test_any_text_names_an_entity(self, store: OnlineStore, name: str) -> None:
        """Keys are bytes, and none of them is a command."""
        store.write("stats", [key(name)], [record(5)])

        assert time_of(store, name) == 5
        assert time_of(store, name[:-1] or "y") is None

    def test_a_watermark_never_falls(self, store: OnlineStore) -> None:
        """Of each name by itself."""
        before = store.watermark("stats:1")
        store.raise_watermark("stats:1", 1_800_000_000_000_000)
        store.raise_watermark("stats:1", 5)

        assert before is None
        assert store.watermark("stats:1") == 1_800_000_000_000_000
        assert store.watermark("stats:2") is None

    def test_the_newest_of_many_writers_stays(self, url: str, namespace: str) -> None:
        """The guard holds over connections."""

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
        """Closing twice is harmless."""
        store.write("stats", [key()], [record(5)])
        store.close()
        store.close()

        assert time_of(store) == 5


class ForeignStoreContract:
    """What a store promises that others fill.

    Give the fixtures `url`; `service`, which it has values for; and `known` and `unknown`, the join
    keys, as one row, of an entity that has values in all views, and of one that has none.
    """

    @pytest.fixture
    def url(self) -> str:
        """What `open_online_store` opens."""
        raise NotImplementedError

    @pytest.fixture
    def service(self) -> FeatureService:
        """Views of the store, with no time to live."""
        raise NotImplementedError

    @pytest.fixture
    def known(self) -> Mapping[str, object]:
        """An entity with values."""
        raise NotImplementedError

    @pytest.fixture
    def unknown(self) -> Mapping[str, object]:
        """An entity without."""
        raise NotImplementedError

    @pytest.fixture
    def store(self, url: str) -> Iterator[OnlineStore]:
        """The store under test."""
        opened = open_online_store(url)
        yield opened
        opened.close()

    def test_it_is_told_which_views_are_read(self, store: OnlineStore) -> None:
        """Its records are made of what others wrote: it has to know what for."""
        assert isinstance(store, ForeignStore)
        assert store.name

    def test_an_entity_with_values_is_present_and_one_without_is_missing(
        self,
        store: OnlineStore,
        service: FeatureService,
        known: Mapping[str, object],
        unknown: Mapping[str, object],
    ) -> None:
        """Also beside each other, and named twice."""
        reader = FeatureReader(service, store)
        keys = {name: [unknown[name], known[name], unknown[name], known[name]] for name in known}

        rows = reader.read(keys)

        there, gone = FeatureStatus.PRESENT, FeatureStatus.MISSING
        for view in service.views:
            assert rows.statuses[view.name] == [gone, there, gone, there]
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
        """A batch may be as large as a read may be."""
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
        """A store is shared by all requests of a process."""
        reader = FeatureReader(service, store)
        view = service.views[0].name

        def status(asked: Mapping[str, object]) -> FeatureStatus:
            rows = reader.read({name: [value] for name, value in asked.items()})
            return rows.statuses[view][0]

        with ThreadPoolExecutor(4) as pool:
            statuses = list(pool.map(status, [known, unknown] * 20))

        assert statuses == [FeatureStatus.PRESENT, FeatureStatus.MISSING] * 20

    def test_it_is_not_written(self, store: OnlineStore, service: FeatureService) -> None:
        """Whoever fills it would not know."""
        with pytest.raises(FailedPreconditionError):
            store.write(service.views[0].name, [b"x:1"], [b""])
        with pytest.raises(FailedPreconditionError):
            store.raise_watermark(f"{service.views[0].name}:0", 1)

    def test_a_read_whose_time_is_over_is_not_begun(
        self, store: OnlineStore, service: FeatureService, known: Mapping[str, object]
    ) -> None:
        """It ends at its deadline, whatever the store would say."""
        FeatureReader(service, store)
        view = service.views[0]
        keys = encode_keys(view, [[known[name]] for name in view.join_keys])

        with pytest.raises(DeadlineExceededError):
            store.read(keys, [view.name], timeout_s=0.0)

    def test_a_closed_store_opens_again(
        self, store: OnlineStore, service: FeatureService, known: Mapping[str, object]
    ) -> None:
        """Closing twice is harmless."""
        reader = FeatureReader(service, store)
        store.close()
        store.close()

        rows = reader.read({name: [value] for name, value in known.items()})

        assert rows.statuses[service.views[0].name] == [FeatureStatus.PRESENT]
