"""What may stand under `jobs`: a model over a data set, by the clock or by hand."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import Field, Strict

from headrace.core.cron import cron_mistake, runs_once_a_day, zone_mistake
from headrace.core.names import NAME_PATTERN
from headrace.core.spec.base import SpecModel
from headrace.core.spec.yaml import SpecMistake
from headrace.core.text import size_bytes

PLACEHOLDERS: Final = ("run_id", "date")
"""What `{…}` in an input or output stands for."""
# Not the `${NAME}` of the environment, which only the run itself looks up.
PLACEHOLDER: Final = re.compile(r"(?<!\$)\{([^{}]*)\}")
_SIZE: Final = r"^[0-9]*[1-9][0-9]*(\.[0-9]+)?\s*([bB]|[kKmMgG]([iI]?[bB])?)?$"
_NAME: Final = NAME_PATTERN.replace("127", "99")
"""Shorter than others' names: the ids of a job's runs begin with it."""
_DAY_S: Final = 86_400.0
_MEMORY: Final = "512MiB"

_Text = Annotated[str, Field(min_length=1, max_length=4096)]
_Column = Annotated[str, Field(pattern=r"^[^,\x00]+$", max_length=300)]
_Input = Annotated[str, Field(pattern=r"^[^=\x00]+$", max_length=300)]
_Columns = Annotated[tuple[_Column, ...], Strict(strict=False)]


class JobScheduleSpec(SpecModel):
    """When a job runs by itself."""

    cron: str = Field(
        min_length=1,
        max_length=200,
        description="Minute, hour, day of the month, month, day of the week: `30 6 * * 1-5`.",
    )
    timezone: str = Field(
        default="UTC", max_length=100, description="In whose clock `cron` is: `Europe/Paris`."
    )
    catch_up: Literal["none", "last", "all"] = Field(
        default="last",
        description="Of moments that passed while nothing could run: made up for is none, the "
        "newest, or each, one after the other.",
    )
    catch_up_within_s: float = Field(
        default=_DAY_S,
        ge=0.0,
        le=366 * _DAY_S,
        description="Moments that passed longer ago are left out. Unit: seconds.",
    )
    overlap: Literal["skip", "wait", "allow"] = Field(
        default="skip",
        description="At a moment at which the run before has not ended: `skip` leaves it out, "
        "`wait` runs it then, `allow` runs both.",
    )
    late_after_s: float | None = Field(
        default=None,
        gt=0.0,
        le=366 * _DAY_S,
        description="Alert if no run has succeeded so long after its moment. Unit: seconds. Null "
        "for never.",
    )


class JobSpec(SpecModel):
    """A model over a data set, as `headrace batch run` does it."""

    name: str = Field(pattern=_NAME, description="Unique among jobs.")
    model: _Text = Field(
        description="A model file or directory (relative to the spec file), NAME[:VERSION] of the "
        "registry, or an endpoint: then what it serves, with its features.",
    )
    input: _Text = Field(
        description="A path, glob, folder (relative to the spec file) or URL; `{date}` is the day "
        "of the run's moment in the schedule's zone, `{run_id}` the run. `${NAME}` is a variable "
        "of the control plane's environment.",
    )
    output: _Text = Field(
        description="A folder (relative to the spec file), of each run its own: with `{run_id}`, "
        "or with `{date}` where the schedule has no two moments on one day.",
    )
    input_format: Literal["parquet", "csv", "jsonl", "arrow", "images"] | None = Field(
        default=None, description="Null: by the files' endings."
    )
    sql: str = Field(default="", max_length=100_000, description="What a database is asked.")
    sql_key: str = Field(
        default="",
        max_length=300,
        description="A column of whole numbers whose ranges are shards, so that a run can go on.",
    )
    columns: dict[_Input, _Columns] = Field(
        default_factory=dict,
        description="For an input of the model its columns (`f0..f31` is a range); by name where "
        "not given.",
    )
    keys: Annotated[tuple[_Column, ...], Strict(strict=False)] = Field(
        default=(),
        max_length=1000,
        description="Columns that are written beside the answers; `NAME=COLUMN` calls one NAME.",
    )
    outputs: Annotated[tuple[_Column, ...], Strict(strict=False)] = Field(
        default=(), max_length=1000, description="Which of the model are written. Empty: all."
    )
    format: Literal["parquet", "csv", "jsonl", "arrow"] = Field(
        default="parquet", description="Of the output."
    )
    errors: Literal["column", "file"] = Field(
        default="column",
        description="Where rows' errors go: beside the row, or into files in `_errors`.",
    )
    max_errors: int | None = Field(
        default=None,
        ge=0,
        description="Rows that may have errors; more end the run. Null for any number.",
    )
    nulls: Literal["nan", "error"] = Field(
        default="nan",
        description="What a null is to an input of floats: NaN, a missing value, or an error of "
        "its row.",
    )
    chunk_rows: int | None = Field(
        default=None, ge=1, le=1 << 24, description="Rows of one run of the model. Null: by size."
    )
    shard_rows: int | None = Field(
        default=None, ge=1, le=1 << 40, description="Rows of a shard, about. Null: by kind."
    )
    workers: int | None = Field(
        default=None, ge=1, le=1024, description="Shards at once. Null: one for each usable core."
    )
    memory: str = Field(
        default=_MEMORY,
        pattern=_SIZE,
        max_length=40,
        description="What the data of all shards under way may take.",
    )
    memory_limit: str | None = Field(
        default=None,
        pattern=_SIZE,
        max_length=40,
        description="What a run may take in all, the model and the libraries included: a try that "
        "takes more is ended. Null for what there is.",
    )
    runtime: str = Field(default="", max_length=100, description="What runs it. Empty: detected.")
    allow_code: bool = Field(
        default=False, description="The model may be of a format that runs its author's code."
    )
    rows_independent: bool = Field(
        default=False,
        description="As `batching.rows_independent` of an endpoint, for a model that is none's.",
    )
    schedule: JobScheduleSpec | None = Field(
        default=None, description="Null: only by hand, by `headrace batch start`."
    )
    timeout_s: float = Field(
        default=_DAY_S,
        gt=0.0,
        le=30 * _DAY_S,
        description="A try that takes longer is ended; the next goes on. Unit: seconds.",
    )
    retries: int = Field(
        default=2, ge=0, le=100, description="How often a run that fails is tried again."
    )
    keep_runs: int = Field(
        default=50, ge=1, le=10_000, description="How many are kept in the history."
    )


def job_disagreements(document: Mapping[Any, Any]) -> list[SpecMistake]:
    """What is wrong with jobs that no single field shows."""
    found: list[SpecMistake] = []
    jobs = document.get("jobs")
    first_use: dict[str, int] = {}
    for i, job in enumerate(jobs if isinstance(jobs, list | tuple) else []):
        if not isinstance(job, Mapping):
            continue
        place, name = f"jobs[{i}]", job.get("name")
        if isinstance(name, str) and first_use.setdefault(name, i) != i:
            message = f"{name!r} is already the name of jobs[{first_use[name]}]"
            found.append(SpecMistake(place=f"{place}.name", message=message))
        found += [
            SpecMistake(place=f"{place}.{key}", message=message)
            for key in ("input", "output", "model")
            for message in _path_mistakes(key, job.get(key))
        ]
        found += _memory_mistakes(job, place)
        if isinstance(job.get("schedule"), Mapping):
            wrong = _schedule_mistakes(job["schedule"], f"{place}.schedule")
            found += wrong or _date_mistakes(job, job["schedule"], place)
    return found


def with_absolute_job_paths(document: Mapping[str, Any], base_dir: Path | None) -> dict[str, Any]:
    """`document` with jobs' inputs and outputs absolute; a job's model is as an endpoint's."""
    jobs = document.get("jobs")
    if not isinstance(jobs, list | tuple) or base_dir is None:
        return dict(document)
    return {**document, "jobs": [_absolute(job, base_dir.absolute()) for job in jobs]}


