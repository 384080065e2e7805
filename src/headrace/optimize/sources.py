"""What can be converted to ONNX, and by what? One converter for each runtime, loaded when needed.

Another one is a module with a function `open_source` and a line below.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from headrace.core import Datatype, FailedPreconditionError, UnsupportedModelError
from headrace.runtimes import Model, detect_runtime
from headrace.runtimes.refused_formats import code_in

PICKLE: Final = "pickle"
"""What no runtime loads, and is converted where its code may run."""
_MODULES: Final = {
    "catboost": "headrace.optimize.convert_catboost",
    "lightgbm": "headrace.optimize.convert_lightgbm",
    PICKLE: "headrace.optimize.convert_pickle",
    "sklearn": "headrace.optimize.convert_sklearn",
    "xgboost": "headrace.optimize.convert_xgboost",
}
_PICKLES: Final = frozenset({".pkl", ".pickle", ".joblib"})

Graph = Any  # an `onnx.ModelProto`; onnx ships no types


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """One way to make ONNX of a model; `computes`: the datatype that the result computes in."""

    computes: Datatype
    convert: Callable[[], Graph]


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A model that is to be converted, loaded by its own library.

    `ways`: the most exact one first. `converter` and `library`: packages with their versions.
    `hint`: what the converter is known to get wrong in such a model, and what to do instead.
    """

    model: Model
    ways: tuple[Way, ...]
    converter: str
    library: str
    hint: str = ""


def convertible_runtimes() -> tuple[str, ...]:
    """The names of runtimes whose models can be converted, sorted."""
    return tuple(name for name in sorted(_MODULES) if name != PICKLE)


def source_runtime(path: Path, runtime: str = "") -> str:
    """Which converter takes a path.

    Raises:
        UnsupportedModelError: None does.
    """
    if not runtime and path.suffix.lower() in _PICKLES and path.is_file():
        return PICKLE
    name = runtime or detect_runtime(path).name
    if name in _MODULES:
        return name
    if name == "onnx":
        msg = f"{path} is ONNX already; push it without --convert"
    else:
        known = ", ".join(convertible_runtimes())
        msg = f"{path} is a model of the runtime '{name}', and those of {known} can be converted"
    raise UnsupportedModelError(msg)


def open_source(path: Path, runtime: str, *, allow_code: bool) -> Source:
    """Load what is to be converted.

    Args:
        runtime: As `source_runtime` gives it.
        allow_code: Whether loading may run code of the model's author.

    Raises:
        CodeNotAllowedError: It would; nothing of it was run.
        UnsupportedModelError: It cannot be loaded.
        FailedPreconditionError: A package is not installed; the message says which.
    """
    if runtime != PICKLE and (reason := code_in(path)):
        raise UnsupportedModelError(f"{path}: {reason}")
    import_converter("onnx")
    module = importlib.import_module(_MODULES[runtime])
    source: Source = module.open_source(path, allow_code=allow_code)
    return source


def import_converter(module: str) -> ModuleType:
    """A package that converts.

    Raises:
        FailedPreconditionError: It is not installed; the message says how to install it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        msg = (
            f"converting needs the package '{module}', which cannot be imported ({error}): "
            "pip install 'headrace[convert]'"
        )
        raise FailedPreconditionError(msg) from error


def with_version(package: str, *others: str) -> str:
    """A package and its version: `skl2onnx 1.20.0`; `others`: its names where it has several."""
    for name in (package, *others):
        try:
            return f"{package} {version(name)}"
        except PackageNotFoundError:
            continue
    return package
