"""What does a SavedModel say of itself? Read without TensorFlow.

Schema: https://github.com/tensorflow/tensorflow/tree/master/tensorflow/core/protobuf
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from headrace.core import VARIABLE, Datatype, TensorSpec
from headrace.runtimes.file_bytes import (
    BrokenFileError,
    Field,
    Source,
    fields,
    inside,
    signed,
    text,
)
from headrace.runtimes.savedmodel_graph import (
    Graph,
    assigning_operators,
    check_calls,
    read_graph,
    unsafe_operators,
)
from headrace.runtimes.savedmodel_variables import INDEX, check_variables
from headrace.runtimes.tabular import read_head, refuse

FILE: Final = "saved_model.pb"
SERVE: Final = "serve"
_DEFAULT: Final = "serving_default"
_START: Final = "__saved_model_init_op"
_STARTS: Final = ("saved_model_main_op", "legacy_init_op")
_HEADS: Final = (b"\x08\x01", b"\x08\x00", b"\x12")
_NAME_BYTES: Final = 4096
_MOST_TENSORS: Final = 10_000
_MOST_RANK: Final = 64
_MOST_FILES: Final = 10_000
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
    """A tensor that callers see: `tensor` is what the graph calls it.

    `datatype` None and `shape` None: none that can be served, and a rank that is not known.
    """

    name: str
    tensor: str
    datatype: Datatype | None
    shape: tuple[int, ...] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedModelFile:
    """The signature of a SavedModel.

    `unsafe`: the operators for which it needs an explicit allow. `assigns`: those by which one
    request may reach another.
    """

    inputs: tuple[Named, ...]
    outputs: tuple[Named, ...]
    unsafe: tuple[str, ...]
    assigns: tuple[str, ...]

    def specs(self, path: Path) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
        """The signature as callers see it.

        Raises:
            UnsupportedModelError: An input or output is nothing that a request can carry.
        """
        inputs = tuple(_spec(path, "input", one) for one in self.inputs)
        return inputs, tuple(_spec(path, "output", one) for one in self.outputs)


@dataclass(slots=True)
class _Meta:
    """One graph of the file, with what it is for."""

    tags: list[str] = field(default_factory=list)
    graph: Graph = field(default_factory=Graph)
    signatures: dict[str, tuple[list[Named], list[Named]]] = field(default_factory=dict)
    stored: list[str] = field(default_factory=list)
    started: list[str] = field(default_factory=list)


def looks_like_savedmodel(path: Path) -> bool:
    """Whether `path` is a directory with a `saved_model.pb` that begins as TensorFlow writes it."""
    if not path.is_dir() or (path / "model.py").exists():
        return False
    return read_head(path / FILE, 2).startswith(_HEADS)


def read_savedmodel(path: Path) -> SavedModelFile:
    """Read and check a SavedModel.

    Raises:
        UnsupportedModelError: It is damaged, or of a kind that is not served; the message says it.
    """
    if not looks_like_savedmodel(path):
        raise refuse(path, f"is no SavedModel: no directory with a {FILE} that begins as one")
    _check_files(path)
    try:
        with Source(path / FILE) as source:
            metas = [_meta(source, one) for one in fields(source) if one.number == 2]  # noqa: PLR2004  # meta_graphs
        meta = _served(metas)
        check_calls(meta.graph)
        inputs, outputs = _signature(meta)
    except (BrokenFileError, OSError) as error:
        raise refuse(path, f"{FILE} {error}") from error
    served = [one.tensor for one in (*inputs, *outputs)]
    return SavedModelFile(
        inputs=inputs,
        outputs=outputs,
        unsafe=tuple(unsafe_operators(meta.graph, served + meta.started, meta.stored)),
        assigns=tuple(assigning_operators(meta.graph, served)),
    )


def _check_files(path: Path) -> None:
    """Refuse links that lead out, and variables of which a part is missing."""
    root = path.resolve()
    for count, entry in enumerate(path.rglob("*")):
        if count > _MOST_FILES:
            raise refuse(path, f"holds more than {_MOST_FILES} files")
        if entry.is_symlink() and not entry.resolve().is_relative_to(root):
            raise refuse(path, f"{entry.relative_to(path)} is a link that leads out of it")
    variables = path / "variables"
    if problem := variables_problem(variables):
        raise refuse(path, problem)
    if (variables / INDEX).exists():
        try:
            check_variables(variables)
        except (BrokenFileError, OSError) as error:
            raise refuse(path, f"variables/{INDEX} {error}") from error


def variables_problem(variables: Path) -> str:
    """What is missing of a SavedModel's variables; empty if nothing is, or there are none."""
    if not variables.is_dir():
        return ""
    names = sorted(entry.name for entry in variables.iterdir())
    shards = [name for name in names if name.startswith("variables.data-")]
    if ("variables.index" in names) != bool(shards):
        lacking = "variables.index" if shards else "variables.data-*"
        return f"variables/{lacking} is not there"
    totals = {name.rpartition("-of-")[2] for name in shards}
    if len(totals) == 1 and (total := totals.pop()).isdigit() and int(total) != len(shards):
        return f"{len(shards)} of {int(total)} files of its variables are there"
    return ""


