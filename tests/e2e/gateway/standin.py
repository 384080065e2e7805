"""A stand-in for a replica: a real HTTP/1.1 server on a Unix socket that says what it received.

Run as `python standin.py SOCKET NAME`. It answers JSON with its name, the path and the headers;
over gRPC a message that names the model and, as version, itself. `?sleep_s=` waits before the
answer, `?status=` chooses its status, `?rows=` tells how many rows it answered. `x-test-busy: NAME`
makes NAME refuse without starting. A body that holds `sleep-for-ever` is never answered.
`/test/seen` tells all requests so far.
"""

import asyncio
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final
from urllib.parse import parse_qs, urlsplit

_FRAME: Final = 5
_SEEN: Final[list[Mapping[str, object]]] = []
Headers = Mapping[str, str]


async def _read_body(reader: asyncio.StreamReader, headers: Headers) -> bytes:
    if headers.get("transfer-encoding") != "chunked":
        return await reader.readexactly(int(headers.get("content-length", 0)))
    parts = []
    while size := int(await reader.readline() or b"0", 16):  # nothing more if Envoy gave up
        parts.append(await reader.readexactly(size))
        await reader.readline()
    await reader.readline()
    return b"".join(parts)


async def _serve(name: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while line := await reader.readline():
            target = line.decode().split(" ")[1]
            headers: dict[str, str] = {}
            while (header := (await reader.readline()).decode("latin-1").strip()) != "":
                key, _, value = header.partition(":")
                headers[key.lower()] = value.strip()
            body = await _read_body(reader, headers)
            query = parse_qs(urlsplit(target).query)
            if target == "/test/seen":
                writer.write(_response(200, "application/json", json.dumps(_SEEN).encode()))
                continue
            _SEEN.append({"path": target, "headers": headers, "bytes": len(body)})
            asleep = b"sleep-for-ever" in body
            await asyncio.sleep(3600 if asleep else float(query.get("sleep_s", ["0"])[0]))
            writer.write(_answer(name, target, query, headers, body))
            await writer.drain()
    except (ConnectionError, asyncio.IncompleteReadError):
        pass
    finally:
        writer.close()


def _answer(
    name: str, target: str, query: Mapping[str, list[str]], headers: Headers, body: bytes
) -> bytes:
    if headers.get("x-test-busy") == name:
        return _response(503, "application/json", b"{}", "x-headrace-not-started: 1\r\n")
    if headers.get("content-type", "").startswith("application/grpc"):
        return _grpc(name, target.rpartition("/")[2], body[_FRAME:])
    told = {"replica": name, "path": target, "headers": headers, "bytes": len(body)}
    status = int(query.get("status", ["200"])[0])
    rows = f"x-headrace-rows: {query['rows'][0]}\r\n" if "rows" in query else ""
    return _response(status, "application/json", json.dumps(told).encode(), rows)


def _grpc(name: str, rpc: str, message: bytes) -> bytes:
    """Protobuf by hand, so that a stand-in starts at once; field 1 of a request is a name."""
    model = message[2 : 2 + message[1]] if message[:1] == b"\x0a" else b""
    match rpc:
        case "ModelInfer" | "ModelMetadata" | "Check":  # fields 1 and 2: the model, its version
            data = _text(1, model) + _text(2, name.encode())
        case "ModelStatistics":
            data = _text(1, _text(1, name.encode()))
        case "ServerLive" | "ServerReady" | "ModelReady":
            data = b"\x08\x01"
        case _:
            status = f"grpc-status: 12\r\ngrpc-message: {rpc} of {name}\r\n"
            return _response(200, "application/grpc", b"", status)
    frame = b"\0" + len(data).to_bytes(4, "big") + data
    return _response(200, "application/grpc", frame, "grpc-status: 0\r\n")


def _text(field: int, value: bytes) -> bytes:
    return bytes([field << 3 | 2, len(value)]) + value


def _response(status: int, content_type: str, body: bytes, headers: str = "") -> bytes:
    head = f"HTTP/1.1 {status} X\r\ncontent-type: {content_type}\r\n{headers}"
    return f"{head}content-length: {len(body)}\r\n\r\n".encode() + body


async def _main(path: str, name: str) -> None:
    server = await asyncio.start_unix_server(
        lambda reader, writer: _serve(name, reader, writer), path, backlog=512, limit=1 << 20
    )
    Path(f"{path}.up").touch()  # noqa: ASYNC240  # before the first request
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(_main(*sys.argv[1:]))
