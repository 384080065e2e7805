"""On-demand views: a function that computes features from other features and request columns.

**Creating an `OnDemandFunction` runs its author's code**, which is why applying such a view needs
explicit permission. The text that was applied runs, even if its file changed since. It runs in this
process, possibly in several threads at once, and must be pure: each row of its output depends only
on the same row of its inputs. Entity rows of training data use the same path, so that equal values
become equal arrays.
"""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from types import ModuleType
from typing import Final

import numpy as np

from headrace.core import (
    Array,
    Datatype,
    InvalidArgumentError,
    RuntimeFailedError,
    UnsupportedModelError,
)
from headrace.features.definitions import Feature, OnDemandView
from headrace.features.records import objects
from headrace.features.values import misfit, value_column
from headrace.runtimes import where_it_failed

ROWS_PER_CHUNK: Final = 10_000
"""Maximum number of rows per call, as in a read; a join calls the function several times."""
_SHOWN: Final = 60
_PROBED: Final = 2


class OnDemandFunction:
    """The loaded function of one view.

    Raises:
        UnsupportedModelError: Its file fails to run, or does not define the function.
    """

    def __init__(self, view: OnDemandView) -> None:
        self.view = view
        self._file, _, self._name = view.function.rpartition(":")
        self._function = _function(view, _module(view.source, self._file))

    def __call__(self, inputs: Mapping[str, Array], rows: int) -> dict[str, Array]:
        """Return the view's features for each row, in its order.

        Args:
            inputs: An array [rows] per input and request column; read-only for the function.

        Raises:
            InvalidArgumentError: The function raised it: the request's values are wrong.
            RuntimeFailedError: The function failed otherwise, or its output does not fit the view.
        """
        parts = [
            self._call(inputs, start, min(start + ROWS_PER_CHUNK, rows))
            for start in range(0, rows, ROWS_PER_CHUNK)
        ]
        if not parts:
            return {
                feature.name: np.empty(0, feature.datatype.dtype) for feature in self.view.features
            }
        if len(parts) == 1:
            return parts[0]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def probe(self) -> None:
        """Call the function with two rows of defaults, as requests may; raises as a call does."""
        columns = [(source.name, source.feature) for source in self.view.inputs]
        columns += [(column.name, column) for column in self.view.request]
        inputs = {
            name: np.full(_PROBED, feature.filling, dtype=feature.datatype.dtype)
            for name, feature in columns
        }
        try:
            self(inputs, _PROBED)
        except InvalidArgumentError:
            # The function may refuse a default if the request must provide that column.
            if all(column.default is not None for column in self.view.request):
                raise

    def _call(self, inputs: Mapping[str, Array], start: int, stop: int) -> dict[str, Array]:
        arrays = {name: _read_only(array[start:stop]) for name, array in inputs.items()}
        try:
            # NumPy's error settings of this process must not turn valid rows into errors.
            with np.errstate(all="ignore"):
                answer: object = self._function(arrays)
        except InvalidArgumentError as error:
            raise InvalidArgumentError(f"{self._where}: {error}") from error
        except Exception as error:
            failed = where_it_failed(self._file, error)
            raise RuntimeFailedError(f"{self._where} failed: {failed}") from error
        if not isinstance(answer, Mapping):
            kind = type(answer).__name__
            raise self._wrong(f"returned {kind}, not a dict of arrays")
        names = [feature.name for feature in self.view.features]
        unknown = [repr(name)[:_SHOWN] for name in answer if name not in names]
        if unknown:
            message = f"returned {', '.join(unknown[:10])}; the view has: {', '.join(names)}"
            raise self._wrong(message)
        rows = stop - start
        return {
            feature.name: self._checked(feature, answer.get(feature.name), rows)
            for feature in self.view.features
        }

    def _checked(self, feature: Feature, value: object, rows: int) -> Array:
        name, datatype = feature.name, feature.datatype
        if value is None:
            raise self._wrong(f"did not return {name!r}")
        if isinstance(value, np.ma.MaskedArray):
            value = value.filled(feature.filling)
        if not isinstance(value, np.ndarray):
            raise self._wrong(f"returned {name!r} as {type(value).__name__}, not a NumPy array")
        if value.shape != (rows,):
            shape = list(value.shape)
            raise self._wrong(
                f"returned {name!r} of shape {shape} for {rows} rows; the shape must be [{rows}]"
            )
        if datatype is Datatype.BYTES and value.dtype.kind in "OSU":
            return self._bytes(feature, value)
        if value.dtype != datatype.dtype:
            message = (
                f"returned {name!r} as {value.dtype}, but the view says {datatype}; return it with "
                f".astype(np.{datatype.dtype.name})"
            )
            raise self._wrong(message)
        # A copy: the function may keep what it returned, or have returned an input.
        return np.array(value, order="C")

    def _bytes(self, feature: Feature, values: Array) -> Array:
        items: list[object] = []
        for row, item in enumerate(values.tolist()):
            if not isinstance(item, str | bytes):
                kind = type(item).__name__
                message = f"returned {feature.name!r} with {kind} in row {row}, not text or bytes"
                raise self._wrong(message)
            items.append(item.encode(errors="surrogatepass") if isinstance(item, str) else item)
        return objects(items)

    @property
    def _where(self) -> str:
        return f"on-demand view '{self.view.name}': {self._name}()"

    def _wrong(self, reason: str) -> RuntimeFailedError:
        return RuntimeFailedError(f"{self._where} {reason} ({self._file})")


