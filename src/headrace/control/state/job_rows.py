"""Rows of scheduled jobs and their runs; a run's owner and heartbeat are columns."""

from collections.abc import Sequence
from typing import Any, Final

import msgspec
from sqlalchemy import ColumnElement, Connection, and_, delete, func, insert, select, update
from sqlalchemy.exc import IntegrityError

from headrace.control.model.job_runs import JobMark, JobRun, JobsSnapshot, RunState
from headrace.control.state.database import Database, reads, upsert_into, writes
from headrace.control.state.encoding import check_readable, clean, decoded, encoded
from headrace.control.state.tables import JOB_RUNS, JOBS, STATE, AnyRow
from headrace.core import AlreadyExistsError

_OVER: Final = tuple(state.value for state in RunState if state.is_over)
_COLUMNS: Final = ("id", "job", "moment", "state", "owner", "fence", "beat", "cancelled_by")
_MAX_CONCURRENT: Final = 500
_BY_AGE: Final = (JOB_RUNS.c.moment, JOB_RUNS.c.id)
_ENDED: Final = (RunState.SUCCEEDED.value, RunState.FAILED.value)


def read_spec_generation(connection: Connection) -> int:
    """Return the generation of the desired spec."""
    generation: int = connection.execute(select(STATE.c.generation)).scalar_one()
    return generation


def read_jobs(connection: Connection) -> JobsSnapshot:
    """Return the stored jobs and runs."""
    generation = connection.execute(select(STATE.c.generation)).scalar_one()
    marks = [JobMark(**row._asdict()) for row in connection.execute(select(JOBS))]
    is_open = JOB_RUNS.c.state.not_in(_OVER)
    rows = connection.execute(select(JOB_RUNS).where(is_open).order_by(*_BY_AGE))
    ended = _newest(connection, JOB_RUNS.c.state.in_(_ENDED))
    succeeded = _newest(connection, JOB_RUNS.c.state == RunState.SUCCEEDED.value)
    return JobsSnapshot(
        generation=generation,
        marks={mark.job: mark for mark in marks},
        open=tuple(_run(row) for row in rows),
        succeeded=succeeded,
        ended=ended,
    )


def advance_job(connection: Connection, mark: JobMark, runs: Sequence[JobRun]) -> bool:
    """Replace a job's mark and add runs; change nothing and return False if its revision differs.

    The revision is 0 without a mark, and one higher afterwards. A run whose id exists is not
    changed.
    """
    values = msgspec.structs.asdict(mark) | {"revision": mark.revision + 1}
    is_same = (JOBS.c.job == mark.job) & (JOBS.c.revision == mark.revision)
    dialect = connection.dialect.name
    # Use RETURNING: an insert reports no row count in Postgres.
    if mark.revision == 0:
        new = upsert_into(JOBS, dialect=dialect).values(values).on_conflict_do_nothing()
        moved = connection.execute(new.returning(JOBS.c.job)).scalar()
    else:
        change = update(JOBS).where(is_same).values(values)
        moved = connection.execute(change.returning(JOBS.c.job)).scalar()
    if moved is None:
        return False
    for run in runs:
        row = upsert_into(JOB_RUNS, dialect=dialect).values(_values(run))
        connection.execute(row.on_conflict_do_nothing())
    return True


def add_run(connection: Connection, run: JobRun) -> None:
    """Add a run.

    Raises:
        AlreadyExistsError: Its id exists.
    """
    try:
        with connection.begin_nested():
            connection.execute(insert(JOB_RUNS).values(_values(run)))
    except IntegrityError as error:
        raise AlreadyExistsError(f"there is a run {run.id} already") from error


def take_run(connection: Connection, run: JobRun, owner: str) -> JobRun | None:
    """Make `owner` the owner of `run`; return None if the run changed since it was read."""
    taken = msgspec.structs.replace(run, owner=owner, fence=run.fence + 1, beat=run.beat + 1)
    is_same = and_(_is(run), JOB_RUNS.c.beat == run.beat, JOB_RUNS.c.state == run.state.value)
    return _replace(connection, taken, is_same)


def save_run(connection: Connection, run: JobRun, *, release: bool = False) -> JobRun | None:
    """Replace a run of its owner, with beat + 1; return None if it has another owner by now.

    The stored `cancelled_by` stays, because others write it.

    Args:
        release: Whether the run has no owner afterwards.
    """
    owner = "" if release else run.owner
    saved = msgspec.structs.replace(run, beat=run.beat + 1, owner=owner)
    is_owned = and_(_is(run), JOB_RUNS.c.state.not_in(_OVER))
    return _replace(connection, saved, is_owned)


def _replace(connection: Connection, run: JobRun, location: ColumnElement[bool]) -> JobRun | None:
    values = {key: value for key, value in _values(run).items() if key != "cancelled_by"}
    query = update(JOB_RUNS).where(location).values(values).returning(JOB_RUNS.c.cancelled_by)
    cancelled_by = connection.execute(query).scalar()
    return None if cancelled_by is None else msgspec.structs.replace(run, cancelled_by=cancelled_by)


