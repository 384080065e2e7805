"""Pages stay new: what changed is sent, once, until the system stops or says no."""

import msgspec
import pytest

from headrace.console.render import Changes, PagePart, stream
from headrace.core import NotFoundError
from headrace.testing.virtual_time import VirtualTimeLoop

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, object]]:
    return "asyncio", {"loop_factory": VirtualTimeLoop}


def test_only_what_changed_is_sent() -> None:
    changes = Changes()
    first = changes.of({"a": "1", "b": "1"})
    second = changes.of({"a": "1", "b": "2"})

    assert first == [PagePart("a", "1"), PagePart("b", "1")]
    assert second == [PagePart("b", "2")]


async def test_a_stream_goes_on_until_everything_stops() -> None:
    looks = iter(["1", "1", "2"])
    is_over = False

    async def look() -> dict[str, str]:
        nonlocal is_over
        text = next(looks, None)
        is_over = text is None
        return {"a": text or "3"}

    with_parts = [part async for part in stream(look, is_stopping=lambda: is_over)]

    assert with_parts[0].startswith(b"retry:")
    assert [_html(part) for part in with_parts[1:]] == ["1", "2", "3"]


async def test_a_quiet_stream_shows_that_it_lives() -> None:
    looks = 0

    async def look() -> dict[str, str]:
        nonlocal looks
        looks += 1
        return {"a": "same"}

    parts = [part async for part in stream(look, is_stopping=lambda: looks > 9)]

    assert b": still there\n\n" in parts
    assert sum(part.startswith(b"event: part") for part in parts) == 1


async def test_a_stream_ends_with_what_it_shows() -> None:
    async def look() -> dict[str, str]:
        raise NotFoundError("gone")

    parts = [part async for part in stream(look, is_stopping=lambda: False)]

    assert parts[-1].startswith(b"event: gone")


def _html(part: bytes) -> str:
    data = part.partition(b"data: ")[2]
    return msgspec.json.decode(data, type=PagePart).html
