"""What every store does, whatever database it is in."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import insert, inspect, text, update

from headrace.control.model.desired import DesiredState
from headrace.control.model.records import (
    Assignment,
    Feedback,
    QuotaUse,
    TokenReading,
    UnitReward,
)
from headrace.control.state import home_url, open_store, references_in
from headrace.control.state.database import Database
from headrace.control.state.schema import NEWEST, migrate
from headrace.control.state.store import Bounds, Store
from headrace.control.state.tables import (
    ALERT_NOTICES,
    ALERTS,
    ANSWERS,
    METADATA,
    ROLLOUT_UNITS,
    SILENCES,
    TOKEN_READINGS,
    TOKEN_USAGE,
    UNIT_REWARDS,
    UNIT_TALLIES,
)
from headrace.core import ConflictError, FailedPreconditionError, InvalidArgumentError
from headrace.gateway.statistics import TokenUse
from headrace.rollout.readings import RewardSums
from headrace.rollout.state import RolloutPhase
from tests.contract.states import (
    POOL,
    endpoint,
    event,
    full_endpoint,
    rollout,
    state,
)


def test_a_new_store_has_generation_0(store: Store) -> None:
    assert store.load.blocking() == DesiredState()
    assert store.history.blocking("m") == []
    assert store.generation.blocking("m", 1) is None
    assert store.last_generations.blocking() == {}
    assert store.rollouts.blocking() == []
    assert store.newest_rollouts.blocking() == {}
    assert store.events.blocking() == []
    assert store.rewards.blocking("r1") == []


def test_what_was_saved_is_loaded_by_the_next_control_plane(url: str, store: Store) -> None:
    saved = msgspec.structs.replace(
        state(1, endpoint("b"), full_endpoint("a"), endpoint("c")), pools=(POOL,)
    )
    store.save.blocking(saved, timestamp=5.0, reason="applied", actor="ann")
    other = open_store(url)

    assert other.load.blocking() == saved
    assert list(other.load.blocking().spec) == ["version", "endpoints"]
    other.close()


def test_entries_that_are_no_endpoints_stay_where_they_are(store: Store) -> None:
    entries = [{"name": "repository", "model": "/models"}, {"name": "b"}, {"name": "b", "x": 1}, {}]
    saved = DesiredState(
        generation=1,
        spec={"endpoints": entries, "gateway": {"host": "::"}},
        endpoints=(endpoint("a"), endpoint("b")),
    )
    store.save.blocking(saved, timestamp=5.0, reason="applied")

    assert store.load.blocking() == saved
    first = store.history.blocking("b")[0]
    assert first.document == {"name": "b"}


@pytest.mark.parametrize("generation", [0, 1, 3])
def test_a_generation_that_does_not_follow_is_refused(store: Store, generation: int) -> None:
    store.save.blocking(state(1, endpoint("a")), timestamp=1.0, reason="applied")

    with pytest.raises(ConflictError, match="is at generation 1 and cannot become"):
        store.save.blocking(state(generation, endpoint("b")), timestamp=2.0, reason="applied")
    assert store.load.blocking() == state(1, endpoint("a"))


def test_each_new_generation_of_an_endpoint_is_in_its_history(store: Store) -> None:
    store.save.blocking(
        state(1, endpoint("a"), endpoint("b")), timestamp=1.0, reason="applied", actor="ann"
    )
    changed = endpoint("a", 2, version="2")
    store.save.blocking(
        state(2, changed, endpoint("b")), timestamp=2.0, reason="applied", actor="bob"
    )

    newest, oldest = store.history.blocking("a")
    assert (newest.generation, newest.at, newest.actor) == (2, 2.0, "bob")
    assert newest.endpoint == changed
    assert newest.document == {"name": "a", "model": "a:2"}
    assert (oldest.generation, oldest.at, oldest.actor) == (1, 1.0, "ann")
    assert [entry.generation for entry in store.history.blocking("b")] == [1]
    assert store.history.blocking("a", limit=1) == [newest]
    assert store.generation.blocking("a", 1) == oldest
    assert store.generation.blocking("a", 3) is None


def test_an_endpoint_that_went_has_a_last_entry_and_may_come_back(store: Store) -> None:
    store.save.blocking(state(1, endpoint("a"), endpoint("b")), timestamp=1.0, reason="applied")
    store.save.blocking(state(2, endpoint("b")), timestamp=2.0, reason="removed", actor="ann")

    gone = store.history.blocking("a")[0]
    assert (gone.generation, gone.reason, gone.document, gone.endpoint) == (
        2,
        "removed",
        None,
        None,
    )
    assert store.last_generations.blocking() == {"a": 2, "b": 1}
    store.save.blocking(
        state(3, endpoint("a", 3), endpoint("b")), timestamp=3.0, reason="undone to generation 1"
    )
    assert [entry.generation for entry in store.history.blocking("a")] == [3, 2, 1]
    assert store.load.blocking().endpoint("a") == endpoint("a", 3)


@pytest.mark.parametrize("generation", [1, 2])
def test_a_generation_that_the_history_has_passed_is_refused(store: Store, generation: int) -> None:
    store.save.blocking(state(1, endpoint("a")), timestamp=1.0, reason="applied")
    store.save.blocking(state(2), timestamp=2.0, reason="removed")

    with pytest.raises(ConflictError, match="endpoint 'a' is at generation 2 and cannot become"):
        store.save.blocking(state(3, endpoint("a", generation)), timestamp=3.0, reason="applied")
    assert store.load.blocking() == state(2)


def test_a_change_without_a_new_generation_is_stored_and_leaves_the_history(
    store: Store,
) -> None:
    store.save.blocking(state(1, endpoint("a")), timestamp=1.0, reason="applied")
    asleep = msgspec.structs.replace(endpoint("a"), scaled_to_zero=True)
    store.save.blocking(state(2, asleep), timestamp=2.0, reason="idle")

    assert store.load.blocking().endpoint("a") == asleep
    (entry,) = store.history.blocking("a")
    assert entry.endpoint == endpoint("a")


def test_what_could_not_be_read_again_is_not_stored(store: Store) -> None:
    half = msgspec.structs.replace(endpoint("a", 2), split_id="\ud800")
    endless = msgspec.structs.replace(endpoint("a"), timeout_s=1.0, slo_latency_s=float("inf"))
    broken = msgspec.structs.replace(
        rollout(), state=msgspec.structs.replace(rollout().state, began=float("nan"))
    )
    store.save.blocking(
        state(1, endless), timestamp=1.0, reason="applied"
    )  # may be None, so None it becomes

    with pytest.raises(InvalidArgumentError, match="rollout r1 cannot be stored"):
        store.save_rollout.blocking(broken)
    with pytest.raises(InvalidArgumentError, match="cannot be stored"):
        store.save.blocking(state(2, half), timestamp=1.0, reason="applied")
    with pytest.raises(InvalidArgumentError, match="one name"):
        store.save.blocking(
            state(2, endpoint("a", 2), endpoint("a", 2)), timestamp=1.0, reason="applied"
        )
    assert store.load.blocking().generation == 1
    assert store.rollouts.blocking() == []


def test_many_endpoints_change_and_go_at_once(store: Store) -> None:
    names = [f"m{i}" for i in range(1200)]
    store.save.blocking(
        state(1, *(endpoint(name) for name in names)), timestamp=1.0, reason="applied"
    )
    changed = state(2, *(endpoint(name, 2, version="2") for name in names))
    store.save.blocking(changed, timestamp=2.0, reason="applied")
    assert store.load.blocking() == changed
    store.save.blocking(state(3), timestamp=3.0, reason="applied")

    assert store.load.blocking() == state(3)
    assert set(store.last_generations.blocking().values()) == {3}


def test_a_rollout_is_replaced_by_who_knows_its_revision(url: str, store: Store) -> None:
    first = store.save_rollout.blocking(rollout())
    assert first == msgspec.structs.replace(rollout(), revision=1)
    second = store.save_rollout.blocking(msgspec.structs.replace(first, evidence=b"", actor="bob"))
    other = open_store(url)

    assert second.revision == 2
    assert other.rollouts.blocking() == [second]
    with pytest.raises(ConflictError, match="is at revision 2, not at 1; read it again"):
        other.save_rollout.blocking(first)
    with pytest.raises(ConflictError, match="there is a rollout r1 already"):
        other.save_rollout.blocking(rollout())
    with pytest.raises(ConflictError, match="rollout r9 is gone"):
        other.save_rollout.blocking(msgspec.structs.replace(second, id="r9"))
    assert other.rollouts.blocking() == [second]
    other.close()


def test_a_lost_rollout_adds_no_events(store: Store) -> None:
    stored = store.save_rollout.blocking(rollout(), events=[event(message="began")])
    with pytest.raises(ConflictError):
        store.save_rollout.blocking(rollout(), events=[event(message="lost")])
    store.save_rollout.blocking(stored, events=[event(message="went on"), event(message="again")])

    assert [(e.id, e.message) for e in store.events.blocking()] == [
        (1, "began"),
        (2, "went on"),
        (3, "again"),
    ]


def test_a_change_its_rollouts_and_its_events_are_stored_together_or_not_at_all(
    store: Store,
) -> None:
    old = store.save_rollout.blocking(rollout("r1"))
    ended = msgspec.structs.replace(old, actor="bob")
    begun = rollout("r2")
    told = [event(message="changed")]

    stored = store.save.blocking(
        state(1, endpoint("m")),
        timestamp=1.0,
        reason="applied",
        rollouts=[ended, begun],
        events=told,
    )
    late = msgspec.structs.replace(stored[1], actor="eve")
    for number, rollouts in ((1, [late]), (2, [late, old]), (2, [late, begun])):
        with pytest.raises(ConflictError):
            store.save.blocking(
                state(number), timestamp=2.0, reason="late", rollouts=rollouts, events=told
            )

    assert [record.revision for record in stored] == [2, 1]
    assert store.rollouts.blocking() == stored[::-1]
    assert [e.message for e in store.events.blocking()] == ["changed"]
    assert store.load.blocking() == state(1, endpoint("m"))


def test_a_rollout_is_found_by_its_id(store: Store) -> None:
    saved = store.save_rollout.blocking(rollout("r1"))

    assert store.rollout.blocking("r1") == saved
    assert store.rollout.blocking("r2") is None


def test_rollouts_come_newest_first(store: Store) -> None:
    saved = [store.save_rollout.blocking(rollout(id_, of)) for id_, of in ("1a", "2b", "3a", "4b")]
    store.save_rollout.blocking(saved[0])  # a change does not make it newer

    assert [record.id for record in store.rollouts.blocking()] == ["4", "3", "2", "1"]
    assert [record.id for record in store.rollouts.blocking("a")] == ["3", "1"]
    assert [record.id for record in store.rollouts.blocking(limit=1)] == ["4"]
    assert store.newest_rollouts.blocking() == {"a": saved[2], "b": saved[3]}


def test_events_have_growing_ids_and_are_read_after_one(store: Store) -> None:
    wanted = [event("a", "0"), event("b", "1"), event("a", "2")]
    stored = store.add_events.blocking(wanted)
    stored += store.add_events.blocking([event("a", "3")])

    assert store.add_events.blocking([]) == []
    assert [e.id for e in stored] == [1, 2, 3, 4]
    assert [msgspec.structs.replace(e, id=0) for e in stored[:3]] == wanted
    assert store.events.blocking() == stored
    assert store.events.blocking(after=2) == stored[2:]
    assert store.events.blocking(limit=2) == stored[:2]
    assert store.events.blocking(limit=2, newest=True) == stored[2:]
    assert store.events.blocking(endpoint="a", after=1) == [stored[2], stored[3]]
    assert store.events.blocking(endpoint="a", limit=1, newest=True) == [stored[3]]
    assert store.events.blocking(endpoint="nobody") == []


def assigned(request_id: str, *, arm: str = "2", unit: str = "u", at: float = 1.0) -> Assignment:
    return Assignment(request_id=request_id, rollout="r1", arm=arm, unit=unit, at=at)


def rewarded(request_id: str, reward: float = 1.0, *, at: float = 2.0) -> Feedback:
    return Feedback(request_id=request_id, reward=reward, at=at)


def test_feedback_counts_once_whatever_comes_first(store: Store) -> None:
    store.add_assignments.blocking(
        [assigned("q1"), assigned("q2", unit="v"), assigned("q1", unit="late")]
    )
    answers = store.add_feedback.blocking(
        rewarded("q4", -1.0),
        rewarded("q1", 0.5),
        rewarded("q3", 2.0),
        rewarded("q1", 9.0),
        rewarded("q3", 9.0),
    )
    before = store.rewards.blocking("r1")
    store.add_assignments.blocking([assigned("q4"), assigned("q3"), assigned("q1", arm="1")])
    store.add_assignments.blocking([])

    assert answers == ["waiting", "taken", "waiting", "duplicate", "duplicate"]
    assert before == [UnitReward(unit="u", arm="2", count=1, total=0.5)]
    assert store.rewards.blocking("r1") == [UnitReward(unit="u", arm="2", count=3, total=1.5)]
    assert store.rewards.blocking("r2") == []
    assert store.add_feedback.blocking(rewarded("q4", 9.0)) == ["duplicate"]


def test_a_reward_for_some_endpoints_is_taken_for_their_answers_only(store: Store) -> None:
    own, others = frozenset({"m"}), frozenset({"other"})
    early = store.add_feedback.blocking(rewarded("q1", 9.0), endpoints=own)
    store.save_rollout.blocking(rollout("r1"))
    store.add_assignments.blocking([assigned("q1"), assigned("q2")])

    assert early == ["unknown"]
    assert store.add_feedback.blocking(rewarded("q1", 9.0), endpoints=others) == ["unknown"]
    assert store.add_feedback.blocking(rewarded("q1", 0.5), endpoints=own) == ["taken"]
    assert store.add_feedback.blocking(rewarded("q1", 9.0), endpoints=others) == ["unknown"]
    assert store.rewards.blocking("r1") == [UnitReward(unit="u", arm="2", count=1, total=0.5)]


def test_rewards_are_summed_up_by_arm(store: Store) -> None:
    rewards = {"1": [[1.0, 2.0], [4.0]], "2": [[1e9 + 0.5], [1e9], [1e9 - 0.5, 1e9 - 0.5]]}
    for version, units in rewards.items():
        for unit, earned in enumerate(units):
            for i, reward in enumerate(earned):
                request = f"{version} {unit} {i}"
                store.add_assignments.blocking([assigned(request, arm=version, unit=f"u{unit}")])
                store.add_feedback.blocking(rewarded(request, reward))

    sums = store.reward_sums.blocking("r1")

    assert sums == {
        "1": RewardSums(units=2, mean=2.75, squares=2 * 1.25**2),
        "2": RewardSums(units=3, mean=1e9, squares=0.5),
    }
    assert store.reward_sums.blocking("r2") == {}


@pytest.mark.parametrize("reward", [float("nan"), float("inf"), 1e308, -1e308, 1.1e12])
def test_reward_beyond_its_limit_is_refused(store: Store, reward: float) -> None:
    with pytest.raises(InvalidArgumentError, match=r"not within -1e\+12"):
        store.add_feedback.blocking(rewarded("q1", reward))


@pytest.mark.parametrize("absurd", [1e308, -1e308, 1.1e12])
def test_absurd_reward_of_an_earlier_version_is_left_out_with_a_count(
    store: Store, url: str, absurd: float
) -> None:
    """Of a unit that is counted already, and of an answer that still waits for its assignment."""
    for unit, reward in (("u1", 1.0), ("u2", 2.0), ("u3", 0.0)):
        store.add_assignments.blocking([assigned(f"q-{unit}", unit=unit)])
        store.add_feedback.blocking(rewarded(f"q-{unit}", reward))
    database = Database(url)
    with database.writing("store what an earlier version took") as connection:
        connection.execute(
            update(UNIT_REWARDS).where(UNIT_REWARDS.c.unit == "u3").values(total=absurd)
        )
        connection.execute(insert(ANSWERS).values(request_id="late", at=1.0, reward=absurd))
    database.close()
    store.add_assignments.blocking([assigned("late", unit="u1")])

    (sums,) = store.reward_sums.blocking("r1").values()
    assert (sums.units, sums.mean, sums.squares, sums.left_out) == (2, 1.5, 0.5, 1)


def test_text_that_a_database_refuses_is_mended_the_same_way_everywhere(store: Store) -> None:
    store.add_assignments.blocking([assigned("q\x00\ud800", unit="\x00")])
    (told,) = store.add_events.blocking([event("m\x00", "not \ud800")])
    store.save.blocking(state(1, endpoint("a")), timestamp=1.0, reason="\x00", actor="\x00")

    assert store.add_feedback.blocking(rewarded("q\x00\ud800")) == ["taken"]
    assert store.rewards.blocking("r1\x00") == []
    assert store.rewards.blocking("r1")[0].unit == "\ufffd"
    assert store.events.blocking(endpoint="m\x00") == [told]
    assert store.history.blocking("a\x00") == []
    assert store.rollouts.blocking("\x00") == []


def test_old_answers_are_forgotten_and_what_was_counted_stays(store: Store) -> None:
    store.save_rollout.blocking(rollout())
    store.add_assignments.blocking([assigned("old", at=1.0), assigned("new", at=5.0)])
    store.add_feedback.blocking(rewarded("old", at=9.0))
    store.add_feedback.blocking(rewarded("waits", at=4.0))
    store.forget_before.blocking(4.5)

    assert store.rewards.blocking("r1") == [UnitReward(unit="u", arm="2", count=1, total=1.0)]
    assert store.add_feedback.blocking(rewarded("old")) == ["waiting"]
    assert store.add_feedback.blocking(rewarded("waits")) == ["waiting"]
    assert store.add_feedback.blocking(rewarded("new")) == ["taken"]


def test_what_is_beyond_its_bound_is_forgotten_the_oldest_first(url: str) -> None:
    store = open_store(url)
    for n in range(1, 5):
        store.save.blocking(
            state(n, endpoint("a", n, version=str(n))), timestamp=1.0, reason="applied"
        )
    stored = store.add_events.blocking([event("a", str(i)) for i in range(4)] + [event("b")])
    store.save_rollout.blocking(rollout("runs", "a"))
    for id_ in ("over", "over too", "newest"):
        store.save_rollout.blocking(rollout(id_, "a", phase=RolloutPhase.PROMOTED))
    for n, id_ in enumerate(("runs", "over", "newest")):
        one = msgspec.structs.replace(assigned(f"q{n}"), rollout=id_)
        store.add_assignments.blocking([one, msgspec.structs.replace(one, request_id=f"late{n}")])
        store.add_feedback.blocking(rewarded(f"q{n}"))
    store.forget_before.blocking(0.0, bounds=Bounds(events=2, generations=2, rollouts=1))

    assert store.events.blocking() == stored[2:]
    assert [entry.generation for entry in store.history.blocking("a")] == [4, 3]
    assert store.load.blocking().generation == 4
    assert [record.id for record in store.rollouts.blocking()] == ["newest", "runs"]
    assert [len(store.rewards.blocking(id_)) for id_ in ("runs", "over", "newest")] == [1, 0, 1]
    assert store.add_feedback.blocking(*(rewarded(f"late{n}") for n in range(3))) == [
        "taken",
        "waiting",
        "taken",
    ]
    assert store.add_events.blocking([event()])[0].id == 6  # an id is never used twice
    store.close()


def test_versions_in_use_are_those_desired_and_those_to_go_back_to(url: str, store: Store) -> None:
    store.save.blocking(
        state(1, endpoint("a"), endpoint("m", 1, version="2")), timestamp=1.0, reason="applied"
    )
    store.save_rollout.blocking(rollout("r0", "x"))
    moved = rollout("r1", "x", phase=RolloutPhase.ROLLED_BACK)
    store.save_rollout.blocking(msgspec.structs.replace(moved, source=endpoint("x", version="3")))

    found = references_in(url)

    assert found == {"a:1", "a:10", "m:2", "m:20", "x:2", "x:20", "x:3", "x:30"}


def test_a_schema_is_made_once_and_a_newer_one_is_left_alone(url: str, store: Store) -> None:
    store.save.blocking(state(1), timestamp=1.0, reason="applied")
    set_schema(url, "0099")

    with pytest.raises(FailedPreconditionError, match=f"schema 0099.*supports up to {NEWEST}"):
        open_store(url)
    set_schema(url, NEWEST)
    again = open_store(url)
    assert again.load.blocking() == state(1)
    again.close()


def set_schema(url: str, version: str) -> None:
    database = Database(url)
    with database.writing("set the version") as connection:
        connection.exec_driver_sql(f"UPDATE headrace_schema SET version_num = '{version}'")  # noqa: S608  # ours
    database.close()


def test_a_new_database_is_what_the_migrations_make_of_an_empty_one(url: str, store: Store) -> None:
    made = content(url)
    store.close()
    database = Database(url)
    with database.writing("empty it") as connection:
        METADATA.drop_all(connection)
        connection.exec_driver_sql("DROP TABLE headrace_schema")

    with database.writing("migrate") as connection:
        migrate(connection)
    database.close()

    assert content(url) == made
    assert made["tables"].keys() == METADATA.tables.keys() | {"headrace_schema"}


def content(url: str) -> dict[str, Any]:
    """The schema as the database tells it, and every row."""
    database = Database(url)
    with database.reading("look") as connection:
        seen = inspect(connection)
        names = seen.get_table_names()
        tables = {
            name: {
                "columns": [{**c, "type": repr(c["type"])} for c in seen.get_columns(name)],
                "key": seen.get_pk_constraint(name),
                "indexes": sorted(seen.get_indexes(name), key=str),
                "unique": sorted(seen.get_unique_constraints(name), key=str),
                "foreign": sorted(seen.get_foreign_keys(name), key=str),
                "checks": sorted(seen.get_check_constraints(name), key=str),
            }
            for name in names
        }
        rows = {
            name: sorted(map(tuple, connection.exec_driver_sql(f"SELECT * FROM {name}")))  # noqa: S608  # ours
            for name in names
        }
    database.close()
    return {"tables": tables, "rows": rows}


def test_tokens_are_added_up_with_the_counts_behind_them(store: Store) -> None:
    def use(day: str, credential: str, tokens: int) -> TokenUse:
        return TokenUse(
            day=day, endpoint="chat", version="2", credential=credential, input=tokens, unknown=1
        )

    assert store.token_reading.blocking("here") is None
    first = TokenReading(epoch="1", counts=(use("", "key:alice", 10),))
    second = TokenReading(epoch="1", counts=(use("", "key:alice", 15),))
    store.add_tokens.blocking([use("2026-11-30", "key:alice", 10)], "here", first)
    store.add_tokens.blocking(
        [use("2026-12-01", "", 7), use("2026-11-30", "key:alice", 5)], "here", second
    )

    assert store.token_reading.blocking("here") == second
    (alice,) = store.tokens.blocking("2026-11-01", "2026-11-30")
    assert (alice.credential, alice.input, alice.unknown) == ("key:alice", 15, 2)
    days = [use.day for use in store.tokens.blocking("2026-11-30", "2026-12-31")]
    assert days == ["2026-11-30", "2026-12-01"]

    for name, day in (("old", "2026-11-29"), ("new", "2026-11-30")):
        reading = TokenReading(epoch="1", counts=(), day=day)
        store.add_tokens.blocking([], name, reading)
    store.forget_token_readings.blocking("2026-11-30")
    names = ("here", "old", "new")
    known = [store.token_reading.blocking(name) is not None for name in names]
    assert known == [True, False, True]


def test_urls_of_online_stores_become_names(url: str, store: Store) -> None:
    redis, literal = "redis://:${PW}@h/0", "redis://ann:hunter2@h/1"
    document = {
        "version": 1,
        "endpoints": [
            {"name": "m", "model": "m:1", "features": {"service": "s", "online_store": redis}},
            {"name": "repository", "features": {"service": "s", "online_store": literal}},
        ],
        "streams": [{"name": "s", "push": {"view": "v", "online_store": redis}}],
    }
    store.save.blocking(
        msgspec.structs.replace(state(1, endpoint("m")), spec=document),
        timestamp=0.0,
        reason="applied",
    )
    store.close()
    database = Database(url)
    with database.writing("undo what later migrations made") as connection:
        tables = [ALERTS, ALERT_NOTICES, SILENCES, ROLLOUT_UNITS, UNIT_TALLIES]
        tables += [TOKEN_READINGS, TOKEN_USAGE]
        METADATA.drop_all(connection, tables=tables)
        connection.execute(text("ALTER TABLE state DROP COLUMN file"))
    database.close()
    set_schema(url, "0004")

    again = open_store(url)
    spec = again.load.blocking().spec
    history = again.history.blocking("m", limit=1)
    again.close()

    assert spec["online_stores"] == [
        {"name": "store-1", "url": redis},
        {"name": "store-2", "url": literal},
    ]
    sections = [entry["features"] for entry in spec["endpoints"]] + [spec["streams"][0]["push"]]
    assert [one["online_store"] for one in sections] == ["store-1", "store-2", "store-1"]
    assert history[0].document == spec["endpoints"][0]


def test_the_migrations_make_the_tables_that_the_code_uses(url: str) -> None:
    database = Database(url)
    with database.writing("migrate") as connection:
        migrate(connection)
    with database.reading("compare the schema") as connection:
        options = {"compare_type": True, "version_table": "headrace_schema"}
        found = compare_metadata(MigrationContext.configure(connection, opts=options), METADATA)
    database.close()

    assert found == []


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE state SET spec = '[]'",
        "UPDATE state SET spec = '{'",
        "UPDATE state SET endpoints = '[\"nobody\"]'",
        "UPDATE state SET pools = '[1]'",
        "DELETE FROM state",
    ],
)
def test_a_state_that_is_not_whole_is_told(url: str, store: Store, statement: str) -> None:
    database = Database(url)
    with database.writing("damage the state") as connection:
        connection.exec_driver_sql(statement)
    database.close()

    with pytest.raises(FailedPreconditionError, match="stored"):
        store.load.blocking()


def test_a_store_is_made_and_opens_again_without_the_migration_tool(tmp_path: Path) -> None:
    open_store(home_url(tmp_path)).close()
    script = (
        "import sys; from headrace.control.state import open_store, references_in\n"
        "references_in(sys.argv[1]); assert 'sqlalchemy' not in sys.modules\n"
        "open_store(sys.argv[1]).load(); open_store(sys.argv[2]).load()\n"
        "assert 'alembic' not in sys.modules"
    )

    new = f"sqlite:///{tmp_path / 'new.db'}"
    command = [sys.executable, "-c", script, home_url(tmp_path), new]
    assert subprocess.run(command, check=False, timeout=60).returncode == 0  # noqa: S603  # ours


def test_used_quotas_add_up_and_are_there_for_the_next_control_plane(
    url: str, store: Store
) -> None:
    day, before = "1970-01-02", "1970-01-01"
    other = open_store(url)

    first = store.add_quotas.blocking(
        [_use(day, "caller:m:b", 2), _use(day, "caller:m:a", 3), _use(before, "caller:m:a", 9)]
    )
    second = other.add_quotas.blocking([_use(day, "caller:m:a", 4)])

    assert first == [
        _use(before, "caller:m:a", 9),
        _use(day, "caller:m:a", 3),
        _use(day, "caller:m:b", 2),
    ]
    assert second == [_use(day, "caller:m:a", 7)]
    assert store.quotas.blocking(day) == [_use(day, "caller:m:a", 7), _use(day, "caller:m:b", 2)]
    other.close()


def test_quotas_of_days_that_are_over_are_forgotten(store: Store) -> None:
    store.add_quotas.blocking([_use("1970-01-01", "s", 1), _use("1970-01-02", "s", 1)])

    store.forget_before.blocking(86_400.0 + 5.0)

    assert store.quotas.blocking("1970-01-01") == []
    assert store.quotas.blocking("1970-01-02") == [_use("1970-01-02", "s", 1)]


def _use(day: str, subject: str, used: int) -> QuotaUse:
    return QuotaUse(day=day, subject=subject, used=used)
