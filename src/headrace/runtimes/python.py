"""Runtime of user-defined Python classes and functions, and their files.

**Loading such a model runs its code**, and registering does too: use only models from people you
trust.
"""

import inspect
import logging
import sys
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Final, Protocol, TypeVar, cast, overload

import numpy as np

from headrace.core import (
    VARIABLE,
    Array,
    Datatype,
    HeadraceError,
    ModelSignature,
    RowIndependence,
    RuntimeFailedError,
    Tensors,
    TensorSpec,
    UnsupportedModelError,
    check_name,
)
from headrace.core.examples import example_inputs, repeated_rows
from headrace.runtimes.base import LoadOptions, Model
from headrace.runtimes.libraries import SecondFrameworkError
from headrace.runtimes.python_hints import (
    example_tensors,
    hinted_function,
    stored_example,
)

FILE_NAME: Final = "model.py"
"""File name of the model in a directory."""
_METHODS: Final = ("infer", "predict")
_ModelT = TypeVar("_ModelT", bound=Callable[..., object])
TensorDeclaration = tuple[str, Sequence[int]]
"""Datatype and shape, for instance `("FP32", [-1, 4])`; -1 is a variable dimension."""


class Infers(Protocol):
    """Object that runs a batch."""

    def infer(self, inputs: Tensors) -> Tensors:
        """Run one batch."""


class PythonModel(Infers, Protocol):
    """Interface of a Python model, matched by names; no inheritance is needed.

        class Double:
            inputs = {"x": ("FP32", [-1, 2])}
            outputs = {"y": ("FP32", [-1, 2])}
            batched = True

            def infer(self, inputs):
                return {"y": inputs["x"] * 2}

    Optional: `batched` (axis 0 of everything is the batch and rows are independent; False),
    `concurrent` (`infer` may run in several threads at once; False), `example` (a valid request, as
    in `{"x": [[1, 2]]}`), `load(self, path)` (called once with the model's directory, before the
    first `infer`) and `close(self)`.

    A class without `inputs` and `outputs` needs type hints at its method `infer` or `predict`, see
    `headrace.runtimes.python_hints`; so does a function that is a model.
    """

    inputs: Mapping[str, TensorDeclaration]
    outputs: Mapping[str, TensorDeclaration]

    def infer(self, inputs: Tensors) -> Tensors:
        """Run one batch.

        Inputs fit the declaration; BYTES are object arrays of `bytes`.

        Raises:
            InvalidArgumentError: The caller's input is wrong; the caller gets the message. Any
                other exception counts as the model's failure.
        """


_MARK: Final = "__headrace_model__"
"""Attribute of a function or class that `model` decorated."""


@overload
def model(target: _ModelT, /) -> _ModelT: ...


@overload
def model(
    *, example: object = None, batched: bool | None = None, concurrent: bool | None = None
) -> Callable[[_ModelT], _ModelT]: ...


def model(
    target: _ModelT | None = None,
    /,
    *,
    example: object = None,
    batched: bool | None = None,
    concurrent: bool | None = None,
) -> _ModelT | Callable[[_ModelT], _ModelT]:
    """Mark a function or class as the model of its file, among others. It remains callable.

        @headrace.model(example={"text": ["a river runs to the sea"]})
        def words(text: str) -> int:
            return len(text.split())

    Args:
        example: A valid request, which shows what type hints leave open.
        batched: Whether axis 0 of everything is the batch and rows are independent.
        concurrent: Whether it may be called in several threads at once.
    """

    def mark(marked: _ModelT) -> _ModelT:
        declared = {"example": example, "batched": batched, "concurrent": concurrent}
        for name, value in declared.items():
            if value is not None:
                setattr(marked, name, value)
        setattr(marked, _MARK, True)
        return marked

    return mark if target is None else mark(target)


def find_python_file(path: Path) -> Path:
    """Return the model's file at `path`: itself, or `model.py` in the directory.

    Raises:
        UnsupportedModelError: The file does not exist.
    """
    file = path / FILE_NAME if path.is_dir() else path
    if not file.is_file():
        msg = f"{path}: holds no {FILE_NAME}" if path.is_dir() else f"{path}: no such file"
        raise UnsupportedModelError(msg)
    return file


