"""Runtime of MLServer's model folders, which `model-settings.json` describes.

The settings name an implementation and a file. The file runs with Headrace's runtime of that
library, under MLServer's output names and with the inputs that the settings declare.
"""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np

from headrace.core import (
    VARIABLE,
    Array,
    Datatype,
    ModelSignature,
    Tensors,
    TensorSpec,
    UnsupportedModelError,
    error_kind,
)
from headrace.runtimes.base import LoadOptions, Model
from headrace.runtimes.plugins import (
    check_libraries,
    code_of_model,
    generated_inputs,
    get_runtime,
    runs_code,
)
from headrace.runtimes.tables.lightgbm import read_lightgbm

FILE_NAME: Final = "model-settings.json"
_CLASS: Final = re.compile(r"[A-Za-z_][\w.]{0,99}")
_MAX_BYTES: Final = 1 << 20
_IMPLEMENTATIONS: Final = {
    "SKLearnModel": ("sklearn", ("model.joblib", "model.pickle", "model.pkl")),
    "XGBoostModel": ("xgboost", ("model.bst", "model.ubj", "model.json")),
    "LightGBMModel": ("lightgbm", ("model.bst",)),
    "CatboostModel": ("catboost", ("model.cbm", "model.bin")),
}
"""Runtime and usual file names, by the class of an implementation of `mlserver_*`."""
_PREDICT: Final = "predict"
_NAMES: Final = {
    "label": _PREDICT,
    "prediction": _PREDICT,
    "probabilities": "predict_proba",
    "transformed": "transform",
}
"""MLServer's name of an output."""


class _Parameters(msgspec.Struct, frozen=True):
    uri: str = ""
    extra: dict[str, Any] | None = None


class _Tensor(msgspec.Struct, frozen=True):
    name: str
    datatype: Datatype
    shape: tuple[int, ...]


class MlserverSettings(msgspec.Struct, frozen=True):
    """Supported content of `model-settings.json`; the rest is ignored."""

    implementation: str
    parameters: _Parameters | None = None
    inputs: tuple[_Tensor, ...] = ()
    outputs: tuple[_Tensor, ...] = ()


def read_settings(directory: Path) -> MlserverSettings:
    """Return the settings of a model's directory.

    Raises:
        UnsupportedModelError: They are damaged.
    """
    file = directory / FILE_NAME
    try:
        with file.open("rb") as stream:
            return msgspec.json.decode(stream.read(_MAX_BYTES), type=MlserverSettings)
    except (OSError, msgspec.MsgspecError) as error:
        what = str(error) if isinstance(error, msgspec.ValidationError) else error_kind(error)
        raise UnsupportedModelError(f"{file}: cannot be read: {what}") from None


def _member(directory: Path, settings: MlserverSettings) -> tuple[str, Path]:
    """Return the runtime and the file that settings name.

    Raises:
        UnsupportedModelError: Headrace cannot run the implementation, or there is no file.
    """
    file = directory / FILE_NAME
    package, _, kind = settings.implementation.rpartition(".")
    if kind not in _IMPLEMENTATIONS or not package.startswith("mlserver_"):
        named = settings.implementation if _CLASS.fullmatch(settings.implementation) else "?"
        msg = (
            f"{file}: the implementation '{named}' is not supported; supported "
            f"are {', '.join(_IMPLEMENTATIONS)} of mlserver. Write a custom class as a Python "
            "model (`model.py`), and serve a Hugging Face or MLflow folder itself"
        )
        raise UnsupportedModelError(msg)
    runtime, names = _IMPLEMENTATIONS[kind]
    uri = settings.parameters.uri if settings.parameters else ""
    model = (directory / uri).resolve() if uri else directory.resolve()
    if not model.is_relative_to(directory.resolve()):
        msg = f"{file}: `uri` leads out of the directory; put the model's file into the directory"
        raise UnsupportedModelError(msg)
    if model.is_dir():
        model = next((model / name for name in names if (model / name).is_file()), model)
    if not model.is_file():
        shown = uri or f"{', '.join(names[:-1])}{' or ' if names[:-1] else ''}{names[-1]}"
        raise UnsupportedModelError(f"{file}: there is no file {shown} in the directory")
    return runtime, model


class MlserverRuntime:
    """Loader of a directory with `model-settings.json`."""

    name = "mlserver"
    runs_code = False
    has_manifest = True

    def recognises(self, path: Path) -> bool:
        """Whether `path` is a directory with `model-settings.json`."""
        return path.is_dir() and (path / FILE_NAME).is_file()

    def code_in(self, path: Path) -> str:
        """Return the code in the model's file; empty for none."""
        runtime, file = _member(path, read_settings(path))
        plugin = get_runtime(runtime)
        if not runs_code(plugin, file):
            return ""
        return code_of_model(plugin, file) or f"'{file.name}' runs code"

    def load(self, path: Path, options: LoadOptions) -> Model:
        """Load the model's file with the runtime of its library."""
        settings = read_settings(path)
        runtime, file = _member(path, settings)
        plugin = get_runtime(runtime)
        check_libraries(plugin, file)
        model = plugin.load(file, options)
        try:
            is_raw = runtime == "lightgbm"
            return MlserverModel(
                path / FILE_NAME,
                model,
                settings,
                is_raw=is_raw,
                is_binary=is_raw and read_lightgbm(file).objective == "binary",
            )
        except BaseException:
            model.close()
            raise


