"""What do models of tables have in common? One matrix in; a number, or classes, out.

`xgboost`, `lightgbm`, `catboost` and `sklearn` all give the same names, so that a caller need not
know which library made the model.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Final, Generic, TypeVar

import numpy as np

from headrace.core import (
    VARIABLE,
    Array,
    Datatype,
    FailedPreconditionError,
    HeadraceError,
    InvalidArgumentError,
    ModelSignature,
    RowIndependence,
    RuntimeFailedError,
    Tensors,
    TensorSpec,
    UnsupportedModelError,
)
from headrace.core.devices import ON_CPU, Device, DeviceUse
from headrace.runtimes.libraries import import_package
from headrace.runtimes.reasons import reason_of

INPUT: Final = "input"
PREDICTION: Final = "prediction"
LABEL: Final = "label"
PROBABILITIES: Final = "probabilities"
MAX_FEATURES: Final = 1_000_000
_MAX_NAMES: Final = 4096
_NUMBERED: Final = re.compile(r"(Column_|f|x)?\d+")
_DATATYPES: Final = {np.dtype(kind.dtype): kind for kind in Datatype if kind is not Datatype.BYTES}

Answer = Callable[[Array], Array]
"""One output for a matrix of rows and features."""
Found = TypeVar("Found")


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers(Generic[Found]):
    """How a model answers. `predict`: what a matrix's outputs are made of, computed once for all.

    `outputs`: each of them, in the order of the signature; text as object arrays of `bytes`.
    """

    predict: Callable[[Array], Found]
    outputs: Mapping[str, Callable[[Found], Array]]

    def of(self, rows: Array, names: Sequence[str] | None = None) -> Tensors:
        """The outputs of these names, or all."""
        found = self.predict(rows)
        return {
            name: np.ascontiguousarray(self.outputs[name](found)) for name in names or self.outputs
        }


class TabularModel:
    """A loaded model of a table, whichever library runs it."""

    def __init__(
        self, signature: ModelSignature, answers: Answers[Any], *, concurrent: bool
    ) -> None:
        self.signature = signature
        self.concurrent = concurrent
        self.device = DeviceUse(asked=Device.CPU, used=ON_CPU)
        self._answers: Answers[Any] | None = answers

    def run(self, inputs: Tensors, outputs: Sequence[str] | None = None) -> Tensors:
        """Run one batch; computes only what is asked for."""
        if self._answers is None:
            msg = "the model is closed"
            raise RuntimeFailedError(msg)
        rows = inputs[INPUT]
        try:
            return self._answers.of(rows, outputs)
        except HeadraceError:
            raise
        except Exception as error:
            raise _run_error(rows, error) from error

    def close(self) -> None:
        """Let go of the library's model; may be called again."""
        self._answers = None


def open_tabular(
    path: Path,
    answers: Answers[Any],
    *,
    features: int,
    datatype: Datatype,
    concurrent: bool,
    names: Sequence[str] | None = None,
) -> TabularModel:
    """A model whose outputs are declared as they come out for two rows of zeros.

    This first run also does what libraries put off until then and guard by no lock.

    Args:
        features: Columns of the input.
        datatype: Of the input.
        names: What the columns were called in training, if the library kept it; names that it made
            up itself count for none.

    Raises:
        UnsupportedModelError: The model does not predict, or what it gives has no row for each.
    """
    check_features(path, features)
    rows = np.zeros((2, features), datatype.dtype)
    outputs = _outputs(path, answers, rows)
    spec = TensorSpec(name=INPUT, datatype=datatype, shape=(VARIABLE, features))
    known = _meant(names, features)
    signature = ModelSignature(
        inputs=(spec,),
        outputs=outputs,
        batched=True,
        row_independence=RowIndependence.PROVEN,
        row_reason="predictions of this format are made row by row",
        columns={INPUT: known} if known else {},
    )
    return TabularModel(signature, answers, concurrent=concurrent)


def _meant(names: Sequence[str] | None, features: int) -> tuple[str, ...]:
    """Names that somebody gave; none where the library numbered the columns."""
    found = tuple(map(str, () if names is None else names))
    if len(found) != features or len(set(found)) < len(found) or len(found) > _MAX_NAMES:
        return ()
    return () if all(_NUMBERED.fullmatch(name) for name in found) else found