def read_model(file: Path) -> Callable[..., object]:
    """Run the file and return its model.

    That is `MODEL`, else what `model` decorates, else its only class, else its function.

    Of several functions, `predict` or `infer` is the model.

    Raises:
        UnsupportedModelError: The file does not run, or has no model or several.
    """
    module = run_file(file)
    selected = getattr(module, "MODEL", None)
    if selected is not None:
        if not callable(selected):
            kind = type(selected).__name__
            raise _refuse(file, f"MODEL is of the type {kind}; it must be a class or a function")
        return cast("Callable[..., object]", selected)
    own = {
        name: value
        for name, value in vars(module).items()
        if getattr(value, "__module__", None) == module.__name__ and not name.startswith("_")
    }
    classes = [value for value in own.values() if isinstance(value, type)]
    functions = {name: value for name, value in own.items() if isinstance(value, FunctionType)}
    named = [functions[name] for name in _METHODS if name in functions]
    everything: list[type | FunctionType] = [*classes, *functions.values()]
    for candidates in (
        [value for value in everything if _MARK in vars(value)],
        [cls for cls in classes if _has_infer(cls)],
        [cls for cls in classes if _hinted_method(cls)],
        named[:1],
        [function for function in functions.values() if function.__annotations__],
    ):
        if len(candidates) == 1:
            return cast("Callable[..., object]", candidates[0])
        if candidates:
            names = ", ".join(candidate.__name__ for candidate in candidates)
            raise _refuse(
                file,
                f"holds several models ({names}); choose one with `MODEL = "
                f"{candidates[0].__name__}`",
            )
    raise _refuse(
        file,
        "holds no model: define a function `predict` with type hints, or a class with `inputs`, "
        "`outputs` and `infer`",
    )


def _hinted_method(cls: type) -> str:
    """Return the method of a class that predicts; empty for none."""
    return next((name for name in _METHODS if inspect.isfunction(getattr(cls, name, None))), "")


def read_signature(file: Path, cls: type[PythonModel]) -> ModelSignature:
    """Return the signature that the class declares.

    Raises:
        UnsupportedModelError: The declaration is incomplete or invalid.
    """
    name = cls.__name__
    if not callable(getattr(cls, "infer", None)):
        raise _refuse(file, f"class {name} has no method `infer(self, inputs)`")
    inputs = _specs(file, cls, "inputs")
    outputs = _specs(file, cls, "outputs")
    batched = getattr(cls, "batched", False)
    if not isinstance(batched, bool):
        raise _refuse(file, f"{name}.batched is {batched!r}; use True or False")
    for kind, specs in (("input", inputs), ("output", outputs)):
        for spec in specs:
            if batched and (not spec.shape or spec.shape[0] != VARIABLE):
                msg = (
                    f"{name} is batched, so axis 0 of {kind} '{spec.name}' must be -1; it is"
                    f" declared as {list(spec.shape)}"
                )
                raise _refuse(file, msg)
    return ModelSignature(
        inputs=inputs,
        outputs=outputs,
        batched=batched,
        row_independence=RowIndependence.DECLARED if batched else None,
        row_reason=f"{name} declares `batched = True`" if batched else "",
    )


def where_it_failed(file: Path | str, error: BaseException, *, with_message: bool = True) -> str:
    """Return the error and the last line of the user's file: `ValueError: no (model.py, line 12)`.

    Args:
        file: The name that it was compiled under.
        with_message: False while it is not proved that the file is a model: Python's messages quote
            the source, as in `name 'root' is not defined`.
    """
    file = Path(file)
    if with_message:
        description = f"{type(error).__name__}: {getattr(error, 'msg', error)}"
    else:  # a class that the file defines is also content of the file
        builtin = next(cls for cls in type(error).__mro__ if cls.__module__ == "builtins")
        description = builtin.__name__
    if isinstance(error, SyntaxError) and error.filename == str(file):
        return f"{description} ({file.name}, line {error.lineno})"
    # Source lines are not looked up, because the file may hold private content.
    frames = traceback.walk_tb(error.__traceback__)
    lines = [line for frame, line in frames if frame.f_code.co_filename == str(file)]
    return f"{description} ({file.name}, line {lines[-1]})" if lines else description


