"""Outputs of a module and whether axis 0 is the batch, from an analysis and a few runs."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from headrace.core import (
    VARIABLE,
    Datatype,
    HeadraceError,
    ModelSignature,
    RowIndependence,
    Tensors,
    TensorSpec,
    datatype_of,
    example_inputs,
)
from headrace.runtimes.base import LoadOptions
from headrace.runtimes.probe import VARIABLE_SIZES, difference_ratio, probe_batch
from headrace.runtimes.rows.values import Verdict
from headrace.runtimes.tabular import refuse
from headrace.runtimes.torch_model import Program, TorchModel, import_torch
from headrace.runtimes.torch_signature import Declared, match_names

Run = Callable[[Tensors], Tensors]
_SAME: Final = 1e-6
_OTHERS_ROWS: Final = 3

_log = logging.getLogger(__name__)


def open_proved(
    path: Path,
    program: Program,
    declared: Declared,
    *,
    options: LoadOptions,
    analyse: Callable[[], Verdict],
) -> TorchModel:
    """The model of `program`, with a signature that running it has shown.

    Where it does not run on made-up inputs, what was declared is believed.

    Args:
        analyse: Returns the verdict on the rows of its graph.

    Raises:
        UnsupportedModelError: It does not run, or not as was declared.
    """
    bare = ModelSignature(inputs=program.inputs, outputs=(), batched=False)
    model = TorchModel(program, bare, options.intra_op_threads)
    seen = _find_outputs(path, model.run, program.inputs, declared)
    outputs = declared.outputs
    if seen:
        outputs, model.names = _renamed(path, seen, declared)
    if program.keeps_state:
        _check_history(path, model.run, program.inputs)
    author = "config.pbtxt" if declared.takes_batches else ""
    author = "signature.json" if declared.batched else author
    probe = probe_batch(
        model.run,
        program.inputs,
        outputs,
        analyse=analyse,
        declared=options.declared_by or author,
    )
    if declared.batched and (probe.difference or not probe.batched):
        raise refuse(path, f"'batched' is declared, but {probe.difference or probe.reason}")
    is_contradicted = probe.difference and not options.rows_independent
    batched = probe.batched and declared.batched is not False and not is_contradicted
    if probe.variable is None or not batched:
        _log.info(
            "%s is served %s: %s", path.name, "batched" if batched else "unbatched", probe.reason
        )
    signature = replace(probe.signature(program.inputs), batched=batched)
    if is_contradicted:
        signature = replace(
            signature, row_independence=RowIndependence.REFUTED, row_reason=probe.difference
        )
    model.signature = signature
    return model


def runs(run: Run, inputs: tuple[TensorSpec, ...], rows: Sequence[int]) -> bool:
    """Whether a model runs on made-up inputs with each of these sizes of axis 0."""
    signature = ModelSignature(inputs=inputs, outputs=(), batched=True)
    try:
        for size in rows:
            run(example_inputs(signature, rows=size, variable=VARIABLE_SIZES[0]))
    except HeadraceError:
        return False
    return True


def _find_outputs(
    path: Path, run: Run, inputs: tuple[TensorSpec, ...], declared: Declared
) -> tuple[TensorSpec, ...]:
    """The outputs of two runs of different sizes: what differs between them is variable.

    None if it does not run, and its outputs are declared.
    """
    size, first, reason = _first_answers(run, inputs, rows=2, sizes=VARIABLE_SIZES)
    if first is None:
        if declared.outputs:
            return ()
        raise refuse(
            path,
            f"does not run on made-up inputs, so that nobody knows what it gives: {reason}; check "
            "the declared shapes and datatypes, or declare its outputs too",
        )
    others = [other for other in VARIABLE_SIZES if other != size]
    _, second, _ = _first_answers(run, inputs, rows=_OTHERS_ROWS, sizes=others)
    return tuple(_spec(path, name, first, second) for name in first)


def _first_answers(
    run: Run, inputs: tuple[TensorSpec, ...], *, rows: int, sizes: Sequence[int]
) -> tuple[int, Tensors | None, str]:
    """The first of `sizes` for variable dimensions that the model runs with, and its answers."""
    by_row = all(spec.shape[:1] == (VARIABLE,) for spec in inputs)
    signature = ModelSignature(inputs=inputs, outputs=(), batched=by_row)
    reason = ""
    for size in sizes:
        try:
            return size, run(example_inputs(signature, rows=rows, variable=size)), ""
        except HeadraceError as error:
            reason = reason or str(error)
    return 0, None, reason


def _spec(path: Path, name: str, first: Tensors, second: Tensors | None) -> TensorSpec:
    shape = first[name].shape
    if second is None or name not in second or len(second[name].shape) != len(shape):
        found = (VARIABLE,) * len(shape)
    else:
        pairs = zip(shape, second[name].shape, strict=True)
        found = tuple(size if size == other else VARIABLE for size, other in pairs)
    datatype = datatype_of(first[name].dtype)
    if datatype is Datatype.BYTES:
        raise refuse(path, f"gives '{name}' as {first[name].dtype}")
    return TensorSpec(name=name, datatype=datatype, shape=found)


def _renamed(
    path: Path, seen: Sequence[TensorSpec], declared: Declared
) -> tuple[tuple[TensorSpec, ...], dict[str, str]]:
    """The outputs by the names that callers use, and those by the module's own."""
    own = [spec.name for spec in seen]
    if not declared.outputs:
        return tuple(seen), {name: name for name in own}
    wanted = match_names(path, declared.outputs, own)
    for spec in seen:
        said = wanted.get(spec.name)
        if said is not None and said.datatype is not spec.datatype:
            raise refuse(
                path, f"declares output '{said.name}' as {said.datatype}, but gives {spec.datatype}"
            )
    names = {name: wanted[name].name if name in wanted else name for name in own}
    return tuple(replace(spec, name=names[spec.name]) for spec in seen), names


def _check_history(path: Path, run: Run, inputs: tuple[TensorSpec, ...]) -> None:
    """Refuse a model whose answers tell what was asked before: of other callers, when it is served.

    It changes itself while it runs; that is harmless where every run begins anew.
    """
    torch, _ = import_torch()

    def answers() -> Tensors | None:
        with torch.random.fork_rng():
            torch.manual_seed(0)  # a model that draws at random remembers nothing by that
            return _first_answers(run, inputs, rows=2, sizes=VARIABLE_SIZES)[1]

    tries = [answers() for _ in range(_OTHERS_ROWS)]
    first = tries[0]
    for other in tries[1:]:
        if first is None or other is None:
            raise refuse(
                path,
                "changes itself while it runs, and does not run on made-up inputs, so that nobody "
                "knows whether callers would get parts of each other's answers",
            )
        if any(_differs(other.get(name), want) for name, want in first.items()):
            raise refuse(
                path,
                "remembers what it was asked before, so that callers would get parts of each "
                "other's answers; let it take its state as an input and give it as an output, or "
                "name a method that begins anew",
            )


def _differs(got: Any, want: Any) -> bool:
    return got is None or difference_ratio(got, want) > _SAME
