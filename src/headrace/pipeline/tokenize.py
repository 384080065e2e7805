"""Tokenization of text to token ids, by the tokenizer that the model was trained with."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from headrace.core import (
    VARIABLE,
    Array,
    Datatype,
    FailedPreconditionError,
    InvalidArgumentError,
    ModelSignature,
    Tensors,
    TensorSpec,
    UnsupportedModelError,
    error_kind,
)
from headrace.core.encoders import TEXT, TEXT_PAIR

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

MAX_TEXT_BYTES: Final = 1 << 20


def texts_of(elements: Array) -> list[str]:
    """Return the text of each element, in row-major order.

    Raises:
        InvalidArgumentError: A text is too long, or not UTF-8; the message names its row.
    """
    return [_text(raw, row) for row, raw in enumerate(elements.reshape(-1).tolist())]


def _text(raw: Any, row: int) -> str:  # noqa: ANN401  # an element of BYTES
    if len(raw) > MAX_TEXT_BYTES:
        msg = f"text {row} has {len(raw)} bytes, more than {MAX_TEXT_BYTES}"
        raise InvalidArgumentError(msg)
    try:
        return raw if isinstance(raw, str) else bytes(raw).decode()
    except UnicodeDecodeError as error:
        msg = f"text {row} is not UTF-8 (byte {error.start})"
        raise InvalidArgumentError(msg) from None


IDS: Final = "input_ids"
MASK: Final = "attention_mask"
TYPES: Final = "token_type_ids"
OFFSETS: Final = "offsets"
MAX_FILE_BYTES: Final = 64 << 20
_NEEDED: Final = "a tokenizer needs the package tokenizers: pip install 'headrace[text]'"


class TokenizerStep:
    """Step from `text` BYTES [N] to token tensors [N, tokens]. Implements `Model`.

    With `pairs`, a row is a pair of texts, and the second one is in `text_pair` BYTES [N].
    Outputs are `input_ids`, `attention_mask` and `token_type_ids`; rows are padded at their end to
    the longest. `offsets` INT64 [N, tokens, 2], if requested, are the first character of each
    token in its text and the one after its last; -1 for special tokens and padding.
    """

    concurrent = True

    def __init__(
        self,
        tokenizer: "Tokenizer",
        *,
        max_length: int,
        datatype: Datatype,
        offsets: bool = False,
        pairs: bool = False,
    ) -> None:
        shape = (VARIABLE, VARIABLE)
        outputs = [
            TensorSpec(name=name, datatype=datatype, shape=shape) for name in (IDS, MASK, TYPES)
        ]
        if offsets:
            outputs.append(TensorSpec(name=OFFSETS, datatype=Datatype.INT64, shape=(*shape, 2)))
        self.signature = ModelSignature(
            inputs=tuple(
                TensorSpec(name=name, datatype=Datatype.BYTES, shape=(VARIABLE,))
                for name in ((TEXT, TEXT_PAIR) if pairs else (TEXT,))
            ),
            outputs=tuple(outputs),
            batched=True,
        )
        self._gives_offsets = offsets
        self._dtype = datatype.dtype
        self._pad_id = pad_id(tokenizer)
        self._pad_type = int((tokenizer.padding or {}).get("pad_type_id", 0))
        tokenizer.enable_truncation(max_length)
        tokenizer.no_padding()  # rows are padded here, without a list of lists in between
        self._tokenizer = tokenizer

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        max_length: int,
        datatype: Datatype,
        offsets: bool = False,
        pairs: bool = False,
    ) -> "TokenizerStep":
        """Open the tokenizer that a `tokenizer.json` describes.

        Raises:
            FailedPreconditionError: The library is not installed.
            UnsupportedModelError: The file is not a tokenizer.
        """
        tokenizer = open_tokenizer(path, max_length=max_length)
        return cls(
            tokenizer, max_length=max_length, datatype=datatype, offsets=offsets, pairs=pairs
        )

    def run(self, inputs: Tensors, outputs: Sequence[str] | None = None) -> Tensors:
        """Tokenize one batch."""
        del outputs
        texts: list[Any] = texts_of(inputs[TEXT])
        if TEXT_PAIR in inputs:
            texts = list(zip(texts, texts_of(inputs[TEXT_PAIR]), strict=True))
        if not self._gives_offsets:
            return self._arrays(self._tokenizer.encode_batch_fast(texts))
        encodings = self._tokenizer.encode_batch(texts)  # the fast variant has no offsets
        arrays = self._arrays(encodings)
        offsets = np.full((*arrays[IDS].shape, 2), -1, np.int64)
        for row, encoding in enumerate(encodings):
            is_real = np.array(encoding.special_tokens_mask, np.int64) == 0
            offsets[row, : len(is_real)][is_real] = np.array(encoding.offsets, np.int64)[is_real]
        return {**arrays, OFFSETS: offsets}

    def _arrays(self, encodings: "Sequence[Encoding]") -> Tensors:
        return {
            IDS: self._padded([encoding.ids for encoding in encodings], self._pad_id),
            MASK: self._padded([encoding.attention_mask for encoding in encodings], 0),
            TYPES: self._padded([encoding.type_ids for encoding in encodings], self._pad_type),
        }

    def example_inputs(self, *, rows: int, variable: int) -> Tensors:
        """Return rows of about this many tokens."""
        inputs = self.signature.inputs
        texts = np.empty(rows, np.object_)
        texts[:] = [b"a word " * max(variable // (2 * len(inputs)), 1)] * rows
        return {spec.name: texts.copy() for spec in inputs}

    def close(self) -> None:
        """Do nothing; the step only holds memory."""

    def _padded(self, lists: list[list[int]], filling: int) -> Array:
        longest = max(map(len, lists), default=0)
        padded = np.full((len(lists), longest), filling, self._dtype)
        for row, values in enumerate(lists):
            padded[row, : len(values)] = values
        return padded


def open_tokenizer(path: Path, *, max_length: int) -> "Tokenizer":
    """Return the tokenizer of a `tokenizer.json`, truncating texts to `max_length` tokens.

    Raises:
        FailedPreconditionError: The library is not installed.
        UnsupportedModelError: The file is not a tokenizer.
    """
    # One thread: batches already run concurrently, one per core.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    try:
        from tokenizers import Tokenizer  # noqa: PLC0415  # an extra
    except ImportError as error:
        raise FailedPreconditionError(_NEEDED) from error
    if path.stat().st_size > MAX_FILE_BYTES:
        msg = f"{path}: is larger than {MAX_FILE_BYTES} bytes"
        raise UnsupportedModelError(msg)
    try:
        tokenizer = Tokenizer.from_str(path.read_text(encoding="utf-8"))
        tokenizer.enable_truncation(max_length)
    except Exception as error:  # noqa: BLE001  # the library raises bare exceptions
        msg = f"{path}: is not a readable tokenizer.json: {error_kind(error)}"
        raise UnsupportedModelError(msg) from None
    return tokenizer


def pad_id(tokenizer: "Tokenizer") -> int:
    """Return the padding token: the tokenizer's own, or the one with a usual name."""
    ids = (tokenizer.token_to_id(token) for token in ("[PAD]", "<pad>", "<|endoftext|>"))
    usual = next((number for number in ids if number is not None), 0)
    return int((tokenizer.padding or {}).get("pad_id", usual))
