"""scikit-learn's estimators in pickles and joblib files: loaded once, where code may run."""

from pathlib import Path

from headrace.core import CodeNotAllowedError, UnsupportedModelError
from headrace.optimize.convert_sklearn import source_of
from headrace.optimize.sources import Source
from headrace.runtimes.reasons import reason_of
from headrace.runtimes.tabular import import_library


def open_source(path: Path, *, allow_code: bool) -> Source:
    """A pickle. What becomes of it holds no code any more."""
    if not allow_code:
        raise CodeNotAllowedError(str(path), "pickle")
    library = import_library("joblib", "sklearn")
    try:
        estimator = library.load(path)
    except Exception as error:
        # It may be anything that Python can do.
        what = f"{type(error).__name__}: {reason_of(error)}"
        raise UnsupportedModelError(f"{path}: cannot be unpickled: {what}") from error
    if not hasattr(estimator, "predict"):
        msg = f"{path}: holds a {type(estimator).__name__}, which does not predict"
        raise UnsupportedModelError(msg)
    return source_of(path, estimator)
