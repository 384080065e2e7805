"""Polars and pyarrow, which an optional dependency installs."""

from typing import Any

from headrace.core import FailedPreconditionError

NEEDED = "batch jobs need Polars and pyarrow: pip install 'headrace[batch]'"

try:
    import polars as pl
    import pyarrow as pa
    import pyarrow.compute
    import pyarrow.ipc  # noqa: F401  # makes `pa.ipc` available
    import pyarrow.parquet as pq
except ModuleNotFoundError as error:
    raise FailedPreconditionError(NEEDED) from error

Batch = Any
"""A `pyarrow.RecordBatch`, which has no types."""
Schema = Any
"""A `pyarrow.Schema`."""

__all__ = ["Batch", "Schema", "pa", "pl", "pq"]
