"""Forms with a file have the same fields in whatever pieces they arrive, and are bounded."""

from collections.abc import AsyncIterator

import pytest

from headrace.control.asgi.multipart import MultipartBody
from headrace.core import InvalidArgumentError

pytestmark = pytest.mark.anyio
KIND = "multipart/form-data; boundary=b"
FILE = b'Content-Disposition: form-data; name="file"; filename="C:\\\\a\\\\m.onnx"\r\n'
FORM = (
    b'--b\r\ncontent-disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
    b"--b\r\ncontent-type: text/plain\r\n" + FILE + b"\r\none\r\n--two\r\n"
    b'--b\r\nContent-Disposition: form-data; name="last"\r\n\r\n1\r\n--b--\r\n'
)


async def read(
    content: bytes, *, step: int = 1 << 20, kind: str = KIND
) -> tuple[str, bytes, dict[str, str]]:
    """The name and the content of the file, and all fields."""

    async def chunks() -> AsyncIterator[bytes]:
        for start in range(0, len(content), step):
            yield content[start : start + step]

    form = MultipartBody(content_type=kind, chunks=chunks())
    name = await form.file_name()
    data = b"".join([chunk async for chunk in form.file_chunks()])
    return name, data, form.fields


@pytest.mark.parametrize("step", [1, 2, 3, 7, 1000])
async def test_a_form_arrives_in_any_pieces(step: int) -> None:
    fields = {"purpose": "batch", "last": "1"}
    assert await read(FORM, step=step) == ("m.onnx", b"one\r\n--two", fields)


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (FORM, "application/json"),
        (FORM, "multipart/form-data"),
        (FORM, f"multipart/form-data; boundary={'b' * 1000}"),
        (b"no form", KIND),
        (b"--b\r\nx: " + b"y" * 9000, KIND),
        (b"--b\r\n" + b"x" * 9000, KIND),
        (b"--b\r\n" + b"x: y\r\n" * 100, KIND),
        (FORM.replace(b"batch", b"x" * 9000), KIND),
        (FORM[: FORM.index(b"two")], KIND),
    ],
)
async def test_what_is_no_bounded_form_is_refused(content: bytes, kind: str) -> None:
    with pytest.raises(InvalidArgumentError):
        await read(content, kind=kind)


async def test_fields_are_bounded_and_a_form_may_have_no_file() -> None:
    field = b'--b\r\ncontent-disposition: form-data; name="%d"\r\n\r\n1\r\n'
    form = MultipartBody(content_type=KIND, chunks=_once(b"".join(field % i for i in range(99))))

    assert await form.file_name() == ""
    assert len(form.fields) == 16


async def _once(content: bytes) -> AsyncIterator[bytes]:
    yield content
