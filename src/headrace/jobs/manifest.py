"""Manifest of an output folder: its job, its completed shards, and whether a run may resume.

_headrace/job.json         the job record, written before the first shard
_headrace/manifest.jsonl   one line per completed shard, on disk before the next shard begins
_headrace/lock             held by the running job
_SUCCESS                   written last
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import msgspec

from headrace.core import ArtifactCorruptError, FailedPreconditionError
from headrace.core.error_kind import UNDECODABLE
from headrace.core.files import TEMPORARY, exclusive, replacing_output, sync_directory
from headrace.jobs.messages import CompletedShard, JobRecord, OutputFile, Shard

FOLDER: Final = "_headrace"
SUCCESS: Final = "_SUCCESS"
_JOB, _MANIFEST, _LOCK = "job.json", "manifest.jsonl", "lock"


class OutputFolder:
    """Output folder of one job."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._own = path / FOLDER

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Create and lock the folder.

        Raises:
            FailedPreconditionError: Another run works here, or the folder cannot be created.
        """
        msg = f"another run uses {self.path}; wait for it, or choose another folder"
        busy = FailedPreconditionError(msg)
        with ExitStack() as stack:
            try:
                self._own.mkdir(parents=True, exist_ok=True)
                stack.enter_context(exclusive(self._own / _LOCK, timeout_s=0.0, busy=busy))
            except (FileExistsError, NotADirectoryError, PermissionError) as error:
                msg = f"{self.path} cannot be written to: {error.strerror or error}"
                raise FailedPreconditionError(msg) from error
            yield

    def record(self) -> JobRecord | None:
        """Return the job that writes to this folder; None without one.

        Raises:
            ArtifactCorruptError: The record is damaged, or of another version.
        """
        path = self._own / _JOB
        try:
            return msgspec.json.decode(path.read_bytes(), type=JobRecord)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except UNDECODABLE as error:
            msg = f"{path} is damaged, or of another version of Headrace: {error}"
            raise ArtifactCorruptError(msg) from error

    def check_own(self) -> None:
        """Check that the folder has no other content.

        Raises:
            FailedPreconditionError: The folder has files, and no job record.
        """
        if (self._own / _JOB).exists() or not self.path.is_dir():
            return
        others = [path.name for path in sorted(self.path.iterdir()) if path.name != FOLDER]
        if others:
            msg = (
                f"{self.path} is not empty, and not a job's output ({', '.join(others[:3])}); "
                "choose an empty folder"
            )
            raise FailedPreconditionError(msg)

    def begin(self, record: JobRecord) -> None:
        """Write the job record.

        Raises:
            FailedPreconditionError: As `check_own`.
        """
        self.check_own()
        with replacing_output(self._own / _JOB) as file:
            file.write(msgspec.json.format(msgspec.json.encode(record), indent=1))
        sync_directory(self.path)

    def entries(self) -> dict[int, CompletedShard]:
        """Return the completed shards. A truncated last line is ignored.

        Raises:
            ArtifactCorruptError: A line before the last cannot be read.
        """
        path = self._own / _MANIFEST
        if not path.exists():
            return {}
        data = path.read_bytes()
        whole, _, _ = data.rpartition(b"\n")
        completed = {}
        for number, line in enumerate(whole.split(b"\n") if whole else [], start=1):
            try:
                done = msgspec.json.decode(line, type=CompletedShard)
            except UNDECODABLE as error:
                raise ArtifactCorruptError(f"{path}, line {number} is damaged: {error}") from error
            completed[done.shard] = done
        return completed

    @contextmanager
    def appending(self, completed: Sequence[CompletedShard]) -> Iterator["JobManifest"]:
        """Open the manifest for appending, with only `completed` in it."""
        with replacing_output(self._own / _MANIFEST) as file:
            file.writelines(msgspec.json.encode(done) + b"\n" for done in completed)
        descriptor = os.open(self._own / _MANIFEST, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        try:
            yield JobManifest(descriptor)
        finally:
            os.close(descriptor)

    def names(self) -> list[str]:
        """Return all output files in the folder, finished or not."""
        files = [path for path in self.path.rglob("*") if path.is_file()]
        return sorted(
            str(path.relative_to(self.path)) for path in files if self._own not in path.parents
        )

    def remove(self, names: Sequence[str]) -> None:
        """Delete files."""
        for name in names:
            (self.path / name).unlink(missing_ok=True)

    def sweep(self) -> None:
        """Delete unfinished files of lost workers."""
        self.remove([name for name in self.names() if name.endswith(TEMPORARY)])

    def is_complete(self) -> bool:
        """Return whether the job is complete."""
        return (self.path / SUCCESS).is_file()

    def complete(self, summary: bytes) -> None:
        """Mark the job as complete."""
        with replacing_output(self.path / SUCCESS) as file:
            file.write(summary)


class JobManifest:
    """Appends a line for each completed shard. For one thread at a time."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def add(self, done: CompletedShard) -> None:
        """Append a shard; it is on disk on return.

        Raises:
            FailedPreconditionError: The disk is full.
        """
        try:
            os.write(self._descriptor, msgspec.json.encode(done) + b"\n")
            os.fsync(self._descriptor)
        except OSError as error:
            msg = f"the manifest cannot be written: {error.strerror or error}"
            raise FailedPreconditionError(msg) from error


