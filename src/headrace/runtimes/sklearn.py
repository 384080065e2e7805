"""Run scikit-learn's estimators from skops files, which hold no code."""

import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from headrace.core import Array, Datatype, UnsupportedModelError, error_kind
from headrace.runtimes.base import LoadOptions, Model
from headrace.runtimes.libraries import without_frameworks
from headrace.runtimes.tabular import (
    LABEL,
    PREDICTION,
    PROBABILITIES,
    Answer,
    Answers,
    as_label,
    import_library,
    open_tabular,
    read_head,
    refuse,
)

SUFFIX: Final = ".skops"
_ZIP: Final = b"PK\x03\x04"
_SCHEMA: Final = "schema.json"
_MOST_UNPACKED_BYTES: Final = 64 << 20
_TIMES_PACKED: Final = 50
_MOST_TYPES: Final = 5
_TRUSTED: Final = ("numpy.dtype",)
"""Beyond what skops trusts: the dtype of an empty array, which `SimpleImputer` keeps. skops reads
it by `numpy.load` without pickle."""


class SklearnRuntime:
    """Loads `.skops`, as `skops.io.dump` writes it."""

    name = "sklearn"
    runs_code = False
    libraries = ("sklearn", "skops")
    extra = "sklearn"

    def recognises(self, path: Path) -> bool:
        """Whether `path` looks like a skops file, by its name and first bytes."""
        return path.suffix.lower() == SUFFIX and read_head(path, len(_ZIP)) == _ZIP

    def load(self, path: Path, options: LoadOptions) -> Model:
        """Load the model, for the CPU."""
        return _open(path, options)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Estimator:
    """An estimator whose libraries are held to some threads while it predicts."""

    estimator: Any
    threads: int
    controller: Any

    def predict(self, rows: Array) -> Array:
        """What its `predict` returns."""
        with self.controller.limit(limits=self.threads):
            answer: Array = self.estimator.predict(rows)
        return answer

    def label(self, rows: Array) -> Array:
        """The class of each row."""
        return as_label(self.predict(rows))

    def probabilities(self, rows: Array) -> Array:
        """What its `predict_proba` returns."""
        with self.controller.limit(limits=self.threads):
            answer: Array = self.estimator.predict_proba(rows)
        return answer


def load_estimator(path: Path) -> Any:  # noqa: ANN401  # any estimator
    """What a skops file holds, if skops trusts all its types; it starts no workers of its own.

    Raises:
        UnsupportedModelError: It is no skops file, or holds what skops does not trust.
        FailedPreconditionError: skops is not installed.
    """
    if unknown := untrusted_types(path):
        raise _untrusted(path, unknown)
    estimator = read_estimator(path)
    _use_no_workers(estimator)
    return estimator


def _open(path: Path, options: LoadOptions) -> Model:
    return open_estimator(path, load_estimator(path), options)


def open_estimator(path: Path, estimator: Any, options: LoadOptions) -> Model:  # noqa: ANN401  # any estimator
    """A model that runs an estimator, which was read from `path`.

    Raises:
        UnsupportedModelError: It cannot be served; the message says why.
    """
    base = import_library("sklearn.base", "sklearn")
    if not hasattr(estimator, "predict"):
        raise refuse(path, f"holds a {type(estimator).__name__}, which does not predict")
    features = getattr(estimator, "n_features_in_", None)
    if not isinstance(features, int):
        raise refuse(path, "does not say how many features it takes; fit it on a table of numbers")
    controller = import_library("threadpoolctl", "sklearn").ThreadpoolController()
    held = _Estimator(estimator=estimator, threads=options.intra_op_threads, controller=controller)
    # Estimators compute in doubles unless they are given something else, and then round otherwise.
    # They are Python, and nothing promises that two threads may be in one.
    return open_tabular(
        path,
        Answers(
            predict=lambda rows: rows,  # `predict` and `predict_proba` share nothing
            outputs=_answers(path, held, is_classifier=base.is_classifier(estimator)),
        ),
        features=features,
        datatype=Datatype.FP64,
        concurrent=False,
        names=getattr(estimator, "feature_names_in_", None),
    )


def _check_archive(path: Path) -> None:
    """Refuse what is no skops file, or unpacks to far more than it is."""
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
            names = archive.namelist()
    except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise refuse(path, f"is truncated or corrupt: {error_kind(error)}") from None
    if _SCHEMA not in names:
        raise refuse(path, f"is an archive without {_SCHEMA}; write it with skops.io.dump")
    if unpacked > max(_MOST_UNPACKED_BYTES, _TIMES_PACKED * path.stat().st_size):
        raise refuse(path, f"unpacks to {unpacked} bytes, which no model does")


def untrusted_types(path: Path) -> list[str]:
    """The types in a skops file that skops does not trust; nothing of it is loaded.

    Raises:
        UnsupportedModelError: It is damaged.
    """
    _check_archive(path)
    library = _skops()
    try:
        return [n for n in library.get_untrusted_types(file=path) if n not in _TRUSTED]
    except Exception as error:  # noqa: BLE001  # its message may quote the file
        raise _unreadable(path, error) from None


def read_estimator(path: Path, trusted: Sequence[str] = ()) -> Any:  # noqa: ANN401  # any estimator
    """The estimator in a skops file.

    Args:
        trusted: Types to load besides those that skops trusts.

    Raises:
        UnsupportedModelError: It cannot be loaded.
    """
    _check_archive(path)
    library = _skops()
    try:
        return library.load(path, trusted=[*_TRUSTED, *trusted])
    except Exception as error:  # noqa: BLE001  # its message may quote the file
        raise _unreadable(path, error) from None


def _skops() -> ModuleType:
    # It imports all packages of scikit-learn, and one of them PyTorch where that is installed.
    with without_frameworks():
        return import_library("skops.io", "sklearn")


def _unreadable(path: Path, error: Exception) -> UnsupportedModelError:
    # skops follows what the file says, so whatever is wrong in it comes as any exception.
    return refuse(path, f"cannot be loaded by skops: {error_kind(error)}")


def _untrusted(path: Path, types: list[str]) -> UnsupportedModelError:
    more = f" and {len(types) - _MOST_TYPES} more" if len(types) > _MOST_TYPES else ""
    return refuse(
        path,
        f"holds types that skops does not trust, {', '.join(types[:_MOST_TYPES])}{more}: code of "
        "somebody's, or what crashes if it was tampered with; export the model to ONNX, or push it "
        "with `--convert onnx --allow-code`",
    )


def _use_no_workers(estimator: Any) -> None:  # noqa: ANN401  # any estimator
    """Batches run side by side already, and a replica may not start processes."""
    if hasattr(estimator, "get_params"):
        names = [name for name in estimator.get_params() if name.rpartition("__")[2] == "n_jobs"]
        estimator.set_params(**dict.fromkeys(names, 1))


def _answers(path: Path, held: _Estimator, *, is_classifier: bool) -> Mapping[str, Answer]:
    if not is_classifier:
        return {PREDICTION: held.predict}
    if isinstance(held.estimator.classes_, list):
        raise refuse(path, "gives several labels to a row; one is served")
    if not hasattr(held.estimator, "predict_proba"):
        return {LABEL: held.label}
    return {LABEL: held.label, PROBABILITIES: held.probabilities}
