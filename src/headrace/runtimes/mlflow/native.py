"""Models of an MLflow flavor whose file one of Headrace's runtimes runs.

The model has the inputs that MLflow's signature declares, and the outputs of the runtime. Where
none of these is what `predict` returns in MLflow, it has one more output, `prediction`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from headrace.core import Array, Datatype, ModelSignature, Tensors, TensorSpec, example_inputs
from headrace.core.predictions import PredictionForm, PredictionLayout
from headrace.runtimes.base import LoadOptions, Model, Runtime
from headrace.runtimes.mlflow.folder import PYFUNC, AuthorExample, FolderInput, MlflowFolder
from headrace.runtimes.plugins import get_runtime
from headrace.runtimes.tables.tabular import LABEL, PREDICTION, PROBABILITIES, refuse

_ANSWER_OF: Final = {"predict": (LABEL, PREDICTION), "predict_proba": (PROBABILITIES,)}
"""Outputs that methods of scikit-learn return; the first that exists."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NativeFile:
    """File in a folder, and the runtime that runs it."""

    runtime: Runtime
    path: Path
    flavor: str
    options: Mapping[str, Any]
    """The flavor's entry in `MLmodel`."""
    method: str = "predict"
    """Method of the estimator that MLflow calls."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Derived:
    """Output `prediction`, computed from another output."""

    source: str
    compute: Callable[[Array], Array]
    shape: tuple[int, ...]
    datatype: Datatype


def find_native(folder: MlflowFolder) -> NativeFile | None:
    """Return the file of the folder that a runtime runs; None if only MLflow runs the model.

    Raises:
        UnsupportedModelError: `MLmodel` names a file that does not exist.
    """
    flavor = folder.loader
    options = folder.flavors.get(flavor, {})
    name, file = _candidate(folder, flavor, options)
    method = str(folder.flavors.get(PYFUNC, {}).get("predict_fn") or "predict")
    if not name or method not in _ANSWER_OF:
        return None
    path, runtime = folder.file(file), get_runtime(name)
    # CatBoost's file has another suffix here than the runtime expects; `load` examines its content.
    if name != "catboost" and not runtime.recognises(path):
        return None
    return NativeFile(runtime=runtime, path=path, flavor=flavor, options=options, method=method)


def _candidate(folder: MlflowFolder, flavor: str, options: Mapping[str, Any]) -> tuple[str, str]:
    """Return the runtime that may run a flavor, and the file; empty if there is none."""
    has_code = bool(options.get("code"))  # which a pickle may import
    data = str(options.get("data", options.get("model_data", "data")))
    match flavor:
        case "sklearn" if not has_code:
            return flavor, str(options.get("pickled_model", "model.pkl"))
        case "lightgbm" if not _is_booster(options):
            return ("", "") if has_code else ("sklearn", data)
        case "xgboost" | "lightgbm" | "onnx":
            return flavor, data
        case "catboost" if options.get("model_type") != "CatBoost":
            return (flavor, data) if options.get("save_format", "cbm") == "cbm" else ("", "")
        case "pytorch" | "tensorflow":
            files = {"model.pt2": "torch_export", "model.pth": "torchscript", "model": "savedmodel"}
            names = [name for name in files if (folder.path / data / name).exists()]
            return (files[names[0]], f"{data}/{names[0]}") if names else ("", "")
        case _:
            return "", ""


def _is_booster(options: Mapping[str, Any]) -> bool:
    return str(options.get("model_class", "Booster")).endswith("Booster")


def _is_classifier(options: Mapping[str, Any]) -> bool:
    return str(options.get("model_class", "")).endswith("Classifier")


class NativeModel:
    """A model of one of Headrace's runtimes with the interface of an MLflow model."""

    def __init__(
        self,
        model: Model,
        signature: ModelSignature,
        predictions: PredictionLayout,
        *,
        convert: Callable[[Tensors], Tensors],
        derived: Derived | None,
        example: AuthorExample | None,
    ) -> None:
        self.signature = signature
        self.predictions = predictions
        self.concurrent = model.concurrent
        self.device = getattr(model, "device", None)
        self._model = model
        self._convert = convert
        self._derived = derived
        self._example = example

    @classmethod
    def open(cls, native: NativeFile, folder: MlflowFolder, options: LoadOptions) -> "NativeModel":
        """Load the file.

        Raises:
            UnsupportedModelError: It cannot be loaded, or its outputs are not those of MLflow.
        """
        model = native.runtime.load(native.path, options)
        answer = _answer(native, model.signature)
        if answer is None:
            model.close()
            outputs = ", ".join(spec.name for spec in model.signature.outputs)
            what = f"'{native.method}' of the flavor '{native.flavor}'"
            raise refuse(
                folder.path, f"has the outputs {outputs}, which are not the result of {what}"
            )
        names, derived = answer
        signature = model.signature
        convert: Callable[[Tensors], Tensors] = _unchanged
        if folder.is_table and (conversion := _conversion(folder.inputs, signature)) is not None:
            convert = conversion
            signature = replace(
                signature, inputs=tuple(item.spec for item in folder.inputs), columns={}, example={}
            )
        if derived is not None:
            spec = TensorSpec(name=PREDICTION, datatype=derived.datatype, shape=derived.shape)
            signature = replace(signature, outputs=(spec, *signature.outputs))
        layout = _layout(native, folder, names)
        example = AuthorExample.of(folder, signature, layout)
        if example is not None:
            signature = replace(signature, example={**signature.example, **example.values()})
        return cls(model, signature, layout, convert=convert, derived=derived, example=example)

    def example_inputs(self, *, rows: int, variable: int) -> Tensors:
        """Return rows of the author's example, else those that the runtime accepts."""
        if self._example is not None and self.signature.batched:
            return self._example.rows(rows)
        return example_inputs(self.signature, rows=rows, variable=variable)

    def run(self, inputs: Tensors, outputs: Sequence[str] | None = None) -> Tensors:
        """Run one batch."""
        names = outputs or [spec.name for spec in self.signature.outputs]
        derived = self._derived
        if derived is None:
            return self._model.run(self._convert(inputs), names)
        needed = [derived.source if name == PREDICTION else name for name in names]
        answers = self._model.run(self._convert(inputs), list(dict.fromkeys(needed)))
        if PREDICTION in names:
            answers[PREDICTION] = np.ascontiguousarray(derived.compute(answers[derived.source]))
        return {name: answers[name] for name in names}

    def close(self) -> None:
        """Free the model's resources."""
        self._model.close()


