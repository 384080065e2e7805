"""Files of model objects: estimators, boosters, ONNX models, functions and classes.

The objects' own libraries write the files, except for functions and classes, which cloudpickle
writes: it includes what they use of a notebook or a script.
"""

import types
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NoReturn

from headrace.core import InvalidArgumentError

_LOADER: Final = '''\
"""Model that a Python program passed to headrace.serve."""

from pathlib import Path

import cloudpickle

MODEL = cloudpickle.loads(Path(__file__).with_name("model.cloudpickle").read_bytes())
'''
_ESTIMATORS: Final = ("sklearn", "imblearn")
_SUPPORTED: Final = (
    "a path, NAME[:VERSION] of the registry, a function or class with type hints, an estimator of "
    "scikit-learn, a model of XGBoost, LightGBM or CatBoost, an ONNX ModelProto, or a TorchScript "
    "module"
)


def write_object(model: object, folder: Path) -> Path:
    """Write `model` to a file or folder in `folder` and return it.

    Raises:
        InvalidArgumentError: It is of no supported kind, or a library that writes it is missing.
    """
    if isinstance(model, type | types.FunctionType):
        return _write_code(model, folder)
    write = _writer(model)
    if write is None:
        kind = f"{type(model).__module__}.{type(model).__qualname__}"
        msg = f"an object of the type {kind} cannot be served; pass {_SUPPORTED}"
        raise InvalidArgumentError(msg)
    return write(model, folder)


def _writer(model: object) -> Callable[[Any, Path], Path] | None:
    """Return the function that writes `model`, by the library of its class or of a base class."""
    for cls in type(model).__mro__:
        library = cls.__module__.partition(".")[0]
        if library in _WRITERS:
            return _WRITERS[library]
    return None


def _write_estimator(model: Any, folder: Path) -> Path:  # noqa: ANN401  # of a library
    import joblib  # noqa: PLC0415  # of scikit-learn

    path = folder / "model.joblib"
    joblib.dump(model, path)
    return path


def _write_xgboost(model: Any, folder: Path) -> Path:  # noqa: ANN401  # as above
    path = folder / "model.ubj"
    model.save_model(path)
    return path


def _write_lightgbm(model: Any, folder: Path) -> Path:  # noqa: ANN401  # as above
    path = folder / "model.txt"
    getattr(model, "booster_", model).save_model(path)
    return path


def _write_catboost(model: Any, folder: Path) -> Path:  # noqa: ANN401  # as above
    path = folder / "model.cbm"
    model.save_model(str(path))
    return path


def _write_onnx(model: Any, folder: Path) -> Path:  # noqa: ANN401  # as above
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def _write_torch(model: Any, folder: Path) -> Path:  # noqa: ANN401  # as above
    if type(model).__name__ not in {
        "RecursiveScriptModule",
        "ScriptModule",
        "TopLevelTracedModule",
    }:
        msg = (
            "a PyTorch module declares no inputs: pass torch.jit.trace(module, example), or the "
            "path of a file that torch.export.save wrote"
        )
        raise InvalidArgumentError(msg)
    path = folder / "model.pt"
    model.save(str(path))
    return path


def _refuse_keras(model: Any, folder: Path) -> NoReturn:  # noqa: ANN401, ARG001  # as above
    raise InvalidArgumentError("export a Keras model with model.export(PATH) and pass the path")


_WRITERS: Final[dict[str, Callable[[Any, Path], Path]]] = {
    # XGBoost's and LightGBM's estimators also derive from scikit-learn's; theirs come first.
    "xgboost": _write_xgboost,
    "lightgbm": _write_lightgbm,
    "catboost": _write_catboost,
    "onnx": _write_onnx,
    "torch": _write_torch,
    "keras": _refuse_keras,
    **dict.fromkeys(_ESTIMATORS, _write_estimator),
}


def _write_code(model: type | types.FunctionType, folder: Path) -> Path:
    try:
        import cloudpickle  # noqa: PLC0415  # an extra
    except ModuleNotFoundError:
        msg = (
            "functions and classes need cloudpickle: run `pip install 'headrace[notebook]'`, or "
            "pass the path of a Python file"
        )
        raise InvalidArgumentError(msg) from None
    if isinstance(model, types.FunctionType):
        model = _with_resolved_hints(model)
    directory = folder / (model.__name__.strip("_<>") or "model")
    directory.mkdir()
    (directory / "model.cloudpickle").write_bytes(cloudpickle.dumps(model))
    (directory / "model.py").write_text(_LOADER, encoding="utf-8")
    return directory


def _with_resolved_hints(function: types.FunctionType) -> types.FunctionType:
    """Return `function` with type hints as objects: text may name what is not pickled."""
    if not any(isinstance(hint, str) for hint in function.__annotations__.values()):
        return function
    copy = types.FunctionType(
        function.__code__,
        function.__globals__,
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
    copy.__dict__ |= function.__dict__
    copy.__kwdefaults__ = function.__kwdefaults__
    copy.__module__, copy.__qualname__ = function.__module__, function.__qualname__
    try:
        copy.__annotations__ = typing.get_type_hints(function, include_extras=True)
    except NameError as error:
        msg = f"the type hints of {function.__name__} name something unknown: {error}"
        raise InvalidArgumentError(msg) from None
    return copy
