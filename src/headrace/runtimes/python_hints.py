"""Python functions whose type hints declare their tensors.

Hints of numbers, texts and lists describe one row, and the function is called once for each row.
Hints of NumPy arrays describe all rows of a request. An example request completes what the hints
leave open.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Final, get_args, get_origin, get_type_hints, is_typeddict

import numpy as np

from headrace.core import (
    VARIABLE,
    Array,
    Datatype,
    ExampleValue,
    HeadraceError,
    InvalidArgumentError,
    ModelSignature,
    RowIndependence,
    RuntimeFailedError,
    Tensors,
    TensorSpec,
    UnsupportedModelError,
    check_inputs,
    check_name,
    datatype_of,
)

OUTPUT: Final = "output"
"""Name of the output of a function that returns a single value."""
_SCALARS: Final[Mapping[object, Datatype]] = {
    float: Datatype.FP64,
    int: Datatype.INT64,
    bool: Datatype.BOOL,
    str: Datatype.BYTES,
    bytes: Datatype.BYTES,
}
_NAMED: Final = {inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY}
_KINDS: Final = {"f": "fiub", "i": "iub", "u": "ub", "b": "b"}
"""Kinds of values that an output of each kind of number may be returned as."""
_MOST_STORED: Final = 4096
"""Limit of the elements of an example in the registry."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Hint:
    """Meaning of one type hint; None for what it leaves open."""

    datatype: Datatype | None = None
    shape: tuple[int, ...] | None = None
    is_row: bool = False
    """Whether it describes one row; `shape` then still begins with the batch axis."""
    is_str: bool = False
    """Whether elements of BYTES are passed as `str`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HintedFunction:
    """Function that is called with the tensors of a request, by row or by batch."""

    function: Callable[..., object]
    owner: object
    """The function, or the instance of the class that it is a method of."""
    signature: ModelSignature
    texts: frozenset[str]
    """Inputs whose elements are passed as `str`."""
    by_row: bool
    names: tuple[str, ...] | None
    """Names of the outputs if the function returns a mapping; None for a single value."""

    @property
    def concurrent(self) -> bool:
        """Whether the owner declares that it may be called in several threads."""
        return getattr(self.owner, "concurrent", False) is True

    def arguments(self, inputs: Tensors) -> dict[str, Any]:
        """Return inputs as the function's hints name them."""
        return {
            name: _as_str(name, array) if name in self.texts else array
            for name, array in inputs.items()
        }

    def infer(self, inputs: Tensors) -> Tensors:
        """Call the function for a batch, or for each row of it."""
        values = self.arguments(inputs)
        specs = self.signature.outputs
        if not self.by_row:
            outputs = self._outputs(self.function(**values))
            return {
                spec.name: _as_tensor(spec, outputs[spec.name])
                for spec in specs
                if spec.name in outputs
            }
        columns = {name: array.tolist() for name, array in values.items()}
        rows = len(next(iter(inputs.values())))
        results = [
            self._outputs(self.function(**{name: column[i] for name, column in columns.items()}))
            for i in range(rows)
        ]
        return {
            spec.name: _as_tensor(spec, [result.get(spec.name) for result in results])
            for spec in specs
        }

    def close(self) -> None:
        """Call the owner's `close`, if it has one."""
        if close := getattr(self.owner, "close", None):
            close()

    def _outputs(self, result: object) -> Mapping[str, object]:
        if self.names is None:
            return {OUTPUT: result}
        if not isinstance(result, Mapping):
            msg = f"the model's code is wrong: it returned {type(result).__name__}, not a dict"
            raise RuntimeFailedError(msg)
        return result


def hinted_function(
    file: Path, function: Callable[..., object], owner: object, example: object
) -> HintedFunction:
    """Return a function with the signature that its hints, and an example, declare.

    Runs the function on the example if the hints leave the outputs open.

    Args:
        owner: The function, or the instance that it is a method of.
        example: Mapping of all inputs to their values in a request; None for none.

    Raises:
        UnsupportedModelError: The hints are not supported, or leave something open that no example
            shows.
    """
    examples = example if isinstance(example, Mapping) else {}
    name = getattr(function, "__qualname__", type(function).__name__)
    try:
        hinted = _declared(function, owner, examples)
    except HeadraceError as error:
        raise UnsupportedModelError(f"{file}: {name}: {error}") from error
    if hinted.signature.outputs:
        return hinted
    return _observed(hinted, example_tensors(file, hinted.signature, examples))


