"""Readers of labelled examples (tables, JSON lines, NumPy files, image folders), and a generator.

Generated examples are random tokens for text models, and `generated_inputs` for others. They show
whether two models compute the same, but not whether either is correct on real requests.

Image files need a model that decodes them, as ONNX files do not declare how pixels are scaled.
"""

import math
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Final

import numpy as np

from headrace.core import (
    VARIABLE,
    Array,
    Datatype,
    HeadraceError,
    InvalidArgumentError,
    ModelSignature,
    Tensors,
    TensorSpec,
)
from headrace.optimize.accuracy.cells import (
    LABEL_NAMES,
    PAIR_NAMES,
    TEXT_NAMES,
    are_numbers,
    as_request,
    cast,
    classes_named,
    label_column,
    labels_of,
    matrix_inputs,
    named_inputs,
    number_of,
    numbers_as_labels,
    numeric_rest,
    plain_inputs,
    takes_text,
    takes_tokens,
    text_columns,
    token_inputs,
    token_kinds,
)
from headrace.optimize.accuracy.examples import Examples, RowTexts, pair_requests, stacked_rows
from headrace.optimize.accuracy.tables import (
    MAX_CACHED_BYTES,
    MAX_EXAMPLES,
    MAX_FILE_BYTES,
    SEED,
    ExampleTable,
    IsHeader,
    check_size,
    read_json_lines,
    read_parquet,
    read_separated,
)
from headrace.optimize.generated_inputs import generated_inputs, sizes_that_run
from headrace.pipeline.tokenize import IDS, MASK
from headrace.runtimes import Model

_DAMAGED: Final = (
    ValueError,
    OSError,
    EOFError,
    KeyError,
    RuntimeError,
    NotImplementedError,
    zipfile.BadZipFile,
    zlib.error,
)


def read_npz(path: Path, signature: ModelSignature, *, label: str, limit: int) -> Examples:
    """Read examples from arrays whose axis 0 is the examples.

    Args:
        label: Name of the labels' array; empty for the usual names.

    Raises:
        InvalidArgumentError: It cannot be read, or does not fit the model.
    """
    arrays = _load(path)
    labelled = _label_name(arrays, label, signature, path)
    for spec in signature.inputs:
        if spec.name not in arrays:
            names = _array_names(arrays)
            msg = f"{path} has no array {spec.name!r}, only {names}; name arrays as inputs"
            raise InvalidArgumentError(msg)
    needed = [spec.name for spec in signature.inputs] + ([labelled] if labelled else [])
    sizes = {name: arrays[name].shape[0] if arrays[name].ndim else 0 for name in needed}
    total = min(sizes.values())
    if total != max(sizes.values()) or not total:
        sizes_text = ", ".join(f"{name} {size}" for name, size in sizes.items())
        raise InvalidArgumentError(
            f"{path}: arrays have no or different numbers of rows: {sizes_text}"
        )
    selected = np.arange(total)
    notes = []
    if total > limit:
        selected = np.sort(np.random.default_rng(SEED).choice(total, limit, replace=False))
        notes = [f"{limit:,} of {total:,} rows, drawn at random, the same every time"]
    rows = {spec.name: _rows(arrays[spec.name][selected], spec, path) for spec in signature.inputs}
    examples = Examples(
        inputs=_requests(rows, signature, path), batched=signature.batched, notes=tuple(notes)
    )
    if not labelled:
        return examples
    labels, label_names = _labels(arrays[labelled][selected], signature, path)
    return Examples(
        inputs=examples.inputs,
        labels=labels,
        names=label_names,
        batched=examples.batched,
        notes=examples.notes,
    )


