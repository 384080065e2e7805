"""On-demand views: a function that computes features from other features and request columns.

**Making an `OnDemandFunction` runs its author's code**, which is why applying such a view asks for
an explicit allow. What runs is the text that was applied, whatever became of its file since. It
runs in this process, maybe in several threads at once, and has to be pure: each row of its answer
depends on that row of its inputs only.

Entity rows of training data go the same way, so that equal values become equal arrays.
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

ROWS_AT_ONCE: Final = 10_000
"""A function gets at most so many rows, as a read has; a join calls it several times."""
_SHOWN: Final = 60
_PROBED: Final = 2


class OnDemandFunction:
    """The function of one view, loaded.

    Raises:
        UnsupportedModelError: Its file does not run, or has no such function.
    """

    def __init__(self, view: OnDemandView) -> None:
        self.view = view
        self._file, _, self._name = view.function.rpartition(":")
        self._function = _function(view, _module(view.source, self._file))

    def __call__(self, inputs: Mapping[str, Array], rows: int) -> dict[str, Array]:
        """The view's features for each row, in its order.

        Args:
            inputs: Of each input and request column an array [rows]; the function cannot change it.

        Raises:
            InvalidArgumentError: The function raised it: the request's values are wrong.
            RuntimeFailedError: It failed in another way, or did not return what the view says.
        """
        parts = [
            self._call(inputs, start, min(start + ROWS_AT_ONCE, rows))
            for start in range(0, rows, ROWS_AT_ONCE)
        ]
        if not parts:
            return {one.name: np.empty(0, one.datatype.dtype) for one in self.view.features}
        if len(parts) == 1:
            return parts[0]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def probe(self) -> None:
        """Call it with two rows of defaults, which it may get at any time; errors as of a call."""
        columns = [(one.name, one.feature) for one in self.view.inputs]
        columns += [(one.name, one) for one in self.view.request]
        inputs = {
            name: np.full(_PROBED, feature.filling, dtype=feature.datatype.dtype)
            for name, feature in columns
        }
        try:
            self(inputs, _PROBED)
        except InvalidArgumentError:
            # It refuses a value, which is its right where a request has to bring that.
            if all(one.default is not None for one in self.view.request):
                raise

    def _call(self, inputs: Mapping[str, Array], start: int, stop: int) -> dict[str, Array]:
        given = {name: _read_only(array[start:stop]) for name, array in inputs.items()}
        try:
            # A process's own settings would make errors of rows that are none elsewhere.
            with np.errstate(all="ignore"):
                answer: object = self._function(given)
        except InvalidArgumentError as error:
            raise InvalidArgumentError(f"{self._where}: {error}") from error
        except Exception as error:
            failed = where_it_failed(self._file, error)
            raise RuntimeFailedError(f"{self._where} failed: {failed}") from error
        if not isinstance(answer, Mapping):
            kind = type(answer).__name__
            raise self._wrong(f"returned {kind}, not a dict of arrays")
        names = [one.name for one in self.view.features]
        unknown = [repr(name)[:_SHOWN] for name in answer if name not in names]
        if unknown:
            message = f"returned {', '.join(unknown[:10])}; the view has: {', '.join(names)}"
            raise self._wrong(message)
        rows = stop - start
        return {
            one.name: self._checked(one, answer.get(one.name), rows) for one in self.view.features
        }

    def _checked(self, feature: Feature, value: object, rows: int) -> Array:
        name, wanted = feature.name, feature.datatype
        if value is None:
            raise self._wrong(f"returned no {name!r}")
        if isinstance(value, np.ma.MaskedArray):
            value = value.filled(feature.filling)
        if not isinstance(value, np.ndarray):
            raise self._wrong(f"returned {name!r} as {type(value).__name__}, not a NumPy array")
        if value.shape != (rows,):
            shape = list(value.shape)
            raise self._wrong(
                f"returned {name!r} of shape {shape} for {rows} rows; it has to be [{rows}]"
            )
        if wanted is Datatype.BYTES and value.dtype.kind in "OSU":
            return self._bytes(feature, value)
        if value.dtype != wanted.dtype:
            message = (
                f"returned {name!r} as {value.dtype}, but the view says {wanted}; return it with "
                f".astype(np.{wanted.dtype.name})"
            )
            raise self._wrong(message)
        # A copy: the function may keep what it returned, or have returned an input.
        return np.array(value, order="C")

    def _bytes(self, feature: Feature, values: Array) -> Array:
        made: list[object] = []
        for row, item in enumerate(values.tolist()):
            if not isinstance(item, str | bytes):
                kind = type(item).__name__
                message = f"returned {feature.name!r} with {kind} in row {row}, not text or bytes"
                raise self._wrong(message)
            made.append(item.encode(errors="surrogatepass") if isinstance(item, str) else item)
        return objects(made)

    @property
    def _where(self) -> str:
        return f"on-demand view '{self.view.name}': {self._name}()"

    def _wrong(self, reason: str) -> RuntimeFailedError:
        return RuntimeFailedError(f"{self._where} {reason} ({self._file})")


def _function(view: OnDemandView, module: ModuleType) -> Callable[[Mapping[str, Array]], object]:
    file, _, name = view.function.rpartition(":")
    found: object = getattr(module, name, None)
    if not callable(found):
        known = [
            key for key, one in vars(module).items() if callable(one) and not key.startswith("_")
        ]
        has = ", ".join(known[:10]) or "none"
        message = f"on-demand view '{view.name}': {file} has no function {name!r}; it has: {has}"
        raise UnsupportedModelError(message)
    return found


@cache
def _module(source: str, file: str) -> ModuleType:
    """The module that `source` makes; once a process, whoever uses it."""
    module = ModuleType(f"headrace_on_demand_{hash((source, file)) & 0xFFFFFFFFFFFFFFFF:016x}")
    sys.modules[module.__name__] = module  # dataclasses and type hints look their module up
    try:
        exec(compile(source, file, "exec", dont_inherit=True), module.__dict__)  # noqa: S102  # allowed by who applied it
    except (Exception, SystemExit) as error:  # noqa: BLE001  # its message may quote the file
        del sys.modules[module.__name__]
        hint = ""
        if isinstance(error, ModuleNotFoundError):
            hint = "; files beside it are not kept: install what it needs, or put it into this file"
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
    """An array [rows] for each column; one with a default may be absent, or have nulls.

    Raises:
        InvalidArgumentError: With all that is wrong; at each column the first value that is.
    """
    wrong: list[str] = []
    made: dict[str, Array] = {}
    for column in columns:
        given = values.get(column.name)
        if given is None:
            if column.default is None:
                wrong.append(f"{column.name!r} ({column.datatype}) is missing, and has no default")
            made[column.name] = np.full(rows, column.filling, dtype=column.datatype.dtype)
            continue
        array = _as_it_is(column, given)
        if array is None:
            listed = given.reshape(-1).tolist() if isinstance(given, np.ndarray) else given
            wrong += _wrong(column, listed)
            full = [column.filling if value is None else value for value in listed]
            array = np.empty(0) if wrong else value_column(column.datatype, full).values
        made[column.name] = array
    if wrong:
        raise InvalidArgumentError("; ".join(wrong))
    return made


def _as_it_is(column: Feature, given: Sequence[object] | Array) -> Array | None:
    """An array of the right type needs no look at its values; BYTES may be anything."""
    fits = isinstance(given, np.ndarray) and given.dtype == column.datatype.dtype
    if not fits or column.datatype is Datatype.BYTES:
        return None
    return np.ascontiguousarray(given).reshape(-1)


def _wrong(column: Feature, listed: Sequence[object]) -> Iterator[str]:
    for row, value in enumerate(listed):
        if value is None:
            if column.default is None:
                yield f"{column.name!r}[{row}] is null, and the column has no default"
                return
        elif wanted := misfit(column.datatype, value):
            shown = repr(value)[:_SHOWN]
            yield f"{column.name!r}[{row}] is {column.datatype} and takes {wanted}, not {shown}"
            return
