"""What was served is compared with a join of its moment; each fault is named by its feature."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from headrace.core import Datatype, FailedPreconditionError, InvalidArgumentError
from headrace.features import (
    Feature,
    FeatureReader,
    FeatureService,
    FeatureView,
    MissingValuePolicy,
    OnDemandView,
    ServiceColumn,
    compare_served,
    push_rows,
)
from headrace.features.definitions import OnDemandInput
from headrace.features.online.sqlite import SqliteOnlineStore
from headrace.features.online_writers import materialize
from headrace.features.served import ServedRows, read_served
from headrace.features.served_offline import offline_rows
from headrace.features.served_writer import ServedFeaturesWriter
from headrace.features.skew import FeatureSkew, SkewCause, SkewReport, differing
from tests.unit.features.tables import at, view, write
from tests.unit.features.test_lookup import TurnedClock

FEATURES = (
    Feature(name="age", datatype=Datatype.INT64, default=-1),
    Feature(name="height", datatype=Datatype.FP64),
    Feature(name="weight", datatype=Datatype.FP64),
    Feature(name="spend", datatype=Datatype.FP32, default=0.0),
    Feature(name="city", datatype=Datatype.BYTES),
    Feature(name="is_new", datatype=Datatype.BOOL),
)
DOUBLED = "def make(x):\n    return {'doubled': x['height'] * 2 + x['more']}"
PEOPLE = [1, 2, 3, 4, 5]


class World:
    """Real files, a real online store, a real reader: what is served is recorded."""

    def __init__(
        self,
        folder: Path,
        *,
        on_stale: MissingValuePolicy = MissingValuePolicy.DEFAULTS,
        created: str = "",
    ) -> None:
        self.path = folder / "stats.parquet"
        self.view: FeatureView = view(
            self.path, *FEATURES, ttl_s=1000.0, on_stale=on_stale, created=created
        )
        made = OnDemandView(
            name="made",
            function="made.py:make",
            source=DOUBLED,
            inputs=(OnDemandInput(name="height", view=self.view, feature=FEATURES[1]),),
            request=(Feature(name="more", datatype=Datatype.FP64),),
            features=(Feature(name="doubled", datatype=Datatype.FP64),),
        )
        columns = [ServiceColumn(name=f.name, view=self.view, feature=f) for f in FEATURES]
        columns.append(ServiceColumn(name="doubled", view=made, feature=made.features[0]))
        self.service = FeatureService(name="fraud", columns=tuple(columns))
        self.store = SqliteOnlineStore(folder / "online.db")
        self.clock = TurnedClock()
        self.folder = folder / "served"
        self.write([0] * 5, **({created: [at(0)] * 5} if created else {}))

    def write(self, times: Sequence[int], **changes: Sequence[object]) -> None:
        """The source: who is there, known since when."""
        columns: dict[str, Sequence[object]] = {
            "age": [30, 41, 52, 63, None],
            "height": [1.5, 1.6, 1.7, 1.8, 1.9],
            "weight": [50.0, 60.0, 75.0, 85.0, 99.0],
            "spend": [0.1, 10.0, 200.5, 3000.25, 7.0],
            "city": ["Zürich", "Bern", None, "", "Chur"],
            "is_new": [True, False, None, True, False],
        }
        write(self.path, customer_id=PEOPLE, event_timestamp=list(times), **(columns | changes))

    def append(self, time: int, **values: object) -> None:
        """A row more in the source, of the first customer."""
        was = pl.read_parquet(self.path)
        new = was.head(1).with_columns(
            pl.lit(at(time)).alias("event_timestamp").cast(was.schema["event_timestamp"]),
            *(pl.lit(v).cast(was.schema[n]).alias(n) for n, v in values.items()),
        )
        pl.concat([was, new]).write_parquet(self.path)

    def materialize(self, until: float = 50.0) -> None:
        materialize(self.view, self.store, until=at(until))

    def serve(self, people: Sequence[int] = PEOPLE) -> None:
        """Read these customers' features, as a request does, and keep a record of it."""
        reader = FeatureReader(self.service, self.store, clock=self.clock)
        writer = ServedFeaturesWriter(self.service, self.folder)
        keys = {"customer_id": list(people)}
        rows = reader.read(keys, values={"more": [0.5] * len(people)})
        writer.add(self.clock.now(), keys, rows)
        writer.stop()
        assert (writer.written, sum(writer.dropped.values())) == (len(people), 0)

    def report(self, *, grace_s: float = 0.0) -> SkewReport:
        samples = read_served(self.folder, self.service)
        offline = offline_rows(samples.rows, self.service)
        return compare_served(samples, self.service, offline, grace_s={"stats": grace_s})

    def found(self, *, grace_s: float = 0.0) -> dict[str, FeatureSkew]:
        return {one.feature: one for one in self.report(grace_s=grace_s).skewed}


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def causes(found: Mapping[str, FeatureSkew]) -> dict[str, dict[str, int]]:
    return {name: {str(c): n for c, n in one.causes.items()} for name, one in found.items()}


