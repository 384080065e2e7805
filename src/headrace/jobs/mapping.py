"""Mapping of columns to the inputs of a model, checked against schemas before data is read.

All mistakes are reported at once, each with its remedy.
"""

import difflib
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from headrace.core import Datatype, InvalidArgumentError, ModelSignature, TensorSpec
from headrace.jobs.columns import convertible, innermost, is_list, is_text, row_shape, width
from headrace.jobs.libraries import Schema, pa
from headrace.jobs.messages import ColumnPlan, InputColumns

RESERVED: Final = frozenset({"model_version", "error"})
"""Columns of every output."""
LABEL: Final = "_label"
_RANGE: Final = re.compile(r"(?P<stem>.*?)(?P<first>\d+)\.\.(?P<same>.*?)(?P<last>\d+)")
_MAX_COLUMNS: Final = 100_000
_SHOWN: Final = 8


class MappingError(InvalidArgumentError):
    """Columns do not fit the inputs; `mistakes` lists all problems."""

    def __init__(self, mistakes: Sequence[str]) -> None:
        many = len(mistakes) > 1
        head = f"{len(mistakes)} mistakes; no data was read:\n  " if many else ""
        super().__init__(head + "\n  ".join(mistakes))
        self.mistakes = tuple(mistakes)


def parse_map(texts: Sequence[str]) -> dict[str, list[str]]:
    """Return columns by input from `INPUT=COLUMN`, `INPUT=A,B,C` or `INPUT=f0..f31`.

    Raises:
        InvalidArgumentError: The text is invalid, or an input is mapped twice.
    """
    mapping: dict[str, list[str]] = {}
    for text in texts:
        name, equals, columns = text.partition("=")
        name = name.strip()
        parts = [part.strip() for part in columns.split(",")]
        if not equals or not name or not all(parts):
            msg = f"'{text}' is not a mapping; write INPUT=COLUMN, INPUT=A,B,C or INPUT=f0..f31"
            raise InvalidArgumentError(msg)
        if name in mapping:
            raise InvalidArgumentError(
                f"input '{name}' is mapped twice; list its columns in one mapping"
            )
        mapping[name] = [column for part in parts for column in _expanded(part)]
    return mapping


def parse_keys(texts: Sequence[str]) -> dict[str, str]:
    """Return columns by key name from `COLUMN` or `NAME=COLUMN`, separated by commas.

    Raises:
        InvalidArgumentError: A key is empty, or given twice.
    """
    keys: dict[str, str] = {}
    for part in (part.strip() for text in texts for part in text.split(",")):
        name, _, column = part.partition("=")
        name, column = name.strip(), (column or name).strip()
        if not name or not column:
            raise InvalidArgumentError(f"'{part}' is not a key; write COLUMN or NAME=COLUMN")
        if name in keys:
            raise InvalidArgumentError(f"the key '{name}' is given twice")
        keys[name] = column
    return keys


def plan_columns(
    signature: ModelSignature,
    schema: Schema,
    *,
    mapping: Mapping[str, Sequence[str]],
    keys: Mapping[str, str],
    outputs: Sequence[str],
    has_types: bool = True,
) -> ColumnPlan:
    """Return the columns to read and the inputs that they become.

    An input that `mapping` does not name takes the column of its name; a matrix takes the columns
    that the model was trained with, if known, or `NAME_0`, `NAME_1`, ... or `f0`, `f1`, ...

    Args:
        has_types: Whether the schema has types; otherwise text may be read as numbers.

    Raises:
        MappingError: Columns do not fit; it lists all mistakes.
    """
    mistakes: list[str] = []
    kinds = {name: schema.field(name).type for name in dict.fromkeys(schema.names)}
    inputs = []
    if not signature.inputs:
        message = "a language model has no tensors: send its requests by `headrace batch openai`"
        raise MappingError([message])
    mistakes += [
        f"the model has no input '{name}'{_near(name, [s.name for s in signature.inputs])}"
        for name in mapping
        if signature.input(name) is None
    ]
    for spec in signature.inputs:
        shape = row_shape(spec, batched=signature.batched)
        columns = list(mapping.get(spec.name, ())) or _by_itself(spec, shape, signature, kinds)
        if not columns:
            mistakes.append(_no_columns(spec, kinds))
            continue
        mistakes += _wrong(spec, shape, columns, kinds, has_types=has_types)
        inputs.append(InputColumns(input=spec.name, columns=columns))
    output_names, output_mistakes = _outputs(signature, outputs)
    mistakes += output_mistakes
    labels = [f"{name}{LABEL}" for name in output_names if name in signature.labels]
    mistakes += _wrong_keys(keys, kinds, [*output_names, *labels])
    if mistakes:
        raise MappingError(mistakes)
    return ColumnPlan(inputs=inputs, keys=dict(keys), outputs=output_names)


def _expanded(text: str) -> list[str]:
    """Return the names of a range such as `f0..f31`; other text unchanged."""
    match = _RANGE.fullmatch(text)
    if match is None or match["same"] not in {"", match["stem"]}:
        return [text]
    first, last = int(match["first"]), int(match["last"])
    if not first <= last < first + _MAX_COLUMNS:
        raise InvalidArgumentError(f"'{text}' is not a range of columns")
    digits = len(match["first"]) if match["first"].startswith("0") and first else 0
    return [f"{match['stem']}{i:0{digits}d}" for i in range(first, last + 1)]