def _declared(
    function: Callable[..., object], owner: object, examples: Mapping[str, object]
) -> HintedFunction:
    """Return what the hints of a function declare; no outputs if these are open.

    Raises:
        InvalidArgumentError: The hints are not supported, or leave something open without example.
    """
    parameters, hints = _parameters(function), _hints(function)
    arguments = {name: _read(hints.get(name, Any)) for name in parameters}
    by_row = all(hint.is_row for hint in arguments.values())
    if not by_row and any(hint.is_row for hint in arguments.values()):
        raise InvalidArgumentError("mixes arguments of one row with arrays of all rows")
    inputs = tuple(_spec(name, hint, examples.get(name)) for name, hint in arguments.items())
    result = hints.get("return", Any)
    fields = get_type_hints(result, include_extras=True) if is_typeddict(result) else {}
    outputs = {name: _read(hint) for name, hint in (fields or {OUTPUT: result}).items()}
    is_open = any(None in (hint.datatype, hint.shape) for hint in outputs.values())
    if is_open and not examples:
        msg = (
            "its type hints leave the outputs open; write the result's type, as in `-> float` or "
            '`-> Annotated[np.ndarray, ("FP32", [-1, 3])]`, or add an `EXAMPLE` of the inputs'
        )
        raise InvalidArgumentError(msg)
    if not is_open and any(hint.is_row != by_row for hint in outputs.values()):
        takes, returns = ("one row", "all rows") if by_row else ("all rows", "one row")
        raise InvalidArgumentError(f"takes {takes}, but returns {returns}, by its type hints")
    batched = by_row or getattr(owner, "batched", False) is True
    name = getattr(function, "__qualname__", type(function).__name__)
    how = "takes one row" if by_row else "declares `batched = True`"
    return HintedFunction(
        function=function,
        owner=owner,
        by_row=by_row,
        texts=frozenset(name for name, hint in arguments.items() if hint.is_str),
        names=tuple(fields) or None,
        signature=ModelSignature(
            inputs=inputs,
            outputs=()
            if is_open
            else tuple(_spec(name, hint, None) for name, hint in outputs.items()),
            batched=batched,
            row_independence=RowIndependence.DECLARED if batched else None,
            row_reason=f"{name} {how}" if batched else "",
        ),
    )


def _parameters(function: Callable[..., object]) -> list[str]:
    """Return the names of the required arguments, each of which is an input."""
    required = [p for p in inspect.signature(function).parameters.values() if p.default is p.empty]
    if inspect.iscoroutinefunction(function):
        raise InvalidArgumentError("is `async`; use a plain function")
    if not required or any(p.kind not in _NAMED for p in required):
        raise InvalidArgumentError("must have named arguments, each of which is an input")
    return [parameter.name for parameter in required]


def _hints(function: Callable[..., object]) -> dict[str, Any]:
    try:
        return get_type_hints(function, include_extras=True)
    except Exception as error:  # evaluates the author's text
        kind = type(error).__name__
        raise InvalidArgumentError(f"its type hints cannot be read: {kind}") from error


def example_tensors(file: Path, signature: ModelSignature, example: object) -> Tensors:
    """Return the tensors of an example request.

    Raises:
        UnsupportedModelError: It is not a valid request for `signature`.
    """
    try:
        if not isinstance(example, Mapping):
            msg = f"is a {type(example).__name__}; it must map each input to its values"
            raise InvalidArgumentError(msg)
        tensors = {
            str(name): _as_tensor(spec, value) if (spec := signature.input(str(name))) else value
            for name, value in example.items()
        }
        check_inputs(file.stem, signature, tensors)
    except (HeadraceError, ValueError, TypeError) as error:
        raise UnsupportedModelError(f"{file}: example: {error}") from error
    return tensors


def stored_example(tensors: Tensors) -> dict[str, ExampleValue]:
    """Return tensors as `ModelSignature.example`; nothing if they are large or not text."""
    if sum(array.size for array in tensors.values()) > _MOST_STORED:
        return {}
    try:
        return {
            name: (_as_str(name, array) if array.dtype.hasobject else array).tolist()
            for name, array in tensors.items()
        }
    except InvalidArgumentError:
        return {}


def _observed(hinted: HintedFunction, example: Tensors) -> HintedFunction:
    """Return `hinted` with the outputs that it returns for an example."""
    values = hinted.arguments(example)
    if hinted.by_row:
        values = {name: array.tolist()[0] for name, array in values.items()}
    result = hinted.function(**values)
    returned = result if isinstance(result, Mapping) else {OUTPUT: result}
    arrays = {
        str(name): np.asarray([value] if hinted.by_row else value)
        for name, value in returned.items()
    }
    specs = tuple(
        TensorSpec(
            name=check_name(name, kind="tensor"),
            datatype=datatype_of(array.dtype),
            shape=(VARIABLE, *array.shape[1:]),
        )
        for name, array in arrays.items()
    )
    return replace(
        hinted,
        names=tuple(arrays) if isinstance(result, Mapping) else None,
        signature=replace(hinted.signature, outputs=specs),
    )