def check_features(path: Path, features: int) -> None:
    """Refuse a model that takes nothing, or more than anybody sends.

    Raises:
        UnsupportedModelError: It does.
    """
    if features < 1:
        raise refuse(path, "has no features, so that there is nothing to send it")
    if features > MAX_FEATURES:
        raise refuse(path, f"declares {features} features; at most {MAX_FEATURES} are served")


def import_library(module: str, extra: str) -> ModuleType:
    """The library that runs a format.

    Raises:
        FailedPreconditionError: It is not installed, and the message says how to install it; or
            it is a framework, and this process holds another one.
    """
    try:
        return import_package(module)
    except ImportError as error:
        msg = (
            f"the runtime '{extra}' needs the package '{module}', which cannot be imported "
            f"({reason_of(error)}): pip install 'headrace[{extra}]'"
        )
        raise FailedPreconditionError(msg) from error


def read_head(path: Path, size_bytes: int) -> bytes:
    """The first bytes of a file; none if `path` is no file that can be read."""
    try:
        with path.open("rb") as stream:
            return stream.read(size_bytes)
    except OSError:
        return b""


def read_all(path: Path) -> bytes:
    """The bytes of a model's file.

    Raises:
        UnsupportedModelError: It cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise refuse(path, error.strerror or str(error)) from error


def two_classes(positive: Array) -> Array:
    """Probabilities of both classes from those of the second."""
    both = np.empty((len(positive), 2), positive.dtype)
    np.subtract(1, positive, out=both[:, 0])
    both[:, 1] = positive
    return both


def dense(rows: Array, dtype: type[np.generic]) -> Array:
    """`rows` as a library that is given their address may read them; a copy only if it must be."""
    is_plain = rows.dtype == dtype and rows.flags.c_contiguous and rows.flags.aligned
    return rows if is_plain else np.require(rows, dtype, ["C", "A"])


def as_label(classes: Array) -> Array:
    """One class a row as the protocol has it: text as `bytes`, whole numbers as INT64."""
    if classes.dtype.kind in "OSU":
        encoded = np.empty(classes.size, np.object_)
        encoded[:] = [str(item).encode() for item in classes.ravel().tolist()]
        return encoded.reshape(classes.shape)
    return classes.astype(np.int64) if classes.dtype.kind in "iu" else classes


def refuse(path: Path, reason: str) -> UnsupportedModelError:
    """The error for a model at `path`."""
    return UnsupportedModelError(f"{path}: {reason}")


def corrupt(path: Path, reason: str) -> UnsupportedModelError:
    """The error for a model at `path` that is not what its library writes."""
    return refuse(path, f"is truncated or corrupt: {reason}")


def categorical(path: Path, what: str) -> UnsupportedModelError:
    """The error for a model at `path` with a feature that is no number."""
    return refuse(
        path,
        f"{what} is categorical, and a matrix of numbers cannot say which category a number "
        "stands for; encode categories before training",
    )


def _run_error(rows: Array, error: Exception) -> HeadraceError:
    if not np.isfinite(rows).all():
        msg = f"the model takes no missing or infinite values such as these: {reason_of(error)}"
        return InvalidArgumentError(msg)
    return RuntimeFailedError(f"the model failed: {reason_of(error)}")


def _outputs(path: Path, answers: Answers[Any], rows: Array) -> tuple[TensorSpec, ...]:
    try:
        found = answers.of(rows)
    except Exception as error:
        # The libraries' errors share no base class but Exception.
        raise refuse(path, f"does not predict: {reason_of(error)}") from error
    return tuple(_output(path, name, array, rows) for name, array in found.items())


def _output(path: Path, name: str, array: Array, rows: Array) -> TensorSpec:
    datatype = Datatype.BYTES if array.dtype.kind == "O" else _DATATYPES.get(array.dtype)
    if datatype is None or array.shape[:1] != rows.shape[:1]:
        raise refuse(path, f"gives '{name}' as {array.dtype} of the shape {list(array.shape)}")
    return TensorSpec(name=name, datatype=datatype, shape=(VARIABLE, *array.shape[1:]))
