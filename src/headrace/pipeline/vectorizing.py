"""A vectorizer or transformer of scikit-learn as a step: texts or numbers to a matrix."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from headrace.core import (
    VARIABLE,
    Array,
    Datatype,
    InvalidArgumentError,
    ModelSignature,
    RuntimeFailedError,
    Tensors,
    TensorSpec,
)
from headrace.pipeline.step_specs import VectorizerSpec
from headrace.pipeline.surroundings import Surroundings
from headrace.pipeline.texts import texts_of
from headrace.runtimes.sklearn import load_estimator
from headrace.runtimes.tabular import INPUT, check_features, import_library, reason_of, refuse

TEXT: Final = "text"
FEATURES: Final = "features"
MAX_COLUMNS: Final = 1 << 20
MAX_VALUES: Final = 64 << 20
"""Of one run: dense, 256 MiB."""
_NO_PARTS: Final = ("vocabulary", "vocabulary_", "stop_words")
"""Attributes that may be long, and hold words only."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Transformer:
    """An estimator, of which no more threads are in use than a run may have."""

    estimator: Any
    controller: Any
    threads: int

    def transform(self, rows: Any) -> Any:  # noqa: ANN401  # texts or a matrix; dense or sparse
        """What its `transform` returns."""
        with self.controller.limit(limits=self.threads):
            return self.estimator.transform(rows)


class VectorizerStep:
    """`text` BYTES [N] or `input` FP64 [N, columns] to `features` [N, columns].

    Implements `Model`.
    """

    # It is Python, and nothing promises that two threads may be in one.
    concurrent = False

    def __init__(self, transformer: Transformer, taken: TensorSpec, given: TensorSpec) -> None:
        self.signature = ModelSignature(inputs=(taken,), outputs=(given,), batched=True)
        self._transformer = transformer
        self._taken = taken
        self._columns = given.shape[1]
        self._dtype = given.datatype.dtype

    def run(self, inputs: Tensors, outputs: Sequence[str] | None = None) -> Tensors:
        """Transform one batch.

        Raises:
            InvalidArgumentError: A text is none, the library does not take the values, or the
                answer would be too large.
        """
        del outputs
        rows: Any = inputs[self._taken.name]
        if len(rows) * self._columns > MAX_VALUES:
            msg = (
                f"{len(rows)} rows of {self._columns} features are more than {MAX_VALUES} values; "
                "send fewer rows at once"
            )
            raise InvalidArgumentError(msg)
        if not len(rows):
            return {FEATURES: np.zeros((0, self._columns), self._dtype)}
        if self._taken.datatype is Datatype.BYTES:
            rows = texts_of(rows)
        try:
            found = self._transformer.transform(rows)
        except Exception as error:
            raise _run_error(rows, error) from error
        return {FEATURES: _dense(found, self._dtype)}

    def example_inputs(self, *, rows: int, variable: int) -> Tensors:
        """Texts of so many words, or zeros."""
        shape = (rows, *self._taken.shape[1:])
        made = np.zeros(shape, self._taken.datatype.dtype)
        if self._taken.datatype is Datatype.BYTES:
            made[:] = [b"a word " * max(variable // 2, 1)] * rows
        return {self._taken.name: made}

    def close(self) -> None:
        """Holds nothing but memory."""


def open_vectorizer(spec: VectorizerSpec, around: Surroundings) -> VectorizerStep:
    """The step that `spec` describes; transforms one row to see what comes out.

    Raises:
        UnsupportedModelError: The file holds nothing that transforms, or gives more columns than
            can be served.
    """
    path = around.file(spec.path)
    estimator = load_estimator(path)
    if not hasattr(estimator, "transform"):
        raise refuse(path, f"holds a {type(estimator).__name__}, which does not transform")
    _refuse_file_names(path, estimator)
    transformer = Transformer(
        estimator=estimator,
        controller=import_library("threadpoolctl", "sklearn").ThreadpoolController(),
        threads=around.options.intra_op_threads,
    )
    taken = _taken(path, estimator)
    rows: Any = ["a word"] if taken.datatype is Datatype.BYTES else np.zeros((1, taken.shape[1]))
    try:
        found = transformer.transform(rows)
        shape = found.shape
    except Exception as error:
        # The library's errors share no base class but Exception.
        raise refuse(path, f"does not transform {_shown(taken)}: {reason_of(error)}") from error
    if len(shape) != 2 or shape[0] != 1:  # noqa: PLR2004  # a matrix
        raise refuse(path, f"gives the shape {list(shape)} for one row, not [1, columns]")
    if not 0 < shape[1] <= MAX_COLUMNS:
        raise refuse(path, f"gives {shape[1]} columns; 1 to {MAX_COLUMNS} are served")
    given = TensorSpec(name=FEATURES, datatype=Datatype(spec.datatype), shape=(VARIABLE, shape[1]))
    return VectorizerStep(transformer, taken, given)


def _taken(path: Path, estimator: Any) -> TensorSpec:  # noqa: ANN401  # any estimator
    """What it takes: texts, unless it counted columns when it was fitted."""
    features = getattr(estimator, "n_features_in_", None)
    if features is None:
        return TensorSpec(name=TEXT, datatype=Datatype.BYTES, shape=(VARIABLE,))
    check_features(path, features)
    return TensorSpec(name=INPUT, datatype=Datatype.FP64, shape=(VARIABLE, features))


def _refuse_file_names(path: Path, estimator: Any) -> None:  # noqa: ANN401  # any estimator
    """Refuse a vectorizer that would open files, which a caller would name."""
    for part in _parts(estimator):
        if getattr(part, "input", "content") != "content":
            msg = f"reads {part.input}s, which callers would choose; set input='content'"
            raise refuse(path, msg)


def _parts(estimator: Any) -> Iterator[Any]:  # noqa: ANN401  # any estimator
    """It, and every estimator within, fitted ones of column transformers too."""
    seen: set[int] = set()
    waiting = [estimator]
    while waiting:
        part = waiting.pop()
        if id(part) in seen or isinstance(part, str | bytes | np.ndarray):
            continue
        seen.add(id(part))
        if isinstance(part, dict):
            waiting += part.values()
        elif isinstance(part, list | tuple | set):
            waiting += part
        elif hasattr(part, "get_params"):
            yield part
            waiting += [value for name, value in vars(part).items() if name not in _NO_PARTS]


def _dense(found: Any, dtype: "np.dtype[Any]") -> Array:  # noqa: ANN401  # a matrix of NumPy's, or a sparse one of SciPy's
    if hasattr(found, "toarray"):
        found = found.astype(dtype).toarray()
    return np.ascontiguousarray(found, dtype)


def _run_error(rows: Any, error: Exception) -> Exception:  # noqa: ANN401  # texts or a matrix
    if isinstance(rows, np.ndarray) and not np.isfinite(rows).all():
        row = int((~np.isfinite(rows)).any(axis=1).argmax())
        msg = f"row {row} has a missing or infinite value: {reason_of(error)}"
        return InvalidArgumentError(msg)
    if isinstance(error, ValueError):
        return InvalidArgumentError(f"the vectorizer takes no such values: {reason_of(error)}")
    return RuntimeFailedError(f"the vectorizer failed: {reason_of(error)}")


def _shown(taken: TensorSpec) -> str:
    if taken.datatype is Datatype.BYTES:
        return "texts"
    return f"a matrix of {taken.shape[1]} numbers"
