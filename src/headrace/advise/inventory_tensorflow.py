"""What do a SavedModel and a TFLite file say of themselves?"""

from collections import Counter
from pathlib import Path
from typing import Final

from headrace.advise.inventory_model import Details, Problem, TensorInfo, Trouble, problem
from headrace.runtimes.file_bytes import (
    BrokenFileError,
    Field,
    Source,
    fields,
    inside,
    signed,
    text,
)
from headrace.runtimes.savedmodel_file import variables_problem
from headrace.runtimes.savedmodel_graph import unsafe_in

_TYPES: Final = {
    1: "FP32",
    2: "FP64",
    3: "INT32",
    4: "UINT8",
    5: "INT16",
    6: "INT8",
    7: "BYTES",
    9: "INT64",
    10: "BOOL",
    14: "BF16",
    17: "UINT16",
    19: "FP16",
    22: "UINT32",
    23: "UINT64",
}
_LITE_TYPES: Final = {
    0: "FP32",
    1: "FP16",
    2: "INT32",
    3: "UINT8",
    4: "INT64",
    5: "BYTES",
    6: "BOOL",
    7: "INT16",
    8: "COMPLEX64",
    9: "INT8",
    10: "FP64",
    12: "UINT64",
    15: "UINT32",
    16: "UINT16",
    17: "INT4",
    18: "BF16",
}
_CODE: Final = frozenset({"PyFunc", "EagerPyFunc", "PyFuncStateless"})
_MOST_NODES: Final = 500_000
_MOST_TABLES: Final = 200_000
_MOST_SHOWN: Final = 64


def looks_like_saved_model(source: Source) -> bool:
    """Whether the file is a `SavedModel`: its version, and graphs."""
    if source.head(3) not in {b"\x08\x01\x12", b"\x08\x00\x12"}:
        return False
    seen = {one.number for one in fields(source)}
    return seen == {1, 2}


def saved_model_details(source: Source, folder: Path) -> Details:
    """The serving signature of a SavedModel, and what its graph may do.

    Raises:
        BrokenFileError: It is damaged.
    """
    signatures: dict[str, tuple[tuple[TensorInfo, ...], tuple[TensorInfo, ...]]] = {}
    version, tags = "", []
    operators: Counter[str] = Counter()
    for graph in (one for one in fields(source) if one.number == 2):  # noqa: PLR2004  # meta_graphs
        for part in inside(source, graph):
            if part.number == 1:
                for item in inside(source, part):
                    if item.number == 4:  # noqa: PLR2004  # MetaInfoDef.tags
                        tags.append(text(source, item))
                    elif item.number == 5:  # noqa: PLR2004  # tensorflow_version
                        version = text(source, item)
            elif part.number == 2:  # noqa: PLR2004  # graph_def
                operators.update(_operators(source, part))
            elif part.number == 5:  # noqa: PLR2004  # signature_def
                name, found = _signature(source, part)
                signatures[name] = found
    chosen = signatures.get("serving_default") or next(iter(signatures.values()), ((), ()))
    return Details(
        inputs=chosen[0],
        outputs=chosen[1],
        producer=f"tensorflow {version}" if version else "",
        notes={"tags": ", ".join(tags[:8]), "signatures": ", ".join(sorted(signatures)[:16])},
        problems=(*_graph_problems(operators), *_variable_problems(folder)),
    )


def _operators(source: Source, graph: Field) -> list[str]:
    found = []
    for one in inside(source, graph):
        if one.number == 1:
            found.append(_operator(source, one))
        elif one.number == 2:  # noqa: PLR2004  # library
            for function in (part for part in inside(source, one) if part.number == 1):
                found += [_operator(source, n) for n in inside(source, function) if n.number == 3]  # noqa: PLR2004  # node_def
        if len(found) > _MOST_NODES:
            raise BrokenFileError(f"has more than {_MOST_NODES} nodes")
    return found


def _operator(source: Source, node: Field) -> str:
    return next((text(source, one) for one in inside(source, node) if one.number == 2), "")  # noqa: PLR2004  # NodeDef.op


def _graph_problems(operators: Counter[str]) -> list[Problem]:
    code = sorted(_CODE & operators.keys())
    files = [name for name in unsafe_in(operators) if name not in _CODE]
    found = []
    if code:
        message = f"its graph calls Python: {', '.join(code)}"
        found.append(problem(Trouble.RUNS_CODE, message))
    if files:
        message = f"its graph reaches for files or the network: {', '.join(files[:8])}"
        found.append(problem(Trouble.DANGEROUS_CODE, message))
    return found


def _variable_problems(folder: Path) -> list[Problem]:
    lacking = variables_problem(folder / "variables")
    return [problem(Trouble.MISSING_PART, lacking)] if lacking else []


def _signature(
    source: Source, entry: Field
) -> tuple[str, tuple[tuple[TensorInfo, ...], tuple[TensorInfo, ...]]]:
    name = ""
    inputs: list[TensorInfo] = []
    outputs: list[TensorInfo] = []
    for part in inside(source, entry):
        if part.number == 1:
            name = text(source, part)
            continue
        for item in inside(source, part):
            if item.number == 1 and len(inputs) < _MOST_SHOWN:
                inputs.append(_tensor(source, item))
            elif item.number == 2 and len(outputs) < _MOST_SHOWN:  # noqa: PLR2004  # SignatureDef.outputs
                outputs.append(_tensor(source, item))
    order = lambda one: one.name  # noqa: E731  # maps have no order of their own
    return name, (tuple(sorted(inputs, key=order)), tuple(sorted(outputs, key=order)))


