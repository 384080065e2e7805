"""Upload of a model file: the form, and its streamed multipart body."""

from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import PurePosixPath, PureWindowsPath
from typing import Final
from urllib.parse import quote

from python_multipart import MultipartParser
from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import parse_options_header

from headrace.console.forms import FormInput, confirmation
from headrace.console.view import PageRequest, PageView, RefusedError
from headrace.control.auth.roles import ObjectKind, Role

_BAD_REQUEST: Final = 400
_FORBIDDEN: Final = 403
_MAX_FIELDS: Final = 16
_MOST_FIELD_BYTES: Final = 4096
_MOST_HEADER_BYTES: Final = 4096
_ARCHIVES: Final = (".tar", ".tar.gz", ".tgz")


async def upload(request: PageRequest) -> PageView:
    """Return the form."""
    if not may_upload(request):
        message = f"{request.caller.name} needs operator for this page"
        raise RefusedError.of(_FORBIDDEN, message)
    form = request.form
    return confirmation(
        request,
        title="Upload a model",
        consequence="Stores the file as the next version of the model. The same content is the "
        "same version. The next page serves it.",
        label="Upload",
        crumbs=[("/models", "Models")],
        section="models",
        encoding="multipart/form-data",
        inputs=[
            FormInput(
                name="name",
                label="Name of the model",
                value=form.get("name", ""),
                is_required=True,
            ),
            FormInput(
                name="allow_code",
                label="Allow the model to run its author's code",
                kind="checkbox",
                value=form.get("allow_code", ""),
                help="Formats such as Python files and pickles run code when they are loaded, in a "
                "sandbox.",
            ),
            # The last input: the file is passed on while it arrives.
            FormInput(
                name="file",
                label="File",
                kind="file",
                help="A model file, or a directory as a `.tar` archive.",
                is_required=True,
            ),
        ],
    )


def may_upload(request: PageRequest) -> bool:
    """Whether the visitor may push some model; the API checks the model's name as well."""
    grants = request.caller.grants
    return any(
        grant.includes(Role.OPERATOR)
        and (grant.name is None or grant.resource in {ObjectKind.MODEL, ObjectKind.ENDPOINT})
        for grant in grants
    )


async def send_upload(request: PageRequest, body: "MultipartBody") -> str:
    """Stream the file to the API; return the page that serves the version.

    Raises:
        RefusedError: The form is incomplete, or the API refuses the model.
    """
    filename = await body.file_name()
    form = body.fields
    name = form.get("name", "").strip()
    if not filename or not name:
        raise RefusedError.of(_BAD_REQUEST, "choose a file, and name the model")
    is_archive = filename.endswith(_ARCHIVES)
    parameters = {
        "filename": name if is_archive else filename,
        "format": "tar" if is_archive else "file",
        "allow_code": "true" if form.get("allow_code") else "false",
    }
    answer = await request.visitor.upload(
        f"/api/v1/models/{quote(name, safe='')}",
        parameters,
        body.file_chunks(),
        csrf_token=form.get("csrf_token", ""),
    )
    stored = answer.json()
    return f"/models/{stored['name']}/{stored['version']}/serve"


@dataclass(slots=True)
class MultipartBody:
    """Body of a form with one file, which comes last and is never held as a whole.

    Args:
        content_type: The request's `content-type`.
        chunks: The request's body.
    """

    content_type: str
    chunks: AsyncIterator[bytes]
    fields: dict[str, str] = field(default_factory=dict)
    """Fields before the file."""
    _parser: MultipartParser = field(init=False)
    _file: deque[bytes] = field(default_factory=deque)
    _filename: str | None = None
    _has_ended: bool = False
    _header: bytearray = field(default_factory=bytearray)
    _value: bytearray = field(default_factory=bytearray)
    _headers: dict[str, bytes] = field(default_factory=dict)
    _name: str = ""
    _data: bytearray = field(default_factory=bytearray)
    _is_file: bool = False

    def __post_init__(self) -> None:
        kind, options = parse_options_header(self.content_type)
        boundary = options.get(b"boundary", b"")
        if kind != b"multipart/form-data" or not boundary:
            raise RefusedError.of(_BAD_REQUEST, "the form was not sent as multipart/form-data")
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._begin,
                "on_header_field": self._add_header_name,
                "on_header_value": self._add_header_value,
                "on_header_end": self._end_header,
                "on_headers_finished": self._end_headers,
                "on_part_data": self._add_data,
                "on_part_end": self._end_part,
            },
        )

    async def file_name(self) -> str:
        """Read up to the file's content; return the file's name, empty without a file."""
        while self._filename is None and await self._read():
            pass
        # Some browsers send the path.
        return PureWindowsPath(PurePosixPath(self._filename or "").name).name

    async def file_chunks(self) -> AsyncIterator[bytes]:
        """Yield the file's content.

        Raises:
            RefusedError: The body ends in the file.
        """
        while True:
            while self._file:
                yield self._file.popleft()
            if self._has_ended:
                return
            if not await self._read():
                raise RefusedError.of(_BAD_REQUEST, "the upload broke off")

    async def _read(self) -> bool:
        """Parse the next part of the body; return whether there was one."""
        async for chunk in self.chunks:
            if chunk:
                try:
                    self._parser.write(chunk)
                except MultipartParseError as error:
                    raise RefusedError.of(_BAD_REQUEST, f"malformed form: {error}") from None
                return True
        return False

    def _begin(self) -> None:
        self._headers.clear()
        self._data.clear()

    def _add_header_name(self, data: bytes, start: int, end: int) -> None:
        self._add(self._header, data[start:end], _MOST_HEADER_BYTES)

    def _add_header_value(self, data: bytes, start: int, end: int) -> None:
        self._add(self._value, data[start:end], _MOST_HEADER_BYTES)

    def _end_header(self) -> None:
        self._headers[self._header.decode("latin-1").lower()] = bytes(self._value)
        self._header.clear()
        self._value.clear()

    def _end_headers(self) -> None:
        _, options = parse_options_header(self._headers.get("content-disposition", b""))
        self._name = options.get(b"name", b"").decode("utf-8", "replace")
        self._is_file = b"filename" in options and self._filename is None
        if self._is_file:
            self._filename = options[b"filename"].decode("utf-8", "replace")

    def _add_data(self, data: bytes, start: int, end: int) -> None:
        if self._is_file:
            self._file.append(data[start:end])
        elif self._filename is None:
            self._add(self._data, data[start:end], _MOST_FIELD_BYTES)

    def _end_part(self) -> None:
        if self._is_file:
            self._has_ended, self._is_file = True, False
        elif self._filename is None and len(self.fields) < _MAX_FIELDS:
            self.fields[self._name] = self._data.decode("utf-8", "replace")

    @staticmethod
    def _add(buffer: bytearray, data: bytes, most: int) -> None:
        buffer += data
        if len(buffer) > most:
            raise RefusedError.of(_BAD_REQUEST, f"a field of the form has more than {most} bytes")
