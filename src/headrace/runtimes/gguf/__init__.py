"""Runtime of language models in GGUF files, on llama.cpp. Imports its sibling `tables`."""

from headrace.runtimes.gguf.file import GgufHeader, GgufModelFiles, find_gguf, read_header
from headrace.runtimes.gguf.runtime import GgufModel, GgufRuntime, LlmLoad

__all__ = [
    "GgufHeader",
    "GgufModel",
    "GgufModelFiles",
    "GgufRuntime",
    "LlmLoad",
    "find_gguf",
    "read_header",
]
