"""OpenAI's batch format: request lines, result lines, and the journal of results."""

import hashlib
import re
from array import array
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from enum import StrEnum
from pathlib import Path
from typing import IO, Annotated, Final, Literal

import msgspec

from headrace.client.http_transport import HttpReply
from headrace.core import FailedPreconditionError
from headrace.core.error_kind import UNDECODABLE
from headrace.core.files import replacing_output

PATHS: Final = frozenset(
    {
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/embeddings",
        "/v1/responses",
        "/v1/rerank",
        "/v2/rerank",
    }
)
"""Paths that a line may call."""
MAX_LINE_BYTES: Final = 16 << 20
MAX_ANSWER_BYTES: Final = 64 << 20
MAX_CUSTOM_ID: Final = 512
"""Characters of a `custom_id`."""
_BLOCK: Final = 1 << 20
_BOM: Final = b"\xef\xbb\xbf"
_FIRST_ERROR: Final = 400


class ResultCode(StrEnum):
    """`error.code` of a line without an answer, as in OpenAI's API."""

    INVALID_JSON_LINE = "invalid_json_line"
    INVALID_REQUEST = "invalid_request"
    DUPLICATE_CUSTOM_ID = "duplicate_custom_id"
    URL_MISMATCH = "url_mismatch"
    REQUEST_TIMEOUT = "request_timeout"
    INVALID_RESPONSE = "invalid_response"
    """The server's answer is not JSON or too large; OpenAI has no code for it."""
    BATCH_EXPIRED = "batch_expired"
    BATCH_CANCELLED = "batch_cancelled"


class RequestLine(msgspec.Struct, frozen=True, kw_only=True):
    """Request of an input line; `body` is as it was written."""

    custom_id: Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_CUSTOM_ID)]
    method: Literal["POST"]
    url: str
    body: msgspec.Raw


class LineAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """Answer of the server to a line."""

    status_code: int
    request_id: str
    body: msgspec.Raw


class LineError(msgspec.Struct, frozen=True, kw_only=True):
    """Reason why a line has no answer."""

    code: str
    message: str


class ResultLine(msgspec.Struct, frozen=True, kw_only=True):
    """Result of an input line; its `id` ends with the line's number, from 1."""

    id: str = ""
    custom_id: str | None
    response: LineAnswer | None = None
    error: LineError | None = None

    @classmethod
    def without_answer(cls, custom_id: str | None, code: ResultCode, message: str) -> "ResultLine":
        """Return the result of a line without an answer; the journal adds its id."""
        return cls(custom_id=custom_id, error=LineError(code=code, message=message))

    @property
    def is_failed(self) -> bool:
        """Whether the line has no answer, or one with the status of an error."""
        return self.response is None or self.response.status_code >= _FIRST_ERROR


class _Streamed(msgspec.Struct):
    stream: bool | None = None


class _CustomId(msgspec.Struct):
    custom_id: object = None


def _parse(line: bytes, path: str, digests: set[bytes]) -> RequestLine | ResultLine:
    """Return the request of an input line, or why it is refused.

    Args:
        digests: Digests of the ids of earlier lines; gets that of a request.
    """
    if len(line) > MAX_LINE_BYTES and not line.endswith(b"\n"):
        message = f"the line is longer than {MAX_LINE_BYTES} bytes"
        return ResultLine.without_answer(None, ResultCode.INVALID_REQUEST, message)
    try:
        line.decode()  # msgspec does not check strings that it skips
        value = msgspec.json.decode(line, type=_CustomId).custom_id
    except UNDECODABLE as error:
        message = f"the line is not a JSON object: {error}"
        return ResultLine.without_answer(None, ResultCode.INVALID_JSON_LINE, message)
    custom_id = value[:MAX_CUSTOM_ID] if isinstance(value, str) else None
    code = ResultCode.INVALID_REQUEST
    try:
        request = msgspec.json.decode(line, type=RequestLine)
        is_stream = msgspec.json.decode(request.body, type=_Streamed).stream
    except UNDECODABLE as error:
        message = f"the line is not a request with custom_id, method, url and body: {error}"
        return ResultLine.without_answer(custom_id, code, message)
    digest = hashlib.blake2b(request.custom_id.encode(), digest_size=16).digest()
    if is_stream:
        message = "stream is not possible in a batch; remove it from the body"
    elif request.url not in PATHS or request.url != (path or request.url):
        code, allowed = ResultCode.URL_MISMATCH, path or ", ".join(sorted(PATHS))
        message = f"url {request.url[:80]!r} is not allowed; use {allowed}"
    elif digest in digests:
        code = ResultCode.DUPLICATE_CUSTOM_ID
        message = "an earlier line has the same custom_id"
    else:
        digests.add(digest)
        return request
    return ResultLine.without_answer(custom_id, code, message)


def read_lines(file: IO[bytes]) -> Iterator[tuple[int, bytes]]:
    """Yield each line's number, from 1, and its first `MAX_LINE_BYTES + 1` bytes.

    Lines of white space only are skipped.
    """
    number = 0
    while line := file.readline(MAX_LINE_BYTES + 1):
        number += 1
        rest = line
        while rest and not rest.endswith(b"\n"):
            rest = file.readline(_BLOCK)
        line = line.removeprefix(_BOM) if number == 1 else line
        if line.strip():
            yield number, line


