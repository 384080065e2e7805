"""SavedModel files: signatures and variables, read without TensorFlow."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from headrace.core import VARIABLE, Datatype, TensorSpec
from headrace.runtimes.file_bytes import (
    BrokenFileError,
    FileReader,
    ProtobufField,
    fields,
    inside,
    last_text,
    text,
    varint,
    within,
)
from headrace.runtimes.tables.tabular import read_head, refuse
from headrace.runtimes.tensorflow.savedmodel_graph import (
    SavedModelGraph,
    assigning_operators,
    check_calls,
    dimensions,
    read_graph,
    unsafe_operators,
)

INDEX: Final = "variables.index"
_FOOTER_BYTES: Final = 48
_MAGIC: Final = 0xDB4775248B80FB57
_TRAILER_BYTES: Final = 5
_MAX_BLOCKS: Final = 1_000_000
_MAX_SHARDS: Final = 10_000
_STRING: Final = 7
# Field numbers, and paths of them through messages.
_META_GRAPH, _NODE_LIST = 2, (1, 1)
_META_TAGS, _META_VERSION, _META_GRAPH_DEF, _META_SAVER, _META_COLLECTION, _META_SIGNATURE = (
    (1, 4),
    (1, 5),
    2,
    3,
    4,
    5,
)
_SAVER_NAMES: Final = (2, 3)
_KEY, _VALUE, _UNKNOWN_RANK = 1, 2, 3
_ITEM_BYTES: Final = {
    1: 4, 2: 8, 3: 4, 4: 1, 5: 2, 6: 1, 8: 8, 9: 8, 10: 1, 11: 1, 12: 1, 13: 4, 14: 2, 15: 2,
    16: 2, 17: 2, 18: 16, 19: 2, 22: 4, 23: 8,
}  # fmt: skip
"""Bytes per element, by type number in `types.proto`."""


@dataclass(slots=True)
class _IndexEntry:
    """Location of a tensor."""

    kind: int = 0
    shape: list[int] = field(default_factory=list)
    shard: int = 0
    offset: int = 0
    size: int = 0
    is_sliced: bool = False


def check_variables(variables: Path) -> None:
    """Refuse an index that is damaged, or refers to data that its files lack.

    Raises:
        BrokenFileError: It does.
    """
    with FileReader(variables / INDEX) as source:
        values = [value for block in _blocks(source) for value in _values(source, block)]
        if not values:
            raise BrokenFileError("is damaged: it has no header")
        header = values[0]
        header_fields = {
            field.number: field.value for field in inside(source, header) if not field.is_bytes
        }
        shards = header_fields.get(1, 0)
        if not 1 <= shards <= _MAX_SHARDS or header_fields.get(2, 0):
            raise BrokenFileError(f"has {shards} files, or another byte order")
        files = [variables / f"variables.data-{i:05d}-of-{shards:05d}" for i in range(shards)]
        sizes = [file.stat().st_size if file.is_file() else -1 for file in files]
        if min(sizes) < 0:
            missing = files[sizes.index(-1)].name
            raise BrokenFileError(f"names {missing}, which does not exist")
        for value in values[1:]:
            entry = _index_entry(source, value)
            _check(entry, sizes)
            if entry.kind == _STRING and not entry.is_sliced:
                _check_strings(files[entry.shard], entry)


def _blocks(source: FileReader) -> Iterator[ProtobufField]:
    """Yield the data blocks that the index block lists."""
    if source.size < _FOOTER_BYTES:
        raise BrokenFileError("is truncated")
    start = source.size - _FOOTER_BYTES
    if source.number(source.size - 8, "Q") != _MAGIC:
        raise BrokenFileError("is truncated or damaged: it does not end as a table of variables")
    position, end = start, source.size - 8
    numbers = []
    for _ in range(4):
        number, position = varint(source, position, end)
        numbers.append(number)
    for count, value in enumerate(_values(source, _block(source, numbers[2], numbers[3]))):
        if count > _MAX_BLOCKS:
            raise BrokenFileError(f"has more than {_MAX_BLOCKS} blocks")
        offset, size_start = varint(source, value.start, value.end)
        size, _ = varint(source, size_start, value.end)
        yield _block(source, offset, size)


def _block(source: FileReader, offset: int, size: int) -> ProtobufField:
    if offset + size + _TRAILER_BYTES > source.size - _FOOTER_BYTES:
        raise BrokenFileError("is damaged: a block ends beyond the file")
    if source.read(offset + size, 1) != b"\0":
        raise BrokenFileError("is damaged, or compressed, which TensorFlow does not do")
    restarts = source.number(offset + size - 4, "I") if size >= 8 else 0  # noqa: PLR2004  # one restart and their number
    end = size - 4 - 4 * restarts
    if not restarts or end < 0:
        raise BrokenFileError("is damaged: a block is shorter than its list of restarts")
    for i in range(restarts):
        if source.number(offset + end + 4 * i, "I") > end:
            raise BrokenFileError("is damaged: a restart lies beyond its block")
    return ProtobufField(0, 2, 0, offset, offset + end)


def _values(source: FileReader, block: ProtobufField) -> Iterator[ProtobufField]:
    """Yield the ranges of a block's values; keys store only their difference from the last key."""
    offset, key_bytes = block.start, 0
    while offset < block.end:
        shared, offset = varint(source, offset, block.end)
        own, offset = varint(source, offset, block.end)
        size, offset = varint(source, offset, block.end)
        if shared > key_bytes or offset + own + size > block.end:
            raise BrokenFileError("is damaged: an entry ends beyond its block")
        key_bytes = shared + own
        offset += own + size
        yield ProtobufField(0, 2, 0, offset - size, offset)


