"""Rows of single answers: who gave each, what it earned, and which callers a rollout has counted.

Assignments and feedback meet in one row, whichever comes first. Callers, their sums and how far
answers were read change in one transaction, so a control plane that dies at any point counts nobody
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

MOST_UNITS: Final = 1_000_000
"""Beyond so many callers of a rollout nothing more is counted by caller."""


def add_assignments(connection: Connection, assignments: Sequence[Assignment]) -> None:
    """Remember who answered; a request id that is known already stays as it is."""
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
    # In order: two that add the same ids the other way round would wait for each other for ever.
    rows = connection.execute(statement, [first[request_id] for request_id in sorted(first)])
    _count(connection, (row for row in rows if row.reward is not None))


def add_feedback(
    connection: Connection, *feedback: Feedback, endpoints: frozenset[str] | None = None
) -> list[str]:
    """Take rewards, all or none: `taken`, `duplicate`, `waiting` or `unknown` of each.

    The first one counts. One that waits for its assignment is counted as soon as that comes. Rows
    are written in the order of their keys, so that no two transactions wait for one another.

    Args:
        endpoints: Whose answers may earn them. Others' and those not known yet are `unknown` then,
            and nothing of them is stored. None for all.

    Raises:
        InvalidArgumentError: A reward is no number within `REWARD_LIMIT`.
    """
    for reward in feedback:
        if not abs(reward.reward) <= REWARD_LIMIT:  # nor is NaN
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
    """Add rewards to those of their units."""
    sums: defaultdict[tuple[str, str, str], list[float]] = defaultdict(list)
    for row in earned:
        if not abs(row.reward) <= REWARD_LIMIT:
            continue  # stored by a version that took any number
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
    """Set `columns` of an answer's row, met or added, unless `unless` is set; the row if it was."""
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
    """What each unit earned in a rollout, in the order of units and arms."""
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
    """Units, the mean of their mean rewards, and the squares around it, by arm.

    The database adds up, in two passes: with a million users a row each would take seconds to read,
    and sums of squares around zero would lose what a small variance is made of. Units that earned
    more than anybody can (an earlier version took any number) are counted and left out.
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
    """The sums of a rollout's callers; empty before the first."""
    query = select(UNIT_TALLIES.c.tally).where(UNIT_TALLIES.c.rollout == clean(rollout))
    stored = connection.execute(query.with_for_update()).scalar_one_or_none()
    return UnitTally() if stored is None else msgspec.json.decode(stored, type=UnitTally)


def add_units(connection: Connection, rollout: str, batch: UnitBatch) -> UnitTally:
    """Count answers by caller, and remember how far they were read; the sums then.

    A caller counts for the arm and the share of its first answer, never again for another.
    """
    tally = read_tally(connection, rollout)
    if batch.requests and tally.units < MOST_UNITS:
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
