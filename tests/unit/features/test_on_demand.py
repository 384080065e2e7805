"""One function makes features for training and for serving: the same of both, bit by bit."""

import math
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.core import (
    Array,
    Datatype,
    FailedPreconditionError,
    InvalidArgumentError,
    RuntimeFailedError,
    UnsupportedModelError,
)
from headrace.core.spec.mistakes import SpecError
from headrace.features import (
    Definitions,
    Feature,
    FeatureReader,
    FeatureService,
    FeatureView,
    MissingValuePolicy,
    OnDemandView,
    ServiceColumn,
    applied_definitions,
    apply_definitions,
    join_as_of,
    parse_definitions,
    read_definitions,
)
from headrace.features.definitions import OnDemandInput
from headrace.features.on_demand import ROWS_PER_CHUNK, OnDemandFunction
from headrace.features.online_writers import materialize
from tests.unit.features.stores import MemoryStore
from tests.unit.features.tables import TIMES, at, rows, view, write
from tests.unit.features.test_lookup import TurnedClock

YAML = """
entities: [{name: customer, join_key: customer_id, datatype: INT64}]
feature_views:
  - name: stats
    entities: [customer]
    ttl_s: 100
    source: {path: stats.parquet}
    features:
      - {name: age, datatype: INT64, default: -1}
      - {name: spend, datatype: FP32}
on_demand_views:
  - name: ratios
    function: ratios.py:ratios
    inputs: [stats]
    request_columns: [{name: amount, datatype: FP64}, {name: note, datatype: BYTES, default: none}]
    features: [{name: ratio, datatype: FP64}, {name: said, datatype: BYTES}]
feature_services:
  - {name: both, features: ["ratios:said", "stats:age", "ratios:ratio"]}
"""
CODE = """
import numpy as np

def ratios(inputs):
    said = np.empty(len(inputs["note"]), object)
    said[:] = [note + b"!" for note in inputs["note"]]
    return {"ratio": inputs["amount"] / inputs["age"], "said": said}
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "features.yaml").write_text(YAML)
    (tmp_path / "ratios.py").write_text(CODE)
    write(
        tmp_path / "stats.parquet",
        customer_id=[1, 2, 3],
        event_timestamp=[0, -500, 0],
        age=[20, 40, None],
        spend=[1.0, 2.0, 3.0],
    )
    return tmp_path


def defined(project: Path) -> Definitions:
    return read_definitions(project / "features.yaml", allow_code=True)


def reader_of(service: FeatureService, until_s: float = 50.0) -> FeatureReader:
    store = MemoryStore()
    for one in service.views:
        materialize(one, store, until=at(until_s))
    return FeatureReader(service, store, clock=TurnedClock())


def made_of(
    code: str, *features: Feature, request: tuple[Feature, ...] = (), **inputs: Feature
) -> OnDemandView:
    of = view(Path("none"), *inputs.values()) if inputs else None
    return OnDemandView(
        name="made",
        function="made.py:make",
        source=code,
        inputs=tuple(
            OnDemandInput(name=name, view=of, feature=feature)
            for name, feature in inputs.items()
            if of is not None
        ),
        request=request,
        features=features or (Feature(name="y", datatype=Datatype.FP32),),
    )


def test_a_join_and_a_read_see_the_same_rows(project: Path) -> None:
    service = defined(project).service("both")
    asked = rows(
        customer_id=[1, 2, 3, 9],
        event_timestamp=[50] * 4,
        amount=[3.0, 4.0, 5.0, 6.0],
        note=["a", None, "c", "d"],
    )

    joined = join_as_of(asked, service)
    read = reader_of(service).read(
        {"customer_id": [1, 2, 3, 9]},
        values={"amount": np.array([3.0, 4.0, 5.0, 6.0]), "note": ["a", None, b"c", "d"]},
    )

    assert list(read.columns) == ["said", "age", "ratio"]
    assert joined.columns[4:] == ["said", "age", "ratio", "stats__status", "ratios__status"]
    assert joined["ratio"].to_list() == [0.15, -4.0, -5.0, -6.0]
    assert read.columns["ratio"].tolist() == [0.15, -4.0, -5.0, -6.0]
    assert read.columns["said"].tolist() == [b"a!", b"none!", b"c!", b"d!"]
    assert joined["said"].to_list() == [b"a!", b"none!", b"c!", b"d!"]
    assert read.statuses["ratios"] == ["PRESENT", "STALE", "PRESENT", "MISSING"]
    assert joined["ratios__status"].to_list() == list(read.statuses["ratios"])
    assert [math.isnan(age) for age in read.ages_s["ratios"]] == [False, False, False, True]


def test_a_stale_value_that_is_served_is_a_default_for_the_function(project: Path) -> None:
    text = YAML.replace("ttl_s: 100", "ttl_s: 100\n    on_stale: flag")
    (project / "features.yaml").write_text(text)
    service = defined(project).service("both")

    read = reader_of(service).read({"customer_id": [2]}, values={"amount": [4.0]})
    joined = join_as_of(rows(customer_id=[2], event_timestamp=[50], amount=[4.0]), service)

    assert read.columns["age"].tolist() == [40]
    assert read.columns["ratio"].tolist() == [-4.0] == joined["ratio"].to_list()


# The function looks at all that it gets and mixes it, so that a bit that differs shows.
_MIXED = """
import numpy as np

