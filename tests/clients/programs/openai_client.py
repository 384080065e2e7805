"""OpenAI's client for Python."""

import asyncio
import time
from functools import partial
from typing import Any

import openai
from pydantic import BaseModel

from tests.clients.programs.operations import (
    CITY,
    IS_STUB,
    KEY,
    MESSAGES,
    MODEL,
    TOOL,
    URL,
    answers,
    is_city,
    operation,
    refusal,
    run,
)

CLIENT = openai.OpenAI(base_url=f"{URL}/v1", api_key=KEY, max_retries=0, timeout=120)
CHAT: dict[str, Any] = {"model": MODEL, "messages": MESSAGES, "max_tokens": 48, "temperature": 0}


@operation("models")
def models() -> None:
    assert MODEL in [model.id for model in CLIENT.models.list()]
    assert CLIENT.models.retrieve(MODEL).object == "model"


@operation("chat")
def chat() -> None:
    answer = CLIENT.chat.completions.create(**CHAT)
    answers(answer.choices[0].message.content)
    assert answer.usage.prompt_tokens + answer.usage.completion_tokens == answer.usage.total_tokens


@operation("stream")
def stream() -> None:
    chunks = list(CLIENT.chat.completions.create(**CHAT, stream=True))
    answers("".join(chunk.choices[0].delta.content or "" for chunk in chunks))
    assert all(chunk.usage is None for chunk in chunks)
    assert chunks[-1].choices[0].finish_reason == "stop"


@operation("stream with usage")
def stream_with_usage() -> None:
    options = {"include_usage": True}
    chunks = list(CLIENT.chat.completions.create(**CHAT, stream=True, stream_options=options))
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens > 0


@operation("tools")
def tools() -> None:
    answer = CLIENT.chat.completions.create(**CHAT, tools=[TOOL], tool_choice="required")
    (call,) = answer.choices[0].message.tool_calls
    assert call.function.name == "weather"
    with CLIENT.chat.completions.stream(**CHAT, tools=[TOOL], tool_choice="required") as events:
        (streamed,) = events.get_final_completion().choices[0].message.tool_calls
    assert streamed.function.name == "weather"
    result = {"role": "tool", "tool_call_id": call.id, "content": "sunny"}
    message = answer.choices[0].message.model_dump(exclude_none=True)
    told = CLIENT.chat.completions.create(**CHAT | {"messages": [*MESSAGES, message, result]})
    assert told.choices[0].message.content


@operation("JSON schema")
def json_schema() -> None:
    schema = {"type": "json_schema", "json_schema": {"name": "c", "schema": CITY, "strict": True}}
    answer = CLIENT.chat.completions.create(**CHAT, response_format=schema)
    is_city(answer.choices[0].message.content)

    class City(BaseModel):
        city: str
        large: bool

    parsed = CLIENT.chat.completions.parse(**CHAT, response_format=City)
    assert parsed.choices[0].message.parsed.city


@operation("several answers")
def several_answers() -> None:
    answer = CLIENT.chat.completions.create(**CHAT, n=2)
    assert sorted(choice.index for choice in answer.choices) == [0, 1]


@operation("completions")
def completions() -> None:
    asked = {"model": MODEL, "prompt": "One, two, three,", "max_tokens": 4, "temperature": 0}
    assert CLIENT.completions.create(**asked).choices[0].text
    chunks = list(CLIENT.completions.create(**asked, stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks)


@operation("embeddings")
def embeddings() -> None:
    texts = ["a cat", "a dog"]
    plain = CLIENT.embeddings.create(model=MODEL, input=texts, encoding_format="float")
    usual = CLIENT.embeddings.create(model=MODEL, input=texts)  # in base64
    for one, other in zip(plain.data, usual.data, strict=True):
        assert len(one.embedding) == len(other.embedding) > 1
        gap = max(abs(x - y) for x, y in zip(one.embedding, other.embedding, strict=True))
        assert gap < 1e-6, gap


@operation("errors")
def errors() -> None:
    ask = CLIENT.chat.completions.create
    for changed, kind in (
        ({"model": "nothing"}, "PermissionDeniedError"),  # a key tells nothing of others
        ({"model": ""}, "NotFoundError"),
        ({"model": None}, "BadRequestError"),
    ):
        error = refusal(partial(ask, **CHAT | changed), kind)
        assert isinstance(error, openai.APIError)
        assert error.type == "invalid_request_error", error.body
    wrong = CLIENT.with_options(api_key="hr_wrong").chat.completions.create
    error = refusal(lambda: wrong(**CHAT), "AuthenticationError")
    assert isinstance(error, openai.APIError)
    assert error.code == "invalid_api_key", error.body


@operation("cancel")
def cancel() -> None:
    more = {"extra_body": {"stub": {"tokens": 1000, "pause_s": 0.02}}} if IS_STUB else {}
    began = time.monotonic()
    with CLIENT.chat.completions.create(
        **CHAT | {"max_tokens": 900}, stream=True, **more
    ) as chunks:
        next(chunks)
        next(chunks)
    assert time.monotonic() - began < 10
    answers(CLIENT.chat.completions.create(**CHAT).choices[0].message.content)


@operation("raw response")
def raw_response() -> None:
    answer = CLIENT.chat.completions.with_raw_response.create(**CHAT)
    assert answer.headers["x-request-id"]
    assert answer.status_code == 200
    answers(answer.parse().choices[0].message.content)


@operation("asynchronous")
def asynchronous() -> None:
    async def ask() -> None:
        async with openai.AsyncOpenAI(base_url=f"{URL}/v1", api_key=KEY) as client:
            chunks = await client.chat.completions.create(**CHAT, stream=True)
            answers("".join([chunk.choices[0].delta.content or "" async for chunk in chunks]))

    asyncio.run(ask())


run()