def _served(metas: list[_Meta]) -> _Meta:
    found = [meta for meta in metas if SERVE in meta.tags]
    if len(found) == 1:
        return found[0]
    tags = ", ".join(repr("+".join(meta.tags)) for meta in metas[:8]) or "none"
    raise BrokenFileError(
        f"has {len(found)} graphs with the tag '{SERVE}' (its graphs: {tags}); export one for it"
    )


def _signature(meta: _Meta) -> tuple[tuple[Named, ...], tuple[Named, ...]]:
    usable = {name: found for name, found in meta.signatures.items() if found[1]}
    chosen = usable.get(_DEFAULT) or (next(iter(usable.values())) if len(usable) == 1 else None)
    if chosen is None:
        names = ", ".join(sorted(usable)[:16]) or "none with outputs"
        msg = f"has no signature '{_DEFAULT}' (it has {names}); export it with `signatures=`"
        raise BrokenFileError(msg)
    for specs in chosen:
        if len({one.name for one in specs}) < len(specs):
            raise BrokenFileError("is damaged: its signature names a tensor twice")
    # A map has no order of its own.
    ordered = [tuple(sorted(specs, key=lambda one: one.name)) for specs in chosen]
    for one in (*ordered[0], *ordered[1]):
        if one.tensor and one.tensor.partition(":")[0] not in meta.graph.nodes:
            raise BrokenFileError(f"is damaged: '{one.name}' is a tensor that there is not")
    return ordered[0], ordered[1]


def _meta(source: Source, place: Field) -> _Meta:
    meta = _Meta()
    for part in inside(source, place):
        match part.number:
            case 1:
                tags = (one for one in inside(source, part) if one.number == 4)  # noqa: PLR2004  # tags
                meta.tags += [text(source, one) for one in tags]
            case 2:
                meta.graph = read_graph(source, part)
            case 3:
                names = (one for one in inside(source, part) if one.number in {2, 3})
                meta.stored += [text(source, one, _NAME_BYTES) for one in names]
            case 4:
                meta.started += _collection(source, part)
            case 5:
                name, found = _signature_def(source, part)
                if name == _START:
                    meta.started += [one.tensor for one in found[1]]
                else:
                    meta.signatures[name] = found
    return meta


def _collection(source: Source, place: Field) -> Iterator[str]:
    """The nodes that a graph of TensorFlow 1 is started with."""
    parts = _entry(source, place)
    if parts[0] not in _STARTS or parts[1] is None:
        return
    for kind in inside(source, parts[1]):
        if kind.number == 1:  # node_list
            yield from (text(source, one, _NAME_BYTES) for one in inside(source, kind))


def _signature_def(source: Source, place: Field) -> tuple[str, tuple[list[Named], list[Named]]]:
    name, value = _entry(source, place)
    found: Mapping[int, list[Named]] = {1: [], 2: []}
    for item in inside(source, value) if value else ():
        if item.number in found:
            if len(found[item.number]) == _MOST_TENSORS:
                raise BrokenFileError(f"has more than {_MOST_TENSORS} inputs or outputs")
            found[item.number].append(_tensor(source, item))
    return name, (found[1], found[2])


def _tensor(source: Source, place: Field) -> Named:
    name, value = _entry(source, place)
    tensor, datatype, shape = "", 0, None
    for item in inside(source, value) if value else ():
        match item.number:
            case 1:
                tensor = text(source, item, _NAME_BYTES)
            case 2:
                datatype = item.value
            case 3:
                shape = _shape(source, item)
    return Named(name=name, tensor=tensor, datatype=_DATATYPES.get(datatype), shape=shape)


def _shape(source: Source, place: Field) -> tuple[int, ...] | None:
    sizes: list[int] = []
    for item in inside(source, place):
        if item.number == 3 and item.value:  # noqa: PLR2004  # unknown_rank
            return None
        if item.number == 2:  # noqa: PLR2004  # dim
            said = [signed(part.value) for part in inside(source, item) if part.number == 1]
            sizes.append(said[0] if said else 0)
    if len(sizes) > _MOST_RANK or any(size < VARIABLE for size in sizes):
        raise BrokenFileError(f"declares the shape {sizes[:8]}, which there cannot be")
    return tuple(sizes)


def _entry(source: Source, place: Field) -> tuple[str, Field | None]:
    """Key and value of an item of a map."""
    key, value = "", None
    for part in inside(source, place):
        if part.number == 1:
            key = text(source, part, _NAME_BYTES)
        elif part.number == 2:  # noqa: PLR2004  # value
            value = part
    return key, value


def _spec(path: Path, kind: str, one: Named) -> TensorSpec:
    if not one.tensor:
        raise refuse(path, f"{kind} '{one.name}' is sparse or composite, which is not served")
    if one.datatype is None:
        msg = f"{kind} '{one.name}' has a type that no request can carry; cast it in the model"
        raise refuse(path, msg)
    if one.shape is None and kind == "input":
        msg = f"{kind} '{one.name}' says not even how many dimensions it has; export the model "
        raise refuse(path, f"{msg}with an input signature, None where a size varies")
    return TensorSpec(name=one.name, datatype=one.datatype, shape=one.shape or ())
