"""LiteLLM as a client."""

import os
from typing import Any

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # read at import; else it loads prices by HTTP

import litellm

from tests.clients.programs.operations import (
    CITY,
    KEY,
    MESSAGES,
    MODEL,
    RANKER,
    TOOL,
    URL,
    answers,
    is_city,
    operation,
    refusal,
    run,
)

SERVER: dict[str, Any] = {"api_base": f"{URL}/v1", "api_key": KEY, "max_retries": 0}
CHAT: dict[str, Any] = {
    "model": f"openai/{MODEL}",
    "messages": MESSAGES,
    "max_tokens": 48,
    "temperature": 0,
    **SERVER,
}


@operation("chat")
def chat() -> None:
    answer = litellm.completion(**CHAT)
    answers(answer.choices[0].message.content)
    assert answer.usage.completion_tokens > 0


@operation("stream")
def stream() -> None:
    chunks = litellm.completion(**CHAT, stream=True)
    answers("".join(chunk.choices[0].delta.content or "" for chunk in chunks))


@operation("stream with usage")
def stream_with_usage() -> None:
    options = {"include_usage": True}
    chunks = list(litellm.completion(**CHAT, stream=True, stream_options=options))
    assert chunks[-1].usage.completion_tokens > 0


@operation("tools")
def tools() -> None:
    answer = litellm.completion(**CHAT, tools=[TOOL], tool_choice="required")
    assert answer.choices[0].message.tool_calls[0].function.name == "weather"


@operation("JSON schema")
def json_schema() -> None:
    schema = {"type": "json_schema", "json_schema": {"name": "c", "schema": CITY, "strict": True}}
    is_city(litellm.completion(**CHAT, response_format=schema).choices[0].message.content)


@operation("several answers")
def several_answers() -> None:
    assert len(litellm.completion(**CHAT, n=2).choices) == 2


@operation("completions")
def completions() -> None:
    model = f"text-completion-openai/{MODEL}"
    answer = litellm.text_completion(model=model, prompt="One, two,", max_tokens=4, **SERVER)
    assert answer.choices[0].text


@operation("embeddings")
def embeddings() -> None:
    asked = {"model": f"openai/{MODEL}", "input": ["a cat", "a dog"], **SERVER}
    plain = litellm.embedding(**asked, encoding_format="float")
    assert len(plain.data) == 2


@operation("rerank v2")
def rerank_v2() -> None:
    documents = ["berlin in", "smith", "a b"]
    answer = litellm.rerank(
        model=f"cohere/{RANKER}",
        query="anna",
        documents=documents,
        top_n=2,
        api_base=URL,
        api_key=KEY,
    )
    assert len(answer.results) == 2


@operation("errors")
def errors() -> None:
    refusal(lambda: litellm.completion(**CHAT | {"api_key": "hr_wrong"}), "AuthenticationError")


run()
