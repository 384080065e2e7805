"""Runtime of TFLite files on LiteRT, and the checks of their graphs.

A file is checked before LiteRT reads it: cyclic graph calls end its process, it allocates tensors
of any size, and its errors are hard to read. The signature is also read here. Schema:
https://github.com/google-ai-edge/LiteRT/blob/main/tflite/converter/schema/schema.fbs
"""

import logging
import math
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from headrace.core import (
    VARIABLE,
    Array,
    Datatype,
    ModelSignature,
    RuntimeFailedError,
    Tensors,
    TensorSpec,
    error_kind,
)
from headrace.runtimes.base import LoadOptions, Model
from headrace.runtimes.file_bytes import FlatbufferTable, visible_files
from headrace.runtimes.libraries import reason_of
from headrace.runtimes.probe import BatchProbe, probe_batch
from headrace.runtimes.rows.tflite import analyse_tflite
from headrace.runtimes.tables.tabular import (
    MAX_INPUT_BYTES,
    corrupt,
    import_library,
    read_all,
    read_head,
    refuse,
)

SUFFIX: Final = ".tflite"
_MAGIC: Final = b"TFL3"
_MAGIC_AT: Final = 4
DATATYPES: Final = {
    0: Datatype.FP32,
    1: Datatype.FP16,
    2: Datatype.INT32,
    3: Datatype.UINT8,
    4: Datatype.INT64,
    6: Datatype.BOOL,
    7: Datatype.INT16,
    9: Datatype.INT8,
    10: Datatype.FP64,
    12: Datatype.UINT64,
    15: Datatype.UINT32,
    16: Datatype.UINT16,
}
_STRING: Final = 5
_ASSIGN: Final = 144
_CALLS: Final = {
    31: (4, 0),
    118: (4, 0, 1),
    119: (4, 0, 1),
    129: (4, 0),
    200: (12, 0, 1),
    206: (12, 1),
}
"""Operators that run other graphs: the field of their options, and the fields of graph numbers in
those.
"""
_PLACEHOLDER: Final = 127
"""Value of the old one-byte field if the operator's number is in the new one."""
_MOST: Final = 500_000
_MAX_RANK: Final = 8
_MAX_TENSOR_BYTES: Final = 1 << 33
_DEFAULT: Final = "serving_default"


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSlot:
    """An input or output: its spec for callers, and the number of its tensor."""

    spec: TensorSpec
    tensor: int
    quantised: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TfliteFile:
    """Facts about a model that are needed before it is loaded; `data` is its content."""

    inputs: tuple[TensorSlot, ...]
    outputs: tuple[TensorSlot, ...]
    data: bytes


@dataclass(slots=True)
class _Tensor:
    """`is_ready`: whether it has a value before any operator runs."""

    table: FlatbufferTable
    shape: list[int]
    kind: int
    is_ready: bool


@dataclass(slots=True)
class _Read:
    """One pass over a file."""

    path: Path
    data: bytes
    left: int = _MOST
    codes: list[int] = field(default_factory=list)
    buffers: list[int] = field(default_factory=list)
    """Size of each buffer in bytes."""


def looks_like_tflite(path: Path) -> bool:
    """Whether `path` is a `.tflite` file with the right first bytes, or a directory with one."""
    if path.is_dir():
        models = visible_files(path, (SUFFIX,))
        return len(models) == 1 and _begins(models[0]) and not (path / "model.py").exists()
    return path.suffix.lower() == SUFFIX and _begins(path)


def find_tflite_file(path: Path) -> Path:
    """Return the file at `path`: itself, or the one in the directory.

    Raises:
        UnsupportedModelError: There is no file, or there are several.
    """
    if not path.is_dir():
        return path
    models = visible_files(path, (SUFFIX,))
    if len(models) != 1:
        raise refuse(path, f"holds {len(models)} {SUFFIX} files; exactly one is needed")
    return models[0]


