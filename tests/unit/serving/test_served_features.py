"""What a replica keeps of the features that it served, until somebody comes for it."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from headrace.core import Clock
from headrace.features import open_online_store, parse_definitions, push_rows
from headrace.pipeline import BoundFeatures, with_features
from headrace.runtimes import Model, load_model
from headrace.serving.telemetry.recorder import ServedFeatures, served_of
from headrace.testing import models
from headrace.testing.virtual_time import TurnedClock

DEFINITIONS: dict[str, Any] = {
    "entities": [{"name": "customer", "join_key": "customer_id", "datatype": "INT64"}],
    "feature_views": [
        {
            "name": "stats",
            "entities": ["customer"],
            "source": {"path": "x.parquet"},
            "features": [{"name": "age", "datatype": "INT64"}],
        }
    ],
    "feature_services": [{"name": "people", "features": ["stats"]}],
}


@pytest.fixture
def source(tmp_path: Path) -> BoundFeatures:
    return bound(tmp_path)


def bound(tmp_path: Path, clock: Clock | None = None) -> BoundFeatures:
    definitions = parse_definitions(DEFINITIONS, base_dir=tmp_path)
    store = open_online_store(str(tmp_path / "online.db"))
    row = {"customer_id": 1, "event_timestamp": datetime.now(UTC), "age": 34}
    push_rows(definitions.view("stats"), store, [row])
    return BoundFeatures(definitions.service("people"), store, timeout_s=1.0, clock=clock)


def ask(source: BoundFeatures, *customers: int) -> None:
    source.fetch({"customer_id": np.array(customers, np.int64)}, {})


@pytest.mark.parametrize(("ratio", "kept"), [(1.0, 4), (0.5, 2), (0.0, 0)])
def test_a_share_of_the_look_ups_before_keep_was_called_is_kept_too(
    source: BoundFeatures, ratio: float, kept: int
) -> None:
    served = ServedFeatures(source)
    for _ in range(4):
        ask(source, 1)
    assert served.page(0).lines == []
    served.keep(ratio)
    page = served.page(0)
    assert len(page.lines) == kept
    served.keep(ratio)
    assert served.page(page.cursor).lines == []


def test_look_ups_that_nobody_wants_are_let_go_after_a_minute(tmp_path: Path) -> None:
    clock = TurnedClock()
    source = bound(tmp_path, clock)
    served = ServedFeatures(source)
    ask(source, 1)
    clock.turn(61.0)
    ask(source, 1)
    assert source.on_rows is None
    served.keep(1.0)
    assert served.page(0).lines == []
    ask(source, 1)
    assert len(served.page(0).lines) == 1


def test_of_look_ups_that_nobody_wants_yet_so_many_are_kept_as_fit(source: BoundFeatures) -> None:
    served = ServedFeatures(source)
    for _ in range(5000):
        ask(source, 1)
    assert source.on_rows is None
    served.keep(0.25)
    first = served.page(0)
    assert (len(first.lines), first.dropped) == (256, 0)


def test_a_share_of_the_look_ups_is_kept_and_handed_out_once(source: BoundFeatures) -> None:
    served = ServedFeatures(source)
    served.keep(0.5)
    for _ in range(4):
        ask(source, 1, 2)
    page = served.page(0)
    rows = [msgspec.json.decode(line) for line in page.lines]
    assert [row["keys"]["customer_id"] for row in rows] == [1, 2, 1, 2]
    assert rows[0]["columns"] == {"age": 34}
    assert rows[1]["statuses"] == {"stats": "MISSING"}
    assert {row["service"] for row in rows} == {"people"}
    assert served.page(page.cursor).lines == []


def test_when_nobody_wants_it_any_more_it_is_let_go(source: BoundFeatures) -> None:
    served = ServedFeatures(source)
    served.keep(1.0)
    ask(source, 1)
    served.keep(0.0)
    ask(source, 1)
    assert served.page(0).lines == []
    assert source.on_rows is None


def test_what_does_not_fit_is_dropped_and_counted(source: BoundFeatures) -> None:
    served = ServedFeatures(source)
    served.keep(1.0)
    for _ in range(4100):
        ask(source, 1)
    assert served.page(0).dropped == 4


def test_a_model_that_was_loaded_again_goes_on_with_its_samples(tmp_path: Path) -> None:
    first, second = bound(tmp_path), bound(tmp_path)
    model = load_model_of(tmp_path)
    inputs = {"x": ["age", "a", "b", "c"]}
    served = served_of(with_features(model, first, inputs))
    assert served is not None
    ask(first, 1)
    served.keep(1.0)
    page = served.page(0)
    assert len(page.lines) == 1
    assert served_of(with_features(model, second, inputs), served) is served
    ask(second, 1)
    assert len(served.page(page.cursor).lines) == 1


def load_model_of(tmp_path: Path) -> Model:
    path = tmp_path / "matmul.onnx"
    path.write_bytes(models.matmul())
    return load_model(path)


def test_a_model_without_features_keeps_none(source: BoundFeatures, tmp_path: Path) -> None:
    model = load_model_of(tmp_path)
    assert served_of(model) is None
    inputs = {"x": ["age", "a", "b", "c"]}
    assert served_of(with_features(model, source, inputs)) is not None
