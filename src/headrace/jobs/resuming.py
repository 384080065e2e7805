"""May a run go on where another ended, and what is left? Decisions, without reading a file."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from headrace.core import FailedPreconditionError
from headrace.jobs.messages import Done, JobRecord, Shard, Written

_SHOWN = 3


class ChangedError(FailedPreconditionError):
    """The job is not the one that began; `changes` say how."""

    def __init__(self, record: JobRecord, changes: Sequence[str]) -> None:
        what = "; ".join(changes)
        super().__init__(
            f"run {record.id} cannot go on, as it would mix answers: {what}. Give it what it began "
            "with, or write to another folder"
        )
        self.changes = tuple(changes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Left:
    """What there is to do. `redo`: why shards that were done have to be done again."""

    done: list[Done] = field(default_factory=list)
    todo: list[Shard] = field(default_factory=list)
    redo: dict[int, str] = field(default_factory=dict)


def changes(old: JobRecord, new: JobRecord) -> list[str]:
    """In what two jobs differ that answers depend on, in words; empty if in nothing.

    Sizes are not compared: a run that goes on takes those that it began with.
    """
    found = []
    if (old.model.digest, old.model.runtime) != (new.model.digest, new.model.runtime):
        found.append(f"the model was {_model(old)}, and is {_model(new)}")
    elif old.model.version != new.model.version:
        found.append(f"the version was {old.model.version}, and is {new.model.version}")
    if old.model.features != new.model.features:
        found.append("the definitions of its features, or where they come from, are others")
    if old.model.labels != new.model.labels:
        found.append("the class names of its outputs are others")
    if old.plan.inputs != new.plan.inputs:
        found.append(_inputs(old, new))
    for what, one, other in (
        ("keys were", old.plan.keys, new.plan.keys),
        ("outputs were", old.plan.outputs, new.plan.outputs),
        ("format was", str(old.format), str(new.format)),
        ("errors went to", str(old.errors), str(new.errors)),
        ("nulls were", str(old.nulls), str(new.nulls)),
    ):
        if one != other:
            found.append(f"{what} {_plain(one)}, and now {_plain(other)}")
    return [*found, *_input_changes(old, new)]


def check_same(old: JobRecord, new: JobRecord) -> None:
    """Raise ChangedError if the jobs differ in what answers depend on."""
    found = changes(old, new)
    if found:
        raise ChangedError(old, found)


def left_to_do(
    record: JobRecord,
    entries: Mapping[int, Done],
    digest: str,
    find: Callable[[str], Written | None],
) -> Left:
    """Which shards are done, as their files prove, and which are not.

    Args:
        digest: Of what answers depend on now.
        find: What lies under a name in the output; None if nothing does.
    """
    left = Left()
    for shard in record.shards:
        done = entries.get(shard.number)
        if done is None:
            left.todo.append(shard)
            continue
        why = _wrong(done, shard, digest, find)
        if why:
            left.redo[shard.number] = why
            left.todo.append(shard)
        else:
            left.done.append(done)
    return left


def _wrong(done: Done, shard: Shard, digest: str, find: Callable[[str], Written | None]) -> str:
    if done.fingerprint != shard.fingerprint:
        return "its input was another"
    if done.digest != digest:
        return "its model or mapping was another"
    for one in done.files:
        found = find(one.name)
        if found is None:
            return f"{one.name} is gone"
        if found != one:
            return f"{one.name} is not what was written"
    return ""


def _input_changes(old: JobRecord, new: JobRecord) -> list[str]:
    if old.source != new.source:
        return (
            [f"the input was {old.source.url}, and is {new.source.url}"]
            if (old.source.url != new.source.url)
            else ["the query or its key is another"]
        )
    before, after = _by_file(old.shards), _by_file(new.shards)
    found = []
    for what, names in (
        ("gone", [name for name in before if name not in after]),
        ("new", [name for name in after if name not in before]),
        ("changed", [name for name in before if name in after and before[name] != after[name]]),
    ):
        if names:
            shown = ", ".join(Path(name).name for name in names[:_SHOWN])
            more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
            found.append(f"of the input is {what}: {shown}{more}")
    return found


def _by_file(shards: Sequence[Shard]) -> dict[str, set[tuple[int, int, str]]]:
    found: dict[str, set[tuple[int, int, str]]] = {}
    for shard in shards:
        parts = found.setdefault(shard.file, set())
        parts.add((shard.begin, shard.end, shard.fingerprint))
    return found


def _model(record: JobRecord) -> str:
    return f"{record.model.reference} ({record.model.digest[:19]})"


def _inputs(old: JobRecord, new: JobRecord) -> str:
    before = {one.input: one.columns for one in old.plan.inputs}
    after = {one.input: one.columns for one in new.plan.inputs}
    for name in [*before, *after]:
        if before.get(name) != after.get(name):
            was, now = before.get(name, []), after.get(name, [])
            return f"input '{name}' was made of {_plain(was)}, and now of {_plain(now)}"
    return "the order of the inputs is another"


def _plain(value: object) -> str:
    if isinstance(value, dict):
        value = list(value)
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text[:200] or "none"
