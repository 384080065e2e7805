"""A pipeline of text in miniature: a tokenizer of twenty words, an encoder, pooling."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from headrace.testing import models

Write = Callable[..., Path]

WORDS = [
    *("[PAD]", "[UNK]", "a", "river", "runs", "to", "the", "sea", "and", "not"),
    *("one", "drop", "comes", "back", "but", "as", "rain", "or", "snow", "ice"),
]


def tokenizer_json() -> str:
    """A tokenizer of Hugging Face's kind that splits at spaces."""
    return json.dumps(
        {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [],
            "normalizer": {"type": "Lowercase"},
            "pre_tokenizer": {"type": "WhitespaceSplit"},
            "post_processor": None,
            "decoder": None,
            "model": {
                "type": "WordLevel",
                "vocab": {word: i for i, word in enumerate(WORDS)},
                "unk_token": "[UNK]",
            },
        }
    )


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes `pipeline.yaml` and files beside it; the directory."""

    def put(yaml: str, **files: str | bytes) -> Path:
        directory = tmp_path / "pipe"
        directory.mkdir(exist_ok=True)
        (directory / "pipeline.yaml").write_text(yaml)
        for name, content in files.items():
            path = directory / name.replace("__", ".")
            if isinstance(content, str):
                path.write_text(content)
            else:
                path.write_bytes(content)
        return directory

    return put


TEXT = """\
steps:
  - {kind: tokenizer, max_length: 16}
  - {kind: model, path: model.onnx, outputs: {embedding: pooled_inside}}
  - {kind: pool, inputs: {last_hidden_state: tokens}, normalize: true}
"""


@pytest.fixture
def text_pipeline(write: Write) -> Path:
    """Text in, an embedding out."""
    return write(TEXT, tokenizer__json=tokenizer_json(), model__onnx=models.encoder())
