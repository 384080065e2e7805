"""LlamaIndex with its packages for servers like OpenAI's."""

from typing import Any

from llama_index.core.llms import ChatMessage
from llama_index.core.tools import FunctionTool
from llama_index.embeddings.openai_like import OpenAILikeEmbedding
from llama_index.llms.openai_like import OpenAILike

from tests.clients.programs.operations import (
    KEY,
    MODEL,
    QUESTION,
    URL,
    answers,
    operation,
    refusal,
    run,
)

SERVER: dict[str, Any] = {"api_base": f"{URL}/v1", "api_key": KEY, "max_retries": 0}
LLM: dict[str, Any] = {"model": MODEL, "temperature": 0, "max_tokens": 48, **SERVER}
CHAT = OpenAILike(is_chat_model=True, is_function_calling_model=True, **LLM)
ASKED = [ChatMessage(role="user", content=QUESTION)]


@operation("chat")
def chat() -> None:
    answers(CHAT.chat(ASKED).message.content)


@operation("stream")
def stream() -> None:
    answers("".join(chunk.delta or "" for chunk in CHAT.stream_chat(ASKED)))


@operation("tools")
def tools() -> None:
    def weather(city: str) -> str:
        """The weather in a city."""
        return f"sunny in {city}"

    tool = FunctionTool.from_defaults(weather)
    answer = CHAT.chat_with_tools([tool], chat_history=ASKED, tool_required=True)
    (call,) = CHAT.get_tool_calls_from_response(answer)
    assert call.tool_name == "weather"


@operation("completions")
def completions() -> None:
    llm = OpenAILike(is_chat_model=False, **LLM)
    assert llm.complete("One, two, three,").text
    assert "".join(chunk.delta or "" for chunk in llm.stream_complete("One, two, three,"))


@operation("embeddings")
def embeddings() -> None:
    model = OpenAILikeEmbedding(model_name=MODEL, **SERVER)
    assert len(model.get_text_embedding_batch(["a cat", "a dog"])) == 2


@operation("errors")
def errors() -> None:
    other = OpenAILike(is_chat_model=True, **LLM | {"api_key": "hr_wrong"})
    refusal(lambda: other.chat(ASKED), "AuthenticationError")


run()