def _by_itself(
    spec: TensorSpec, shape: tuple[int, ...], signature: ModelSignature, kinds: Mapping[str, Any]
) -> list[str]:
    if spec.name in kinds:
        return [spec.name]
    trained = list(signature.columns.get(spec.name, ()))
    size = width(shape)
    if trained and all(column in kinds for column in trained):
        return trained
    if size is None or len(shape) != 1 or spec.datatype is Datatype.BYTES:
        return []
    stems = [f"{spec.name}_", spec.name, *(["f"] if len(signature.inputs) == 1 else [])]
    for stem in stems:
        columns = [f"{stem}{i}" for i in range(size)]
        # A surplus column shows that the table is not the one that the model was trained on.
        if all(column in kinds for column in columns) and f"{stem}{size}" not in kinds:
            return columns
    return []


def _no_columns(spec: TensorSpec, kinds: Mapping[str, Any]) -> str:
    near = difflib.get_close_matches(spec.name, kinds, n=1)
    example = near[0] if near else "COLUMN[,COLUMN...]"
    return (
        f"input '{spec.name}' ({spec.datatype} {list(spec.shape)}) has no column; the data has "
        f"{_listed(kinds)}: use --map {spec.name}={example}"
    )


def _wrong(
    spec: TensorSpec,
    shape: tuple[int, ...],
    columns: Sequence[str],
    kinds: Mapping[str, Any],
    *,
    has_types: bool,
) -> list[str]:
    subject = f"input '{spec.name}' ({spec.datatype} {list(spec.shape)})"
    missing = [name for name in columns if name not in kinds]
    if missing:
        return [
            f"{subject}: there is no column '{name}'{_near(name, kinds)}"
            for name in missing[:_SHOWN]
        ] + (
            [f"{subject}: {len(missing)} columns are missing in all"]
            if len(missing) > _SHOWN
            else []
        )
    twice = next((name for name in columns if list(columns).count(name) > 1), None)
    if twice is not None:
        return [f"{subject}: column '{twice}' is given twice"]
    mistakes = []
    size = width(shape)
    several = len(columns) > 1
    if several and size not in {None, len(columns)}:
        mistakes.append(
            f"{subject} takes {size} values a row, and {len(columns)} columns are given"
        )
    for name in columns:
        kind = kinds[name]
        if several and is_list(kind):
            mistakes.append(
                f"{subject}: column '{name}' is {kind}; of several columns, each is a scalar"
            )
        elif not several and not is_list(kind) and size not in {1, None}:
            mistakes.append(
                f"{subject} takes {size} values a row, and column '{name}' is one ({kind}); give "
                f"{size} columns, or one of lists"
            )
        elif pa.types.is_fixed_size_list(kind) and size not in {None, _fixed(kind)}:
            mistakes.append(
                f"{subject} takes {size} values a row, and '{name}' holds {_fixed(kind)}"
            )
        elif has_types and not convertible(innermost(kind), spec.datatype):
            mistakes.append(
                f"{subject}: column '{name}' is {kind}, which cannot become {spec.datatype}"
            )
    if shape.count(-1) > 1 or (-1 in shape and len(shape) > 1 and several):
        mistakes.append(
            f"{subject} has several variable axes, whose sizes columns cannot determine"
        )
    return mistakes[:_SHOWN]


def _fixed(kind: Any) -> int | None:  # noqa: ANN401  # pyarrow has no types
    size = 1
    while pa.types.is_fixed_size_list(kind):
        size *= kind.list_size
        kind = kind.value_type
    return None if is_list(kind) else size


def _outputs(signature: ModelSignature, requested: Sequence[str]) -> tuple[list[str], list[str]]:
    names = [spec.name for spec in signature.outputs]
    wrong = [
        f"the model has no output '{name}'{_near(name, names)}"
        for name in requested
        if name not in names
    ]
    return [name for name in names if not requested or name in requested], wrong


def _wrong_keys(
    keys: Mapping[str, str], kinds: Mapping[str, Any], outputs: Sequence[str]
) -> list[str]:
    mistakes = []
    for name, column in keys.items():
        if column not in kinds:
            mistakes.append(f"--keys: there is no column '{column}'{_near(column, kinds)}")
        elif name in outputs or name in RESERVED:
            mistakes.append(
                f"--keys: the output has a column '{name}' already; use {name}_in={column}"
            )
        elif not _is_plain(kinds[column]):
            mistakes.append(
                f"--keys: column '{column}' is {kinds[column]}, but a key must be a scalar"
            )
    mistakes += [
        f"output '{name}' has the name of a reserved column; leave it out"
        for name in outputs
        if name in RESERVED
    ]
    return mistakes


def _is_plain(kind: Any) -> bool:  # noqa: ANN401  # as above
    types = pa.types
    return is_text(kind) or bool(
        types.is_primitive(kind) or types.is_decimal(kind) or types.is_boolean(kind)
    )


def _near(name: str, candidates: "Sequence[str] | Mapping[str, Any]") -> str:
    close = difflib.get_close_matches(name, list(candidates), n=1, cutoff=0.6)
    return f"; did you mean '{close[0]}'?" if close else f"; there are {_listed(candidates)}"


def _listed(names: "Sequence[str] | Mapping[str, Any]") -> str:
    listed = list(names)
    more = f" and {len(listed) - _SHOWN} more" if len(listed) > _SHOWN else ""
    return (", ".join(listed[:_SHOWN]) or "none") + more
