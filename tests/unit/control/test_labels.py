"""Labels meet the answers they are about, whichever comes first, and nothing grows."""

from pathlib import Path

import pytest

from headrace.control.plane.control_plane import ControlPlane
from headrace.control.telemetry.labels import WINDOWS_S, LabelStore, label_text
from headrace.core import FailedPreconditionError
from tests.unit.control.api_client import client_of

HOUR, DAY = WINDOWS_S[:2]
NOW = 1_000_000_000.0


@pytest.fixture
def store(tmp_path: Path) -> LabelStore:
    return LabelStore(tmp_path / "drift" / "labels.db")


def test_right_and_wrong_classes_are_counted(store: LabelStore) -> None:
    store.add_answers("e", "1", [("a", "cat"), ("b", "cat"), ("c", "dog")], now=NOW)

    outcomes = [
        store.add_label("a", "cat", now=NOW + 5),
        store.add_label("b", "dog", now=NOW + 5),
        store.add_label("b", "cat", now=NOW + 6),
    ]

    assert outcomes == ["taken", "taken", "duplicate"]
    scores = store.scores("e", "1", now=NOW + 9)
    assert [score.seconds for score in scores] == list(WINDOWS_S)
    assert {(score.rows, score.accuracy, score.mean_error) for score in scores} == {(2, 0.5, None)}


def test_a_label_for_some_endpoints_meets_their_answers_only(store: LabelStore) -> None:
    own, others = frozenset({"e"}), frozenset({"other"})
    early = store.add_label("a", "cat", now=NOW, endpoints=own)
    store.add_answers("e", "1", [("a", "cat")], now=NOW)

    outcomes = [
        store.add_label("a", "cat", now=NOW, endpoints=who) for who in (others, own, others)
    ]

    assert [early, *outcomes] == ["unknown", "unknown", "taken", "unknown"]


def test_numbers_are_off_by_their_mean_error(store: LabelStore) -> None:
    store.add_answers("e", "1", [("a", 1.0), ("b", 5.0), ("c", 1.0)], now=NOW)

    assert store.add_label("a", 2, now=NOW) == store.add_label("b", 2.0, now=NOW) == "taken"
    assert store.add_label("c", "cat", now=NOW) == "unfit"
    assert store.add_label("c", "nan", now=NOW) == store.add_label("c", 10**400, now=NOW) == "unfit"

    score = store.scores("e", "1", now=NOW)[0]
    assert (score.rows, score.accuracy, score.mean_error) == (2, None, 2.0)


def test_a_label_that_comes_first_waits(store: LabelStore) -> None:
    assert store.add_label("a", 3.0, now=NOW) == "waiting"
    assert store.add_label("a", 3.0, now=NOW) == "duplicate"

    store.add_answers("e", "1", [("a", "3")], now=NOW + 1)
    store.add_answers("e", "1", [("a", "4")], now=NOW + 2)  # the same id again

    assert store.scores("e", "1", now=NOW + 2)[0].accuracy == 1.0


def test_an_answer_counts_in_the_windows_it_was_given_in(store: LabelStore) -> None:
    store.add_answers("e", "1", [("a", "cat")], now=NOW)
    store.add_label("a", "cat", now=NOW + 3 * HOUR)

    assert [s.seconds for s in store.scores("e", "1", now=NOW + 3 * HOUR)] == list(WINDOWS_S[1:])
    assert store.scores("e", "1", now=NOW + 40 * DAY) == []


def test_versions_and_endpoints_are_told_apart(store: LabelStore) -> None:
    store.add_answers("e", "1", [("a", "cat")], now=NOW)
    store.add_label("a", "cat", now=NOW)

    assert store.scores("e", "2", now=NOW) == store.scores("f", "1", now=NOW) == []


def test_the_oldest_answers_go_first(tmp_path: Path) -> None:
    store = LabelStore(tmp_path / "labels.db", max_answers=100)
    for i in range(300):
        store.add_answers("e", "1", [(f"r{i}", "cat")], now=NOW + i)

    assert store.add_label("r0", "cat", now=NOW + 300) == "waiting"
    assert store.add_label("r299", "cat", now=NOW + 300) == "taken"


def test_it_survives_a_restart_and_nothing_is_made_by_looking(tmp_path: Path) -> None:
    path = tmp_path / "labels.db"
    assert LabelStore(path).scores("e", "1", now=NOW) == []
    assert not path.exists()
    store = LabelStore(path)
    store.add_answers("e", "1", [("a", "cat")], now=NOW)
    store.close()

    again = LabelStore(path)

    assert again.add_label("a", "cat", now=NOW) == "taken"
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_file_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    path = tmp_path / "labels.db"
    path.write_bytes(b"no database" * 1000)

    with pytest.raises(FailedPreconditionError, match=r"labels\.db cannot be used"):
        LabelStore(path).add_label("a", "cat", now=NOW)


@pytest.mark.parametrize(
    ("label", "text"),
    [(3, "3"), (3.0, "3"), (0.5, "0.5"), ("cat", "cat"), (True, "True"), (1e400, "inf")],
    ids=["int", "whole", "fraction", "text", "bool", "infinite"],
)
def test_a_label_is_called_as_classes_are(label: str | float, text: str) -> None:
    assert label_text(label) == text


@pytest.mark.anyio
async def test_feedback_takes_labels_beside_rewards(plane: ControlPlane) -> None:
    plane.telemetry.drift.labels.add_answers("e", "1", [("a", "cat")], now=plane.clock.now())
    items = [
        {"request_id": "a", "label": "cat"},
        {"request_id": "b", "label": 3},
        {"request_id": "c", "reward": 1.0},
    ]
    async with client_of(plane) as client:
        taken = (await client.post("/feedback", json=items)).json()
        neither = await client.post("/feedback", json={"request_id": "a"})

    assert [one["outcome"] for one in taken["results"]] == ["taken", "waiting", "waiting"]
    assert neither.status_code == 400
    assert plane.telemetry.drift.labels.scores("e", "1", now=plane.clock.now())[0].accuracy == 1.0
