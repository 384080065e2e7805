"""Bodies that the kernel writes into memory of their own, between others on the same connection."""

import asyncio
import hashlib
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from headrace.core import ReplicaSettings
from headrace.serving.exchange import Exchange
from headrace.serving.large_body import LARGE_BODY_BYTES
from headrace.serving.server import HttpServer

pytestmark = pytest.mark.anyio

LARGE = 3 * LARGE_BODY_BYTES


@pytest.fixture(params=[False, True], ids=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, bool]]:
    """Real sockets need real time; transports of both loops."""
    return "asyncio", {"use_uvloop": request.param}


class Digests:
    """Answers with a digest of the body."""

    def handle(self, exchange: Exchange) -> None:
        exchange.send_json(digest(exchange.body))

    def cancel(self, ticket: object) -> None:
        del ticket


def digest(body: bytes | bytearray | memoryview) -> bytes:
    return hashlib.sha256(body).hexdigest().encode()


def a_body(size: int) -> bytes:
    return bytes(number % 251 for number in range(size))


def a_request(body: bytes, size: int | None = None) -> bytes:
    told = len(body) if size is None else size
    return b"POST /a HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%b" % (told, body)


@pytest.fixture
async def server() -> AsyncIterator[HttpServer]:
    settings = ReplicaSettings(
        model_name="m", model_version="1", path="m", body_timeout_s=0.5, max_body_bytes=2 * LARGE
    )
    server = HttpServer(Digests(), settings)
    yield server
    await server.drain(timeout_s=1.0)


@pytest.fixture
async def path(server: HttpServer, tmp_path: Path) -> Path:
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(str(tmp_path / "s"))
    await server.listen([sock])
    return tmp_path / "s"


async def until(is_so: Callable[[], bool]) -> None:
    while not is_so():  # noqa: ASYNC110  # nobody tells
        await asyncio.sleep(0.01)


async def answers(reader: asyncio.StreamReader, count: int) -> list[bytes]:
    """The bodies of so many answers."""
    found = []
    for _ in range(count):
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 ")
        found.append(await reader.readexactly(64))
    return found


@pytest.mark.parametrize("piece", [1 << 30, 20_000, 999], ids=["whole", "pieces", "small pieces"])
async def test_large_and_small_bodies_take_turns_on_a_connection(
    server: HttpServer, path: Path, piece: int
) -> None:
    bodies = [a_body(size) for size in (7, LARGE, 7, LARGE_BODY_BYTES + 1, LARGE, 0, 8)]
    reader, writer = await asyncio.open_unix_connection(path)
    sent = b"".join(map(a_request, bodies))

    async with asyncio.timeout(20):
        for at in range(0, len(sent), piece):
            writer.write(sent[at : at + piece])
            await asyncio.sleep(0)
        found = await answers(reader, len(bodies))

    assert found == [digest(body) for body in bodies]
    assert server.body_bytes == 0
    writer.close()


async def test_the_head_alone_then_the_body_alone(path: Path) -> None:
    reader, writer = await asyncio.open_unix_connection(path)
    body = a_body(LARGE)
    for _ in range(3):
        writer.write(a_request(b"", LARGE))
        await asyncio.sleep(0.02)
        writer.write(body)
        async with asyncio.timeout(5):
            assert await answers(reader, 1) == [digest(body)]
    writer.close()


async def test_a_large_body_that_does_not_come_whole_is_refused(
    server: HttpServer, path: Path
) -> None:
    reader, writer = await asyncio.open_unix_connection(path)
    writer.write(a_request(b"x" * 1000, LARGE))

    async with asyncio.timeout(10):
        head = await reader.readuntil(b"\r\n\r\n")
        writer.write(b"x" * 1000)  # what comes after the refusal is dropped

    assert head.startswith(b"HTTP/1.1 408 ")
    assert server.body_bytes == 0
    writer.close()


async def test_who_leaves_in_the_middle_of_a_large_body_leaves_nothing(
    server: HttpServer, path: Path
) -> None:
    _, writer = await asyncio.open_unix_connection(path)
    writer.write(a_request(b"x" * 1000, LARGE))
    async with asyncio.timeout(10):
        await until(lambda: server.body_bytes > 0)
        writer.transport.abort()
        await until(lambda: not server.connections)

    assert server.body_bytes == 0


async def test_at_the_end_a_large_body_that_arrives_is_answered(
    server: HttpServer, path: Path
) -> None:
    reader, writer = await asyncio.open_unix_connection(path)
    body = a_body(LARGE)
    writer.write(a_request(body[:1000], LARGE))
    async with asyncio.timeout(10), asyncio.TaskGroup() as group:
        await until(lambda: server.body_bytes > 0)
        group.create_task(server.drain(timeout_s=5.0))
        await asyncio.sleep(0.1)
        writer.write(body[1000:])
        found = await answers(reader, 1)

    assert found == [digest(body)]
    writer.close()
