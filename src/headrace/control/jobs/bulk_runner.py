"""Runner of batches of OpenAI's API: `headrace batch openai` per batch, with the creator's rights.

A run calls the gateway with a temporary API key that has the name, the scopes and the tier of the
key that created the batch, so that limits and the usage of tokens are that caller's. The key is
revoked when the run ends, and the run ends when the creator's key is revoked.
"""

import asyncio
import contextlib
import logging
import os
import shutil
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Final

import msgspec

from headrace.control.base.faults import LOOP, Faults
from headrace.control.base.journal import wait_for
from headrace.control.jobs.bulk import RESULTS_PURPOSE, BulkBatch, BulkStore
from headrace.control.model.credentials import Credential
from headrace.control.reconcile.caller_policy import BATCH_ACTOR, Keys, grants_of
from headrace.core import Clock, HeadraceError, NotFoundError, UnavailableError
from headrace.core.backoff import Backoff
from headrace.core.error_kind import UNDECODABLE
from headrace.core.files import make_private_dir, size_of
from headrace.core.processes import python_module, run
from headrace.jobs.openai_lines import RequestCounts, read_lines

MAX_CONCURRENT: Final = 2
"""Batches that run at once."""
MAX_REQUESTS: Final = 50_000
"""Requests of a batch, as for OpenAI's API."""
MAX_RESULT_BYTES: Final = 2 << 30
"""Bytes of the results of a batch."""
MAX_MEMORY_BYTES: Final = 2 << 30
MAX_FAILURES: Final = 8
AFTER_FAILURE: Final = Backoff(first_s=2.0, limit_s=300.0)
_POLL_S: Final = 1.0
_GRACE_S: Final = 600.0
"""Seconds after the end of a batch's window in which its run writes the results."""
_CONCURRENCY: Final = 16
_LOG: Final = logging.getLogger("headrace.control")