def _absolute(job: object, base: Path) -> object:
    if not isinstance(job, Mapping):
        return job
    changed = dict(job)
    for key in ("input", "output"):
        text = job.get(key)
        if isinstance(text, str) and text and "\0" not in text and not _is_elsewhere(text):
            path = Path(text).expanduser()
            changed[key] = text if text.startswith("/") else str(base / path)
    return changed


def _path_mistakes(key: str, text: object) -> list[str]:
    if not isinstance(text, str) or not text:
        return []
    found = ["has a NUL"] if "\0" in text else []
    if key == "model":
        return found
    names = PLACEHOLDER.findall(text)
    known = ", ".join(f"{{{name}}}" for name in PLACEHOLDERS)
    found += [f"has {{{name}}}; known here: {known}" for name in names if name not in PLACEHOLDERS]
    if key == "output" and "://" in text:
        found.append("is a URL; outputs are folders that the control plane reaches")
    elif not text.startswith("/") and not _is_elsewhere(text):
        found.append("is a relative path, which only spec files may have; give all of it")
    if key == "output" and not names:
        found.append("would be that of every run, and a folder has one run's: add {run_id}")
    return found


def _date_mistakes(
    job: Mapping[Any, Any], schedule: Mapping[Any, Any], place: str
) -> list[SpecMistake]:
    """Runs of one day that would share an output."""
    output, cron = job.get("output"), schedule.get("cron")
    if not isinstance(output, str) or not isinstance(cron, str):
        return []
    names = PLACEHOLDER.findall(output)
    if "date" not in names or "run_id" in names or runs_once_a_day(cron):
        return []
    message = (
        f"has {{date}}, and the schedule '{cron}' can run twice on one day: the second run would "
        f"be refused, as the folder has another's output; write {{run_id}}, which has the moment: "
        f"{output.replace('{date}', '{run_id}')}"
    )
    return [SpecMistake(place=f"{place}.output", message=message)]


def _memory_mistakes(job: Mapping[Any, Any], place: str) -> list[SpecMistake]:
    limit, data = job.get("memory_limit"), job.get("memory", _MEMORY)
    if not isinstance(limit, str) or not isinstance(data, str):
        return []
    most, planned = size_bytes(limit), size_bytes(data)
    if most is None or planned is None or planned < most:
        return []
    message = f"is not more than 'memory', which is {data}: the model needs memory beside its data"
    return [SpecMistake(place=f"{place}.memory_limit", message=message)]


def _is_elsewhere(text: str) -> bool:
    return "://" in text or text.startswith("${")


def _schedule_mistakes(schedule: Mapping[Any, Any], place: str) -> list[SpecMistake]:
    found = []
    for name, mistake in (("timezone", zone_mistake), ("cron", cron_mistake)):
        said = schedule.get(name)
        if isinstance(said, str) and said and (why := mistake(said)):
            found.append(SpecMistake(place=f"{place}.{name}", message=why))
    return found
