"""Row analysis of TorchScript: the code that `torch.jit.save` writes, parsed as text.

The code is a small subset of Python. It is parsed and interpreted on abstract tensors; it never
runs, and only shapes and numbers are unpickled from objects.
"""

import ast
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from headrace.core import Datatype, HeadraceError, TensorSpec
from headrace.runtimes.rows.aten import AtenInterpreter, Tensor, is_whole, parts_of_kind
from headrace.runtimes.rows.aten_operators import ATEN, C10_DTYPES, CONVERSIONS
from headrace.runtimes.rows.symbols import Size
from headrace.runtimes.rows.values import (
    MixedRowsError,
    RowVerdict,
    Value,
    constant,
    judge,
    mixed,
    model_input,
)
from headrace.runtimes.torch.archive import (
    STORAGES,
    ScriptObject,
    StoredTensor,
    read_script_code,
    read_script_objects,
    read_stored,
)

_MAX_STEPS: Final = 1_000_000
_MAX_DEPTH: Final = 200
_MAX_FACTOR: Final = 1 << 31
_LISTS: Final = frozenset({"split", "chunk", "unbind", "split_with_sizes", "unsafe_split"})
_DATATYPES: Final = {
    Datatype.BOOL: "bool",
    Datatype.UINT8: "uint8",
    Datatype.INT8: "int8",
    Datatype.INT16: "int16",
    Datatype.INT32: "int32",
    Datatype.INT64: "int64",
}
_BOOLEAN: Final = frozenset(
    {"eq", "ne", "lt", "le", "gt", "ge", "isnan", "isinf", "isfinite", "all", "any"}
    | {"logical_and", "logical_or", "logical_not", "logical_xor"}
)
_MOVES: Final = ATEN.views | frozenset(
    {"clone", "index", "gather", "index_select", "repeat", "cat", "stack", "flip", "roll"}
)
"""Operators that move elements without changing them."""
_KEEPS_DTYPE: Final = _MOVES | frozenset(
    {"clamp", "abs", "neg", "add", "sub", "mul", "remainder", "floor_divide", "maximum", "minimum"}
    | {"zeros_like", "ones_like", "amax", "amin"}
)
_TAKES_LIST: Final = frozenset({"cat", "concat", "stack", "tensor", "zeros", "ones", "full"})
"""Operators whose first argument is a list that they do not change."""
_POSITIONS: Final = {
    "argmax": 0,
    "argmin": 0,
    "argsort": 0,
    "topk": 1,
    "sort": 1,
    "max": 1,
    "min": 1,
}
"""Operators that return positions, with the number of that output."""
_ARITHMETIC: Final[Mapping[str, Callable[..., Any]]] = {
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "div": operator.truediv,
    "floordiv": operator.floordiv,
    "remainder": operator.mod,
    "pow": operator.pow,
    "neg": operator.neg,
    "__and__": operator.and_,
    "__or__": operator.or_,
    "eq": operator.eq,
    "ne": operator.ne,
    "lt": operator.lt,
    "le": operator.le,
    "gt": operator.gt,
    "ge": operator.ge,
    "min": min,
    "max": max,
    "abs": abs,
    "sqrt": math.sqrt,
    "floor": math.floor,
    "ceil": math.ceil,
    "round": round,
    "log": math.log,
    "exp": math.exp,
}
_ON_SIZES: Final = {"div": "truediv", "remainder": "mod", "max": "sym_max", "min": "sym_min"}
_SWITCHES: Final = {
    "torch.is_autocast_enabled": False,
    "torch.is_autocast_cpu_enabled": False,
    "torch.is_grad_enabled": False,
    "torch.is_scripting": True,
    "torch._jit_internal.is_scripting": True,
    "ops.prim.is_nested": False,
    "ops.prim.is_quantized": False,
    "ops.prim.is_sparse": False,
}
"""Functions with the same result in every run and for every tensor of a request."""


class _UnprovenError(Exception):
    """Raised if a program cannot be followed to its end."""


class _ReturnedError(Exception):
    """Control flow: the end of a function with its return value."""

    def __init__(self, value: object) -> None:
        super().__init__()
        self.value = value