def _load(path: Path) -> dict[str, Array]:
    """Load all arrays, after checking the sizes in the file's directory."""
    check_size(path)
    try:
        with zipfile.ZipFile(path) as archive:
            members = [info for info in archive.infolist() if info.filename.endswith(".npy")]
            if sum(info.file_size for info in members) > MAX_FILE_BYTES:
                msg = f"{path} unpacks to more than {MAX_FILE_BYTES >> 30} GiB; give a sample"
                raise InvalidArgumentError(msg)
            arrays = {}
            for info in members:
                with archive.open(info) as file:
                    _check_header(file, info.file_size)
                with archive.open(info) as file:
                    name = info.filename.removesuffix(".npy")
                    arrays[name] = np.lib.format.read_array(file, allow_pickle=False)
    except _DAMAGED as error:
        raise InvalidArgumentError(f"{path} cannot be read: {error}") from None
    if not arrays:
        raise InvalidArgumentError(f"{path} holds no arrays")
    return arrays


def _check_header(file: IO[bytes], size_bytes: int) -> None:
    """Refuse an array whose header declares more data than stored, before memory is allocated."""
    version = np.lib.format.read_magic(file)
    read = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }.get(version)
    if read is None:
        msg = f"an array is of version {version} of NumPy's format"
        raise ValueError(msg)
    shape, _, dtype = read(file)
    if dtype.hasobject:
        msg = "an array holds Python objects; save texts as NumPy's strings (dtype 'U' or 'S')"
        raise ValueError(msg)
    if math.prod(shape) * dtype.itemsize > size_bytes:
        msg = "an array's header declares more data than the file holds"
        raise ValueError(msg)


def _label_name(
    arrays: dict[str, Array], requested: str, signature: ModelSignature, path: Path
) -> str:
    if requested:
        if requested not in arrays:
            raise InvalidArgumentError(
                f"{path} has no array {requested!r}, only {_array_names(arrays)}"
            )
        return requested
    inputs = {spec.name for spec in signature.inputs}
    candidates = [n for n in arrays if n.casefold() in LABEL_NAMES and n not in inputs]
    if len(candidates) > 1:
        msg = f"{path}: {' and '.join(map(repr, candidates))} may be the labels; say which"
        raise InvalidArgumentError(msg)
    return candidates[0] if candidates else ""


def _rows(array: Array, spec: TensorSpec, path: Path) -> Array:
    if spec.datatype is not Datatype.BYTES:
        try:
            return cast(array, spec)
        except InvalidArgumentError as error:
            raise InvalidArgumentError(f"{path}: {error}") from None
    if array.dtype.kind not in "SU":
        raise InvalidArgumentError(f"{path}: input '{spec.name}' takes texts, not {array.dtype}")
    encoded = np.empty(array.shape, np.object_)
    flat = [
        value if isinstance(value, bytes) else value.encode()
        for value in array.reshape(-1).tolist()
    ]
    encoded.reshape(-1)[:] = flat
    return encoded


def _requests(rows: dict[str, Array], signature: ModelSignature, path: Path) -> Sequence[Tensors]:
    try:
        first = {
            spec.name: as_request(rows[spec.name][0, ...], spec, signature)
            for spec in signature.inputs
        }
        if signature.batched and all(
            array.shape == (1, *rows[name].shape[1:]) for name, array in first.items()
        ):
            return stacked_rows(rows, has_batch_axis=True)
        if all(array.shape == rows[name].shape[1:] for name, array in first.items()):
            return stacked_rows(rows, has_batch_axis=False)
        # The same number of values per row, in another shape.
        shaped = {
            name: rows[name].reshape(len(rows[name]), *array.shape) for name, array in first.items()
        }
        return stacked_rows(shaped, has_batch_axis=False)
    except InvalidArgumentError as error:
        raise InvalidArgumentError(f"{path}: {error}") from None


