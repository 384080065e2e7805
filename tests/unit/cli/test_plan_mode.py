"""`headrace plan mode`: what it asks for, says, and refuses."""

import json
from pathlib import Path

import pytest

from headrace.cli import main

EVENTS = ["plan", "mode", "--arrival", "events", "--rate", "200", "--row-time", "2ms"]


def test_it_recommends_with_the_numbers_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*EVENTS, "--batch-row-time", "200us", "--freshness", "5s", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["recommended"] == "streaming"
    assert [one["mode"] for one in found["options"]] == ["online", "streaming", "batch"]
    assert all(one["why"] and one["cost_per_month"] > 0 for one in found["options"])
    assert found["needs"]["freshness_s"] == 5.0
    assert found["needs"]["peak_rate"] == 600.0


def test_rates_come_from_a_log(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = tmp_path / "log.csv"
    log.write_text("ts,user\n" + "".join(f"{i / 20},{i % 7}\n" for i in range(4_001)))
    arguments = ["plan", "mode", "--arrival", "requests", "--log", str(log), "--key-column", "user"]
    assert main([*arguments, "--row-time", "5ms", "--latency", "100ms"]) == 0
    out = capsys.readouterr().out
    assert "7 distinct" in out
    assert "recommended for requests of 20 rows/s" in out
    assert out.rstrip().endswith("online")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["plan", "mode"], "the arrival mode is missing"),
        (["plan", "mode", "--arrival", "letters"], "'letters' is not an arrival mode"),
        (["plan", "mode", "--arrival", "events"], "the rate is missing"),
        (["plan", "mode", "--arrival", "events", "--rate", "3"], "the run time is missing"),
        ([*EVENTS, "--freshness", "soon"], "'soon' is not a duration"),
        ([*EVENTS, "--freshness", "-5s"], "'-5s' is not a duration"),
        ([*EVENTS, "--rows-per-day", "3"], "exclude each other"),
        ([*EVENTS, "--model", "m"], "exclude each other"),
    ],
)
def test_what_is_missing_or_wrong_is_told(
    arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    assert told in capsys.readouterr().err


def test_a_model_that_nobody_measured_names_the_command_that_does(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "model.onnx"
    model.write_bytes(b"anything")
    arguments = ["plan", "mode", "--arrival", "events", "--rate", "3", "--model", str(model)]
    assert main([*arguments, "--home", str(tmp_path / "home")]) == 1
    assert f"headrace profile {model}" in capsys.readouterr().err
