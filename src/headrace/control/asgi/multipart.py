"""Multipart form with a file, parsed while it arrives."""

from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import PurePosixPath, PureWindowsPath
from typing import Final

from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header

from headrace.core import InvalidArgumentError

_MAX_FIELDS: Final = 16
_MOST_FIELD_BYTES: Final = 4096


@dataclass(slots=True)
class MultipartBody:
    """Body of a form with one file, which is never held as a whole.

    Args:
        content_type: The request's `content-type`.
        chunks: The request's body.
        refusal: Returns the error for a body that is no such form.
    """

    content_type: str
    chunks: AsyncIterator[bytes]
    refusal: Callable[[str], Exception] = InvalidArgumentError
    fields: dict[str, str] = field(default_factory=dict)
    """Fields that were read so far."""
    _parser: MultipartParser = field(init=False)
    _file: deque[bytes] = field(default_factory=deque)
    _filename: str | None = None
    _has_ended: bool = False
    _header: bytearray = field(default_factory=bytearray)
    _value: bytearray = field(default_factory=bytearray)
    _name: str = ""
    _data: bytearray = field(default_factory=bytearray)
    _is_file: bool = False

    def __post_init__(self) -> None:
        kind, options = parse_options_header(self.content_type)
        boundary = options.get(b"boundary", b"")
        if kind != b"multipart/form-data" or not boundary:
            raise self.refusal("the form was not sent as multipart/form-data")
        try:
            # The parser bounds headers: 8 of 4 KiB for each part.
            self._parser = MultipartParser(
                boundary,
                {
                    "on_part_begin": self._begin,
                    "on_header_field": lambda data, a, b: self._header.extend(data[a:b]),
                    "on_header_value": lambda data, a, b: self._value.extend(data[a:b]),
                    "on_header_end": self._end_header,
                    "on_part_data": self._add_data,
                    "on_part_end": self._end_part,
                },
            )
        except FormParserError as error:
            raise self.refusal(f"malformed form: {error}") from None

    async def file_name(self) -> str:
        """Read up to the file's content; return the file's name, empty without a file."""
        while self._filename is None and await self._read():
            pass
        # Some browsers send the path.
        return PureWindowsPath(PurePosixPath(self._filename or "").name).name

    async def file_chunks(self) -> AsyncIterator[bytes]:
        """Yield the file's content; read the fields behind it at the end.

        Raises:
            Exception: The `refusal`: the body ends in the file.
        """
        while True:
            while self._file:
                yield self._file.popleft()
            if not await self._read():
                break
        if not self._has_ended:
            raise self.refusal("the upload broke off")

    async def _read(self) -> bool:
        """Parse the next part of the body; return whether there was one."""
        async for chunk in self.chunks:
            if chunk:
                try:
                    self._parser.write(chunk)
                except FormParserError as error:
                    raise self.refusal(f"malformed form: {error}") from None
                return True
        return False

    def _begin(self) -> None:
        self._name = ""
        self._data.clear()

    def _end_header(self) -> None:
        if self._header.lower() == b"content-disposition":
            _, options = parse_options_header(bytes(self._value))
            self._name = options.get(b"name", b"").decode("utf-8", "replace")
            self._is_file = b"filename" in options and self._filename is None
            if self._is_file:
                self._filename = options[b"filename"].decode("utf-8", "replace")
        self._header.clear()
        self._value.clear()

    def _add_data(self, data: bytes, start: int, end: int) -> None:
        if self._is_file:
            self._file.append(data[start:end])
            return
        self._data += data[start:end]
        if len(self._data) > _MOST_FIELD_BYTES:
            msg = f"a field of the form has more than {_MOST_FIELD_BYTES} bytes"
            raise self.refusal(msg)

    def _end_part(self) -> None:
        if self._is_file:
            self._has_ended, self._is_file = True, False
        elif len(self.fields) < _MAX_FIELDS:
            self.fields[self._name] = self._data.decode("utf-8", "replace")