@dataclass(slots=True, kw_only=True)
class BulkRunner:
    """Runs the stored batches of a home, the oldest first, in turn between owners."""

    store: BulkStore
    keys: Keys
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
                    for batch in self._due():
                        self._running[batch.id] = batch.owner
                        group.create_task(self._carry_out(batch.id))
                await wait_for(self._wake, _POLL_S)
                self._wake.clear()

    def wake(self) -> None:
        """Start new batches and end cancelled ones now."""
        self._wake.set()

    def cancel(self, owner: str, batch_id: str) -> BulkBatch:
        """Cancel a batch and return it; results that it has are kept.

        Raises:
            NotFoundError: The owner has no such batch.
        """
        batch = self.store.batch(owner, batch_id)
        if batch.status in {"validating", "in_progress"}:
            batch = self.store.change(batch_id, status="cancelling")
        self.wake()
        return batch

    def _due(self) -> list[BulkBatch]:
        """Return the batches to start now."""
        now = self.clock.now()
        waiting = [
            batch
            for batch in self.store.batches.values()
            if batch.is_active
            and batch.id not in self._running
            and (batch.next_try_at <= now or batch.status == "cancelling")
        ]
        owners = list(self._running.values())
        due: list[BulkBatch] = []
        while waiting and len(owners) < MAX_CONCURRENT:
            first = min(waiting, key=lambda it: (owners.count(it.owner), it.created_at))
            waiting.remove(first)
            owners.append(first.owner)
            due.append(first)
        return due

    async def _carry_out(self, batch_id: str) -> None:
        """Carry a batch on until it is over, or a run fails."""
        try:
            with self.faults.contain("batch", batch_id):
                while (batch := self.store.batches[batch_id]).is_active:
                    if not await self._advance(batch):
                        return
                shutil.rmtree(self.store.work(batch), ignore_errors=True)
        finally:
            self._running.pop(batch_id, None)
            self._wake.set()

    async def _advance(self, batch: BulkBatch) -> bool:
        """Lead a batch to its next status; return False if its run failed and is tried later."""
        match batch.status:
            case "validating":
                path = self.store.content(batch.owner, batch.input_file_id)
                total = await asyncio.to_thread(_count, path)
                if not 1 <= total <= MAX_REQUESTS:
                    message = f"the input file has {total} requests, and not 1 to {MAX_REQUESTS}"
                    self._fail(batch.id, "too_many_tasks" if total else "empty_file", message)
                elif self._is_still(batch):
                    counts = RequestCounts(total=total)
                    self.store.change(batch.id, status="in_progress", request_counts=counts)
            case "finalizing":
                is_expired = self.clock.now() >= batch.expires_at
                status = "expired" if is_expired else "completed"
                self._finish(batch, status if batch.cancelling_at is None else "cancelled")
            case _:  # in_progress, cancelling
                try:
                    await self._run(batch)
                except HeadraceError as error:
                    _LOG.warning("a batch failed", extra={"batch": batch.id, "error": str(error)})
                    failures = batch.failures + 1
                    if failures < MAX_FAILURES:
                        next_try_at = self.clock.now() + AFTER_FAILURE.delay_s(failures)
                        self.store.change(batch.id, failures=failures, next_try_at=next_try_at)
                        return False
                    self._fail(batch.id, "server_error", str(error))
                else:
                    if self._is_still(batch):
                        self.store.change(batch.id, status="finalizing")
        return True

    def _is_still(self, batch: BulkBatch) -> bool:
        """Whether a batch was neither cancelled nor ended meanwhile."""
        return self.store.batches[batch.id].status == batch.status

    async def _run(self, batch: BulkBatch) -> None:
        """Run the command until it succeeds, or the batch has another status.

        Raises:
            HeadraceError: The key or the process cannot be created, or the command failed.
        """
        work = make_private_dir(self.store.work(batch))
        arguments = [
            *("batch", "openai"),
            str(self.store.content(batch.owner, batch.input_file_id)),
            f"--output={work / 'output.jsonl'}",
            f"--error-file={work / 'errors.jsonl'}",
            f"--path={batch.endpoint}",
            f"--expires-at={batch.expires_at}",
            f"--concurrency={_CONCURRENCY}",
            f"--home={self.home}",
            "--supervised",
        ]
        left_s = max(batch.expires_at - self.clock.now(), 0.0) + _GRACE_S
        key, actor = "", f"{BATCH_ACTOR}{batch.id}"
        try:
            if batch.status == "cancelling":
                arguments.append("--cancelled")
            elif batch.key_id:
                creator = await self._creator(batch)
                if creator is None:
                    return
                created = await self.keys.create(
                    creator.owner, grants_of(creator), expires_in_s=left_s, actor=actor
                )
                key = created.text
            running = asyncio.create_task(
                run(
                    python_module("headrace.cli", *arguments),
                    timeout_s=left_s,
                    memory_bytes=MAX_MEMORY_BYTES,
                    environment={**os.environ, "HEADRACE_API_KEY": key},
                    on_line=lambda line: self._show(batch.id, line),
                )
            )
            try:
                while not (await asyncio.wait({running}, timeout=_POLL_S))[0]:
                    if batch.key_id:
                        await self._creator(batch)
                    if size_of(work / ".output.jsonl.partial") > MAX_RESULT_BYTES:
                        message = f"its results have more than {MAX_RESULT_BYTES} bytes"
                        self._fail(batch.id, "too_many_results", message)
                    if not self._is_still(batch):
                        return
            finally:
                running.cancel()
                await asyncio.wait({running})
        finally:
            with contextlib.suppress(HeadraceError):
                await self._revoke_keys(actor)
        ended = running.result()
        if ended.exceeded is not None:
            limits = f"{left_s:.0f} s, or {MAX_MEMORY_BYTES} bytes of memory"
            raise UnavailableError(f"its run took more {ended.exceeded} than is allowed: {limits}")
        if ended.status:
            reason = ended.error.rpartition("\n")[2].removeprefix("headrace: ")
            raise UnavailableError(reason or f"its run ended with status {ended.status}")

    def _show(self, batch_id: str, line: bytes) -> bool:
        with contextlib.suppress(*UNDECODABLE):
            counts = msgspec.json.decode(line, type=RequestCounts)
            self.store.change(batch_id, is_stored=False, request_counts=counts)
        return False

    async def _creator(self, batch: BulkBatch) -> Credential | None:
        """Return the key that created a batch; if it is not valid, None, and the batch fails."""
        key = await self.keys.store.credential(batch.key_id)
        if key is not None and key.is_valid(self.clock.now()):
            return key
        self._fail(batch.id, "invalid_api_key", "the API key that created it is not valid")
        return None

    async def _revoke_keys(self, actor: str) -> None:
        """Revoke the temporary keys of a batch, or of all."""
        now = self.clock.now()
        for key in await self.keys.all():
            if key.created_by.startswith(actor) and key.is_valid(now):
                await self.keys.revoke(key, actor=key.created_by)

    def _fail(self, batch_id: str, code: str, message: str) -> None:
        problem = {"code": code, "message": message[:1000], "line": None, "param": None}
        self.store.change(batch_id, status="failed", errors={"object": "list", "data": [problem]})

    def _finish(self, batch: BulkBatch, status: str) -> None:
        """Make the results files, and store the final status; repeatable after a kill."""
        file_ids: dict[str, Any] = {}
        for field_name, name in (("output_file_id", "output"), ("error_file_id", "errors")):
            path = self.store.work(batch) / f"{name}.jsonl"
            file_id = f"file-{batch.id.removeprefix('batch_')}{name[0]}"
            if size_of(path):
                filename = f"{batch.id}_{path.name}"
                self.store.keep(
                    batch.owner, file_id, path, filename=filename, purpose=RESULTS_PURPOSE
                )
            with contextlib.suppress(NotFoundError):
                file_ids[field_name] = self.store.file(batch.owner, file_id).id
        self.store.change(batch.id, status=status, **file_ids)


def _count(path: Path) -> int:
    """Return the number of requests in a file, up to one more than are allowed."""
    with path.open("rb") as file:
        return sum(1 for _ in islice(read_lines(file), MAX_REQUESTS + 1))