def _labels(array: Array, signature: ModelSignature, path: Path) -> tuple[Array, tuple[str, ...]]:
    if array.ndim > 1 and array.size == len(array):
        array = array.reshape(-1)
    if array.ndim != 1 or array.dtype.kind not in "biufSU":
        msg = f"{path}: labels are {array.dtype} {list(array.shape)}; give one number a row"
        raise InvalidArgumentError(msg)
    if array.dtype.kind in "SU":
        texts = [t.decode(errors="replace") if isinstance(t, bytes) else t for t in array.tolist()]
        return classes_named(texts, signature)
    wide = array.astype(np.float64)
    if not np.isfinite(wide).all():
        row = int(np.flatnonzero(~np.isfinite(wide))[0])
        raise InvalidArgumentError(f"{path}: label {row} (from 0) is not a finite number")
    return numbers_as_labels(wide), ()


def _array_names(arrays: dict[str, Array]) -> str:
    shown = 12
    return ", ".join(list(arrays)[:shown]) + (" and more" if len(arrays) > shown else "")


_SUFFIXES: Final = frozenset((".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp"))
_MAX_FILES: Final = 1_000_000


def read_pictures(folder: Path, signature: ModelSignature, *, limit: int) -> Examples:
    """Read image files, labelled by their folder names.

    Raises:
        InvalidArgumentError: The model does not decode images, or there are no or too many files.
    """
    spec = signature.inputs[0]
    if len(signature.inputs) != 1 or spec.datatype is not Datatype.BYTES:
        msg = (
            f"{folder} is a folder, and the model takes no files of pictures; give the tensors "
            "that it takes in an .npz, or a pipeline that decodes pictures"
        )
        raise InvalidArgumentError(msg)
    paths = _pictures(folder)
    selected = list(range(len(paths)))
    notes = []
    if len(paths) > limit:
        selected = np.random.default_rng(SEED).choice(len(paths), limit, replace=False).tolist()
        notes = [f"{limit:,} of {len(paths):,} pictures, drawn at random, the same every time"]
    sampled = [paths[i] for i in sorted(selected)]
    if sum(path.stat().st_size for path in sampled) > MAX_CACHED_BYTES:
        msg = f"{folder}: more than {MAX_CACHED_BYTES >> 20} MiB of pictures; set a smaller limit"
        raise InvalidArgumentError(msg)
    labels, names = classes_named([path.parent.name for path in sampled], signature)
    requests = [
        {spec.name: as_request(np.array([path.read_bytes()], np.object_), spec, signature)}
        for path in sampled
    ]
    return Examples(
        inputs=requests, labels=labels, names=names, batched=signature.batched, notes=tuple(notes)
    )


def _pictures(folder: Path) -> list[Path]:
    paths = []
    for path in folder.glob("*/*"):
        if path.suffix.lower() in _SUFFIXES and path.is_file():
            paths.append(path)
        if len(paths) > _MAX_FILES:
            raise InvalidArgumentError(f"{folder} holds more than {_MAX_FILES:,} pictures")
    if not paths:
        msg = f"{folder} holds no pictures in folders of their class, as in {folder}/cat/1.jpg"
        raise InvalidArgumentError(msg)
    return sorted(paths)


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
class DataOptions:
    """Options for reading labelled data; an empty option is detected."""

    label: str = ""
    """Column of the labels; unnamed columns are called "1", "2" and so on."""
    text: str = ""
    """Column of texts, or two columns separated by a comma."""
    tokenizer: Path | None = None
    """A `tokenizer.json`; None for the one beside the model."""
    max_length: int = 128
    """Longest text, in tokens."""
    limit: int | None = None
    """Most examples; a larger file is sampled, always in the same way. None for no limit."""
    is_bi_encoder: bool = False
    """Whether the model embeds one text, so that two texts in a row need a run each."""


