"""Playground of a language model: chats with one or two versions, streamed to the page.

The browser sends messages only. The path of the page decides the endpoint, and the console writes
the request of OpenAI's API, so no text of a visitor reaches another endpoint. The request goes
through the gateway with the key of the form, as in the form that tries an endpoint.
"""

import json
from collections.abc import AsyncIterator, Mapping
from typing import Annotated, Final

import httpx
import msgspec

from headrace.console.try_it import (
    access_of,
    curl_of,
    gateway_client,
    headers_with,
    is_language_model,
    main_version,
)
from headrace.console.view import GatewayLocation, PageRequest, PageView, RefusedError
from headrace.control.api.endpoints import EndpointView
from headrace.core.error_kind import UNDECODABLE

_BAD_REQUEST: Final = 400
_NOT_FOUND: Final = 404
_BAD_GATEWAY: Final = 502
_CHAT_PATH: Final = "/v1/chat/completions"
_CONNECT_S: Final = 10.0
_SILENCE_S: Final = 300.0
"""Longest wait for a part of an answer: the gateway's own limits are shorter."""
_MAX_MESSAGES: Final = 200
MAX_TOKENS: Final = 32_768


class ChatMessage(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One message of a chat, as the page sends it."""

    role: str
    content: str


class ChatSettings(msgspec.Struct, frozen=True, omit_defaults=True):
    """Fields of a request of OpenAI's API that the page's form sets."""

    messages: Annotated[list[ChatMessage], msgspec.Meta(min_length=1, max_length=_MAX_MESSAGES)]
    max_tokens: Annotated[int, msgspec.Meta(ge=1, le=MAX_TOKENS)] | None = None
    temperature: Annotated[float, msgspec.Meta(ge=0, le=2)] | None = None


async def playground(request: PageRequest) -> PageView:
    """Return the page, or raise RefusedError (404) for an endpoint without a language model."""
    endpoint = await _language_model(request)
    versions = [revision.version for revision in endpoint.status.revisions if not revision.role]
    access = access_of(endpoint)
    message = {"role": "user", "content": "Hello!"}
    chat = json.dumps({"model": endpoint.name, "messages": [message], "max_tokens": 64}, indent=2)
    return PageView(
        template="playground.html",
        title=f"Chat with {endpoint.name}",
        section="fleet",
        values={
            "endpoint": endpoint,
            "versions": versions,
            "access": access,
            "curl": curl_of(request.gateway, _CHAT_PATH, chat, needs_key=bool(access)),
            "most_tokens": MAX_TOKENS,
        },
    )


async def _language_model(request: PageRequest) -> EndpointView:
    name = request.names["name"]
    endpoint = await request.visitor.get(f"/api/v1/endpoints/{name}", EndpointView)
    if not is_language_model(endpoint, await main_version(request, endpoint)):
        raise RefusedError.of(_NOT_FOUND, f"endpoint '{name}' serves no language model")
    return endpoint


async def chat_body(request: PageRequest, form: Mapping[str, str]) -> bytes:
    """Return the request of OpenAI's API for a sent form, always to the page's endpoint.

    Raises:
        RefusedError: A field is invalid, or the endpoint has no such version.
    """
    endpoint = await _language_model(request)
    version = form.get("version", "")
    if version and version not in {revision.version for revision in endpoint.status.revisions}:
        raise RefusedError.of(_BAD_REQUEST, f"'{endpoint.name}' has no version '{version[:20]}'")
    sent = {name: form[name] for name in ("max_tokens", "temperature") if form.get(name)}
    try:
        messages = msgspec.json.decode(form.get("messages", ""))
        settings = msgspec.convert({"messages": messages, **sent}, ChatSettings, strict=False)
    except UNDECODABLE:
        detail = (
            f"send `messages` (a JSON list of role and content, 1 to {_MAX_MESSAGES} messages), "
            f"`max_tokens` (1 to {MAX_TOKENS}) and `temperature` (a number, 0 to 2), or these empty"
        )
        raise RefusedError.of(_BAD_REQUEST, detail) from None
    document = {
        "model": f"{endpoint.name}:{version}" if version else endpoint.name,
        **msgspec.to_builtins(settings),
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    return msgspec.json.encode(document)


async def open_chat(
    gateway: GatewayLocation, body: bytes, *, key: str
) -> tuple[httpx.Response, AsyncIterator[bytes]]:
    """Send a chat to the gateway; return the response, and its body as it comes.

    Raises:
        RefusedError: The gateway does not answer.
    """
    client = gateway_client(gateway, httpx.Timeout(_CONNECT_S, read=_SILENCE_S))
    try:
        headers = headers_with(key)
        request = client.build_request("POST", _CHAT_PATH, content=body, headers=headers)
        response = await client.send(request, stream=True)
    except (httpx.HTTPError, UnicodeEncodeError) as error:
        await client.aclose()
        detail = f"the gateway does not answer: {str(error) or type(error).__name__}"
        raise RefusedError.of(_BAD_GATEWAY, detail) from None

    async def chunks() -> AsyncIterator[bytes]:
        # A reader who leaves ends the generation.
        try:
            async for chunk in response.aiter_bytes():
                yield chunk
        except httpx.HTTPError as error:
            # The status has been sent already: the page shows an event of this kind.
            problem = {"message": str(error) or type(error).__name__}
            yield b"\n\ndata: %s\n\n" % msgspec.json.encode({"error": problem})
        finally:
            await response.aclose()
            await client.aclose()

    return response, chunks()
