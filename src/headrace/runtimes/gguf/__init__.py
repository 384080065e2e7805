"""Runtime of GGUF files: language models, embedding models and rerankers, on llama.cpp."""

from headrace.runtimes.gguf.file import GgufModelFiles, find_gguf
from headrace.runtimes.gguf.runtime import GgufModel, GgufRuntime

__all__ = ["GgufModel", "GgufModelFiles", "GgufRuntime", "find_gguf"]
