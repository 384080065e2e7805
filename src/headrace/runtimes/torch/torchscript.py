"""Runtime of TorchScript: modules that `torch.jit.save` wrote.

**Scripted code is a program.** It runs while the file is loaded (`__setstate__`), and it can write
any file (`aten::save`) and read any (`aten::from_file`): use only files from people you trust.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from headrace.core import VARIABLE, Datatype, ModelSignature, TensorSpec
from headrace.runtimes.base import LoadOptions, Model
from headrace.runtimes.rows.torchscript import analyse_torchscript
from headrace.runtimes.tables.tabular import refuse
from headrace.runtimes.torch.archive import (
    ArchiveKind,
    Traced,
    check_records,
    dtype_of,
    find_torch_file,
    read_traced,
    require_torch_file,
)
from headrace.runtimes.torch.module import (
    Program,
    TorchModel,
    choose_device,
    import_torch,
    quiet,
    reason_of_torch,
)
from headrace.runtimes.torch.signature import (
    Declared,
    how_to_declare,
    match_names,
    open_proved,
    read_declared,
    runs,
)

_TENSORS: Final = ("Tensor", "Optional[Tensor]")
_NUMBERS: Final = {
    "int": Datatype.INT64,
    "float": Datatype.FP64,
    "bool": Datatype.BOOL,
}
_SERVED: Final = {kind.dtype: kind for kind in Datatype if kind is not Datatype.BYTES}
_TRACED_ROWS: Final = (1, 2, 3)
_CHANGES: Final = ("prim::SetAttr", "prim::CallMethod", "prim::fork", "prim::awaitable")
"""Nodes that change the module, or call functions that the graph does not show."""
_HOLDS_TENSORS: Final = re.compile(r"(List|Dict|Tuple|Optional)\[.*Tensor")
_WAYS: Final = "declare it in 'inputs', or set it in 'values' if it is constant"
_WRAP: Final = "a request cannot carry it: save a module that takes tensors and calls this one"


class TorchScriptRuntime:
    """Loader of the files of `torch.jit.save`, or a directory with one and `signature.json`."""

    name = "torchscript"
    runs_code = True
    libraries = ("torch",)
    extra = "torch"

    def recognises(self, path: Path) -> bool:
        """Whether `path` looks like TorchScript, by the names in the archive."""
        return find_torch_file(path, ArchiveKind.SCRIPT) is not None

    def load(self, path: Path, options: LoadOptions) -> Model:
        """Load the module; on CUDA if it is available and `options` allows it. Runs its code."""
        file = require_torch_file(path, ArchiveKind.SCRIPT)
        torch, _ = import_torch()
        check_records(file)
        declared = read_declared(path, file)
        device = choose_device(torch, options.device)
        with quiet():
            try:
                module = torch.jit.load(str(file), map_location=device).eval()
            except Exception as error:
                # The reader's errors share no base class but Exception.
                raise refuse(file, f"PyTorch cannot load it: {reason_of_torch(error)}") from error
            method = _method(path, module, declared.method)
            keeps_state, writes_inputs = _what_runs_change(torch, module, declared.method)
        arguments = _arguments(path, method, declared)
        traced = read_traced(file).get(declared.method, ())

        def program(specs: Mapping[str, TensorSpec]) -> Program:
            # Calling the method with a request's tensors
            tensors = [
                (a.name, specs[a.name].name)
                for a in arguments
                if a.name in specs and a.kind in _TENSORS
            ]
            numbers = [
                (a.name, specs[a.name].name)
                for a in arguments
                if a.name in specs and a.kind in _NUMBERS
            ]

            def call(tensors_by_name: Mapping[str, Any]) -> object:
                arguments_by_name = {argument: tensors_by_name[name] for argument, name in tensors}
                arguments_by_name |= {
                    argument: tensors_by_name[name].item() for argument, name in numbers
                }
                return method(**arguments_by_name, **declared.values)

            return Program(
                call=call,
                inputs=tuple(specs.values()),
                casts={},
                device=device,
                keeps_state=keeps_state,
                writes_inputs=writes_inputs,
                loaded=module,
            )

        if declared.inputs:
            specs = _declared_specs(path, arguments, declared)
        else:
            specs = _traced_specs(path, arguments, traced)
            by_row = {
                name: (replace(spec, shape=(VARIABLE, *spec.shape[1:])) if spec.shape else spec)
                for name, spec in specs.items()
            }
            trial = TorchModel(
                program(by_row),
                ModelSignature(inputs=tuple(by_row.values()), outputs=(), batched=False),
                options.intra_op_threads,
            )
            if runs(trial.run, tuple(by_row.values()), _TRACED_ROWS):
                specs = by_row
        return open_proved(
            path,
            program(specs),
            declared,
            options=options,
            analyse=lambda: analyse_torchscript(file, declared.method, specs, declared.values),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Argument:
    """One argument of a method: `kind` is TorchScript's name of its type."""

    name: str
    kind: str
    optional: bool