def _index_entry(source: FileReader, value: ProtobufField) -> _IndexEntry:
    entry = _IndexEntry()
    for part in inside(source, value):
        match part.number:
            case 1:
                entry.kind = part.value
            case 2:
                entry.shape += dimensions(source, part)
            case 3:
                entry.shard = part.value
            case 4:
                entry.offset = part.value
            case 5:
                entry.size = part.value
            case 7:
                entry.is_sliced = True
    return entry


def _check(entry: _IndexEntry, sizes: list[int]) -> None:
    if entry.shard >= len(sizes) or entry.offset + entry.size > sizes[entry.shard]:
        raise BrokenFileError("names a variable that ends beyond its file")
    if any(size < 0 for size in entry.shape):
        raise BrokenFileError(f"names a variable of the shape {entry.shape[:8]}")
    if entry.is_sliced or entry.kind == _STRING:
        return
    item_bytes = _ITEM_BYTES.get(entry.kind)
    if item_bytes is None:
        raise BrokenFileError(f"names a variable of the type {entry.kind}")
    if math.prod(entry.shape) * item_bytes != entry.size:
        raise BrokenFileError(f"names a variable {entry.shape[:8]} of {entry.size} bytes")


def _check_strings(file: Path, entry: _IndexEntry) -> None:
    """Check strings, which follow their lengths and a checksum of those."""
    count = math.prod(entry.shape)
    if count > entry.size:
        raise BrokenFileError(f"names {count} texts in {entry.size} bytes")
    with FileReader(file) as source:
        offset, end = entry.offset, entry.offset + entry.size
        total = 0
        for _ in range(count):
            length, offset = varint(source, offset, end)
            total += length
        if offset + 4 + total != end:
            raise BrokenFileError("names texts that end beyond their bytes")


