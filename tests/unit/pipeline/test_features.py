"""A model that takes entity keys: what it is given, and what happens without a store."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.control.base.settings import resolve_url
from headrace.core import (
    Datatype,
    DeadlineExceededError,
    FeatureLookup,
    FeaturesUnavailableError,
    InvalidArgumentError,
    ModelSignature,
    NotFoundError,
    OnUnavailable,
    TensorSpec,
    UnavailableError,
    UnsupportedModelError,
)
from headrace.features import (
    FeatureService,
    OnlineStore,
    encode_service,
    open_online_store,
    parse_definitions,
    push_rows,
)
from headrace.features.wire import decode_service
from headrace.pipeline import (
    BoundFeatures,
    bind,
    load_pipeline,
    load_with_features,
    plan_assemblies,
    with_features,
)
from headrace.pipeline.feature_step import Assembly, FeatureStep
from headrace.runtimes import LoadOptions, load_model
from headrace.testing import models

Write = Callable[..., Path]

DEFINITIONS = {
    "entities": [
        {"name": "customer", "join_key": "customer_id", "datatype": "INT64"},
        {"name": "shop", "datatype": "BYTES"},
    ],
    "feature_views": [
        {
            "name": "stats",
            "entities": ["customer"],
            "ttl_s": 3600.0,
            "source": {"path": "customers.parquet"},
            "features": [
                {"name": "age", "datatype": "INT64", "default": -1},
                {"name": "spend", "datatype": "FP32", "default": 0.0},
            ],
        },
        {
            "name": "place",
            "entities": ["shop"],
            "on_missing": "reject",
            "source": {"path": "shops.parquet"},
            "features": [{"name": "rank", "datatype": "FP64"}],
        },
    ],
    "feature_services": [
        {"name": "fraud", "features": ["stats", "place"]},
        {"name": "people", "features": ["stats"]},
    ],
}


class Away:
    """A store that does not answer."""

    name = "redis://away"

    def __init__(self, error: Exception, takes_s: float = 0.0) -> None:
        self.error: Exception | None = error
        self.takes_s = takes_s
        self.asked = 0

    def read(
        self, keys: Sequence[bytes], views: Sequence[str], *, timeout_s: float = 5.0
    ) -> Mapping[tuple[bytes, str], bytes]:
        del keys, views
        self.asked += 1
        time.sleep(min(self.takes_s, timeout_s))
        if self.error is not None:
            raise self.error
        return {}

    def close(self) -> None: ...


@pytest.fixture
def store(tmp_path: Path) -> OnlineStore:
    made = open_online_store(str(tmp_path / "online.db"))
    definitions = parse_definitions(DEFINITIONS, base_dir=tmp_path)
    at = datetime.now(UTC)
    push_rows(
        definitions.view("stats"),
        made,
        [
            {"customer_id": 17, "event_timestamp": at, "age": 34, "spend": 20.25},
            {
                "customer_id": 18,
                "event_timestamp": at - timedelta(hours=3),
                "age": 51,
                "spend": 1.0,
            },
        ],
    )
    push_rows(
        definitions.view("place"), made, [{"shop": "hat", "event_timestamp": at, "rank": 0.5}]
    )
    return made


def service(name: str = "people") -> FeatureService:
    return parse_definitions(DEFINITIONS, base_dir=Path("/nowhere")).service(name)


def bound(store: object, name: str = "people", **settings: object) -> BoundFeatures:
    return BoundFeatures(
        service(name),
        store,  # type: ignore[arg-type]
        **{"timeout_s": 1.0, **settings},  # type: ignore[arg-type]
    )


def keys(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.int64)


def signature(**inputs: tuple[str, Sequence[int]]) -> ModelSignature:
    return ModelSignature(
        inputs=tuple(
            TensorSpec(name=name, datatype=Datatype(kind), shape=tuple(shape))
            for name, (kind, shape) in inputs.items()
        ),
        outputs=(TensorSpec(name="y", datatype=Datatype.FP32, shape=(-1,)),),
        batched=True,
    )


def test_a_service_is_the_same_after_its_message() -> None:
    there = service("fraud")
    again = decode_service(encode_service(there))

    assert again == there
    assert again.schema_hash == there.schema_hash
    with pytest.raises(InvalidArgumentError, match="cannot be read"):
        decode_service('{"name": "x", "views": [], "columns": [["a", 3, 0]]}')


def test_a_model_gets_the_features_of_the_entities_that_rows_name(
    store: OnlineStore, tmp_path: Path
) -> None:
    path = tmp_path / "matmul.onnx"
    path.write_bytes(models.matmul())
    model = load_model(path)
    inputs = {"x": ["spend", "amount", "age", "hour"]}
    asks = with_features(model, bound(store), inputs, show_status=True)
    assert [spec.name for spec in asks.signature.inputs] == ["customer_id", "amount", "hour"]

    given = {"amount": np.array([5, 6, 7], "f4"), "hour": np.array([1, 2, 3], "f4")}
    answer = asks.run({"customer_id": keys(17, 18, 99), **given})

    # 18 is stale and 99 unknown: both take the defaults, as training saw nothing either.
    x = np.array([[20.25, 5, 34, 1], [0, 6, -1, 2], [0, 7, -1, 3]], np.float32)
    assert answer["y"].tolist() == model.run({"x": x})["y"].tolist()
    assert answer["stats__status"].tolist() == [b"PRESENT", b"STALE", b"MISSING"]


def test_one_row_that_is_rejected_says_who_it_is(store: OnlineStore) -> None:
    source = bound(store, "fraud")
    shops = np.array([b"hat", b"cap"], object)
    with pytest.raises(NotFoundError, match="shop:cap has no value in feature view 'place'"):
        source.fetch({"customer_id": keys(17, 17), "shop": shops}, {})


@pytest.mark.parametrize(
    ("model", "inputs", "said"),
    [
        (signature(a=("FP32", [-1, 3])), {}, "has the shape .-1, 3., but 2 columns"),
        (signature(a=("FP32", [-1, 2]), b=("FP32", [-1, 2])), {}, "are ambiguous"),
        (signature(a=("INT32", [-1, 2])), {}, "INT32, to which 'age' .INT64. cannot be converted"),
        (signature(a=("FP32", [-1, 2])), {"b": ["age"]}, "has no input 'b'; it takes a FP32"),
        (signature(a=("FP32", [-1, 2])), {"a": ["age", "age"]}, "has the column 'age' twice"),
        (signature(a=("FP32", [-1, 2])), {"a": ["age", "customer_id"]}, "which is a join key"),
        (signature(a=("FP32", [-1, 2])), {"a": ["agee", "spent"]}, "no input .* takes features"),
        (signature(a=("FP32", [-1, 2, 2])), {}, "ambiguous"),
    ],
)
def test_columns_that_do_not_fit_the_model_are_refused(
    model: ModelSignature, inputs: dict[str, list[str]], said: str
) -> None:
    source = bound(None)
    with pytest.raises(InvalidArgumentError, match=said):
        plan_assemblies(model, keys=source.keys, columns=source.columns, inputs=inputs)


def test_columns_go_to_inputs_of_their_names_and_the_rest_comes_with_the_request() -> None:
    model = signature(age=("INT64", [-1, 1]), spend=("FP32", [-1]), note=("BYTES", [-1]))
    source = bound(None)
    found = plan_assemblies(model, keys=source.keys, columns=source.columns, inputs={})
    assert [(one.spec.name, one.columns) for one in found] == [
        ("age", ("age",)),
        ("spend", ("spend",)),
    ]


@pytest.mark.parametrize("error", [UnavailableError("no"), DeadlineExceededError("late")])
def test_a_store_that_is_away_is_not_asked_again_at_once(error: Exception) -> None:
    away = Away(error)
    source = bound(away, timeout_s=30.0)
    for _ in range(5):
        with pytest.raises(FeaturesUnavailableError, match="features of 'people' cannot be read"):
            source.fetch({"customer_id": keys(17)}, {})
    assert away.asked == 1
    assert (source.counts.failures, source.counts.pauses) == (1, 4)


def test_defaults_stand_in_for_a_store_that_is_away() -> None:
    source = bound(Away(UnavailableError("no")), on_unavailable=OnUnavailable.DEFAULTS)
    found = source.fetch({"customer_id": keys(17, 18)}, {})
    assert {name: column.tolist() for name, column in found.columns.items()} == {
        "age": [-1, -1],
        "spend": [0.0, 0.0],
    }
    assert found.statuses["stats"].tolist() == [b"MISSING"] * 2


def test_a_store_that_came_back_is_asked_again() -> None:
    away = Away(UnavailableError("no"))
    source = bound(away, timeout_s=0.01, on_unavailable=OnUnavailable.DEFAULTS)
    source.fetch({"customer_id": keys(17)}, {})
    away.error = None
    time.sleep(0.02)
    source.fetch({"customer_id": keys(17)}, {})
    assert away.asked == 2
    assert source.counts.failures == 1


def test_half_of_the_callers_time_is_the_models() -> None:
    slow = Away(DeadlineExceededError("late"), takes_s=60.0)
    source = bound(slow, timeout_s=30.0, on_unavailable=OnUnavailable.DEFAULTS)
    started = time.monotonic()
    source.fetch({"customer_id": keys(17)}, {}, deadline=started + 0.2)
    assert time.monotonic() < started + 5  # not 30: that it is about 0.1 is no matter of this test


@pytest.mark.usefixtures("store")
def test_a_replica_reads_a_store_that_it_may_not_write(tmp_path: Path) -> None:
    file = tmp_path / "online.db"
    settings = FeatureLookup(service=encode_service(service()), online_store=f"sqlite:///{file}")
    source = bind(settings)
    assert not source.may_wait
    assert source.fetch({"customer_id": keys(17)}, {}).columns["age"].tolist() == [34]
    source.close()


def test_a_store_that_is_not_there_is_told_and_not_made(tmp_path: Path) -> None:
    file = tmp_path / "gone.db"
    settings = FeatureLookup(service=encode_service(service()), online_store=f"sqlite:///{file}")
    with pytest.raises(FeaturesUnavailableError, match="unable to open"):
        bind(settings).fetch({"customer_id": keys(17)}, {})
    assert not file.exists()


def test_a_variable_that_is_not_set_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("STORE_PASSWORD", raising=False)
    settings = FeatureLookup(
        service=encode_service(service()), online_store="redis://:${STORE_PASSWORD}@h/0"
    )
    with pytest.raises(Exception, match=r"STORE_PASSWORD.*not set"):
        bind(settings)


def test_a_password_may_have_any_characters(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []

    def opens(url: str, **_: object) -> Away:
        opened.append(url)
        return Away(UnavailableError("no"))

    monkeypatch.setattr("headrace.pipeline.bound_service.open_online_store", opens)
    monkeypatch.setenv("STORE_PASSWORD", "a/b@c:d")
    monkeypatch.setenv("STORE_URL", "redis://h:1/0")
    for url in ("redis://:${STORE_PASSWORD}@h:1/0", "${STORE_URL}"):
        bind(FeatureLookup(service=encode_service(service()), online_store=url))
        assert opened[-1] == resolve_url(url)  # as the control plane, which checks it, reads it
    assert opened == ["redis://:a%2Fb%40c%3Ad@h:1/0", "redis://h:1/0"]


def test_a_model_that_takes_other_columns_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[str] = []

    class Other:
        signature = signature(a=("FP32", [-1, 3]))

        def close(self) -> None:
            closed.append("model")

    class OtherRuntime:
        def load(self, path: Path, options: LoadOptions) -> Other:
            del path, options
            return Other()

    monkeypatch.setattr(BoundFeatures, "close", lambda _: closed.append("store"))
    settings = FeatureLookup(
        service=encode_service(service()), online_store=f"sqlite:///{tmp_path / 'o.db'}"
    )
    with pytest.raises(InvalidArgumentError, match="2 columns"):
        load_with_features(OtherRuntime(), tmp_path, LoadOptions(), settings)  # type: ignore[arg-type]
    assert closed == ["model", "store"]


STEPS = """\
steps:
  - kind: features
    service: people
    columns: {age: INT64, spend: FP32}
    matrices: {x: [spend, amount, age, hour]}
  - {kind: model, path: model.onnx}
