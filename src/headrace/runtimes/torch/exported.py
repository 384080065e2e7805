"""Runtime of exported programs: graphs that `torch.export.save` wrote.

**PyTorch reads pickles in such a file** (weights and constants that are not plain tensors, sample
inputs), and pickles run code: use only files from people you trust.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Final

from headrace.core import (
    VARIABLE,
    Datatype,
    RuntimeFailedError,
    TensorSpec,
    UnsupportedModelError,
)
from headrace.runtimes.base import LoadOptions, Model
from headrace.runtimes.rows.torch_graph import analyse_torch_graph
from headrace.runtimes.rows.values import RowVerdict
from headrace.runtimes.tables.tabular import check_input_sizes, refuse
from headrace.runtimes.torch.archive import (
    ArchiveKind,
    find_torch_file,
    read_record,
    read_sizes,
    require_torch_file,
)
from headrace.runtimes.torch.module import (
    Program,
    choose_device,
    import_torch,
    quiet,
    reason_of_torch,
)
from headrace.runtimes.torch.signature import Declared, match_names, open_proved, read_declared

_COMPILED: Final = "data/aotinductor/"
_WRAP: Final = "export a module that takes tensors and calls this one"
_GRAPH: Final = re.compile(r"models/\w+\.json|serialized_exported_program\.json")
_MAX_GRAPH_BYTES: Final = 256 << 20
_ENDLESS: Final = 1 << 40


class TorchExportRuntime:
    """Loader of the files of `torch.export.save`, or a directory with one and `signature.json`."""

    name = "torch_export"
    runs_code = True
    libraries = ("torch",)
    extra = "torch"

    def recognises(self, path: Path) -> bool:
        """Whether `path` looks like an exported program, by the names in the archive."""
        return find_torch_file(path, ArchiveKind.PROGRAM) is not None

    def load(self, path: Path, options: LoadOptions) -> Model:
        """Load the program; on CUDA if it is available and `options` allows it."""
        file = require_torch_file(path, ArchiveKind.PROGRAM)
        torch, values = import_torch()
        if any(name.startswith(_COMPILED) for name in read_sizes(file)):
            raise refuse(
                file,
                "holds machine code compiled by AOTInductor, which runs only where it was "
                "compiled; save the program itself with torch.export.save",
            )
        declared = read_declared(path, file)
        if declared.values or declared.method != "forward":
            raise refuse(path, "declares 'values' or 'method', which exported programs do not have")
        device = choose_device(torch, options.device)
        with quiet():
            try:
                exported = torch.export.load(str(file))
                if device != "cpu":
                    from torch.export.passes import move_to_device_pass  # noqa: PLC0415  # few need it

                    exported = move_to_device_pass(exported, device)
            except Exception as error:
                # PyTorch's exceptions share no base class but Exception.
                raise refuse(file, f"PyTorch cannot load it: {reason_of_torch(error)}") from error
        leaves = _renamed(path, _leaves(path, torch, values, exported), declared)
        with quiet():
            program = _program(torch, exported, leaves, device)
        # The analysis uses the file's own sizes: a signature only names tensors or restricts
        # shapes.
        verdict = cache(lambda: _analysed(file))
        maximum = min((leaf.most for leaf in leaves if leaf.most is not None), default=None)
        if maximum is not None:
            pieces = replace(program, call=_in_pieces(torch, program.call, maximum))
            model = open_proved(path, pieces, declared, options=options, analyse=verdict)
            if model.signature.batched:
                return model
        return open_proved(path, program, declared, options=options, analyse=verdict)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Leaf:
    """One input value of a program: a tensor, a number, or a constant."""

    name: str
    spec: TensorSpec | None = None
    cast: object = None
    """PyTorch's datatype, if it differs from the protocol's."""
    constant: object = None
    is_tensor: bool = True
    most: int | None = None
    """Maximum of rows that it was exported for; None for no limit."""


def _analysed(file: Path) -> RowVerdict:
    """Return whether rows are independent, from the graph in the file."""
    names = [name for name in read_sizes(file) if _GRAPH.fullmatch(name)]
    if len(names) != 1:
        return RowVerdict(why_not=f"the file holds {len(names)} graphs")
    try:
        data = read_record(file, names[0], maximum=_MAX_GRAPH_BYTES)
    except UnsupportedModelError as error:
        return RowVerdict(why_not=str(error))
    return analyse_torch_graph(data or b"")


def _program(torch: Any, exported: Any, leaves: Sequence[_Leaf], device: str) -> Program:
    keeps_state, writes_inputs = _what_runs_change(exported)
    takes = [(leaf.spec, leaf.cast) for leaf in leaves if leaf.spec is not None]
    # Calling the program with a request's tensors
    module = exported.module()
    pytree = torch.utils._pytree  # noqa: SLF001  # what the program itself was flattened with
    structure = exported.call_spec.in_spec

    def value(leaf: _Leaf, tensors: Mapping[str, Any]) -> object:
        if leaf.spec is None:
            return leaf.constant
        tensor = tensors[leaf.spec.name]
        return tensor if leaf.is_tensor else tensor.item()

    def call(tensors: Mapping[str, Any]) -> object:
        arguments = [value(leaf, tensors) for leaf in leaves]
        args, kwargs = pytree.tree_unflatten(arguments, structure)
        return module(*args, **kwargs)

    return Program(
        call=call,
        inputs=tuple(spec for spec, _ in takes),
        casts={spec.name: cast for spec, cast in takes if cast is not None},
        device=device,
        keeps_state=keeps_state,
        writes_inputs=writes_inputs,
        loaded=exported,
    )


def _leaves(path: Path, torch: Any, values: Any, exported: Any) -> list[_Leaf]:
    """Return the program's inputs in the order of its flattened arguments."""
    examples = {node.name: node.meta.get("val") for node in exported.graph.nodes}
    kinds = torch.export.graph_signature
    leaves = []
    for input_spec in exported.graph_signature.input_specs:
        if input_spec.kind is not kinds.InputKind.USER_INPUT:
            continue
        name = input_spec.arg.name
        match input_spec.arg:
            case kinds.ConstantArgument():
                leaves.append(_Leaf(name=name, constant=input_spec.arg.value))
            case kinds.TensorArgument():
                leaves.append(
                    _tensor(path, values, name, examples[name], exported.range_constraints)
                )
            case kinds.SymIntArgument():
                spec = TensorSpec(name=name, datatype=Datatype.INT64, shape=())
                leaves.append(_Leaf(name=name, spec=spec, is_tensor=False))
            case _:
                raise refuse(
                    path, f"its input '{name}' is a {type(input_spec.arg).__name__}; {_WRAP}"
                )
    return leaves


