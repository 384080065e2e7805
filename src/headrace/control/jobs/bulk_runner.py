"""Runner of batches of OpenAI's API: `headrace batch openai` per batch, with the creator's rights.

A run calls the gateway with a temporary API key that has the name, the scopes and the tier of the
key that created the batch, so that limits and the usage of tokens are that caller's. The key is
revoked when the run ends, and the run ends when the creator's key is revoked.
"""

import asyncio
import contextlib
import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Final

import msgspec

from headrace.control.base.faults import LOOP, Faults
from headrace.control.base.journal import wait_for
from headrace.control.jobs.bulk import (
    RESULTS_PURPOSE,
    BulkStore,
    RequestCounts,
    StoredBatch,
)
from headrace.control.jobs.plan import Attempt
from headrace.control.jobs.process import JobProcess, JobStarter, lease_clock
from headrace.control.model.credentials import Credential
from headrace.control.model.job_runs import JobRun, RunState
from headrace.control.reconcile.caller_policy import BATCH_ACTOR, Keys, grants_of
from headrace.core import Clock, HeadraceError
from headrace.core.backoff import Backoff
from headrace.core.error_kind import UNDECODABLE
from headrace.core.files import make_private_dir, size_of
from headrace.core.processes import python_module
from headrace.jobs.openai_lines import read_lines

MAX_CONCURRENT: Final = 2
"""Batches that run at once."""
MAX_REQUESTS: Final = 50_000
"""Requests of a batch, as for OpenAI's API."""
MAX_RESULT_BYTES: Final = 2 << 30
"""Bytes of the results of a batch."""
MEMORY_LIMIT: Final = "2GiB"
MAX_FAILURES: Final = 8
AFTER_FAILURE: Final = Backoff(first_s=2.0, limit_s=300.0)
_LEASE_S: Final = 30.0
_POLL_S: Final = 1.0
_END_S: Final = 5.0
_KEY_GRACE_S: Final = 600.0
_CONCURRENCY: Final = 16
_LOG: Final = logging.getLogger("headrace.control")


def bulk_command(run: JobRun) -> Sequence[str]:
    """Return the command line of a batch's run, whose document has its arguments."""
    return python_module("headrace.cli", *run.document["arguments"])


