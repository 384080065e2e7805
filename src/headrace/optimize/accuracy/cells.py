"""Conversion of table cells to model inputs (numbers, texts, token ids) and labels."""

import math
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
from headrace.optimize.accuracy.examples import stacked_rows
from headrace.optimize.accuracy.tables import ExampleTable
from headrace.pipeline.tokenize import IDS, MASK, MAX_TEXT_BYTES, TYPES, open_tokenizer, pad_id

if TYPE_CHECKING:
    from tokenizers import Encoding

LABEL_NAMES: Final = ("label", "labels", "y", "target", "targets", "class")
MAX_CLASSES: Final = 10_000
_EXACT: Final = 2**53
_TRUTH: Final = {"true": 1.0, "false": 0.0}


def label_column(table: ExampleTable, requested: str, *, inputs: Collection[str]) -> str | None:
    """Return the label column: by name, or the last column of an unnamed table of numbers.

    Args:
        requested: Column name from the user; empty to detect it.
        inputs: Names of the model's inputs, which cannot be labels.

    Raises:
        InvalidArgumentError: The requested column is missing, or several columns match.
    """
    if requested:
        if requested not in table.columns:
            present = table.describe_columns()
            msg = f"{table.path} has no column {requested!r} for labels: it has {present}"
            raise InvalidArgumentError(msg)
        return requested
    if not table.is_named:
        last = list(table.columns)[-1]
        has_others = len(table.columns) > 1
        return last if has_others and are_numbers(table.columns[last]) else None
    candidates = [name for name in table.columns if name.casefold() in LABEL_NAMES]
    candidates = [name for name in candidates if name not in inputs]
    if len(candidates) > 1:
        msg = f"{table.path}: {' and '.join(map(repr, candidates))} may be the labels; say which"
        raise InvalidArgumentError(msg)
    return candidates[0] if candidates else None


def number_of(cell: object) -> float | None:
    """Parse a cell as a number; None if it is empty or not a number."""
    if not isinstance(cell, str | bool | int | float):
        return None
    try:
        return float(cell)
    except OverflowError:  # an integer with hundreds of digits
        return math.inf
    except ValueError:
        return _TRUTH.get(str(cell).strip().casefold())


def are_numbers(cells: Sequence[object]) -> bool:
    """Return whether all cells are numbers."""
    return all(number_of(cell) is not None for cell in cells)


