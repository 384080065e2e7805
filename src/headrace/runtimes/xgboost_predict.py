"""Call XGBoost's C interface for one prediction, without what its Python does around each call.

`Booster.inplace_predict` looks at what kind of table it was given and imports seven functions to do
so: two thirds of the time that one row takes. The C interface is documented and part of what
XGBoost promises: https://xgboost.readthedocs.io/en/stable/c.html
"""

import ctypes
import json
import math
from ctypes import POINTER, byref, c_char_p, c_float, c_int, c_uint64, c_void_p
from types import ModuleType
from typing import Any, Final

import numpy as np

from headrace.core import Array
from headrace.runtimes.tabular import dense

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
