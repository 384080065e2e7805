"""Rows of single answers: assigned arm, reward, and callers counted by a rollout.

Assignment and feedback share one row, in any order of arrival. Callers, their sums and the read
position change in one transaction, so a control plane that crashes at any point counts no caller
twice: an answer is in the sums exactly if the position behind it is stored.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, Final

import msgspec
from sqlalchemy import Connection, Insert, func, select

from headrace.control.model.records import Assignment, Feedback, UnitBatch, UnitReward
from headrace.control.state.database import upsert_into
from headrace.control.state.encoding import clean
from headrace.control.state.tables import (
    ANSWERS,
    ROLLOUT_UNITS,
    ROLLOUTS,
    UNIT_REWARDS,
    UNIT_TALLIES,
    AnyRow,
)
from headrace.core import InvalidArgumentError
from headrace.rollout.readings import REWARD_LIMIT, RewardSums, UnitTally

if TYPE_CHECKING:
    from sqlalchemy.sql.dml import ReturningInsert

MAX_UNITS: Final = 1_000_000
"""Most callers of a rollout that are counted individually."""


def add_assignments(connection: Connection, assignments: Sequence[Assignment]) -> None:
    """Store which arm answered; an existing request id is not changed."""
    first: dict[str, dict[str, Any]] = {}
    for assignment in assignments:
        request_id = clean(assignment.request_id)
        first.setdefault(
            request_id,
            {
                "request_id": request_id,
                "at": assignment.at,
                "rollout": clean(assignment.rollout),
                "arm": clean(assignment.arm),
                "unit": clean(assignment.unit),
            },
        )
    if not first:
        return
    statement = _meet_answer(connection.dialect.name, ("at", "rollout", "arm", "unit"), "rollout")
    # In key order: two transactions that add the same ids in another order would deadlock.
    rows = connection.execute(statement, [first[request_id] for request_id in sorted(first)])
    _count(connection, (row for row in rows if row.reward is not None))


def add_feedback(
    connection: Connection, *feedback: Feedback, endpoints: frozenset[str] | None = None
) -> list[str]:
    """Add all rewards or none; return `taken`, `duplicate`, `waiting` or `unknown` for each.

    The first reward counts. A reward that waits for its assignment is counted when that arrives.
    Rows are written in key order, so that transactions cannot deadlock.

    Args:
        endpoints: Endpoints whose answers may get rewards; None for all. Rewards of other answers,
            and of answers not stored yet, are then `unknown` and not stored.

    Raises:
        InvalidArgumentError: A reward is not a number within `REWARD_LIMIT`.
    """
    for reward in feedback:
        if not abs(reward.reward) <= REWARD_LIMIT:  # true for NaN too
            raise InvalidArgumentError(
                f"reward {reward.reward} of request '{reward.request_id[:256]}' is not within "
                f"-{REWARD_LIMIT:g} and {REWARD_LIMIT:g}; send it in a larger unit"
            )
    statement = _meet_answer(connection.dialect.name, ("reward",), "reward")
    outcomes, earned = [""] * len(feedback), list[AnyRow]()
    for i in sorted(range(len(feedback)), key=lambda i: clean(feedback[i].request_id)):
        answer = msgspec.structs.asdict(feedback[i])
        answer["request_id"] = clean(feedback[i].request_id)
        if endpoints is not None:
            of_answer = select(ROLLOUTS.c.endpoint).where(
                ANSWERS.c.request_id == answer["request_id"], ANSWERS.c.rollout == ROLLOUTS.c.id
            )
            if connection.execute(of_answer).scalar_one_or_none() not in endpoints:
                outcomes[i] = "unknown"
                continue
        row = connection.execute(statement, answer).one_or_none()
        if row is None:
            outcomes[i] = "duplicate"
        elif row.rollout is None:
            outcomes[i] = "waiting"
        else:
            outcomes[i] = "taken"
            earned.append(row)
    _count(connection, earned)
    return outcomes


def _count(connection: Connection, earned: Iterable[AnyRow]) -> None:
    """Add rewards to the sums of their units."""
    sums: defaultdict[tuple[str, str, str], list[float]] = defaultdict(list)
    for row in earned:
        if not abs(row.reward) <= REWARD_LIMIT:
            continue  # stored by a version without a limit
        sums[row.rollout, row.unit, row.arm].append(row.reward)
    if not sums:
        return
    rows = [
        {"rollout": rollout, "unit": unit, "arm": arm, "count": len(all_), "total": sum(all_)}
        for (rollout, unit, arm), all_ in sorted(sums.items())
    ]
    connection.execute(_add_up(connection.dialect.name), rows)


@cache
def _meet_answer(
    dialect: str, columns: tuple[str, ...], unless: str
) -> "ReturningInsert[str | None, str | None, str | None, float | None]":
    """Return an upsert of `columns` unless `unless` is set; it returns a row that was set."""
    statement = upsert_into(ANSWERS, dialect=dialect)
    table = ANSWERS.c
    return statement.on_conflict_do_update(
        index_elements=[table.request_id],
        set_={name: statement.excluded[name] for name in columns},
        where=table[unless].is_(None),
    ).returning(table.rollout, table.unit, table.arm, table.reward)


@cache
def _add_up(dialect: str) -> Insert:
    statement = upsert_into(UNIT_REWARDS, dialect=dialect)
    table = UNIT_REWARDS.c
    return statement.on_conflict_do_update(
        index_elements=[table.rollout, table.unit, table.arm],
        set_={
            "count": table["count"] + statement.excluded["count"],
            "total": table.total + statement.excluded.total,
        },
    )


def read_rewards(connection: Connection, rollout: str) -> list[UnitReward]:
    """Return each unit's rewards in a rollout, sorted by unit and arm."""
    table = UNIT_REWARDS.c
    query = select(table.unit, table.arm, table["count"], table.total).where(
        table.rollout == clean(rollout)
    )
    return sorted(
        (
            UnitReward(unit=unit, arm=arm, count=count, total=total)
            for unit, arm, count, total in connection.execute(query)
        ),
        key=lambda reward: (reward.unit, reward.arm),
    )