def leftovers(names: Sequence[str], completed: Sequence[CompletedShard]) -> list[str]:
    """Return output files that belong to no completed shard: leftovers of a killed run."""
    finished = {file.name for done in completed for file in done.files} | {SUCCESS}
    return [
        name
        for name in names
        if name not in finished and (_is_part(Path(name).name) or name.endswith(TEMPORARY))
    ]


def _is_part(name: str) -> bool:
    return name.startswith(("part-", ".part-", f".{SUCCESS}"))


_SHOWN = 3


class ChangedError(FailedPreconditionError):
    """The job differs from the started one; `changes` lists the differences."""

    def __init__(self, record: JobRecord, changes: Sequence[str]) -> None:
        description = "; ".join(changes)
        super().__init__(
            f"run {record.id} cannot be resumed, as it would mix results: {description}. Use "
            "the original "
            "settings, or another output folder"
        )
        self.changes = tuple(changes)


@dataclass(frozen=True, slots=True, kw_only=True)
class RemainingShards:
    """Completed and remaining work of a job."""

    done: list[CompletedShard] = field(default_factory=list)
    """Completed shards."""
    todo: list[Shard] = field(default_factory=list)
    """Shards to run."""
    redo: dict[int, str] = field(default_factory=dict)
    """Reason why a completed shard runs again, by its number."""


def changes(old: JobRecord, new: JobRecord) -> list[str]:
    """Return the differences of two jobs that affect answers, as text; empty for none.

    Sizes are not compared: a resumed run takes the sizes that it began with.
    """
    differences = []
    if (old.model.digest, old.model.runtime) != (new.model.digest, new.model.runtime):
        differences.append(f"the model changed from {_model(old)} to {_model(new)}")
    elif old.model.version != new.model.version:
        differences.append(f"the version changed from {old.model.version} to {new.model.version}")
    if old.model.features != new.model.features:
        differences.append("its feature definitions, or their store, changed")
    if old.model.labels != new.model.labels:
        differences.append("the class names of its outputs changed")
    if old.plan.inputs != new.plan.inputs:
        differences.append(_inputs(old, new))
    for description, before, after in (
        ("keys were", old.plan.keys, new.plan.keys),
        ("outputs were", old.plan.outputs, new.plan.outputs),
        ("format was", str(old.format), str(new.format)),
        ("errors went to", str(old.errors), str(new.errors)),
        ("nulls were", str(old.nulls), str(new.nulls)),
    ):
        if before != after:
            differences.append(f"{description} {_plain(before)}, and now {_plain(after)}")
    return [*differences, *_input_changes(old, new)]


def check_same(old: JobRecord, new: JobRecord) -> None:
    """Raise ChangedError if the jobs differ in what affects answers."""
    differences = changes(old, new)
    if differences:
        raise ChangedError(old, differences)


def remaining_shards(
    record: JobRecord,
    entries: Mapping[int, CompletedShard],
    digest: str,
    find: Callable[[str], OutputFile | None],
) -> RemainingShards:
    """Return which shards are complete, as verified by their files, and which are not.

    Args:
        digest: Current digest of what affects answers.
        find: Returns the output file of a name; None without one.
    """
    left = RemainingShards()
    for shard in record.shards:
        done = entries.get(shard.number)
        if done is None:
            left.todo.append(shard)
            continue
        reason = _wrong(done, shard, digest, find)
        if reason:
            left.redo[shard.number] = reason
            left.todo.append(shard)
        else:
            left.done.append(done)
    return left


def _wrong(
    done: CompletedShard, shard: Shard, digest: str, find: Callable[[str], OutputFile | None]
) -> str:
    if done.fingerprint != shard.fingerprint:
        return "its input changed"
    if done.digest != digest:
        return "its model or mapping changed"
    for expected in done.files:
        actual = find(expected.name)
        if actual is None:
            return f"{expected.name} is missing"
        if actual != expected:
            return f"{expected.name} was modified"
    return ""


def _input_changes(old: JobRecord, new: JobRecord) -> list[str]:
    if old.source != new.source:
        return (
            [f"the input changed from {old.source.url} to {new.source.url}"]
            if (old.source.url != new.source.url)
            else ["the query or its key changed"]
        )
    before, after = _by_file(old.shards), _by_file(new.shards)
    differences = []
    for description, names in (
        ("gone", [name for name in before if name not in after]),
        ("new", [name for name in after if name not in before]),
        ("changed", [name for name in before if name in after and before[name] != after[name]]),
    ):
        if names:
            shown = ", ".join(Path(name).name for name in names[:_SHOWN])
            more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
            differences.append(f"input files {description}: {shown}{more}")
    return differences


def _by_file(shards: Sequence[Shard]) -> dict[str, set[tuple[int, int, str]]]:
    by_file: dict[str, set[tuple[int, int, str]]] = {}
    for shard in shards:
        parts = by_file.setdefault(shard.file, set())
        parts.add((shard.begin, shard.end, shard.fingerprint))
    return by_file


def _model(record: JobRecord) -> str:
    return f"{record.model.reference} ({record.model.digest[:19]})"


def _inputs(old: JobRecord, new: JobRecord) -> str:
    before = {columns.input: columns.columns for columns in old.plan.inputs}
    after = {columns.input: columns.columns for columns in new.plan.inputs}
    for name in [*before, *after]:
        if before.get(name) != after.get(name):
            previous, now = before.get(name, []), after.get(name, [])
            return f"input '{name}' used {_plain(previous)}, and now {_plain(now)}"
    return "the order of the inputs changed"


def _plain(value: object) -> str:
    if isinstance(value, dict):
        value = list(value)
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text[:200] or "none"