FILE: Final = "saved_model.pb"
SERVE: Final = "serve"
_DEFAULT: Final = "serving_default"
_START: Final = "__saved_model_init_op"
_STARTS: Final = ("saved_model_main_op", "legacy_init_op")
_HEADS: Final = (b"\x08\x01", b"\x08\x00", b"\x12")
_NAME_BYTES: Final = 4096
_MAX_TENSORS: Final = 10_000
_MAX_RANK: Final = 64
_MAX_FILES: Final = 10_000
_DATATYPES: Final = {
    1: Datatype.FP32,
    2: Datatype.FP64,
    3: Datatype.INT32,
    4: Datatype.UINT8,
    5: Datatype.INT16,
    6: Datatype.INT8,
    7: Datatype.BYTES,
    9: Datatype.INT64,
    10: Datatype.BOOL,
    17: Datatype.UINT16,
    19: Datatype.FP16,
    22: Datatype.UINT32,
    23: Datatype.UINT64,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Named:
    """A tensor visible to callers; `tensor` is its name in the graph.

    `datatype` None: not supported. `shape` None: of unknown rank.
    """

    name: str
    tensor: str
    datatype: Datatype | None
    shape: tuple[int, ...] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedModelFile:
    """Signature of a SavedModel, and the operators that matter for isolation."""

    inputs: tuple[Named, ...]
    outputs: tuple[Named, ...]
    unsafe: tuple[str, ...]
    """Operators that need an explicit permission."""
    assigns: tuple[str, ...]
    """Operators by which a request may affect later ones."""

    def specs(self, path: Path) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
        """Return the signature for callers.

        Raises:
            UnsupportedModelError: A request cannot carry an input or output.
        """
        inputs = tuple(_spec(path, "input", tensor) for tensor in self.inputs)
        return inputs, tuple(_spec(path, "output", tensor) for tensor in self.outputs)


@dataclass(slots=True)
class MetaGraph:
    """One graph of the file, with its purpose."""

    version: str = ""
    """TensorFlow version that wrote it."""
    tags: list[str] = field(default_factory=list)
    graph: SavedModelGraph = field(default_factory=SavedModelGraph)
    signatures: dict[str, tuple[list[Named], list[Named]]] = field(default_factory=dict)
    stored: list[str] = field(default_factory=list)
    started: list[str] = field(default_factory=list)


def looks_like_savedmodel(path: Path) -> bool:
    """Whether `path` is a directory with a `saved_model.pb` that has TensorFlow's first bytes."""
    if not path.is_dir() or (path / "model.py").exists():
        return False
    return read_head(path / FILE, 2).startswith(_HEADS)


def read_savedmodel(path: Path) -> SavedModelFile:
    """Read and check a SavedModel.

    Raises:
        UnsupportedModelError: It is damaged, or not supported; the message says why.
    """
    if not looks_like_savedmodel(path):
        raise refuse(path, f"is not a SavedModel: it must be a directory with a valid {FILE}")
    _check_files(path)
    try:
        with FileReader(path / FILE) as source:
            metas = meta_graphs(source)
        meta = _served(metas)
        check_calls(meta.graph)
        inputs, outputs = _signature(meta)
    except (BrokenFileError, OSError) as error:
        raise refuse(path, f"{FILE} {error}") from error
    served = [tensor.tensor for tensor in (*inputs, *outputs)]
    return SavedModelFile(
        inputs=inputs,
        outputs=outputs,
        unsafe=tuple(unsafe_operators(meta.graph, served + meta.started, meta.stored)),
        assigns=tuple(assigning_operators(meta.graph, served)),
    )


def meta_graphs(source: FileReader) -> list[MetaGraph]:
    """Return the graphs of a `saved_model.pb`.

    Raises:
        BrokenFileError: It is damaged.
    """
    return [_meta(source, field) for field in fields(source) if field.number == _META_GRAPH]


def _check_files(path: Path) -> None:
    """Refuse links that leave the directory, and incomplete variables."""
    root = path.resolve()
    for count, entry in enumerate(path.rglob("*")):
        if count > _MAX_FILES:
            raise refuse(path, f"holds more than {_MAX_FILES} files")
        if entry.is_symlink() and not entry.resolve().is_relative_to(root):
            raise refuse(
                path, f"{entry.relative_to(path)} is a link that leads out of the directory"
            )
    variables = path / "variables"
    if problem := variables_problem(variables):
        raise refuse(path, problem)
    if (variables / INDEX).exists():
        try:
            check_variables(variables)
        except (BrokenFileError, OSError) as error:
            raise refuse(path, f"variables/{INDEX} {error}") from error


def variables_problem(variables: Path) -> str:
    """Return what is missing of a SavedModel's variables; empty if they are complete or absent."""
    if not variables.is_dir():
        return ""
    names = sorted(entry.name for entry in variables.iterdir())
    shards = [name for name in names if name.startswith("variables.data-")]
    if ("variables.index" in names) != bool(shards):
        lacking = "variables.index" if shards else "variables.data-*"
        return f"variables/{lacking} does not exist"
    totals = {name.rpartition("-of-")[2] for name in shards}
    if len(totals) == 1 and (total := totals.pop()).isdigit() and int(total) != len(shards):
        return f"{len(shards)} of {int(total)} files of its variables exist"
    return ""


def _served(metas: list[MetaGraph]) -> MetaGraph:
    graphs = [meta for meta in metas if SERVE in meta.tags]
    if len(graphs) == 1:
        return graphs[0]
    tags = ", ".join(repr("+".join(meta.tags)) for meta in metas[:8]) or "none"
    raise BrokenFileError(
        f"has {len(graphs)} graphs with the tag '{SERVE}' (its graphs: {tags}); export one for it"
    )


def _signature(meta: MetaGraph) -> tuple[tuple[Named, ...], tuple[Named, ...]]:
    usable = {name: sides for name, sides in meta.signatures.items() if sides[1]}
    selected = usable.get(_DEFAULT) or (next(iter(usable.values())) if len(usable) == 1 else None)
    if selected is None:
        names = ", ".join(sorted(usable)[:16]) or "none with outputs"
        msg = f"has no signature '{_DEFAULT}' (it has {names}); export it with `signatures=`"
        raise BrokenFileError(msg)
    for specs in selected:
        if len({tensor.name for tensor in specs}) < len(specs):
            raise BrokenFileError("is damaged: its signature names a tensor twice")
    # The order of a map is undefined.
    ordered = [tuple(sorted(specs, key=lambda tensor: tensor.name)) for specs in selected]
    for named in (*ordered[0], *ordered[1]):
        if named.tensor and named.tensor.partition(":")[0] not in meta.graph.nodes:
            raise BrokenFileError(f"is damaged: its tensor '{named.name}' does not exist")
    return ordered[0], ordered[1]


def _meta(source: FileReader, field: ProtobufField) -> MetaGraph:
    meta = MetaGraph()
    meta.tags += [text(source, tag) for tag in within(source, field, *_META_TAGS)]
    meta.version = "".join(
        text(source, version) for version in within(source, field, *_META_VERSION)
    )
    for part in inside(source, field):
        if part.number == _META_GRAPH_DEF:
            meta.graph = read_graph(source, part)
        elif part.number == _META_SAVER:
            names = (
                part_field
                for part_field in inside(source, part)
                if part_field.number in _SAVER_NAMES
            )
            meta.stored += [text(source, name, _NAME_BYTES) for name in names]
        elif part.number == _META_COLLECTION:
            # Nodes that initialize a graph of TensorFlow 1.
            if last_text(source, part, _KEY, limit=_NAME_BYTES) in _STARTS:
                nodes = within(source, part, _VALUE, *_NODE_LIST)
                meta.started += [text(source, node, _NAME_BYTES) for node in nodes]
        elif part.number == _META_SIGNATURE:
            name, sides = _signature_def(source, part)
            if name == _START:
                meta.started += [tensor.tensor for tensor in sides[1]]
            else:
                meta.signatures[name] = sides
    return meta


def _signature_def(
    source: FileReader, field: ProtobufField
) -> tuple[str, tuple[list[Named], list[Named]]]:
    tensors: Mapping[int, list[Named]] = {1: [], 2: []}
    for value in within(source, field, _VALUE):
        for item in inside(source, value):
            if item.number in tensors:
                if len(tensors[item.number]) == _MAX_TENSORS:
                    raise BrokenFileError(f"has more than {_MAX_TENSORS} inputs or outputs")
                tensors[item.number].append(_tensor(source, item))
    return last_text(source, field, _KEY, limit=_NAME_BYTES), (tensors[1], tensors[2])


def _tensor(source: FileReader, field: ProtobufField) -> Named:
    tensor, datatype, shape = "", 0, None
    for value in within(source, field, _VALUE):
        for item in inside(source, value):
            match item.number:
                case 1:
                    tensor = text(source, item, _NAME_BYTES)
                case 2:
                    datatype = item.value
                case 3:
                    shape = _shape(source, item)
    name = last_text(source, field, _KEY, limit=_NAME_BYTES)
    return Named(name=name, tensor=tensor, datatype=_DATATYPES.get(datatype), shape=shape)


def _shape(source: FileReader, field: ProtobufField) -> tuple[int, ...] | None:
    if any(flag.value for flag in within(source, field, _UNKNOWN_RANK)):
        return None
    sizes = dimensions(source, field)
    if len(sizes) > _MAX_RANK or any(size < VARIABLE for size in sizes):
        raise BrokenFileError(f"declares the invalid shape {sizes[:8]}")
    return tuple(sizes)


def _spec(path: Path, kind: str, tensor: Named) -> TensorSpec:
    if not tensor.tensor:
        raise refuse(path, f"{kind} '{tensor.name}' is sparse or composite, which is not supported")
    if tensor.datatype is None:
        msg = f"{kind} '{tensor.name}' has a type that a request cannot carry; cast it in the model"
        raise refuse(path, msg)
    if tensor.shape is None and kind == "input":
        msg = f"{kind} '{tensor.name}' has an unknown number of dimensions; export the model "
        raise refuse(path, f"{msg}with an input signature, with None where a size varies")
    return TensorSpec(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape or ())