def read_tflite(path: Path) -> TfliteFile:
    """Read and check a file.

    Raises:
        UnsupportedModelError: It is damaged, or not supported; the message says why.
    """
    if path.suffix.lower() != SUFFIX or not _begins(path):
        raise refuse(path, f"is not a TFLite file: it does not have {_MAGIC.decode()} at byte 4")
    read = _Read(path, read_all(path))
    try:
        root = FlatbufferTable.root(read.data)
        read.codes = [_code(code) for code in _tables(read, root, 1)]
        read.buffers = [_buffer(read, buffer) for buffer in _tables(read, root, 4)]
        graphs = list(_tables(read, root, 2))
        if not graphs:
            raise corrupt(read.path, "it has no graph")
        tensors, calls = [], []
        for graph in graphs:
            slots = [_tensor(read, table) for table in _tables(read, graph, 0)]
            calls.append(_check_operators(read, graph, slots, len(graphs)))
            tensors.append(slots)
        _check_calls(read.path, calls)
        # Inputs and outputs by the names in the model's signature, else by their tensors' names.
        signatures = list(_tables(read, root, 7))
        selected = next((entry for entry in signatures if entry.text(2) == _DEFAULT), None)
        if selected is None and len(signatures) == 1:
            selected = signatures[0]
        number = int(selected.number(4, "<I", 0)) if selected else 0
        graph, slots = graphs[number], tensors[number]
        if number:
            raise refuse(read.path, "its signature belongs to another graph than the first")
        codes = {read.codes[int(operator.number(0, "<I", 0))] for operator in graph.tables(3)}
        stateful = {_ASSIGN} & codes
        if stateful:
            raise refuse(read.path, "keeps state between callers: it assigns variables")
        inputs = _side(read, graph, slots, selected, 0)
        outputs = _side(read, graph, slots, selected, 1)
        return TfliteFile(inputs=inputs, outputs=outputs, data=read.data)
    except (ValueError, IndexError, struct.error, RecursionError, OverflowError) as error:
        raise corrupt(path, error_kind(error)) from None


def _begins(file: Path) -> bool:
    return read_head(file, _MAGIC_AT + len(_MAGIC))[_MAGIC_AT:] == _MAGIC


def _tables(read: _Read, table: FlatbufferTable, number: int) -> Iterator[FlatbufferTable]:
    read.left -= table.length(number)
    if read.left < 0:
        raise refuse(read.path, f"has more than {_MOST} tensors, operators and buffers")
    return table.tables(number)


def _code(table: FlatbufferTable) -> int:
    old = int(table.number(0, "<b", 0))
    return (
        int(table.number(3, "<i", 0))
        if old == _PLACEHOLDER
        else max(old, int(table.number(3, "<i", 0)))
    )


def _buffer(read: _Read, table: FlatbufferTable) -> int:
    """Return a buffer's size in bytes; buffers of large models follow the tables."""
    offset, size = int(table.number(1, "<Q", 0)), int(table.number(2, "<Q", 0))
    if offset > 1 and offset + size > len(read.data):
        raise corrupt(read.path, "a buffer ends beyond the file")
    if offset > 1:
        return size
    return len(table.array(0, "u1"))


def _tensor(read: _Read, table: FlatbufferTable) -> _Tensor:
    shape = table.array(0, "<i4").tolist()
    kind, buffer = int(table.number(1, "<b", 0)), int(table.number(2, "<I", 0))
    if len(shape) > _MAX_RANK or min(shape, default=0) < 0:
        raise corrupt(read.path, f"a tensor has the shape {shape[:_MAX_RANK]}")
    held = read.buffers[buffer]
    datatype = DATATYPES.get(kind)
    item_bytes = datatype.dtype.itemsize if datatype else 1
    size = math.prod(shape) * item_bytes
    if size > _MAX_TENSOR_BYTES:
        raise refuse(read.path, f"a tensor of the shape {shape} would take {size} bytes")
    is_sparse = table.table(6) is not None
    if held and datatype is not None and not is_sparse and held != size:
        raise corrupt(read.path, f"a tensor of {size} bytes holds {held}")
    is_variable = bool(table.number(5, "<b", 0))
    return _Tensor(table, shape, kind, is_ready=bool(held) or is_variable or size == 0)


def _check_operators(
    read: _Read, graph: FlatbufferTable, tensors: Sequence[_Tensor], graphs: int
) -> list[int]:
    """Check that operators' inputs exist and have values; return the called graphs."""
    ready = np.array([tensor.is_ready for tensor in tensors], bool)
    ready[_numbers(read, graph.array(1, "<i4"), len(tensors))] = True
    called: list[int] = []
    for operator in _tables(read, graph, 3):
        code = read.codes[int(operator.number(0, "<I", 0))]
        taken = operator.array(1, "<i4")
        taken = _numbers(read, taken[taken != -1], len(tensors))
        if not ready[taken].all():
            raise corrupt(read.path, "an operator has an input without a source")
        ready[_numbers(read, operator.array(2, "<i4"), len(tensors))] = True
        if code in _CALLS:
            options_field, *numbers = _CALLS[code]
            options = operator.table(options_field)
            called += [int(options.number(option, "<i", 0)) if options else 0 for option in numbers]
    if any(not 0 <= number < graphs for number in called):
        raise corrupt(read.path, "an operator calls an unknown graph")
    if not ready[_numbers(read, graph.array(2, "<i4"), len(tensors))].all():
        raise corrupt(read.path, "one of its outputs has no source")
    return called


