"""Tensors of a module, as a `config.pbtxt` in Triton's layout says them.

Triton asks for one with every TorchScript file, so models that come from there bring what
TorchScript leaves out: `MODEL/config.pbtxt` stands beside the numbered directory of the file.
"""

from pathlib import Path
from typing import Final

from headrace.core import VARIABLE, Datatype, InvalidArgumentError, TensorSpec, pbtxt
from headrace.core.pbtxt import Message, count, parse_message
from headrace.runtimes.tabular import refuse
from headrace.runtimes.torch_archive import MAX_TEXT_BYTES

CONFIG_NAME: Final = "config.pbtxt"
_TYPES: Final = {f"TYPE_{kind}": kind for kind in Datatype if kind is not Datatype.BYTES} | {
    "TYPE_BF16": Datatype.FP32
}


def find_config(path: Path) -> Path | None:
    """The configuration of the model at `path`: in its directory, or one above a numbered one."""
    directory = path if path.is_dir() else path.parent
    candidates = [directory / CONFIG_NAME] if path.is_dir() else []
    if directory.name.isdecimal():
        candidates.append(directory.parent / CONFIG_NAME)
    return next((file for file in candidates if file.is_file()), None)


def read_config(file: Path) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """The inputs and outputs that a configuration names; none if it leaves them out.

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
        config = parse_message(text)
        batch = (VARIABLE,) if count(config, "max_batch_size") else ()
    except InvalidArgumentError as error:
        raise refuse(file, str(error)) from error
    return (
        tuple(_spec(file, batch, tensor) for tensor in config.get("input", ())),
        tuple(_spec(file, batch, tensor) for tensor in config.get("output", ())),
    )


def _spec(file: Path, batch: tuple[int, ...], tensor: str | Message) -> TensorSpec:
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