"""


def test_a_pipeline_takes_columns_in_training_and_keys_where_a_store_is_bound(
    write: Write, store: OnlineStore
) -> None:
    directory = write(STEPS, model__onnx=models.matmul())
    given = {"amount": np.array([5], "f4"), "hour": np.array([1], "f4")}

    training = load_pipeline(directory)
    serving = load_pipeline(directory, LoadOptions(features=bound(store)))

    columns = {"age": keys(34), "spend": np.array([20.25], "f4")}
    want = training.run({**columns, **given})["y"]
    assert serving.run({"customer_id": keys(17), **given})["y"].tolist() == want.tolist()
    assert not training.may_wait
    assert serving.takes_features


def test_a_pipeline_made_with_other_columns_is_refused(write: Write, store: OnlineStore) -> None:
    yaml = STEPS.replace("age: INT64, spend: FP32", "spend: FP32, age: INT64")
    directory = write(yaml, model__onnx=models.matmul())
    with pytest.raises(UnsupportedModelError, match="column 1 is age INT64, and was spend FP32"):
        load_pipeline(directory, LoadOptions(features=bound(store)))


WITH_FUNCTION = {
    **DEFINITIONS,
    "on_demand_views": [
        {
            "name": "ratio",
            "function": "ratios.py:ratio",
            "inputs": ["stats:spend"],
            "request_columns": [{"name": "amount", "datatype": "FP32"}],
            "features": [{"name": "share", "datatype": "FP32"}],
        }
    ],
    "feature_services": [{"name": "shares", "features": ["stats", "ratio"]}],
}
RATIO = """\
def ratio(columns):
    return {"share": columns["amount"] / (columns["spend"] + 1)}
