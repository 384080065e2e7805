"""Texts of a table to token ids, or to a model that takes texts itself."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from headrace.core import (
    VARIABLE,
    Array,
    Datatype,
    InvalidArgumentError,
    ModelSignature,
    Tensors,
    TensorSpec,
)
from headrace.optimize.accuracy.input_cells import as_request
from headrace.optimize.accuracy.label_cells import are_numbers
from headrace.optimize.accuracy.tables import Table
from headrace.pipeline.texts import MAX_TEXT_BYTES
from headrace.pipeline.tokenizing import IDS, MASK, TYPES, open_tokenizer, pad_id

if TYPE_CHECKING:
    from tokenizers import Encoding

TEXT_NAMES: Final = ("text", "sentence", "review", "content", "document", "question", "query")
PAIR_NAMES: Final = (
    ("sentence1", "sentence2"),
    ("text1", "text2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("question", "sentence"),
    ("question", "context"),
    ("query", "passage"),
)
TOKENIZER_FILE: Final = "tokenizer.json"
_KINDS: Final = {
    IDS: IDS,
    "input_word_ids": IDS,
    MASK: MASK,
    "input_mask": MASK,
    TYPES: TYPES,
    "segment_ids": TYPES,
    "input_type_ids": TYPES,
}
"""What exporters call the inputs of a text model."""
_AT_ONCE: Final = 512
_PAIR: Final = 2
_MATRIX: Final = 2


def takes_tokens(signature: ModelSignature) -> bool:
    """Whether the model takes token ids, and nothing that a tokenizer does not give."""
    kinds = [_KINDS.get(spec.name) for spec in signature.inputs]
    are_whole = all(
        spec.datatype.dtype.kind in "iu" and len(spec.shape) == _MATRIX for spec in signature.inputs
    )
    return IDS in kinds and None not in kinds and are_whole


def token_kinds(signature: ModelSignature) -> dict[str, str]:
    """By input: which of a tokenizer's answers it takes."""
    return {spec.name: _KINDS[spec.name] for spec in signature.inputs}


def takes_text(signature: ModelSignature) -> bool:
    """Whether the model takes texts as they are."""
    return len(signature.inputs) == 1 and signature.inputs[0].datatype is Datatype.BYTES


def text_columns(table: Table, wish: str, *, label: str | None) -> tuple[list[str], str]:
    """One column, or two for pairs of texts; and what to tell of the choice.

    Args:
        wish: Names that somebody gave, with a comma between two; empty for none.

    Raises:
        InvalidArgumentError: There is none, or it is not clear which.
    """
    others = [name for name in table.columns if name != label]
    if wish:
        wished = [wish] if wish in table.columns else [name.strip() for name in wish.split(",")]
        missing = [name for name in wished if name not in table.columns]
        if missing or len(wished) > _PAIR:
            told = f"no column {missing[0]!r}" if missing else "more than two columns of text"
            raise InvalidArgumentError(f"{table.path}: {told}: {table.told()}")
        return wished, ""
    lower = {name.casefold(): name for name in reversed(others)}
    for pair in PAIR_NAMES:
        if table.is_named and set(pair) <= lower.keys():
            return [lower[name] for name in pair], ""
    for known in TEXT_NAMES:
        if table.is_named and known in lower:
            return [lower[known]], ""
    found = [name for name in others if not are_numbers(table.columns[name])]
    if not 1 <= len(found) <= _PAIR:
        many = "several columns of text" if found else "no column of text"
        msg = f"{table.path} has {many} ({table.told()}); say which one, or two for pairs"
        raise InvalidArgumentError(msg)
    if len(found) == 1:
        return found, f"column {found[0]!r} was taken for the texts"
    return found, f"columns {found[0]!r} and {found[1]!r} were taken for pairs of texts"


