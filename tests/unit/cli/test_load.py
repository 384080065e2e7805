"""`headrace load` without a server: what it says, draws and refuses."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import typer

from headrace.cli.base.load_report import (
    announcement,
    document,
    highest_met,
    report,
    steps_document,
    steps_report,
)
from headrace.cli.base.plots import PAGES, check_plot, draw_load
from headrace.cli.load import RequestContents, line, tensors_of
from headrace.core import Datatype, InvalidArgumentError, ModelSignature, TensorSpec
from headrace.load import LoadPlan, LoadResult, RunTick, open_target, parse_objectives, summarize
from headrace.load.summary import SUCCEEDED, RunRecord
from tests.unit.cli.conftest import Command

SIGNATURE = ModelSignature(
    inputs=(TensorSpec(name="x", datatype=Datatype.FP32, shape=(-1, 2)),),
    outputs=(TensorSpec(name="y", datatype=Datatype.FP32, shape=(-1, 1)),),
    batched=True,
)


def result(
    *, rate: float = 200.0, slo: str = "p99=20ms,error=5%", slower: float = 1.0, failed: int = 20
) -> LoadResult:
    rng = np.random.default_rng(1)
    record = RunRecord.from_intended(np.arange(int(rate * 12)) / rate)
    for i, latency_s in enumerate(rng.exponential(0.002, len(record.intended)) * slower):
        record.handled[i] = record.intended[i] + 1e-6
        record.done[i] = record.intended[i] + latency_s
        record.code[i] = SUCCEEDED
    for i in range(1000, 1000 + failed):
        record.code[i] = record.code_of("timeout")
    return summarize(
        record.sample(),
        LoadPlan(rate_per_s=rate),
        objectives=parse_objectives(slo),
        connections=9,
        waited=3,
    )


def text_of(found: LoadResult) -> str:
    return "\n".join(part.plain for part in report(found))


def test_a_report_has_the_figures_their_intervals_and_the_verdicts() -> None:
    text = text_of(result(slo="p99=20ms,error=10%"))

    assert "asked          200.0 /s, poisson arrivals" in text
    assert "20 (1 %, " in text
    assert ": 20 timeout" in text
    assert "9 opened; 3 requests waited for one (--connections 1000)" in text
    for name in ("p50 ", "p90 ", "p95 ", "p99 ", "p99.9 "):
        assert f"\n{name}" in text
    assert "an interval takes about" in text
    assert "error <= 10 %  met" in text


def test_a_quantile_that_fell_on_failures_says_so() -> None:
    text = text_of(result(failed=800, slo="p99=20ms"))

    assert "p99 <= 20 ms" in text
    assert "failed" in text.split("objective")[1]


def test_a_document_is_plain_json_with_nulls_where_nothing_is_known() -> None:
    found = json.loads(json.dumps(document(result(failed=800), "http://h", "m"), allow_nan=False))

    assert found["rate_per_s"] == 200
    assert found["requests"] == 2000
    assert found["errors"] == 800
    assert found["errors_by_kind"] == {"timeout": 800}
    assert set(found["latency_s"]) == {"p50", "p90", "p95", "p99", "p99.9"}
    low, high = found["latency_ci_s"]["p50"]
    assert low <= found["latency_s"]["p50"] <= high
    assert found["latency_ci_s"]["p99.9"] is None
    assert found["requests_needed"]["p99.9"] > 2000
    assert set(found["lag_s"]) == {"p50", "p99", "max"}
    assert found["slo"][0]["measured_s"] is None
    assert found["slo"][0]["limit_s"] == 0.02
    assert found["slo"][1]["limit_ratio"] == 0.05
    assert found["slo"][1]["verdict"] == found["verdict"] == "missed"


def test_of_several_rates_the_highest_that_met_everything_is_named() -> None:
    results = [
        result(rate=rate, slower=slower, failed=0)
        for rate, slower in ((200, 1), (400, 1), (800, 9))
    ]

    assert [found.verdict for found in results] == ["met", "met", "missed"]
    assert highest_met(results) == 400
    assert steps_document(results, "http://h", "m")["highest_met_per_s"] == 400
    text = "\n".join(part.plain for part in steps_report(results))
    assert "the highest rate that met all objectives: 400 /s" in text
    assert text.splitlines()[3].startswith("800.0")


def test_what_is_sent_where_is_said_before() -> None:
    plan = LoadPlan(rate_per_s=50)
    here = open_target("http://127.0.0.1:8000", model="m")
    there = open_target("https://models.example", model="m")

    assert announcement(plan, here, "x") == (
        "sending 50 requests/s (poisson) for 2 + 10 s to m at 127.0.0.1:8000: x"
    )
    assert "at models.example, another machine: x" in announcement(plan, there, "x")


def test_progress_is_one_line() -> None:
    tick = RunTick(
        elapsed_s=3.0,
        left_s=9.0,
        sent=1500,
        in_flight=2,
        failed=1,
        p50_s=0.001,
        p99_s=None,
        lag_p99_s=4e-6,
    )

    assert line(tick) == ("1,500 sent, 2 in flight, p50 1 ms, p99 -, 1 failed, lag 4 µs, 9 s left")


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".html", ".svg", ".png"])
@pytest.mark.parametrize("count", [1, 3])
def test_pictures_stand_alone_and_show_hostile_names_as_text(
    tmp_path: Path, suffix: str, count: int
) -> None:
    path = tmp_path / f"load{suffix}"
    hostile = "<script>alert(1)</script> $\\frac{1}{0$ & \x1b[31m \ud800"

    draw_load(path, [result(rate=100 + 100 * i) for i in range(count)], title=hostile)

    data = path.read_bytes()
    if suffix == ".png":
        assert data.startswith(b"\x89PNG")
        return
    text = data.decode()
    assert "<script>" not in text
    assert "&lt;script&gt;" in text
    assert not re.search(r"""(href|src)=["'](?!#)|url\((?!#)|@import""", text)
    if suffix == ".html":
        assert "<pre>" in text


