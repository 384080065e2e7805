"""Models that MLflow itself loads and runs: `python_function`, and pickles of its flavors.

**Loading such a model runs its author's code.**
"""

import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

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
    example_inputs,
)
from headrace.core.datatypes import datatype_of
from headrace.core.predictions import PredictionForm, PredictionLayout
from headrace.runtimes.base import LoadOptions
from headrace.runtimes.libraries import (
    SecondFrameworkError,
    import_package,
    isolate_frameworks,
    reason_of,
)
from headrace.runtimes.mlflow.folder import AuthorExample, FolderInput, MlflowFolder
from headrace.runtimes.tables.tabular import PREDICTION, refuse

_SCALARS: Final = (bool, int, float, str)
_PLAIN: Final = frozenset({"boolean", "integer", "long", "float", "double"})


@dataclass(frozen=True, slots=True, kw_only=True)
class _Answer:
    """What `predict` returned, as arrays by output name."""

    form: PredictionForm
    arrays: Tensors


class PyfuncModel:
    """A model that MLflow loaded; a run calls `predict` once."""

    concurrent = False

    def __init__(
        self,
        folder: MlflowFolder,
        predict: Callable[[Any], Any],
        signature: ModelSignature,
        form: PredictionForm,
        example: AuthorExample | None,
    ) -> None:
        self.signature = signature
        self.predictions = _layout(folder, signature, form)
        self._example = example
        self._inputs = folder.inputs
        self._form = form
        self._predict: Callable[[Any], Any] | None = predict

    @classmethod
    def open(cls, folder: MlflowFolder, options: LoadOptions) -> "PyfuncModel":
        """Load the model with MLflow, and run its example once to observe its outputs.

        Raises:
            FailedPreconditionError: MLflow, or a package that the model needs, is not installed.
            UnsupportedModelError: The model cannot be loaded, or does not predict.
        """
        predict = _loaded(folder)
        if not folder.inputs:
            raise refuse(
                folder.path,
                "has no signature, so its inputs are unknown; log the model with `signature=`"
                " or `input_example=`",
            )
        specs = tuple(item.spec for item in folder.inputs)
        is_batched = options.rows_independent
        declared = ModelSignature(inputs=specs, outputs=(), batched=is_batched)
        example = AuthorExample.of(
            folder, declared, _layout(folder, declared, PredictionForm.VALUES)
        )
        trial = example.tensors if example else example_inputs(declared, rows=2, variable=2)
        rows = len(next(iter(trial.values())))
        try:
            answer = _answer(predict(_data(folder.inputs, trial)))
        except Exception as error:
            # A model of any author may raise any exception.
            what = "its input example" if example else "generated inputs"
            raise refuse(
                folder.path,
                f"does not predict {what}: {reason_of(error)}; log it with an `input_example=` that"
                " it accepts",
            ) from error
        outputs = tuple(_spec(name, array, rows) for name, array in answer.arrays.items())
        if is_batched and any(spec.shape[:1] != (VARIABLE,) for spec in outputs):
            raise refuse(folder.path, "does not return one prediction per row, so it has no batch")
        reason = "MLflow's `predict` may look at several rows"
        signature = ModelSignature(
            inputs=specs,
            outputs=outputs,
            batched=is_batched,
            row_independence=RowIndependence.DECLARED if is_batched else RowIndependence.UNPROVEN,
            row_reason=reason,
        )
        if example is not None:
            signature = replace(signature, example=example.values())
        return cls(folder, predict, signature, answer.form, example)

    def example_inputs(self, *, rows: int, variable: int) -> Tensors:
        """Return rows of the author's example, else generated ones."""
        example = self._example
        if example is None:
            return example_inputs(self.signature, rows=rows, variable=variable)
        return example.rows(rows) if self.signature.batched else example.tensors

    def run(self, inputs: Tensors, outputs: Sequence[str] | None = None) -> Tensors:
        """Run one batch."""
        if self._predict is None:
            raise RuntimeFailedError("the model is closed")
        data = _data(self._inputs, inputs)
        try:
            answer = _answer(self._predict(data))
        except HeadraceError:
            raise
        except Exception as error:
            if type(error).__module__.startswith("mlflow."):  # the input contradicts the signature
                raise InvalidArgumentError(f"MLflow refuses it: {reason_of(error)}") from error
            raise RuntimeFailedError(f"the model failed: {reason_of(error)}") from error
        return {
            spec.name: self._output(spec, answer)
            for spec in self.signature.outputs
            if outputs is None or spec.name in outputs
        }

    def close(self) -> None:
        """Release the model; may be called again."""
        self._predict = None

    def _output(self, spec: TensorSpec, answer: _Answer) -> Array:
        array = answer.arrays.get(spec.name)
        if array is None or answer.form is not self._form:
            msg = f"predict() returned no '{spec.name}', unlike for the input example"
            raise RuntimeFailedError(msg)
        dtype = spec.datatype.dtype
        if array.dtype != dtype and not np.can_cast(array.dtype, dtype, "same_kind"):
            msg = f"predict() returned '{spec.name}' as {array.dtype}, not as {dtype}"
            raise RuntimeFailedError(msg)
        if not spec.fits(array.shape):
            shape = list(array.shape)
            msg = f"predict() returned '{spec.name}' with the shape {shape}, not {list(spec.shape)}"
            raise RuntimeFailedError(msg)
        return np.ascontiguousarray(array, dtype).reshape(array.shape)