def _tensor(source: Source, entry: Field) -> TensorInfo:
    name, datatype, shape = "", "?", None
    for part in inside(source, entry):
        if part.number == 1:
            name = text(source, part)
            continue
        for item in inside(source, part):
            if item.number == 2:  # noqa: PLR2004  # TensorInfo.dtype
                datatype = _TYPES.get(item.value, f"type {item.value}")
            elif item.number == 3:  # noqa: PLR2004  # TensorInfo.tensor_shape
                dims = [d for d in inside(source, item) if d.number == 2][:_MOST_SHOWN]  # noqa: PLR2004  # dim
                unknown = any(d.number == 3 and d.value for d in inside(source, item))  # noqa: PLR2004  # unknown_rank
                shape = None if unknown else tuple(_size(source, dim) for dim in dims)
    return TensorInfo(name=name, datatype=datatype, shape=shape)


def _size(source: Source, dim: Field) -> int:
    sizes = [signed(part.value) for part in inside(source, dim) if part.number == 1]
    return sizes[0] if sizes else 0


class _Lite:
    """Tables of a flatbuffer, each access within the file and their number bounded."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._left = _MOST_TABLES

    def root(self) -> int:
        return self._source.number(0, "I")

    def slot(self, table: int, index: int) -> int:
        """Where a table's field stands; 0 if it is not there."""
        self._left -= 1
        if self._left < 0:
            raise BrokenFileError(f"has more than {_MOST_TABLES} tables")
        layout = table - self._source.number(table, "i")
        if 4 + 2 * index + 2 > self._source.number(layout, "H"):
            return 0
        offset = self._source.number(layout + 4 + 2 * index, "H")
        return table + offset if offset else 0

    def target(self, place: int) -> int:
        return place + self._source.number(place, "I")

    def vector(self, table: int, index: int, limit: int) -> tuple[int, int]:
        """Where a vector's items begin, and how many there are; at most `limit`."""
        place = self.slot(table, index)
        if not place:
            return 0, 0
        start = self.target(place)
        return start + 4, min(self._source.number(start, "I"), limit)

    def tables(self, table: int, index: int, limit: int) -> list[int]:
        start, count = self.vector(table, index, limit)
        return [self.target(start + 4 * i) for i in range(count)]

    def text(self, table: int, index: int) -> str:
        start, count = self.vector(table, index, 256)
        return self._source.read(start, count).decode("utf-8", "replace") if count else ""

    def ints(self, table: int, index: int) -> list[int]:
        start, count = self.vector(table, index, _MOST_SHOWN)
        return [self._source.number(start + 4 * i, "i") for i in range(count)]

    def byte(self, table: int, index: int) -> int:
        place = self.slot(table, index)
        return self._source.number(place, "b") if place else 0


def tflite_details(source: Source) -> Details:
    """Inputs, outputs and weights of a TFLite file.

    Raises:
        BrokenFileError: It is damaged.
    """
    lite = _Lite(source)
    model = lite.root()
    buffers = lite.tables(model, 4, _MOST_TABLES)
    weights: Counter[str] = Counter()
    inputs: tuple[TensorInfo, ...] = ()
    outputs: tuple[TensorInfo, ...] = ()
    for position, graph in enumerate(lite.tables(model, 2, 64)):
        tensors = lite.tables(graph, 0, _MOST_TABLES)
        for tensor in tensors:
            place = lite.slot(tensor, 2)
            buffer = source.number(place, "I") if place else 0
            if 0 < buffer < len(buffers):
                _, size = lite.vector(buffers[buffer], 0, 1 << 31)
                weights[_LITE_TYPES.get(lite.byte(tensor, 1), "?")] += size
        if position == 0:
            inputs = _lite_tensors(lite, tensors, lite.ints(graph, 1))
            outputs = _lite_tensors(lite, tensors, lite.ints(graph, 2))
    codes = [lite.text(code, 1) for code in lite.tables(model, 1, 1000)]
    custom = sorted({code for code in codes if code})
    known = {name: size for name, size in weights.items() if size}
    return Details(
        inputs=inputs,
        outputs=outputs,
        producer=lite.text(model, 3),
        weights=known,
        quantised=None if known else False,
        problems=tuple(
            problem(Trouble.CUSTOM_OPERATORS, f"needs the operators {', '.join(custom[:8])}")
            for _ in custom[:1]
        ),
    )


def _lite_tensors(lite: _Lite, tensors: list[int], chosen: list[int]) -> tuple[TensorInfo, ...]:
    found = []
    for index in chosen:
        if not 0 <= index < len(tensors):
            raise BrokenFileError("is damaged: it names a tensor that it does not have")
        tensor = tensors[index]
        shape = lite.ints(tensor, 7) or lite.ints(tensor, 0)
        datatype = _LITE_TYPES.get(lite.byte(tensor, 1), "?")
        found.append(TensorInfo(name=lite.text(tensor, 3), datatype=datatype, shape=tuple(shape)))
    return tuple(found)