def _numbers(read: _Read, numbers: Array, count: int) -> Array:
    if numbers.size and not (numbers.min() >= 0 and numbers.max() < count):
        raise corrupt(read.path, "it names an unknown tensor")
    return numbers


def _check_calls(path: Path, calls: Sequence[Sequence[int]]) -> None:
    """Refuse recursive graphs, which exhaust the stack."""
    waiting = [set(called) for called in calls]
    done: set[int] = set()
    while len(done) < len(waiting):
        free = {i for i, called in enumerate(waiting) if i not in done and called <= done}
        if not free:
            raise corrupt(path, "a graph calls itself")
        done |= free


def _side(
    read: _Read,
    graph: FlatbufferTable,
    tensors: Sequence[_Tensor],
    signature: FlatbufferTable | None,
    side: int,
) -> tuple[TensorSlot, ...]:
    """Return the inputs (0) or outputs (1)."""
    kind = ("input", "output")[side]
    listed = graph.array(side + 1, "<i4").tolist()
    named: dict[int, str] = {}
    if signature is not None:
        named = {int(entry.number(1, "<I", 0)): entry.text(0) for entry in signature.tables(side)}
        if not set(named) <= set(listed):
            raise corrupt(read.path, f"its signature names unknown {kind}s")
    slots = [_place(read, kind, tensors[index], index, named.get(index, "")) for index in listed]
    if not slots or len({slot.spec.name for slot in slots}) < len(slots):
        raise refuse(read.path, f"has no {kind}s, or two with the same name")
    return tuple(sorted(slots, key=lambda slot: slot.spec.name) if named else slots)


def _place(read: _Read, kind: str, tensor: _Tensor, number: int, name: str) -> TensorSlot:
    name = name or tensor.table.text(3) or f"{kind}_{number}"
    datatype = DATATYPES.get(tensor.kind)
    if datatype is None:
        description = "text" if tensor.kind == _STRING else f"of the type {tensor.kind}"
        raise refuse(read.path, f"{kind} '{name}' is {description}, which is not supported")
    declared_shape = tensor.table.array(7, "<i4").tolist() or tensor.shape
    if len(declared_shape) != len(tensor.shape):
        raise corrupt(read.path, f"{kind} '{name}' has two shapes")
    shape = tuple(size if size >= 0 else VARIABLE for size in declared_shape)
    if math.prod(size for size in shape if size > 0) * datatype.dtype.itemsize > MAX_INPUT_BYTES:
        raise refuse(read.path, f"{kind} '{name}' with shape {list(shape)} is too large to send")
    spec = TensorSpec(name=name, datatype=datatype, shape=shape)
    return TensorSlot(spec=spec, tensor=number, quantised=_quantised(tensor.table))


def _quantised(table: FlatbufferTable) -> str:
    """Return how integers represent numbers; empty if they do not."""
    scheme = table.table(4)
    scales: Mapping[int, float] = dict(enumerate(scheme.array(2, "<f4").tolist() if scheme else ()))
    if scheme is None or len(scales) != 1:
        return ""
    zeros = scheme.array(3, "<i8").tolist() or [0]
    return f"(value - {zeros[0]}) * {scales[0]:g}"


_MODULE: Final = "ai_edge_litert.interpreter"
_log = logging.getLogger(__name__)


class TfliteRuntime:
    """Loader of a `.tflite` file."""

    name = "tflite"
    runs_code = False
    libraries = ("ai_edge_litert",)
    extra = "tflite"

    def recognises(self, path: Path) -> bool:
        """Whether `path` looks like TFLite, by its name and first bytes."""
        return looks_like_tflite(path)

    def load(self, path: Path, options: LoadOptions) -> Model:
        """Load the model, for the CPU."""
        file = find_tflite_file(path)
        model_file = read_tflite(file)
        library = import_library(_MODULE, "tflite")
        try:
            model = TfliteModel(library.Interpreter, model_file, max(1, options.intra_op_threads))
        except Exception as error:
            # The binding's errors share no base class but Exception.
            raise refuse(file, f"LiteRT refuses it: {reason_of(error)}") from error
        probe, inputs = _probe(model, model_file, options.declared_by)
        if not probe.batched:
            _log.info("%s is served unbatched: %s", file.name, probe.reason)
        for slot in model_file.inputs + model_file.outputs:
            if slot.quantised:
                _log.info("%s: '%s' is quantised: %s", file.name, slot.spec.name, slot.quantised)
        model.signature = probe.signature(inputs)
        return model


