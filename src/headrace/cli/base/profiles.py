"""Profiles: their subject, their files, their tables."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from headrace.cli.base.connection import CommandTarget, find_target
from headrace.cli.base.offline import stored_model
from headrace.cli.base.output import Column, rows_text, table
from headrace.core import (
    FailedPreconditionError,
    HeadraceError,
    InvalidArgumentError,
    NotFoundError,
)
from headrace.core.files import make_private_dir, write_atomic
from headrace.core.text import bytes_text, duration_text
from headrace.optimize.profiling.document import (
    Profile,
    decode_profile,
    encode_profile,
    file_prefix,
)
from headrace.optimize.profiling.predict import LoadPoint
from headrace.registry import read_content

if TYPE_CHECKING:
    from rich.text import Text


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfiledModel:
    """Model that is profiled."""

    name: str
    path: Path
    runtime: str
    digest: str
    allow_code: bool
    rows_independent: bool = False
    endpoint: str = ""
    """Name of the endpoint; empty for a model."""


def find_subject(
    name: str,
    target: CommandTarget,
    *,
    runtime: str = "",
    allow_code: bool = False,
    rows_independent: bool = False,
) -> ProfiledModel:
    """Return the subject `name`: a path, else a running endpoint, else a registry model.

    An endpoint's model is measured as its spec declares its rows.

    Raises:
        NotFoundError: No such file, version or endpoint exists.
    """
    path = Path(name)
    if path.exists():
        return ProfiledModel(
            name=name,
            path=path.absolute(),
            runtime=runtime,
            digest=str(read_content(path).digest),
            allow_code=allow_code,
            rows_independent=rows_independent,
        )
    served = {} if ":" in name else _served(name, target)
    reference = str(served.get("model", name))
    try:
        version, path = stored_model(reference, target.home)
    except (NotFoundError, InvalidArgumentError) as error:
        if served:
            msg = f"endpoint '{name}' serves {reference}, which is not in {target.home}: {error}"
        else:
            msg = f"no file, directory or endpoint '{name}', and {error}"
        raise NotFoundError(msg) from None
    declared = (served.get("batching") or {}).get("independence") == "declared"
    return ProfiledModel(
        name=version.reference,
        path=path,
        runtime=version.runtime,
        digest=str(version.digest),
        allow_code=allow_code or bool(served),
        rows_independent=rows_independent or declared,
        endpoint=name if served else "",
    )


def _served(name: str, target: CommandTarget) -> dict[str, Any]:
    """Return the revision of an endpoint with the most requests; empty without one."""
    try:
        status = target.management().get("/api/v1/status")
    except HeadraceError:
        return {}
    revisions = [
        revision
        for endpoint in status["endpoints"]
        if endpoint["name"] == name
        for revision in endpoint["revisions"]
        if ":" in str(revision.get("model", ""))
    ]
    return max(revisions, key=lambda revision: revision.get("weight", 0), default={})


DIRECTORY = "profiles"


def save_profile(home: Path, profile: Profile) -> Path:
    """Store a profile, replacing an older one of the same subject; return its path.

    Raises:
        FailedPreconditionError: The profile cannot be written.
    """
    try:
        path = make_private_dir(home / DIRECTORY) / profile.file_name
        write_atomic(path, encode_profile(profile))
    except OSError as error:
        msg = f"the profile cannot be stored in {home / DIRECTORY}: {error.strerror or error}"
        raise FailedPreconditionError(msg) from error
    return path


def read_profiles(home: Path, digest: str) -> list[Profile]:
    """Return the profiles of a model's content, for all processors.

    Raises:
        ArtifactCorruptError: A profile is damaged; the message names the file.
        FailedPreconditionError: The profiles cannot be read.
    """
    try:
        files = sorted((home / DIRECTORY).glob(f"{file_prefix(digest)}*.json"))
        profiles = [decode_profile(file.read_bytes(), location=str(file)) for file in files]
    except OSError as error:
        msg = f"the profiles in {home / DIRECTORY} cannot be read: {error.strerror or error}"
        raise FailedPreconditionError(msg) from error
    return [profile for profile in profiles if profile.digest == digest]


def newest_profile(model: str, home: Path) -> Profile:
    """Return the newest profile of a model: a path or NAME[:VERSION].

    Raises:
        FailedPreconditionError: The model has none; the message names the command that creates one.
    """
    subject = find_subject(model, find_target(None, home))
    profiles = read_profiles(home, subject.digest)
    if not profiles:
        msg = f"'{model}' has no profile in {home}; create one: headrace profile {model}"
        raise FailedPreconditionError(msg)
    return max(profiles, key=lambda profile: profile.created_at)


def profile_text(profile: Profile) -> "list[Text | str]":
    """Return the displayed parts, in order."""
    measured, prediction = profile.measured, profile.prediction
    interval = prediction.capacity_ci
    sure = f" [{interval[0]:.4g}, {interval[1]:.4g}]" if interval else ""
    limit = duration_text(prediction.knee_p99_s)
    if prediction.knee_rate is None:
        knee = f"knee: p99 is above {limit} at any rate"
    else:
        share = prediction.knee_rate / prediction.capacity
        knee = f"knee: p99 passes {limit} at {prediction.knee_rate:.4g} requests/s ({share:.0%})"
    order = sorted(measured.cells, key=lambda c: (c.length, c.threads, c.runs, c.rows))
    parts: list[Text | str] = [
        (
            f"{profile.model} ({profile.runtime}) on {profile.cores} cores of "
            f"{profile.processor.name}"
        ),
        "",
        rows_text(order, _CELL_COLUMNS),
        "",
        f"capacity of one replica: {prediction.capacity:.4g}{sure} requests/s",
        knee,
        "",
        rows_text(prediction.curve, _CURVE_COLUMNS),
    ]
    if len(profile.by_length) > 1:
        parts += ["", rows_text(profile.by_length, _LENGTH_COLUMNS)]
    if measured.operators.items:
        parts += ["", rows_text(measured.operators.items, _OPERATOR_COLUMNS)]
    else:
        parts += ["", f"time by operator: {measured.operators.reason}"]
    costs = [("load", duration_text(measured.loaded.load_s))]
    memory = measured.memory
    if memory is not None:
        costs += [
            ("memory after load", bytes_text(memory.loaded_bytes)),
            (f"after {memory.largest_rows} concurrent rows", bytes_text(memory.largest_bytes)),
        ]
    if profile.overhead is not None:
        costs.append(("request overhead", duration_text(profile.overhead.wall_s)))
    settings = [
        (reason.name, reason.value, reason.why) for reason in profile.recommendation.reasons
    ]
    parts += ["", table(costs), "", "recommended:", table(settings)]
    parts += [""] + [f"note: {note}" for note in measured.notes] if measured.notes else []
    if not measured.complete:
        parts.append("note: stopped before all configurations were measured")
    if measured.loaded.length:
        length = measured.loaded.length
        parts.append(f"note: predictions are for requests of one row of length {length}")
    return parts


def _p99(point: LoadPoint) -> str:
    interval = point.p99_ci_s
    sure = f" [{duration_text(interval[0])}, {duration_text(interval[1])}]" if interval else ""
    return duration_text(point.p99_s) + sure


_CELL_COLUMNS: Final[dict[str, Column]] = {
    "length": lambda cell: str(cell.length or "-"),
    "rows": lambda cell: str(cell.rows),
    "threads": lambda cell: str(cell.threads),
    "runs": lambda cell: str(cell.runs),
    "p50": lambda cell: duration_text(cell.p50_s),
    "p99": lambda cell: duration_text(cell.p99_s),
    "rows/s": lambda cell: f"{cell.rows_per_s:.4g}",
    "other load": lambda cell: f"{cell.foreign_ratio:.0%}",
}
_CURVE_COLUMNS: Final[dict[str, Column]] = {
    "load": lambda point: f"{point.load_ratio:.0%}",
    "requests/s": lambda point: f"{point.rate:.4g}",
    "p50": lambda point: duration_text(point.p50_s),
    "p95": lambda point: duration_text(point.p95_s),
    "p99": _p99,
    "batch": lambda point: f"{point.batch_rows:.3g}",
}
_LENGTH_COLUMNS: Final[dict[str, Column]] = {
    "length": lambda row: str(row.length),
    "capacity": lambda row: f"{row.capacity:.4g}",
    "p99 at 70%": lambda row: duration_text(row.at_70.p99_s),
}
_OPERATOR_COLUMNS: Final[dict[str, Column]] = {
    "operator": lambda row: row.name,
    "share": lambda row: f"{row.share_ratio:.1%}",
    "of a run": lambda row: duration_text(row.run_s),
    "calls": lambda row: f"{row.calls:.3g}",
}
