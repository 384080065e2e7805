"""What a join reads and writes: Parquet, of people's own."""

from pathlib import Path
from typing import Any

# Without Polars this says how to install it, which an import of Polars itself would not.
from headrace.features import FeatureService, join_as_of  # isort: split

import polars as pl

from headrace.core import FailedPreconditionError, InvalidArgumentError


def join_files(
    service: FeatureService, entities: Path, output: Path, *, fill_defaults: bool
) -> dict[str, Any]:
    """Write the joined rows to `output`; how many there are, and of which status.

    Raises:
        InvalidArgumentError: `entities` cannot be read, or is not what the service takes.
        FailedPreconditionError: `output` cannot be written.
    """
    try:
        rows = pl.read_parquet(entities, glob=False)
    except (pl.exceptions.PolarsError, OSError) as error:
        reason = str(error).splitlines()[0][:300]
        raise InvalidArgumentError(f"{entities} cannot be read as Parquet: {reason}") from error
    joined = join_as_of(rows, service, fill_defaults=fill_defaults)
    part = output.with_name(f".{output.name}.part")
    try:
        joined.write_parquet(part)
        part.replace(output)
    except (pl.exceptions.PolarsError, OSError) as error:
        part.unlink(missing_ok=True)
        reason = str(error).splitlines()[0][:300]
        raise FailedPreconditionError(f"{output} cannot be written: {reason}") from error
    counts = {
        view.name: dict(joined[view.status_column].value_counts().sort("count").iter_rows())
        for view in service.views
    }
    return {"rows": joined.height, "output": str(output), "views": counts}