def make(inputs):
    x, n, b, text = inputs["x"], inputs["n"], inputs["b"], inputs["text"]
    amount, count = inputs["amount"], inputs["count"]
    mixed = np.where(b, np.exp(x.astype(np.float64)) + amount, np.log(amount) * n / count)
    said = np.empty(len(x), object)
    said[:] = [one + b"/" + str(i).encode() for one, i in zip(text, n.tolist())]
    return {
        "mixed": mixed,
        "same": x,
        "said": said,
        "sum": n + count,
        "big": np.ma.masked_where(~b, amount.astype(np.float32)),
    }
"""
_INPUTS = (
    Feature(name="x", datatype=Datatype.FP32),
    Feature(name="n", datatype=Datatype.INT64, default=-7),
    Feature(name="b", datatype=Datatype.BOOL),
    Feature(name="text", datatype=Datatype.BYTES, default=b"none"),
)
_REQUEST = (
    Feature(name="amount", datatype=Datatype.FP32, default=0.1),
    Feature(name="count", datatype=Datatype.INT64),
)
_OUTPUTS = (
    Feature(name="mixed", datatype=Datatype.FP64),
    Feature(name="same", datatype=Datatype.FP32),
    Feature(name="said", datatype=Datatype.BYTES),
    Feature(name="sum", datatype=Datatype.INT64),
    Feature(name="big", datatype=Datatype.FP32, default=-1.0),
)
_INT64 = st.integers(-(1 << 63), (1 << 63) - 1)
_KNOWN = st.fixed_dictionaries(
    {
        "customer_id": st.integers(1, 4),
        "event_timestamp": st.integers(0, 50),
        "x": st.none() | st.floats(width=32),
        "n": st.none() | _INT64,
        "b": st.none() | st.booleans(),
        "text": st.none() | st.text(max_size=3),
    }
)
_ASKED = st.tuples(
    st.integers(1, 5),
    st.none() | st.floats(width=32) | st.integers(-(1 << 60), 1 << 60),
    _INT64,
)


@pytest.mark.slow
@given(
    st.lists(_KNOWN, max_size=8),
    st.lists(_ASKED, max_size=6),
    st.none() | st.integers(1, 40),
    st.sampled_from([MissingValuePolicy.DEFAULTS, MissingValuePolicy.FLAG]),
)
def test_training_and_serving_agree_bit_by_bit(
    known: list[dict[str, Any]],
    asked: list[tuple[int, float | None, int]],
    ttl: int | None,
    on_stale: MissingValuePolicy,
) -> None:
    with tempfile.TemporaryDirectory() as directory:
        of = _source(Path(directory) / "stats.parquet", known, ttl, on_stale)
        made = OnDemandView(
            name="made",
            function="made.py:make",
            source=_MIXED,
            inputs=tuple(OnDemandInput(name=f.name, view=of, feature=f) for f in _INPUTS),
            request=_REQUEST,
            features=_OUTPUTS,
        )
        columns = [ServiceColumn(name=f.name, view=made, feature=f) for f in _OUTPUTS]
        service = FeatureService(name="all", columns=tuple(columns))
        amounts = pl.Series("amount", [None if a is None else float(a) for _, a, _ in asked])
        table = pl.DataFrame(
            {
                "customer_id": pl.Series([key for key, _, _ in asked], dtype=pl.Int64),
                "event_timestamp": pl.Series([at(50)] * len(asked), dtype=TIMES),
                "amount": amounts.cast(pl.Float64),
                "count": pl.Series([count for _, _, count in asked], dtype=pl.Int64),
            }
        )

        joined = join_as_of(table, service)
        read = reader_of(service).read(
            {"customer_id": [key for key, _, _ in asked]},
            values={
                "amount": [amount for _, amount, _ in asked],
                "count": np.array([count for _, _, count in asked], dtype=np.int64),
            },
        )

    for feature in _OUTPUTS:
        served, trained = read.columns[feature.name], joined[feature.name]
        assert trained.null_count() == 0
        if feature.datatype is Datatype.BYTES:
            assert served.tolist() == trained.to_list()
        else:
            assert served.tobytes() == trained.to_numpy().tobytes(), feature.name
    assert list(read.statuses["made"]) == joined["made__status"].to_list()


def _source(
    path: Path, known: list[dict[str, Any]], ttl: int | None, on_stale: MissingValuePolicy
) -> FeatureView:
    types = {"x": pl.Float32, "n": pl.Int64, "b": pl.Boolean, "text": pl.String}
    pl.DataFrame(
        {
            "customer_id": pl.Series([one["customer_id"] for one in known], dtype=pl.Int64),
            "event_timestamp": pl.Series(
                [at(one["event_timestamp"]) for one in known], dtype=TIMES
            ),
            **{n: pl.Series([one[n] for one in known], dtype=kind) for n, kind in types.items()},
        }
    ).write_parquet(path)
    return view(path, *_INPUTS, ttl_s=None if ttl is None else float(ttl), on_stale=on_stale)


def test_a_function_gets_so_many_rows_at_once_as_a_read_may_have() -> None:
    count = ROWS_PER_CHUNK + 1
    code = "def make(inputs):\n    return {'y': inputs['x'] * 0 + len(inputs['x'])}"
    x = Feature(name="x", datatype=Datatype.FP32)
    made = made_of(code, request=(x,))

    answer = OnDemandFunction(made)({"x": np.zeros(count, np.float32)}, count)

    assert answer["y"][[0, -1]].tolist() == [ROWS_PER_CHUNK, 1]


def test_no_rows_call_no_function() -> None:
    made = made_of(
        "def make(inputs):\n    raise ValueError", Feature(name="y", datatype=Datatype.BOOL)
    )

    answer = OnDemandFunction(made)({}, 0)

    assert (answer["y"].shape, answer["y"].dtype) == ((0,), np.bool_)


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("return None", "returned NoneType, not a dict"),
        ("return {}", "did not return 'y'"),
        ("return {'y': x, 'z': x}", "returned 'z'; the view has: y"),
        ("return {'y': [1.0, 2.0]}", "returned 'y' as list, not a NumPy array"),
        ("return {'y': x.astype(np.float64)}", r"as float64, but .* FP32; .*astype\(np.float32\)"),
        ("return {'y': x[:1]}", r"'y' of shape \[1\] for 2 rows"),
        ("return {'y': x.reshape(2, 1)}", r"'y' of shape \[2, 1\] for 2 rows"),
        ("return {'y': x.sum()}", "returned 'y' as float32, not a NumPy array"),
        ("x[0] = 1; return {'y': x}", r"read-only \(made.py, line 4\)"),
        ("raise KeyError('no')", r"failed: KeyError: 'no' \(made.py, line 4\)"),
        ("return {'y': np.array(['a', 'b'])}", "as <U1, but the view says FP32"),
    ],
)
def test_what_a_function_does_wrong_is_told_with_view_and_function(body: str, told: str) -> None:
    code = f"import numpy as np\ndef make(inputs):\n    x = inputs['x']\n    {body}\n"
    function = OnDemandFunction(made_of(code))

    with pytest.raises(RuntimeFailedError, match=rf"^on-demand view 'made': make\(\) .*{told}"):
        function({"x": np.zeros(2, np.float32)}, 2)


@pytest.mark.parametrize(
    ("values", "told"),
    [("[b'a', None]", "'y' with NoneType in row 1"), ("[b'a', 3]", "'y' with int in row 1")],
)
def test_bytes_are_text_or_bytes(values: str, told: str) -> None:
    code = f"import numpy as np\ndef make(inputs):\n    return {{'y': np.array({values}, object)}}"
    function = OnDemandFunction(made_of(code, Feature(name="y", datatype=Datatype.BYTES)))

    with pytest.raises(RuntimeFailedError, match=told):
        function({}, 2)


def test_text_becomes_bytes() -> None:
    code = "import numpy as np\ndef make(inputs):\n    return {'y': np.array(['é', ''])}"
    function = OnDemandFunction(made_of(code, Feature(name="y", datatype=Datatype.BYTES)))

    assert function({}, 2)["y"].tolist() == ["é".encode(), b""]


def test_a_function_may_refuse_a_request() -> None:
    code = (
        "from headrace.core import InvalidArgumentError\n"
        "def make(inputs):\n    raise InvalidArgumentError('amounts are above 0')"
    )

    with pytest.raises(InvalidArgumentError, match=r"'made': make\(\): amounts are above 0"):
        OnDemandFunction(made_of(code))({}, 1)


def test_what_was_returned_is_not_what_the_function_keeps() -> None:
    code = "kept = []\ndef make(inputs):\n    kept.append(inputs['x'])\n    return {'y': kept[0]}"
    function = OnDemandFunction(made_of(code))
    given: Array = np.array([1.0], np.float32)

    answer = function({"x": given}, 1)["y"]
    answer[0] = 2.0

    assert given.tolist() == [1.0]


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("def other(inputs):\n    pass", "made.py has no function 'make'; it has: other"),
        ("make = 3", "has no function 'make'; it has: none"),
        ("def make(:", r"cannot be run: SyntaxError \(made.py, line 1\)"),
        ("import a_file_beside_it", r"other files are not stored: .* into this file"),
        ("x = 1\nraise SystemExit(1)", r"cannot be run: SystemExit \(made.py, line 2\)"),
    ],
)
def test_code_that_cannot_be_used_is_told(code: str, told: str) -> None:
    with pytest.raises(UnsupportedModelError, match=told):
        OnDemandFunction(made_of(code))


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({}, r"'amount' \(FP64\) is missing, and has no default"),
        ({"amount": ["x"]}, r"'amount'\[0\] is FP64 and takes numbers in its range, not 'x'"),
        ({"amount": [None]}, r"'amount'\[0\] is null"),
        ({"amount": 3.0}, "'amount' should be a list of values"),
        ({"amount": np.zeros((1, 2))}, "'amount' should be a list of values"),
        ({"amount": [1.0, 2.0]}, "different numbers of rows: {'customer_id': 1, 'amount': 2}"),
        (
            {"amount": [1.0], "age": [3]},
            "'age' is no request column; .* amount, note",
        ),
    ],
)
def test_values_that_do_not_fit_are_told(project: Path, values: dict[str, Any], told: str) -> None:
    reader = reader_of(defined(project).service("both"))

    with pytest.raises(InvalidArgumentError, match=told):
        reader.read({"customer_id": [1]}, values=values)


def test_a_join_without_a_request_column_is_told(project: Path) -> None:
    asked = rows(customer_id=[1], event_timestamp=[50])

    with pytest.raises(InvalidArgumentError, match=r"entity rows: 'amount' .* is missing"):
        join_as_of(asked, defined(project).service("both"))


def test_a_service_of_request_columns_alone_needs_no_entities() -> None:
    code = "def make(inputs):\n    return {'y': inputs['x'] * 2}"
    x = Feature(name="x", datatype=Datatype.FP32)
    made = made_of(code, request=(x,))
    column = ServiceColumn(name="y", view=made, feature=made.features[0])
    service = FeatureService(name="s", columns=(column,))

    read = FeatureReader(service, MemoryStore()).read({}, values={"x": [1.0, 2.0]})
    joined = join_as_of(rows(event_timestamp=[0, 0], x=[1.0, 2.0]), service)

    assert read.columns["y"].tolist() == [2.0, 4.0] == joined["y"].to_list()
    assert read.statuses["made"] == ["PRESENT", "PRESENT"]


def test_code_needs_to_be_allowed(project: Path) -> None:
    with pytest.raises(FailedPreconditionError, match=r"'ratios' runs the code of .*allow"):
        apply_definitions(project / "features.yaml", project / "home")
    with pytest.raises(FailedPreconditionError, match="--allow-code"):
        read_definitions(project / "features.yaml")
    assert not (project / "home").exists()


def test_what_runs_is_what_was_applied(project: Path) -> None:
    home = project / "home"
    apply_definitions(project / "features.yaml", home, allow_code=True)
    before = applied_definitions(home).service("both")
    (project / "ratios.py").write_text(CODE.replace('b"!"', 'b"?"'))

    read = reader_of(applied_definitions(home).service("both"))
    kept = read.read({"customer_id": [1]}, values={"amount": [1.0]}).columns["said"].tolist()
    changes = apply_definitions(project / "features.yaml", home, allow_code=True)
    after = applied_definitions(home).service("both")

    assert kept == [b"none!"]
    assert [(one.kind, one.name, one.has_other_schema) for one in changes] == [
        ("on-demand view", "ratios", True),
        ("service", "both", True),
    ]
    assert before.schema_hash != after.schema_hash


@pytest.mark.parametrize("code", ["\x00", "'\x85\u2028 \U0001f600'\n", "#" * 100_000 + "\n"])
def test_code_is_kept_as_it_is(project: Path, code: str) -> None:
    written = CODE + "# " + code if code != "\x00" else CODE
    (project / "ratios.py").write_text(written)

    apply_definitions(project / "features.yaml", project / "home", allow_code=True)

    kept = applied_definitions(project / "home").on_demand_views["ratios"]
    assert kept.source == written
    assert kept == defined(project).on_demand_views["ratios"]


@pytest.mark.parametrize(
    ("content", "error", "told"),
    [
        (None, FailedPreconditionError, "ratios.py cannot be read: No such file"),
        (b"\xff", InvalidArgumentError, "is not UTF-8 text"),
        (b"#" * 200_000, InvalidArgumentError, "more than 131072 characters"),
        (b"def ratios(inputs):\n    return 3", RuntimeFailedError, "returned int"),
        (b"def other(): pass", UnsupportedModelError, "has no function 'ratios'"),
    ],
)
def test_what_is_wrong_with_the_file_is_told_before_anything_changes(
    project: Path, content: bytes | None, error: type[Exception], told: str
) -> None:
    if content is None:
        (project / "ratios.py").unlink()
    else:
        (project / "ratios.py").write_bytes(content)

    with pytest.raises(error, match=told):
        apply_definitions(project / "features.yaml", project / "home", allow_code=True)
    assert not (project / "home" / "features").exists()


def test_a_function_may_refuse_the_nothing_that_a_request_has_to_bring(project: Path) -> None:
    refuses = "\n    from headrace.core import InvalidArgumentError as E\n    raise E('no')"
    (project / "ratios.py").write_text("def ratios(inputs):" + refuses)
    apply_definitions(project / "features.yaml", project / "home", allow_code=True)

    (project / "features.yaml").write_text(YAML.replace("FP64}, {", "FP64, default: 1}, {"))
    with pytest.raises(InvalidArgumentError, match="no"):
        apply_definitions(project / "features.yaml", project / "home", allow_code=True)


@pytest.mark.parametrize(
    ("change", "place", "told"),
    [
        (("name: ratios", "name: stats"), "on_demand_views[0].name", "name of a feature view"),
        (("inputs: [stats]", "inputs: [other]"), "on_demand_views[0].inputs[0]", "is not defined"),
        (("inputs: [stats]", 'inputs: ["stats:x"]'), "on_demand_views[0].inputs[0]", "no feature"),
        (
            ("name: amount", "name: age"),
            "on_demand_views[0].request_columns[0].name",
            "'age' is already a column, of view 'stats'",
        ),
        (
            ("name: amount", "name: event_timestamp"),
            "on_demand_views[0].request_columns[0].name",
            "time column",
        ),
        (("name: amount", "name: customer_id"), "feature_services[0].features", "a join key"),
        (("name: said", "name: ratio"), "on_demand_views[0].features[1].name", "already"),
        (("ratios.py:ratios", "ratios.py"), "on_demand_views[0].function", "FILE.py:NAME"),
        (("default: none", "default: 3"), "on_demand_views[0].request_columns[1].default", "text"),
        (('"stats:age"', "ratios"), "feature_services[0].features[1]", "already a column"),
    ],
)
def test_mistakes_are_told_with_their_place(change: tuple[str, str], place: str, told: str) -> None:
    with pytest.raises(SpecError) as caught:
        parse_definitions(YAML.replace(*change), base_dir=Path("/none"), allow_code=True)

    messages = {mistake.place: mistake.message for mistake in caught.value.mistakes}
    assert told in messages[place], messages