def forget(file: Path) -> None:
    """Undo what `read_class` did to this process: other models have modules of equal names."""
    directory = str(file.parent)
    if directory in sys.path:
        sys.path.remove(directory)
    if directory in sys.path:  # another instance of the same model is still open
        return
    for name, module in list(sys.modules.items()):
        origin = getattr(module, "__file__", None)
        if origin is not None and Path(origin).is_relative_to(directory):
            del sys.modules[name]


def run_file(file: Path) -> ModuleType:
    """Run a file as a separate module; it can import files beside it, until `forget`.

    Raises:
        UnsupportedModelError: It does not run; the message names the line.
    """
    module = ModuleType(f"headrace_model_{file.parent.name}_{file.stem}".replace("-", "_"))
    module.__file__ = str(file)
    writes_bytecode = sys.dont_write_bytecode
    # A stored artifact must stay unchanged, so no __pycache__ may be added to it.
    sys.dont_write_bytecode = True
    sys.modules[module.__name__] = module  # dataclasses and type hints look up their module
    sys.path.append(str(file.parent))  # last: `queue.py` there must not shadow Python's own
    try:
        with warnings.catch_warnings(action="ignore", category=SyntaxWarning):
            # Python's messages quote the line, which may be private content.
            code = compile(file.read_bytes(), str(file), "exec", dont_inherit=True)
        exec(code, module.__dict__)  # noqa: S102  # this runtime's purpose is to run the user's code
    except (HeadraceError, KeyboardInterrupt):
        raise
    except BaseException as error:  # noqa: BLE001  # its message may quote the file
        is_ours = isinstance(error, SecondFrameworkError)
        failed = where_it_failed(file, error, with_message=is_ours)
        raise _refuse(file, f"cannot be run: {failed}") from None
    finally:
        sys.dont_write_bytecode = writes_bytecode
    return module


def _has_infer(cls: type) -> bool:
    return any(hasattr(cls, name) for name in ("inputs", "outputs")) and hasattr(cls, "infer")


def _specs(file: Path, cls: type[PythonModel], kind: str) -> tuple[TensorSpec, ...]:
    declared = getattr(cls, kind, None)
    if not isinstance(declared, Mapping) or not declared:
        msg = (
            f"{cls.__name__}.{kind} must map each tensor name to its datatype and shape, "
            f'as in {kind} = {{"x": ("FP32", [-1, 4])}}'
        )
        raise _refuse(file, msg)
    return tuple(_spec(file, f"{cls.__name__}.{kind}", *item) for item in declared.items())


def _spec(file: Path, location: str, name: object, declaration: object) -> TensorSpec:
    match declaration:
        case (str() as datatype, list() | tuple() as shape):
            pass
        case _:
            msg = f'{location}[{name!r}] is {declaration!r}; write it as ("FP32", [-1, 4])'
            raise _refuse(file, msg)
    if datatype not in set(Datatype):
        msg = (
            f"{location}[{name!r}] has the datatype {datatype!r}; use one of {', '.join(Datatype)}"
        )
        raise _refuse(file, msg)
    if any(isinstance(n, bool) or not isinstance(n, int) or n < VARIABLE for n in shape):
        msg = f"{location}[{name!r}] has the shape {shape!r}; use whole numbers, -1 for any size"
        raise _refuse(file, msg)
    try:
        checked = check_name(str(name), kind="tensor")
    except HeadraceError as error:
        raise _refuse(file, f"{location}: {error}") from error
    return TensorSpec(name=checked, datatype=Datatype(datatype), shape=tuple(shape))


def _refuse(file: Path, reason: str) -> UnsupportedModelError:
    return UnsupportedModelError(f"{file}: {reason}")


_log = logging.getLogger(__name__)


class PythonRuntime:
    """Loader of a `.py` file, or a directory with `model.py`; see `PythonModel` for its content."""

    name = "python"
    runs_code = True

    def recognises(self, path: Path) -> bool:
        """Whether `path` is a `.py` file or a directory with `model.py`; nothing is run."""
        return (path / FILE_NAME).is_file() if path.is_dir() else path.suffix == ".py"

    def load(self, path: Path, options: LoadOptions) -> Model:
        """Load the model, which runs its code; `options` do not apply."""
        del options
        return UserModel.open(path)


