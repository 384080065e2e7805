import asyncio
import socket
import threading
from pathlib import Path

import pytest

from headrace.core import ReplicaSettings
from headrace.serving import memory
from headrace.serving.exchange import Exchange
from headrace.serving.server import HttpServer

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    """Real sockets need real time."""
    return "asyncio"


class Echo:
    def handle(self, exchange: Exchange) -> None:
        exchange.send_json(b"{}")

    def cancel(self, ticket: object) -> None:
        del ticket


async def ask(path: Path, size: int) -> bytes:
    reader, writer = await asyncio.open_unix_connection(path)
    head = f"POST / HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {size}\r\n\r\n"
    writer.write(head.encode() + b"x" * size)
    answer = await reader.read()
    writer.close()
    return answer


@pytest.mark.parametrize(("size", "gives"), [(2 << 20, True), (1000, False)])
async def test_memory_is_given_back_after_large_bodies_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, size: int, gives: bool
) -> None:
    given = threading.Event()
    monkeypatch.setattr(memory, "give_back", given.set)
    monkeypatch.setattr(memory, "_PAUSE_S", 0.0)
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(str(tmp_path / "s"))
    server = HttpServer(Echo(), ReplicaSettings(model_name="m", model_version="1", path="m"))
    await server.listen([sock])

    answer = await ask(tmp_path / "s", size)
    found = await asyncio.to_thread(given.wait, 5.0 if gives else 0.2)
    await server.drain(timeout_s=1.0)

    assert answer.startswith(b"HTTP/1.1 200 ")
    assert found is gives


async def test_who_connected_before_the_end_and_asks_after_it_began_is_answered(
    tmp_path: Path,
) -> None:
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(str(tmp_path / "s"))
    server = HttpServer(Echo(), ReplicaSettings(model_name="m", model_version="1", path="m"))
    await server.listen([sock])
    reader, writer = await asyncio.open_unix_connection(tmp_path / "s")
    silent, its_writer = await asyncio.open_unix_connection(tmp_path / "s")
    async with asyncio.timeout(5), asyncio.TaskGroup() as group:
        group.create_task(server.drain(timeout_s=4.0))
        await asyncio.sleep(0)

        writer.write(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        answer = await reader.read()

    assert answer.startswith(b"HTTP/1.1 200 ")
    assert b"connection: close" in answer.lower()
    assert await silent.read() == b"", "it was given a while, and no more"
    for one in (writer, its_writer):
        one.close()