def _read(hint: Any) -> _Hint:  # noqa: ANN401  # any type
    """Return the meaning of a type hint.

    Raises:
        InvalidArgumentError: It is not supported.
    """
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        for extra in arguments[1:]:
            match extra:
                case (str() as name, list() | tuple() as shape) if name in set(Datatype):
                    return _Hint(datatype=Datatype(name), shape=tuple(shape))
        return _read(arguments[0])
    scalar = _SCALARS.get(hint) or (
        datatype_of(np.dtype(hint))
        if isinstance(hint, type) and issubclass(hint, np.generic)
        else None
    )
    meaning: _Hint | None = None
    if {hint, origin} & {Any, dict, Mapping, np.ndarray}:
        meaning = _read_array(*arguments) if origin is np.ndarray else _Hint()
    elif scalar is not None:
        meaning = _Hint(datatype=scalar, shape=(VARIABLE,), is_row=True, is_str=hint is str)
    elif origin in {list, Sequence} and (element := _read(arguments[0])).is_row:
        shape = (*(element.shape or ()), VARIABLE)
        meaning = replace(element, shape=shape)
    if meaning is None:
        msg = (
            f"the type hint {getattr(hint, '__name__', hint)} is not supported; use float, int, "
            "bool, str, bytes, lists of these, or arrays such as "
            'Annotated[np.ndarray, ("FP32", [-1, 4])]'
        )
        raise InvalidArgumentError(msg)
    return meaning


def _read_array(shape: Any = Any, dtype: Any = Any) -> _Hint:  # noqa: ANN401  # any types
    """Return the meaning of the arguments of `np.ndarray`."""
    sizes = get_args(shape)
    kind = next(iter(get_args(dtype)), Any)
    is_known = isinstance(kind, type) and issubclass(kind, np.generic) and kind is not np.generic
    return _Hint(
        datatype=datatype_of(np.dtype(kind)) if is_known else None,
        shape=None if Ellipsis in sizes or not sizes else (VARIABLE,) * len(sizes),
        is_str=kind is np.str_,
    )


def _spec(name: str, hint: _Hint, example: object) -> TensorSpec:
    """Return the tensor of a hint, completed by an example's values.

    Raises:
        InvalidArgumentError: Something is still open.
    """
    datatype, shape = hint.datatype, hint.shape
    if example is not None and (datatype is None or shape is None):
        array = np.asarray(example)
        datatype = datatype or datatype_of(array.dtype)
        shape = shape or (VARIABLE, *array.shape[1:])
    if datatype is None or shape is None:
        msg = (
            f"the type hint of '{name}' leaves its datatype or shape open; write it as "
            'Annotated[np.ndarray, ("FP32", [-1, 4])], or add an `EXAMPLE` of the inputs, as in '
            f'EXAMPLE = {{"{name}": [[5.1, 3.5, 1.4, 0.2]]}}'
        )
        raise InvalidArgumentError(msg)
    return TensorSpec(name=check_name(name, kind="tensor"), datatype=datatype, shape=shape)


def _as_str(name: str, array: Array) -> Array:
    """Return BYTES as an array of `str` objects."""
    texts = np.empty(array.size, np.object_)
    try:
        texts[:] = [item.decode() for item in array.ravel().tolist()]
    except UnicodeDecodeError:
        raise InvalidArgumentError(f"input '{name}' is not UTF-8 text") from None
    return texts.reshape(array.shape)


def _as_tensor(spec: TensorSpec, value: object) -> Array:
    """Return values as a tensor; numbers are cast if the kind stays the same.

    Raises:
        RuntimeFailedError: They are of another kind, or of different lengths.
    """
    is_text = spec.datatype is Datatype.BYTES
    try:
        array = np.asarray(value, np.object_ if is_text else None)
    except ValueError:
        msg = f"the model's code is wrong: rows of '{spec.name}' have different lengths"
        raise RuntimeFailedError(msg) from None
    if is_text:
        items = np.empty(array.size, np.object_)
        items[:] = [
            item.encode() if isinstance(item, str) else item for item in array.ravel().tolist()
        ]
        return items.reshape(array.shape)
    if array.dtype.kind not in _KINDS[spec.datatype.dtype.kind]:
        msg = f"'{spec.name}' has {array.dtype} values, not {spec.datatype}"
        raise RuntimeFailedError(f"the model's code is wrong: {msg}")
    return array.astype(spec.datatype.dtype)
