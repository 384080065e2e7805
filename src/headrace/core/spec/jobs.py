"""Spec part `jobs`: a model over a data set, on a schedule or on demand."""

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
"""Names that `{…}` in an input or output may contain."""
# Not the `${NAME}` of the environment, which is resolved only during the run.
PLACEHOLDER: Final = re.compile(r"(?<!\$)\{([^{}]*)\}")
_SIZE: Final = r"^[0-9]*[1-9][0-9]*(\.[0-9]+)?\s*([bB]|[kKmMgG]([iI]?[bB])?)?$"
_NAME: Final = NAME_PATTERN.replace("127", "99")
"""Shorter than other names: the ids of a job's runs begin with it."""
_DAY_S: Final = 86_400.0
_MEMORY: Final = "512MiB"

_Text = Annotated[str, Field(min_length=1, max_length=4096)]
_Column = Annotated[str, Field(pattern=r"^[^,\x00]+$", max_length=300)]
_Input = Annotated[str, Field(pattern=r"^[^=\x00]+$", max_length=300)]
_Columns = Annotated[tuple[_Column, ...], Strict(strict=False)]


class JobScheduleSpec(SpecModel):
    """Schedule on which a job runs."""

    cron: str = Field(
        min_length=1,
        max_length=200,
        description="Minute, hour, day of the month, month, day of the week: `30 6 * * 1-5`.",
    )
    timezone: str = Field(
        default="UTC", max_length=100, description="Time zone of `cron`: `Europe/Paris`."
    )
    catch_up: Literal["none", "last", "all"] = Field(
        default="last",
        description="Scheduled runs that were missed while the control plane was down: run "
        "`none`, the newest, or each one in order.",
    )
    catch_up_within_s: float = Field(
        default=_DAY_S,
        ge=0.0,
        le=366 * _DAY_S,
        description="Missed runs older than this are skipped. Unit: seconds.",
    )
    overlap: Literal["skip", "wait", "allow"] = Field(
        default="skip",
        description="If the previous run has not ended: `skip` drops the new run, `wait` delays "
        "it, `allow` runs both.",
    )
    late_after_s: float | None = Field(
        default=None,
        gt=0.0,
        le=366 * _DAY_S,
        description="Alert if no run has succeeded within this time after its scheduled time. "
        "Unit: seconds. Null for never.",
    )


class JobSpec(SpecModel):
    """A model over a data set, as in `headrace batch run`."""

    name: str = Field(pattern=_NAME, description="Unique among jobs.")
    model: _Text = Field(
        description="A model file or directory (relative to the spec file), NAME[:VERSION] of the "
        "registry, or an endpoint: then the model that it serves, with its features.",
    )
    input: _Text = Field(
        description="A path, glob, folder (relative to the spec file) or URL; `{date}` is the "
        "day of the scheduled time in the schedule's time zone, `{run_id}` the run. `${NAME}` is "
        "an environment variable of the control plane.",
    )
    output: _Text = Field(
        description="A folder (relative to the spec file), a different one for each run: with "
        "`{run_id}`, or with `{date}` if the schedule runs at most once a day.",
    )
    input_format: Literal["parquet", "csv", "jsonl", "arrow", "images"] | None = Field(
        default=None, description="Null: by file extension."
    )
    sql: str = Field(default="", max_length=100_000, description="Query to run against a database.")
    sql_key: str = Field(
        default="",
        max_length=300,
        description="Integer column whose ranges form the shards, so that a run can resume.",
    )
    columns: dict[_Input, _Columns] = Field(
        default_factory=dict,
        description="Per input of the model, its columns (`f0..f31` is a range); inputs that are "
        "not listed are matched by name.",
    )
    keys: Annotated[tuple[_Column, ...], Strict(strict=False)] = Field(
        default=(),
        max_length=1000,
        description="Columns that are written beside the predictions; `NAME=COLUMN` writes "
        "COLUMN as NAME.",
    )
    outputs: Annotated[tuple[_Column, ...], Strict(strict=False)] = Field(
        default=(), max_length=1000, description="Outputs of the model to write. Empty: all."
    )
    format: Literal["parquet", "csv", "jsonl", "arrow"] = Field(
        default="parquet", description="Data type of the written outputs."
    )
    errors: Literal["column", "file"] = Field(
        default="column",
        description="Where row errors are written: beside the row, or to files in `_errors`.",
    )
    max_errors: int | None = Field(
        default=None,
        ge=0,
        description="Maximum number of rows with errors; more fail the run. Null for no limit.",
    )
    nulls: Literal["nan", "error"] = Field(
        default="nan",
        description="How a null in a float input is treated: as NaN, as a missing value, or as "
        "an error of its row.",
    )
    chunk_rows: int | None = Field(
        default=None, ge=1, le=1 << 24, description="Rows per call of the model. Null: by size."
    )
    shard_rows: int | None = Field(
        default=None,
        ge=1,
        le=1 << 40,
        description="Approximate rows per shard. Null: by input kind.",
    )
    workers: int | None = Field(
        default=None,
        ge=1,
        le=1024,
        description="Shards that run in parallel. Null: one per usable core.",
    )
    memory: str = Field(
        default=_MEMORY,
        pattern=_SIZE,
        max_length=40,
        description="Memory limit for the data of all shards in progress.",
    )
    memory_limit: str | None = Field(
        default=None,
        pattern=_SIZE,
        max_length=40,
        description="Memory limit for the whole run, model and libraries included: an attempt that "
        "exceeds it is ended. Null for no limit.",
    )
    runtime: str = Field(
        default="", max_length=100, description="Runtime of the model. Empty: detected."
    )
    allow_code: bool = Field(
        default=False,
        description="Whether the model may have a format that runs its author's code.",
    )
    rows_independent: bool = Field(
        default=False,
        description="As `batching.rows_independent` of an endpoint, for a model that no endpoint "
        "serves.",
    )
    schedule: JobScheduleSpec | None = Field(
        default=None, description="Null: only started by `headrace batch start`."
    )
    timeout_s: float = Field(
        default=_DAY_S,
        gt=0.0,
        le=30 * _DAY_S,
        description="An attempt that takes longer is ended; the next one resumes. Unit: seconds.",
    )
    retries: int = Field(default=2, ge=0, le=100, description="How often a failed run is retried.")
    keep_runs: int = Field(
        default=50, ge=1, le=10_000, description="Number of runs to keep in the history."
    )