@dataclass(frozen=True, slots=True)
class _Reference:
    """A dotted name: an operator, a function, or a prefix of one."""

    name: str


@dataclass(frozen=True, slots=True)
class _Method:
    """A method of an object."""

    owner: ScriptObject
    name: str


_NO_GRADIENTS: Final = _Reference("__torch__.torch.autograd.grad_mode.no_grad")
"""The only supported context manager: inference computes no gradients anyway."""
_DEVICE: Final = _Reference("device")
"""A device or layout, unknown before the model is loaded."""
_TEXT: Final = _Reference("text")
"""A string computed at run time."""


def analyse_torchscript(
    file: Path, method: str, inputs: Mapping[str, TensorSpec], values: Mapping[str, object]
) -> RowVerdict:
    """Return whether each output row of a module depends on its own input row alone.

    Args:
        file: The archive.
        method: Method of the module that serves requests.
        inputs: Request inputs by argument; axis 0 of each is the batch.
        values: Constant arguments.
    """
    try:
        return _Script(file).verdict(method, inputs, values)
    except (_UnprovenError, MixedRowsError) as error:
        return RowVerdict(why_not=str(error))
    except HeadraceError as error:
        return RowVerdict(why_not=f"the code cannot be read: {error}")
    except (
        SyntaxError,
        RecursionError,
        MemoryError,
        ArithmeticError,
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
    ) as error:
        return RowVerdict(why_not=f"the code is not followed: {type(error).__name__}")


