"""How a model is called whose user gave no name."""

import re
from pathlib import Path


def name_from(path: Path) -> str:
    """A name out of a file's or directory's: `My model.onnx` becomes `My-model`.

    Where files are called alike and their directories tell them apart, as `model.onnx` is, the
    directory's name is taken.
    """
    full = path.absolute()
    stem = full.name if full.is_dir() else full.stem
    parent = full.parent
    while stem in {"", "model"} or stem.isdigit():
        if not parent.name:
            break
        stem, parent = parent.name, parent.parent
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", stem).strip("-._")[:128] or "model"
