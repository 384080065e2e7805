"""Signature of a PyTorch module, from its file or from an analysis of its graph.

`signature.json` is an extra file in the archive or beside it in a directory, and has the form of
the protocol's metadata:

    {"inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}]}

Without one, a `config.pbtxt` in Triton's layout is read, which is beside the numbered directory of
the file: Triton requires it for every TorchScript file.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import msgspec

from headrace.core import (
    VARIABLE,
    Datatype,
    HeadraceError,
    InvalidArgumentError,
    ModelSignature,
    RowIndependence,
    Tensors,
    TensorSpec,
    check_name,
    datatype_of,
    error_kind,
    example_inputs,
    pbtxt,
)
from headrace.core.error_kind import UNDECODABLE
from headrace.core.pbtxt import Message
from headrace.runtimes.base import LoadOptions
from headrace.runtimes.probe import VARIABLE_SIZES, difference_ratio, probe_batch
from headrace.runtimes.rows.values import RowVerdict
from headrace.runtimes.tables.tabular import refuse
from headrace.runtimes.torch.archive import MAX_TEXT_BYTES, SIGNATURE_NAME, read_record
from headrace.runtimes.torch.module import Program, TorchModel, import_torch

Value = bool | int | float | str
CONFIG_NAME: Final = "config.pbtxt"
_TYPES: Final = {f"TYPE_{kind}": kind for kind in Datatype if kind is not Datatype.BYTES} | {
    "TYPE_BF16": Datatype.FP32
}
_MAX_RANK: Final = 64
_HOW: Final = (
    f"write it to {SIGNATURE_NAME} beside the file, in a directory of their own, or save it with "
    f'torch.jit.save(module, "model.pt", _extra_files={{"{SIGNATURE_NAME}": TEXT}})'
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Declared:
    """Signature that the model's author declared."""

    inputs: tuple[TensorSpec, ...] = ()
    """Declared inputs; empty if the file declares them itself."""
    outputs: tuple[TensorSpec, ...] = ()
    """Declared outputs; empty to use the model's names."""
    batched: bool | None = None
    """Whether axis 0 is the batch; None to detect it."""
    takes_batches: bool = False
    """Whether a Triton configuration has a `max_batch_size`."""
    method: str = "forward"
    """Method of the module that is called."""
    values: Mapping[str, Value] = field(default_factory=dict)
    """Values of constant arguments."""


