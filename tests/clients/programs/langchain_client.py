"""LangChain's package for OpenAI."""

from typing import Any

from langchain_core.messages import AIMessageChunk, HumanMessage
from langchain_openai import ChatOpenAI, OpenAI, OpenAIEmbeddings

from tests.clients.programs.operations import (
    CITY,
    KEY,
    MODEL,
    QUESTION,
    TOOL,
    URL,
    answers,
    operation,
    refusal,
    run,
)

SERVER: dict[str, Any] = {"base_url": f"{URL}/v1", "api_key": KEY, "max_retries": 0}
CHAT = ChatOpenAI(model=MODEL, temperature=0, max_tokens=48, **SERVER)


@operation("chat")
def chat() -> None:
    answer = CHAT.invoke(QUESTION)
    answers(answer.content)
    assert answer.usage_metadata["output_tokens"] > 0


@operation("stream")
def stream() -> None:
    answers("".join(chunk.content for chunk in CHAT.stream(QUESTION)))


@operation("stream with usage")
def stream_with_usage() -> None:
    total = AIMessageChunk(content="")
    for chunk in CHAT.stream(QUESTION, stream_usage=True):
        total += chunk
    assert total.usage_metadata["output_tokens"] > 0


@operation("tools")
def tools() -> None:
    answer = CHAT.bind_tools([TOOL], tool_choice="required").invoke(QUESTION)
    assert answer.tool_calls[0]["name"] == "weather"


@operation("JSON schema")
def json_schema() -> None:
    schema = {"title": "city", "description": "A city.", **CITY}
    answer = CHAT.with_structured_output(schema, method="json_schema").invoke(QUESTION)
    assert answer.keys() == {"city", "large"}


@operation("several answers")
def several_answers() -> None:
    (several,) = CHAT.generate([[HumanMessage(QUESTION)]], n=2).generations
    assert len(several) == 2


@operation("completions")
def completions() -> None:
    assert OpenAI(model=MODEL, max_tokens=8, temperature=0, **SERVER).invoke("One, two, three,")


@operation("embeddings")
def embeddings() -> None:
    # Texts as they are: the gateway knows no token ids of OpenAI's models.
    model = OpenAIEmbeddings(model=MODEL, check_embedding_ctx_length=False, **SERVER)
    assert len(model.embed_documents(["a cat", "a dog"])) == 2


@operation("errors")
def errors() -> None:
    other = ChatOpenAI(model=MODEL, **SERVER | {"api_key": "hr_wrong"})
    refusal(lambda: other.invoke(QUESTION), "AuthenticationError")


run()
