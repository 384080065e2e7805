"""MLflow folder: flavors, signature, input example and requirements, read without MLflow."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from headrace.core import (
    VARIABLE,
    Datatype,
    HeadraceError,
    InvalidArgumentError,
    ModelSignature,
    Tensors,
    TensorSpec,
)
from headrace.core.datatypes import datatype_of
from headrace.core.predictions import PredictionLayout, parse_inputs
from headrace.runtimes.tables.tabular import INPUT, corrupt, refuse

MANIFEST: Final = "MLmodel"
PYFUNC: Final = "python_function"
_MAX_EXAMPLE_BYTES: Final = 64 << 20
_DATATYPES: Final = {
    "boolean": Datatype.BOOL,
    "integer": Datatype.INT32,
    "long": Datatype.INT64,
    "float": Datatype.FP32,
    "double": Datatype.FP64,
}
"""Datatypes of MLflow's column types; all others are BYTES."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FolderInput:
    """Column or tensor that the signature declares."""

    spec: TensorSpec
    kind: str
    """Type of a column, such as `double` or `datetime`; `tensor` for a tensor."""
    is_named: bool
    is_required: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class MlflowFolder:
    """Content of a folder that `mlflow.FLAVOR.log_model` wrote."""

    path: Path
    flavors: Mapping[str, Mapping[str, Any]]
    inputs: tuple[FolderInput, ...]
    """Declared inputs; empty without a signature."""
    example: Mapping[str, Any] | None
    """Request of the scoring protocol that the author gave as an example."""

    @property
    def loader(self) -> str:
        """Name of the flavor by which MLflow loads the model, such as `sklearn`."""
        module = str(self.flavors.get(PYFUNC, {}).get("loader_module", ""))
        name = module.removeprefix("mlflow.")
        if name in self.flavors:
            return name
        return next((flavor for flavor in self.flavors if flavor != PYFUNC), PYFUNC)

    @property
    def is_table(self) -> bool:
        """Whether the signature declares columns."""
        return bool(self.inputs) and self.inputs[0].kind != "tensor"

    def file(self, name: object) -> Path:
        """Return a file of the folder.

        Raises:
            UnsupportedModelError: It does not exist, or is not in the folder.
        """
        path = self.path / str(name)
        if not path.exists():
            raise corrupt(self.path, f"{MANIFEST} names '{name}', which does not exist")
        if not path.resolve().is_relative_to(self.path.resolve()):
            raise refuse(self.path, f"{MANIFEST} names '{name}', which is outside of the folder")
        return path

    def requirements(self) -> str:
        """Return what its `requirements.txt` requires, for a message."""
        try:
            lines = (self.path / "requirements.txt").read_text("utf-8").splitlines()
        except (OSError, UnicodeDecodeError):
            return "mlflow"
        names = [line.strip() for line in lines if line.strip() and not line.startswith(("#", "-"))]
        return " ".join(f"'{name}'" if set(name) & set("<>;[ ") else name for name in names)


def looks_like_mlflow(path: Path) -> bool:
    """Whether `path` is a directory with an `MLmodel` file."""
    return path.is_dir() and (path / MANIFEST).is_file()


def read_folder(path: Path) -> MlflowFolder:
    """Return the content of a folder; the example is read, the model is not.

    Raises:
        UnsupportedModelError: `MLmodel` is damaged, or declares a model that cannot be served.
    """
    from headrace.core.spec.yaml import read_yaml  # noqa: PLC0415  # few need it

    try:
        document = read_yaml((path / MANIFEST).read_text("utf-8"))
    except (OSError, UnicodeDecodeError):
        raise corrupt(path, f"{MANIFEST} cannot be read") from None
    content = document.value
    flavors = content.get("flavors") if isinstance(content, Mapping) else None
    if not isinstance(flavors, Mapping) or not flavors:
        reason = f": {document.mistakes[0]}" if document.mistakes else ""
        raise corrupt(path, f"{MANIFEST} declares no flavors{reason}")
    signature = content.get("signature")
    declared = signature.get("inputs") if isinstance(signature, Mapping) else None
    saved = content.get("saved_input_example_info")
    return MlflowFolder(
        path=path,
        flavors={
            str(name): options for name, options in flavors.items() if isinstance(options, Mapping)
        },
        inputs=_inputs(path, declared) if isinstance(declared, str) else (),
        example=_example(path, saved) if isinstance(saved, Mapping) else None,
    )