def test_what_was_served_of_what_was_materialized_is_what_a_join_says(world: World) -> None:
    world.materialize()
    world.serve([*PEOPLE, 99])

    report = world.report()

    assert (report.rows, report.since, report.until) == (6, at(50), at(50))
    assert report.skewed == ()
    assert [one.feature for one in report.features] == [*(f.name for f in FEATURES), "doubled"]


@pytest.mark.parametrize("on_stale", [MissingValuePolicy.DEFAULTS, MissingValuePolicy.FLAG])
def test_stale_values_are_no_skew_whatever_is_served_for_them(
    tmp_path: Path, on_stale: MissingValuePolicy
) -> None:
    world = World(tmp_path, on_stale=on_stale)
    world.materialize()
    world.clock.passed_s = 5000.0
    world.serve()

    assert world.found() == {}


def test_a_newer_value_that_was_not_materialized_is_named_with_its_lag(world: World) -> None:
    world.materialize()
    world.append(10, height=1.51)
    world.append(20, height=1.52)
    world.serve()

    found = world.found()

    assert causes(found) == {
        "height": {"NOT_MATERIALIZED": 1},
        "doubled": {"INPUT_DIFFERS": 1},
    }
    height = found["height"]
    assert (height.differing, height.rows, height.share_ratio) == (1, 5, 0.2)
    assert height.lag_s == 40.0  # since the first value that is newer, not the last
    assert height.largest_absolute == pytest.approx(0.02)
    (example,) = height.examples
    assert (example.keys, example.served, example.offline) == ({"customer_id": 1}, 1.5, 1.52)
    assert example.at == at(50)


def test_a_newer_value_within_the_grace_waits(world: World) -> None:
    world.materialize()
    world.append(20, height=1.52)
    world.serve()

    report = world.report(grace_s=31.0)

    assert report.skewed == ()
    assert {one.feature: one.waiting for one in report.features if one.waiting} == {
        "height": 1,
        "doubled": 1,
    }
    assert list(world.found(grace_s=30.0)) == ["height", "doubled"]


def test_what_became_true_after_the_moment_is_no_difference(world: World) -> None:
    world.materialize()
    world.serve()
    world.append(51, height=9.0)

    assert world.found() == {}


def test_entities_that_never_came_online_are_named(world: World) -> None:
    world.serve([1])

    found = world.found()

    assert causes({"age": found["age"], "spend": found["spend"]}) == {
        "age": {"MISSING_ONLINE": 1},
        "spend": {"MISSING_ONLINE": 1},
    }
    assert found["age"].lag_s == 50.0
    assert (found["age"].examples[0].served, found["age"].examples[0].offline) == (-1, 30)


def test_what_came_to_the_source_after_the_moment_is_told_apart(tmp_path: Path) -> None:
    world = World(tmp_path, created="created")
    world.materialize()
    world.append(10, height=1.51, created=at(60))
    world.serve()

    found = world.found(grace_s=1000.0)

    assert causes(found) == {"height": {"ARRIVED_LATE": 1}, "doubled": {"INPUT_DIFFERS": 1}}
    assert found["height"].lag_s is None


def test_what_was_only_pushed_is_named(world: World) -> None:
    world.materialize()
    row = {"customer_id": 2, "event_timestamp": at(30), "age": 42, "height": 1.6, "weight": 60.0}
    push_rows(world.view, world.store, [row | {"spend": 10.0, "city": "Bern", "is_new": False}])
    world.serve()

    assert causes(world.found()) == {"age": {"ONLY_ONLINE": 1}}


def test_a_value_that_was_changed_by_hand_is_named(world: World) -> None:
    world.materialize()
    row = {"customer_id": 2, "event_timestamp": at(0), "age": 41, "height": 1.6, "weight": 60.0}
    push_rows(world.view, world.store, [row | {"spend": 10.0, "city": "Basel", "is_new": False}])
    world.serve()

    found = world.found()

    assert causes(found) == {"city": {"OTHER_VALUE": 1}}
    assert (found["city"].examples[0].served, found["city"].examples[0].offline) == (
        b"Basel",
        b"Bern",
    )
    assert (found["city"].largest_absolute, found["city"].median_relative) == (None, None)