def _layout(
    folder: MlflowFolder, signature: ModelSignature, form: PredictionForm
) -> PredictionLayout:
    return PredictionLayout(
        outputs=tuple(spec.name for spec in signature.outputs),
        of_table=form,
        of_tensors=form,
        optional=frozenset(item.spec.name for item in folder.inputs if not item.is_required),
        is_table=folder.is_table,
    )


def _loaded(folder: MlflowFolder) -> Callable[[Any], Any]:
    """Return `predict` of the model that MLflow loaded."""
    install = f"install what the model needs where it runs: pip install {folder.requirements()}"
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    isolate_frameworks()
    try:
        library = import_package("mlflow.pyfunc")
    except ImportError as error:
        raise FailedPreconditionError(
            f"{folder.path} is a model of the flavor '{folder.loader}', which only MLflow runs, and"
            f" the package 'mlflow' cannot be imported ({reason_of(error)}); {install}"
        ) from error
    try:
        model = library.load_model(str(folder.path))
    except SecondFrameworkError as error:
        raise FailedPreconditionError(str(error)) from error
    except ImportError as error:
        what = f"the package '{error.name}' cannot be imported" if error.name else reason_of(error)
        raise FailedPreconditionError(f"{folder.path}: {what}; {install}") from error
    except Exception as error:
        # A pickle may raise any exception.
        raise refuse(folder.path, f"MLflow cannot load it: {reason_of(error)}") from error
    if (keras := sys.modules.get("keras")) is not None:
        keras.utils.disable_interactive_logging()  # a progress bar for each request
    predict: Callable[[Any], Any] = model.predict
    return predict


def _data(declared: Sequence[FolderInput], inputs: Tensors) -> object:
    """Return tensors in the type that MLflow passes to `predict`."""
    if declared[0].kind == "tensor":
        tensors = {item.spec.name: _texts(inputs[item.spec.name]) for item in declared}
        return tensors if declared[0].is_named else next(iter(tensors.values()))
    import pandas as pd  # noqa: PLC0415  # MLflow needs it, Headrace does not

    columns = {item.spec.name: _column(item, inputs[item.spec.name], pd) for item in declared}
    try:
        frame = pd.DataFrame(columns)
    except ValueError as error:
        raise InvalidArgumentError(f"the inputs do not make a data frame: {error}") from None
    if not declared[0].is_named:
        frame.columns = range(len(declared))
    return frame