def read_labelled(
    path: Path, signature: ModelSignature, options: DataOptions, *, tokenizer_path: Path
) -> Examples:
    """Read examples from a file by its suffix, with labels if it has any.

    Inputs are columns (or arrays) that are named like the model's; else, for a model of one matrix,
    all columns of numbers; else texts, which are tokenized for a model that takes token ids. Labels
    are in the column `label`, `y`, `target` or `class`; without names, in the last one.

    Args:
        beside: The model's file or folder, which may contain `tokenizer.json`.

    Raises:
        InvalidArgumentError: It cannot be read or does not fit the model; the message names the
            line and what to do.
        FailedPreconditionError: The library that reads it is not installed.
        UnsupportedModelError: The tokenizer file is invalid.
    """
    limit = MAX_EXAMPLES if options.limit is None else min(options.limit, MAX_EXAMPLES)
    if limit < 1:
        raise InvalidArgumentError(f"a limit of {limit} examples is too small; use 1 or more")
    if path.is_dir():
        return read_pictures(path, signature, limit=limit)
    if not path.exists():
        raise InvalidArgumentError(f"there is no {path}")
    suffix = path.suffix.lower()
    if suffix == ".npz":
        return read_npz(path, signature, label=options.label, limit=limit)
    table = _table(path, suffix, limit=limit, is_header=_header_rule(signature, options))
    label = label_column(table, options.label, inputs={spec.name for spec in signature.inputs})
    label, inputs, notes, texts = _inputs(table, label, signature, options, tokenizer_path)
    all_notes = (*notes, *_sampled(table))
    examples = Examples(inputs=inputs, batched=signature.batched, notes=all_notes, texts=texts)
    if label is None:
        return examples
    labels, names = labels_of(table, label, signature)
    return replace(examples, labels=labels, names=names)


def _table(path: Path, suffix: str, *, limit: int, is_header: IsHeader) -> ExampleTable:
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
    table: ExampleTable,
    label: str | None,
    signature: ModelSignature,
    options: DataOptions,
    tokenizer_path: Path,
) -> tuple[str | None, Sequence[Tensors], Sequence[str], RowTexts]:
    """Return the label column, requests, notes, and the role of the texts."""
    names = {spec.name for spec in signature.inputs}
    if table.is_named and names <= table.columns.keys() and not options.text:
        return label, named_inputs(table, signature), (), RowTexts.SINGLE
    if takes_tokens(signature) or takes_text(signature):
        columns, note = text_columns(table, options.text, label=label)
        # A column of numbers beside texts can only be their labels, whatever its name.
        label = label or numeric_rest(table, columns)
        notes = [note] if note else []
        texts = RowTexts.SINGLE
        if len(columns) > 1:
            texts = RowTexts.BI_ENCODER if options.is_bi_encoder else RowTexts.CROSS_ENCODER
            notes += [_COSINES] if options.is_bi_encoder else []
        return label, _text_inputs(table, columns, signature, options, tokenizer_path), notes, texts
    if len(signature.inputs) == 1:
        requests, column_notes = matrix_inputs(table, signature, label=label)
        return label, requests, column_notes, RowTexts.SINGLE
    missing = ", ".join(sorted(names - table.columns.keys()))
    msg = f"{table.path} has no column for input {missing}: {table.describe_columns()}"
    raise InvalidArgumentError(msg)


def _text_inputs(
    table: ExampleTable,
    columns: Sequence[str],
    signature: ModelSignature,
    options: DataOptions,
    tokenizer_path: Path,
) -> Sequence[Tensors]:
    if takes_tokens(signature):
        tokens: Callable[[Sequence[str]], Sequence[Tensors]] = lambda selected: token_inputs(  # noqa: E731  # short, and used three times
            table,
            selected,
            signature,
            tokenizer=options.tokenizer,
            tokenizer_path=tokenizer_path,
            max_length=options.max_length,
        )
        if len(columns) > 1 and options.is_bi_encoder:
            return pair_requests(tokens(columns[:1]), tokens(columns[1:]))
        return tokens(columns)
    if len(columns) > 1:
        texts = " and ".join(map(repr, columns))
        msg = f"{table.path}: the model takes one text a row, not {texts}"
        raise InvalidArgumentError(msg)
    return plain_inputs(table, columns[0], signature)


def _sampled(table: ExampleTable) -> list[str]:
    if len(table.lines) == table.rows:
        return []
    return [f"{len(table.lines):,} of {table.rows:,} rows, drawn at random, the same every time"]


