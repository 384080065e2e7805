"""A join of files: what people bring as Parquet, and what they get, as Parquet."""

from pathlib import Path
from typing import Any

from headrace.core import FailedPreconditionError, InvalidArgumentError
from headrace.features.definitions import FeatureService
from headrace.features.frames import pl
from headrace.features.offline import join_as_of
from headrace.features.source import UNREADABLE, reason_of


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
    except UNREADABLE as error:
        message = f"{entities} cannot be read as Parquet: {reason_of(error)}"
        raise InvalidArgumentError(message) from error
    joined = join_as_of(rows, service, fill_defaults=fill_defaults)
    part = output.with_name(f".{output.name}.part")
    try:
        joined.write_parquet(part)
        part.replace(output)
    except UNREADABLE as error:
        part.unlink(missing_ok=True)
        message = f"{output} cannot be written: {reason_of(error)}"
        raise FailedPreconditionError(message) from error
    counts = {
        view.name: dict(joined[view.status_column].value_counts().sort("count").iter_rows())
        for view in service.all_views
    }
    return {"rows": joined.height, "output": str(output), "views": counts}