def numeric_rest(table: Table, texts: Collection[str]) -> str | None:
    """The only other column of numbers, which are then the labels; None if there are several."""
    rest = [name for name in table.columns if name not in texts]
    numeric = [name for name in rest if are_numbers(table.columns[name])]
    return numeric[0] if len(numeric) == 1 else None


def plain_inputs(table: Table, column: str, signature: ModelSignature) -> list[Tensors]:
    """Requests of texts for a model that takes them as they are."""
    spec = signature.inputs[0]
    return [
        {spec.name: as_request(np.array([text.encode()], np.object_), spec, signature)}
        for text in _texts(table, column)
    ]


def token_inputs(
    table: Table,
    columns: Sequence[str],
    signature: ModelSignature,
    *,
    tokenizer: Path | None,
    beside: Path,
    max_length: int,
) -> list[Tensors]:
    """Requests of token ids, each as long as its text; padded only where the model's axis is fixed.

    Args:
        tokenizer: A `tokenizer.json`; None for the one in the model's folder.
        beside: The model's file or folder.

    Raises:
        InvalidArgumentError: There is no tokenizer, or a row is no text.
        FailedPreconditionError: The library is not installed.
        UnsupportedModelError: The file is no tokenizer.
    """
    sizes = {spec.shape[1] for spec in signature.inputs} - {VARIABLE}
    path = _tokenizer_file(tokenizer, beside)
    opened = open_tokenizer(path, max_length=min({max_length} | sizes))
    filling = {IDS: pad_id(opened), MASK: 0, TYPES: 0}
    opened.no_padding()
    texts = [_texts(table, column) for column in columns]
    pairs = list(zip(*texts, strict=True)) if len(texts) == _PAIR else texts[0]
    requests: list[Tensors] = []
    try:
        for start in range(0, len(pairs), _AT_ONCE):
            found = opened.encode_batch(pairs[start : start + _AT_ONCE])
            requests += [_request(one, signature, filling) for one in found]
    except Exception as error:  # the library raises bare ones
        msg = f"{path} cannot tokenize the texts of {table.path}: {str(error)[:200]}"
        raise InvalidArgumentError(msg) from error
    empty = next((row for row, one in enumerate(requests) if not _length(one)), None)
    if empty is not None:
        raise table.wrong(empty, "the text has no tokens; correct or remove the line")
    return requests


def _request(found: "Encoding", signature: ModelSignature, filling: Mapping[str, int]) -> Tensors:
    rows = {IDS: found.ids, MASK: found.attention_mask, TYPES: found.type_ids}
    kinds = token_kinds(signature)
    return {
        spec.name: _row(rows[kinds[spec.name]], spec, filling[kinds[spec.name]])
        for spec in signature.inputs
    }


def _row(values: Sequence[int], spec: TensorSpec, filling: int) -> Array:
    length = len(values) if spec.shape[1] == VARIABLE else spec.shape[1]
    row = np.full((1, length), filling, spec.datatype.dtype)
    row[0, : len(values)] = values
    return row


def _length(request: Tensors) -> int:
    return min(int(array.shape[1]) for array in request.values())


def _texts(table: Table, column: str) -> list[str]:
    found = []
    for row, cell in enumerate(table.columns[column]):
        if not isinstance(cell, str):
            raise table.wrong(row, f"column {column!r} holds {cell!r:.40}, which is no text")
        if len(cell) > MAX_TEXT_BYTES:
            raise table.wrong(row, f"the text has more than {MAX_TEXT_BYTES} characters")
        found.append(cell)
    return found


def _tokenizer_file(wished: Path | None, beside: Path) -> Path:
    folder = beside if beside.is_dir() else beside.parent
    path = wished or folder / TOKENIZER_FILE
    if path.is_dir():
        path = path / TOKENIZER_FILE
    if not path.is_file():
        msg = (
            f"the model takes token ids, and there is no {path}; put the tokenizer.json that it "
            "was trained with beside the model, or name it"
        )
        raise InvalidArgumentError(msg)
    return path