def cancel_run(connection: Connection, id_: str, actor: str, timestamp: float) -> JobRun | None:
    """Request a run's end; return it as stored, None if absent. Without an owner it ends now."""
    of_id = JOB_RUNS.c.id == clean(id_)
    row = connection.execute(select(JOB_RUNS).where(of_id).with_for_update()).first()
    if row is None:
        return None
    run = _run(row)
    if run.state.is_over or run.cancelled_by:
        return run
    run = msgspec.structs.replace(run, cancelled_by=clean(actor) or "unknown")
    if not run.owner:
        run = msgspec.structs.replace(run, state=RunState.CANCELLED, ended=timestamp)
    connection.execute(update(JOB_RUNS).where(of_id).values(_values(run)))
    return run


def read_run(connection: Connection, id_: str) -> JobRun | None:
    """Return the run with this id; None if it does not exist."""
    query = select(JOB_RUNS).where(JOB_RUNS.c.id == clean(id_))
    row = connection.execute(query).first()
    return None if row is None else _run(row)


def read_runs(connection: Connection, job: str, *, limit: int) -> list[JobRun]:
    """Return runs of a job by scheduled time, newest first."""
    newest_first = [column.desc() for column in _BY_AGE]
    of_job = select(JOB_RUNS).where(JOB_RUNS.c.job == clean(job))
    rows = connection.execute(of_job.order_by(*newest_first).limit(limit))
    return [_run(row) for row in rows]


def forget_runs(connection: Connection, job: str, *, keep: int) -> int:
    """Delete ended runs except the `keep` newest and the last success; return the number."""
    is_over = and_(JOB_RUNS.c.job == clean(job), JOB_RUNS.c.state.in_(_OVER))
    newest_first = [column.desc() for column in _BY_AGE]
    over = select(JOB_RUNS.c.id).where(is_over).order_by(*newest_first)
    valid = over.where(JOB_RUNS.c.state == RunState.SUCCEEDED.value)
    old = connection.execute(over.offset(keep)).scalars().all()
    newest_good = connection.execute(valid.limit(1)).scalar()
    removed = [id_ for id_ in old if id_ != newest_good]
    for begin in range(0, len(removed), _MAX_CONCURRENT):
        some = removed[begin : begin + _MAX_CONCURRENT]
        connection.execute(delete(JOB_RUNS).where(JOB_RUNS.c.id.in_(some)))
    return len(removed)


def _is(run: JobRun) -> ColumnElement[bool]:
    """Return the condition that a row is this run with this owner."""
    same = (JOB_RUNS.c.id == run.id, JOB_RUNS.c.owner == run.owner, JOB_RUNS.c.fence == run.fence)
    return and_(*same)


def _newest(connection: Connection, condition: ColumnElement[bool]) -> dict[str, JobRun]:
    """Return the newest run of each job that fulfils `condition`."""
    newest = (
        select(JOB_RUNS.c.job, func.max(JOB_RUNS.c.moment).label("moment"))
        .where(condition)
        .group_by(JOB_RUNS.c.job)
        .subquery()
    )
    joined = JOB_RUNS.join(
        newest, (JOB_RUNS.c.job == newest.c.job) & (JOB_RUNS.c.moment == newest.c.moment)
    )
    rows = connection.execute(
        select(JOB_RUNS).select_from(joined).where(condition).order_by(JOB_RUNS.c.id)
    )
    return {row.job: _run(row) for row in rows}


def _values(run: JobRun) -> dict[str, Any]:
    whole = msgspec.structs.asdict(run)
    columns = {key: whole.pop(key) for key in _COLUMNS}
    columns |= {"state": run.state.value, "cancelled_by": clean(run.cancelled_by)}
    whole["message"] = clean(run.message)
    record = encoded(whole)
    check_readable(record, dict[str, Any], description=f"run {run.id}")
    return columns | {"record": record}


def _run(row: AnyRow) -> JobRun:
    description = f"run {row.id}"
    record = decoded(row.record, dict[str, Any], description=description)
    columns = {name: getattr(row, name) for name in _COLUMNS}
    return decoded(encoded({**record, **columns}), JobRun, description=description)


class JobStore:
    """Transactions of scheduled jobs and their runs, atomic also between processes."""

    def __init__(self, database: Database) -> None:
        self.database = database

    generation = reads("read the jobs", read_spec_generation)
    look = reads("read the jobs", read_jobs)
    advance = writes("store a job's runs", advance_job)
    add_run = writes("store a run", add_run)
    take = writes("take a run", take_run)
    save = writes("store a run", save_run)
    cancel = writes("cancel a run", cancel_run)
    run = reads("read a run", read_run)
    runs = reads("read the runs", read_runs)
    forget = writes("forget old runs", forget_runs)
