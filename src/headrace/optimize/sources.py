"""Converters to ONNX by runtime, loaded on demand.

A new converter is a function like `open_source` below and a line in the table.
"""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType
from typing import Any, Final, NamedTuple

from headrace.core import (
    Array,
    CodeNotAllowedError,
    Datatype,
    FailedPreconditionError,
    ModelSignature,
    UnsupportedModelError,
)
from headrace.runtimes import Model, code_of_model, detect_runtime, get_runtime, runs_code
from headrace.runtimes.libraries import import_package
from headrace.runtimes.plugins import code_in

CATEGORICAL: Final = (
    "has categorical features, which are not converted: push the file without --convert, which "
    "serves it unchanged"
)


class _Converter(NamedTuple):
    """Converter: function `module:name`, required packages, and the extras that install them."""

    function: str
    packages: tuple[str, ...] = ("onnx",)
    extra: str = "convert"


_TORCH: Final = _Converter(
    "convert.torch:open_source", ("onnx", "onnxscript", "torch"), "convert-torch"
)
_TENSORFLOW: Final = ("onnx", "tensorflow", "tf2onnx")
_CONVERTERS: Final = {
    "catboost": _Converter("convert.trees:open_catboost"),
    "huggingface": _Converter(
        "convert.torch:open_huggingface",
        ("onnx", "onnxscript", "torch", "transformers"),
        "huggingface",
    ),
    "lightgbm": _Converter("convert.trees:open_lightgbm"),
    "savedmodel": _Converter(
        "convert.tensorflow:open_savedmodel", _TENSORFLOW, "convert-tensorflow"
    ),
    "sklearn": _Converter("convert.sklearn:open_source"),
    "tflite": _Converter(
        "convert.tensorflow:open_tflite",
        (*_TENSORFLOW, "ai_edge_litert"),
        "convert-tensorflow,tflite",
    ),
    "torch_export": _TORCH,
    "torchscript": _TORCH,
    "xgboost": _Converter("convert.trees:open_xgboost"),
}

Graph = Any  # an `onnx.ModelProto`; onnx ships no types


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """One way to convert a model to ONNX."""

    computes: Datatype
    """Datatype of the result's computation."""
    convert: Callable[[], Graph]
    converter: str = ""
    """Converter with its version, if not the source's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConversionSource:
    """Model to be converted, loaded by its own library."""

    model: Model
    ways: tuple[Way, ...]
    """Ways to convert, the most exact first."""
    converter: str
    """Converter package with its version."""
    library: str
    """Library of the model with its version."""
    hint: str = ""
    """Known limits of the converter, with the remedy."""
    takes_missing: bool = True
    """Whether such models support missing values."""
    thresholds: Mapping[int, Array] = field(default_factory=dict)
    """Tree thresholds by feature, if known; else they are read from the graph."""
    index_sizes: Mapping[str, int] = field(default_factory=dict)
    """By input that holds indices, the size of its table; of others only 0 and 1 are compared. An
    encoder of two tokens that no text contains amplifies differences in rounding."""


def convertible_runtimes() -> tuple[str, ...]:
    """Return the runtimes whose models can be converted, sorted."""
    return tuple(sorted(_CONVERTERS))


def source_runtime(path: Path, runtime: str = "") -> str:
    """Return the runtime whose converter takes a path.

    Raises:
        UnsupportedModelError: No converter takes it.
    """
    try:
        name = runtime or detect_runtime(path).name
    except UnsupportedModelError as error:
        if not path.exists():
            raise
        msg = f"{error}; models of {', '.join(convertible_runtimes())} can be converted"
        raise UnsupportedModelError(msg) from error
    if name in _CONVERTERS:
        return name
    if name == "onnx":
        msg = f"{path} is ONNX already; push it without --convert"
    else:
        convertible = ", ".join(convertible_runtimes())
        msg = (
            f"{path} is a model of the runtime '{name}', which has no converter; models of "
            f"{convertible} can be converted"
        )

    raise UnsupportedModelError(msg)


def open_source(path: Path, runtime: str, *, allow_code: bool) -> ConversionSource:
    """Load a model for conversion.

    Args:
        runtime: Result of `source_runtime`.
        allow_code: Whether loading may run code of the model's author.

    Raises:
        CodeNotAllowedError: Loading would run code; nothing was run.
        UnsupportedModelError: It cannot be loaded.
        FailedPreconditionError: A package is not installed; the message says which.
    """
    plugin = get_runtime(runtime)
    if runs_code(plugin, path):
        if not allow_code:
            raise CodeNotAllowedError(str(path), runtime, code_of_model(plugin, path))
    elif reason := code_in(path):
        raise UnsupportedModelError(f"{path}: {reason}")
    converter = _CONVERTERS[runtime]
    for package in converter.packages:
        import_converter(package, converter.extra)
    module, _, function = converter.function.partition(":")
    opens = getattr(importlib.import_module(f"headrace.optimize.{module}"), function)
    source: ConversionSource = opens(path, allow_code=allow_code)
    return source


def computes_in(signature: ModelSignature) -> Datatype:
    """Return the datatype that a network computes in, by its signature."""
    datatypes = {spec.datatype for spec in (*signature.inputs, *signature.outputs)}
    if Datatype.FP16 in datatypes:
        return Datatype.FP16
    is_double = Datatype.FP64 in datatypes and Datatype.FP32 not in datatypes
    return Datatype.FP64 if is_double else Datatype.FP32


def import_converter(module: str, extra: str = "convert") -> ModuleType:
    """Import a converter package.

    Raises:
        FailedPreconditionError: It is not installed, and the message says how to install it; or it
            is a framework, and this process has imported another one.
    """
    try:
        return import_package(module)
    except ImportError as error:
        msg = (
            f"converting needs the package '{module}', which cannot be imported ({error}): "
            f"pip install 'headrace[{extra}]'"
        )
        raise FailedPreconditionError(msg) from error


def with_version(package: str, *others: str) -> str:
    """Return a package with its version: `skl2onnx 1.20.0`; `others` are alternative names."""
    for name in (package, *others):
        try:
            return f"{package} {version(name)}"
        except PackageNotFoundError:
            continue
    return package