def _function(view: OnDemandView, module: ModuleType) -> Callable[[Mapping[str, Array]], object]:
    file, _, name = view.function.rpartition(":")
    function: object = getattr(module, name, None)
    if not callable(function):
        available = [
            key
            for key, member in vars(module).items()
            if callable(member) and not key.startswith("_")
        ]
        has = ", ".join(available[:10]) or "none"
        message = f"on-demand view '{view.name}': {file} has no function {name!r}; it has: {has}"
        raise UnsupportedModelError(message)
    return function


@cache
def _module(source: str, file: str) -> ModuleType:
    """Return the module of `source`; loaded once per process."""
    module = ModuleType(f"headrace_on_demand_{hash((source, file)) & 0xFFFFFFFFFFFFFFFF:016x}")
    sys.modules[module.__name__] = module  # dataclasses and type hints look their module up
    try:
        exec(compile(source, file, "exec", dont_inherit=True), module.__dict__)  # noqa: S102  # explicitly allowed at apply
    except (Exception, SystemExit) as error:  # noqa: BLE001  # its message may quote the file
        del sys.modules[module.__name__]
        hint = ""
        if isinstance(error, ModuleNotFoundError):
            hint = (
                "; other files are not stored: install them as a package, or move the code into "
                "this file"
            )
        failed = where_it_failed(file, error, with_message=False)
        raise UnsupportedModelError(f"{file} cannot be run: {failed}{hint}") from None
    return module


def _read_only(array: Array) -> Array:
    view = array.view()
    view.flags.writeable = False
    return view


def request_arrays(
    columns: Sequence[Feature], values: Mapping[str, Sequence[object] | Array], rows: int
) -> dict[str, Array]:
    """Return an array [rows] for each column; one with a default may be absent or contain nulls.

    Raises:
        InvalidArgumentError: Values are invalid; lists the first invalid one of each column.
    """
    problems: list[str] = []
    arrays: dict[str, Array] = {}
    for column in columns:
        raw = values.get(column.name)
        if raw is None:
            if column.default is None:
                problems.append(
                    f"{column.name!r} ({column.datatype}) is missing, and has no default"
                )
            arrays[column.name] = np.full(rows, column.filling, dtype=column.datatype.dtype)
            continue
        array = _matching_array(column, raw)
        if array is None:
            listed = raw.reshape(-1).tolist() if isinstance(raw, np.ndarray) else raw
            problems += _wrong(column, listed)
            full = [column.filling if value is None else value for value in listed]
            array = np.empty(0) if problems else value_column(column.datatype, full).values
        arrays[column.name] = array
    if problems:
        raise InvalidArgumentError("; ".join(problems))
    return arrays


def _matching_array(column: Feature, raw: Sequence[object] | Array) -> Array | None:
    """Return the array itself if its type matches: its values need no check. None for BYTES."""
    fits = isinstance(raw, np.ndarray) and raw.dtype == column.datatype.dtype
    if not fits or column.datatype is Datatype.BYTES:
        return None
    return np.ascontiguousarray(raw).reshape(-1)


def _wrong(column: Feature, listed: Sequence[object]) -> Iterator[str]:
    for row, value in enumerate(listed):
        if value is None:
            if column.default is None:
                yield f"{column.name!r}[{row}] is null, and the column has no default"
                return
        elif expected := misfit(column.datatype, value):
            shown = repr(value)[:_SHOWN]
            yield f"{column.name!r}[{row}] is {column.datatype} and takes {expected}, not {shown}"
            return