def read_requests(
    file: IO[bytes], *, path: str = ""
) -> Iterator[tuple[int, RequestLine | ResultLine]]:
    """Yield each line's number and its request, or why it is refused.

    Args:
        path: The only path that lines may call; empty for any of `PATHS`.
    """
    digests: set[bytes] = set()
    for number, line in read_lines(file):
        yield number, _parse(line, path, digests)


def read_reply(custom_id: str, reply: HttpReply) -> ResultLine:
    """Return the result of a line from the server's reply.

    The answer keeps the server's bytes, so that numbers have the same digits.
    """
    body = reply.body
    try:
        body.decode()  # as in `parse_line`
        msgspec.json.decode(body, type=msgspec.Raw)
    except UNDECODABLE:
        message = f"the answer with status {reply.status} is not JSON"
        return ResultLine.without_answer(custom_id, ResultCode.INVALID_RESPONSE, message)
    # Valid JSON has line ends between values only.
    flat = body.strip().replace(b"\r", b" ").replace(b"\n", b" ")
    answer = LineAnswer(
        status_code=reply.status,
        request_id=reply.headers.get("x-request-id", ""),
        body=msgspec.Raw(flat),
    )
    return ResultLine(custom_id=custom_id, response=answer)


def _decoded(line: bytes) -> ResultLine | None:
    """Return the result in a line of a journal or an output; None if it has none."""
    try:
        return msgspec.json.decode(line, type=ResultLine)
    except UNDECODABLE:
        return None


class RequestCounts(msgspec.Struct, kw_only=True):
    """Progress of a batch in lines, as in OpenAI's API."""

    total: int = 0
    completed: int = 0
    """Lines with an answer without error."""
    failed: int = 0


class BatchCounts(RequestCounts, kw_only=True):
    """Progress of a batch and what a run did for it."""

    resumed: int = 0
    """Lines whose result an earlier run wrote."""
    retries: int = 0


class BatchJournal:
    """Results of a batch by line, appended to a file in the order in which they arrive.

    Args:
        path: The file.
        digest: Digest of the input, which the ids of its results contain.
        last: Number of the input's last line.
        total: Requests of the input.
    """

    def __init__(self, path: Path, digest: str, *, last: int, total: int) -> None:
        self._path = path
        self._prefix = f"batch_req_{digest}_"
        self._id = re.compile(rf"{self._prefix}([0-9]{{8,15}})")
        self._offsets = array("q", bytes(8 * (last + 1)))
        """One more than the offset of each line's result; negative if it failed, 0 without one."""
        self.counts = BatchCounts(total=total)
        self._end = 0
        self._file: IO[bytes] | None = None

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Open the file and read the results in it. A truncated last line is removed.

        Raises:
            FailedPreconditionError: The file has results of another input.
        """
        with self._path.open("r+b" if self._path.exists() else "w+b") as file:
            self._file = file
            for line in file:
                if not line.endswith(b"\n"):
                    break
                # A line that is no result is of a loss of power, which can leave zeros.
                if not self.count(line) and _decoded(line) is not None:
                    msg = f"{self._path} has results of another input, or this input changed"
                    remedy = "remove it to start from the beginning, or choose another output"
                    raise FailedPreconditionError(f"{msg}; {remedy}")
                self._end += len(line)
            file.truncate(self._end)
            file.seek(self._end)
            self.counts.resumed = self.counts.failed + self.counts.completed
            yield
        self._file = None

    def count(self, line: bytes) -> bool:
        """Count the result in a line; return False if the line has none of this input."""
        result = _decoded(line)
        match = None if result is None else self._id.fullmatch(result.id)
        number = 0 if match is None else int(match[1])
        if result is None or not 1 <= number < len(self._offsets):
            return False
        self._set(number, result)
        return True

    def _set(self, number: int, result: ResultLine) -> None:
        """Note the result of a line, which begins at the end of what was read or written."""
        self.counts.failed += result.is_failed
        self.counts.completed += not result.is_failed
        self._offsets[number] = -(self._end + 1) if result.is_failed else self._end + 1

    def has(self, number: int) -> bool:
        """Whether the line has a result."""
        return self._offsets[number] != 0

    def append(self, number: int, result: ResultLine) -> None:
        """Add a line's result with its id; after a kill it is there whole or not at all."""
        assert self._file is not None
        result = msgspec.structs.replace(result, id=f"{self._prefix}{number:08d}")
        line = msgspec.json.encode(result) + b"\n"
        self._file.write(line)
        self._file.flush()
        self._set(number, result)
        self._end += len(line)

    def write(self, output: Path, error_file: Path | None) -> None:
        """Write the results in input order; `error_file` gets those that failed.

        The output is written last, so that it exists only beside its error file.

        Raises:
            FailedPreconditionError: A file cannot be written.
        """
        assert self._file is not None
        with ExitStack() as stack:
            target = stack.enter_context(replacing_output(output))
            errors = target
            if error_file is not None:
                errors = stack.enter_context(replacing_output(error_file))
            for offset in self._offsets:
                if offset:
                    self._file.seek(abs(offset) - 1)
                    (errors if offset < 0 else target).write(self._file.readline())
