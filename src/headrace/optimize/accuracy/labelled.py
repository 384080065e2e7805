"""Reads examples with their labels from what people have: tables, JSON lines, `.npz`, pictures."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from headrace.core import InvalidArgumentError, ModelSignature, Tensors
from headrace.optimize.accuracy.examples import Examples
from headrace.optimize.accuracy.input_cells import matrix_inputs, named_inputs
from headrace.optimize.accuracy.label_cells import (
    LABEL_NAMES,
    are_numbers,
    label_column,
    labels_of,
    number_of,
)
from headrace.optimize.accuracy.numpy_files import read_npz
from headrace.optimize.accuracy.pair_requests import Texts, apart
from headrace.optimize.accuracy.picture_folders import read_pictures
from headrace.optimize.accuracy.tables import MAX_EXAMPLES, IsHeader, Table, read_separated
from headrace.optimize.accuracy.text_cells import (
    PAIR_NAMES,
    TEXT_NAMES,
    numeric_rest,
    plain_inputs,
    takes_text,
    takes_tokens,
    text_columns,
    token_inputs,
)
from headrace.optimize.accuracy.typed_tables import read_json_lines, read_parquet

_FORMATS: Final = (
    ".csv, .tsv, .txt (tab separated), .parquet, .jsonl, .npz, or a folder of pictures"
)
_COSINES: Final = (
    "the model embeds one text at a time, so that pairs are judged by the cosine of two embeddings"
)
_KNOWN: Final = frozenset(
    (*LABEL_NAMES, *TEXT_NAMES, *(name for pair in PAIR_NAMES for name in pair))
)


@dataclass(frozen=True, slots=True, kw_only=True)
class DataWish:
    """What somebody said about the data; what is empty is found out.

    `label`: the column of labels. `text`: the column of texts, or two with a comma between them.
    Columns without names are called "1", "2" and so on. `tokenizer`: a `tokenizer.json`; None for
    the one beside the model. `max_length`: in tokens. `limit`: how many examples at most; of more,
    a sample is drawn, the same one every time. `is_apart`: the model embeds one text, so that two
    in a row are asked one by one.
    """

    label: str = ""
    text: str = ""
    tokenizer: Path | None = None
    max_length: int = 128
    limit: int | None = None
    is_apart: bool = False


def read_labelled(
    path: Path, signature: ModelSignature, wish: DataWish, *, beside: Path
) -> Examples:
    """The examples in a file, by its suffix; without labels where it has none.

    Inputs are columns (or arrays) that are named like the model's; else, for a model of one matrix,
    all columns of numbers; else texts, which are tokenized for a model that takes token ids.
    Labels are in the column `label`, `y`, `target` or `class`; without names, in the last one.

    Args:
        beside: The model's file or folder, where its `tokenizer.json` may lie.

    Raises:
        InvalidArgumentError: It cannot be read or does not fit the model; the message names the
            line and what to do.
        FailedPreconditionError: The library that reads it is not installed.
        UnsupportedModelError: The tokenizer is none.
    """
    limit = MAX_EXAMPLES if wish.limit is None else min(wish.limit, MAX_EXAMPLES)
    if limit < 1:
        raise InvalidArgumentError(f"at most {limit} examples are none; ask for one or more")
    if path.is_dir():
        return read_pictures(path, signature, limit=limit)
    if not path.exists():
        raise InvalidArgumentError(f"there is no {path}")
    suffix = path.suffix.lower()
    if suffix == ".npz":
        return read_npz(path, signature, label=wish.label, limit=limit)
    table = _table(path, suffix, limit=limit, is_header=_header_rule(signature, wish))
    label = label_column(table, wish.label, inputs={spec.name for spec in signature.inputs})
    label, inputs, notes, texts = _inputs(table, label, signature, wish, beside)
    told = (*notes, *_sampled(table))
    found = Examples(inputs=inputs, batched=signature.batched, notes=told, texts=texts)
    if label is None:
        return found
    labels, names = labels_of(table, label, signature)
    return replace(found, labels=labels, names=names)


def _table(path: Path, suffix: str, *, limit: int, is_header: IsHeader) -> Table:
    match suffix:
        case ".csv" | ".tsv" | ".txt" | ".tab":
            return read_separated(path, limit=limit, is_header=is_header)
        case ".jsonl" | ".ndjson":
            return read_json_lines(path, limit=limit)
        case ".parquet" | ".pq":
            return read_parquet(path, limit=limit)
        case _:
            msg = f"{path}: examples are read from {_FORMATS}; rename or convert it"
            raise InvalidArgumentError(msg)


def _inputs(
    table: Table, label: str | None, signature: ModelSignature, wish: DataWish, beside: Path
) -> tuple[str | None, Sequence[Tensors], Sequence[str], Texts]:
    """The column of labels, requests, notes, and what the texts of a row are."""
    names = {spec.name for spec in signature.inputs}
    if table.is_named and names <= table.columns.keys() and not wish.text:
        return label, named_inputs(table, signature), (), Texts.ONE
    if takes_tokens(signature) or takes_text(signature):
        columns, note = text_columns(table, wish.text, label=label)
        # A column of numbers beside texts can only be their labels, whatever it is called.
        label = label or numeric_rest(table, columns)
        notes = [note] if note else []
        texts = Texts.ONE
        if len(columns) > 1:
            texts = Texts.APART if wish.is_apart else Texts.TOGETHER
            notes += [_COSINES] if wish.is_apart else []
        return label, _text_inputs(table, columns, signature, wish, beside), notes, texts
    if len(signature.inputs) == 1:
        requests, told = matrix_inputs(table, signature, label=label)
        return label, requests, told, Texts.ONE
    missing = ", ".join(sorted(names - table.columns.keys()))
    msg = f"{table.path} has no column for input {missing}: {table.told()}"
    raise InvalidArgumentError(msg)


def _text_inputs(
    table: Table,
    columns: Sequence[str],
    signature: ModelSignature,
    wish: DataWish,
    beside: Path,
) -> Sequence[Tensors]:
    if takes_tokens(signature):
        tokens: Callable[[Sequence[str]], Sequence[Tensors]] = lambda those: token_inputs(  # noqa: E731  # short, and used three times
            table,
            those,
            signature,
            tokenizer=wish.tokenizer,
            beside=beside,
            max_length=wish.max_length,
        )
        if len(columns) > 1 and wish.is_apart:
            return apart(tokens(columns[:1]), tokens(columns[1:]))
        return tokens(columns)
    if len(columns) > 1:
        texts = " and ".join(map(repr, columns))
        msg = f"{table.path}: the model takes one text a row, not {texts}"
        raise InvalidArgumentError(msg)
    return plain_inputs(table, columns[0], signature)


def _sampled(table: Table) -> list[str]:
    if len(table.lines) == table.rows:
        return []
    return [f"{len(table.lines):,} of {table.rows:,} rows, drawn at random, the same every time"]


def _header_rule(signature: ModelSignature, wish: DataWish) -> IsHeader:
    """Names are known ones, or texts over numbers."""
    columns = [name for names in signature.columns.values() for name in names]
    inputs = [spec.name for spec in signature.inputs]
    wished = [wish.label, wish.text, *wish.text.split(",")]
    known = _KNOWN | {name.strip().casefold() for name in (*columns, *inputs, *wished)} - {""}
    is_number: Callable[[str], bool] = lambda cell: number_of(cell) is not None  # noqa: E731  # short, and used twice

    def is_header(first: Sequence[str], second: Sequence[str]) -> bool:
        names = [cell.strip().casefold() for cell in first]
        if any(name in known and not is_number(name) for name in names):
            return True
        if not second or len(first) != len(second) or any(map(is_number, first)):
            return False
        return not are_numbers(first) and any(map(is_number, second)) and all(names)

    return is_header
