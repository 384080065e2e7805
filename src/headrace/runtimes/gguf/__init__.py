"""Runtime of GGUF files: language models, embedding models and rerankers, on llama.cpp."""

from headrace.runtimes.gguf.file import GgufHeader, GgufModelFiles, find_gguf, read_header
from headrace.runtimes.gguf.runtime import GgufModel, GgufRuntime

__all__ = ["GgufHeader", "GgufModel", "GgufModelFiles", "GgufRuntime", "find_gguf", "read_header"]
