"""Conversion of input files (JSON, CSV, .npy, .npz) to the inputs of one model."""

import csv
import io
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import typer

from headrace.core import (
    VARIABLE,
    Array,
    Datatype,
    InvalidArgumentError,
    ModelSignature,
    NullPolicy,
    TensorSpec,
)
from headrace.protocol.values import numbers_of

_NPY: Final = b"\x93NUMPY"
_ZIP: Final = b"PK\x03\x04"
_SHOWN: Final = 8
_TRUTH: Final = {"true": True, "false": False, "1": True, "0": False}

Inputs = dict[str, Any]
"""Arrays or nested lists by input name; the client turns them into tensors."""


def read_file(file: str) -> bytes:
    """Return a file's bytes; standard input's for `-`.

    Raises:
        BadParameter: The file does not exist.
    """
    if file == "-":
        return sys.stdin.buffer.read()
    path = Path(file)
    if not path.is_file():
        msg = f"no file '{file}'"
        raise typer.BadParameter(msg, param_hint="--input")
    return path.read_bytes()


def read_inputs(data: bytes, signature: ModelSignature) -> Inputs:
    """Return the inputs in `data`; the format is detected from its first bytes.

    JSON may be a V2 request, a V1 request (`instances` or `inputs`), an object of values by input
    name, or a list of rows for a model with one input. In CSV each line is a row: a header that
    names the inputs assigns the columns, else all columns together are the only input. A null of
    JSON, or nothing between commas, is a missing value of an input of floats.

    Raises:
        InvalidArgumentError: The data cannot be read, or does not name the model's inputs.
    """
    if data.startswith((_NPY, _ZIP)):
        return _from_numpy(data, signature)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        msg = f"the input is neither UTF-8 text nor a NumPy file: {error}"
        raise InvalidArgumentError(msg) from None
    if not text.strip():
        raise InvalidArgumentError("the input is empty")
    if text.lstrip()[0] in "{[":
        return _from_json(text, signature)
    return _from_csv(text, signature)


def refuse_nulls(inputs: Inputs, signature: ModelSignature) -> None:
    """Raise InvalidArgumentError for a null of JSON, or nothing between the commas of CSV."""
    for name, value in inputs.items():
        spec = signature.input(name)
        if spec is not None and not isinstance(value, np.ndarray):
            flat = np.asarray(value, dtype=np.object_).reshape(-1).tolist()
            numbers_of(name, spec.datatype, flat, NullPolicy.ERROR)


def with_batch_axis(inputs: Inputs, signature: ModelSignature) -> Inputs:
    """Return `inputs`, with a batch axis added to a single row of a batched model."""
    if not signature.batched:
        return inputs
    rows = {}
    for name, value in inputs.items():
        spec = signature.input(name)
        is_array = isinstance(value, np.ndarray)
        rank = value.ndim if is_array else _depth(value)
        if spec is None or rank != len(spec.shape) - 1:
            rows[name] = value
        else:
            rows[name] = value[np.newaxis] if is_array else [value]
    return rows


def _depth(value: object) -> int:
    depth = 0
    while isinstance(value, list) and value:
        depth, value = depth + 1, value[0]
    return depth + isinstance(value, list)


