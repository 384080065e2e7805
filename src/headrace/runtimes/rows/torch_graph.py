"""Row analysis of exported programs: the graph that `torch.export.save` writes as JSON.

Its schema is `torch/_export/serde/schema.py`. The file's code does not run, and PyTorch is not
needed.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from headrace.runtimes.rows.aten import Argument, AtenInterpreter, Tensor, as_value, is_whole
from headrace.runtimes.rows.aten_operators import ATEN
from headrace.runtimes.rows.symbols import BATCH, Size
from headrace.runtimes.rows.values import (
    BatchRows,
    MixedRowsError,
    RowVerdict,
    Value,
    judge,
    mixed,
    with_rows,
)

_DTYPES: Final = {
    1: "uint8",
    2: "int8",
    3: "int16",
    4: "int32",
    5: "int64",
    6: "float16",
    7: "float32",
    8: "float64",
    12: "bool",
    13: "bfloat16",
    28: "uint16",
    34: "uint32",
    35: "uint64",
}
"""`ScalarType` of the schema."""
_SYMBOL: Final = re.compile(r"Symbol\('(\w+)'[^()]*\)|^(\w+)$")
_INTEGER: Final = re.compile(r"Integer\((-?\d+)\)|^(-?\d+)$")
_NAMESPACES: Final = ("torch.ops.aten.", "torch.ops.quantized_decomposed.")
_CHECKS: Final = frozenset(
    {
        "_assert_scalar",
        "_assert_tensor_metadata",
        "sym_constrain_range",
        "sym_constrain_range_for_size",
    }
)
"""Operators that either raise an error or have no effect."""
_WRAPPED: Final = {"wrap_with_set_grad_enabled": 1, "wrap_with_autocast": 4}
"""Operators that run a graph unchanged, and the number of arguments before it."""


def analyse_torch_graph(data: bytes) -> RowVerdict:
    """Return whether each output row of an exported program depends on its own input row alone.

    Args:
        data: The program's JSON text; axis 0 of each input tensor is the batch.
    """
    try:
        return _Program(json.loads(data)).verdict()
    except MixedRowsError as error:
        return RowVerdict(why_not=str(error))
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        return RowVerdict(why_not=f"the graph cannot be read: {type(error).__name__}")


class _Program:
    """Analysis of one program's graph."""

    def __init__(self, program: Mapping[str, Any]) -> None:
        self._module = program["graph_module"]
        self._guards = [str(guard) for guard in program.get("guards_code") or ()]
        self._machine = AtenInterpreter(ATEN)
        self._sizes: dict[str, Size] = {}

    def verdict(self) -> RowVerdict:
        if any("%" in guard and "size()[0]" in guard for guard in self._guards):
            return RowVerdict(why_not="the program takes multiples of a number of rows only")
        signature, graph = self._module["signature"], self._module["graph"]
        names: dict[str, Argument] = {}
        for spec in signature["input_specs"]:
            ((kind, content),) = spec.items()
            self._bind_input(kind, content, graph["tensor_values"], names)
        self._run(graph, names)
        outputs: dict[str, Value] = {}
        for number, spec in enumerate(signature["output_specs"]):
            ((kind, content),) = spec.items()
            if kind != "user_output":
                return RowVerdict(why_not=f"the program changes what outlives a run ({kind})")
            output = self._argument(content["arg"], names)
            if output is not None:
                value = output.value if isinstance(output, Tensor) else mixed("gives no tensor")
                outputs[f"output {number}"] = value
        if self._machine.failed:
            return RowVerdict(why_not=self._machine.failed)
        return judge(outputs) if outputs else RowVerdict(why_not="the program gives no tensor")

    def _bind_input(
        self,
        kind: str,
        content: Mapping[str, Any],
        metas: Mapping[str, Any],
        names: dict[str, Argument],
    ) -> None:
        if kind in {"parameter", "buffer", "tensor_constant"}:
            name = content["arg"]["name"]
            meta = metas[name]
            shape = tuple(self._meta_size(size, name, i) for i, size in enumerate(meta["sizes"]))
            dtype = _DTYPES.get(meta["dtype"], "")
            tensor = self._machine.tensor(
                Value(shape=shape, is_integer=is_whole(dtype)), dtype=dtype
            )
            tensor.memory.is_model = True
            names[name] = tensor
        elif kind == "user_input":
            ((_, argument),) = content["arg"].items()
            if not isinstance(argument, Mapping) or "name" not in argument:
                if "as_tensor" in content["arg"] or "as_sym_int" in content["arg"]:
                    raise MixedRowsError("the program takes a number, which all rows share")
                return  # a constant
            names[argument["name"]] = self._input(argument["name"], metas[argument["name"]])
        elif kind != "constant_input":
            raise MixedRowsError(f"the program takes a {kind}, which is not followed")

    def _input(self, name: str, meta: Mapping[str, Any]) -> Tensor:
        """Return an input tensor, with the batch on axis 0."""
        sizes = meta["sizes"]
        if not sizes:
            raise MixedRowsError(f"input '{name}' has no batch axis")
        if "as_expr" not in sizes[0]:
            raise MixedRowsError(f"axis 0 of input '{name}' has a fixed size")
        symbol = _symbol(sizes[0]["as_expr"]["expr_str"])
        if symbol is None:
            raise MixedRowsError(f"axis 0 of input '{name}' is computed from other sizes")
        if self._sizes.setdefault(symbol, BATCH) != BATCH:
            raise MixedRowsError(f"axis 0 of input '{name}' is as long as another axis")
        inner = [self._meta_size(size, name, axis) for axis, size in enumerate(sizes[1:], 1)]
        if any(size.has_batch for size in inner):
            raise MixedRowsError(f"another axis of input '{name}' is as long as the batch")
        dtype = _DTYPES.get(meta["dtype"], "")
        value = with_rows((BATCH, *inner), BatchRows(axis=0), is_integer=is_whole(dtype))
        return self._machine.tensor(value, dtype=dtype)

    def _meta_size(self, size: Mapping[str, Any], name: str, axis: int) -> Size:
        if "as_int" in size:
            return Size(int(size["as_int"]))
        text = size["as_expr"]["expr_str"]
        number, symbol = _INTEGER.fullmatch(text), _symbol(text)
        if number is not None:
            return Size(int(number[1] or number[2]))
        if symbol is None:
            # Only known to be the same for all rows, unless its shape has the batch.
            if self._has_batch(text):
                raise MixedRowsError(f"axis {axis} of '{name}' depends on the number of rows")
            return self._machine.transfer.symbols.input(f"{name}[{axis}]")
        return self._sizes.setdefault(symbol, self._machine.transfer.symbols.input(symbol))

    def _has_batch(self, text: str) -> bool:
        return any(self._sizes.get(name) == BATCH for name in re.findall(r"\w+", text))

    def _run(self, graph: Mapping[str, Any], names: dict[str, Argument]) -> None:
        metas = graph["tensor_values"]
        for node in graph["nodes"]:
            target = str(node["target"])
            description = f"node '{node.get('name') or target}' ({target.rpartition('ops.')[2]})"
            results = self._node(node, target, names, description)
            outputs = [name for output in node["outputs"] for name in _output_names(output)]
            missing = mixed(f"{description} is not followed")
            for i, name in enumerate(outputs):
                result = results[i] if i < len(results) else self._machine.tensor(missing)
                if isinstance(result, Tensor) and name in metas:
                    self._describe(result, metas[name], description)
                names[name] = result

    def _describe(self, tensor: Tensor, meta: Mapping[str, Any], description: str) -> None:
        """Add the datatype, and sizes that the file gives as numbers, where unknown."""
        value = tensor.value
        tensor.dtype = _DTYPES.get(meta["dtype"], "")
        if value.mixed and value.row_numbers is None:
            return
        value = replace(value, is_integer=is_whole(tensor.dtype))
        sizes = [size.get("as_int") for size in meta["sizes"]]
        if value.shape is None and value.rows is None and None not in sizes:
            value = replace(value, shape=tuple(map(Size, sizes)))
        elif value.shape is not None and len(sizes) == len(value.shape):
            texts = [
                "" if "as_int" in size else size["as_expr"]["expr_str"] for size in meta["sizes"]
            ]
            if [self._has_batch(text) for text in texts] != [
                size.has_batch for size in value.shape
            ]:
                tensor.value = mixed(f"{description} has a size that is not followed")
                return
            # The exporter computed sizes that are the same for all inputs.
            shape = tuple(
                own if number is None or own.has_batch else Size(number)
                for own, number in zip(value.shape, sizes, strict=True)
            )
            value = replace(value, shape=shape)
        tensor.value = value

    def _node(  # noqa: PLR0911  # kinds of nodes
        self, node: Mapping[str, Any], target: str, names: dict[str, Argument], description: str
    ) -> Sequence[Argument]:
        """Return the outputs of a node."""
        arguments = [(item["name"], item) for item in node["inputs"]]
        if "higher_order" in target:
            return self._wrapped(node, target, names, description)
        values = [(name, self._argument(item["arg"], names)) for name, item in arguments]
        positional = [
            value
            for (_, value), (_, item) in zip(values, arguments, strict=True)
            if item.get("kind") != 2  # noqa: PLR2004  # KEYWORD
        ]
        if not target.startswith("torch.ops."):
            return self._machine.on_sizes(target, positional, description)
        if not target.startswith(_NAMESPACES):
            return self._machine.call(
                target, positional, dict(values), description=description, count=1
            )
        name = target.rpartition("ops.")[2].split(".")[1]
        if name in _CHECKS or name == "_assert_async":
            self._check(positional, name, description)
            return []
        named = dict(values)
        match name:
            case "sym_size" | "size" if len(positional) > 1:
                return [self._machine.size_of(positional[0], positional[1], description)]
            case "sym_numel" | "numel":
                return [self._machine.size_of(positional[0], None, description)]
            case "item" | "_local_scalar_dense":
                return [self._machine.item(positional[0], description)]
        changes = name.endswith("_") and not name.endswith("__")
        if ".out" in target or (changes and named.get("out") is not None):
            named["out"] = None
        count = sum(1 for output in node["outputs"] for _ in _output_names(output))
        return self._machine.call(
            name.removesuffix("_") if changes else name,
            positional,
            named,
            description=description,
            count=max(count, 1),
            changes_first=changes,
        )

    def _wrapped(
        self, node: Mapping[str, Any], target: str, names: dict[str, Argument], description: str
    ) -> Sequence[Argument]:
        """Return the outputs of a graph that another one runs unchanged."""
        before = _WRAPPED.get(target.rpartition(".")[2])
        inputs = [item["arg"] for item in node["inputs"]]
        if before is None or "as_graph" not in inputs[before]:
            reason = f"{description} is an operator that is not known to keep rows apart"
            self._machine.failed = self._machine.failed or reason
            return []
        graph = inputs[before]["as_graph"]["graph"]
        inner: dict[str, Argument] = {}
        for slot, item in zip(graph["inputs"], inputs[before + 1 :], strict=True):
            for name in _output_names(slot):
                inner[name] = self._argument(item, names)
        self._run(graph, inner)
        return [self._argument(output, inner) for output in graph["outputs"]]

    def _check(self, values: Sequence[Argument], name: str, description: str) -> None:
        """Refuse a check on row values: an error for one row would fail all."""
        is_tensor = isinstance(values[0], Tensor) and not values[0].value.is_uniform
        if is_tensor and name != "_assert_tensor_metadata":
            self._machine.failed = (
                self._machine.failed or f"{description} fails on values of all rows"
            )

    def _argument(self, item: Mapping[str, Any], names: Mapping[str, Argument]) -> Argument:  # noqa: C901, PLR0911, PLR0912  # one case for each kind of the schema
        if not item or "as_none" in item:
            return None
        ((kind, content),) = item.items()
        match kind:
            case "as_tensor" | "as_optional_tensor":
                return self._named(content, names)
            case "as_tensors" | "as_optional_tensors":
                return [self._named(part, names) for part in content]
            case "as_sym_int" | "as_sym_float" | "as_sym_bool":
                return _symbolic(content, names)
            case "as_sym_ints" | "as_sym_floats" | "as_sym_bools":
                return [_symbolic(part, names) for part in content]
            case "as_int":
                return Size(int(content))
            case "as_bool":
                return bool(content)
            case "as_float":
                return float(content)
            case "as_string":
                return str(content)
            case "as_ints":
                return [Size(int(part)) for part in content]
            case "as_floats":
                return [float(part) for part in content]
            case "as_scalar_type":
                return _DTYPES.get(content, "another type")
            case "as_device" | "as_layout" | "as_memory_format" | "as_complex":
                return kind
            case _:
                return self._machine.tensor(mixed(f"an argument of kind {kind} is not followed"))

    def _named(self, part: Mapping[str, Any], names: Mapping[str, Argument]) -> Argument:
        if "as_none" in part:
            return None
        name = part.get("as_tensor", part)["name"]
        value = names.get(name)
        if value is None:
            return self._machine.tensor(mixed(f"nothing gives '{name}'"))
        if isinstance(value, Size | float):
            return self._machine.tensor(as_value(value))
        return value


def _symbolic(item: Mapping[str, Any], names: Mapping[str, Argument]) -> Argument:
    if "as_name" in item:
        return names[item["as_name"]]
    ((_, number),) = item.items()
    return Size(number) if isinstance(number, int) and not isinstance(number, bool) else number


def _symbol(text: str) -> str | None:
    """Return the name of a size that is one symbol; None for an expression."""
    match = _SYMBOL.fullmatch(text)
    return None if match is None or text.lstrip("-").isdigit() else match[1] or match[2]


def _output_names(output: Mapping[str, Any]) -> list[str]:
    ((kind, content),) = output.items()
    if kind == "as_none":
        return []
    parts = content if isinstance(content, list) else [content]
    return [
        str(part.get("name") or part.get("as_name") or part["as_tensor"]["name"]) for part in parts
    ]
