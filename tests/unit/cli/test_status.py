"""What `headrace status` says of streams and jobs."""

import re
from dataclasses import replace
from typing import Any

import msgspec
import pytest

from headrace.cli.base import output
from headrace.cli.batch.jobs import JOB_COLUMNS
from headrace.cli.status import render
from headrace.control.base.faults import ObjectFault
from headrace.control.jobs.status import JobRunView, JobView
from headrace.control.reconcile.status import RevisionStatus
from headrace.core import RowIndependence
from headrace.observe.row_checks import BatchingReport, RowDifference
from tests.unit.cli.test_stream_parts import VIEW

MORNING = 1_795_759_200.0  # 2026-11-27T06:00:00Z
RUN = JobRunView(
    id="nightly-1",
    job="nightly",
    state="failed",
    trigger="schedule",
    actor="",
    moment=MORNING,
    began=MORNING,
    ended=MORNING + 30,
    duration_s=30.0,
    tries=2,
    interruptions=0,
    next_try_at=None,
    output="/out",
    rows=1797,
    errors=3,
    shards=1,
    shards_done=0,
    message="no such file",
    owner="",
)
JOB = JobView(
    name="nightly",
    model="fraud",
    input="/in",
    output="/out",
    cron="0 6 * * *",
    timezone="Europe/Paris",
    next_run_at=MORNING + 86_400,
    lateness_s=7200.0,
    is_late=True,
    running=[],
    last_success=None,
    last_run=RUN,
)


def document(**more: object) -> dict[str, Any]:
    return {"running": True, "endpoints": [], **more}


def lines_of(found: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> list[str]:
    output.show(render(found))
    return [line.rstrip() for line in capsys.readouterr().out.splitlines()]


def test_streams_and_jobs_have_tables_of_their_own(capsys: pytest.CaptureFixture[str]) -> None:
    found = document(streams=[msgspec.to_builtins(VIEW)], jobs=[msgspec.to_builtins(JOB)])

    head, stream, empty, job_head, job, *_ = lines_of(found, capsys)

    assert head == "stream  state    workers     rate/s  lag    oldest  answered  dead  by"
    assert stream == "pay     running  1/2 of 1-4  1,234   1,200  250 ms  10,000    3     fraud:3"
    assert empty == ""
    assert re.split(r"\s{2,}", job_head) == list(JOB_COLUMNS)
    assert re.split(r"\s{2,}", job) == [
        "nightly",
        "0 6 * * * Europe/Paris",
        "2026-11-28 06:00:00Z",
        "-",
        "failed 2026-11-27 06:00:30Z",
        "1,797",
        "2 h 0 min",
    ]


def test_a_stream_that_does_not_run_says_why(capsys: pytest.CaptureFixture[str]) -> None:
    told = msgspec.to_builtins(VIEW) | {"state": "failed", "message": "[boom] no such topic"}

    lines = lines_of(document(streams=[told]), capsys)

    assert "stream 'pay': failed: [boom] no such topic" in lines


def test_object_that_waits_is_named_with_its_reason(capsys: pytest.CaptureFixture[str]) -> None:
    fault = ObjectFault(kind="drift", name="fraud", message="ValueError in a.py, line 3", since=1.0)

    lines = lines_of(document(faults=[msgspec.to_builtins(fault)]), capsys)

    assert "drift 'fraud' failed: ValueError in a.py, line 3" in lines


def test_versions_whose_rows_are_not_proven_independent_say_why(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def revision(version: str, report: BatchingReport) -> dict[str, Any]:
        status = RevisionStatus(
            version=version,
            model=f"m:{version}",
            weight=25,
            desired_weight=25,
            desired_replicas=1,
            replicas=(),
            batching=report,
            batching_message=report.text,
        )
        return dict(msgspec.to_builtins(status))

    difference = RowDifference(output="y", ratio=0.4, requests=2, rows=2, padded=False)
    declared = BatchingReport(
        batched=True, independence=RowIndependence.DECLARED, reason="says who", declared=True
    )
    unproven = BatchingReport(
        batched=False, independence=RowIndependence.UNPROVEN, reason="ReduceMean 'm' mixes rows"
    )
    revisions = [
        revision("1", BatchingReport(batched=True, independence=RowIndependence.PROVEN)),
        revision("2", unproven),
        revision("3", declared),
        revision("4", replace(declared, difference=difference)),
    ]
    endpoint = {"name": "m", "ready": True, "message": "", "revisions": revisions}
    text = " ".join(lines_of(document(endpoints=[endpoint]), capsys))

    assert "m 1:" not in text
    assert "m 2: one request at a time: ReduceMean 'm' mixes rows." in text
    assert "m 3: batched, not proven: says who" in text
    assert text.count("m 4:") == 1
    assert "m 4: answers depend on other requests' rows: output 'y' differs by 40 %" in text


def test_without_streams_and_jobs_nothing_is_said_of_them(
    capsys: pytest.CaptureFixture[str],
) -> None:
    lines = lines_of(document(streams=[], jobs=[]), capsys)

    assert lines[0].startswith("no endpoints yet")
    assert not [line for line in lines if "stream" in line or "job" in line]


@pytest.mark.parametrize(
    ("names", "told"),
    [
        ([], "CN=x"),
        (["localhost", "127.0.0.1", "::1"], "localhost, 127.0.0.1, ::1"),
        (
            ["localhost", "127.0.0.1", "::1", "edge", "10.77.0.1"],
            "edge, 10.77.0.1, localhost and 2 more",
        ),
    ],
)
def test_a_certificate_shows_the_names_that_other_hosts_call_first(
    names: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = {"what": "shown to callers", "names": names, "subject": "CN=x", "days_left": 365.0}

    lines = lines_of(document(gateway={"certificates": [shown]}), capsys)

    assert f"shown to callers: {told}, 365 days left" in lines
