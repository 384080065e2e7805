"""Parquet sources of views: rows with checked columns, read with Polars.

Also of tables that people bring. What cannot be right is refused with all mistakes at once: a time
without a zone, a column of another type, a row that names no entity.
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
"""The column of the event time: microseconds since 1970, INT64. No other can be called so."""
CREATED: Final = "\0created"
UNREADABLE: Final = (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError)
"""What Polars raises for a file that it cannot read: of some damaged ones, a panic."""
_LARGEST_FP32: Final = 3.4028234663852886e38
_TYPES: Final[dict[Datatype, pl.DataType]] = {
    Datatype.FP32: pl.Float32(),
    Datatype.FP64: pl.Float64(),
    Datatype.INT64: pl.Int64(),
    Datatype.BOOL: pl.Boolean(),
    Datatype.BYTES: pl.Binary(),
}
_WANTED: Final = {
    Datatype.FP32: "numbers",
    Datatype.FP64: "numbers",
    Datatype.INT64: "whole numbers",
    Datatype.BOOL: "true and false",
    Datatype.BYTES: "text or bytes",
}


def polars_type(datatype: Datatype) -> pl.DataType:
    """How values of a datatype stand in a table."""
    return _TYPES[datatype]


def scan_source(view: FeatureView) -> pl.LazyFrame:
    """All rows of a view: its join keys, `TIME`, `CREATED` if it has that, its features.

    Nothing is read but what is needed to know that it can be used.

    Raises:
        InvalidArgumentError: The source cannot be read, or is not what the view says.
    """
    source = view.source
    if source.path is None:
        message = (
            f"view '{view.name}' has no Parquet (source.path): its values can be served, but "
            "neither joined nor materialized from here"
        )
        raise InvalidArgumentError(message)
    with telling(view):
        frame = pl.scan_parquet(source.path).rename(dict(source.renamed), strict=False)
        schema = frame.collect_schema()
        wrong = [*_wrong_keys(view.entities, schema)]
        wrong += wrong_time(source.timestamp_field, schema, is_naive_utc=source.is_naive_utc)
        if source.created_field and source.created_field not in schema:
            wrong.append(f"there is no column {source.created_field!r}")
        for feature in view.features:
            wrong += _wrong_type(feature.name, feature.datatype, schema)
        _refuse(wrong, f"view '{view.name}', {source.path}")
        _refuse(_wrong_values(view, frame, schema), f"view '{view.name}', {source.path}")
    columns = [key_column(entity) for entity in view.entities]
    columns.append(time_column(source.timestamp_field))
    if source.created_field:
        columns.append(pl.col(source.created_field).alias(CREATED))
    columns += [pl.col(one.name).cast(_TYPES[one.datatype]) for one in view.features]
    return frame.select(columns)


def newest_rows(
    view: FeatureView, by: Sequence[str], *, until_us: object, since_us: int | None = None
) -> pl.DataFrame:
    """The last row of each of `by` within these times, both included, sorted by time.

    Of rows of one time, that with the later creation counts, else the one that stands later.

    Raises:
        InvalidArgumentError: The source cannot be read, or is not what the view says.
    """
    within = pl.col(TIME) <= pl.lit(until_us, dtype=pl.Int64)
    if since_us is not None:
        within &= pl.col(TIME) >= since_us
    with telling(view):
        return (
            scan_source(view)
            .filter(within)
            .sort([TIME, CREATED] if view.source.created_field else [TIME], maintain_order=True)
            .unique(list(by), keep="last", maintain_order=True)
            .collect()
        )


def check_entities(entities: Sequence[Entity], time: str, frame: pl.DataFrame) -> None:
    """Refuse a table of entity rows that lacks a join key or a time with a zone."""
    wrong = [*_wrong_keys(entities, frame.schema), *wrong_time(time, frame.schema)]
    if not wrong and (nulls := frame[time].null_count()):
        wrong.append(f"{time!r} is null in {nulls} rows, which then have no past")
    _refuse(wrong, "entity rows")


def key_column(entity: Entity) -> pl.Expr:
    """A join key as it is compared: whole numbers, or the bytes of text."""
    column = pl.col(entity.join_key)
    if entity.datatype is Datatype.INT64:
        return column.cast(pl.Int64)
    # Categories are compared by what they say, not by their numbers in one file.
    return column.cast(pl.String).cast(pl.Binary)


def time_column(name: str) -> pl.Expr:
    """A time as it is compared: whole microseconds since 1970."""
    return pl.col(name).dt.epoch("us").alias(TIME)


def wrong_time(name: str, schema: pl.Schema, *, is_naive_utc: bool = False) -> Iterator[str]:
    """What is wrong with a column that should hold times."""
    dtype = schema.get(name)
    if dtype is None:
        yield f"there is no column {name!r}"
    elif not isinstance(dtype, pl.Datetime):
        yield f"{name!r} should hold times and holds {dtype}"
    elif dtype.time_zone is None and not is_naive_utc:
        yield (
            f"{name!r} holds times without a zone; say which they are in, in Polars "
            f"`.dt.replace_time_zone('UTC')`, in pandas `.dt.tz_localize('UTC')`"
        )


@contextmanager
def telling(view: FeatureView) -> Iterator[None]:
    """Say in our words, and of which view, why Polars cannot read a source."""
    where = f"view '{view.name}', {view.source.path}"
    try:
        yield
    except UNREADABLE as error:
        message = f"{where} cannot be read as Parquet: {reason_of(error)}"
        raise InvalidArgumentError(message) from error


def reason_of(error: BaseException) -> str:
    """What Polars says, in one line."""
    return (str(error).splitlines() or [type(error).__name__])[0][:300]


def _wrong_keys(entities: Sequence[Entity], schema: pl.Schema) -> Iterator[str]:
    for entity in entities:
        dtype = schema.get(entity.join_key)
        if dtype is None:
            yield f"there is no column {entity.join_key!r}, which names each {entity.name}"
        elif entity.datatype is Datatype.INT64 and not dtype.is_integer():
            yield f"{entity.join_key!r} should hold whole numbers and holds {dtype}"
        elif entity.datatype is Datatype.BYTES and not _is_text(dtype):
            yield (
                f"{entity.join_key!r} should hold text and holds {dtype}; if that is right, say "
                f"`datatype: INT64` at entity {entity.name!r}"
            )


def _wrong_type(name: str, datatype: Datatype, schema: pl.Schema) -> Iterator[str]:
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
        yield f"{name!r} is {datatype} and should hold {_WANTED[datatype]}, but holds {dtype}"


def _is_text(dtype: pl.DataType) -> bool:
    return dtype == pl.String or isinstance(dtype, pl.Categorical | pl.Enum)


def _wrong_values(view: FeatureView, frame: pl.LazyFrame, schema: pl.Schema) -> list[str]:
    """Rows that name no entity or time, and numbers that a smaller type cannot hold."""
    needed = [*view.join_keys, view.source.timestamp_field]
    checks = [pl.col(name).null_count().alias(f"{name!r} is null") for name in needed]
    for one in view.features:
        if one.datatype is Datatype.FP32 and schema[one.name] == pl.Float64:
            too_large = pl.col(one.name).is_finite() & (pl.col(one.name).abs() > _LARGEST_FP32)
            checks.append(too_large.sum().alias(f"{one.name!r} is too large for FP32"))
    for name, datatype in _whole_numbers(view):
        if schema[name] in {pl.UInt64, pl.Int128, pl.UInt128}:
            lost = pl.col(name).cast(pl.Int64, strict=False).is_null() & pl.col(name).is_not_null()
            checks.append(lost.sum().alias(f"{name!r} is too large for {datatype}"))
    counts = frame.select(checks).collect(engine="streaming").row(0, named=True)
    return [f"{what} in {count} rows" for what, count in counts.items() if count]


def _whole_numbers(view: FeatureView) -> Iterator[tuple[str, Datatype]]:
    for entity in view.entities:
        if entity.datatype is Datatype.INT64:
            yield entity.join_key, entity.datatype
    for feature in view.features:
        if feature.datatype is Datatype.INT64:
            yield feature.name, feature.datatype


def _refuse(wrong: Sequence[str], where: str) -> None:
    if wrong:
        raise InvalidArgumentError("\n  ".join([f"{where}: {wrong[0]}", *wrong[1:]]))
