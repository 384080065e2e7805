"""Run of a batch of OpenAI requests: one request per input line, one result per output line.

A run appends each result to a journal beside the output, `.OUTPUT.partial`. When every line has a
result, the output is written from the journal in input order, and replaces nothing before it is
complete. After a kill, the same run continues with the lines that the journal does not have.
"""

import asyncio
import hashlib
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from io import BufferedReader
from pathlib import Path
from typing import IO, Final

from headrace.client import ProtocolError
from headrace.client.conversation import Attempts, ProtocolExchange
from headrace.client.http_transport import HttpMessage, HttpReply
from headrace.client.wires import AsyncTransport, run_async
from headrace.core import (
    Clock,
    DeadlineExceededError,
    FailedPreconditionError,
    HeadraceError,
    InvalidArgumentError,
)
from headrace.core.files import exclusive, size_of
from headrace.jobs.openai_lines import (
    MAX_ANSWER_BYTES,
    BatchCounts,
    BatchJournal,
    RequestLine,
    ResultCode,
    ResultLine,
    read_lines,
    read_reply,
    read_requests,
)
from headrace.protocol import error_from_http

_RETRIED: Final = frozenset({429, 503})
_UNAUTHENTICATED: Final = 401
_DIGEST_CHARS: Final = 16
_PROGRESS_INTERVAL_S: Final = 0.5