def _inputs(path: Path, declared: str) -> tuple[FolderInput, ...]:
    try:
        items = json.loads(declared)
        inputs = [_input(item, number, len(items)) for number, item in enumerate(items)]
    except (ValueError, KeyError, TypeError, AttributeError, InvalidArgumentError) as error:
        what = type(error).__name__
        raise corrupt(path, f"{MANIFEST} has a signature that cannot be read ({what})") from None
    names = [item.spec.name for item in inputs]
    if len(set(names)) < len(names):
        raise refuse(path, "declares two inputs of the same name; rename one")
    return tuple(inputs)


def _input(item: Mapping[str, Any], number: int, count: int) -> FolderInput:
    kind = str(item["type"])
    name = item.get("name")
    shown = str(name) if name is not None else INPUT if count == 1 else str(number)
    is_named = name is not None
    if kind == "tensor":
        tensor = item["tensor-spec"]
        dtype = str(tensor["dtype"])
        datatype = Datatype.BYTES if dtype in {"str", "object"} else datatype_of(np.dtype(dtype))
        spec = TensorSpec(name=shown, datatype=datatype, shape=tuple(map(int, tensor["shape"])))
        return FolderInput(spec=spec, kind=kind, is_named=is_named)
    spec = TensorSpec(name=shown, datatype=_DATATYPES.get(kind, Datatype.BYTES), shape=(VARIABLE,))
    is_required = item.get("required") is not False
    return FolderInput(spec=spec, kind=kind, is_named=is_named, is_required=is_required)


def _example(path: Path, saved: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return the example as a request; None if there is none that can be read."""
    for key, wrap in (("serving_input_path", False), ("artifact_path", True)):
        name = saved.get(key)
        if not isinstance(name, str):
            continue
        file = path / name
        try:
            if not file.resolve().is_relative_to(path.resolve()):
                continue
            with file.open("rb") as stream:
                content = json.loads(stream.read(_MAX_EXAMPLE_BYTES))
        except (OSError, ValueError, RecursionError):
            continue
        if not wrap:
            return content if isinstance(content, Mapping) else None
        if isinstance(content, Mapping) and "data" in content:
            return {"dataframe_split": content}
        return content if isinstance(content, Mapping) else {"inputs": content}
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class AuthorExample:
    """Inputs of the example that the author logged with the model."""

    tensors: Tensors

    @classmethod
    def of(
        cls, folder: MlflowFolder, signature: ModelSignature, layout: PredictionLayout
    ) -> "AuthorExample | None":
        """Return the example as inputs of `signature`; None if there is none that fits."""
        if folder.example is None:
            return None
        try:
            values = parse_inputs(folder.example, signature, layout).values
            tensors = {spec.name: _array(spec, values[spec.name]) for spec in signature.inputs}
        except (HeadraceError, KeyError, ValueError, TypeError, OverflowError):
            return None
        fits = all(spec.fits(tensors[spec.name].shape) for spec in signature.inputs)
        return cls(tensors=tensors) if fits and all(map(len, tensors.values())) else None

    def rows(self, rows: int) -> Tensors:
        """Return this many rows, by repeating those of the example."""
        return {name: array[np.arange(rows) % len(array)] for name, array in self.tensors.items()}

    def values(self) -> dict[str, float | str]:
        """Return the first value of each column, for `ModelSignature.example`."""
        values: dict[str, float | str] = {}
        for name, array in self.tensors.items():
            value = array[0] if array.ndim == 1 else None
            if isinstance(value, bytes):
                values[name] = value.decode()
            elif value is not None and math.isfinite(value):
                values[name] = float(value)
        return values


def _array(spec: TensorSpec, values: Any) -> np.ndarray[Any, Any]:  # noqa: ANN401  # nested lists
    if spec.datatype is not Datatype.BYTES:
        return np.array(values, spec.datatype.dtype)
    texts = np.array(values, np.str_)
    encoded = np.empty(texts.size, np.object_)
    encoded[:] = [text.encode() for text in texts.ravel().tolist()]
    return encoded.reshape(texts.shape)
