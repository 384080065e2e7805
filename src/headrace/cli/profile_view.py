"""A profile for people: tables."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from headrace.cli.output import table
from headrace.core.text import bytes_text, duration_text
from headrace.optimize.profiling.document import Profile
from headrace.optimize.profiling.messages import Cell
from headrace.optimize.profiling.predict import Point

if TYPE_CHECKING:
    from rich.text import Text

_NOT_MEASURED: Final = "-"


def profile_text(profile: Profile) -> "list[Text | str]":
    """What is shown, in order."""
    measured = profile.measured
    loaded = measured.loaded
    head = (
        f"{profile.model} ({profile.runtime}) on {profile.cores} of the cores of "
        f"{profile.processor.name}"
    )
    parts: list[Text | str] = [head, "", _grid(measured.cells)]
    parts += ["", _capacity(profile)]
    parts += [_knee(profile), "", _curve(profile)]
    if len(profile.by_length) > 1:
        parts += ["", _lengths(profile)]
    parts += ["", _operators(profile), "", _costs(profile), "", "recommended:", _settings(profile)]
    parts += [""] + [f"note: {note}" for note in measured.notes] if measured.notes else []
    if not measured.complete:
        parts.append("note: stopped before all was measured")
    if loaded.length:
        parts.append(f"note: requests of one row of length {loaded.length} are predicted")
    return parts


def _grid(cells: Sequence[Cell]) -> "Text":
    rows = [
        (
            str(cell.length or _NOT_MEASURED),
            str(cell.rows),
            str(cell.threads),
            str(cell.runs),
            duration_text(cell.p50_s),
            duration_text(cell.p99_s),
            f"{cell.rows_per_s:.4g}",
            f"{cell.foreign_ratio:.0%}",
        )
        for cell in sorted(cells, key=lambda c: (c.length, c.threads, c.runs, c.rows))
    ]
    return table(rows, "length", "rows", "threads", "at once", "p50", "p99", "rows/s", "others")


def _capacity(profile: Profile) -> str:
    found = profile.prediction.capacity_ci
    sure = f" [{found[0]:.4g}, {found[1]:.4g}]" if found else ""
    return f"capacity of one replica: {profile.prediction.capacity:.4g}{sure} requests/s"


def _p99(point: Point) -> str:
    found = point.p99_ci_s
    sure = f" [{duration_text(found[0])}, {duration_text(found[1])}]" if found else ""
    return duration_text(point.p99_s) + sure


def _knee(profile: Profile) -> str:
    prediction = profile.prediction
    limit = duration_text(prediction.knee_p99_s)
    if prediction.knee_rate is None:
        return f"knee: p99 is above {limit} at any rate"
    share = prediction.knee_rate / prediction.capacity
    return f"knee: p99 passes {limit} at {prediction.knee_rate:.4g} requests/s ({share:.0%})"


def _curve(profile: Profile) -> "Text":
    rows = [
        (
            f"{point.load_ratio:.0%}",
            f"{point.rate:.4g}",
            duration_text(point.p50_s),
            duration_text(point.p95_s),
            _p99(point),
            f"{point.batch_rows:.3g}",
        )
        for point in profile.prediction.curve
    ]
    return table(rows, "load", "requests/s", "p50", "p95", "p99", "batch")


def _lengths(profile: Profile) -> "Text":
    rows = [
        (str(one.length), f"{one.capacity:.4g}", duration_text(one.at_70.p99_s))
        for one in profile.by_length
    ]
    return table(rows, "length", "capacity", "p99 at 70%")


def _operators(profile: Profile) -> "Text | str":
    operators = profile.measured.operators
    if not operators.items:
        return f"time by operator: {operators.reason}"
    rows = [
        (one.name, f"{one.share_ratio:.1%}", duration_text(one.run_s), f"{one.calls:.3g}")
        for one in operators.items
    ]
    return table(rows, "operator", "share", "of a run", "calls")


def _costs(profile: Profile) -> "Text":
    rows = [("load", duration_text(profile.measured.loaded.load_s))]
    memory = profile.measured.memory
    if memory is not None:
        rows += [
            ("memory after load", bytes_text(memory.loaded_bytes)),
            (f"after {memory.largest_rows} rows at once", bytes_text(memory.largest_bytes)),
        ]
    overhead = profile.overhead
    if overhead is not None:
        rows.append(("a request besides its run", duration_text(overhead.wall_s)))
    return table(rows)


def _settings(profile: Profile) -> "Text":
    reasons = profile.recommendation.reasons
    return table([(one.name, one.value, one.why) for one in reasons])