def _from_numpy(data: bytes, signature: ModelSignature) -> Inputs:
    try:
        loaded = np.load(io.BytesIO(data), allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            arrays: dict[str, Array] = {_only_input(signature, "a .npy file").name: loaded}
        else:
            with loaded:
                arrays = {name: loaded[name] for name in loaded.files}
    except (ValueError, OSError, EOFError, KeyError) as error:
        msg = f"the NumPy file cannot be read: {error}"
        raise InvalidArgumentError(msg) from None
    except Exception as error:
        # The errors of zipfile have no common base besides Exception.
        if type(error).__module__ not in {"zipfile", "zlib"}:
            raise
        msg = f"the .npz file is damaged: {error}"
        raise InvalidArgumentError(msg) from None
    _check_names(arrays, signature)
    # NumPy creates float64 and int64 from literals; a list takes the model's datatype, and the
    # client checks that it fits.
    inputs: Inputs = {}
    for spec in signature.inputs:
        array = arrays[spec.name]
        fits = spec.datatype is Datatype.BYTES or array.dtype == spec.datatype.dtype
        inputs[spec.name] = array if fits else array.tolist()
    return inputs


def _from_json(text: str, signature: ModelSignature) -> Inputs:
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        msg = f"the input is not JSON: {error}"
        raise InvalidArgumentError(msg) from None
    if isinstance(document, list):
        return _from_instances(document, signature)
    inputs = document.get("inputs")
    if isinstance(inputs, list) and inputs:
        keys = [tensor.keys() if isinstance(tensor, dict) else () for tensor in inputs]
        if all({"name", "data"} <= set(names) for names in keys):
            return _from_v2(inputs, signature)
    if "instances" in document:
        return _from_instances(document["instances"], signature)
    if inputs is not None and signature.input("inputs") is None:
        return _named(inputs, signature)
    return _named(document, signature)


def _from_v2(tensors: Sequence[Mapping[str, Any]], signature: ModelSignature) -> Inputs:
    inputs = {}
    for tensor in tensors:
        name, data, shape = tensor["name"], tensor["data"], tensor.get("shape")
        if shape is None:
            inputs[name] = data
            continue
        try:
            inputs[name] = np.array(data, dtype=np.object_).reshape(shape).tolist()
        except (ValueError, TypeError) as error:
            msg = f"input '{name}': its data does not have the shape {shape}: {error}"
            raise InvalidArgumentError(msg) from None
    _check_names(inputs, signature)
    return inputs


def _from_instances(rows: object, signature: ModelSignature) -> Inputs:
    if not isinstance(rows, list) or not rows:
        raise InvalidArgumentError("the input has no rows")
    if all(isinstance(row, dict) for row in rows):
        names = rows[0].keys()
        if any(row.keys() != names for row in rows):
            msg = "the rows do not all have the same names"
            raise InvalidArgumentError(msg)
        inputs = {name: [row[name] for row in rows] for name in names}
        _check_names(inputs, signature)
        return inputs
    return {_only_input(signature, "a list of rows").name: rows}


def _named(values: object, signature: ModelSignature) -> Inputs:
    if not isinstance(values, dict):
        return {_only_input(signature, "a list").name: values}
    _check_names(values, signature)
    return dict(values)


def _from_csv(text: str, signature: ModelSignature) -> Inputs:
    try:
        rows = [row for row in csv.reader(io.StringIO(text), strict=True) if row]
    except csv.Error as error:
        msg = f"the CSV cannot be read: {error}"
        raise InvalidArgumentError(msg) from None
    names = [cell.strip() for cell in rows[0]]
    if any(signature.input(name) is not None for name in names):
        return _from_columns(names, rows[1:], signature)
    spec = _only_input(signature, "CSV with a header that does not name the inputs")
    # A number among words is a mistake in a row; a line of words only is a header.
    has_header = spec.datatype is not Datatype.BYTES and not any(map(_is_value, names))
    body = rows[1:] if has_header else rows
    first_line = 2 if has_header else 1
    # Number of values in one row; None if a request may choose it.
    shape = spec.shape[1:] if signature.batched else spec.shape
    width = None if VARIABLE in shape else int(np.prod(shape, dtype=np.int64))
    values = [
        [_cell(cell, spec, row=first_line + i, column=j + 1) for j, cell in enumerate(row)]
        for i, row in enumerate(body)
    ]
    if not values:
        raise InvalidArgumentError("the CSV has a header but no rows")
    width = len(values[0]) if width is None else width
    for i, row in enumerate(values):
        if len(row) != width:
            msg = (
                f"line {first_line + i} of the CSV has {len(row)} values; "
                f"input '{spec.name}' takes {width} per row"
            )
            raise InvalidArgumentError(msg)
    return {spec.name: [_nested(row, spec, signature) for row in values]}


def _from_columns(names: list[str], rows: list[list[str]], signature: ModelSignature) -> Inputs:
    _check_names(dict.fromkeys(names), signature)
    inputs: Inputs = {}
    for j, name in enumerate(names):
        spec = signature.input(name)
        assert spec is not None  # _check_names refused the others
        if any(len(row) <= j for row in rows):
            msg = f"the CSV has rows without a value for '{name}'"
            raise InvalidArgumentError(msg)
        cells = [_cell(row[j], spec, row=i + 2, column=j + 1) for i, row in enumerate(rows)]
        inputs[name] = [_nested([cell], spec, signature) for cell in cells]
    if not rows:
        raise InvalidArgumentError("the CSV has a header but no rows")
    return inputs


def _nested(row: list[Any], spec: TensorSpec, signature: ModelSignature) -> Any:  # noqa: ANN401  # nested lists
    shape = spec.shape[1:] if signature.batched else spec.shape
    if not shape:
        return row[0]
    if len(shape) == 1:
        return row
    return np.array(row, dtype=np.object_).reshape(shape).tolist()


def _is_value(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return cell.lower() in _TRUTH
    return True


def _cell(cell: str, spec: TensorSpec, *, row: int, column: int) -> bool | int | float | str | None:
    text = cell.strip()
    try:
        match spec.datatype.dtype.kind:
            case "f":
                return float(text) if text else None
            case "b":
                return _TRUTH[text.lower()]
            case "i" | "u":
                return int(text)
            case _:
                return cell
    except (ValueError, KeyError):
        msg = f"line {row}, column {column} of the CSV: {text[:40]!r} is no {spec.datatype}"
        raise InvalidArgumentError(msg) from None


def _only_input(signature: ModelSignature, description: str) -> TensorSpec:
    if len(signature.inputs) != 1:
        names = _names(spec.name for spec in signature.inputs)
        msg = f"{description} fits a model with one input; this one has {names}: name them"
        raise InvalidArgumentError(msg)
    return signature.inputs[0]


def _check_names(inputs: Mapping[str, object], signature: ModelSignature) -> None:
    names = {spec.name for spec in signature.inputs}
    if inputs.keys() != names:
        msg = f"the input names {_names(inputs)}; the model takes {_names(names)}"
        raise InvalidArgumentError(msg)


def _names(names: Any) -> str:  # noqa: ANN401  # any iterable of strings
    listed = sorted(map(repr, names))
    more = f" and {len(listed) - _SHOWN} more" if len(listed) > _SHOWN else ""
    return (", ".join(listed[:_SHOWN]) or "nothing") + more
