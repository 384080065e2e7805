"""Tensors of a module as its author wrote them down, where the file does not say them.

`signature.json` is an extra file in the archive or lies beside it in a directory, and has the form
of the protocol's metadata:

    {"inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}]}

Without one a `config.pbtxt` in Triton's layout is read, which stands beside the numbered directory
of the file: Triton asks for one with every TorchScript file.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import msgspec

from headrace.core import (
    VARIABLE,
    Datatype,
    HeadraceError,
    InvalidArgumentError,
    TensorSpec,
    check_name,
    error_kind,
    pbtxt,
)
from headrace.core.pbtxt import Message
from headrace.runtimes.tabular import refuse
from headrace.runtimes.torch_archive import MAX_TEXT_BYTES, SIGNATURE_NAME, read_record

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
    """What an author wrote down.

    `inputs`: empty if the file itself has to say. `outputs`: empty for names of their own.
    `batched`: None to find out. `method`: of the module, that answers. `values`: of arguments that
    are always the same. `takes_batches`: a configuration of Triton's has a `max_batch_size`.
    """

    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()
    batched: bool | None = None
    takes_batches: bool = False
    method: str = "forward"
    values: Mapping[str, Value] = field(default_factory=dict)


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
    """What was written down for the model `file` at `path`.

    What lies beside it comes first, then what is in it, then what Triton's configuration says.

    Raises:
        UnsupportedModelError: It makes no sense; the message says where and why.
    """
    beside = path / SIGNATURE_NAME
    if path.is_dir() and beside.is_file():
        if beside.stat().st_size > MAX_TEXT_BYTES:
            raise refuse(beside, f"has more than {MAX_TEXT_BYTES} bytes")
        return parse_declared(beside, beside.read_bytes())
    inside = read_record(file, f"extra/{SIGNATURE_NAME}")
    if inside is not None:
        return parse_declared(file / "extra" / SIGNATURE_NAME, inside)
    config = find_config(path)
    if config is None:
        return Declared()
    inputs, outputs, takes_batches = read_config(config)
    return Declared(inputs=inputs, outputs=outputs, takes_batches=takes_batches)


def parse_declared(origin: Path, data: bytes) -> Declared:
    """What the text of a `signature.json` says.

    Args:
        origin: Where the text stands, for messages.

    Raises:
        UnsupportedModelError: It makes no sense.
    """
    try:
        found = msgspec.json.decode(data, type=_File)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise refuse(
            origin, f"is no signature: {error_kind(error)}; write it as {_example(('x',))}"
        ) from None
    for kind, specs in (("inputs", found.inputs), ("outputs", found.outputs)):
        if len({spec.name for spec in specs}) < len(specs):
            raise refuse(origin, f"names one of its {kind} twice")
    return Declared(
        inputs=tuple(_spec(origin, "inputs", spec) for spec in found.inputs),
        outputs=tuple(_spec(origin, "outputs", spec) for spec in found.outputs),
        batched=found.batched,
        method=found.method,
        values=found.values,
    )


def how_to_declare(names: Sequence[str]) -> str:
    """What to write where a module does not say what it takes.

    Args:
        names: Of the tensors that it takes.
    """
    return f"{_HOW}, where TEXT is for instance {_example(names)}; -1 is a size a request chooses"


def match_names(
    path: Path, declared: Sequence[TensorSpec], names: Sequence[str]
) -> Mapping[str, TensorSpec]:
    """By a module's own name for it, what was declared for a tensor.

    Names that the module knows are found by name; `INPUT__0`, as Triton counts them, by number;
    else the first stands for the first.

    Raises:
        UnsupportedModelError: Some names are known and some are not, or there are too many.
    """
    known = [spec for spec in declared if spec.name in names]
    if len(known) == len(declared):
        return {spec.name: spec for spec in declared}
    numbers = [_number(spec.name) for spec in declared]
    own = ", ".join(f"'{name}'" for name in names) or "nothing"
    if known or len(declared) > len(names):
        stray = next(spec.name for spec in declared if spec.name not in names)
        raise refuse(path, f"'{stray}' is declared, but the module has {own}")
    if None in numbers:
        return dict(zip(names, declared, strict=False))
    found: dict[str, TensorSpec] = {}
    for spec, number in zip(declared, numbers, strict=True):
        assert number is not None, "looked for above"
        if number >= len(names) or names[number] in found:
            raise refuse(path, f"'{spec.name}' is declared, but the module has {own}")
        found[names[number]] = spec
    return found


def _number(name: str) -> int | None:
    """2 for `INPUT__2`."""
    end = name.rpartition("__")[2]
    return int(end) if "__" in name and end.isascii() and end.isdigit() and len(end) < 4 else None  # noqa: PLR2004  # nobody counts so far


def _example(names: Sequence[str]) -> str:
    tensors = [{"name": name, "datatype": "FP32", "shape": [VARIABLE, 4]} for name in names]
    return msgspec.json.format(msgspec.json.encode({"inputs": tensors}), indent=0).decode()


def _spec(origin: Path, kind: str, tensor: _Tensor) -> TensorSpec:
    where = f"{kind}: '{tensor.name}'"
    try:
        name = check_name(tensor.name, kind="tensor")
    except HeadraceError:
        raise refuse(origin, f"{kind}: a name is not allowed for a tensor") from None
    if tensor.datatype not in set(Datatype) - {Datatype.BYTES}:
        known = ", ".join(kind for kind in Datatype if kind is not Datatype.BYTES)
        raise refuse(origin, f"{where} has a datatype that is not served; use one of {known}")
    if any(size < VARIABLE for size in tensor.shape) or len(tensor.shape) > _MAX_RANK:
        raise refuse(
            origin,
            f"{where} has the shape {list(tensor.shape)}; use sizes, and -1 for what a request "
            "chooses",
        )
    return TensorSpec(name=name, datatype=Datatype(tensor.datatype), shape=tensor.shape)


def find_config(path: Path) -> Path | None:
    """The configuration of the model at `path`: in its directory, or one above a numbered one."""
    directory = path if path.is_dir() else path.parent
    candidates = [directory / CONFIG_NAME] if path.is_dir() else []
    if directory.name.isdecimal():
        candidates.append(directory.parent / CONFIG_NAME)
    return next((file for file in candidates if file.is_file()), None)


def read_config(file: Path) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...], bool]:
    """The inputs and outputs that a configuration names, and whether it takes batches.

    There are no inputs or outputs if it leaves them out.

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
        raise refuse(file, "has a value where a tensor belongs")
    name, kind = pbtxt.text(tensor, "name"), pbtxt.text(tensor, "data_type")
    if kind not in _TYPES:
        raise refuse(file, f"says of '{name}' no type that is served")
    try:
        dims = tuple(int(size) for size in tensor.get("dims", ()) if isinstance(size, str))
    except ValueError:
        dims = (VARIABLE - 1,)
    if not name or any(size < VARIABLE for size in dims):
        raise refuse(file, f"gives no name, or no sizes as 'dims', to '{name}'")
    return TensorSpec(name=name, datatype=_TYPES[kind], shape=(*batch, *dims))
