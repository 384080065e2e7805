"""Profiles: their subject, their files, their tables."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from headrace.cli.connection import find_target
from headrace.cli.offline import stored_model
from headrace.cli.output import table
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
from headrace.optimize.profiling.messages import Cell
from headrace.optimize.profiling.predict import Point
from headrace.registry import read_content

if TYPE_CHECKING:
    from rich.text import Text


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """What is profiled. `endpoint`: empty for a model."""

    name: str
    path: Path
    runtime: str
    digest: str
    allow_code: bool
    rows_independent: bool = False
    endpoint: str = ""


def find_subject(
    target: str,
    *,
    server: str | None,
    home: Path,
    runtime: str,
    allow_code: bool,
    rows_independent: bool = False,
) -> Subject:
    """What `target` names: a path, else an endpoint that runs, else a model of the registry.

    An endpoint's model is measured as its spec declares its rows.

    Raises:
        NotFoundError: There is none of these.
    """
    path = Path(target)
    if path.exists():
        digest = str(read_content(path).digest)
        return Subject(
            name=target,
            path=path.absolute(),
            runtime=runtime,
            digest=digest,
            allow_code=allow_code,
            rows_independent=rows_independent,
        )
    endpoint, reference = "", target
    if ":" not in target and (served := _served(target, server, home)):
        endpoint, reference = target, str(served["model"])
        declared = (served.get("batching") or {}).get("independence") == "declared"
        rows_independent = rows_independent or declared
    try:
        version, path = stored_model(reference, home)
    except (NotFoundError, InvalidArgumentError) as error:
        if endpoint:
            msg = f"endpoint '{target}' serves {reference}, which is not in {home}: {error}"
            raise NotFoundError(msg) from None
        msg = f"there is no file or directory and no endpoint '{target}', and {error}"
        raise NotFoundError(msg) from None
    return Subject(
        name=version.reference,
        path=path,
        runtime=version.runtime,
        digest=str(version.digest),
        allow_code=allow_code or bool(endpoint),
        rows_independent=rows_independent,
        endpoint=endpoint,
    )


def _served(name: str, server: str | None, home: Path) -> dict[str, Any]:
    """The revision with the most requests of an endpoint; empty if there is none such."""
    try:
        status = find_target(server, home).management().get("/api/v1/status")
    except HeadraceError:
        return {}
    for endpoint in status["endpoints"]:
        if endpoint["name"] == name:
            versions = [one for one in endpoint["revisions"] if ":" in str(one.get("model", ""))]
            return max(versions, key=lambda one: one.get("weight", 0), default={})
    return {}


DIRECTORY = "profiles"


def save_profile(home: Path, profile: Profile) -> Path:
    """Keep a profile, instead of an older one of the same; where it is now.

    Raises:
        FailedPreconditionError: It cannot be written.
    """
    try:
        path = make_private_dir(home / DIRECTORY) / profile.file_name
        write_atomic(path, encode_profile(profile))
    except OSError as error:
        msg = f"the profile cannot be kept in {home / DIRECTORY}: {error.strerror or error}"
        raise FailedPreconditionError(msg) from error
    return path


def read_profiles(home: Path, digest: str) -> list[Profile]:
    """The profiles of a model's content, of whatever processor.

    Raises:
        ArtifactCorruptError: One is damaged; the message names the file.
        FailedPreconditionError: They cannot be read.
    """
    prefix = file_prefix(digest)
    try:
        files = sorted(
            file for file in (home / DIRECTORY).glob("*.json") if file.name.startswith(prefix)
        )
        found = [decode_profile(file.read_bytes(), where=str(file)) for file in files]
    except HeadraceError:
        raise
    except OSError as error:
        msg = f"the profiles in {home / DIRECTORY} cannot be read: {error.strerror or error}"
        raise FailedPreconditionError(msg) from error
    return [profile for profile in found if profile.digest == digest]


def newest_profile(model: str, home: Path) -> Profile:
    """The newest profile of a model: a path or NAME[:VERSION].

    Raises:
        FailedPreconditionError: It has none; the message names the command that makes one.
    """
    subject = find_subject(model, server=None, home=home, runtime="", allow_code=True)
    profiles = read_profiles(home, subject.digest)
    if not profiles:
        msg = f"'{model}' has no profile in {home}; make one: headrace profile {model}"
        raise FailedPreconditionError(msg)
    return max(profiles, key=lambda profile: profile.at)


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
