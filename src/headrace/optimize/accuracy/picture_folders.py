"""Examples from a folder of pictures, one folder for each class, for a model that takes pictures.

Only a model that decodes them itself can be given files: how a net wants its pixels scaled stands
in no ONNX file.
"""

from pathlib import Path
from typing import Final

import numpy as np

from headrace.core import Datatype, InvalidArgumentError, ModelSignature
from headrace.optimize.accuracy.examples import Examples
from headrace.optimize.accuracy.input_cells import as_request
from headrace.optimize.accuracy.label_cells import classes_named
from headrace.optimize.accuracy.tables import MAX_KEPT_BYTES, SEED

_SUFFIXES: Final = frozenset((".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp"))
_MAX_FILES: Final = 1_000_000


def read_pictures(folder: Path, signature: ModelSignature, *, limit: int) -> Examples:
    """The files' bytes, labelled with their folders' names.

    Raises:
        InvalidArgumentError: The model takes no files, or there are none or too many.
    """
    spec = signature.inputs[0]
    if len(signature.inputs) != 1 or spec.datatype is not Datatype.BYTES:
        msg = (
            f"{folder} is a folder, and the model takes no files of pictures; give the tensors "
            "that it takes in an .npz, or a pipeline that decodes pictures"
        )
        raise InvalidArgumentError(msg)
    paths = _pictures(folder)
    chosen = list(range(len(paths)))
    notes = []
    if len(paths) > limit:
        chosen = np.random.default_rng(SEED).choice(len(paths), limit, replace=False).tolist()
        notes = [f"{limit:,} of {len(paths):,} pictures, drawn at random, the same every time"]
    kept = [paths[i] for i in sorted(chosen)]
    if sum(path.stat().st_size for path in kept) > MAX_KEPT_BYTES:
        msg = f"{folder}: more than {MAX_KEPT_BYTES >> 20} MiB of pictures; set a smaller limit"
        raise InvalidArgumentError(msg)
    labels, names = classes_named([path.parent.name for path in kept], signature)
    requests = [
        {spec.name: as_request(np.array([path.read_bytes()], np.object_), spec, signature)}
        for path in kept
    ]
    return Examples(
        inputs=requests, labels=labels, names=names, batched=signature.batched, notes=tuple(notes)
    )


def _pictures(folder: Path) -> list[Path]:
    found = []
    for path in folder.glob("*/*"):
        if path.suffix.lower() in _SUFFIXES and path.is_file():
            found.append(path)
        if len(found) > _MAX_FILES:
            raise InvalidArgumentError(f"{folder} holds more than {_MAX_FILES:,} pictures")
    if not found:
        msg = f"{folder} holds no pictures in folders of their class, as in {folder}/cat/1.jpg"
        raise InvalidArgumentError(msg)
    return sorted(found)
