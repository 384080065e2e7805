"""A server of OpenAI's API that says what it is told to.

Run as `python openai_stub.py PORT_OR_SOCKET MODEL [TIMES_SLOWER]`.

The body's `stub` tells what to answer, else an object of JSON in the last message: `tokens`, their
`text` and their `pause_s` (or that of a whole answer), `piece` (bytes of a chunk), `stalls_at` (a
piece before which it waits), `breaks_at` (one at which it disconnects), `status` (of an error),
`hangs` (whether it answers nothing), and `at` (more of these, by the stub's model). `/seen` tells
all requests so far, what their callers did, and the tokens of whole answers. Requests with `tools`
get a call of the first one, those with a JSON schema `JSON_ANSWER`, and `n` answers where they ask
for several.
"""

import asyncio
import base64
import json
import random
import struct
import sys
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any, Final

import uvicorn

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
LONG_S: Final = 600.0
JSON_ANSWER: Final = '{"city": "Paris", "large": true}'
_ARGUMENTS: Final = '{"city": "Paris"}'
LONGEST: Final = 1000


def embedding(text: str) -> list[float]:
    """Four numbers of a text, as 32-bit floats."""
    chance = random.Random(text)  # noqa: S311  # no secret
    return list(struct.unpack("<4f", struct.pack("<4f", *(chance.gauss(0, 1) for _ in range(4)))))


def told_by(messages: object) -> dict[str, Any]:
    """What the last message tells the stub: for callers who write messages only."""
    if isinstance(messages, list) and messages and str(messages[-1].get("content")).startswith("{"):
        try:
            return dict(json.loads(messages[-1]["content"]))
        except ValueError:
            pass
    return {}


