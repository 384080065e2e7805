"""Runtime of LightGBM's trees, by LightGBM.

`Booster.predict` makes a predictor, copies settings and asks how long the answer will be: three
quarters of the time that one row takes. For one row there is a call that does even less, as its
settings are read beforehand; it holds a lock meanwhile. The C interface is documented:
https://lightgbm.readthedocs.io/en/latest/C-API.html
"""

import ctypes
import weakref
from collections.abc import Mapping, Sequence
from ctypes import POINTER, byref, c_char_p, c_int, c_int32, c_int64, c_void_p
from pathlib import Path
from types import ModuleType
from typing import Final

import numpy as np

from headrace.core import Array, Datatype, error_kind
from headrace.runtimes.base import LoadOptions, Model
from headrace.runtimes.lightgbm_file import LightgbmFile, looks_like_lightgbm, read_lightgbm
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

_FP64: Final = 1
_BY_ROW: Final = 1
_VALUE: Final = 0
"""Predict what the objective gives, not the raw score."""
_FIRST: Final = 0
_ALL: Final = -1
_WHAT: Final = (c_int(_VALUE), c_int(_FIRST), c_int(_ALL))


class DirectPredictor:
    """As `Booster.predict` answers, bit for bit; safe to call from several threads, as that is."""

    def __init__(self, library: ModuleType, text: str, *, threads: int) -> None:
        """Read a model's text.

        Raises:
            ValueError: LightGBM refuses it.
        """
        # An object of its own for the library that is loaded already: types declared on the other
        # one would change how LightGBM's Python calls it.
        native = ctypes.CDLL(library.basic._LIB._name)  # noqa: SLF001  # wherever it was found
        self._native = native
        native.LGBM_GetLastError.restype = c_char_p
        native.LGBM_BoosterFree.argtypes = [c_void_p]
        native.LGBM_FastConfigFree.argtypes = [c_void_p]
        native.LGBM_BoosterPredictForMat.argtypes = [
            *(c_void_p, c_void_p, c_int, c_int32, c_int32, c_int, c_int, c_int, c_int),
            *(c_char_p, POINTER(c_int64), c_void_p),
        ]
        native.LGBM_BoosterPredictForMatSingleRowFast.argtypes = [
            *(c_void_p, c_void_p, POINTER(c_int64), c_void_p),
        ]
        self._settings = f"num_threads={threads}".encode()
        self._model, self._one_row = c_void_p(), c_void_p()
        self._load(text)

    def _load(self, text: str) -> None:
        native, features, length = self._native, c_int(), c_int64()
        self._check(
            native.LGBM_BoosterLoadModelFromString(
                c_char_p(text.encode()), byref(c_int()), byref(self._model)
            )
        )
        weakref.finalize(self, native.LGBM_BoosterFree, self._model)
        self._check(native.LGBM_BoosterGetNumFeature(self._model, byref(features)))
        self._check(native.LGBM_BoosterCalcNumPredict(self._model, c_int(1), *_WHAT, byref(length)))
        self._features, self._values = features.value, length.value
        self._check(
            native.LGBM_BoosterPredictForMatSingleRowFastInit(
                *(self._model, *_WHAT, c_int(_FP64), features, c_char_p(self._settings)),
                byref(self._one_row),
            )
        )
        # Called before the model is freed: the last one registered comes first.
        weakref.finalize(self, native.LGBM_FastConfigFree, self._one_row)

    def __call__(self, rows: Array) -> Array:
        """What is predicted for rows of FP64: a value each, or one for each class.

        Raises:
            ValueError: LightGBM refuses them.
        """
        rows = dense(rows, np.float64)
        count, columns = rows.shape
        answer: Array = np.empty(count if self._values == 1 else (count, self._values), np.float64)
        if count == 1 and columns == self._features:  # it is not told how many come
            failed = self._native.LGBM_BoosterPredictForMatSingleRowFast(
                self._one_row, rows.ctypes.data, byref(c_int64()), answer.ctypes.data
            )
        else:
            failed = self._native.LGBM_BoosterPredictForMat(
                *(self._model, rows.ctypes.data, _FP64, count, columns, _BY_ROW),
                *(_VALUE, _FIRST, _ALL, self._settings, byref(c_int64()), answer.ctypes.data),
            )
        self._check(failed)
        return answer

    def _check(self, failed: int) -> None:
        if failed:
            raise ValueError((self._native.LGBM_GetLastError() or b"").decode(errors="replace"))


_BINARY: Final = "binary"
_CLASSES: Final = ("multiclass", "multiclassova")


class LightgbmRuntime:
    """Loads `.txt` and `.lgb`, as `save_model` writes them."""

    name = "lightgbm"
    runs_code = False
    libraries = ("lightgbm",)
    extra = "lightgbm"

    def recognises(self, path: Path) -> bool:
        """Whether `path` looks like LightGBM's, by its name and first line."""
        return looks_like_lightgbm(path)

    def load(self, path: Path, options: LoadOptions) -> Model:
        """Load the model, for the CPU."""
        return _open(path, options)


def _open(path: Path, options: LoadOptions) -> Model:
    found = read_lightgbm(path)
    library = import_library("lightgbm", "lightgbm")
    try:
        names = library.Booster(model_str=found.text).feature_name()
        predict = DirectPredictor(library, found.text, threads=options.intra_op_threads)
    except Exception as error:  # noqa: BLE001  # its message may quote the file
        raise refuse(path, f"LightGBM refuses it: {error_kind(error)}") from None
    # Predictions share a read lock inside the library, and ctypes releases the GIL. It compares in
    # doubles: a value rounded to FP32 could go down the other branch.
    return open_tabular(
        path,
        Answers(predict=predict, outputs=_outputs(found.objective)),
        _table(path, found, names),
        concurrent=True,
    )


def _table(path: Path, found: LightgbmFile, names: Sequence[str]) -> TableInputs:
    """One matrix; one input for each column where the file says what the categories are called."""
    if not found.categories:
        return TableInputs.of_matrix(path, found.features, Datatype.FP64, names)
    columns = CodedColumns(
        names=names,
        categories=found.categories,
        datatype=Datatype.FP64,
        unseen_is_missing=True,
    )
    return columns.inputs(path)


def _outputs(objective: str) -> Mapping[str, Answer]:
    if objective == _BINARY:
        return {
            LABEL: lambda found: (found > 1 - found).astype(np.int64),
            PROBABILITIES: two_classes,
        }
    if objective in _CLASSES:
        return {
            LABEL: lambda found: found.argmax(axis=1).astype(np.int64),
            PROBABILITIES: lambda found: found,
        }
    return {PREDICTION: lambda found: found}