def _method(path: Path, module: Any, name: str) -> Any:
    names = module._c._method_names()  # noqa: SLF001  # no public name lists them
    if name not in names:
        raise refuse(path, f"has no method '{name}'; it has {', '.join(names) or 'none'}")
    return getattr(module, name)


def _what_runs_change(torch: Any, module: Any, method: str) -> tuple[bool, bool]:
    """Return whether a run may change the module, and whether its inputs, by its graph.

    The graph is a frozen copy's, without training-only effects such as counting batches.
    """
    try:
        preserved = [] if method == "forward" else [method]
        frozen = torch.jit.freeze(module, preserved_attrs=preserved, optimize_numerics=False)
        graph = (frozen if method == "forward" else getattr(frozen, method)).inlined_graph
    except RuntimeError:
        return True, True  # unknown
    aliases = graph.alias_db()
    itself, *inputs = graph.inputs()
    nodes = (*graph.findAllNodes("prim::GetAttr"), *graph.findAllNodes("prim::Constant"))
    held = [itself, *(node.output() for node in nodes)]
    writes_inputs = any(aliases.has_writers(value) for value in inputs)
    keeps_state = any(graph.findAllNodes(kind) for kind in _CHANGES) or any(
        # Values from a list or dict may alias any value, so a write to them may be to an input.
        aliases.has_writers(value) or (writes_inputs and _HOLDS_TENSORS.match(str(value.type())))
        for value in held
    )
    return keeps_state, writes_inputs


def _arguments(path: Path, method: Any, declared: Declared) -> list[_Argument]:
    """Return the arguments of a method, without constant ones."""
    every = [
        _Argument(
            name=argument.name,
            kind=str(argument.type),
            optional=argument.has_default_value(),
        )
        for argument in method.schema.arguments[1:]
    ]
    names = [argument.name for argument in every]
    for name in declared.values:
        if name not in names:
            raise refuse(path, f"'values' names '{name}', but the module has {', '.join(names)}")
    return [argument for argument in every if argument.name not in declared.values]


def _declared_specs(
    path: Path, arguments: Sequence[_Argument], declared: Declared
) -> dict[str, TensorSpec]:
    """Return the inputs that a request needs, by argument."""
    specs = match_names(path, declared.inputs, [arg.name for arg in arguments])
    for argument in arguments:
        spec = specs.get(argument.name)
        if spec is None and not argument.optional:
            msg = f"its argument '{argument.name}' ({argument.kind}) is not declared; {_WAYS}"
            raise refuse(path, msg)
        if spec is not None:
            _check_kind(path, argument, spec)
    return {arg.name: specs[arg.name] for arg in arguments if arg.name in specs}


def _check_kind(path: Path, argument: _Argument, spec: TensorSpec) -> None:
    if argument.kind in _TENSORS:
        return
    number = _NUMBERS.get(argument.kind)
    if number is None:
        raise refuse(path, f"its argument '{argument.name}' is a {argument.kind}; {_WRAP}")
    if spec.datatype is not number or spec.shape:
        raise refuse(
            path,
            f"its argument '{argument.name}' is one {argument.kind}, so '{spec.name}' must be "
            f'declared with "datatype": "{number}", "shape": []',
        )


def _traced_specs(
    path: Path,
    arguments: Sequence[_Argument],
    traced: Sequence[Traced | None],
) -> dict[str, TensorSpec]:
    """Return the traced inputs by argument; numbers keep their types."""
    specs = {}
    for i, argument in enumerate(arguments):
        example = traced[i] if i < len(traced) else None
        number = _NUMBERS.get(argument.kind)
        dtype = None if example is None else dtype_of(example.storage)
        if argument.kind == "Tensor" and example is not None and dtype in _SERVED:
            specs[argument.name] = TensorSpec(
                name=argument.name, datatype=_SERVED[dtype], shape=example.shape
            )
        elif number is not None and not argument.optional:
            specs[argument.name] = TensorSpec(name=argument.name, datatype=number, shape=())
        elif not argument.optional:
            if argument.kind not in _TENSORS:
                raise refuse(path, f"its argument '{argument.name}' is a {argument.kind}; {_WRAP}")
            names = [a.name for a in arguments if a.kind in _TENSORS]
            raise refuse(
                path,
                f"TorchScript does not store which datatype and shape '{argument.name}' has:"
                f" {how_to_declare(names)}",
            )
    return specs
