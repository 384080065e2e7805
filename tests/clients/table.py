"""The table of clients and operations, as the page on language models shows it."""

from collections.abc import Mapping
from typing import Final

CLIENTS: Final[Mapping[str, str]] = {
    "openai": "`openai` (Python)",
    "openai-js": "`openai` (JavaScript)",
    "langchain": "`langchain-openai`",
    "llama-index": "LlamaIndex (`openai-like`)",
    "litellm": "LiteLLM",
    "llm": "`llm` (command)",
    "cohere": "`cohere`",
}
"""Names on the page."""
PROGRAMS: Final[Mapping[str, str]] = {
    "openai": "openai_client",
    "openai-js": "openai_client.mjs",
    "langchain": "langchain_client",
    "llama-index": "llama_index_client",
    "litellm": "litellm_client",
    "llm": "llm_client",
    "cohere": "cohere_client",
}
"""Modules and a script in `programs`."""
OPERATIONS: Final[Mapping[str, tuple[str, ...]]] = {
    "models": ("openai", "openai-js"),
    "chat": ("openai", "openai-js", "langchain", "llama-index", "litellm", "llm"),
    "stream": ("openai", "openai-js", "langchain", "llama-index", "litellm", "llm"),
    "stream with usage": ("openai", "openai-js", "langchain", "litellm"),
    "tools": ("openai", "openai-js", "langchain", "llama-index", "litellm", "llm"),
    "JSON schema": ("openai", "openai-js", "langchain", "litellm", "llm"),
    "several answers": ("openai", "openai-js", "langchain", "litellm"),
    "completions": ("openai", "openai-js", "langchain", "llama-index", "litellm"),
    "embeddings": ("openai", "openai-js", "langchain", "llama-index", "litellm"),
    "rerank v1": ("cohere",),
    "rerank v2": ("cohere", "litellm"),
    "asynchronous": ("openai",),
    "raw response": ("openai", "openai-js"),
    "cancel": ("openai", "openai-js"),
    "errors": tuple(CLIENTS),
}
"""Clients that are tested with an operation."""

LACKS: Final[Mapping[tuple[str, str], str]] = {
    ("tools", "smollm2"): "the chat template of SmolLM2 has no tools",
}
"""Why an operation is not tested with a server."""


def table(marks: Mapping[tuple[str, str], str]) -> str:
    """Return the table in Markdown: a row for each operation, a mark for each client."""
    rows = [
        [operation, *(marks.get((client, operation), "") for client in CLIENTS)]
        for operation in OPERATIONS
    ]
    lines = [["", *CLIENTS.values()], ["---"] * (1 + len(CLIENTS)), *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def full_table() -> str:
    """Return the table of all tested operations."""
    with_stub = {operation for operation, _ in LACKS}
    return table(
        {
            (client, operation): "✓ (stub)" if operation in with_stub else "✓"
            for operation, clients in OPERATIONS.items()
            for client in clients
        }
    )