def usage_of(asked: Mapping[str, Any]) -> dict[str, Any]:
    """The usage of a request, as in its answer."""
    inputs = len(json.dumps(asked.get("messages", ""))) // 4
    outputs = asked.get("stub", {}).get("tokens", 5) * (asked.get("n") or 1)
    return {
        "prompt_tokens": inputs,
        "completion_tokens": outputs,
        "total_tokens": inputs + outputs,
        "prompt_tokens_details": {"cached_tokens": inputs // 2},
        "completion_tokens_details": {"reasoning_tokens": outputs // 3},
    }


def document_of(path: str, asked: Mapping[str, Any]) -> dict[str, Any]:
    """The answer to a request that is not streamed."""
    base = {"id": "c", "created": 1, "model": asked["model"]}
    if path.endswith("/rerank"):
        documents = asked.get("documents", ())
        best = [
            {"index": i, "relevance_score": 1.0 / (1 + len(documents) - i)}
            for i in reversed(range(len(documents)))
        ]
        results = best[: asked.get("top_n") or None]
        return {**base, "results": results, "meta": {}, "usage": usage_of(asked)}
    numbers = range(asked.get("n") or 1)
    if path == "/v1/completions":
        choices = [{"index": i, "text": "hello", "finish_reason": "stop"} for i in numbers]
        return {**base, "object": "text_completion", "choices": choices, "usage": usage_of(asked)}
    message: dict[str, Any] = {"role": "assistant", "content": 'a "usage": {}'}
    if (asked.get("response_format") or {}).get("type") == "json_schema":
        message["content"] = JSON_ANSWER
    if is_call := calls_tool(asked):
        message = {"role": "assistant", "content": None, "tool_calls": [call_of(asked)]}
    reason = "tool_calls" if is_call else "stop"
    choices = [{"index": i, "message": message, "finish_reason": reason} for i in numbers]
    return {**base, "object": "chat.completion", "choices": choices, "usage": usage_of(asked)}


def calls_tool(asked: Mapping[str, Any]) -> bool:
    """Whether the answer is a call of a tool: unless its result came with the request."""
    return bool(asked.get("tools")) and asked["messages"][-1].get("role") != "tool"


def call_of(asked: Mapping[str, Any]) -> dict[str, Any]:
    """A call of the request's first tool."""
    function = {"name": asked["tools"][0]["function"]["name"], "arguments": _ARGUMENTS}
    return {"id": "call_1", "type": "function", "function": function}


def events_of(asked: Mapping[str, Any], path: str = "/v1/chat/completions") -> list[bytes]:
    """The events of a stream: a role, tokens, an end, perhaps the usage, and `[DONE]`."""
    base: dict[str, Any] = {"id": "c", "created": 1, "model": asked["model"]}
    numbers, tokens = range(asked.get("n") or 1), asked.get("stub", {}).get("tokens", 5)
    text = asked.get("stub", {}).get("text", ' "usage": {')
    texts = [f"{i}{text}" for i in range(tokens)]
    parts: list[dict[str, Any]]
    if path == "/v1/completions":
        base["object"] = "text_completion"
        parts = [{"text": text, "finish_reason": None} for text in texts]
        parts.append({"text": "", "finish_reason": "stop"})
    else:
        base["object"] = "chat.completion.chunk"
        deltas: list[dict[str, Any]] = [{"content": text} for text in texts]
        reason = "stop"
        if calls_tool(asked):
            call, reason = call_of(asked), "tool_calls"
            deltas = [{"tool_calls": [{"index": 0, **call}]}]
        parts = [{"delta": delta} for delta in ({"role": "assistant", "content": ""}, *deltas)]
        parts.append({"delta": {}, "finish_reason": reason})
    chunks = [{**base, "choices": [{"index": i, **part}]} for part in parts for i in numbers]
    if (asked.get("stream_options") or {}).get("include_usage"):
        chunks.append({**base, "choices": [], "usage": usage_of(asked)})
    return [b"data: %b\n\n" % json.dumps(chunk).encode() for chunk in chunks] + [
        b"data: [DONE]\n\n"
    ]


class Stub:
    """The server as an ASGI application."""

    def __init__(self, model: str, times_slower: float = 1.0) -> None:
        self.model = model
        self.times_slower = times_slower
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
        stub = asked.setdefault("stub", told_by(asked.get("messages")))
        stub.update(stub.pop("at", {}).get(self.model, {}))
        told["body"] = asked
        if asked.get("model") != self.model:
            await answer(send, 404, {"error": {"message": f"no model {asked.get('model')}"}})
        elif stub.get("hangs"):
            await receive()
        elif "status" in stub:
            await answer(send, stub["status"], {"error": {"message": self.model}})
        elif scope["path"] == "/v1/embeddings":
            await self._embed(send, asked)
        elif asked.get("stream"):
            leaving = asyncio.ensure_future(receive())
            await self._stream(send, asked, told, leaving)
            leaving.cancel()
        else:
            await asyncio.sleep(asked["stub"].get("pause_s", 0.0))
            told["usage"] = usage_of(asked)
            await answer(send, 200, document_of(scope["path"], asked))

    async def _embed(self, send: Send, asked: MutableMapping[str, Any]) -> None:
        """Answer with numbers that depend on the text only; a text beyond `LONGEST` is refused."""
        texts = asked.get("input", "")
        texts = [texts] if isinstance(texts, str) else texts
        if max(map(len, texts)) > LONGEST:
            message = f"This model's maximum context length is {LONGEST} tokens"
            await answer(send, 400, {"error": {"message": message}})
            return
        vectors = [embedding(text) for text in texts]
        form = asked.get("encoding_format", "float")
        packed = [base64.b64encode(struct.pack("<4f", *numbers)).decode() for numbers in vectors]
        data = [
            {"object": "embedding", "index": i, "embedding": packed[i] if form == "base64" else v}
            for i, v in reversed(list(enumerate(vectors)))
        ]
        usage = {"prompt_tokens": len(texts), "total_tokens": len(texts)}
        await answer(send, 200, {"object": "list", "data": data, "usage": usage})

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
        events = events_of(asked, told["path"])
        pieces = events
        if "piece" in stub:
            whole, size = b"".join(events), stub["piece"]
            pieces = [whole[at : at + size] for at in range(0, len(whole), size)]
        for number, piece in enumerate(pieces):
            if stub.get("breaks_at") == number:
                raise ConnectionError("told to break")
            pause_s = LONG_S if stub.get("stalls_at") == number else stub.get("pause_s", 0.0)
            pause_s *= self.times_slower
            await asyncio.wait({leaving}, timeout=pause_s)
            if leaving.done():
                told["left"] = True
                return
            await send({"type": "http.response.body", "body": piece, "more_body": True})
            told["sent"] += 1
        await send({"type": "http.response.body", "body": b""})
        told["usage"] = usage_of(asked)


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
    where, model, *slower = sys.argv[1:]
    address: dict[str, Any] = (
        {"host": "127.0.0.1", "port": int(where)} if where.isdigit() else {"uds": where}
    )
    uvicorn.run(Stub(model, *map(float, slower)), log_level="critical", **address)
