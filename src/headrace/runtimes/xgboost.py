"""Runtime of XGBoost's trees, by XGBoost.

`Booster.inplace_predict` looks at what kind of table it was given and imports seven functions to do
so: two thirds of the time that one row takes. The C interface is documented and part of what
XGBoost promises: https://xgboost.readthedocs.io/en/stable/c.html
"""

import ctypes
import json
import math
from collections.abc import Mapping
from ctypes import POINTER, byref, c_char_p, c_float, c_int, c_uint64, c_void_p
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import numpy as np

from headrace.core import Array, Datatype, error_kind
from headrace.runtimes.base import LoadOptions, Model
from headrace.runtimes.tabular import (
    LABEL,
    PREDICTION,
    PROBABILITIES,
    Answer,
    Answers,
    CodedColumns,
    TableInputs,
    dense,
    import_library,
    open_tabular,
    refuse,
    two_classes,
)
from headrace.runtimes.xgboost_file import XgboostFile, looks_like_xgboost, read_xgboost

_VALUE: Final = 0
"""Predict what the objective gives, not the margin."""


class DirectPredictor:
    """As `inplace_predict` answers, bit for bit; safe to call from several threads, as that is.

    The answer lies in memory of the calling thread's until its next call, and is copied from there.
    """

    def __init__(self, library: ModuleType, booster: Any, *, rounds: int) -> None:  # noqa: ANN401  # ships no types
        # An object of its own for the library that is loaded already: types declared on the other
        # one would change how XGBoost's Python calls it.
        native = ctypes.CDLL(library.core._LIB._name)  # noqa: SLF001  # wherever it was found
        self._call = native.XGBoosterPredictFromDense
        self._call.argtypes = [
            *(c_void_p, c_char_p, c_char_p, c_void_p),
            *(POINTER(POINTER(c_uint64)), POINTER(c_uint64), POINTER(POINTER(c_float))),
        ]
        self._call.restype = c_int
        self._last_error = native.XGBGetLastError
        self._last_error.restype = c_char_p
        self._booster = booster  # owns the handle
        self._settings = json.dumps(
            {
                "type": _VALUE,
                "training": False,
                "iteration_begin": 0,
                "iteration_end": rounds,
                "missing": math.nan,
                "strict_shape": False,
                "cache_id": 0,
            }
        ).encode()

    def __call__(self, rows: Array) -> Array:
        """What is predicted for rows of FP32: a value each, or one for each class.

        Raises:
            ValueError: XGBoost refuses them.
        """
        rows = dense(rows, np.float32)
        shape, dims, found = POINTER(c_uint64)(), c_uint64(), POINTER(c_float)()
        failed = self._call(
            self._booster.handle,
            b'{"data":[%d,true],"shape":[%d,%d],"strides":null,"typestr":"<f4","version":3}'
            % (rows.ctypes.data, *rows.shape),
            self._settings,
            None,
            byref(shape),
            byref(dims),
            byref(found),
        )
        if failed:
            # With its stack: the first line says it.
            raise ValueError(
                (self._last_error() or b"").decode(errors="replace").partition("\n")[0]
            )
        answer: Array = np.empty(shape[: dims.value], np.float32)
        ctypes.memmove(answer.ctypes.data, found, answer.nbytes)
        return answer


_BINARY: Final = "binary:logistic"
_CLASSES: Final = ("multi:softprob", "multi:softmax")
_HALF: Final = 0.5


class XgboostRuntime:
    """Loads `.json` and `.ubj`, as `save_model` writes them."""

    name = "xgboost"
    runs_code = False
    libraries = ("xgboost",)
    extra = "xgboost"

    def recognises(self, path: Path) -> bool:
        """Whether `path` looks like XGBoost's, by its name and first bytes."""
        return looks_like_xgboost(path)

    def load(self, path: Path, options: LoadOptions) -> Model:
        """Load the model, for the CPU."""
        return _open(path, options)


def _open(path: Path, options: LoadOptions) -> Model:
    found = read_xgboost(path)
    library = import_library("xgboost", "xgboost")
    try:
        booster = library.Booster(model_file=str(path))
        booster.set_param({"nthread": options.intra_op_threads, "device": "cpu"})
        if found.objective == "multi:softmax":
            # It only says which class; its sibling, from the same trees, also how sure it is.
            booster.set_param({"objective": "multi:softprob"})
        predict = DirectPredictor(library, booster, rounds=found.rounds)
    except Exception as error:  # noqa: BLE001  # its message may quote the file
        raise refuse(path, f"XGBoost refuses it: {error_kind(error)}") from None
    # `XGBoosterPredictFromDense` takes no lock and is documented as safe to call from several
    # threads; it is called by ctypes, which releases the GIL. What it sets up once, the first run
    # below does.
    return open_tabular(
        path,
        Answers(predict=predict, outputs=_outputs(found.objective)),
        _table(path, found),
        concurrent=True,
    )


def _table(path: Path, found: XgboostFile) -> TableInputs:
    """One matrix; one input for each column where the file says what the categories are called."""
    if not found.categories:
        return TableInputs.of_matrix(path, found.features, Datatype.FP32, found.names)
    columns = CodedColumns(
        names=found.names or [f"f{i}" for i in range(found.features)],
        categories=found.categories,
        datatype=Datatype.FP32,
        unseen_is_missing=False,
    )
    return columns.inputs(path)


def _outputs(objective: str) -> Mapping[str, Answer]:
    if objective == _BINARY:
        return {
            LABEL: lambda found: (found > _HALF).astype(np.int64),
            PROBABILITIES: two_classes,
        }
    if objective in _CLASSES:
        return {
            LABEL: lambda found: found.argmax(axis=1).astype(np.int64),
            PROBABILITIES: lambda found: found,
        }
    return {PREDICTION: lambda found: found}
