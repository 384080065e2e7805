"""Examples from an `.npz`: arrays that are named like the inputs, and one of labels."""

import math
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Final

import numpy as np

from headrace.core import Array, Datatype, InvalidArgumentError, ModelSignature, Tensors, TensorSpec
from headrace.optimize.accuracy.examples import Examples, StackedRows
from headrace.optimize.accuracy.input_cells import as_request, cast
from headrace.optimize.accuracy.label_cells import (
    LABEL_NAMES,
    classes_named,
    numbers_as_labels,
)
from headrace.optimize.accuracy.tables import MAX_FILE_BYTES, SEED, check_size

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
    """Examples from arrays whose axis 0 is the examples.

    Args:
        label: Name of the labels' array; empty for the usual names.

    Raises:
        InvalidArgumentError: It cannot be read, or does not fit the model.
    """
    arrays = _load(path)
    labelled = _label_name(arrays, label, signature, path)
    for spec in signature.inputs:
        if spec.name not in arrays:
            msg = f"{path} has no array {spec.name!r}, only {_told(arrays)}; name them as inputs"
            raise InvalidArgumentError(msg)
    needed = [spec.name for spec in signature.inputs] + ([labelled] if labelled else [])
    sizes = {name: arrays[name].shape[0] if arrays[name].ndim else 0 for name in needed}
    total = min(sizes.values())
    if total != max(sizes.values()) or not total:
        said = ", ".join(f"{name} {size}" for name, size in sizes.items())
        raise InvalidArgumentError(f"{path}: arrays have no or different numbers of rows: {said}")
    chosen = np.arange(total)
    notes = []
    if total > limit:
        chosen = np.sort(np.random.default_rng(SEED).choice(total, limit, replace=False))
        notes = [f"{limit:,} of {total:,} rows, drawn at random, the same every time"]
    rows = {spec.name: _rows(arrays[spec.name][chosen], spec, path) for spec in signature.inputs}
    found = Examples(
        inputs=_requests(rows, signature, path), batched=signature.batched, notes=tuple(notes)
    )
    if not labelled:
        return found
    labels, names = _labels(arrays[labelled][chosen], signature, path)
    return Examples(
        inputs=found.inputs, labels=labels, names=names, batched=found.batched, notes=found.notes
    )


def _load(path: Path) -> dict[str, Array]:
    """All arrays; no more is read than the file's own directory says, and that is checked first."""
    check_size(path)
    try:
        with zipfile.ZipFile(path) as archive:
            members = [info for info in archive.infolist() if info.filename.endswith(".npy")]
            if sum(info.file_size for info in members) > MAX_FILE_BYTES:
                msg = f"{path} unpacks to more than {MAX_FILE_BYTES >> 30} GiB; give a sample"
                raise InvalidArgumentError(msg)
            found = {}
            for info in members:
                with archive.open(info) as file:
                    _check_header(file, info.file_size)
                with archive.open(info) as file:
                    name = info.filename.removesuffix(".npy")
                    found[name] = np.lib.format.read_array(file, allow_pickle=False)
    except _DAMAGED as error:
        raise InvalidArgumentError(f"{path} cannot be read: {error}") from None
    if not found:
        raise InvalidArgumentError(f"{path} holds no arrays")
    return found


def _check_header(file: IO[bytes], size_bytes: int) -> None:
    """Refuse an array that says to be larger than what there is: memory would be taken first."""
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
        msg = "an array says to be larger than it is"
        raise ValueError(msg)


def _label_name(arrays: dict[str, Array], wish: str, signature: ModelSignature, path: Path) -> str:
    if wish:
        if wish not in arrays:
            raise InvalidArgumentError(f"{path} has no array {wish!r}, only {_told(arrays)}")
        return wish
    inputs = {spec.name for spec in signature.inputs}
    found = [n for n in arrays if n.casefold() in LABEL_NAMES and n not in inputs]
    if len(found) > 1:
        msg = f"{path}: {' and '.join(map(repr, found))} may be the labels; say which"
        raise InvalidArgumentError(msg)
    return found[0] if found else ""


def _rows(array: Array, spec: TensorSpec, path: Path) -> Array:
    if spec.datatype is not Datatype.BYTES:
        try:
            return cast(array, spec)
        except InvalidArgumentError as error:
            raise InvalidArgumentError(f"{path}: {error}") from None
    if array.dtype.kind not in "SU":
        raise InvalidArgumentError(f"{path}: input '{spec.name}' takes texts, not {array.dtype}")
    made = np.empty(array.shape, np.object_)
    flat = [one if isinstance(one, bytes) else one.encode() for one in array.reshape(-1).tolist()]
    made.reshape(-1)[:] = flat
    return made


def _requests(rows: dict[str, Array], signature: ModelSignature, path: Path) -> Sequence[Tensors]:
    try:
        first = {
            spec.name: as_request(rows[spec.name][0, ...], spec, signature)
            for spec in signature.inputs
        }
        if signature.batched and all(
            array.shape == (1, *rows[name].shape[1:]) for name, array in first.items()
        ):
            return StackedRows(rows, has_batch_axis=True)
        if all(array.shape == rows[name].shape[1:] for name, array in first.items()):
            return StackedRows(rows, has_batch_axis=False)
        # As many values a row, in another shape.
        shaped = {
            name: rows[name].reshape(len(rows[name]), *one.shape) for name, one in first.items()
        }
        return StackedRows(shaped, has_batch_axis=False)
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


def _told(arrays: dict[str, Array]) -> str:
    shown = 12
    return ", ".join(list(arrays)[:shown]) + (" and more" if len(arrays) > shown else "")