class _Script:
    """Analysis of one program's code."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._machine = AtenInterpreter(ATEN)
        self._classes: dict[str, ast.ClassDef] = {}
        self._functions: dict[str, ast.FunctionDef] = {}
        for name, text in read_script_code(file).items():
            if "__forward_hooks__" in text or "__forward_pre_hooks__" in text:
                raise _UnprovenError("the module has hooks, which are not followed")
            for item in ast.parse(text).body:
                if isinstance(item, ast.ClassDef):
                    self._classes[f"{name}.{item.name}"] = item
                elif isinstance(item, ast.FunctionDef):
                    self._functions[f"{name}.{item.name}"] = item
        self._root, self._constants = read_script_objects(file)
        self._attributes: dict[tuple[int, str], object] = {}
        self._steps = 0
        self._depth = 0

    def verdict(
        self, method: str, inputs: Mapping[str, TensorSpec], values: Mapping[str, object]
    ) -> RowVerdict:
        if not isinstance(self._root, ScriptObject):
            raise _UnprovenError("the file holds no module")
        taken: dict[str, object] = {
            name: self._converted(value, "values", 0) for name, value in values.items()
        }
        for number, (name, spec) in enumerate(inputs.items()):
            value = model_input(self._machine.transfer.symbols, spec, number)
            taken[name] = self._machine.tensor(value, dtype=_DATATYPES.get(spec.datatype, ""))
        answer = self._method(_Method(self._root, method), [], taken)
        outputs = {f"output {i}": value for i, value in enumerate(_flat_outputs(answer))}
        if self._machine.failed:
            return RowVerdict(why_not=self._machine.failed)
        return judge(outputs) if outputs else RowVerdict(why_not="the module gives no tensor")

    # Functions

    def _method(
        self, method: _Method, positional: Sequence[object], named: Mapping[str, object]
    ) -> object:
        owner = self._classes.get(method.owner.kind)
        for item in owner.body if owner is not None else []:
            if isinstance(item, ast.FunctionDef) and item.name == method.name:
                return self._function(item, [method.owner, *positional], named)
        raise _UnprovenError(f"method '{method.name}' of {method.owner.kind} is not in the code")

    def _function(
        self, code: ast.FunctionDef, positional: Sequence[object], named: Mapping[str, object]
    ) -> object:
        names = [argument.arg for argument in code.args.args]
        defaults = code.args.defaults
        scope: dict[str, object] = {}
        for name, default in zip(names[len(names) - len(defaults) :], defaults, strict=True):
            scope[name] = self._value(default, scope)
        scope |= dict(zip(names, positional, strict=False))
        scope |= {name: value for name, value in named.items() if name in names}
        missing = [name for name in names if name not in scope]
        if missing:
            raise _UnprovenError(f"argument '{missing[0]}' of {code.name} is not given")
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise _UnprovenError("the code calls functions too deep")
        try:
            self._block(code.body, scope)
        except _ReturnedError as returned:
            return returned.value
        finally:
            self._depth -= 1
        return None

    # Statements

    def _block(self, body: Sequence[ast.stmt], scope: dict[str, object]) -> None:
        for statement in body:
            self._steps += 1
            if self._steps > _MAX_STEPS:
                raise _UnprovenError(f"the code has more than {_MAX_STEPS} steps")
            self._statement(statement, scope)

    def _statement(self, statement: ast.stmt, scope: dict[str, object]) -> None:  # noqa: C901  # kinds
        match statement:
            case ast.Pass():
                pass
            case ast.Return(value=value):
                raise _ReturnedError(None if value is None else self._value(value, scope))
            case ast.Expr(value=value):
                self._value(value, scope)
            case ast.Assign(targets=[target], value=value):
                count = len(target.elts) if isinstance(target, ast.Tuple) else 1
                self._assign(target, self._value(value, scope, count=count), scope)
            case ast.AnnAssign(target=target, value=value) if value is not None:
                self._assign(target, self._value(value, scope), scope)
            case ast.If():
                self._branch(statement, scope)
            case ast.For(target=target, iter=ast.Call(args=[end])):
                number = self._number(self._value(end, scope), "repeats a loop")
                for i in range(number):
                    self._assign(target, Size(i), scope)
                    self._block(statement.body, scope)
                    self._steps += 1
            case ast.With(items=[context]) if (
                self._value(context.context_expr, scope) is _NO_GRADIENTS
            ):
                self._block(statement.body, scope)
            case ast.While(test=test):
                while self._number(self._value(test, scope), "repeats a loop"):
                    self._block(statement.body, scope)
                    self._steps += 1
            case _:
                raise _UnprovenError(f"a {type(statement).__name__} is not followed")

    def _branch(self, statement: ast.If, scope: dict[str, object]) -> None:
        test = self._value(statement.test, scope)
        if isinstance(test, Size) and not test.is_constant:
            # A size that no request may have raises an error; the other branch is followed.
            if _raises(statement.body):
                return self._block(statement.orelse, scope)
            if _raises(statement.orelse):
                return self._block(statement.body, scope)
        is_true = self._number(test, "branches")
        return self._block(statement.body if is_true else statement.orelse, scope)

    def _number(self, value: object, description: str) -> int:
        """Return a known number or truth value."""
        if value is None or isinstance(value, bool | str):
            return int(bool(value))
        if isinstance(value, Tensor):
            value = self._machine.item(value, description)
        if isinstance(value, Size) and value.is_constant:
            return value.number
        reason = value.value.mixed if isinstance(value, Tensor) else ""
        if not reason and isinstance(value, Size) and not value.has_batch:
            reason = "a value that is computed while it runs"
        raise _UnprovenError(
            f"the code {description} on {reason or 'values or the number of all rows'}"
        )

    def _assign(self, target: ast.expr, value: object, scope: dict[str, object]) -> None:
        match target:
            case ast.Name(id=name):
                scope[name] = value
            case ast.Tuple(elts=targets):
                if isinstance(value, Tensor) and value.value.mixed:
                    value = [value] * len(targets)
                if not isinstance(value, list | tuple):
                    raise _UnprovenError("the code takes something apart that is no tuple")
                parts = list(value)
                if len(parts) == 1 and len(targets) > 1:
                    parts *= len(targets)  # a list whose content is unknown
                    if not (isinstance(parts[0], Tensor) and parts[0].value.mixed):
                        raise _UnprovenError("the code takes a list of another length apart")
                for part, item in zip(targets, parts, strict=True):
                    self._assign(part, item, scope)
            case ast.Attribute():
                raise _UnprovenError("the module changes itself while it runs")
            case _:
                raise _UnprovenError(f"an assignment to a {type(target).__name__} is not followed")

    # Expressions

    def _value(self, code: ast.expr, scope: Mapping[str, object], *, count: int = 1) -> object:  # noqa: C901, PLR0911, PLR0912  # kinds
        match code:
            case ast.Constant(value=value):
                return _scalar(value)
            case ast.Name(id=name):
                if name in scope:
                    return scope[name]
                if name in {"inf", "nan"}:
                    return float(name)
                return _Reference(name)
            case ast.Attribute(value=inner, attr=name):
                return self._attribute(self._value(inner, scope), name)
            case ast.List(elts=items):
                return [self._value(item, scope) for item in items]
            case ast.Tuple(elts=items):
                return tuple(self._value(item, scope) for item in items)
            case ast.Dict(keys=keys, values=values):
                pairs = zip(keys, values, strict=True)
                return {
                    self._key(self._value(key, scope)): self._value(value, scope)
                    for key, value in pairs
                    if key is not None
                }
            case ast.UnaryOp(op=ast.USub(), operand=inner):
                return self._scalars("neg", [self._value(inner, scope)], "-")
            case ast.Subscript(value=inner, slice=index):
                return self._item(self._value(inner, scope), self._value(index, scope))
            case ast.IfExp(test=test, body=yes, orelse=no):
                is_true = self._number(self._value(test, scope), "branches")
                return self._value(yes if is_true else no, scope)
            case ast.Call(func=function, args=arguments, keywords=keywords):
                return self._call(function, arguments, keywords, scope, count)
            case _:
                raise _UnprovenError(f"a {type(code).__name__} is not followed")

    @staticmethod
    def _key(key: object) -> str | int:
        if isinstance(key, Size) and key.is_constant:
            return key.number
        if not isinstance(key, str):
            raise _UnprovenError("a dict has keys that are not followed")
        return key

    def _item(self, value: object, index: object) -> object:
        if isinstance(value, Tensor) and value.value.mixed:
            return value
        if isinstance(value, dict):
            return value[self._key(index)]
        if not isinstance(value, list | tuple):
            raise _UnprovenError("the code takes an item of what is no list")
        if len(value) == 1 and isinstance(value[0], Tensor) and value[0].value.mixed:
            return value[0]
        return value[self._number(index, "takes an item")]

    def _attribute(self, owner: object, name: str) -> object:
        if isinstance(owner, _Reference):
            if owner.name == "CONSTANTS":
                number = int(name.removeprefix("c"))
                key = (-1, str(number))
                if key not in self._attributes:
                    value = self._constants[number]
                    converted = self._converted(value, f"c{number}", 0)
                    if isinstance(value, StoredTensor) and isinstance(converted, Tensor):
                        data = read_stored(self._file, "constants", value)
                        if data is not None:
                            converted.value = constant(data)
                    self._attributes[key] = converted
                return self._attributes[key]
            return _Reference(f"{owner.name}.{name}")
        if not isinstance(owner, ScriptObject):
            raise _UnprovenError(f"attribute '{name}' of a value is not followed")
        if name == "training":
            return False  # inference mode, whatever mode the module was saved in
        key = (id(owner), name)
        if key not in self._attributes:
            self._attributes[key] = self._stored_attribute(owner, name)
        return self._attributes[key]

    def _stored_attribute(self, owner: ScriptObject, name: str) -> object:
        if isinstance(owner.state, dict) and name in owner.state:
            return self._converted(owner.state[name], name, 0)
        code = self._classes.get(owner.kind)
        for item in code.body if code is not None else []:
            match item:
                case ast.AnnAssign(target=ast.Name(id=own), value=value) if own == name:
                    if value is not None:
                        return self._value(value, {})
        return _Method(owner, name)

    def _converted(self, value: object, name: str, depth: int) -> object:
        """Return an object of the file; lists become tuples, as changing one changes the module."""
        if depth > _MAX_DEPTH:
            raise _UnprovenError(f"attribute '{name}' nests too deep")
        if isinstance(value, StoredTensor):
            dtype = STORAGES.get(value.storage, "")
            shape = tuple(map(Size, value.shape))
            known_value = Value(shape=shape, is_integer=is_whole(dtype))
            tensor = self._machine.tensor(known_value, dtype=dtype)
            tensor.memory.is_model = True
            return tensor
        if isinstance(value, list | tuple):
            return tuple(self._converted(item, name, depth + 1) for item in value)
        if value is None or isinstance(value, bool | int | float | str):
            return _scalar(value)
        if isinstance(value, ScriptObject):
            return value
        raise _UnprovenError(f"attribute '{name}' is a {type(value).__name__}")

    # Calls

    def _call(  # noqa: C901, PLR0911, PLR0912  # kinds of functions
        self,
        function: ast.expr,
        arguments: Sequence[ast.expr],
        keywords: Sequence[ast.keyword],
        scope: Mapping[str, object],
        count: int,
    ) -> object:
        if isinstance(function, ast.Name) and function.id not in scope:
            match function.id:
                case "annotate" | "unchecked_cast":
                    return self._value(arguments[1], scope, count=count)
                case "uninitialized":
                    return None
                case "getattr":
                    name = self._value(arguments[1], scope)
                    return self._attribute(self._value(arguments[0], scope), str(name))
        target = self._value(function, scope)
        positional = [self._value(item, scope) for item in arguments]
        named = {item.arg: self._value(item.value, scope) for item in keywords if item.arg}
        if isinstance(target, _Method):
            return self._method(target, positional, named)
        if not isinstance(target, _Reference):
            raise _UnprovenError("the code calls what is no function")
        name = target.name
        if name in self._functions:
            return self._function(self._functions[name], positional, named)
        if name in self._classes:
            bases = [ast.unparse(base) for base in self._classes[name].bases]
            if bases == ["NamedTuple"] and not named:
                return tuple(positional)
            raise _UnprovenError(f"the code makes an object of {name}")
        if name.startswith(f"{_NO_GRADIENTS.name}."):
            return _NO_GRADIENTS if name.endswith("__new__") else None
        if name in _SWITCHES:
            return _SWITCHES[name]
        if name.startswith("ops.prim.") or name in {"int", "float", "bool", "str"}:
            return self._primitive(name.removeprefix("ops.prim."), positional)
        if name.startswith("torch."):
            return self._operator(name.removeprefix("torch."), positional, named, count)
        raise _UnprovenError(f"the code calls {name}, which is not known to keep rows apart")

    def _primitive(self, name: str, items: Sequence[object]) -> object:  # noqa: PLR0911  # kinds
        first = items[0] if items else None
        match name:
            case "NumToTensor" if not isinstance(first, Tensor):
                return self._machine.call(
                    "scalar_tensor", [_argument(first)], {}, description="a number", count=1
                )[0]
            case "NumToTensor" | "unchecked_unwrap_optional" | "min" | "max" if len(items) == 1:
                return first
            case "RaiseException":
                raise _UnprovenError("the code raises an error")
            case "dtype" if isinstance(first, Tensor):
                return first.dtype or "unknown"
            case "device" | "layout" | "type":
                return _DEVICE
            case "int" | "float" | "bool":
                item = self._machine.item(first, name) if isinstance(first, Tensor) else first
                if isinstance(item, Size) and item.is_constant and name != "int":
                    return float(item.number) if name == "float" else bool(item.number)
                if isinstance(item, float | bool | str) and name == "int":
                    return Size(int(item))
                if isinstance(item, Size | Tensor | float | bool):
                    return item
        raise _UnprovenError(f"the code calls {name}, which is not known to keep rows apart")

    def _operator(  # noqa: C901, PLR0911, PLR0912  # kinds of operators
        self, name: str, items: Sequence[object], named: Mapping[str, object], count: int
    ) -> object:
        first = items[0] if items else None
        description = f"operator torch.{name}"
        is_tensor = isinstance(first, Tensor)
        match name:
            case "size" if isinstance(first, Tensor) and len(items) > 1:
                axis = items[1]
                return self._machine.size_of(
                    first, axis if isinstance(axis, Size) else None, description
                )
            case "size" if isinstance(first, Tensor):
                shape = first.value.shape
                if shape is None or (first.value.mixed and first.value.row_numbers is None):
                    raise _UnprovenError(
                        first.value.mixed or f"{description} takes an unknown shape"
                    )
                return list(shape)
            case "numel" if is_tensor:
                return self._machine.size_of(_argument(first), None, description)
            case "dim" if isinstance(first, Tensor):
                if first.value.shape is None:
                    raise _UnprovenError(
                        first.value.mixed or f"{description} takes an unknown shape"
                    )
                return Size(len(first.value.shape))
            case "item" | "Int" | "Float" | "Bool" if isinstance(first, Tensor):
                return self._machine.item(first, description)
            case "is_floating_point" if isinstance(first, Tensor) and first.dtype:
                return not is_whole(first.dtype)
            case "len" if isinstance(first, list | tuple | dict | str):
                return Size(len(first))
            case "len" if is_tensor:
                return self._machine.size_of(_argument(first), Size(0), description)
            case "append" if isinstance(first, list):
                first.append(items[1])
                return first
            case "_set_item" if isinstance(first, list):
                first[self._number(items[1], "writes an item")] = items[2]
                return first
            case "_set_item" if isinstance(first, dict):
                first[self._key(items[1])] = items[2]
                return first
            case "list" if isinstance(first, list | tuple):
                return list(first)
            case "device":
                return _DEVICE
            case "format" | "str" | "warn":
                return _TEXT
            case "len" if first is _TEXT:
                return self._machine.transfer.symbols.unknown(minimum=1)
            case "any" | "all" if isinstance(first, list | tuple) and not parts_of_kind(
                Tensor, first
            ):
                numbers = [self._number(item, "branches") for item in first]
                return any(numbers) if name == "any" else all(numbers)
            case "__is__" | "__isnot__":
                return self._is_same(first, items[1]) == (name == "__is__")
            case "slice" if isinstance(first, list | tuple):
                bounds = [
                    None if item is None else self._number(item, "cuts") for item in items[1:]
                ]
                return list(first)[slice(*(bounds + [None] * 3)[:3])]
            case "__not__":
                return not self._number(first, "branches")
            case "__contains__" if isinstance(first, list | tuple | dict):
                return self._contains(first, items[1])
        flat = [*items, *named.values()]
        if not parts_of_kind(Tensor, flat) and (name in _ARITHMETIC):
            return self._scalars(name, items, description)
        if isinstance(first, list | tuple | dict) and name not in _TAKES_LIST:
            raise _UnprovenError(f"{description} takes a list, which is not followed")
        changes = name.endswith("_") and not name.endswith("__")
        base_name = name.removesuffix("_") if changes else name
        outputs = self._machine.call(
            base_name,
            [_argument(item) for item in items],
            {key: _argument(item) for key, item in named.items()},
            description=description,
            count=0 if base_name in _LISTS else count,
            changes_first=changes,
        )
        for number, output in enumerate(outputs):
            if not changes:
                output.dtype = _dtype(base_name, number, items, named)
                is_integer = is_whole(output.dtype)
                if output.dtype and not output.value.mixed:
                    output.value = replace(output.value, is_integer=is_integer)
        return list(outputs) if base_name in _LISTS or count > 1 else outputs[0]

    @staticmethod
    def _is_same(left: object, right: object) -> bool:
        if left is right or left is None or right is None:
            return left is right
        if isinstance(left, bool) and isinstance(right, bool):
            return left == right
        if (
            isinstance(left, Tensor)
            and isinstance(right, Tensor)
            and left.memory is not right.memory
        ):
            return False
        raise _UnprovenError("the code compares objects that may be the same")

    @staticmethod
    def _contains(items: Sequence[object] | dict[Any, Any], item: object) -> bool:
        if isinstance(items, dict):
            return item in items
        if item is _DEVICE and {"cpu", "cuda"} <= {part for part in items if isinstance(part, str)}:
            return True
        if any(_plain(part) is None for part in [*items, item]):
            raise _UnprovenError("the code looks for what is computed while it runs")
        return item in items

    def _scalars(self, name: str, items: Sequence[object], description: str) -> object:
        """Return arithmetic on numbers and lists; an unknown result is a size without a value."""
        numbers = [_plain(item) for item in items]
        fold = _ARITHMETIC.get(name)
        # Products of strings and powers may take all memory.
        is_small = name not in {"mul", "pow"} or all(
            isinstance(number, int | float) and abs(number) < _MAX_FACTOR for number in numbers
        )
        if fold is not None and None not in numbers and is_small:
            return _scalar(fold(*numbers))
        if name == "gt" and items[1] == Size(0):
            first = items[0]
            if isinstance(first, Size) and first.is_positive:
                return True
        if name in {"eq", "ne"} and all(isinstance(item, list | tuple) for item in items):
            return self._compared(name, *items)
        if name == "add" and all(isinstance(item, list) for item in items):
            return [part for item in items if isinstance(item, list) for part in item]
        parts = [_argument(item) for item in items]
        (result,) = self._machine.on_sizes(_ON_SIZES.get(name, name), parts, description)
        return result

    def _compared(self, name: str, *items: object) -> object:
        left, right = (list(item) if isinstance(item, list | tuple) else [] for item in items)
        if len(left) != len(right):
            return name == "ne"
        results = [self._scalars("eq", pair, "eq") for pair in zip(left, right, strict=True)]
        if all(item is True or item == Size(1) for item in results):
            return name == "eq"
        if any(item is False or item == Size(0) for item in results):
            return name == "ne"
        has_batch = any(isinstance(item, Size) and item.has_batch for item in results)
        return self._machine.transfer.symbols.unknown(has_batch=has_batch)


def _raises(body: Sequence[ast.stmt]) -> bool:
    """Whether a branch ends in an error."""
    match body[-1] if body else None:
        case ast.Expr(value=ast.Call(func=ast.Attribute(attr="RaiseException"))):
            return True
    return False


def _scalar(value: object) -> object:
    """Return a Python constant in the analysis's representation."""
    if isinstance(value, bool) or not isinstance(value, int):
        return value
    return Size(value)