def _tensor(path: Path, values: Any, name: str, value: Any, ranges: Mapping[Any, Any]) -> _Leaf:
    datatype = values.DATATYPES.get(value.dtype)
    if datatype is None:
        raise refuse(path, f"its input '{name}' is {value.dtype}, which the protocol cannot carry")
    shape = tuple(size if isinstance(size, int) else VARIABLE for size in value.shape)
    spec = TensorSpec(name=name, datatype=datatype, shape=shape)
    check_input_sizes(path, [spec])
    maximum = None
    if shape and shape[0] == VARIABLE:
        limits = ranges.get(value.shape[0].node.expr)
        # A size without limit is one of sympy's infinities instead of a number.
        if limits is not None and limits.upper < _ENDLESS:
            maximum = int(limits.upper)
    cast = value.dtype if datatype.dtype.itemsize != value.dtype.itemsize else None
    return _Leaf(name=name, spec=spec, cast=cast, most=maximum)


def _renamed(path: Path, leaves: Sequence[_Leaf], declared: Declared) -> list[_Leaf]:
    """Return the leaves with their declared names and shapes."""
    if not declared.inputs:
        return list(leaves)
    takes = [leaf.name for leaf in leaves if leaf.spec is not None]
    declared_by_name = match_names(path, declared.inputs, takes)
    renamed = []
    for leaf in leaves:
        own, declared_spec = leaf.spec, declared_by_name.get(leaf.name)
        if own is None or declared_spec is None:
            renamed.append(leaf)
            continue
        if declared_spec.datatype is not own.datatype or not _narrows(
            declared_spec.shape, own.shape
        ):
            raise refuse(
                path,
                f"declares '{declared_spec.name}' as {declared_spec.datatype} "
                f"{list(declared_spec.shape)}, but the program takes {own.datatype} "
                f"{list(own.shape)}",
            )
        renamed.append(replace(leaf, spec=declared_spec))
    return renamed


def _narrows(declared: Sequence[int], own: Sequence[int]) -> bool:
    """Whether every tensor that fits the shape `declared` fits the shape `own`."""
    return len(declared) == len(own) and all(
        declared_size in (VARIABLE, size) for size, declared_size in zip(declared, own, strict=True)
    )


def _what_runs_change(exported: Any) -> tuple[bool, bool]:
    """Return whether a run changes the program's buffers, and whether it changes its inputs."""
    nodes = (
        node
        for graph in exported.graph_module.modules()
        if hasattr(graph, "graph")
        for node in graph.graph.nodes
    )
    schemas = (getattr(node.target, "_schema", None) for node in nodes)
    if not any(schema is not None and schema.is_mutable for schema in schemas):
        return False, False
    # Most operators that write do so to intermediate values; functionalization shows the others.
    signature = exported.run_decompositions({}).graph_signature
    keeps = bool(signature.buffers_to_mutate or signature.parameters_to_mutate)
    return keeps, bool(signature.user_inputs_to_mutate)


def _in_pieces(
    torch: Any,
    call: Callable[[Mapping[str, Any]], object],
    maximum: int,
) -> Callable[[Mapping[str, Any]], object]:
    """Return `call` split into several calls for more rows than it takes at once."""

    def whole(tensors: Mapping[str, Any]) -> object:
        rows = max(len(tensor) for tensor in tensors.values() if tensor.ndim)
        if rows <= maximum:
            return call(tensors)
        parts = [
            flatten({name: t[i : i + maximum] for name, t in tensors.items()})
            for i in range(0, rows, maximum)
        ]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def flatten(piece: Mapping[str, Any]) -> dict[str, Any]:
        _, values = import_torch()
        answers: dict[str, Any] = values.flatten(call(piece))
        if any(
            not isinstance(tensor, torch.Tensor) or not tensor.ndim for tensor in answers.values()
        ):
            raise RuntimeFailedError(
                f"the program takes {maximum} rows, but returns values without rows"
            )
        return answers

    return whole