class MlserverModel:
    """Model under the tensor names of MLServer's settings."""

    def __init__(
        self,
        file: Path,
        model: Model,
        settings: MlserverSettings,
        *,
        is_raw: bool = False,
        is_binary: bool = False,
    ) -> None:
        """Check that the settings describe the model.

        Args:
            is_raw: MLServer answers LightGBM's values and no label.
            is_binary: Of two classes, these are the probabilities of the second.

        Raises:
            UnsupportedModelError: They do not.
        """
        own = model.signature
        self.concurrent = model.concurrent
        self._model = model
        self._is_second = is_binary
        self._inputs = _inputs(file, own, settings.inputs)
        self._names = _outputs(file, own, settings, is_raw=is_raw)
        specs = {spec.name: spec for spec in own.outputs}
        if is_binary:
            specs = {name: replace(spec, shape=(VARIABLE,)) for name, spec in specs.items()}
        is_same = len(self._inputs) == len(own.inputs)
        self.signature = replace(
            own,
            inputs=self._inputs,
            outputs=tuple(
                replace(specs[source], name=name) for name, source in self._names.items()
            ),
            columns=dict(
                zip((spec.name for spec in self._inputs), own.columns.values(), strict=False)
            )
            if is_same
            else {},
            example=own.example if is_same else {},
        )

    def run(self, inputs: Tensors, outputs: Sequence[str] | None = None) -> Tensors:
        """Run one batch."""
        results = self._model.run(self._arguments(inputs))
        answers = {name: results[self._names[name]] for name in outputs or self._names}
        if self._is_second:
            return {name: np.ascontiguousarray(array[:, 1]) for name, array in answers.items()}
        return answers

    def example_inputs(self, *, rows: int, variable: int) -> Tensors:
        """Return the library's example inputs, under the names of the settings."""
        examples = generated_inputs(self._model, rows=rows, variable=variable)
        if len(examples) == len(self._inputs):
            values = [
                examples.get(spec.name, array)
                for spec, array in zip(self._inputs, examples.values(), strict=True)
            ]
        else:
            (matrix,) = examples.values()
            values = list(matrix.T)
        return {
            spec.name: array.astype(spec.datatype.dtype).reshape(rows, *spec.shape[1:])
            for spec, array in zip(self._inputs, values, strict=True)
        }

    def close(self) -> None:
        """Close the library's model."""
        self._model.close()

    def _arguments(self, inputs: Tensors) -> Tensors:
        own = self._model.signature.inputs
        if len(own) == len(self._inputs):
            arrays = [
                inputs[spec.name] if spec.name in inputs else next(iter(inputs.values()))
                for spec in own
            ]
            return {
                spec.name: _cast(array, spec.datatype).reshape(len(array), *spec.shape[1:])
                for spec, array in zip(own, arrays, strict=True)
            }
        (matrix,) = own
        columns = [inputs[spec.name].reshape(-1) for spec in self._inputs]
        return {matrix.name: np.stack([_cast(c, matrix.datatype) for c in columns], axis=1)}


def _cast(array: Array, datatype: Datatype) -> Array:
    return array if array.dtype.hasobject else array.astype(datatype.dtype)


def _inputs(
    file: Path, signature: ModelSignature, declared: Sequence[_Tensor]
) -> tuple[TensorSpec, ...]:
    """Return the inputs that the settings declare: the model's own, or one for each column.

    Raises:
        UnsupportedModelError: They are not inputs of the model.
    """
    own = signature.inputs
    if not declared:
        return own
    specs = {tensor.name: tensor for tensor in declared}
    is_single = len(own) == len(declared) == 1
    if is_single:
        tensor = declared[0]
        shape, sizes = own[0].shape, tensor.shape
        is_same = sizes[-1:] in {shape[-1:], (VARIABLE,)} or len(shape) == 1
        if is_same and not own[0].datatype.dtype.hasobject ^ tensor.datatype.dtype.hasobject:
            return (replace(own[0], name=tensor.name, datatype=tensor.datatype),)
    elif set(specs) == {spec.name for spec in own}:
        return tuple(
            spec
            if spec.datatype is Datatype.BYTES
            else replace(spec, datatype=specs[spec.name].datatype)
            for spec in own
        )
    elif len(own) == 1 and own[0].shape[1:] == (len(declared),):
        (names,) = signature.columns.values() or ((),)
        order = names if set(names) == set(specs) else list(specs)
        return tuple(
            TensorSpec(
                name=name,
                datatype=specs[name].datatype,
                shape=(VARIABLE, 1) if len(specs[name].shape) > 1 else (VARIABLE,),
            )
            for name in order
        )
    shown = ", ".join(f"{spec.name} {spec.datatype} {list(spec.shape)}" for spec in own)
    msg = f"{file}: `inputs` are not those of the model, which takes {shown}"
    raise UnsupportedModelError(msg)


def _outputs(
    file: Path, signature: ModelSignature, settings: MlserverSettings, *, is_raw: bool
) -> dict[str, str]:
    """Return the model's own output by MLServer's name; the default output comes first.

    Raises:
        UnsupportedModelError: The settings declare an output that the model lacks.
    """
    own = [spec.name for spec in signature.outputs]
    names = {_NAMES.get(name, name): name for name in own}
    if is_raw:  # MLServer calls `Booster.predict`, which returns no label
        names = {_PREDICT: own[-1]}
    extra = (settings.parameters.extra if settings.parameters else None) or {}
    first = extra.get("predict_fn", _PREDICT)
    if first in names:
        names = {first: names[first], **names}
    declared = [tensor.name for tensor in settings.outputs]
    if len(declared) == 1 and declared[0] not in names:
        return {declared[0]: next(iter(names.values()))}
    if unknown := [name for name in declared if name not in names]:
        msg = f"{file}: the model has no output {', '.join(unknown)}; it has {', '.join(names)}"
        raise UnsupportedModelError(msg)
    return {name: names[name] for name in declared} if declared else names
