"""What stands around a rollout on the command line: plans, pictures, tables, streams."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st

from headrace.cli.base import output
from headrace.cli.base.management import ServerEvent, read_events
from headrace.cli.base.output import row_cells
from headrace.cli.events import HISTORY_COLUMNS, event_line, history_rows, versions_text
from headrace.cli.rollout.start import PlanOptions, StepUntil, Strategy, read_plan, rollout_plan
from headrace.cli.rollout.view import (
    ASCII,
    UNICODE,
    WIDTH,
    interval_bar,
    marks_for,
    render,
    summary_columns,
)
from headrace.cli.spec import diff_text
from headrace.core import InvalidArgumentError
from headrace.core.spec.rollout import RolloutSpec
from tests.unit.cli.conftest import Command


def test_without_options_the_plan_is_the_endpoints() -> None:
    assert rollout_plan(PlanOptions()) is None


@pytest.mark.parametrize(
    ("options", "plan"),
    [
        (PlanOptions(strategy=Strategy.SHADOW), {"strategy": "shadow"}),
        (PlanOptions(alpha=0.01), {"strategy": "canary", "alpha": 0.01}),
        (PlanOptions(weight=20), {"strategy": "ab", "weight": 20}),
        (PlanOptions(keep_s=0.0), {"strategy": "blue-green", "keep_s": 0.0}),
        (PlanOptions(promotes=True), {"strategy": "shadow", "promotes": True}),
        (PlanOptions(baseline=True), {"strategy": "canary", "baseline": True}),
        (
            PlanOptions(steps="10, 50%"),
            {
                "strategy": "canary",
                "steps": [{"weight": 10, "until": "verdict"}, {"weight": 50, "until": "verdict"}],
            },
        ),
        (
            PlanOptions(steps="10", pause_s=60.0, until=StepUntil.NONE),
            {"strategy": "canary", "steps": [{"weight": 10, "pause_s": 60.0, "until": None}]},
        ),
        (
            PlanOptions(until=StepUntil.APPROVAL),
            {
                "strategy": "canary",
                "steps": [{"weight": weight, "until": "approval"} for weight in (5, 25, 50)],
            },
        ),
    ],
)
def test_options_make_the_plan_that_they_mean(options: PlanOptions, plan: dict[str, Any]) -> None:
    from pydantic import TypeAdapter  # noqa: PLC0415  # slow to load, and only needed here

    found = rollout_plan(options)

    assert found == plan
    TypeAdapter(RolloutSpec).validate_python(found)  # raises if no control plane would take it


def test_options_win_over_the_file_and_keep_the_rest_of_it() -> None:
    file = {
        "strategy": "canary",
        "alpha": 0.1,
        "min_samples": 500,
        "steps": [{"weight": 1, "pause_s": 5}, {"weight": 2}],
    }

    assert rollout_plan(PlanOptions(), file) == file
    assert rollout_plan(PlanOptions(alpha=0.02), file) == file | {"alpha": 0.02}
    assert rollout_plan(PlanOptions(pause_s=9.0), file) == file | {
        "steps": [{"weight": 1, "pause_s": 9.0}, {"weight": 2, "pause_s": 9.0}]
    }
    assert rollout_plan(PlanOptions(strategy=Strategy.AB), file) == {"strategy": "ab"}


@pytest.mark.parametrize(
    ("options", "hint"),
    [
        (PlanOptions(strategy=Strategy.CANARY, weight=50), "--weight"),
        (PlanOptions(strategy=Strategy.AB, mirror_percent=5), "--mirror-percent"),
        (PlanOptions(steps="5", keep_s=1.0), "--keep-s"),
        (PlanOptions(steps="5,x"), "--steps"),
        (PlanOptions(steps=""), "--steps"),
        (PlanOptions(steps="0"), "--steps"),
        (PlanOptions(steps="101"), "--steps"),
    ],
)
def test_options_that_mean_nothing_together_are_refused(options: PlanOptions, hint: str) -> None:
    with pytest.raises(typer.BadParameter) as caught:
        rollout_plan(options)
    assert caught.value.param_hint == hint


@pytest.mark.parametrize(
    "text", ["strategy: ab\nweight: 10\n", "rollout:\n  strategy: ab\n  weight: 10\n"]
)
def test_a_plan_is_read_from_a_file_with_or_without_its_key(tmp_path: Path, text: str) -> None:
    (tmp_path / "r.yaml").write_text(text)

    assert read_plan(tmp_path / "r.yaml") == {"strategy": "ab", "weight": 10}


@pytest.mark.parametrize("data", [b"", b"[1]", b"weight: 10", b"a: b: c", b"\xff", b"rollout: 3"])
def test_a_file_without_a_plan_is_told(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "r.yaml").write_bytes(data)

    with pytest.raises(InvalidArgumentError, match=r"r\.yaml"):
        read_plan(tmp_path / "r.yaml")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["start", "m"], "--version N"),
        (["start", "m", "--model", "a", "--upstream", "http://x"], "exclude each other"),
        (["start", "m", "--version", "2", "--protocol", "v1"], "--protocol"),
        (["start", "m", "--version", "2", "--steps", "a"], "--steps"),
        (["start", "m", "--version", "2", "--strategy", "hope"], "--strategy"),
        (["start", "m", "--version", "2", "--weight", "100"], "--weight"),
        (["start", "m", "--version", "2", "-f", "nowhere.yaml"], "nowhere.yaml"),
        (["promote"], "'endpoint'"),
    ],
)
def test_a_wrong_command_line_is_refused_before_anybody_is_asked(
    headrace: Command, arguments: list[str], text: str
) -> None:
    outcome = headrace("rollout", *arguments)

    assert outcome.status == 2
    assert text in outcome.err


FINITE = st.floats(-1e6, 1e6)


@given(
    st.none() | FINITE,
    st.none() | FINITE,
    st.none() | FINITE,
    st.sampled_from([0.0, 1.0]),
    st.none() | FINITE,
)
def test_every_interval_is_a_picture_of_the_same_width(
    low: float | None,
    high: float | None,
    effect: float | None,
    neutral: float,
    margin: float | None,
) -> None:
    bar = interval_bar(low=low, high=high, effect=effect, neutral=neutral, margin=margin)

    assert len(bar) == (0 if low is None and high is None else WIDTH)


@given(st.floats(0.1, 10), st.floats(1, 10), st.floats(0.01, 0.99))
def test_a_picture_keeps_the_order_of_what_it_shows(
    margin: float, size: float, share: float
) -> None:
    low = margin / share
    bar = interval_bar(
        low=low, high=low + size, effect=None, neutral=0.0, margin=margin, marks=ASCII, width=200
    )

    # What falls on one place hides what came before it, in the order of this line.
    assert bar.find("|") < bar.index(":") < bar.index("-")
    assert bar.count("-") == bar.rindex("-") - bar.index("-") + 1


def test_pictures_are_plain_where_a_terminal_knows_no_better() -> None:
    bar = interval_bar(low=0.2, high=0.6, effect=0.4, neutral=0.0, margin=0.1, marks=ASCII)

    assert bar == " |   :  --------o------- "
    assert interval_bar(low=None, high=1.0, effect=None, neutral=0.0, margin=None)[0] == "◀"
    assert interval_bar(low=0.0, high=None, effect=None, neutral=0.0, margin=None)[-1] == "▶"
    assert marks_for("utf-8") is UNICODE
    assert marks_for("ascii") is marks_for(None) is marks_for("no such") is ASCII


def metric(name: str = "errors", **more: Any) -> dict[str, Any]:  # noqa: ANN401  # as JSON has it
    return {
        "metric": name,
        "outcome": "roll_back",
        "reason": "",
        "unit": "ratio difference",
        "baseline": 0.001,
        "candidate": 0.051,
        "effect": 0.05,
        "low": 0.032,
        "high": 0.071,
        "margin": 0.005,
        "alpha": 0.0125,
        "samples": [18110, 2040],
        **more,
    }


def rollout(**more: Any) -> dict[str, Any]:  # noqa: ANN401  # as JSON has it
    return {
        "id": "r7",
        "endpoint": "fraud",
        "strategy": "canary",
        "phase": "progressing",
        "over": False,
        "from_version": "3",
        "to_version": "4",
        "from_model": "fraud:3",
        "to_model": "fraud:4",
        "weight": 25,
        "baseline_weight": 0,
        "mirror_percent": 0,
        "step": 1,
        "steps": [{"weight": w, "pause_s": 0, "until": "verdict"} for w in (5, 25, 50)],
        "began": 1000.0,
        "since": 1100.0,
        "duration_s": 105.0,
        "reason": "",
        "actor": "ann@laptop",
        "verdict": {"outcome": "wait", "at": 1.0, "explanation": "[why]", "metrics": [metric()]},
        "requests": {"baseline": 18110, "candidate": 2040},
        "counted": {},
        "notes": [],
        **more,
    }


def shown(status: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> list[str]:
    output.show(render(status, now=1350.0))
    return [line.rstrip() for line in capsys.readouterr().out.splitlines()]


def test_a_rollout_is_shown_with_both_versions_intervals_and_why(
    capsys: pytest.CaptureFixture[str],
) -> None:
    lines = shown(rollout(), capsys)

    assert lines[0] == "rollout r7 of fraud: canary, progressing, step 2 of 3 (25 %), 4 min 10 s"
    assert lines[2:5] == [
        "arm  version  model    weight  requests compared",
        "old  3        fraud:3  75%     18,110",
        "new  4        fraud:4  25%     2,040",
    ]
    assert lines[6].split() == [
        *("metric", "verdict", "old", "new", "effect", "interval", "tolerated", "samples")
    ]
    assert lines[7].startswith("errors  roll back  0.1 %  5.1 %  +5 points")
    assert "+3.2 points to +7.1 points" in lines[7]
    assert lines[7].endswith("+0.5 points  18,110 / 2,040")
    assert "no difference" in lines[8]
    assert lines[-1] == "[why]"


def test_before_the_first_verdict_there_is_no_table(capsys: pytest.CaptureFixture[str]) -> None:
    lines = shown(rollout(verdict=None, weight=0, reason="starting"), capsys)

    assert lines[1] == "starting"
    assert len(lines) == 6


def test_a_baseline_arm_has_its_own_line(capsys: pytest.CaptureFixture[str]) -> None:
    lines = shown(rollout(verdict=None, weight=10, baseline_weight=10), capsys)

    assert [line.split() for line in lines[3:6]] == [
        ["old", "3", "fraud:3", "80%"],
        ["baseline", "3", "fraud:3", "10%", "18,110"],
        ["new", "4", "fraud:4", "10%", "2,040"],
    ]


@pytest.mark.parametrize(
    ("more", "text"),
    [
        ({"steps": [], "mirror_percent": 20, "strategy": "shadow"}, "mirroring 20 %"),
        ({"steps": [], "strategy": "ab"}, "progressing, 25 %"),
        (
            {"over": True, "phase": "rolled_back", "reason": "no"},
            "canary, rolled back after 1 min 45 s, 4 min 10 s ago",
        ),
    ],
)
def test_every_strategy_has_its_headline(
    capsys: pytest.CaptureFixture[str], more: dict[str, Any], text: str
) -> None:
    assert text in shown(rollout(**more), capsys)[0]


def test_what_its_settings_mean_is_said_until_it_is_over(
    capsys: pytest.CaptureFixture[str],
) -> None:
    notes = ["after the switch it goes back if more than 5 % of its requests fail"]

    assert shown(rollout(notes=notes), capsys)[1] == notes[0]
    assert notes[0] not in shown(rollout(notes=notes, over=True, phase="promoted"), capsys)


def test_a_history_shows_what_was_decided_between_generations() -> None:
    spec = {"name": "fraud", "model": "fraud:4"}
    generation = {"generation": 2, "at": 100.0, "reason": "applied", "actor": "ann", "spec": spec}
    versions = [{"model": "fraud:4", "version": "4", "weight": 100}]
    end = {
        "id": "r7",
        "at": 2_000.0,
        "phase": "rolled_back",
        "from_version": "3",
        "to_version": "4",
        "duration_s": 725.0,
        "decided_by": "verdict",
        "why": "errors: 5.1 % of 2,040 requests failed " + 20 * "and so on ",
    }
    document = {
        "endpoint": "fraud",
        "generations": [{**generation, "current": True, "versions": versions}],
        "rollouts": [end, {**end, "at": 50.0, "phase": "promoted", "why": "done"}],
    }

    rows = [list(map(str, row_cells(row, HISTORY_COLUMNS))) for row in history_rows(document)]
    rows = [[*row[:2], *row[3:]] for row in rows]

    assert [row[:4] for row in rows] == [
        ["", "r7", "3 to 4", "verdict"],
        ["*", "2", "fraud:4", "ann"],
        ["", "r7", "3 to 4", "verdict"],
    ]
    assert rows[0][4].startswith("rolled back after 12 min 5 s: errors: 5.1 % of 2,040 requests")
    assert rows[0][4].endswith("…")
    assert len(rows[0][4]) == 120
    assert rows[2][4] == "promoted after 12 min 5 s: done"


def test_what_is_not_known_is_a_dash_and_open_ends_are_any(
    capsys: pytest.CaptureFixture[str],
) -> None:
    waiting = metric(
        "latency",
        unit="times",
        **dict.fromkeys(("baseline", "candidate", "effect", "high", "margin")),
        low=0.8,
    )
    reward = metric("reward", unit="reward", low=-0.4, high=0.1, effect=-0.1, margin=0.2)
    verdict = {"outcome": "wait", "at": 1.0, "explanation": "", "metrics": [waiting, reward]}
    lines = shown(rollout(verdict=verdict), capsys)

    assert "x0.8 to any" in lines[7]
    assert lines[8].startswith("reward ")


def test_rollouts_are_listed_in_a_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    listed = [rollout(reason="a\nb")]
    output.show_document(listed, listed, summary_columns(1060.0), json=False)
    row = capsys.readouterr().out.splitlines()[1]

    assert re.split("  +", row) == [
        *("r7", "fraud", "canary", "progressing", "3 to 4", "25%", "1 min 0 s", "ann@laptop", "a")
    ]


@pytest.mark.parametrize(
    ("value", "cell"), [(None, "-"), ("", "-"), ([], "-"), (["a", "b"], "a b"), (1234, "1,234")]
)
def test_a_document_is_a_table_of_its_rows_or_json(
    value: object, cell: str, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"key": value}]
    columns: dict[str, output.Column] = {"name": "key", "fixed": lambda _: "x"}
    output.show_document(rows, rows, columns, json=False)
    table = capsys.readouterr().out.splitlines()
    output.show_document(rows, rows, columns, json=True)
    document = capsys.readouterr().out
    output.show_document([], [], columns, json=False, empty="nothing yet")

    assert [line.split("  ")[0].strip() for line in table] == ["name", cell]
    assert json.loads(document) == rows
    assert capsys.readouterr().err == "nothing yet\n"


@given(
    st.lists(
        st.builds(
            ServerEvent,
            id=st.from_regex(r"[0-9]{1,9}", fullmatch=True),
            kind=st.from_regex(r"[a-z]{1,9}", fullmatch=True),
            data=st.from_regex(r"[ -~]{1,20}(\n[ -~]{1,20})?", fullmatch=True),
        )
    )
)
def test_a_stream_of_events_is_read_as_it_was_written(events: list[ServerEvent]) -> None:
    lines = ["retry: 2000\n", "\n"]
    for event in events:
        data = [f"data: {line}\n" for line in event.data.split("\n")]
        lines += [": hello\r\n", "\r\n", f"id: {event.id}\n", f"event: {event.kind}\n", *data, "\n"]

    assert list(read_events(lines)) == events


def test_an_event_that_breaks_off_is_none() -> None:
    assert list(read_events(["id: 1\n", "data: x\n"])) == []
    assert [e.kind for e in read_events(["data:x\n", "\n"])] == ["message"]


def test_an_event_is_one_line() -> None:
    event = {
        "id": 3,
        "at": 0.0,
        "endpoint": "fraud",
        "kind": "rollout",
        "reason": "Promoted",
        "message": "rollout r7 is promoted\nerrors: fine",
        "actor": "ann@laptop",
    }
    line = event_line(event, json=False)

    assert line.endswith(
        "fraud            rollout  Promoted     rollout r7 is promoted (by ann@laptop)"
    )
    assert "fraud  " not in event_line(event | {"endpoint": "", "actor": ""}, json=False)
    assert event_line(event, json=True).startswith('{"id":3,')


def test_a_difference_is_shown_as_the_spec_file_would_have_it() -> None:
    before = {"name": "m", "model": "m:1", "batching": {"max_batch_size": 4}}
    text = diff_text(
        {
            "endpoints": {
                "m": {"before": before, "after": before | {"model": "m:2"}},
                "new": {"before": None, "after": {"name": "new", "model": "n"}},
                "same": {"before": before, "after": before},
            }
        }
    )

    assert text.plain.splitlines() == [
        "--- m (now)",
        "+++ m (then)",
        "@@ -1,4 +1,4 @@",
        " name: m",
        "-model: m:1",
        "+model: m:2",
        " batching:",
        "   max_batch_size: 4",
        "--- new (now)",
        "+++ new (then)",
        "@@ -0,0 +1,2 @@",
        "+name: new",
        "+model: n",
    ]
    assert {str(span.style) for span in text.spans} >= {"green", "red", "cyan", "bold"}


def test_a_long_path_stays_in_one_line() -> None:
    entry = {"name": "m", "model": "/models/" + "long name/" * 30}
    text = diff_text({"endpoints": {"m": {"before": None, "after": entry}}})

    assert len(text.plain.splitlines()) == 5


def test_a_generation_is_told_by_what_it_served() -> None:
    one = {"model": "m:1", "weight": 100}
    split = [{"model": "m:1", "weight": 90}, {"model": "m:2", "weight": 10}]

    assert versions_text({"spec": {}, "versions": [one]}) == "m:1"
    assert versions_text({"spec": {}, "versions": split}) == "m:1 90%, m:2 10%"
    assert versions_text({"spec": None, "versions": []}) == "removed"
