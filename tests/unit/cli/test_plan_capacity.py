"""`headrace plan capacity`: what it prints and refuses."""

import json
from pathlib import Path
from typing import Final

import msgspec
import pytest

from headrace.cli import main
from headrace.cli.base.profiles import save_profile
from headrace.registry import read_content
from headrace.testing import models
from tests.unit.optimize.profiling import made

PLAN: Final = ["plan", "capacity", "--service-time", "4ms"]
BASE: Final = [*PLAN, "--rate", "1000"]


def test_it_compares_nodes_and_tells_the_cheapest(capsys: pytest.CaptureFixture[str]) -> None:
    nodes = ["--node", "name=a,cores=4,memory=16GiB,cost=0.2"]
    nodes += ["--node", "name=b,cores=8,memory=32GiB,cost=0.3"]

    assert main([*BASE, *nodes]) == 0

    out = capsys.readouterr().out
    assert out.splitlines()[0].split()[:3] == ["node", "replicas", "nodes"]
    assert "recommended for 1,000 requests/s at the peak" in out
    assert out.rstrip().endswith("x b")
    assert "made up" not in out


def test_a_million_is_written_out_in_a_table_of_80_columns(
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = ["--rate", "1e6", "--service-time", "1=4ms,8=12ms", "--p99", "50ms"]

    assert main(["plan", "capacity", *arguments]) == 0

    out = capsys.readouterr().out
    assert "for 1,000,000 requests/s at the peak, 1,000,000 on average" in out
    assert "e+0" not in out
    assert max(len(line.rstrip()) for line in out.split("\n\n", maxsplit=1)[0].splitlines()) <= 80


def test_json_has_all_of_it(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [*BASE, "--p99", "50ms", "--growth", "10%", "--months", "2"]

    assert main([*arguments, "--json"]) == 0

    plan = json.loads(capsys.readouterr().out)
    assert plan["peak_rate"] == pytest.approx(1000 * 1.1**2)
    assert plan["demand"]["p99_s"] == 0.05
    assert len(plan["months"]) == 3
    assert all(one["p99_s"] <= 0.05 for one in plan["options"])
    assert {one["node"]["cores"] for one in plan["options"]} == {4, 8, 16, 32}
    assert plan["assumptions"]


def test_rates_over_time_come_from_a_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    traffic = tmp_path / "day.csv"
    traffic.write_text("time,rate\n00:00,420\n12:00,2080\n")

    assert main([*PLAN, "--traffic", str(traffic), "--peak-factor", "1.5", "--json"]) == 0

    plan = json.loads(capsys.readouterr().out)
    assert (plan["peak_rate"], plan["mean_rate"]) == (3120.0, 1250.0)


@pytest.mark.parametrize("text", ["", "time,count\n1,2\n", "rate\nmany\n", '{"rate": -1}\n'])
def test_a_file_without_rates_is_refused(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    traffic = tmp_path / "traffic"
    traffic.write_text(text)

    assert main([*PLAN, "--traffic", str(traffic)]) == 1
    assert str(traffic) in capsys.readouterr().err


@pytest.mark.parametrize(("p99", "told"), [("3ms", "no number of replicas meets 3 ms")])
def test_an_slo_that_cannot_be_met_exits_with_3(
    p99: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*BASE, "--p99", p99]) == 3
    assert told in capsys.readouterr().err


def test_a_replica_that_fits_nowhere_exits_with_3(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*BASE, "--gpus", "1"]) == 3
    assert "too few GPUs" in capsys.readouterr().out


def test_the_spec_gives_the_slo_and_gets_its_autoscale_part(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = tmp_path / "headrace.yaml"
    text = "version: 1\nendpoints:\n  - {name: digits, model: ./m.onnx, slo: {latency_s: 0.05}}\n"
    spec.write_text(text)

    assert main([*BASE, "--spec", str(spec)]) == 0

    out = capsys.readouterr().out
    assert "  - name: digits\n    autoscale:\n      min_replicas: " in out
    assert "      latency_s: 0.05" in out
    assert spec.read_text() == text


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (PLAN, "no load: pass one"),
        (["plan", "capacity", "--rate", "5"], "no run time: pass one"),
        ([*BASE, "--model", "m"], "pass only one"),
        ([*PLAN, "--rate", "5", "--service-time", "0=4ms"], "at least 1 row"),
        ([*BASE, "--service-time", "1=4ms,2=3ms"], "cannot take less time"),
        ([*BASE, "--service-time", "x=4ms"], "not rows=time"),
        ([*BASE, "--service-time", "-4ms"], "is not a duration"),
        ([*BASE, "--runs", "0"], "--runs"),
        ([*BASE, "--cores", "nan"], "is not a number of cores"),
        ([*BASE, "--memory", "much"], "is not a size"),
        ([*PLAN[:2], "--service-time", "1=4ms,1=5ms", "--rate", "1"], "1 rows are given twice"),
        ([*PLAN[:2], "--service-time", "1=4ms,8=3ms", "--rate", "1"], "larger batch cannot take"),
        ([*BASE, "--growth", "5%"], "--growth: --growth also needs --months"),
        ([*BASE, "--growth", "lots"], "is not a number such as 5%"),
        ([*BASE, "--peak-factor", "nan"], "a rate must be above 0"),
        ([*BASE, "--lose-zone"], "needs at least two zones"),
        ([*BASE, "--node", "m"], "is not name=m"),
        ([*BASE, "--node", "name=m,cores=8"], "'memory' is missing"),
        (
            [*BASE, "--node", "name=m,cores=8,memory=1GiB,cost=1,disk=3"],
            "'disk' is not a known key",
        ),
        ([*BASE, "--node", "name=m,cores=nan,memory=1GiB,cost=1"], "cores of 'm'"),
        ([*BASE, "--node", "name=m,cores=8,memory=1GiB,cost=-1"], "cost of 'm'"),
        ([*BASE, *(["--node", "name=m,cores=8,memory=1GiB,cost=1"] * 2)], "two node types"),
        ([*BASE, "--endpoint", "m"], "--endpoint needs --spec"),
        ([*PLAN, "--rate", "nan"], "a rate must be above 0"),
        ([*PLAN, "--rate", "-5"], "a rate must be above 0"),
        ([*PLAN, "--rate", "1e300"], "a rate must be above 0"),
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
    arguments = ["plan", "capacity", "--model", str(model), "--rate", "3"]

    assert main([*arguments, "--home", str(tmp_path / "home")]) == 1
    assert f"headrace profile {model}" in capsys.readouterr().err


def test_a_profile_says_what_a_replica_takes_and_the_spec_which_model_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "m.onnx"
    model.write_bytes(models.mlp())
    digest = str(read_content(model).digest)
    save_profile(tmp_path / "home", msgspec.structs.replace(made.profile(), digest=digest))
    spec = tmp_path / "headrace.yaml"
    spec.write_text(f"version: 1\nendpoints:\n  - {{name: m, model: {model}}}\n")
    arguments = ["plan", "capacity", "--rate", "1000", "--home", str(tmp_path / "home"), "--json"]

    assert main([*arguments, "--spec", str(spec)]) == 0

    found = json.loads(capsys.readouterr().out)
    assert found["endpoint"] == "m"
    assert found["demand"]["replica"]["capacity"] == pytest.approx(197.5, rel=0.01)
    assert found["options"][0]["fleet"]["replicas_needed"] == 7  # 1000 / (0.8 x 197.5)


@pytest.mark.parametrize(
    ("names", "arguments", "told"),
    [
        (("a", "b"), [], "several endpoints; pass --endpoint with one of a, b"),
        (("a", "b"), ["--endpoint", "c"], "no endpoint 'c'"),
        ((), [], "no endpoints to plan for"),
    ],
)
def test_which_endpoint_of_a_spec_is_meant_has_to_be_clear(
    names: tuple[str, ...],
    arguments: list[str],
    told: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    spec = tmp_path / "headrace.yaml"
    entries = [{"name": name, "model": "./m.onnx"} for name in names]
    spec.write_text(json.dumps({"version": 1, "endpoints": entries}))

    assert main([*BASE, "--spec", str(spec), *arguments]) == 1
    assert told in capsys.readouterr().err


def test_a_profile_has_the_runs_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "capacity", "--rate", "5", "--model", "m", "--runs", "2"]) == 2
    assert "the profile already contains the number of concurrent runs" in capsys.readouterr().err
