"""A server of OpenAI's API that says what it is told to.

Run as `python openai_stub.py PORT_OR_SOCKET MODEL`.

The body's `stub` tells what to answer: `tokens` and their `pause_s`, `piece` (bytes of a chunk),
`stalls_at` (a token before which it waits), `breaks_at` (one at which it disconnects). `/seen`
tells all requests so far, and what their callers did.
"""

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final

import uvicorn

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
LONG_S: Final = 600.0


def usage_of(asked: MutableMapping[str, Any]) -> dict[str, Any]:
    """The usage of a request, as in its answer."""
    told = asked.get("stub", {})
    inputs, outputs = len(json.dumps(asked.get("messages", ""))) // 4, told.get("tokens", 5)
    return {
        "prompt_tokens": inputs,
        "completion_tokens": outputs,
        "total_tokens": inputs + outputs,
        "prompt_tokens_details": {"cached_tokens": inputs // 2},
        "completion_tokens_details": {"reasoning_tokens": outputs // 3},
    }


def events_of(asked: MutableMapping[str, Any]) -> list[bytes]:
    """The events of a stream: a role, tokens, an end, perhaps the usage, and `[DONE]`."""
    base = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": asked["model"]}
    deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}]
    deltas += [{"content": f'{i} "usage": {{'} for i in range(asked["stub"].get("tokens", 5))]
    chunks = [{**base, "choices": [{"index": 0, "delta": delta}]} for delta in deltas]
    chunks.append({**base, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
    if (asked.get("stream_options") or {}).get("include_usage"):
        chunks.append({**base, "choices": [], "usage": usage_of(asked)})
    return [b"data: %b\n\n" % json.dumps(chunk).encode() for chunk in chunks] + [
        b"data: [DONE]\n\n"
    ]


class Stub:
    """The server as an ASGI application."""

    def __init__(self, model: str) -> None:
        self.model = model
        self.seen: list[dict[str, Any]] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        if scope["path"] in {"/v1/models", "/seen"}:
            await answer(send, 200, self.seen)
            return
        headers = {key.decode(): value.decode("latin-1") for key, value in scope["headers"]}
        told = {"path": scope["path"], "headers": headers, "left": False, "sent": 0}
        self.seen.append(told)
        if not headers["content-type"].startswith("application/json"):
            told["form"] = body.decode("latin-1")
            await answer(send, 200, {"text": "hello", "usage": {"input_tokens": 1}})
            return
        asked = json.loads(body)
        asked.setdefault("stub", {})
        told["body"] = asked
        if asked.get("model") != self.model:
            await answer(send, 404, {"error": {"message": f"no model {asked.get('model')}"}})
        elif asked.get("stream"):
            leaving = asyncio.ensure_future(receive())
            await self._stream(send, asked, told, leaving)
            leaving.cancel()
        else:
            choice = {"index": 0, "message": {"role": "assistant", "content": 'a "usage": {}'}}
            document = {"object": "chat.completion", "model": self.model, "choices": [choice]}
            await answer(send, 200, {**document, "usage": usage_of(asked)})

    async def _stream(
        self,
        send: Send,
        asked: MutableMapping[str, Any],
        told: dict[str, Any],
        leaving: asyncio.Future[MutableMapping[str, Any]],
    ) -> None:
        stub = asked["stub"]
        kind = [(b"content-type", b"text/event-stream; charset=utf-8")]
        await send({"type": "http.response.start", "status": 200, "headers": kind})
        events = events_of(asked)
        pieces = events
        if "piece" in stub:
            whole, size = b"".join(events), stub["piece"]
            pieces = [whole[at : at + size] for at in range(0, len(whole), size)]
        for number, piece in enumerate(pieces):
            if stub.get("breaks_at") == number:
                raise ConnectionError("told to break")
            pause_s = LONG_S if stub.get("stalls_at") == number else stub.get("pause_s", 0.0)
            await asyncio.wait({leaving}, timeout=pause_s)
            if leaving.done():
                told["left"] = True
                return
            await send({"type": "http.response.body", "body": piece, "more_body": True})
            told["sent"] += 1
        await send({"type": "http.response.body", "body": b""})


async def answer(send: Send, status: int, content: object) -> None:
    """Send a JSON document."""
    body = json.dumps(content).encode()
    headers = [
        (b"content-type", b"application/json; charset=utf-8"),
        (b"content-length", b"%d" % len(body)),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


if __name__ == "__main__":
    where, model = sys.argv[1:]
    address: dict[str, Any] = (
        {"host": "127.0.0.1", "port": int(where)} if where.isdigit() else {"uds": where}
    )
    uvicorn.run(Stub(model), log_level="critical", **address)