def _plain(item: object) -> Any:  # a number or a text
    """Return a known number or string as a Python value; None if it is unknown."""
    if isinstance(item, Size):
        return item.number if item.is_constant else None
    return item if isinstance(item, bool | float | str) else None


def _argument(item: object) -> Any:  # what the interpreter takes
    """Return a value as an argument of an operator."""
    if isinstance(item, list | tuple):
        return [_argument(part) for part in item]
    if item is None or isinstance(item, Tensor | Size | float | bool | str):
        return item
    if item is _DEVICE or item is _TEXT:
        return "device"
    raise _UnprovenError("the code gives an object to an operator")


def _flat_outputs(answer: object) -> list[Value]:
    if answer is None:
        return []
    if isinstance(answer, Tensor):
        return [answer.value]
    if isinstance(answer, dict):
        return [value for item in answer.values() for value in _flat_outputs(item)]
    if isinstance(answer, list | tuple):
        return [value for item in answer for value in _flat_outputs(item)]
    return [mixed("the module gives what is no tensor")]


def _dtype(  # noqa: PLR0911  # kinds
    name: str, number: int, items: Sequence[object], named: Mapping[str, object]
) -> str:
    """Return the datatype of an operator's output; empty if it is unknown."""
    tensors = parts_of_kind(Tensor, items)
    if name in CONVERSIONS:
        return CONVERSIONS[name]
    codes = [item for item in items[1:] if isinstance(item, Size)] if name == "to" else []
    code = codes[0] if codes else named.get("dtype")
    if isinstance(code, Size):
        return C10_DTYPES.get(code.number, "")
    if isinstance(code, str):
        return "" if code == "unknown" else code
    if name == "to" and any(isinstance(item, str) for item in items):
        return ""
    if name in _BOOLEAN:
        return "bool"
    if name in _POSITIONS and _POSITIONS[name] == number:
        return "int64" if number or name.startswith("arg") else ""
    if name == "arange":
        is_counted = all(item is None or isinstance(item, Size) for item in items)
        return "int64" if is_counted else ""
    if name in {"index", "gather", "index_select"}:
        return tensors[0].dtype if tensors else ""
    kinds = {tensor.dtype for tensor in tensors}
    if name not in _KEEPS_DTYPE or len(kinds) != 1:
        return ""
    (kind,) = kinds
    has_fraction = any(isinstance(item, float) for item in items)
    # Adding truth values gives numbers.
    is_kept = name in _MOVES or (not has_fraction and kind != "bool")
    return kind if is_kept else ""
