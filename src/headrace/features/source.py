"""Parquet sources of views: rows with checked columns, read with Polars.

Entity tables of users are checked too. All problems are reported at once: times without a time
zone, columns of another type, rows without an entity.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from headrace.core import Datatype, FailedPreconditionError, InvalidArgumentError
from headrace.features.definitions import Entity, FeatureView

__all__ = ["pl"]

try:
    import polars as pl
except ModuleNotFoundError as error:
    message = "features are read from Parquet by Polars: pip install 'headrace[features]'"
    raise FailedPreconditionError(message) from error
TIME: Final = "\0time"
"""The column of the event time: microseconds since 1970, INT64. No user column has this name."""
CREATED: Final = "\0created"
UNREADABLE: Final = (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError)
"""Polars' errors for an unreadable file: damaged files can cause a panic."""
_LARGEST_FP32: Final = 3.4028234663852886e38
_TYPES: Final[dict[Datatype, pl.DataType]] = {
    Datatype.FP32: pl.Float32(),
    Datatype.FP64: pl.Float64(),
    Datatype.INT64: pl.Int64(),
    Datatype.BOOL: pl.Boolean(),
    Datatype.BYTES: pl.Binary(),
}
_EXPECTED: Final = {
    Datatype.FP32: "numbers",
    Datatype.FP64: "numbers",
    Datatype.INT64: "integers",
    Datatype.BOOL: "true and false",
    Datatype.BYTES: "text or bytes",
}


def polars_type(datatype: Datatype) -> pl.DataType:
    """Return the Polars type of a datatype."""
    return _TYPES[datatype]


def scan_source(view: FeatureView) -> pl.LazyFrame:
    """Return all rows of a view: join keys, `TIME`, `CREATED` if it has a created field, features.

    Lazy: reads only what the validation needs.

    Raises:
        InvalidArgumentError: The source cannot be read, or does not match the view.
    """
    source = view.source
    if source.path is None:
        message = (
            f"view '{view.name}' has no Parquet source (source.path): its values can be served, "
            "but "
            "neither joined nor materialized"
        )
        raise InvalidArgumentError(message)
    with translate_errors(view):
        frame = pl.scan_parquet(source.path).rename(dict(source.renamed), strict=False)
        schema = frame.collect_schema()
        problems = [*_key_problems(view.entities, schema)]
        problems += time_problems(source.timestamp_field, schema, is_naive_utc=source.is_naive_utc)
        if source.created_field and source.created_field not in schema:
            problems.append(f"there is no column {source.created_field!r}")
        for feature in view.features:
            problems += _type_problems(feature.name, feature.datatype, schema)
        _refuse(problems, f"view '{view.name}', {source.path}")
        _refuse(_value_problems(view, frame, schema), f"view '{view.name}', {source.path}")
    columns = [key_column(entity) for entity in view.entities]
    columns.append(time_column(source.timestamp_field))
    if source.created_field:
        columns.append(pl.col(source.created_field).alias(CREATED))
    columns += [pl.col(feature.name).cast(_TYPES[feature.datatype]) for feature in view.features]
    return frame.select(columns)


def newest_rows(
    view: FeatureView, by: Sequence[str], *, until_us: object, since_us: int | None = None
) -> pl.DataFrame:
    """Return the last row of each of `by` within these times, both inclusive, sorted by time.

    Of rows of the same time, the one created later counts, else the one later in the source.

    Raises:
        InvalidArgumentError: The source cannot be read, or does not match the view.
    """
    within = pl.col(TIME) <= pl.lit(until_us, dtype=pl.Int64)
    if since_us is not None:
        within &= pl.col(TIME) >= since_us
    with translate_errors(view):
        return (
            scan_source(view)
            .filter(within)
            .sort([TIME, CREATED] if view.source.created_field else [TIME], maintain_order=True)
            .unique(list(by), keep="last", maintain_order=True)
            .collect()
        )


def check_entities(entities: Sequence[Entity], time: str, frame: pl.DataFrame) -> None:
    """Raise for a table of entity rows that lacks a join key or a time with a time zone."""
    problems = [*_key_problems(entities, frame.schema), *time_problems(time, frame.schema)]
    if not problems and (nulls := frame[time].null_count()):
        problems.append(f"{time!r} is null in {nulls} rows; each row needs a time")
    _refuse(problems, "entity rows")


def key_column(entity: Entity) -> pl.Expr:
    """Return a join key for comparison: an integer, or the bytes of text."""
    column = pl.col(entity.join_key)
    if entity.datatype is Datatype.INT64:
        return column.cast(pl.Int64)
    # Categoricals are compared by their text, not by their codes in one file.
    return column.cast(pl.String).cast(pl.Binary)


