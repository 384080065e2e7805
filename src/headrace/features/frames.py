"""Polars, or how to get it: it comes with an extra, as serving does without."""

from headrace.core import FailedPreconditionError

try:
    import polars as pl
except ModuleNotFoundError as error:
    message = "features are read from Parquet by Polars: pip install 'headrace[features]'"
    raise FailedPreconditionError(message) from error

__all__ = ["pl"]