def labels_of(
    table: ExampleTable, column: str, signature: ModelSignature
) -> tuple[Array, tuple[str, ...]]:
    """Return labels (int64 if all are integers, else float64) and the class names.

    Text labels get the model's class numbers if it declares names, else alphabetical numbers as in
    scikit-learn.

    Raises:
        InvalidArgumentError: A row has no label, or one of another type; the message has the line.
    """
    cells = table.columns[column]
    for row, cell in enumerate(cells):
        if cell is None or (isinstance(cell, str) and not cell.strip()):
            raise table.row_error(row, f"no label in column {column!r}; add it or remove the line")
    numbers = [number_of(cell) for cell in cells]
    invalid_rows = [row for row, number in enumerate(numbers) if number is None]
    if not invalid_rows:
        values = np.array(numbers, np.float64)
        endless = np.flatnonzero(~np.isfinite(values))
        if len(endless):
            raise table.row_error(int(endless[0]), "the label is not a finite number")
        return numbers_as_labels(values), ()
    if len(invalid_rows) < len(cells):
        shown = str(cells[invalid_rows[0]])[:40]
        raise table.row_error(
            invalid_rows[0], f"label {shown!r} is not a number, unlike others in {column!r}"
        )
    if not all(isinstance(cell, str) for cell in cells):
        raise table.row_error(0, f"column {column!r} holds neither numbers nor texts")
    texts = [str(cell).strip() for cell in cells]
    if len(set(texts)) > min(MAX_CLASSES, max(len(texts) // 2, 2)):
        msg = (
            f"{table.path}: column {column!r} holds {len(set(texts))} different texts in "
            f"{len(texts)} rows, too many for classes; say which column holds the labels"
        )
        raise InvalidArgumentError(msg)
    return classes_named(texts, signature)


def numbers_as_labels(values: Array) -> Array:
    """Convert to int64 if all values are integers, else to float64."""
    wide = values.astype(np.float64)
    whole = bool((wide == np.round(wide)).all()) and bool((np.abs(wide) < _EXACT).all())
    return wide.astype(np.int64) if whole else wide


def classes_named(texts: Sequence[str], signature: ModelSignature) -> tuple[Array, tuple[str, ...]]:
    """Return class numbers of text labels, and the class names by number."""
    present = set(texts)
    declared = (names for names in signature.labels.values() if present <= set(names))
    names = next(declared, tuple(sorted(present)))
    numbers = {name: number for number, name in enumerate(names)}
    return np.array([numbers[text] for text in texts], np.int64), tuple(names)


_MATRIX: Final = 2
_ROW_NAMES: Final = frozenset({"", "id", "idx", "index", "unnamed: 0", "row", "row_id"})


def named_inputs(table: ExampleTable, signature: ModelSignature) -> list[Tensors]:
    """Build requests from columns named like the inputs; list cells are tensors.

    Raises:
        InvalidArgumentError: A cell does not fit its input; the message names the line.
    """
    requests: list[Tensors] = [{} for _ in table.lines]
    for spec in signature.inputs:
        for row, cell in enumerate(table.columns[spec.name]):
            try:
                requests[row][spec.name] = as_request(_array(cell, spec), spec, signature)
            except InvalidArgumentError as error:
                raise table.row_error(row, str(error)) from None
    return requests


def matrix_inputs(
    table: ExampleTable, signature: ModelSignature, *, label: str | None
) -> tuple[Sequence[Tensors], tuple[str, ...]]:
    """Build requests of one matrix from all other columns; return them with notes.

    Raises:
        InvalidArgumentError: The number of columns is wrong, or a cell is not a number.
    """
    spec = signature.inputs[0]
    names, notes = _matrix_columns(table, signature, label)
    wide = np.empty((len(table.lines), len(names)))
    for i, name in enumerate(names):
        wide[:, i] = _numbers(table, name, spec)
    matrix = cast(wide, spec)
    rows = stacked_rows({spec.name: matrix}, has_batch_axis=True)
    if len(spec.shape) != _MATRIX:  # [F] or [N, F, 1]: the model's shape
        return [{spec.name: as_request(row[spec.name], spec, signature)} for row in rows], notes
    return rows, notes


def as_request(array: Array, spec: TensorSpec, signature: ModelSignature) -> Array:
    """Reshape one row to the input's declared shape.

    Raises:
        InvalidArgumentError: It does not fit.
    """
    inner = spec.shape[1:] if signature.batched else spec.shape
    tried = [array, array[np.newaxis]]
    if VARIABLE not in inner and array.size == math.prod(inner):
        tried.append(array.reshape((1, *inner) if signature.batched else inner))
    for candidate in tried:
        if spec.fits(candidate.shape) and (not signature.batched or candidate.shape[0] == 1):
            return np.asarray(candidate, order="C")
    shown = [size if size != VARIABLE else "any" for size in inner]
    msg = f"input '{spec.name}' takes {shown} a row, this is {list(array.shape)}"
    raise InvalidArgumentError(msg)


def cast(array: Array, spec: TensorSpec) -> Array:
    """Cast numbers to the input's datatype.

    Raises:
        InvalidArgumentError: A value is fractional, out of range or missing.
    """
    if array.dtype.kind not in "fiub":
        raise InvalidArgumentError(f"input '{spec.name}' takes {spec.datatype}, not {array.dtype}")
    dtype = spec.datatype.dtype
    with np.errstate(invalid="ignore", over="ignore"):
        converted = array.astype(dtype)
        if dtype.kind == "f":
            fits = np.isinf(converted) <= np.isinf(array)
        else:
            fits = converted.astype(array.dtype) == array
    if not fits.all():
        shown = array[~fits].reshape(-1)[0]
        raise InvalidArgumentError(f"input '{spec.name}': {shown:g} is no {spec.datatype}")
    return converted


def _array(cell: object, spec: TensorSpec) -> Array:
    if spec.datatype is Datatype.BYTES:
        cells = np.array(cell, np.object_)
        encoded = np.empty(cells.shape, np.object_)
        for index in np.ndindex(cells.shape):
            element = cells[index]
            if not isinstance(element, str | bytes | int | float):
                raise InvalidArgumentError(f"input '{spec.name}' takes texts, not {element!r:.40}")
            encoded[index] = element if isinstance(element, bytes) else str(element).encode()
        return encoded
    if isinstance(cell, list):
        try:
            values = np.array(cell)
        except ValueError:
            raise InvalidArgumentError(f"input '{spec.name}': rows differ in length") from None
        return cast(values, spec)
    text = cell.strip() if isinstance(cell, str) else cell
    if isinstance(text, str | int) and spec.datatype.dtype.kind in "iu":
        try:
            return cast(np.array(int(text)), spec)  # a float would lose the digits of a long id
        except (ValueError, OverflowError):
            pass
    missing = math.nan if text is None or text == "" else None
    number = missing if missing is not None else number_of(text)
    if number is None:
        shown = str(cell)[:40]
        raise InvalidArgumentError(f"input '{spec.name}': {shown!r} is no {spec.datatype}")
    return cast(np.array(number), spec)


def _numbers(table: ExampleTable, name: str, spec: TensorSpec) -> Array:
    cells = table.columns[name]
    if all(isinstance(cell, str) for cell in cells):
        try:
            return np.array(cells).astype(np.float64)
        except ValueError:
            pass  # a missing value or a non-number: reported below, with its line
    can_miss = spec.datatype.dtype.kind == "f"
    values = np.empty(len(cells))
    for row, cell in enumerate(cells):
        is_missing = cell is None or (isinstance(cell, str) and not cell.strip())
        number = math.nan if is_missing and can_miss else number_of(cell)
        if number is None:
            shown = "nothing" if is_missing else repr(str(cell)[:40])
            raise table.row_error(row, f"column {name!r}: {shown} is no {spec.datatype}")
        values[row] = number
    return values


def _matrix_columns(
    table: ExampleTable, signature: ModelSignature, label: str | None
) -> tuple[list[str], tuple[str, ...]]:
    """Return the feature columns in the model's order, with notes."""
    spec = signature.inputs[0]
    others = [name for name in table.columns if name != label]
    declared = signature.columns.get(spec.name, ())
    if declared and set(declared) <= set(others):
        return list(declared), ()
    inner = spec.shape[1:] if signature.batched else spec.shape
    width = len(others) if VARIABLE in inner else math.prod(inner)
    notes = []
    if len(others) == width + 1:
        numbering = [name for name in others if name.casefold() in _ROW_NAMES]
        if len(numbering) == 1:
            others.remove(numbering[0])
            notes.append(f"column {numbering[0]!r} was taken for the rows' number, and left out")
    if len(others) != width:
        label_note = (
            f"column {label!r} is the label" if label else "no column was taken as the label"
        )
        msg = (
            f"input '{spec.name}' takes {width} numbers per row, and {table.path} has "
            f"{len(others)} columns for it ({label_note}; {table.describe_columns()}); remove or "
            "add columns, or name the label column"
        )
        raise InvalidArgumentError(msg)
    if table.is_named:
        notes.append(f"columns are input '{spec.name}' in the file's order: the model names none")
    return others, tuple(notes)


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
"""Tokenizer output by the input names that exporters use."""
_MAX_CONCURRENT: Final = 512
_PAIR: Final = 2


def takes_tokens(signature: ModelSignature) -> bool:
    """Return whether all inputs are tokenizer outputs, token ids among them."""
    kinds = [_KINDS.get(spec.name) for spec in signature.inputs]
    are_integers = all(
        spec.datatype.dtype.kind in "iu" and len(spec.shape) == _MATRIX for spec in signature.inputs
    )
    return IDS in kinds and None not in kinds and are_integers


def token_kinds(signature: ModelSignature) -> dict[str, str]:
    """Return the tokenizer output for each input."""
    return {spec.name: _KINDS[spec.name] for spec in signature.inputs}


def takes_text(signature: ModelSignature) -> bool:
    """Return whether the model takes raw text."""
    return len(signature.inputs) == 1 and signature.inputs[0].datatype is Datatype.BYTES


def text_columns(
    table: ExampleTable, requested: str, *, label: str | None
) -> tuple[list[str], str]:
    """Return the text column, or two for text pairs, with a note about the choice.

    Args:
        requested: Column names from the user, separated by a comma; empty to detect them.

    Raises:
        InvalidArgumentError: No column matches, or the choice is ambiguous.
    """
    others = [name for name in table.columns if name != label]
    if requested:
        names = (
            [requested]
            if requested in table.columns
            else [name.strip() for name in requested.split(",")]
        )
        missing = [name for name in names if name not in table.columns]
        if missing or len(names) > _PAIR:
            problem = f"no column {missing[0]!r}" if missing else "more than two columns of text"
            raise InvalidArgumentError(f"{table.path}: {problem}: {table.describe_columns()}")
        return names, ""
    lower = {name.casefold(): name for name in reversed(others)}
    for pair in PAIR_NAMES:
        if table.is_named and set(pair) <= lower.keys():
            return [lower[name] for name in pair], ""
    for usual_name in TEXT_NAMES:
        if table.is_named and usual_name in lower:
            return [lower[usual_name]], ""
    candidates = [name for name in others if not are_numbers(table.columns[name])]
    if not 1 <= len(candidates) <= _PAIR:
        many = "several columns of text" if candidates else "no column of text"
        msg = (
            f"{table.path} has {many} ({table.describe_columns()}); say which one, or two for pairs"
        )
        raise InvalidArgumentError(msg)
    if len(candidates) == 1:
        return candidates, f"column {candidates[0]!r} was taken for the texts"
    return (
        candidates,
        f"columns {candidates[0]!r} and {candidates[1]!r} were taken for pairs of texts",
    )


def numeric_rest(table: ExampleTable, texts: Collection[str]) -> str | None:
    """Return the only other numeric column as the label column; None if there are several."""
    rest = [name for name in table.columns if name not in texts]
    numeric = [name for name in rest if are_numbers(table.columns[name])]
    return numeric[0] if len(numeric) == 1 else None


def plain_inputs(table: ExampleTable, column: str, signature: ModelSignature) -> list[Tensors]:
    """Build requests of raw text."""
    spec = signature.inputs[0]
    return [
        {spec.name: as_request(np.array([text.encode()], np.object_), spec, signature)}
        for text in _texts(table, column)
    ]


def token_inputs(
    table: ExampleTable,
    columns: Sequence[str],
    signature: ModelSignature,
    *,
    tokenizer: Path | None,
    tokenizer_path: Path,
    max_length: int,
) -> list[Tensors]:
    """Build requests of token ids of each text's length, padded only if the axis is fixed.

    Args:
        tokenizer: A `tokenizer.json`; None for the one in the model's folder.
        beside: The model's file or folder.

    Raises:
        InvalidArgumentError: The tokenizer is missing, or a row is not text.
        FailedPreconditionError: The library is not installed.
        UnsupportedModelError: The file is not a tokenizer.
    """
    sizes = {spec.shape[1] for spec in signature.inputs} - {VARIABLE}
    folder = tokenizer_path if tokenizer_path.is_dir() else tokenizer_path.parent
    path = tokenizer or folder / TOKENIZER_FILE
    if path.is_dir():
        path = path / TOKENIZER_FILE
    if not path.is_file():
        msg = (
            f"the model takes token ids, and there is no {path}; put the tokenizer.json that it "
            "was trained with beside the model, or name it"
        )
        raise InvalidArgumentError(msg)
    opened = open_tokenizer(path, max_length=min({max_length} | sizes))
    filling = {IDS: pad_id(opened), MASK: 0, TYPES: 0}
    opened.no_padding()
    texts = [_texts(table, column) for column in columns]
    pairs = list(zip(*texts, strict=True)) if len(texts) == _PAIR else texts[0]
    requests: list[Tensors] = []
    try:
        for start in range(0, len(pairs), _MAX_CONCURRENT):
            encodings = opened.encode_batch(pairs[start : start + _MAX_CONCURRENT])
            requests += [_request(encoding, signature, filling) for encoding in encodings]
    except Exception as error:  # the library raises bare ones
        msg = f"{path} cannot tokenize the texts of {table.path}: {str(error)[:200]}"
        raise InvalidArgumentError(msg) from error
    empty = next(
        (
            row
            for row, request in enumerate(requests)
            if not min(int(array.shape[1]) for array in request.values())
        ),
        None,
    )
    if empty is not None:
        raise table.row_error(empty, "the text has no tokens; correct or remove the line")
    return requests


def _request(
    encoding: "Encoding", signature: ModelSignature, filling: Mapping[str, int]
) -> Tensors:
    rows = {IDS: encoding.ids, MASK: encoding.attention_mask, TYPES: encoding.type_ids}
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


def _texts(table: ExampleTable, column: str) -> list[str]:
    texts = []
    for row, cell in enumerate(table.columns[column]):
        if not isinstance(cell, str):
            raise table.row_error(row, f"column {column!r} holds {cell!r:.40}, which is not text")
        if len(cell) > MAX_TEXT_BYTES:
            raise table.row_error(row, f"the text has more than {MAX_TEXT_BYTES} characters")
        texts.append(cell)
    return texts