def time_column(name: str) -> pl.Expr:
    """Return a time for comparison: microseconds since 1970."""
    return pl.col(name).dt.epoch("us").alias(TIME)


def time_problems(name: str, schema: pl.Schema, *, is_naive_utc: bool = False) -> Iterator[str]:
    """Yield the problems of a column that should contain times."""
    dtype = schema.get(name)
    if dtype is None:
        yield f"there is no column {name!r}"
    elif not isinstance(dtype, pl.Datetime):
        yield f"{name!r} should contain times, but contains {dtype}"
    elif dtype.time_zone is None and not is_naive_utc:
        yield (
            f"{name!r} contains times without a time zone; set it, in Polars "
            f"`.dt.replace_time_zone('UTC')`, in pandas `.dt.tz_localize('UTC')`"
        )


@contextmanager
def translate_errors(view: FeatureView) -> Iterator[None]:
    """Convert Polars' errors about a source; the message names the view."""
    location = f"view '{view.name}', {view.source.path}"
    try:
        yield
    except UNREADABLE as error:
        message = f"{location} cannot be read as Parquet: {reason_of(error)}"
        raise InvalidArgumentError(message) from error


def reason_of(error: BaseException) -> str:
    """Return the first line of Polars' message."""
    return (str(error).splitlines() or [type(error).__name__])[0][:300]


def _key_problems(entities: Sequence[Entity], schema: pl.Schema) -> Iterator[str]:
    for entity in entities:
        dtype = schema.get(entity.join_key)
        if dtype is None:
            yield f"column {entity.join_key!r}, which identifies each {entity.name}, is missing"
        elif entity.datatype is Datatype.INT64 and not dtype.is_integer():
            yield f"{entity.join_key!r} should contain integers, but contains {dtype}"
        elif entity.datatype is Datatype.BYTES and not _is_text(dtype):
            yield (
                f"{entity.join_key!r} should contain text, but contains {dtype}; if that is "
                "correct, set "
                f"`datatype: INT64` of entity {entity.name!r}"
            )


def _type_problems(name: str, datatype: Datatype, schema: pl.Schema) -> Iterator[str]:
    dtype = schema.get(name)
    if dtype is None:
        yield f"there is no column {name!r}"
        return
    match datatype:
        case Datatype.FP32 | Datatype.FP64:
            fits = dtype.is_numeric()
        case Datatype.INT64:
            fits = dtype.is_integer()
        case Datatype.BOOL:
            fits = dtype == pl.Boolean
        case _:
            fits = _is_text(dtype) or dtype == pl.Binary
    if not fits:
        yield (
            f"{name!r} is {datatype} and should contain {_EXPECTED[datatype]}, but contains {dtype}"
        )


def _is_text(dtype: pl.DataType) -> bool:
    return dtype == pl.String or isinstance(dtype, pl.Categorical | pl.Enum)


def _value_problems(view: FeatureView, frame: pl.LazyFrame, schema: pl.Schema) -> list[str]:
    """Return problems of rows without an entity or time, and of numbers out of range."""
    needed = [*view.join_keys, view.source.timestamp_field]
    checks = [pl.col(name).null_count().alias(f"{name!r} is null") for name in needed]
    for feature in view.features:
        if feature.datatype is Datatype.FP32 and schema[feature.name] == pl.Float64:
            too_large = pl.col(feature.name).is_finite() & (
                pl.col(feature.name).abs() > _LARGEST_FP32
            )
            checks.append(too_large.sum().alias(f"{feature.name!r} is too large for FP32"))
    for name, datatype in _whole_numbers(view):
        if schema[name] in {pl.UInt64, pl.Int128, pl.UInt128}:
            is_lost = (
                pl.col(name).cast(pl.Int64, strict=False).is_null() & pl.col(name).is_not_null()
            )
            checks.append(is_lost.sum().alias(f"{name!r} is too large for {datatype}"))
    counts = frame.select(checks).collect(engine="streaming").row(0, named=True)
    return [f"{description} in {count} rows" for description, count in counts.items() if count]


def _whole_numbers(view: FeatureView) -> Iterator[tuple[str, Datatype]]:
    for entity in view.entities:
        if entity.datatype is Datatype.INT64:
            yield entity.join_key, entity.datatype
    for feature in view.features:
        if feature.datatype is Datatype.INT64:
            yield feature.name, feature.datatype


def _refuse(problems: Sequence[str], location: str) -> None:
    if problems:
        raise InvalidArgumentError("\n  ".join([f"{location}: {problems[0]}", *problems[1:]]))