class UserModel:
    """An instance of a user's class, whose outputs are checked against its declaration."""

    def __init__(
        self,
        file: Path,
        user: Infers,
        signature: ModelSignature,
        *,
        example: Tensors | None = None,
    ) -> None:
        self.signature = signature
        self.concurrent = getattr(user, "concurrent", False) is True
        self._file = file
        self._user: Infers | None = user
        self._example = example

    @classmethod
    def open(cls, path: Path) -> "UserModel":
        """Run the file, create an instance of the class and call its `load`.

        Raises:
            UnsupportedModelError: A step fails; the message names the line.
        """
        file = find_python_file(path.absolute())
        try:
            chosen = read_model(file)
            own_class = chosen if isinstance(chosen, type) else None
            method = _hinted_method(own_class) if own_class and not _has_infer(own_class) else ""
            signature = read_signature(file, own_class) if own_class and not method else None
            try:
                owner = chosen if own_class is None else own_class()
                if own_class and (load := getattr(owner, "load", None)):
                    load(file.parent)
                example = getattr(owner, "example", None)
                if signature is None and example is None:
                    example = getattr(sys.modules[chosen.__module__], "EXAMPLE", None)
                user: Infers
                if signature is None:
                    function = getattr(owner, method) if method else chosen
                    user = hinted_function(file, function, owner, example)
                    signature = user.signature
                else:
                    user = cast("Infers", owner)
            except HeadraceError:
                raise
            except Exception as error:
                msg = f"{file}: cannot be loaded: {where_it_failed(file, error)}"
                raise UnsupportedModelError(msg) from error
            if example is None:
                return cls(file, user, signature)
            tensors = example_tensors(file, signature, example)
            stored = replace(signature, example=stored_example(tensors))
            return cls(file, user, stored, example=tensors)
        except BaseException:
            forget(file)
            raise

    def run(self, inputs: Tensors, outputs: Sequence[str] | None = None) -> Tensors:
        """Run one batch."""
        if self._user is None:
            raise RuntimeFailedError("the model is closed")
        try:
            answers = self._user.infer(inputs)
        except HeadraceError:
            raise
        except Exception as error:
            msg = f"the model failed: {where_it_failed(self._file, error)}"
            raise RuntimeFailedError(msg) from error
        checked = self._checked(answers, _rows(self.signature, inputs))
        return {name: checked[name] for name in outputs} if outputs else checked

    def example_inputs(self, *, rows: int, variable: int) -> Tensors:
        """Return rows of the author's example; generated ones if there is none."""
        if self._example is None:
            return example_inputs(self.signature, rows=rows, variable=variable)
        if not self.signature.batched:
            return dict(self._example)
        return {name: repeated_rows(array, rows) for name, array in self._example.items()}

    def close(self) -> None:
        """Call the instance's `close`, if it has one; may be called again."""
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


def _nothing() -> None:
    """Do nothing; stands for a missing `close`."""


def _rows(signature: ModelSignature, inputs: Tensors) -> int | None:
    return len(inputs[signature.inputs[0].name]) if signature.batched else None


def _check_output(spec: TensorSpec, value: object, rows: int | None) -> Array:
    if value is None:
        raise _wrong(f"infer() returned no '{spec.name}', which `outputs` declares")
    if not isinstance(value, np.ndarray):
        raise _wrong(f"output '{spec.name}' is a {type(value).__name__}, not a NumPy array")
    array = _as_bytes(spec, value) if spec.datatype is Datatype.BYTES else value
    if array.dtype != spec.datatype.dtype:
        raise _wrong(
            f"output '{spec.name}' has the dtype {array.dtype}, but {spec.datatype} is declared; "
            f"return it with .astype(np.{spec.datatype.dtype.name})"
        )
    if rows is not None and array.shape[:1] != (rows,):
        actual = array.shape[0] if array.ndim else "no"
        raise _wrong(f"output '{spec.name}' has {actual} rows for {rows} rows of input")
    if not spec.fits(array.shape):
        raise _wrong(
            f"output '{spec.name}' has the shape {list(array.shape)}, "
            f"but {list(spec.shape)} is declared"
        )
    return np.ascontiguousarray(array).reshape(array.shape)


def _as_bytes(spec: TensorSpec, array: Array) -> Array:
    """Return text as UTF-8 in an object array; other elements make the output invalid."""
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