@dataclass(slots=True, kw_only=True)
class OpenaiBatch:
    """Run of a batch."""

    input: Path
    output: Path
    error_file: Path | None = None
    """File for the failed lines; None for the output."""
    path: str = ""
    """The only path that lines may call; empty for all of `PATHS`."""
    concurrency: int = 32
    """Requests at once."""
    expires_at: float | None = None
    """Time in seconds since 1970 after which lines without a result get `batch_expired`."""
    is_cancelled: bool = False
    """Whether no line is sent: lines without a result get `batch_cancelled`."""
    transport: AsyncTransport
    """Transport to the gateway, with the credentials of the caller."""
    clock: Clock
    attempts: Attempts
    on_progress: Callable[[BatchCounts], None] = field(default=lambda _: None)
    counts: BatchCounts = field(init=False, default_factory=BatchCounts)
    _shown_at: float = field(init=False, default=0.0)
    _is_authenticated: bool = field(init=False, default=False)

    async def run(self) -> BatchCounts:
        """Send all lines without a result, and write the output. A complete batch is left alone.

        Raises:
            FailedPreconditionError: Another run writes this output, it is that of another input, or
                a file cannot be read or written.
            UnauthenticatedError: The first answer says that the credentials are not valid.
            UnavailableError: The gateway was not reachable for the time of `attempts`.
        """
        if self.output == self.error_file:
            raise InvalidArgumentError("the error file must differ from the output")
        if not self.output.absolute().parent.is_dir():
            msg = f"cannot write {self.output}: its directory does not exist; create it"
            raise FailedPreconditionError(msg)
        path = self.output.with_name(f".{self.output.name}.partial")
        msg = f"another run writes {self.output}; wait for it, or choose another output"
        busy = FailedPreconditionError(msg)
        try:
            with self.input.open("rb") as file, exclusive(path, timeout_s=0.0, busy=busy):
                try:
                    await self._run(file, path)
                    path.unlink()
                finally:
                    if size_of(path) == 0:
                        path.unlink(missing_ok=True)
        except OSError as error:
            msg = f"{error.filename or self.output}: {error.strerror or error}"
            raise FailedPreconditionError(msg) from error
        self.on_progress(self.counts)
        return self.counts

    async def _run(self, file: BufferedReader, path: Path) -> None:
        before = os.fstat(file.fileno())
        digest = hashlib.file_digest(file, "sha256").hexdigest()[:_DIGEST_CHARS]
        file.seek(0)
        last = total = 0
        for last, _ in read_lines(file):  # noqa: B007  # the number of the last line
            total += 1
        file.seek(0)
        journal = BatchJournal(path, digest, last=last, total=total)
        self.counts = journal.counts
        if self._has_output(journal):
            return
        journal = BatchJournal(path, digest, last=last, total=total)
        self.counts = journal.counts
        with journal.opened():
            await self._answer_all(file, journal)
            after = os.fstat(file.fileno())
            if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
                msg = f"{self.input} changed during the run; remove {path}"
                raise FailedPreconditionError(f"{msg}, and run the batch again")
            journal.write(self.output, self.error_file)

    def _has_output(self, journal: BatchJournal) -> bool:
        """Return whether an earlier run wrote the output; count its results in `journal`."""
        paths = (self.output, self.error_file)
        for path in (path for path in paths if path is not None and path.exists()):
            with path.open("rb") as file:
                if not all(map(journal.count, file)):
                    msg = f"{path} exists and is not the output of {self.input}"
                    raise FailedPreconditionError(f"{msg}; choose another name, or remove it")
        if not self.output.exists():  # killed between its error file and the output
            return False
        counts = journal.counts
        counts.resumed = counts.completed + counts.failed
        if counts.resumed != counts.total:
            msg = f"{self.output} has {counts.resumed} results for {counts.total} requests"
            raise FailedPreconditionError(f"{msg}; name its error file, or remove it")
        return True

    async def _answer_all(self, file: IO[bytes], journal: BatchJournal) -> None:
        requests = read_requests(file, path=self.path)

        async def answer_lines() -> None:
            for number, line in requests:
                await asyncio.sleep(0)  # others run, also while lines need no request
                if journal.has(number):
                    continue
                journal.append(number, await self._result(line))
                now = self.clock.monotonic()
                if now >= self._shown_at + _PROGRESS_INTERVAL_S:
                    self._shown_at = now
                    self.on_progress(self.counts)

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(self.concurrency):
                    group.create_task(answer_lines())
        except BaseExceptionGroup as failures:
            raise failures.exceptions[0] from None

    async def _result(self, line: RequestLine | ResultLine) -> ResultLine:
        """Return the result of a line, after as many attempts as it takes."""
        if isinstance(line, ResultLine):
            return line
        expires_at = self.expires_at
        left_s = None if expires_at is None else expires_at - self.clock.now()
        code, message = ResultCode.BATCH_EXPIRED, "the batch expired before the request ended"
        if self.is_cancelled:
            code, message = ResultCode.BATCH_CANCELLED, "the batch was cancelled"
        elif left_s is None or left_s > 0:
            with suppress(TimeoutError):
                async with asyncio.timeout(left_s):
                    return await self._answer(line)
        return ResultLine.without_answer(line.custom_id, code, message)

    async def _answer(self, line: RequestLine) -> ResultLine:
        message = HttpMessage(
            method="POST",
            path=line.url,
            headers={"content-type": "application/json", "accept-encoding": "identity"},
            content=bytes(line.body),
            max_reply_bytes=MAX_ANSWER_BYTES,
        )
        refusal: ResultLine | None = None

        def read(reply: HttpReply) -> ResultLine:
            nonlocal refusal
            result = read_reply(line.custom_id, reply)
            is_refused = reply.status == _UNAUTHENTICATED and not self._is_authenticated
            if reply.status not in _RETRIED and not is_refused:
                self._is_authenticated = True
                return result
            refusal = None if is_refused else result
            raise error_from_http(reply.status, reply.body, reply.headers)

        async def pause(delay_s: float) -> None:
            nonlocal refusal
            refusal = None
            self.counts.retries += 1
            await asyncio.sleep(delay_s)

        conversation = self.attempts.run(ProtocolExchange(message=message, read=read))
        try:
            return await run_async(conversation, self.transport, pause=pause)
        except DeadlineExceededError as error:
            code, text = ResultCode.REQUEST_TIMEOUT, str(error)
        except ProtocolError as error:
            code, text = ResultCode.INVALID_RESPONSE, str(error)
        except HeadraceError:
            if refusal is None:
                raise
            return refusal
        return ResultLine.without_answer(line.custom_id, code, text)
