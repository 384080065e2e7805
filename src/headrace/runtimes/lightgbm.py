"""Runtime of LightGBM's trees, by LightGBM."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np

from headrace.core import Datatype, error_kind
from headrace.runtimes.base import LoadOptions, Model
from headrace.runtimes.lightgbm_file import LightgbmFile, looks_like_lightgbm, read_lightgbm
from headrace.runtimes.lightgbm_predict import DirectPredictor
from headrace.runtimes.tabular import (
    LABEL,
    PREDICTION,
    PROBABILITIES,
    Answer,
    Answers,
    CodedColumns,
    TableInputs,
    import_library,
    open_tabular,
    refuse,
    two_classes,
)

_BINARY: Final = "binary"
_CLASSES: Final = ("multiclass", "multiclassova")


class LightgbmRuntime:
    """Loads `.txt` and `.lgb`, as `save_model` writes them."""

    name = "lightgbm"
    runs_code = False
    libraries = ("lightgbm",)
    extra = "lightgbm"

    def recognises(self, path: Path) -> bool:
        """Whether `path` looks like LightGBM's, by its name and first line."""
        return looks_like_lightgbm(path)

    def load(self, path: Path, options: LoadOptions) -> Model:
        """Load the model, for the CPU."""
        return _open(path, options)


def _open(path: Path, options: LoadOptions) -> Model:
    found = read_lightgbm(path)
    library = import_library("lightgbm", "lightgbm")
    try:
        names = library.Booster(model_str=found.text).feature_name()
        predict = DirectPredictor(library, found.text, threads=options.intra_op_threads)
    except Exception as error:  # noqa: BLE001  # its message may quote the file
        raise refuse(path, f"LightGBM refuses it: {error_kind(error)}") from None
    # Predictions share a read lock inside the library, and ctypes releases the GIL. It compares in
    # doubles: a value rounded to FP32 could go down the other branch.
    return open_tabular(
        path,
        Answers(predict=predict, outputs=_outputs(found.objective)),
        _table(path, found, names),
        concurrent=True,
    )


def _table(path: Path, found: LightgbmFile, names: Sequence[str]) -> TableInputs:
    """One matrix; one input for each column where the file says what the categories are called."""
    if not found.categories:
        return TableInputs.of_matrix(path, found.features, Datatype.FP64, names)
    columns = CodedColumns(
        names=names,
        categories=found.categories,
        datatype=Datatype.FP64,
        unseen_is_missing=True,
    )
    return columns.inputs(path)


def _outputs(objective: str) -> Mapping[str, Answer]:
    if objective == _BINARY:
        return {
            LABEL: lambda found: (found > 1 - found).astype(np.int64),
            PROBABILITIES: two_classes,
        }
    if objective in _CLASSES:
        return {
            LABEL: lambda found: found.argmax(axis=1).astype(np.int64),
            PROBABILITIES: lambda found: found,
        }
    return {PREDICTION: lambda found: found}
