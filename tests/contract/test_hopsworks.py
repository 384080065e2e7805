"""Vectors of Hopsworks become rows of features; what goes wrong there is told in time."""

import json
import math
import re
import ssl
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from headrace.core import (
    Datatype,
    DeadlineExceededError,
    FailedPreconditionError,
    InvalidArgumentError,
    SystemClock,
    UnavailableError,
)
from headrace.features import (
    DataSource,
    Entity,
    Feature,
    FeatureReader,
    FeatureService,
    FeatureStatus,
    FeatureView,
    OnlineStore,
    ServiceColumn,
    open_online_store,
)
from headrace.features.online import hopsworks as online_hopsworks
from headrace.features.online_writers import service_readiness
from headrace.testing.online_stores import ForeignStoreContract
from tests.certificates import Authority
from tests.contract.hopsworks_server import (
    KEY,
    HopsworksServer,
    View,
    drip,
    hang_up,
    running_hopsworks,
    send,
    stop_short,
)

Answer = Callable[[BaseHTTPRequestHandler], None]
NOW = datetime.now(UTC)
CUSTOMER = Entity(name="customer", join_key="id", datatype=Datatype.INT64)
SHOP = Entity(name="shop", join_key="shop")
STATS = FeatureView(
    name="stats",
    entities=(CUSTOMER,),
    features=(
        Feature(name="spend", datatype=Datatype.FP32),
        Feature(name="age", datatype=Datatype.INT64, default=-1),
        Feature(name="city", datatype=Datatype.BYTES),
        Feature(name="is_new", datatype=Datatype.BOOL),
        Feature(name="photo", datatype=Datatype.BYTES),
    ),
    source=DataSource(path=None, timestamp_field="ts"),
    ttl_s=86_400.0,
)
VISITS = FeatureView(
    name="visits",
    entities=(CUSTOMER, SHOP),
    features=(Feature(name="visits", datatype=Datatype.FP64),),
    source=DataSource(path=None),
)


def told(time: datetime) -> str:
    """As the server writes a timestamp: in UTC, without a time zone."""
    return f"{time:%Y-%m-%d %H:%M:%S.%f}"[:-3]


def hopsworks_views() -> dict[tuple[str, int], View]:
    columns = [
        ("id", "bigint"),
        ("ts", "timestamp"),
        ("age", "int"),
        ("spend", "double"),
        ("other", "array<float>"),
        ("is_new", "boolean"),
        ("city", "string"),
        ("photo", "binary"),
    ]
    fresh, old = told(NOW - timedelta(hours=1)), told(NOW - timedelta(days=2))
    stats = View(
        keys=["id"],
        columns=columns,
        rows={
            (1,): [1, fresh, 33, 0.5, [1.0], True, "Zürich", "/wAB"],
            (2,): [2, old, 44, 1.5, None, False, "", None],
            (3,): [3, fresh, None, None, None, None, "Bern", None],
            (2**53 + 1,): [2**53 + 1, fresh, 2**53 + 1, 3, None, 0, "x", ""],
            (7,): [7, fresh, "many", 0.5, None, True, "x", None],
            (8,): [8, "soon", 1, 0.5, None, True, "x", None],
        },
    )
    visits = View(
        keys=["id", "shop"],
        columns=[("id", "bigint"), ("shop", "string"), ("visits", "double")],
        rows={(1, "a:b,c"): [1, "a:b,c", 4.0]},
    )
    second = View(keys=["id", "shop"], columns=visits.columns, rows={(1, "x"): [1, "x", 2.0]})
    return {("stats", 1): stats, ("visits", 1): visits, ("visits", 2): second}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[HopsworksServer]:
    monkeypatch.setenv("HOPSWORKS_API_KEY", KEY)
    with running_hopsworks(hopsworks_views()) as running:
        yield running


@pytest.fixture
def store(server: HopsworksServer) -> Iterator[OnlineStore]:
    with closing(open_online_store(server.url())) as opened:
        yield opened


def service(*views: FeatureView) -> FeatureService:
    columns = [ServiceColumn(name=f.name, view=v, feature=f) for v in views for f in v.features]
    return FeatureService(name="all", columns=tuple(columns))


class TestContract(ForeignStoreContract):
    @pytest.fixture
    def url(self, server: HopsworksServer) -> str:
        return server.url()

    @pytest.fixture
    def service(self) -> FeatureService:
        return service(replace(STATS, ttl_s=None), VISITS)

    @pytest.fixture
    def known(self) -> Mapping[str, object]:
        return {"id": 1, "shop": "a:b,c"}

    @pytest.fixture
    def unknown(self) -> Mapping[str, object]:
        return {"id": 99, "shop": "a:b,c"}


