import importlib.util
import io
import json
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

from headrace.cli.base.output import progress_bar
from headrace.cli.base.plots import check_plot
from headrace.cli.rollout.simulate import simulate
from headrace.core.errors import FailedPreconditionError

SMALL = ("--runs", "20", "--duration-s", "20", "--weight", "50")


def run(*arguments: str) -> Result:
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(simulate)
    return CliRunner().invoke(app, arguments)


def test_the_document_tells_false_decisions_and_the_textbook_tests() -> None:
    result = run("--scenario", "aa", "--alpha", "0.1", "--json", *SMALL)

    document = json.loads(result.stdout)
    assert result.exit_code == 0
    assert 0.0 <= document["false_decision_ratio"] <= 1.0
    assert 0.0 <= document["naive_false_decision_ratio"] <= 1.0
    assert document["alpha"] == 0.1
    assert document["runs"] == 20
    assert document["moving"]


@pytest.mark.parametrize(
    ("arguments", "metric", "name"),
    [
        (("errors", "--effect", "0.5", "--margin", "0.1"), "errors", "errors 50 points higher"),
        (("latency", "--effect", "5", "--margin", "1.1"), "latency", "latency times 5"),
        (
            ("predictions", "--effect", "0.5", "--margin", "0.2"),
            "predictions",
            "50 % of answers moved",
        ),
        (
            ("time_per_output_token", "--effect", "2", "--margin", "1.2"),
            "time_per_output_token",
            "time per output token times 2",
        ),
        (
            ("output_tokens", "--effect", "0.2", "--margin", "0.2"),
            "output_tokens",
            "output tokens times 0.2",
        ),
    ],
)
def test_a_bad_version_is_rolled_back(arguments: tuple[str, ...], metric: str, name: str) -> None:
    result = run("--scenario", *arguments, "--min-samples", "1", "--json", *SMALL)

    document = json.loads(result.stdout)
    assert document["candidate"] == name
    assert document["rolled_back_ratio"] == 1.0
    assert document["rolled_back_by"][metric] >= 18
    assert "false_decision_ratio" not in document


def test_a_canarys_steps_are_followed() -> None:
    document = json.loads(run("--steps", "5, 25,50", "--json", *SMALL).stdout)

    assert document["steps"] == [5, 25, 50]


def test_people_get_bars() -> None:
    same, worse = run(*SMALL).stdout, run("--scenario", "errors", *SMALL, "--steady").stdout

    assert "20 rollouts, candidate: the same" in same
    assert "z test of errors, repeated every second" in same
    assert "░" in same
    assert "false decisions" not in worse


def test_the_power_table_has_expectation_and_simulation() -> None:
    arguments = ("--scenario", "power", "--runs", "3", "--duration-s", "10", "--rate", "100")

    document = json.loads(run(*arguments, "--json").stdout)
    text = run(*arguments).stdout

    rows = {row["change"]: row for row in document["rows"]}
    assert not document["moving"]
    assert {"errors 1 % higher (relative)", "errors 20 points higher", "p99 times 1.5"} <= set(rows)
    assert rows["no change"]["expected_requests_until_worse"] is None
    assert rows["errors 5 points higher"]["expected_s"] < 60
    assert "requests to reject" in text
    assert "never" in text
    assert " min  " in text
    assert " s  " in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--scenario", "aa", "--effect", "0.1"), "has no effect to set"),
        (("--scenario", "power", "--margin", "0.1"), "takes the spec's margins"),
        (("--scenario", "latency", "--margin", "0.9"), "is below 1"),
        (("--scenario", "latency", "--effect", "0"), "cannot be multiplied by 0"),
        (("--weight", "100"), "--weight"),
        (("--steps", "5,100"), "is not a list of weights"),
        (("--steps", "a few"), "is not a list of weights"),
    ],
)
def test_what_makes_no_sense_is_refused(arguments: tuple[str, ...], message: str) -> None:
    result = run(*arguments)

    assert result.exit_code == 2
    assert message in " ".join(result.output.replace("│", " ").split())


@pytest.mark.slow
def test_a_plot_is_drawn(tmp_path: Path) -> None:
    one, table = tmp_path / "one.svg", tmp_path / "table.png"

    assert run("--plot", str(one), *SMALL).exit_code == 0
    power = ("--scenario", "power", "--runs", "2", "--duration-s", "5", "--plot", str(table))
    assert run(*power).exit_code == 0

    assert "<svg" in one.read_text()
    assert table.read_bytes().startswith(b"\x89PNG")


def test_a_plot_without_matplotlib_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nothing(_name: str, _package: str | None = None) -> ModuleSpec | None:
        return None

    monkeypatch.setattr(importlib.util, "find_spec", nothing)

    with pytest.raises(FailedPreconditionError, match=r"pip install 'headrace\[plot\]'"):
        check_plot(tmp_path / "x.png")


def test_progress_is_shown_where_somebody_watches(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)

    with progress_bar("40 rollouts", 1.0) as update:
        update(completed=0.5)

    assert "40 rollouts" in terminal.getvalue()
