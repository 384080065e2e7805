"""Requests of OpenAI's API over a transport of the client, and their answers.

A request is not retried here; the caller knows how long it may wait.
"""

import base64
import binascii
from typing import Annotated, Final, NamedTuple

import msgspec
import numpy as np

from headrace.client.answers import ProtocolError
from headrace.client.conversation import SendMessage
from headrace.client.http_transport import HttpMessage, HttpReply
from headrace.client.wires import BlockingTransport
from headrace.core import Array, InvalidArgumentError
from headrace.core.error_kind import UNDECODABLE
from headrace.protocol import error_from_http
from headrace.protocol.openai import MAX_TEXTS

_OK: Final = 200


class _Vector(msgspec.Struct):
    index: int
    embedding: str | list[float]


class _Vectors(msgspec.Struct):
    data: Annotated[list[_Vector], msgspec.Meta(max_length=MAX_TEXTS)]


class _Message(msgspec.Struct):
    content: str | None = None


class _Choice(msgspec.Struct):
    finish_reason: str | None = None
    message: _Message | None = None
    text: str = ""


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0


class _Choices(msgspec.Struct):
    choices: Annotated[list[_Choice], msgspec.Meta(min_length=1)]
    usage: _Usage | None = None


class Completion(NamedTuple):
    """First choice of an answer to `/v1/chat/completions` or `/v1/completions`.

    `text` is empty for the call of a tool, and tokens are 0 if the server reports no usage.
    """

    text: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int


def post(
    transport: BlockingTransport, path: str, content: bytes, *, timeout_s: float | None
) -> bytes:
    """Return the body of the answer to a JSON body.

    Raises:
        HeadraceError: The server refused the request, or did not answer.
    """
    reply = transport.send(SendMessage(json_request(path, content), timeout_s))
    assert isinstance(reply, HttpReply)
    return body_of(reply)


def json_request(path: str, content: bytes) -> HttpMessage:
    """Return the request with a JSON body."""
    headers = {"content-type": "application/json"}
    return HttpMessage(method="POST", path=path, headers=headers, content=content)


def body_of(reply: HttpReply) -> bytes:
    """Return the body of an answer.

    Raises:
        HeadraceError: The server refused the request.
    """
    if reply.status != _OK:
        raise error_from_http(reply.status, reply.body, reply.headers)
    return reply.body


def texts_of(column: Array) -> list[str]:
    """Return the texts of an input of BYTES.

    Raises:
        InvalidArgumentError: One is not UTF-8.
    """
    try:
        values = column.reshape(-1).tolist()
        return [value.decode() if isinstance(value, bytes) else value for value in values]
    except UnicodeDecodeError:
        raise InvalidArgumentError("the text is not UTF-8") from None


def read_completion(body: bytes) -> Completion:
    """Return the first choice of an answer.

    Raises:
        ProtocolError: The answer has no choices.
    """
    try:
        answer = msgspec.json.decode(body, type=_Choices)
    except UNDECODABLE as error:
        raise ProtocolError(f"the answer is no completion: {error}") from error
    choice, usage = answer.choices[0], answer.usage or _Usage()
    text = choice.text if choice.message is None else choice.message.content or ""
    reason = choice.finish_reason or ""
    return Completion(text, reason, usage.prompt_tokens, usage.completion_tokens)


def read_embeddings(body: bytes, count: int) -> Array:
    """Return the vectors of `count` texts in their order: FP32 [count, size].

    Raises:
        ProtocolError: The answer has other vectors.
    """
    try:
        vectors = msgspec.json.decode(body, type=_Vectors).data
        if sorted(vector.index for vector in vectors) != list(range(count)):
            raise ProtocolError(f"the answer has not one embedding for each of {count} texts")
        rows = [_numbers(vector.embedding) for vector in sorted(vectors, key=lambda v: v.index)]
        return np.stack(rows)
    except (*UNDECODABLE, binascii.Error, ValueError) as error:
        raise ProtocolError(f"the answer has no valid embeddings: {error}") from error


def _numbers(embedding: str | list[float]) -> Array:
    if isinstance(embedding, str):
        return np.frombuffer(base64.b64decode(embedding, validate=True), "<f4").astype(np.float32)
    return np.asarray(embedding, np.float32)