def test_vectors_are_read_with_their_types_and_times(store: OnlineStore) -> None:
    reader = FeatureReader(service(STATS), store)

    rows = reader.read({"id": [1, 2, 3, 99, 2**53 + 1]})

    present, stale, missing = FeatureStatus.PRESENT, FeatureStatus.STALE, FeatureStatus.MISSING
    assert rows.statuses["stats"] == [present, stale, present, missing, present]
    assert list(rows.columns) == ["spend", "age", "city", "is_new", "photo"]
    assert rows.columns["age"].tolist() == [33, -1, -1, -1, 2**53 + 1]
    assert rows.columns["city"].tolist() == ["Zürich".encode(), b"", b"Bern", b"", b"x"]
    assert rows.columns["is_new"].tolist() == [True, False, False, False, False]
    assert rows.columns["photo"].tolist() == [b"\xff\x00\x01", b"", b"", b"", b""]
    assert str(rows.columns["spend"].tolist()) == "[0.5, nan, nan, nan, 3.0]"
    assert 3600 <= rows.ages_s["stats"][0] < 10_000  # since this file was imported


def test_what_is_asked_is_what_hopsworks_client_asks(
    server: HopsworksServer, store: OnlineStore
) -> None:
    FeatureReader(service(VISITS), store).read({"id": [1], "shop": ["é"]})

    assert server.asked == [
        {
            "featureStoreName": "shop",
            "featureViewName": "visits",
            "featureViewVersion": 1,
            "entries": [{"id": 1, "shop": "é"}],
            "passedFeatures": [],
            "metadataOptions": {"featureName": True, "featureType": True},
            "options": {"validatePassedFeatures": False, "includeDetailedStatus": False},
        }
    ]


def test_several_views_and_entities_are_read_at_once(
    server: HopsworksServer, store: OnlineStore
) -> None:
    reader = FeatureReader(service(STATS, VISITS), store)

    rows = reader.read({"id": [1, 1, 2], "shop": ["a:b,c", "x", "x"]})
    for _ in range(3):
        reader.read({"id": [1], "shop": ["x"]})

    assert str(rows.columns["visits"].tolist()) == "[4.0, nan, nan]"
    assert rows.columns["age"].tolist() == [33, 33, -1]
    assert rows.ages_s["visits"][0] < 60  # no time is known, so it counts from the read
    assert server.connections == 2  # one for each view, and then again the same


def test_another_version_is_named_in_the_url(server: HopsworksServer) -> None:
    with closing(open_online_store(server.url(visits=2))) as store:
        rows = FeatureReader(service(VISITS), store).read({"id": [1, 1], "shop": ["x", "a:b,c"]})

    assert str(rows.columns["visits"].tolist()) == "[2.0, nan]"


def test_a_store_may_be_called_as_the_client_shows_it(server: HopsworksServer) -> None:
    with closing(open_online_store(f"{server.url()}_featurestore")) as store:
        rows = FeatureReader(service(STATS), store).read({"id": [1]})

    assert store.name.endswith("/shop")
    assert rows.columns["age"].tolist() == [33]


def test_many_entities_are_asked_in_parts(server: HopsworksServer, store: OnlineStore) -> None:
    rows = FeatureReader(service(STATS), store).read({"id": list(range(1_201))})

    # Asked at once, they come in any order.
    assert sorted(len(question["entries"]) for question in server.asked) == [201, 500, 500]
    assert rows.columns["age"].tolist()[:5] == [-1, 33, -1, -1, -1]


def test_values_that_are_not_the_views_are_missing_with_a_reason(store: OnlineStore) -> None:
    rows = FeatureReader(service(STATS), store).read({"id": [7, 8, 1]})

    assert rows.reasons["stats"] == dict.fromkeys((0, 1), "the stored record is damaged")
    assert rows.columns["age"].tolist() == [-1, -1, 33]


def test_threads_get_their_own_answers(store: OnlineStore) -> None:
    reader = FeatureReader(service(STATS), store)

    def read(i: int) -> bytes:
        return bytes(reader.read({"id": [1 if i % 2 else 3]}).columns["city"][0])

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(read, range(200)))

    assert found == [b"Bern", "Zürich".encode()] * 100


