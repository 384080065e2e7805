"""The pages of streams and jobs: what they show, to whom, and what a form does."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from headrace.console.fleet import state_of, system_summary
from headrace.console.streams import charts_of
from headrace.console.view import cut
from headrace.control.api.streams import StreamPointView
from headrace.control.plane.control_plane import ControlPlane
from headrace.control.streams.driver import WorkerRecord
from headrace.control.streams.plan import WorkerPhase
from headrace.control.streams.status import STALLED_AFTER_S
from headrace.control.streams.workers import StreamWorker, note_status, revision_of
from headrace.streaming.settings import StreamStatus, WorkerState
from tests.unit.cli.test_status import JOB, RUN
from tests.unit.cli.test_stream_parts import VIEW
from tests.unit.console.browser import hidden_of, visitor_of
from tests.unit.control.api_client import client_of

pytestmark = [pytest.mark.anyio, pytest.mark.slow]
NOW = 1_764_000_000.0


def stream(name: str) -> dict[str, Any]:
    return {
        "name": name,
        "model": "fraud:1",
        "source": {"broker": "log:demo", "topics": ["in"]},
        "sink": {"topic": "out"},
    }


def job(name: str, **more: object) -> dict[str, Any]:
    return {"name": name, "model": "fraud", "input": "/in", "output": "/out/{run_id}", **more}


@pytest.fixture
async def served(plane: ControlPlane, tmp_path: Path) -> ControlPlane:
    """A stream `pay` and a job `nightly` that ran once by hand, and no endpoint."""
    model = tmp_path / "m.onnx"
    model.write_bytes(b"model")
    plane.registry.push("fraud", model)
    spec = {"endpoints": [], "streams": [stream("pay")], "jobs": [job("nightly")]}
    async with client_of(plane) as api:
        assert (await api.post("/apply", json=spec)).status_code == 200
        assert (await api.post("/jobs/nightly/run")).status_code == 201
    return plane


async def test_an_empty_system_says_how_streams_and_jobs_begin(plane: ControlPlane) -> None:
    async with visitor_of(plane) as visitor:
        streams, jobs = (await visitor.get("/streams")).text, (await visitor.get("/jobs")).text

    assert "No streams yet" in streams
    assert "streams:\n  - name: scores" in streams
    assert "No jobs yet" in jobs
    assert "headrace batch run" in jobs


async def test_the_fleet_leads_to_streams_and_jobs(served: ControlPlane) -> None:
    async with visitor_of(served) as visitor:
        whole = (await visitor.get("/")).text
    async with visitor_of(served, "viewer:fraud") as visitor:
        own = (await visitor.get("/")).text

    assert '<a href="/streams">1 stream</a>' in whole
    assert '<a href="/jobs">1 job</a>' in whole
    assert "pay needs attention" in whole
    assert "Nothing is served yet" not in whole
    assert '<a href="/jobs">1 job</a>' not in own


async def test_a_stream_shows_how_it_is_and_was(served: ControlPlane) -> None:
    async with visitor_of(served) as visitor:
        listed = (await visitor.get("/streams")).text
        page = (await visitor.get("/streams/pay?span=3600")).text

    assert "Streams 1 to 1 of 1" in listed
    assert "fraud:1" in listed
    for chart in ("lag", "waiting", "answered", "dead-letters"):
        assert f'id="{chart}-title"' in page
    assert "no data for this period" in page
    assert "headrace stream dlq list pay" in page
    assert 'href="/streams/pay/pause"' in page


async def test_an_operator_pauses_and_resumes_a_stream(served: ControlPlane) -> None:
    async with visitor_of(served, "operator") as visitor:
        confirm = (await visitor.get("/streams/pay/pause")).text
        told = await visitor.post("/streams/pay/pause", data=hidden_of(confirm))
        after = (await visitor.get("/streams/pay")).text
        resumed = await visitor.post("/streams/pay/resume", data=hidden_of(confirm))

    assert "until the stream is resumed" in confirm
    assert (told.status_code, told.headers["location"]) == (303, "/streams/pay")
    assert 'href="/streams/pay/resume"' in after
    assert resumed.status_code == 303
    assert not served.workloads.streams.view("pay").paused


async def test_who_may_only_look_has_no_button_and_no_effect(served: ControlPlane) -> None:
    async with visitor_of(served, "viewer") as visitor:
        page = (await visitor.get("/streams/pay")).text
        form = hidden_of((await visitor.get("/streams/pay/pause")).text)
        told = await visitor.post("/streams/pay/pause", data=form)

    assert "/streams/pay/pause" not in page
    assert told.status_code == 403
    assert not served.workloads.streams.view("pay").paused


async def test_a_form_of_another_page_pauses_nothing(served: ControlPlane) -> None:
    async with visitor_of(served) as visitor:
        form = hidden_of((await visitor.get("/streams/pay/pause")).text)
        codes = [
            (await visitor.post("/streams/pay/pause", data=data, headers=headers)).status_code
            for data, headers in (
                ({}, {}),
                ({"csrf_token": "guessed"}, {}),
                (form, {"origin": "http://evil.example"}),
            )
        ]

    assert codes == [403, 403, 403]
    assert not served.workloads.streams.view("pay").paused


async def test_a_viewer_of_one_endpoint_is_told_that_these_are_not_for_him(
    served: ControlPlane,
) -> None:
    paths = ("/streams", "/streams/pay", "/jobs", "/jobs/nightly")
    async with visitor_of(served, "viewer:fraud") as visitor:
        answers = [await visitor.get(path) for path in paths]

    assert {answer.status_code for answer in answers} == {403}
    assert all("Not allowed" in answer.text for answer in answers)


async def test_what_is_not_there_is_a_page_that_says_so(served: ControlPlane) -> None:
    paths = ("/streams/nobody", "/streams/pay/explode", "/streams/a%20b", "/jobs/nobody")
    async with visitor_of(served) as visitor:
        answers = [await visitor.get(path) for path in paths]

    assert {answer.status_code for answer in answers} == {404}


async def test_a_search_is_written_as_it_is_and_runs_nothing(served: ControlPlane) -> None:
    async with visitor_of(served) as visitor:
        pages = [
            (await visitor.get(path, params={"search": "<script>x"})).text
            for path in ("/streams", "/jobs")
        ]

    for page in pages:
        assert "No matching" in page
        assert "<script>x" not in page
        assert "&lt;script&gt;x" in page


async def test_what_a_worker_said_last_runs_nothing(served: ControlPlane) -> None:
    ended = StreamWorker(
        record=WorkerRecord(stream="pay", index=0, serial=1, revision="a"),
        process=None,
        since=0.0,
        phase=WorkerPhase.ENDED,
        message="<img src=x onerror=alert(1)>",
    )
    served.workloads.streams._team("pay", 1).workers[0] = ended
    async with visitor_of(served) as visitor:
        page = (await visitor.get("/streams/pay")).text

    assert "failed" in page
    assert "<img" not in page
    assert "&lt;img src=x" in page


async def test_a_stalled_stream_needs_a_look_and_says_why(served: ControlPlane) -> None:
    streams = served.workloads.streams
    told = streams.prepare(served.target_state.desired.streams[0].settings)
    record = WorkerRecord(stream="pay", index=0, serial=1, revision=revision_of(told))
    idle = StreamWorker(record=record, process=None, since=0.0, phase=WorkerPhase.READY)
    status = StreamStatus(
        stream="pay", member="pay-0", state=WorkerState.RUNNING, unassigned_s=STALLED_AFTER_S
    )
    note_status(idle, status, rate=0.0, now=served.clock.monotonic())
    streams._team("pay", 1).workers[0] = idle
    async with visitor_of(served) as visitor:
        listed = (await visitor.get("/streams")).text
        page = (await visitor.get("/streams/pay")).text

    assert '<p class="banner banner-failing">1 of all streams needs attention' in listed
    assert "stalled" in listed
    assert "other members of group &#39;pay&#39; hold all of them" in page


async def test_thousands_of_streams_and_jobs_have_pages_that_stay_small(
    served: ControlPlane,
) -> None:
    first = served.target_state.desired.streams[0]
    many = tuple(msgspec.structs.replace(first, name=f"s{number:04}") for number in range(2000))
    served.target_state.desired = msgspec.structs.replace(served.target_state.desired, streams=many)
    async with visitor_of(served) as visitor:
        pages = [
            await visitor.get(path)
            for path in ("/streams", "/streams?page=40", "/streams?search=s19", "/")
        ]
    one, last, found, fleet = (page.text for page in pages)

    assert max(len(page.content) for page in pages) < 100_000
    assert "Streams 1 to 50 of 2,000" in one
    assert 'rel="next"' in one
    assert "Streams 1951 to 2000 of 2,000" in last
    assert "Streams 1 to 50 of 100" in found
    assert "2,000 streams" in fleet


async def test_a_job_shows_its_runs(served: ControlPlane) -> None:
    async with visitor_of(served) as visitor:
        listed = (await visitor.get("/jobs")).text
        page = (await visitor.get("/jobs/nightly")).text

    assert "manual" in listed
    assert "waiting" in page
    assert "headrace batch start nightly" in page


async def test_the_runs_of_a_job_that_is_gone_are_still_there(served: ControlPlane) -> None:
    async with client_of(served) as api:
        assert (await api.post("/apply", json={"endpoints": []})).status_code == 200
    async with visitor_of(served) as visitor:
        page = await visitor.get("/jobs/nightly")

    assert page.status_code == 200
    assert "removed from the spec" in page.text


def test_a_jobs_state_is_its_worst() -> None:
    fine = replace(JOB, is_late=False, last_run=replace(RUN, state="succeeded"))

    assert state_of(JOB) == ("failing", "late")
    assert state_of(replace(JOB, is_late=False)) == ("failing", "failed")
    assert state_of(replace(fine, running=[replace(RUN, state="running")])) == ("ok", "running")
    assert state_of(fine) == ("ok", "healthy")
    assert state_of(replace(fine, last_run=None)) == ("idle", "no runs yet")


def test_charts_say_what_nobody_knew() -> None:
    known = StreamPointView(
        at=NOW - 10,
        answered_per_s=5.0,
        dead_letters_per_s=0.0,
        lag_records=3,
        lag_s=1.5,
        running=1,
    )
    unknown = replace(known, at=NOW - 20, lag_records=None, lag_s=None)
    lag, waiting, answered, letters = charts_of([unknown, known], NOW)
    nothing, *_ = charts_of([unknown], NOW)

    assert lag.lines[0].last == "1.5 s"
    assert (waiting.nothing, answered.nothing, letters.nothing) == ("", "", "")
    assert nothing.nothing == "lag unknown in this period"


def test_a_page_is_cut_and_knows_where_it_is() -> None:
    shown, pages = cut(list(range(101)), page=3, size=50)
    beyond, far = cut(list(range(101)), page=9, size=50)
    none, empty = cut(list[int](), page=1, size=50)

    assert (shown, pages.first, pages.last, pages.count) == ([100], 101, 101, 3)
    assert (beyond, far.first, far.last) == ([], 0, 0)
    assert (none, empty.count, empty.total) == ([], 1, 0)


def test_streams_in_trouble_are_named_where_they_are_one_line() -> None:
    bad = replace(VIEW, name="bad", state="failed")

    assert system_summary(0, []) is None
    assert system_summary(3, []) == system_summary(3, ())
    one, two = system_summary(3, [bad]), system_summary(3, [bad, VIEW])
    assert one is not None
    assert two is not None
    assert one.state == ("warning", "bad needs attention")
    assert two.state == ("warning", "bad and 1 more need attention")
