"""What an output folder says of itself: which job it is, and which shards are done.

_headrace/job.json         the job, written before the first shard
_headrace/manifest.jsonl   a line for each shard that is done, on disk before the next is begun
_headrace/lock             held by the run that works here
_SUCCESS                   last
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

import msgspec

from headrace.core import ArtifactCorruptError, FailedPreconditionError, UnavailableError
from headrace.core.error_kind import UNDECODABLE
from headrace.core.files import TEMPORARY, sync_directory
from headrace.jobs.messages import Done, JobRecord
from headrace.jobs.writing import replacing_output
from headrace.registry.lock import exclusive

FOLDER: Final = "_headrace"
SUCCESS: Final = "_SUCCESS"
_JOB, _MANIFEST, _LOCK = "job.json", "manifest.jsonl", "lock"


class OutputFolder:
    """The folder that one job writes to."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._own = path / FOLDER

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Work here alone; makes the folder.

        Raises:
            FailedPreconditionError: Another run works here, or the folder cannot be made.
        """
        with ExitStack() as stack:
            self._lock(stack)
            yield

    def _lock(self, stack: ExitStack) -> None:
        try:
            self._own.mkdir(parents=True, exist_ok=True)
            stack.enter_context(exclusive(self._own / _LOCK, timeout_s=0.0))
        except UnavailableError:
            msg = f"another run works on {self.path} now; wait for it, or name another folder"
            raise FailedPreconditionError(msg) from None
        except (FileExistsError, NotADirectoryError, PermissionError) as error:
            msg = f"{self.path} cannot be written to: {error.strerror or error}"
            raise FailedPreconditionError(msg) from error

    def record(self) -> JobRecord | None:
        """The job whose output this is; None if there is none yet.

        Raises:
            ArtifactCorruptError: What stands there is none that this version reads.
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
        """Refuse a folder of somebody else's.

        Raises:
            FailedPreconditionError: Something lies here, and no job says that it is its output.
        """
        if (self._own / _JOB).exists() or not self.path.is_dir():
            return
        others = [path.name for path in sorted(self.path.iterdir()) if path.name != FOLDER]
        if others:
            msg = (
                f"{self.path} is not empty, and not of a job ({', '.join(others[:3])}); "
                "name a folder of its own"
            )
            raise FailedPreconditionError(msg)

    def begin(self, record: JobRecord) -> None:
        """Say whose output this is.

        Raises:
            FailedPreconditionError: As `check_own`.
        """
        self.check_own()
        with replacing_output(self._own / _JOB) as file:
            file.write(msgspec.json.format(msgspec.json.encode(record), indent=1))
        sync_directory(self.path)

    def entries(self) -> dict[int, Done]:
        """The shards that are done. A last line that a crash cut off is none.

        Raises:
            ArtifactCorruptError: Another line cannot be read.
        """
        path = self._own / _MANIFEST
        if not path.exists():
            return {}
        data = path.read_bytes()
        whole, _, _ = data.rpartition(b"\n")
        found = {}
        for number, line in enumerate(whole.split(b"\n") if whole else [], start=1):
            try:
                done = msgspec.json.decode(line, type=Done)
            except UNDECODABLE as error:
                raise ArtifactCorruptError(f"{path}, line {number} is damaged: {error}") from error
            found[done.shard] = done
        return found

    @contextmanager
    def appending(self, kept: Sequence[Done]) -> Iterator["Manifest"]:
        """The manifest with `kept` in it, and nothing else, to add to."""
        with replacing_output(self._own / _MANIFEST) as file:
            file.writelines(msgspec.json.encode(done) + b"\n" for done in kept)
        descriptor = os.open(self._own / _MANIFEST, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        try:
            yield Manifest(descriptor)
        finally:
            os.close(descriptor)

    def names(self) -> list[str]:
        """All files of output that lie here, finished or not."""
        found = [path for path in self.path.rglob("*") if path.is_file()]
        return sorted(
            str(path.relative_to(self.path)) for path in found if self._own not in path.parents
        )

    def remove(self, names: Sequence[str]) -> None:
        """Take files away that a run left."""
        for name in names:
            (self.path / name).unlink(missing_ok=True)

    def sweep(self) -> None:
        """Take away unfinished files, as workers leave that were lost."""
        self.remove([name for name in self.names() if name.endswith(TEMPORARY)])

    def is_complete(self) -> bool:
        """Whether all is done."""
        return (self.path / SUCCESS).is_file()

    def complete(self, summary: bytes) -> None:
        """Say that all is done."""
        with replacing_output(self.path / SUCCESS) as file:
            file.write(summary)


class Manifest:
    """Takes a line for each shard that is done. For one thread at a time."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def add(self, done: Done) -> None:
        """On disk when this returns.

        Raises:
            FailedPreconditionError: The disk is full.
        """
        try:
            os.write(self._descriptor, msgspec.json.encode(done) + b"\n")
            os.fsync(self._descriptor)
        except OSError as error:
            msg = f"the manifest cannot be written: {error.strerror or error}"
            raise FailedPreconditionError(msg) from error


def leftovers(names: Sequence[str], kept: Sequence[Done]) -> list[str]:
    """Files of output that no shard that is done has: what a run that was killed left."""
    known = {one.name for done in kept for one in done.files} | {SUCCESS}
    return [
        name
        for name in names
        if name not in known and (_is_part(Path(name).name) or name.endswith(TEMPORARY))
    ]


def _is_part(name: str) -> bool:
    return name.startswith(("part-", ".part-", f".{SUCCESS}"))