def test_a_feature_that_the_view_lacks_is_told(store: OnlineStore) -> None:
    other = FeatureView(
        name="visits",
        entities=(CUSTOMER, SHOP),
        features=(Feature(name="nothing", datatype=Datatype.FP64),),
        source=DataSource(path=None),
    )

    with pytest.raises(InvalidArgumentError, match="no 'nothing'; it has: id, shop, visits"):
        FeatureReader(service(other), store).read({"id": [1], "shop": ["x"]})


def test_a_time_to_live_needs_a_time(store: OnlineStore) -> None:
    timed = FeatureView(
        name="visits",
        entities=VISITS.entities,
        features=VISITS.features,
        source=DataSource(path=None),
        ttl_s=1.0,
    )

    with pytest.raises(
        InvalidArgumentError, match=r"does not return 'event_timestamp'.*remove ttl_s"
    ):
        FeatureReader(service(timed), store).read({"id": [1], "shop": ["x"]})


def failing(store: OnlineStore, timeout_s: float = 5.0) -> str:
    """What a read says that fails; none may fail otherwise."""
    store.expect([STATS])  # type: ignore[attr-defined]  # a store of others
    with pytest.raises((FailedPreconditionError, UnavailableError)) as caught:
        store.read([b"customer:1"], ["stats"], timeout_s=timeout_s)
    return f"{type(caught.value).__name__}: {caught.value}"


def test_a_key_that_is_refused_is_told_without_showing_it(
    server: HopsworksServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOPSWORKS_API_KEY", "s3cret")
    with closing(open_online_store(server.url())) as store:
        said = failing(store)

    assert "FailedPrecondition" in said
    assert "the server refused the key in HOPSWORKS_API_KEY (401" in said
    assert "s3cret" not in said + store.name


def test_a_view_that_is_not_there_is_told(server: HopsworksServer) -> None:
    with closing(open_online_store(server.url(stats=5))) as store:
        said = failing(store)

    assert "400: " in said
    assert "does not exist" in said
    assert "version 5 may not exist" in said


def answering(status: int, body: bytes) -> Answer:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        send(handler, status, body)

    return answer


def vectors(*features: object, status: str) -> bytes:
    names = [feature.name for feature in STATS.features]
    metadata = [{"featureName": n, "featureType": "string"} for n in [*names, "ts"]]
    return json.dumps(
        {"features": features, "metadata": metadata, "status": [status] * len(features)}
    ).encode()


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (answering(503, b"busy"), "Unavailable.*503: busy"),
        (answering(500, b"x" * 10_000), "Unavailable.*500: xxx"),
        (answering(404, b""), "FailedPrecondition.*404"),
        (answering(200, b"<html>"), "FailedPrecondition.*response is not valid: ."),
        (answering(200, b"\xff"), "FailedPrecondition.*the response is not valid"),
        (answering(200, b'{"features": {}}'), "FailedPrecondition.*is not valid"),
        (answering(200, vectors(None, status="ERROR")), "Unavailable.*could not read a vector"),
        (answering(200, vectors(None, status="COMPLETE")), "Unavailable.*a vector of view 'stats'"),
        (
            answering(200, vectors(status="COMPLETE")),
            "Unavailable.*returned 0 vectors for 1 entities",
        ),
        (hang_up, "Unavailable.*closed connection"),
        (stop_short, "Unavailable.*before the end of the response"),
    ],
)
def test_what_goes_wrong_there_is_told(
    server: HopsworksServer, store: OnlineStore, answer: Answer, words: str
) -> None:
    server.instead = answer

    said = failing(store)

    assert re.search(words, said, re.DOTALL)
    assert len(said) < 600
    server.instead = None
    assert len(store.read([b"customer:1"], ["stats"])) == 1


def test_a_vector_that_is_too_short_is_damaged(server: HopsworksServer, store: OnlineStore) -> None:
    server.instead = answering(200, vectors([1], status="COMPLETE"))

    rows = FeatureReader(service(STATS), store).read({"id": [1]})

    assert rows.reasons["stats"] == {0: "the stored record is damaged"}


def test_an_answer_in_drops_ends_at_the_deadline(
    server: HopsworksServer, store: OnlineStore
) -> None:
    store.expect([STATS])  # type: ignore[attr-defined]  # a store of others
    server.instead = drip

    with pytest.raises(DeadlineExceededError, match="before the deadline"):
        store.read([b"customer:1"], ["stats"], timeout_s=0.1)
    with pytest.raises(DeadlineExceededError):
        store.read([b"customer:1"], ["stats"], timeout_s=0.0)

    server.instead = None
    assert len(store.read([b"customer:1"], ["stats"])) == 1


