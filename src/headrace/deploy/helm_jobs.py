"""How does a job become a CronJob? Pure."""

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import msgspec

from headrace.control.job_plan import arguments_of, filled, new_run
from headrace.core.spec import SystemSpec
from headrace.core.spec_jobs import PLACEHOLDER, JobSpec, ScheduleSpec
from headrace.core.text import size_bytes
from headrace.deploy.helm_export import HelmOptions, Mount, Stored, Values
from headrace.deploy.helm_spec import model_path_loss
from headrace.deploy.losses import Loss

_HOME: Final = Path("/var/lib/headrace")
_RUN_ID: Final = "$(RUN_ID)"
_NEVER: Final = "0 0 1 1 *"
_LEAST_DEADLINE_S: Final = 60
_OVERLAPS: Final = {"skip": "Forbid", "allow": "Allow", "wait": "Forbid"}
_NAMES: Final = re.compile(
    r"JAN|FEB|MAR|APR|MAY|JUN|JUL|AUG|SEP|OCT|NOV|DEC|SUN|MON|TUE|WED|THU|FRI|SAT"
)
_TO_CONTROL: Final = "or leave jobs to the control plane (--jobs control)"
_MOST_KEPT: Final = 100


def job_values(
    job: JobSpec, place: str, stored: Stored | None, options: HelmOptions
) -> tuple[Values, list[Loss]]:
    """The values of one CronJob, and what it cannot express.

    Args:
        stored: What its pods fetch; None where that is not known, which is somebody else's loss.
    """
    losses = [*_losses(job, place, options.mounts), *_schedule_losses(job.schedule, place)]
    model = stored or Stored(digest="", filename="")
    schedule = job.schedule
    # A moment that nobody can say, and that may be left out, is left to people.
    runs = schedule is not None and _is_plain(schedule.cron)
    values: Values = {
        "name": job.name,
        "schedule": schedule.cron if schedule is not None and runs else _NEVER,
        "timeZone": "UTC" if schedule is None else schedule.timezone,
        "suspend": not runs,
        "concurrencyPolicy": _OVERLAPS["skip" if schedule is None else schedule.overlap],
        "retries": job.retries,
        "timeoutSeconds": math.ceil(job.timeout_s),
        "keepRuns": min(job.keep_runs, _MOST_KEPT),
        "model": {"digest": model.digest},
        "args": _arguments(job, f"/models/{model.filename}"),
    }
    if schedule is not None:
        late_s = 0.0 if schedule.catch_up == "none" else schedule.catch_up_within_s
        values["startingDeadlineSeconds"] = max(math.ceil(late_s), _LEAST_DEADLINE_S)
    if job.memory_limit is not None:
        memory = str(size_bytes(job.memory_limit) or 0)
        cpu = str(job.workers or 1)
        values["resources"] = {
            "requests": {"cpu": cpu, "memory": memory},
            "limits": {"memory": memory},
        }
    return values, losses


def job_model_losses(spec: SystemSpec, job: JobSpec, place: str) -> Iterator[Loss]:
    """Why a job's model is none that its pods could fetch."""
    yield from model_path_loss(f"{place}.model", job.model)
    if any(job.model == endpoint.name for endpoint in spec.endpoints):
        why = f"is the endpoint {job.model!r}, and a CronJob asks no control plane what it serves"
        yield Loss(f"{place}.model", why, f"name the model as NAME:VERSION, {_TO_CONTROL}")


def _arguments(job: JobSpec, model: str) -> list[str]:
    """As the control plane would start it; Kubernetes fills in the run's name."""
    run = new_run(job.model_copy(update={"schedule": None}), 0.0, now=0.0)
    document: Mapping[str, object] = {
        **run.document,
        "model": model,
        "input": filled(job.input, run_id=_RUN_ID, date=""),
    }
    run = msgspec.structs.replace(
        run,
        id=_RUN_ID,
        document=dict(document),
        output=filled(job.output, run_id=_RUN_ID, date=""),
    )
    return [_escaped(argument) for argument in arguments_of(run, _HOME)]


def _escaped(argument: str) -> str:
    """`$(...)` of the user's own is no variable of Kubernetes'."""
    return argument.replace("$(", "$$(").replace(f"${_RUN_ID}", _RUN_ID)


def _losses(job: JobSpec, place: str, mounts: tuple[Mount, ...]) -> Iterator[Loss]:
    for name in ("input", "output"):
        text = getattr(job, name)
        if "date" in PLACEHOLDER.findall(text):
            why = "has {date}, and a CronJob's pods are not told the day of their moment"
            yield Loss(f"{place}.{name}", why, f"use {{run_id}}, {_TO_CONTROL}")
        if text.startswith("/") and not any(_fits(mount, name, text) for mount in mounts):
            folder = text.partition("{")[0].rpartition("/")[0] or "/FOLDER"
            why = f"is {text}, on this machine's disk"
            yield Loss(f"{place}.{name}", why, f"mount a claim: --mount claim:NAME={folder}")


def _fits(mount: Mount, name: str, path: str) -> bool:
    return mount.has(path) and (mount.is_writable or name == "input")


def _is_plain(cron: str) -> bool:
    """Whether a CronJob reads it: without signs of larger dialects, and Sundays as 0."""
    signs = _NAMES.sub("", cron.upper())
    return not any(sign in signs for sign in "L#W") and "7" not in cron.rsplit(maxsplit=1)[-1]


def _schedule_losses(schedule: ScheduleSpec | None, place: str) -> Iterator[Loss]:
    if schedule is None:
        return
    where = f"{place}.schedule"
    if schedule.overlap == "wait":
        yield Loss(
            f"{where}.overlap",
            "is wait, and a CronJob either skips (skip) or runs both (allow)",
            f"choose one of them, {_TO_CONTROL}",
        )
    if schedule.catch_up == "all":
        yield Loss(
            f"{where}.catch_up",
            "is all, and a CronJob makes up for the newest moment only",
            f"say last or none, {_TO_CONTROL}",
        )
    if schedule.late_after_s is not None:
        yield Loss(
            f"{where}.late_after_s",
            "is an alert of the control plane's, which knows nothing of CronJobs",
            f"alert on kube_cronjob_status_last_successful_time, {_TO_CONTROL}",
        )
    if not _is_plain(schedule.cron):
        yield Loss(
            f"{where}.cron",
            f"is {schedule.cron!r}, and a CronJob knows no L, #, W, and Sunday as 0 only",
            f"write it without them, {_TO_CONTROL}",
        )