def job_disagreements(document: Mapping[Any, Any]) -> list[SpecMistake]:
    """Return disagreements between fields of jobs."""
    mistakes: list[SpecMistake] = []
    jobs = document.get("jobs")
    first_use: dict[str, int] = {}
    for i, job in enumerate(jobs if isinstance(jobs, list | tuple) else []):
        if not isinstance(job, Mapping):
            continue
        path, name = f"jobs[{i}]", job.get("name")
        if isinstance(name, str) and first_use.setdefault(name, i) != i:
            message = f"{name!r} is already the name of jobs[{first_use[name]}]"
            mistakes.append(SpecMistake(place=f"{path}.name", message=message))
        mistakes += [
            SpecMistake(place=f"{path}.{key}", message=message)
            for key in ("input", "output", "model")
            for message in _path_mistakes(key, job.get(key))
        ]
        mistakes += _memory_mistakes(job, path)
        if isinstance(job.get("schedule"), Mapping):
            wrong = _schedule_mistakes(job["schedule"], f"{path}.schedule")
            mistakes += wrong or _date_mistakes(job, job["schedule"], path)
    return mistakes


def with_absolute_job_paths(document: Mapping[str, Any], base_dir: Path | None) -> dict[str, Any]:
    """Return `document` with absolute job inputs and outputs; models are as in endpoints."""
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
    mistakes = ["contains a NUL character"] if "\0" in text else []
    if key == "model":
        return mistakes
    names = PLACEHOLDER.findall(text)
    placeholders = ", ".join(f"{{{name}}}" for name in PLACEHOLDERS)
    mistakes += [
        f"contains {{{name}}}; allowed placeholders: {placeholders}"
        for name in names
        if name not in PLACEHOLDERS
    ]
    if key == "output" and "://" in text:
        mistakes.append("is a URL; output must be a folder that the control plane can write")
    elif not text.startswith("/") and not _is_elsewhere(text):
        mistakes.append(
            "is a relative path, which is allowed in spec files only; give an absolute path"
        )
    if key == "output" and not names:
        mistakes.append(
            "is the same folder for every run, and each run needs its own: add {run_id}"
        )
    return mistakes


def _date_mistakes(
    job: Mapping[Any, Any], schedule: Mapping[Any, Any], path: str
) -> list[SpecMistake]:
    """Return mistakes where runs of one day would share an output."""
    output, cron = job.get("output"), schedule.get("cron")
    if not isinstance(output, str) or not isinstance(cron, str):
        return []
    names = PLACEHOLDER.findall(output)
    if "date" not in names or "run_id" in names or runs_once_a_day(cron):
        return []
    message = (
        f"contains {{date}}, but the schedule {cron!r} can run twice on one day: the second "
        "run would be refused because its folder has the output of the first; use "
        f"{{run_id}}: {output.replace('{date}', '{run_id}')}"
    )
    return [SpecMistake(place=f"{path}.output", message=message)]


def _memory_mistakes(job: Mapping[Any, Any], path: str) -> list[SpecMistake]:
    limit, data = job.get("memory_limit"), job.get("memory", _MEMORY)
    if not isinstance(limit, str) or not isinstance(data, str):
        return []
    maximum, planned = size_bytes(limit), size_bytes(data)
    if maximum is None or planned is None or planned < maximum:
        return []
    message = (
        f"must be more than 'memory', which is {data}: the model needs memory in addition to its"
        " data"
    )
    return [SpecMistake(place=f"{path}.memory_limit", message=message)]


def _is_elsewhere(text: str) -> bool:
    return "://" in text or text.startswith("${")


def _schedule_mistakes(schedule: Mapping[Any, Any], path: str) -> list[SpecMistake]:
    mistakes = []
    for name, mistake in (("timezone", zone_mistake), ("cron", cron_mistake)):
        text = schedule.get(name)
        if isinstance(text, str) and text and (reason := mistake(text)):
            mistakes.append(SpecMistake(place=f"{path}.{name}", message=reason))
    return mistakes