class _Tensor(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    datatype: str
    shape: tuple[int, ...]


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    inputs: tuple[_Tensor, ...] = ()
    outputs: tuple[_Tensor, ...] = ()
    batched: bool | None = None
    method: str = "forward"
    values: dict[str, Value] = {}


def read_declared(path: Path, file: Path) -> Declared:
    """Return the declaration for the model `file` at `path`.

    A file beside it comes first, then one in the archive, then Triton's configuration.

    Raises:
        UnsupportedModelError: It is invalid; the message says where and why.
    """
    signature_file = path / SIGNATURE_NAME
    if path.is_dir() and signature_file.is_file():
        if signature_file.stat().st_size > MAX_TEXT_BYTES:
            raise refuse(signature_file, f"has more than {MAX_TEXT_BYTES} bytes")
        return parse_declared(signature_file, signature_file.read_bytes())
    inside = read_record(file, f"extra/{SIGNATURE_NAME}")
    if inside is not None:
        return parse_declared(file / "extra" / SIGNATURE_NAME, inside)
    config = find_config(path)
    if config is None:
        return Declared()
    inputs, outputs, takes_batches = read_config(config)
    return Declared(inputs=inputs, outputs=outputs, takes_batches=takes_batches)


def parse_declared(origin: Path, data: bytes) -> Declared:
    """Return the declaration in the text of a `signature.json`.

    Args:
        origin: Location of the text, for messages.

    Raises:
        UnsupportedModelError: It is invalid.
    """
    try:
        file = msgspec.json.decode(data, type=_File)
    except UNDECODABLE as error:
        raise refuse(
            origin, f"is not a valid signature: {error_kind(error)}; write it as {_example(('x',))}"
        ) from None
    for kind, specs in (("inputs", file.inputs), ("outputs", file.outputs)):
        if len({spec.name for spec in specs}) < len(specs):
            raise refuse(origin, f"names one of its {kind} twice")
    return Declared(
        inputs=tuple(_spec(origin, "inputs", spec) for spec in file.inputs),
        outputs=tuple(_spec(origin, "outputs", spec) for spec in file.outputs),
        batched=file.batched,
        method=file.method,
        values=file.values,
    )


def how_to_declare(names: Sequence[str]) -> str:
    """Return an example declaration for a module that does not declare its inputs.

    Args:
        names: Of the tensors that it takes.
    """
    return (
        f"{_HOW}, where TEXT is for instance {_example(names)}; -1 is a size that a request chooses"
    )


def match_names(
    path: Path, declared: Sequence[TensorSpec], names: Sequence[str]
) -> Mapping[str, TensorSpec]:
    """Return the declared tensor for each name of the module.

    Names that the module uses match by name; `INPUT__0`, Triton's notation, matches by number;
    other names match by order.

    Raises:
        UnsupportedModelError: Only some names match, or there are too many.
    """
    matching = [spec for spec in declared if spec.name in names]
    if len(matching) == len(declared):
        return {spec.name: spec for spec in declared}
    numbers = [_number(spec.name) for spec in declared]
    own = ", ".join(f"'{name}'" for name in names) or "nothing"
    if matching or len(declared) > len(names):
        unknown = next(spec.name for spec in declared if spec.name not in names)
        raise refuse(path, f"'{unknown}' is declared, but the module has {own}")
    if None in numbers:
        return dict(zip(names, declared, strict=False))
    matched: dict[str, TensorSpec] = {}
    for spec, number in zip(declared, numbers, strict=True):
        assert number is not None, "looked for above"
        if number >= len(names) or names[number] in matched:
            raise refuse(path, f"'{spec.name}' is declared, but the module has {own}")
        matched[names[number]] = spec
    return matched


def _number(name: str) -> int | None:
    """Return 2 for `INPUT__2`."""
    end = name.rpartition("__")[2]
    return int(end) if "__" in name and end.isascii() and end.isdigit() and len(end) < 4 else None  # noqa: PLR2004  # no count is that large


def _example(names: Sequence[str]) -> str:
    tensors = [{"name": name, "datatype": "FP32", "shape": [VARIABLE, 4]} for name in names]
    return msgspec.json.format(msgspec.json.encode({"inputs": tensors}), indent=0).decode()


def _spec(origin: Path, kind: str, tensor: _Tensor) -> TensorSpec:
    location = f"{kind}: '{tensor.name}'"
    try:
        name = check_name(tensor.name, kind="tensor")
    except HeadraceError:
        raise refuse(origin, f"{kind}: a name is not allowed for a tensor") from None
    if tensor.datatype not in set(Datatype) - {Datatype.BYTES}:
        served = ", ".join(kind for kind in Datatype if kind is not Datatype.BYTES)
        raise refuse(origin, f"{location} has an unsupported datatype; use one of {served}")
    if any(size < VARIABLE for size in tensor.shape) or len(tensor.shape) > _MAX_RANK:
        raise refuse(
            origin,
            f"{location} has the shape {list(tensor.shape)}; use sizes, and -1 for what a request "
            "chooses",
        )
    return TensorSpec(name=name, datatype=Datatype(tensor.datatype), shape=tensor.shape)


def find_config(path: Path) -> Path | None:
    """Return the Triton configuration of the model at `path`: in its directory or its parent."""
    directory = path if path.is_dir() else path.parent
    candidates = [directory / CONFIG_NAME] if path.is_dir() else []
    if directory.name.isdecimal():
        candidates.append(directory.parent / CONFIG_NAME)
    return next((file for file in candidates if file.is_file()), None)


def read_config(file: Path) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...], bool]:
    """Return the inputs and outputs of a configuration, and whether it takes batches.

    They are empty if it omits them.

    Raises:
        UnsupportedModelError: It cannot be read, or names a tensor that cannot be served.
    """
    try:
        if file.stat().st_size > MAX_TEXT_BYTES:
            raise refuse(file, f"has more than {MAX_TEXT_BYTES} bytes")
        text = file.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise refuse(file, error.strerror or str(error)) from error
    try:
        config = pbtxt.parse_message(text)
        batch = (VARIABLE,) if pbtxt.count(config, "max_batch_size") else ()
    except InvalidArgumentError as error:
        raise refuse(file, str(error)) from error
    return (
        tuple(_configured_spec(file, batch, tensor) for tensor in config.get("input", ())),
        tuple(_configured_spec(file, batch, tensor) for tensor in config.get("output", ())),
        bool(batch),
    )