@pytest.mark.slow
def test_a_run_without_one_good_answer_can_be_drawn(tmp_path: Path) -> None:
    draw_load(tmp_path / "none.png", [result(failed=1400)], title="m")
    draw_load(tmp_path / "none.svg", [result(failed=1400)] * 2, title="m")

    assert (tmp_path / "none.svg").stat().st_size > 1000


def test_a_picture_that_cannot_be_written_is_refused_before_the_load(tmp_path: Path) -> None:
    check_plot(tmp_path / "x.SVG", PAGES)
    with pytest.raises(typer.BadParameter, match=r"use \.html, \.svg, \.png"):
        check_plot(tmp_path / "x.jpeg", PAGES)
    with pytest.raises(typer.BadParameter, match="no directory"):
        check_plot(tmp_path / "none" / "x.png", PAGES)


def test_made_up_inputs_have_as_many_rows_as_asked() -> None:
    (tensors,) = tensors_of(SIGNATURE, RequestContents(rows=3), "m")

    assert tensors["x"].shape == (3, 2)


def test_rows_of_a_file_are_sent_in_turn(tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    file.write_text("\n".join(f"{i},{i}" for i in range(7)))

    all_at_once = list(tensors_of(SIGNATURE, RequestContents(file=str(file)), "m"))
    by_two = list(tensors_of(SIGNATURE, RequestContents(file=str(file), rows=2), "m"))
    too_many = list(tensors_of(SIGNATURE, RequestContents(file=str(file), rows=50), "m"))

    assert [one["x"].shape for one in all_at_once] == [(7, 2)]
    assert [one["x"][0, 0] for one in by_two] == [0, 2, 4]
    assert [one["x"].shape for one in too_many] == [(7, 2)]


def test_lines_of_json_are_requests_in_turn(tmp_path: Path) -> None:
    file = tmp_path / "some.jsonl"
    file.write_text('[[1, 2]]\n\n{"x": [[3, 4], [5, 6]]}\n')

    found = list(tensors_of(SIGNATURE, RequestContents(file=str(file)), "m"))

    assert [one["x"].tolist() for one in found] == [[[1, 2]], [[3, 4], [5, 6]]]


@pytest.mark.parametrize(
    ("text", "said"),
    [("", "is empty"), ("[[1, 2]]\n[[1]]\n", "x"), ("[[1, 2]]\nnonsense,\n", "line 2")],
)
def test_a_bad_line_is_named(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "bad.jsonl"
    file.write_text(text)

    with pytest.raises(InvalidArgumentError, match=said):
        list(tensors_of(SIGNATURE, RequestContents(file=str(file)), "m"))


def test_help_says_what_the_exit_status_means(headrace: Command) -> None:
    outcome = headrace("load", "--help")

    assert outcome.status == 0
    assert "Exit status: 0 all objectives met" in outcome.out


@pytest.mark.parametrize(
    ("arguments", "said", "status"),
    [
        (("http://127.0.0.1:1", "-r", "0"), "the rate must be above 0", 1),
        (("http://127.0.0.1:1", "-r", "-3"), "the rate must be above 0", 1),
        (("http://127.0.0.1:1", "-r", "9e9"), "at most 200,000", 1),
        (("http://127.0.0.1:1", "-r", "fast"), "'fast' is not a rate", 2),
        (("http://127.0.0.1:1", "-r", ","), "is not a rate", 2),
        (("http://127.0.0.1:1", "-r", "1", "--seconds", "9999"), "at most 3,600 seconds", 1),
        (("http://127.0.0.1:1", "-r", "9", "--max-requests", "5"), "limit of 5", 1),
        (("http://127.0.0.1:1", "-r", "1", "--slo", "p99=20"), "a latency needs a unit", 1),
        (("http://127.0.0.1:1", "-r", "1", "-H", "nonsense"), "NAME: VALUE", 1),
        (("http://127.0.0.1:1", "-r", "1", "--plot", "x.doc"), "has no supported extension", 2),
        (("http://127.0.0.1:1", "-r", "1", "--key", "@none"), "no file 'none'", 2),
        (("http://127.0.0.1:1", "-r", "1", "--cert", "c.pem"), "--cert and --cert-key", 2),
        (("ftp://127.0.0.1", "-r", "1"), "is not a server address", 1),
        (("grpc://127.0.0.1:1", "-r", "1"), "load is sent over HTTP", 1),
        (("http://127.0.0.1:1",), "--rate", 2),
        (("http://models.example", "-r", "1", "--key", "k"), "unencrypted", 1),
    ],
)
def test_what_cannot_be_done_is_one_line(
    headrace: Command, arguments: tuple[str, ...], said: str, status: int
) -> None:
    outcome = headrace("load", *arguments)

    assert outcome.status == status
    assert said in outcome.err
    assert outcome.out == ""
    assert len(outcome.err.splitlines()) == 1