def _header_rule(signature: ModelSignature, options: DataOptions) -> IsHeader:
    """Return a rule that detects a header row: known names, or texts above numbers."""
    columns = [name for names in signature.columns.values() for name in names]
    inputs = [spec.name for spec in signature.inputs]
    requested = [options.label, options.text, *options.text.split(",")]
    known_names = _KNOWN | {name.strip().casefold() for name in (*columns, *inputs, *requested)} - {
        ""
    }
    is_number: Callable[[str], bool] = lambda cell: number_of(cell) is not None  # noqa: E731  # short, and used twice

    def is_header(first: Sequence[str], second: Sequence[str]) -> bool:
        names = [cell.strip().casefold() for cell in first]
        if any(name in known_names and not is_number(name) for name in names):
            return True
        if not second or len(first) != len(second) or any(map(is_number, first)):
            return False
        return not are_numbers(first) and any(map(is_number, second)) and all(names)

    return is_header


_VOCABULARIES: Final = (30_000, 8_000, 1_000, 100, 2)
_LENGTHS: Final = (4, 64)
_FIRST_WORD: Final = 1_000
"""First ordinary token; smaller ids of large vocabularies are special or unused."""
_NOTE: Final = "generated inputs, because no data was given"


def generated_examples(model: Model, signature: ModelSignature, n: int, seed: int) -> Examples:
    """Generate `n` examples that the model runs on.

    Raises:
        UnsupportedModelError: The model does not run on generated inputs.
    """
    requests = _tokens(model, signature, n, seed) if takes_tokens(signature) else []
    if not requests:
        source = _generated(model, signature, seed)
        requests = [next(source) for _ in range(n)]
    return Examples(inputs=requests, batched=signature.batched, notes=(_NOTE,))


def _generated(model: Model, signature: ModelSignature, seed: int) -> Iterator[Tensors]:
    """Yield generated rows, cycling through the sizes that the model takes."""
    sizes = sizes_that_run(model)
    draw = 0
    while True:
        for size in sizes:
            inputs = generated_inputs(signature, variable=size, draw=seed * 1_000 + draw)
            draw += 1
            if not signature.batched:
                yield inputs
                continue
            rows = len(next(iter(inputs.values())))
            for row in np.linspace(0, rows - 1, min(rows, 16), dtype=int).tolist():
                yield {name: array[row : row + 1] for name, array in inputs.items()}


def _tokens(model: Model, signature: ModelSignature, n: int, seed: int) -> list[Tensors]:
    """Generate random tokens; empty if the model runs with no vocabulary size tried."""
    for size in _VOCABULARIES:
        rng = np.random.default_rng(seed)
        requests = [_request(signature, size, rng) for _ in range(n)]
        highest = {name: array.copy() for name, array in requests[0].items()} if requests else {}
        for name, kind in token_kinds(signature).items():
            if kind == IDS and highest:
                highest[name][...] = size - 1
        try:
            for request in (highest, *requests[:2]):
                if request:
                    model.run(request)
        except HeadraceError:
            continue
        return requests
    return []


def _request(signature: ModelSignature, vocabulary: int, rng: np.random.Generator) -> Tensors:
    sizes = {spec.shape[1] for spec in signature.inputs} - {VARIABLE}
    length = int(rng.integers(*_LENGTHS)) if not sizes else min(sizes)
    kinds = token_kinds(signature)
    first = min(_FIRST_WORD, vocabulary // 10)
    request = {}
    for spec in signature.inputs:
        size = length if spec.shape[1] == VARIABLE else spec.shape[1]
        row = np.zeros((1, size), spec.datatype.dtype)
        if kinds[spec.name] == IDS:
            row[0, :] = rng.integers(first, vocabulary, size)
        elif kinds[spec.name] == MASK:
            row[0, :] = 1
        request[spec.name] = row
    return request