def read_reward_sums(connection: Connection, rollout: str) -> dict[str, RewardSums]:
    """Return units, the mean of their mean rewards, and the squares around it, by arm.

    The database computes the sums in two passes: reading a row for each of a million users would
    take seconds, and sums of squares around zero would lose the precision of a small variance.
    Units beyond the reward limit (an earlier version had none) are counted and left out.
    """
    table = UNIT_REWARDS.c
    value = table.total / table["count"]
    is_within = value.between(-REWARD_LIMIT, REWARD_LIMIT)
    its = table.rollout == clean(rollout)
    sums = {}
    for (arm,) in connection.execute(select(table.arm).where(its).distinct()).all():
        of_arm = its & (table.arm == arm)
        all_units = connection.execute(select(func.count()).where(of_arm)).scalar_one()
        of_arm &= is_within
        units, mean = connection.execute(select(func.count(), func.avg(value)).where(of_arm)).one()
        squares = func.sum((value - mean) * (value - mean))
        around = connection.execute(select(squares).where(of_arm)).scalar_one() if units else 0.0
        sums[arm] = RewardSums(
            units=units, mean=mean or 0.0, squares=around, left_out=all_units - units
        )
    return sums


def read_tally(connection: Connection, rollout: str) -> UnitTally:
    """Return the sums of a rollout's callers; empty before the first."""
    query = select(UNIT_TALLIES.c.tally).where(UNIT_TALLIES.c.rollout == clean(rollout))
    stored = connection.execute(query.with_for_update()).scalar_one_or_none()
    return UnitTally() if stored is None else msgspec.json.decode(stored, type=UnitTally)


def add_units(connection: Connection, rollout: str, batch: UnitBatch) -> UnitTally:
    """Count answers by caller and store the read position; return the new sums.

    A caller counts only for the arm and the share of its first answer.
    """
    tally = read_tally(connection, rollout)
    if batch.requests and tally.units < MAX_UNITS:
        tally = _counted(connection, clean(rollout), tally, batch)
    tally = msgspec.structs.replace(tally, positions=batch.positions)
    dialect = connection.dialect.name
    statement = upsert_into(UNIT_TALLIES, dialect=dialect)
    row = {"rollout": clean(rollout), "tally": msgspec.json.encode(tally).decode()}
    connection.execute(
        statement.on_conflict_do_update(
            index_elements=[UNIT_TALLIES.c.rollout], set_={"tally": statement.excluded.tally}
        ),
        row,
    )
    return tally


def _counted(connection: Connection, rollout: str, tally: UnitTally, batch: UnitBatch) -> UnitTally:
    table = ROLLOUT_UNITS.c
    statement = upsert_into(ROLLOUT_UNITS, dialect=connection.dialect.name)
    requests = {clean(unit): n for unit, n in batch.requests.items()}
    rows: list[dict[str, Any]] = [
        {"rollout": rollout, "unit": unit, "requests": requests[unit]} for unit in sorted(requests)
    ]
    after = connection.execute(
        statement.on_conflict_do_update(
            index_elements=[table.rollout, table.unit],
            set_={"requests": table.requests + statement.excluded.requests},
        ).returning(table.unit, table.requests),
        rows,
    ).all()
    new = [0, 0]
    squares = 0
    for unit, total in after:
        before = total - requests[unit]
        squares += total * total - before * before
        if not before:
            new[unit in batch.of_candidate] += 1
    share = round(batch.share, 12)
    first = dict(tally.first)
    baseline, candidate = first.get(share, (0, 0))
    first[share] = (baseline + new[0], candidate + new[1])
    return msgspec.structs.replace(
        tally,
        first=first,
        requests=tally.requests + sum(requests.values()),
        squares=tally.squares + squares,
    )