def test_a_default_in_place_of_a_known_value_is_named(world: World) -> None:
    world.write([0] * 5, age=[None, 41, 52, 63, None])
    world.materialize()
    world.serve()
    world.write([0] * 5)

    assert causes(world.found()) == {"age": {"DEFAULT_SERVED": 1}}


def test_rounding_to_fp32_is_no_difference(world: World) -> None:
    heights = [1.1, 1.2, 1.3, 1.7, 1e300]
    rounded = [float(np.float32(h)) if h < 1e30 else h for h in heights]
    world.write([0] * 5, height=rounded)
    world.materialize()
    world.serve()
    world.write([0] * 5, height=heights)

    assert rounded != heights
    assert world.found() == {}


def test_swapped_columns_are_named_with_what_they_hold(world: World) -> None:
    heights, weights = [1.5, 1.6, 1.7, 1.8, 1.9], [50.0, 60.0, 75.0, 85.0, 99.0]
    world.write([0] * 5, height=weights, weight=heights)
    world.materialize()
    world.serve()
    world.write([0] * 5)

    found = world.found()

    assert list(found) == ["height", "weight", "doubled"]
    assert found["height"].looks_like == "the values of 'weight'"
    assert found["weight"].looks_like == "the values of 'height'"
    assert found["height"].causes == {SkewCause.OTHER_VALUE: 5}
    assert found["doubled"].causes == {SkewCause.INPUT_DIFFERS: 5}


@pytest.mark.parametrize(
    ("served", "told"),
    [
        ([150.0, 160.0, 170.0, 180.0, 190.0], "100 times the offline value"),
        ([274.65, 274.75, 274.85, 274.95, 275.05], "the offline value +273.15"),
        ([4.0, -1.0, 3.0, 8.5, 2.0], ""),
        ([7.0, 7.0, 7.0, 7.0, 7.0], ""),
    ],
)
def test_a_wrong_unit_is_named_with_its_factor(
    world: World, served: list[float], told: str
) -> None:
    world.write([0] * 5, height=served)
    world.materialize()
    world.serve()
    world.write([0] * 5)

    found = world.found()

    assert list(found) == ["height", "doubled"]
    assert found["height"].looks_like == told


def test_a_function_that_is_not_pure_is_named(world: World) -> None:
    impure = "import itertools\nn = itertools.count()\n" + DOUBLED.replace("* 2", "* 2 + next(n)")
    (column,) = [one for one in world.service.columns if one.name == "doubled"]
    assert isinstance(column.view, OnDemandView)
    other = replace(column, view=replace(column.view, source=impure))
    world.service = FeatureService(name="fraud", columns=(*world.service.columns[:-1], other))
    world.materialize()
    world.serve()

    found = world.found()

    assert causes(found) == {"doubled": {"OTHER_VALUE": 5}}
    assert found["doubled"].looks_like == "the offline value -1"


def test_rows_of_other_definitions_are_counted_and_left_out(world: World) -> None:
    world.materialize()
    world.serve()
    fewer = FeatureService(name="fraud", columns=world.service.columns[:-1])

    samples = read_served(world.folder, fewer)

    assert (len(samples.rows), samples.other_schema, samples.unreadable) == (0, 5, 0)


def test_a_source_that_is_gone_is_told(world: World) -> None:
    world.materialize()
    world.serve()
    world.path.unlink()

    with pytest.raises(InvalidArgumentError, match=r"view 'stats'.*cannot be read"):
        world.report()


def test_nothing_served_is_no_skew(world: World) -> None:
    offline = offline_rows([], world.service)

    report = compare_served(ServedRows(rows=[]), world.service, offline)

    assert (report.rows, report.since, report.skewed) == (0, None, ())


def test_no_directory_is_told(world: World) -> None:
    with pytest.raises(FailedPreconditionError, match="does not exist"):
        read_served(world.folder / "none", world.service)


def test_equal_values_of_any_kind_do_not_differ() -> None:
    nan, inf = float("nan"), float("inf")
    one = np.array([nan, inf, -inf, inf, 0.0, -0.0, 1.0, nan, 1e-300])
    other = np.array([nan, inf, -inf, -inf, -0.0, 0.0, 1.0 + 1e-7, 1.0, 2e-300])

    assert differing(one, other, 1e-6).tolist() == [False] * 3 + [True] + [False] * 3 + [True] * 2
