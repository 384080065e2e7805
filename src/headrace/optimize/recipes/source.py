"""Start of all recipes: the model as ONNX, with its own framework as the baseline."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from headrace.core import Tensors
from headrace.core.error_kind import UNDECODABLE
from headrace.optimize.candidate import Candidate
from headrace.optimize.compare import MAX_CHANGED_RATIO
from headrace.optimize.convert.convert import convert
from headrace.optimize.sources import open_source, source_runtime

_FILE: Final = "model.onnx"
_DONE: Final = "prepared.json"
_ONNX: Final = "onnx"
_FRAMEWORKS: Final = {
    "savedmodel": ("savedmodel", "TensorFlow, the SavedModel as it is"),
    "tflite": ("tflite", "LiteRT, the file as it is"),
    "torch_export": ("torch-eager", "PyTorch, the exported program as it is"),
    "torchscript": ("torch-eager", "PyTorch, the TorchScript file as it is"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A model that recipes can rewrite.

    `onnx`: where it is. `frameworks`: the source, run by its own library, to compare with. `notes`:
    what was done, for people.
    """

    onnx: Path
    frameworks: Sequence[Candidate] = ()
    notes: Sequence[str] = ()


class _Done(msgspec.Struct, frozen=True, kw_only=True):
    """What a conversion leaves beside the model once its answers were compared."""

    library: str
    note: str


def prepare(
    source: Path,
    runtime: str,
    folder: Path,
    *,
    allow_code: bool = False,
    data_rows: Tensors | None = None,
) -> Prepared:
    """A model as ONNX whose answers were compared with the source's; ONNX is left alone.

    Args:
        runtime: Of the source; empty tells by the file.
        folder: Where to write; an empty directory, or what this left there for the same source and
            arguments: that is taken as it is, as converting may take half a minute.
        allow_code: Whether loading may run code of the model's author.
        given: Rows to compare with besides those that are made up.

    Raises:
        CodeNotAllowedError: Loading it would run code; nothing of it was run.
        UnsupportedModelError: It cannot be converted, or the answers are too far apart.
        FailedPreconditionError: A package is not installed; the message says which.
    """
    if runtime == _ONNX:
        return Prepared(onnx=source)
    name = source_runtime(source, runtime)
    target, done = folder / _FILE, _done(folder)
    if done is None:
        opened = open_source(source, name, allow_code=allow_code)
        try:
            conversion = convert(
                opened, target, data_rows=data_rows, max_changed_ratio=MAX_CHANGED_RATIO
            )
        finally:
            opened.model.close()
        differences = conversion.differences
        note = (
            f"converted from {name} to ONNX by {conversion.converter}, opset {conversion.opset}: "
            f"on {differences.inputs} the outputs differ by at most "
            f"{differences.largest_relative:.2g} of their value"
        )
        done = _Done(library=conversion.library, note=note)
        (folder / _DONE).write_bytes(msgspec.json.encode(done))  # last: it says that all is there
    title = _FRAMEWORKS.get(name, (name, f"{name}, the file as it is"))
    details = {"what": "nothing is rewritten", "library": done.library}
    framework = Candidate(name=title[0], title=title[1], runtime=name, path=source, recipe=details)
    return Prepared(onnx=target, frameworks=(framework,), notes=(done.note,))


def is_prepared(folder: Path) -> bool:
    """Whether a conversion was finished there."""
    return _done(folder) is not None


def _done(folder: Path) -> _Done | None:
    if not (folder / _FILE).is_file():
        return None
    try:
        return msgspec.json.decode((folder / _DONE).read_bytes(), type=_Done)
    except (OSError, *UNDECODABLE):
        return None
