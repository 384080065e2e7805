"""Records are rows of a feature view: what is right is written, what is not costs itself."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest

from headrace.core import (
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    UnavailableError,
)
from headrace.core.spec.stream_parts import (
    FormatKind,
    StreamFormatSpec,
    StreamWindowSpec,
    StreamWindowsSpec,
)
from headrace.features import applied_definitions, apply_definitions, open_online_store
from headrace.features.records import encode_keys, record_time_us
from headrace.features.wire import encode_view
from headrace.streaming.codec import Added, EncodedAnswer
from headrace.streaming.feature_push import Pusher, make_pusher
from headrace.streaming.records import Record
from headrace.streaming.scorer import make_stages
from headrace.streaming.settings import PushSettings, WorkerSettings, check_settings
from headrace.streaming.writer import ResultWriter
from tests.unit.streaming import world
from tests.unit.streaming.parts import MATRIX, record, scorer

SPEC = """
version: 1
entities:
  - {name: customer, join_key: customer_id, datatype: INT64}
feature_views:
  - name: stats
    entities: [customer]
    source: {path: none.parquet, timestamp_field: at}
    features:
      - {name: spend, datatype: FP32}
      - {name: payments, datatype: INT64}
feature_services:
  - name: fraud
    features: [stats]
"""


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "features.yaml").write_text(SPEC)
    apply_definitions(tmp_path / "features.yaml", tmp_path)
    return tmp_path


def settings(home: Path, **changes: Any) -> WorkerSettings:  # noqa: ANN401  # any setting
    push = PushSettings(view="stats", fields={"customer_id": "customer"})
    return world.settings(**{"sink": "", "home": str(home), "features": push, **changes})


def payment(**fields: object) -> Record:
    value = {"customer": 7, "spend": 2.5, "payments": 3, **fields}
    return record(msgspec.json.encode(value), timestamp_s=1_700_000_000.25)


def stored(home: Path, customer: int) -> int | None:
    """The time of what is stored, in microseconds."""
    view = applied_definitions(home).view("stats")
    store = open_online_store(f"sqlite:///{home}/features/online/online.db")
    (key,) = encode_keys(view, [[customer]])
    found = store.read([key], ["stats"]).get((key, "stats"))
    store.close()
    return None if found is None else record_time_us(found)


def test_a_view_that_is_told_is_not_looked_up(home: Path, tmp_path: Path) -> None:
    definition = encode_view(applied_definitions(home).view("stats"))
    told = PushSettings(
        view="stats", definition=definition, fields={"customer_id": "customer"}, home="/nowhere"
    )
    told = msgspec.structs.replace(told, online_store=f"sqlite:///{tmp_path}/other.db")
    pusher = make_pusher(settings(Path("/nowhere"), features=told))

    assert pusher.push([payment()], Added()) == {}
    assert (tmp_path / "other.db").exists()


def test_a_view_that_is_told_and_cannot_be_read_is_refused(home: Path) -> None:
    told = PushSettings(view="stats", definition='{"name": 1}')

    with pytest.raises(InvalidArgumentError, match="feature view cannot be read"):
        make_pusher(settings(home, features=told))


def test_rows_are_written_and_bad_ones_cost_themselves(home: Path) -> None:
    (answers,) = make_stages(settings(home), None)
    results = answers.answer(
        [
            payment(),
            payment(customer="seven"),
            payment(customer=8, payments=1.5),
            record(b"{"),
            payment(customer=9, spend=None, payments=None),
            payment(customer=10, spend=None),
        ],
        now_s=0.0,
    )

    assert [one is None for one in results] == [True, False, False, False, False, True]
    said = [str(one) for one in results if one is not None]
    assert "not a valid row of view 'stats'" in said[0]
    assert "'payments' is INT64" in said[1]
    assert "not readable as JSON" in said[2]
    assert "none of the features of view 'stats': spend, payments" in said[3]
    assert stored(home, 7) == 1_700_000_000_250_000
    assert stored(home, 10) is not None
    assert [stored(home, one) for one in (8, 9)] == [None, None]


def test_a_record_that_is_pushed_again_changes_nothing_and_an_older_one_neither(home: Path) -> None:
    told = PushSettings(view="stats", fields={"customer_id": "customer"}, time="when")
    pusher = make_pusher(settings(home, features=told))
    newer = payment(when="2026-01-02T00:00:00+00:00")
    for one in (newer, newer, payment(when=1_600_000_000)):
        assert pusher.push([one], Added()) == {}
    wrong = pusher.push([payment(when="yesterday"), payment()], Added())

    assert stored(home, 7) == int(datetime(2026, 1, 2, tzinfo=UTC).timestamp() * 1e6)
    assert ["'when' must be a time" in str(wrong[at]) for at in (0, 1)] == [True, True]


def test_windows_can_be_features(home: Path) -> None:
    windows = StreamWindowsSpec(windows=[StreamWindowSpec(name="n_1h", size_s=3600)])
    told = PushSettings(view="stats", fields={"customer_id": "customer", "payments": "n_1h"})
    (stages,) = make_stages(settings(home, features=told, windows=windows), None)
    late = InvalidArgumentError("too late")
    added = Added(columns={"n_1h": [5, 0, 6]}, errors={1: late})
    three = [payment(customer=number) for number in (7, 8, 9)]

    assert stages.answer(three, now_s=0.0, added=added) == [None, late, None]
    assert [stored(home, one) is None for one in (7, 8, 9)] == [False, True, False]


def test_what_is_pushed_is_scored_then_and_what_is_not_is_not(home: Path) -> None:
    said = settings(home, sink="out")
    (answers,) = make_stages(said, scorer(MATRIX))
    good = payment(x=[1, 2, 3])
    results = answers.answer(
        [payment(customer=None, x=[1, 2, 3]), good, payment(x=[-1, 0, 0])], now_s=0.0
    )
    outcomes = ResultWriter(said).outcomes([good] * 3, results, attempts=1, now_s=0.0)

    assert [isinstance(one, EncodedAnswer) for one in results] == [False, True, False]
    assert "negative" in str(results[2])
    assert len(outcomes) == 3
    assert answers.count().runs > 0


def test_a_record_that_is_only_pushed_writes_nothing(home: Path) -> None:
    said = settings(home)
    (answers,) = make_stages(said, None)
    results = answers.answer([payment()], now_s=0.0)

    assert ResultWriter(said).outcomes([payment()], results, attempts=1, now_s=0.0) == [None]
    assert answers.count().runs == 0
    check_settings(said)


def test_a_store_that_is_away_is_waited_for(home: Path) -> None:
    told = PushSettings(
        view="stats",
        fields={"customer_id": "customer"},
        online_store="redis://127.0.0.1:1/0",
        timeout_s=0.2,
    )
    pusher = make_pusher(settings(home, features=told))

    with pytest.raises(UnavailableError):
        pusher.push([payment()], Added())


def test_a_variable_stands_for_the_url(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = PushSettings(view="stats", online_store="${ELSEWHERE}")
    with pytest.raises(FailedPreconditionError, match="ELSEWHERE"):
        make_pusher(settings(home, features=told))
    monkeypatch.setenv("ELSEWHERE", f"sqlite:///{home}/other.db")

    assert isinstance(make_pusher(settings(home, features=told)), Pusher)


@pytest.mark.parametrize(
    ("features", "kind", "error", "why"),
    [
        (PushSettings(view="none"), FormatKind.JSON, NotFoundError, "stats"),
        (
            PushSettings(view="stats", fields={"cents": "x"}),
            FormatKind.JSON,
            InvalidArgumentError,
            "names 'cents', but view 'stats' has: customer_id, spend, payments",
        ),
        (PushSettings(view="stats"), FormatKind.RAW, InvalidArgumentError, "the format raw has"),
    ],
)
def test_settings_that_do_not_fit_the_view_are_refused(
    home: Path,
    features: PushSettings,
    kind: FormatKind,
    error: type[Exception],
    why: str,
) -> None:
    with pytest.raises(error, match=why):
        make_pusher(settings(home, features=features, format=StreamFormatSpec(kind=kind)))
