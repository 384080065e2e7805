"""Run a user's own class: a model in plain Python.

**Loading such a model runs its code**, as registering it does: take it from people you trust only.
"""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from headrace.core import (
    Array,
    Datatype,
    HeadraceError,
    ModelSignature,
    RuntimeFailedError,
    Tensors,
    TensorSpec,
    UnsupportedModelError,
)
from headrace.runtimes.base import LoadOptions, Model
from headrace.runtimes.python_class import (
    FILE_NAME,
    PythonModel,
    find_python_file,
    forget,
    read_class,
    read_signature,
    where_it_failed,
)

_log = logging.getLogger(__name__)


class PythonRuntime:
    """Loads a `.py` file, or a directory with `model.py`; see `PythonModel` for what it holds."""

    name = "python"
    runs_code = True

    def recognises(self, path: Path) -> bool:
        """Whether `path` is a `.py` file or a directory with `model.py`; nothing is run."""
        return (path / FILE_NAME).is_file() if path.is_dir() else path.suffix == ".py"

    def load(self, path: Path, options: LoadOptions) -> Model:
        """Load the model. Runs its code; `options` are its own business."""
        del options
        return UserModel.open(path)


class UserModel:
    """A loaded user's class, whose answers are checked against what it declares."""

    def __init__(self, file: Path, user: PythonModel, signature: ModelSignature) -> None:
        self.signature = signature
        self.concurrent = getattr(user, "concurrent", False) is True
        self._file = file
        self._user: PythonModel | None = user

    @classmethod
    def open(cls, path: Path) -> "UserModel":
        """Run the file, make the class and let it load what it needs.

        Raises:
            UnsupportedModelError: One of these fails; the message names the line.
        """
        file = find_python_file(path.absolute())
        try:
            user_class = read_class(file)
            signature = read_signature(file, user_class)
            return cls(file, _make(file, user_class), signature)
        except BaseException:
            forget(file)
            raise

    def run(self, inputs: Tensors, outputs: Sequence[str] | None = None) -> Tensors:
        """Run one batch."""
        if self._user is None:
            msg = "the model is closed"
            raise RuntimeFailedError(msg)
        try:
            answers = self._user.infer(inputs)
        except HeadraceError:
            raise
        except Exception as error:
            msg = f"the model failed: {where_it_failed(self._file, error)}"
            raise RuntimeFailedError(msg) from error
        checked = self._checked(answers, _rows(self.signature, inputs))
        return {name: checked[name] for name in outputs} if outputs else checked

    def close(self) -> None:
        """Let the class free what it holds, if it has `close`; may be called again."""
        user, self._user = self._user, None
        if user is None:
            return
        try:
            getattr(user, "close", _nothing)()
        except Exception:  # noqa: BLE001  # a user's clean-up must not stop the replica's
            _log.exception("%s: close() failed", self._file)
        forget(self._file)

    def _checked(self, answers: object, rows: int | None) -> Tensors:
        if not isinstance(answers, Mapping):
            raise _wrong(f"infer() returned {type(answers).__name__}, not a dict of arrays")
        specs = self.signature.outputs
        unknown = set(answers) - {spec.name for spec in specs}
        if unknown:
            names = ", ".join(sorted(f"'{name}'" for name in unknown))
            raise _wrong(f"infer() returned {names}, which `outputs` does not declare")
        return {spec.name: _check_output(spec, answers.get(spec.name), rows) for spec in specs}


def _make(file: Path, user_class: type[PythonModel]) -> PythonModel:
    try:
        user = user_class()
        load = getattr(user, "load", None)
        if load is not None:
            load(file.parent)
    except HeadraceError:
        raise
    except Exception as error:
        msg = f"{file}: cannot be loaded: {where_it_failed(file, error)}"
        raise UnsupportedModelError(msg) from error
    return user


def _nothing() -> None:
    """For a class that has nothing to close."""


def _rows(signature: ModelSignature, inputs: Tensors) -> int | None:
    return len(inputs[signature.inputs[0].name]) if signature.batched else None


def _check_output(spec: TensorSpec, value: object, rows: int | None) -> Array:
    if value is None:
        raise _wrong(f"infer() returned no '{spec.name}', which `outputs` declares")
    if not isinstance(value, np.ndarray):
        raise _wrong(f"output '{spec.name}' is a {type(value).__name__}, not a NumPy array")
    array = _as_bytes(spec, value) if spec.datatype is Datatype.BYTES else value
    if array.dtype != spec.datatype.dtype:
        msg = (
            f"output '{spec.name}' has the dtype {array.dtype}, but {spec.datatype} is declared; "
            f"return it with .astype(np.{spec.datatype.dtype.name})"
        )
        raise _wrong(msg)
    if rows is not None and array.shape[:1] != (rows,):
        got = array.shape[0] if array.ndim else "no"
        raise _wrong(f"output '{spec.name}' has {got} rows for {rows} rows of input")
    if not spec.fits(array.shape):
        msg = (
            f"output '{spec.name}' has the shape {list(array.shape)}, "
            f"but {list(spec.shape)} is declared"
        )
        raise _wrong(msg)
    return np.ascontiguousarray(array).reshape(array.shape)


def _as_bytes(spec: TensorSpec, array: Array) -> Array:
    """Text as UTF-8 in an object array; whatever else an element is refuses the output."""
    if array.dtype.kind not in "OSU":
        return array
    encoded = np.empty(array.size, np.object_)
    for i, item in enumerate(array.ravel().tolist()):
        if not isinstance(item, bytes | str):
            raise _wrong(f"output '{spec.name}' holds a {type(item).__name__}, not bytes or str")
        encoded[i] = item.encode() if isinstance(item, str) else item
    return encoded.reshape(array.shape)


def _wrong(reason: str) -> RuntimeFailedError:
    return RuntimeFailedError(f"the model's code is wrong: {reason}")