@dataclass(slots=True)
class _Interpreter:
    """An interpreter, and the shapes for which its memory is allocated."""

    library: Any
    shapes: list[tuple[int, ...]]


class TfliteModel:
    """A loaded file. Thread-safe: each run uses a separate interpreter, which releases the GIL."""

    concurrent = True

    def __init__(self, make: Any, file: TfliteFile, threads: int) -> None:  # noqa: ANN401  # ships no types
        self._make: Any = make
        self._found = file
        self._threads = threads
        self._inputs = [(slot.spec.name, slot.tensor) for slot in file.inputs]
        self._outputs = {slot.spec.name: slot.tensor for slot in file.outputs}
        self._idle = [self._new()]
        self.signature = ModelSignature(
            inputs=tuple(slot.spec for slot in file.inputs),
            outputs=tuple(slot.spec for slot in file.outputs),
            batched=False,
        )

    def run(self, inputs: Tensors, outputs: Sequence[str] | None = None) -> Tensors:
        """Run one batch; an interpreter that failed is discarded."""
        if self._make is None:
            raise RuntimeFailedError("the model is closed")
        try:
            interpreter = self._take()
            shapes = [inputs[name].shape for name, _ in self._inputs]
            if shapes != interpreter.shapes:
                for (_, tensor), shape in zip(self._inputs, shapes, strict=True):
                    interpreter.library.resize_tensor_input(tensor, shape)
                interpreter.library.allocate_tensors()
                interpreter.shapes = shapes
            interpreter.library.reset_all_variables()  # no state passes between callers
            for name, tensor in self._inputs:
                interpreter.library.set_tensor(tensor, inputs[name])
            interpreter.library.invoke()
            answers = {
                name: interpreter.library.get_tensor(self._outputs[name])
                for name in outputs or self._outputs
            }
        except Exception as error:
            # The binding raises RuntimeError and ValueError for everything.
            raise RuntimeFailedError(f"the model failed: {reason_of(error)}") from error
        self._idle.append(interpreter)
        return answers

    def close(self) -> None:
        """Free the interpreters; may be called again."""
        self._make = None
        self._idle.clear()

    def _take(self) -> _Interpreter:
        try:
            return self._idle.pop()  # `pop` is atomic
        except IndexError:
            return self._new()

    def _new(self) -> _Interpreter:
        interpreter = self._make(model_content=self._found.data, num_threads=self._threads)
        interpreter.allocate_tensors()
        return _Interpreter(interpreter, [])


def _probe(
    model: TfliteModel, file: TfliteFile, declared_by: str
) -> tuple[BatchProbe, tuple[TensorSpec, ...]]:
    """Return whether axis 0 is the batch, and the resulting inputs.

    Converters fix the batch at one row by default; most such models accept any number.
    """
    declared = model.signature

    def probed(inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]) -> BatchProbe:
        sides = ((file.inputs, inputs), (file.outputs, outputs))
        named = [
            {slot.tensor: spec for slot, spec in zip(slots, specs, strict=True)}
            for slots, specs in sides
        ]
        return probe_batch(
            model.run,
            inputs,
            outputs,
            analyse=lambda: analyse_tflite(file.data, *named),
            declared=declared_by,
        )

    fixed = probed(declared.inputs, declared.outputs)
    every = (*declared.inputs, *declared.outputs)
    if not all(spec.shape[:1] == (1,) for spec in every):
        return fixed, declared.inputs
    inputs, outputs = (
        tuple(replace(spec, shape=(VARIABLE, *spec.shape[1:])) for spec in specs)
        for specs in (declared.inputs, declared.outputs)
    )
    probe = probed(inputs, outputs)
    if probe.batched and probe.variable is not None:
        return probe, inputs
    reason = probe.reason if probe.variable is not None else fixed.reason
    return replace(fixed, row_independence=probe.row_independence, reason=reason), declared.inputs