@dataclass(slots=True, kw_only=True)
class BulkRunner:
    """Runs the stored batches of a home, the oldest first, in turn between owners."""

    store: BulkStore
    keys: Keys
    start: JobStarter
    home: Path
    clock: Clock
    faults: Faults
    _running: dict[str, str] = field(default_factory=dict)
    """Owner of each batch that runs here, by its id."""
    _wake: asyncio.Event = field(default_factory=asyncio.Event)

    async def run(self) -> None:
        """Run batches until cancelled, which interrupts them; the next control plane continues."""
        await asyncio.to_thread(self.store.load)
        is_tidy = False
        async with asyncio.TaskGroup() as group:
            while True:
                with self.faults.contain(LOOP, "batches"):
                    if not is_tidy and self.store.batches:
                        # A killed control plane left the keys of its runs.
                        await self._revoke_keys(BATCH_ACTOR)
                    is_tidy = True
                    for batch_id in self._due():
                        self._running[batch_id] = self.store.batches[batch_id].owner
                        group.create_task(self._carry_out(batch_id))
                await wait_for(self._wake, _POLL_S)
                self._wake.clear()

    def wake(self) -> None:
        """Start new batches and end cancelled ones now."""
        self._wake.set()

    def cancel(self, owner: str, batch_id: str) -> None:
        """Cancel a batch; results that it has are kept.

        Raises:
            NotFoundError: The owner has no such batch.
        """
        batch = self.store.batch(owner, batch_id)
        if batch.status in {"validating", "in_progress"}:
            self.store.change(batch_id, status="cancelling", cancelling_at=self._now())
        self.wake()

    def _due(self) -> list[str]:
        """Return the batches to start now."""
        now = self.clock.now()
        waiting = [
            stored
            for stored in self.store.batches.values()
            if stored.batch.is_active
            and stored.batch.id not in self._running
            and (stored.next_try_at <= now or stored.batch.status == "cancelling")
        ]
        owners = list(self._running.values())
        due: list[str] = []
        while waiting and len(owners) < MAX_CONCURRENT:
            first = min(waiting, key=lambda it: (owners.count(it.owner), it.batch.created_at))
            waiting.remove(first)
            owners.append(first.owner)
            due.append(first.batch.id)
        return due

    async def _carry_out(self, batch_id: str) -> None:
        try:
            with self.faults.contain("batch", batch_id):
                await self._try(batch_id)
        finally:
            self._running.pop(batch_id, None)
            self._wake.set()

    async def _try(self, batch_id: str) -> None:
        """Carry a batch through one attempt, and store its outcome."""
        stored = self.store.batches[batch_id]
        if stored.batch.status == "validating":
            await self._validate(stored)
        if self.store.batches[batch_id].batch.status == "in_progress":
            attempt = await self._attempt(batch_id)
            status = self.store.batches[batch_id].batch.status
            if status == "in_progress":
                if attempt is None or attempt.interrupted:
                    return
                if not attempt.ok:
                    self._postpone(batch_id, attempt)
                    return
                self.store.change(batch_id, status="finalizing", finalizing_at=self._now())
        if self.store.batches[batch_id].batch.status == "cancelling":
            attempt = await self._attempt(batch_id, "--cancelled")
            if attempt is None or attempt.interrupted:
                return
            if not attempt.ok:
                self._fail(batch_id, "server_error", attempt.message)
        if self.store.batches[batch_id].batch.status in {"finalizing", "cancelling"}:
            self._finish(batch_id)

    async def _validate(self, stored: StoredBatch) -> None:
        """Begin a batch, or fail it if it has no requests or too many."""
        batch_id = stored.batch.id
        path = self.store.content(stored.owner, stored.batch.input_file_id)
        total = await asyncio.to_thread(_count, path)
        if not 1 <= total <= MAX_REQUESTS:
            message = f"the input file has {total} requests, and not 1 to {MAX_REQUESTS}"
            self._fail(batch_id, "too_many_tasks" if total else "empty_file", message)
        elif self.store.batches[batch_id].batch.status == "validating":
            self.store.change(
                batch_id,
                status="in_progress",
                in_progress_at=self._now(),
                request_counts=RequestCounts(total=total),
            )

    async def _attempt(self, batch_id: str, *more: str) -> Attempt | None:
        """Run the command once; None if the batch has failed meanwhile.

        Raises:
            HeadraceError: The key or the process cannot be created.
        """
        stored = self.store.batches[batch_id]
        creator = await self._creator(stored)
        if stored.key_id and creator is None and not more:
            self._fail(batch_id, "invalid_api_key", "the API key that created it is not valid")
            return None
        work = make_private_dir(self.store.work(stored))
        arguments = [
            *("batch", "openai"),
            str(self.store.content(stored.owner, stored.batch.input_file_id)),
            f"--output={work / 'output.jsonl'}",
            f"--error-file={work / 'errors.jsonl'}",
            f"--progress-file={work / 'progress.json'}",
            f"--path={stored.batch.endpoint}",
            f"--expires-at={stored.batch.expires_at}",
            f"--concurrency={_CONCURRENCY}",
            f"--home={self.home}",
            *more,
        ]
        key_file = work / "key"
        try:
            if creator is not None and not more:
                left_s = max(stored.batch.expires_at - self.clock.now(), 0.0) + _KEY_GRACE_S
                actor = f"{BATCH_ACTOR}{batch_id}"
                created = await self.keys.create(
                    creator.owner, grants_of(creator), expires_in_s=left_s, actor=actor
                )
                key_file.touch(mode=0o600)
                key_file.write_text(created.text)
                arguments.append(f"--key=@{key_file}")
            else:
                arguments.append("--key=")
            run = JobRun(
                id=batch_id,
                job="openai",
                moment=stored.batch.created_at,
                state=RunState.RUNNING,
                document={"arguments": arguments, "memory_limit": MEMORY_LIMIT},
                output=str(work),
            )
            return await self._follow(await self.start(run, lease_clock() + _LEASE_S), stored, work)
        except HeadraceError as error:
            return Attempt(message=str(error))
        finally:
            key_file.unlink(missing_ok=True)
            with contextlib.suppress(HeadraceError):
                await self._revoke_keys(f"{BATCH_ACTOR}{batch_id}")

    async def _follow(self, process: JobProcess, stored: StoredBatch, work: Path) -> Attempt | None:
        """Follow a run to its end; end it if it is cancelled, or must not go on."""
        batch_id = stored.batch.id
        waiting = asyncio.create_task(process.wait())
        failure: tuple[str, str] | None = None
        is_cancelling = stored.batch.status == "cancelling"
        try:
            while not (await asyncio.wait({waiting}, timeout=_POLL_S))[0]:
                process.extend(lease_clock() + _LEASE_S)
                await self._show_progress(batch_id, work)
                status = self.store.batches[batch_id].batch.status
                failure = failure or await self._problem(stored, work)
                if failure is not None or (status == "cancelling" and not is_cancelling):
                    process.stop()
        except asyncio.CancelledError:
            process.stop()
            await asyncio.wait({waiting}, timeout=_END_S)
            raise
        finally:
            process.kill()
        await self._show_progress(batch_id, work)
        if failure is not None:
            self._fail(batch_id, *failure)
            return None
        return waiting.result()

    async def _problem(self, stored: StoredBatch, work: Path) -> tuple[str, str] | None:
        """Return the code and the message of why a run must not go on; None if it may."""
        if stored.key_id and await self._creator(stored) is None:
            return "invalid_api_key", "the API key that created it is not valid any more"
        size = size_of(work / ".output.jsonl.partial") + size_of(work / "output.jsonl")
        if size > MAX_RESULT_BYTES:
            return "too_many_results", f"its results have more than {MAX_RESULT_BYTES} bytes"
        return None

    async def _creator(self, stored: StoredBatch) -> Credential | None:
        """Return the key that created a batch, if it is valid."""
        key = await self.keys.store.credential(stored.key_id) if stored.key_id else None
        return key if key is not None and key.is_valid(self.clock.now()) else None

    async def _revoke_keys(self, actor: str) -> None:
        """Revoke the temporary keys of a batch, or of all."""
        now = self.clock.now()
        for key in await self.keys.all():
            if key.created_by.startswith(actor) and key.is_valid(now):
                await self.keys.revoke(key, actor=key.created_by)

    async def _show_progress(self, batch_id: str, work: Path) -> None:
        with contextlib.suppress(OSError, *UNDECODABLE):
            content = await asyncio.to_thread((work / "progress.json").read_bytes)
            self.store.show(batch_id, msgspec.json.decode(content, type=RequestCounts))

    def _postpone(self, batch_id: str, attempt: Attempt) -> None:
        stored = self.store.batches[batch_id]
        failures = stored.failures + 1
        _LOG.warning("a batch failed", extra={"batch": batch_id, "error": attempt.message})
        if attempt.final or failures >= MAX_FAILURES:
            self._fail(batch_id, "server_error", attempt.message)
            return
        next_try_at = self.clock.now() + AFTER_FAILURE.delay_s(failures)
        self.store.save(msgspec.structs.replace(stored, failures=failures, next_try_at=next_try_at))

    def _fail(self, batch_id: str, code: str, message: str) -> None:
        problem = {"code": code, "message": message[:1000], "line": None, "param": None}
        errors = {"object": "list", "data": [problem]}
        self.store.change(batch_id, status="failed", failed_at=self._now(), errors=errors)
        shutil.rmtree(self.store.work(self.store.batches[batch_id]), ignore_errors=True)

    def _finish(self, batch_id: str) -> None:
        """Make the results files, and store the final status; repeatable after a kill."""
        stored = self.store.batches[batch_id]
        batch, work = stored.batch, self.store.work(stored)
        now = self._now()
        status = "expired" if now >= batch.expires_at else "completed"
        status = "cancelled" if batch.status == "cancelling" else status
        changes: dict[str, Any] = {"status": status, f"{status}_at": now}
        for field_name, name, suffix in (
            ("output_file_id", "output.jsonl", "o"),
            ("error_file_id", "errors.jsonl", "e"),
        ):
            file_id = f"file-{batch_id.removeprefix('batch_')}{suffix}"
            record = self.store.find(stored.owner, file_id)
            if record is None and size_of(work / name):
                filename = f"{batch_id}_{name}"
                record = self.store.keep(
                    stored.owner, file_id, work / name, filename=filename, purpose=RESULTS_PURPOSE
                )
            changes[field_name] = None if record is None else record.id
        self.store.change(batch_id, **changes)
        shutil.rmtree(work, ignore_errors=True)

    def _now(self) -> int:
        return int(self.clock.now())


def _count(path: Path) -> int:
    """Return the number of requests in a file, up to one more than are allowed."""
    with path.open("rb") as file:
        return sum(1 for _ in islice(read_lines(file), MAX_REQUESTS + 1))