def test_a_connection_that_the_server_closed_is_made_anew(
    server: HopsworksServer, store: OnlineStore
) -> None:
    store.expect([STATS])  # type: ignore[attr-defined]  # a store of others
    store.read([b"customer:1"], ["stats"])
    for kept in store._connections._idle:  # type: ignore[attr-defined]  # Hopsworks' only
        kept.sock.shutdown(2)

    assert len(store.read([b"customer:1"], ["stats"])) == 1
    assert server.connections == 2


def test_an_answer_without_end_is_cut(
    server: HopsworksServer, store: OnlineStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(online_hopsworks, "MAX_ANSWER_BYTES", 5_000)
    server.instead = answering(200, b" " * 100_000)

    assert "returned more than 5000 bytes" in failing(store)


def test_a_server_that_hangs_up_on_a_kept_connection_is_asked_once_more(
    server: HopsworksServer, store: OnlineStore
) -> None:
    """As one that closes idle connections does, just when it is asked."""
    store.expect([STATS])  # type: ignore[attr-defined]  # a store of others
    store.read([b"customer:1"], ["stats"])

    def hang_up_once(handler: BaseHTTPRequestHandler) -> None:
        server.instead = None
        hang_up(handler)

    server.instead = hang_up_once

    assert len(store.read([b"customer:1"], ["stats"])) == 1
    assert server.connections == 2


def test_a_server_that_is_away_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOPSWORKS_API_KEY", KEY)
    with closing(open_online_store("hopsworks+http://localhost:1/shop")) as store:
        assert "UnavailableError: cannot read features of localhost:1" in failing(store)


def test_a_store_of_hopsworks_is_not_written(store: OnlineStore) -> None:
    with pytest.raises(
        FailedPreconditionError, match="Hopsworks writes it, Headrace only reads it"
    ):
        store.write("stats", [b"customer:1"], [b""])
    with pytest.raises(FailedPreconditionError, match="Hopsworks writes it"):
        store.raise_watermark("stats:0", 1)
    (ready,) = service_readiness(service(STATS), store, SystemClock())
    assert ready.status is FeatureStatus.MISSING


def test_a_view_that_nobody_named_is_told(store: OnlineStore) -> None:
    with pytest.raises(InvalidArgumentError, match="read it through a FeatureReader"):
        store.read([b"customer:1"], ["stats"])


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("hopsworks://", "is not valid; use hopsworks://HOST"),
        ("hopsworks://host", "is not valid"),
        ("hopsworks://host:port/shop", "is not valid"),
        ("hopsworks://host/a/b", "is not valid"),
        ("hopsworks://:s3cret@host/shop", "is not valid"),
        ("hopsworks://host/shop?stats=new", "is not valid"),
        ("hopsworks://host/shop?stats", "is not valid"),
        ("hopsworks+http://example.org/shop", "not sent to example.org without TLS"),
    ],
)
def test_a_url_that_cannot_be_used_is_told(server: HopsworksServer, url: str, words: str) -> None:
    assert server.port

    with pytest.raises(InvalidArgumentError, match=words) as caught:
        open_online_store(url)

    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize("key", ["", " ", "a\nb", "ü"])
def test_without_a_key_it_is_asked_for(monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    monkeypatch.setenv("HOPSWORKS_API_KEY", key)

    with pytest.raises(FailedPreconditionError, match="set HOPSWORKS_API_KEY"):
        open_online_store("hopsworks://host/shop")


def test_a_certificate_is_checked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOPSWORKS_API_KEY", KEY)
    authority = Authority(tmp_path)
    files = authority.server("server")
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(*files.both)
    with running_hopsworks(hopsworks_views(), tls) as server:
        with closing(open_online_store(server.url("hopsworks"))) as store:
            assert "not trusted" in failing(store)
        url = server.url("hopsworks", ca_file=authority.ca)
        with closing(open_online_store(url)) as store:
            rows = FeatureReader(service(STATS), store).read({"id": [1]})
        with pytest.raises(FailedPreconditionError, match="cannot read ca_file"):
            open_online_store(server.url("hopsworks", ca_file=tmp_path / "none"))

    assert math.isclose(rows.columns["spend"][0], 0.5)