"""


@pytest.fixture
def shares(tmp_path: Path) -> FeatureService:
    (tmp_path / "ratios.py").write_text(RATIO)
    return parse_definitions(WITH_FUNCTION, base_dir=tmp_path, allow_code=True).service("shares")


def test_features_that_a_function_makes_of_the_request_go_the_same_way(
    store: OnlineStore, shares: FeatureService, tmp_path: Path
) -> None:
    service = decode_service(encode_service(shares))
    assert service == shares
    source = BoundFeatures(service, store, timeout_s=1.0)
    path = tmp_path / "matmul.onnx"
    path.write_bytes(models.matmul())
    model = load_model(path)
    asks = with_features(model, source, {"x": ["spend", "amount", "age", "share"]})
    assert [spec.name for spec in asks.signature.inputs] == ["customer_id", "amount"]

    answer = asks.run({"customer_id": keys(17), "amount": np.array([8.5], "f4")})

    x = np.array([[20.25, 8.5, 34, 0.4]], np.float32)
    assert answer["y"].tolist() == model.run({"x": x})["y"].tolist()


def test_defaults_that_stand_in_go_through_functions_too(shares: FeatureService) -> None:
    away = Away(UnavailableError("no"))
    source = BoundFeatures(
        shares,
        away,  # type: ignore[arg-type]
        timeout_s=1.0,
        on_unavailable=OnUnavailable.DEFAULTS,
    )
    found = source.fetch({"customer_id": keys(17)}, {"amount": np.array([3], "f4")})
    assert found.columns["share"].tolist() == [3.0]


def test_a_view_that_wants_its_entities_known_has_no_stand_in() -> None:
    source = bound(Away(UnavailableError("no")), "fraud", on_unavailable=OnUnavailable.DEFAULTS)
    with pytest.raises(FeaturesUnavailableError):
        source.fetch({"customer_id": keys(17), "shop": np.array([b"hat"], object)}, {})


def test_a_model_that_knows_its_columns_decides_their_order() -> None:
    model = replace(
        signature(input=("FP32", [-1, 3])), columns={"input": ("spend", "amount", "age")}
    )
    source = bound(None)
    (found,) = plan_assemblies(model, keys=source.keys, columns=source.columns, inputs={})
    assert found.columns == ("spend", "amount", "age")  # an amount comes with the request

    wrong = {"input": ["age", "amount", "spend"]}
    with pytest.raises(
        InvalidArgumentError, match="column 1 of input 'input' was 'spend' in train"
    ):
        plan_assemblies(model, keys=source.keys, columns=source.columns, inputs=wrong)

    other = replace(model, columns={"input": ("spend", "amount", "years")})
    with pytest.raises(InvalidArgumentError, match="was not trained with age, but with spend"):
        plan_assemblies(other, keys=source.keys, columns=source.columns, inputs={})


@given(data=st.data())
def test_one_row_is_read_as_many_are(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    kinds = data.draw(st.lists(st.sampled_from(["FP32", "FP64", "INT64", "BOOL"]), min_size=2))
    split = data.draw(st.integers(1, len(kinds) - 1))
    values = [data.draw(_VALUES[kind]) for kind in kinds]
    document = {
        "entities": [{"name": "customer", "datatype": "INT64"}],
        "feature_views": [
            {
                "name": name,
                "entities": ["customer"],
                "ttl_s": 60.0,
                "source": {"path": "x"},
                "features": [
                    {"name": f"c{i}", "datatype": kinds[i], "default": None} for i in part
                ],
            }
            for name, part in (("a", range(split)), ("b", range(split, len(kinds))))
        ],
        "feature_services": [{"name": "s", "features": data.draw(st.permutations(["a", "b"]))}],
    }
    folder = tmp_path_factory.mktemp("row")
    definitions = parse_definitions(document, base_dir=folder)
    store = open_online_store(str(folder / "o.db"))
    age_s = data.draw(st.sampled_from([0, 120]))
    for name, part in (("a", range(split)), ("b", range(split, len(kinds)))):
        row = {"customer": 1, "event_timestamp": datetime.now(UTC) - timedelta(seconds=age_s)}
        push_rows(definitions.view(name), store, [row | {f"c{i}": values[i] for i in part}])
    service = definitions.service("s")
    source = BoundFeatures(service, store, timeout_s=5.0)
    names = [column.name for column in service.columns]
    order = data.draw(st.permutations([*names, "amount"]))
    datatype = data.draw(st.sampled_from([Datatype.FP32, Datatype.FP64]))
    spec = TensorSpec(name="x", datatype=datatype, shape=(-1, len(order)))
    step = FeatureStep(source, [Assembly(spec=spec, columns=tuple(order))])
    customer = data.draw(st.sampled_from([1, 1, 2]))
    amount = np.array([0.1], datatype.dtype)

    alone = step.run({"customer": keys(customer), "amount": amount})["x"]
    two = {"customer": keys(customer, customer), "amount": np.repeat(amount, 2)}
    many = step.run(two)["x"]
    store.close()

    assert alone.dtype == many.dtype
    assert alone[0].tobytes() == many[0].tobytes()


_VALUES = {
    "FP32": st.floats(width=32, allow_nan=False) | st.none(),
    "FP64": st.floats(allow_nan=False, width=64) | st.none(),
    "INT64": st.integers(-(2**63), 2**63 - 1) | st.none(),
    "BOOL": st.booleans() | st.none(),
}