def _column(item: FolderInput, values: Array, pd: Any) -> object:  # noqa: ANN401  # ships no types
    if item.kind in _PLAIN:
        return values
    if item.kind == "binary":
        return values.tolist()
    texts = _texts(values).tolist()
    if item.kind == "string":
        return texts
    try:
        if item.kind == "datetime":
            return pd.to_datetime(pd.Series(texts), format="ISO8601").astype("datetime64[ns]")
        return [json.loads(text) for text in texts]
    except (ValueError, TypeError):
        msg = f"input '{item.spec.name}' has a value that is not {_FORMS.get(item.kind, 'JSON')}"
        raise InvalidArgumentError(msg) from None


_FORMS: Final = {"datetime": "a time in ISO 8601"}


def _texts(values: Array) -> Array:
    """Return BYTES as an array of text, and all other arrays unchanged."""
    if values.dtype.kind != "O":
        return values
    texts = np.empty(values.size, np.object_)
    try:
        texts[:] = [value.decode() for value in values.ravel().tolist()]
    except UnicodeDecodeError:
        raise InvalidArgumentError("an input holds bytes that are not valid UTF-8") from None
    return texts.reshape(values.shape)


def _answer(result: object) -> _Answer:
    """Return the result of `predict` as arrays."""
    columns = getattr(result, "to_dict", None)
    if hasattr(result, "to_frame"):  # a series
        result = result.to_frame()
    if columns is not None and hasattr(result, "columns"):
        frame: Any = result
        names = [str(name) for name in frame.columns]
        arrays = {name: _array(frame.iloc[:, i].to_numpy()) for i, name in enumerate(names)}
        if (
            arrays
            and len(arrays) == len(names)
            and all(array is not None for array in arrays.values())
        ):
            return _Answer(form=PredictionForm.RECORDS, arrays=_complete(arrays))
        result = frame.to_dict(orient="records")
    if isinstance(result, np.ndarray | np.generic) or _is_flat_list(result):
        array = _array(np.asarray(result))
        if array is not None:
            return _Answer(form=PredictionForm.VALUES, arrays={PREDICTION: array})
    if isinstance(result, Mapping) and result:
        arrays = {
            str(name): _array(value) if isinstance(value, np.ndarray) else None
            for name, value in result.items()
        }
        if all(array is not None for array in arrays.values()):
            return _Answer(form=PredictionForm.MAPPING, arrays=_complete(arrays))
    text = np.empty(1, np.object_)
    text[0] = json.dumps(result, default=_jsonable).encode()
    return _Answer(form=PredictionForm.DOCUMENT, arrays={PREDICTION: text})


def _complete(arrays: Mapping[str, Array | None]) -> Tensors:
    return {name: array for name, array in arrays.items() if array is not None}


def _is_flat_list(result: object) -> bool:
    """Whether a result is a list of values of one type."""
    return (
        isinstance(result, list)
        and len({type(v) for v in result}) == 1
        and isinstance(result[0], (*_SCALARS, np.generic))
    )


def _array(values: Array) -> Array | None:
    """Return an array with a datatype of the protocol; None if its elements have none."""
    if values.dtype.kind in "OU":
        flat = values.ravel().tolist()
        if not all(isinstance(value, str) for value in flat):
            return None
        encoded = np.empty(len(flat), np.object_)
        encoded[:] = [value.encode() for value in flat]
        return encoded.reshape(values.shape)
    try:
        datatype_of(values.dtype)
    except InvalidArgumentError:
        return None
    return values


def _spec(name: str, array: Array, rows: int) -> TensorSpec:
    is_by_row = array.shape[:1] == (rows,)
    sizes = array.shape[1:] if is_by_row else (VARIABLE,) * max(0, array.ndim - 1)
    shape = (VARIABLE, *sizes) if array.ndim else ()
    datatype = Datatype.BYTES if array.dtype.kind == "O" else datatype_of(array.dtype)
    return TensorSpec(name=name, datatype=datatype, shape=shape)


def _jsonable(value: object) -> object:
    """Return what JSON can hold of an object, as MLflow's encoder does."""
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, np.generic):
        return value.item()
    if hasattr(value, "model_dump"):
        return value.model_dump()
    if hasattr(value, "isoformat"):
        return value.isoformat()
    raise TypeError(f"predict() returned a {type(value).__name__}, which JSON cannot hold")
