"""Jobs in the spec: what they say, and every mistake with its place."""

from pathlib import Path
from typing import Any

import pytest

from headrace.core.spec.parse import SpecError, parse_spec

JOB: dict[str, Any] = {"name": "j", "model": "m", "input": "/in", "output": "/out/{run_id}"}


def mistakes(*jobs: dict[str, Any]) -> list[str]:
    with pytest.raises(SpecError) as caught:
        parse_spec({"version": 1, "jobs": list(jobs)})
    return [str(one) for one in caught.value.mistakes]


def test_paths_start_from_the_spec_file_and_urls_stay(tmp_path: Path) -> None:
    jobs = [
        {"name": "a", "model": "m.onnx", "input": "in/*.parquet", "output": "out/{run_id}"},
        {"name": "b", "model": "m", "input": "postgresql://h/d", "output": "~/o/{date}"},
        {"name": "c", "model": "m:3", "input": "${WHERE}/x", "output": "/o/{run_id}"},
    ]
    (tmp_path / "m.onnx").write_bytes(b"x")
    found = parse_spec({"version": 1, "jobs": jobs}, base_dir=tmp_path).jobs

    assert [one.model for one in found] == [str(tmp_path / "m.onnx"), "m", "m:3"]
    assert [one.input for one in found] == [
        str(tmp_path / "in/*.parquet"),
        "postgresql://h/d",
        "${WHERE}/x",
    ]
    assert found[0].output == str(tmp_path / "out/{run_id}")
    assert found[1].output == str(Path.home() / "o/{date}")


def test_a_document_of_jobs_parses_to_itself() -> None:
    job = {**JOB, "columns": {"x": ["f0..f3"]}, "schedule": {"cron": "0 6 * * *"}}
    spec = parse_spec({"version": 1, "jobs": [job]})

    assert parse_spec(spec.document()) == spec


@pytest.mark.parametrize(
    ("change", "place", "said"),
    [
        ({"schedule": {"cron": "61 * * * *"}}, "jobs[0].schedule.cron", "61"),
        ({"schedule": {"cron": "* * * *"}}, "jobs[0].schedule.cron", "five fields"),
        ({"schedule": {"cron": "* * * * * *"}}, "jobs[0].schedule.cron", "five fields"),
        ({"schedule": {"cron": "0 0 30 2 *"}}, "jobs[0].schedule.cron", ""),
        (
            {"schedule": {"cron": "0 6 * * *", "timezone": "Mars/North"}},
            "jobs[0].schedule.timezone",
            "Europe/Paris",
        ),
        (
            {"schedule": {"cron": "0 6 * * *", "timezone": "../etc/passwd"}},
            "jobs[0].schedule.timezone",
            "does not exist",
        ),
        ({"schedule": {}}, "jobs[0].schedule.cron", "missing"),
        ({"output": "/out"}, "jobs[0].output", "add {run_id}"),
        ({"output": "s3://b/{run_id}"}, "jobs[0].output", "is a URL"),
        ({"output": "out/{run_id}"}, "jobs[0].output", "relative"),
        ({"input": "in"}, "jobs[0].input", "relative"),
        ({"input": "/in/{hour}"}, "jobs[0].input", "{hour}"),
        ({"model": "a b"}, "jobs[0].model", "registry reference"),
        ({"columns": {"x": ["a,b"]}}, "jobs[0].columns.x", "a,b"),
        ({"memory": "0MiB"}, "jobs[0].memory", "0MiB"),
        ({"memory_limit": "none"}, "jobs[0].memory_limit", "none"),
        ({"memory_limit": "512MiB"}, "jobs[0].memory_limit", "in addition to its data"),
        ({"memory": "2g", "memory_limit": "2GB"}, "jobs[0].memory_limit", "must be more than"),
        ({"retries": -1}, "jobs[0].retries", "-1"),
        ({"shard_row": 5}, "jobs[0].shard_row", "shard_rows"),
        ({"name": "n" * 101}, "jobs[0].name", ""),
    ],
)
def test_a_mistake_is_told_with_its_place(change: dict[str, Any], place: str, said: str) -> None:
    found = mistakes({**JOB, **change})

    assert any(one.startswith(place) and said in one for one in found), found


@pytest.mark.parametrize("cron", ["0 * * * *", "0,30 6 * * *", "0 6,18 * * 1", "*/60 2 * * *"])
def test_an_output_by_date_is_refused_where_two_runs_share_a_day(cron: str) -> None:
    job = {**JOB, "output": "/out/{date}/s", "schedule": {"cron": cron}}
    (found,) = mistakes(job)
    assert found.startswith("jobs[0].output")
    assert "use {run_id}: /out/{run_id}/s" in found


@pytest.mark.parametrize(
    ("output", "schedule"),
    [
        ("/out/{date}", {"cron": "30 2 * * *", "timezone": "Europe/Paris"}),
        ("/out/{date}/{run_id}", {"cron": "0 * * * *"}),
        ("/out/{run_id}", {"cron": "* * * * *"}),
        ("/out/{date}", None),
    ],
)
def test_an_output_that_no_two_runs_share_is_taken(output: str, schedule: object) -> None:
    parse_spec({"version": 1, "jobs": [{**JOB, "output": output, "schedule": schedule}]})


def test_two_jobs_of_one_name_are_refused() -> None:
    assert mistakes(JOB, JOB) == ["jobs[1].name: 'j' is already the name of jobs[0]"]


@pytest.mark.parametrize("jobs", [[None], [3], ["x"], {"a": 1}, 5, [{"name": 3}]])
def test_what_is_no_job_is_told_and_nothing_else_happens(jobs: object) -> None:
    with pytest.raises(SpecError, match="jobs"):
        parse_spec({"version": 1, "jobs": jobs})