def _configured_spec(file: Path, batch: tuple[int, ...], tensor: str | Message) -> TensorSpec:
    if isinstance(tensor, str):
        raise refuse(file, "has a value where a tensor is expected")
    name, kind = pbtxt.text(tensor, "name"), pbtxt.text(tensor, "data_type")
    if kind not in _TYPES:
        raise refuse(file, f"declares no supported type for '{name}'")
    try:
        dims = tuple(int(size) for size in tensor.get("dims", ()) if isinstance(size, str))
    except ValueError:
        dims = (VARIABLE - 1,)
    if not name or any(size < VARIABLE for size in dims):
        raise refuse(file, f"declares no name, or no sizes as 'dims', for '{name}'")
    return TensorSpec(name=name, datatype=_TYPES[kind], shape=(*batch, *dims))


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
    analyse: Callable[[], RowVerdict],
) -> TorchModel:
    """Return the model of `program`, with a signature verified by running it.

    If it does not run on generated inputs, the declaration is used without verification.

    Args:
        analyse: Returns the verdict on the rows of its graph.

    Raises:
        UnsupportedModelError: It does not run, or contradicts the declaration.
    """
    inputs_only = ModelSignature(inputs=program.inputs, outputs=(), batched=False)
    model = TorchModel(program, inputs_only, options.intra_op_threads)
    observed = _find_outputs(path, model.run, program.inputs, declared)
    outputs = declared.outputs
    if observed:
        outputs, model.names = _renamed(path, observed, declared)
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
    """Whether a model runs on generated inputs with each of these sizes of axis 0."""
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
    """Return the outputs of two runs of different sizes; sizes that differ are variable.

    None if it does not run, and its outputs are declared.
    """
    size, first, reason = _first_answers(run, inputs, rows=2, sizes=VARIABLE_SIZES)
    if first is None:
        if declared.outputs:
            return ()
        raise refuse(
            path,
            f"does not run on generated inputs, so its outputs are unknown: {reason}; check "
            "the declared shapes and datatypes, or declare its outputs too",
        )
    others = [other for other in VARIABLE_SIZES if other != size]
    _, second, _ = _first_answers(run, inputs, rows=_OTHERS_ROWS, sizes=others)
    return tuple(_observed_spec(path, name, first, second) for name in first)


def _first_answers(
    run: Run, inputs: tuple[TensorSpec, ...], *, rows: int, sizes: Sequence[int]
) -> tuple[int, Tensors | None, str]:
    """Return the first of `sizes` for variable dimensions that runs, the outputs and the error."""
    by_row = all(spec.shape[:1] == (VARIABLE,) for spec in inputs)
    signature = ModelSignature(inputs=inputs, outputs=(), batched=by_row)
    reason = ""
    for size in sizes:
        try:
            return size, run(example_inputs(signature, rows=rows, variable=size)), ""
        except HeadraceError as error:
            reason = reason or str(error)
    return 0, None, reason


def _observed_spec(path: Path, name: str, first: Tensors, second: Tensors | None) -> TensorSpec:
    shape = first[name].shape
    if second is None or name not in second or len(second[name].shape) != len(shape):
        sizes = (VARIABLE,) * len(shape)
    else:
        pairs = zip(shape, second[name].shape, strict=True)
        sizes = tuple(size if size == other else VARIABLE for size, other in pairs)
    datatype = datatype_of(first[name].dtype)
    if datatype is Datatype.BYTES:
        raise refuse(path, f"returns '{name}' as {first[name].dtype}")
    return TensorSpec(name=name, datatype=datatype, shape=sizes)


def _renamed(
    path: Path, observed: Sequence[TensorSpec], declared: Declared
) -> tuple[tuple[TensorSpec, ...], dict[str, str]]:
    """Return the outputs under callers' names, and those names by the module's own."""
    own = [spec.name for spec in observed]
    if not declared.outputs:
        return tuple(observed), {name: name for name in own}
    declared_by_name = match_names(path, declared.outputs, own)
    for spec in observed:
        declared_spec = declared_by_name.get(spec.name)
        if declared_spec is not None and declared_spec.datatype is not spec.datatype:
            raise refuse(
                path,
                f"declares output '{declared_spec.name}' as {declared_spec.datatype}, but "
                f"returns {spec.datatype}",
            )
    names = {
        name: declared_by_name[name].name if name in declared_by_name else name for name in own
    }
    return tuple(replace(spec, name=names[spec.name]) for spec in observed), names


def _check_history(path: Path, run: Run, inputs: tuple[TensorSpec, ...]) -> None:
    """Refuse a model whose outputs depend on earlier requests, which may come from other callers.

    A model that changes its state during a run is harmless if every run resets the state.
    """
    torch, _ = import_torch()

    def answers() -> Tensors | None:
        with torch.random.fork_rng():
            torch.manual_seed(0)  # random sampling is not a memory of earlier requests
            return _first_answers(run, inputs, rows=2, sizes=VARIABLE_SIZES)[1]

    tries = [answers() for _ in range(_OTHERS_ROWS)]
    first = tries[0]
    for other in tries[1:]:
        if first is None or other is None:
            raise refuse(
                path,
                "changes its own state while it runs, and does not run on generated inputs,"
                " so callers might receive parts of each other's results",
            )
        if any(_differs(other.get(name), expected) for name, expected in first.items()):
            raise refuse(
                path,
                "keeps state between requests, so callers would receive parts of each "
                "other's results; pass its state as an input and an output, or name a "
                "method that resets it",
            )


def _differs(actual: Any, expected: Any) -> bool:
    return actual is None or difference_ratio(actual, expected) > _SAME