def _unchanged(inputs: Tensors) -> Tensors:
    return inputs


def _answer(
    native: NativeFile, signature: ModelSignature
) -> tuple[tuple[str, ...], Derived | None] | None:
    """Return the outputs that `predict` returns in MLflow; None if they are unknown."""
    outputs = {spec.name: spec for spec in signature.outputs}
    is_classifier = LABEL in outputs and PROBABILITIES in outputs
    match native.flavor:
        case "onnx":
            return tuple(outputs), None
        case "pytorch" | "tensorflow":
            return (tuple(outputs), None) if len(outputs) == 1 else None
        case "catboost" if is_classifier and outputs[PROBABILITIES].shape[1] > 2:  # noqa: PLR2004  # not binary
            label = outputs[LABEL]
            column = Derived(
                source=LABEL,
                compute=lambda labels: labels.reshape(-1, 1),
                shape=(*label.shape, 1),
                datatype=label.datatype,
            )
            return (PREDICTION,), column
        case "xgboost" if _is_classifier(native.options) != is_classifier:
            return _answer_of_booster(native, outputs[PROBABILITIES]) if is_classifier else None
        case "lightgbm" if is_classifier and _is_booster(native.options):
            return _answer_of_booster(native, outputs[PROBABILITIES])
        case _:
            named = next((name for name in _ANSWER_OF[native.method] if name in outputs), None)
            return None if named is None else ((named,), None)


def _answer_of_booster(
    native: NativeFile, probabilities: TensorSpec
) -> tuple[tuple[str, ...], Derived | None]:
    """Return the output of a booster, which predicts probabilities rather than classes."""
    if probabilities.shape[1] == 2:  # noqa: PLR2004  # binary
        second = Derived(
            source=PROBABILITIES,
            compute=lambda both: both[:, 1],
            shape=probabilities.shape[:1],
            datatype=probabilities.datatype,
        )
        return (PREDICTION,), second
    if native.flavor == "xgboost":
        from headrace.runtimes.tables.xgboost import read_xgboost  # noqa: PLC0415  # few need it

        if read_xgboost(native.path).objective == "multi:softmax":
            label = Derived(
                source=LABEL,
                compute=lambda labels: labels.astype(np.float32),
                shape=probabilities.shape[:1],
                datatype=Datatype.FP32,
            )
            return (PREDICTION,), label
    return (PROBABILITIES,), None


def _layout(native: NativeFile, folder: MlflowFolder, names: tuple[str, ...]) -> PredictionLayout:
    """Return the form of predictions: some flavors answer a data frame with a data frame."""
    table, tensors = {
        "onnx": (PredictionForm.RECORDS, PredictionForm.MAPPING),
        "pytorch": (PredictionForm.COLUMNS, PredictionForm.VALUES),
    }.get(native.flavor, (PredictionForm.VALUES, PredictionForm.VALUES))
    declares_tensors = bool(folder.inputs) and not folder.is_table
    return PredictionLayout(
        outputs=names,
        of_table=tensors if declares_tensors else table,
        of_tensors=tensors,
        optional=frozenset(item.spec.name for item in folder.inputs if not item.is_required),
        is_table=folder.is_table,
    )


def _conversion(
    columns: Sequence[FolderInput], signature: ModelSignature
) -> Callable[[Tensors], Tensors] | None:
    """Return the conversion from declared columns to the runtime's inputs; None if they differ."""
    names = [column.spec.name for column in columns]
    texts = {column.spec.name for column in columns if column.spec.datatype is Datatype.BYTES}
    by_name = {spec.name: spec for spec in signature.inputs}
    texts_here = {name for name, spec in by_name.items() if spec.datatype is Datatype.BYTES}
    if set(by_name) <= set(names):
        if texts_here != texts & set(by_name):
            return None
        return lambda inputs: {
            name: _as_input(inputs[name], spec) for name, spec in by_name.items()
        }
    if len(signature.inputs) != 1 or texts or texts_here:
        return None
    (matrix,) = signature.inputs
    if len(matrix.shape) != 2 or matrix.shape[1] not in {-1, len(names)}:  # noqa: PLR2004  # a matrix
        return None
    meant = signature.columns.get(matrix.name, ())
    order = list(meant) if set(meant) == set(names) else names
    dtype = matrix.datatype.dtype

    def stack(inputs: Tensors) -> Tensors:
        rows = np.empty((len(inputs[order[0]]), len(order)), dtype)
        for i, name in enumerate(order):
            rows[:, i] = inputs[name]
        return {matrix.name: rows}

    return stack


def _as_input(values: Array, spec: TensorSpec) -> Array:
    column = values.astype(spec.datatype.dtype, copy=False)
    return column if len(spec.shape) == 1 else column.reshape(-1, *spec.shape[1:])
