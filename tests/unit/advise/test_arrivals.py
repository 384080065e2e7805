"""What a log says of how rows come."""

import json
from pathlib import Path

import numpy as np
import pytest

from headrace.advise.plan.arrivals import read_arrivals
from headrace.core import InvalidArgumentError


def test_rates_of_a_steady_log_of_json_lines(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    rows = [
        {"timestamp": 1_764_230_400 + i / 10, "customer": i % 50, "x": [1, 2]} for i in range(6_001)
    ]
    log.write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    found = read_arrivals(log, key_column="customer")
    assert found.rows == 6_001
    assert found.rate == pytest.approx(10.0, rel=0.01)
    assert found.peak_rate == pytest.approx(10.0)
    assert found.burstiness == pytest.approx(0.0, abs=0.2)
    assert found.keys == 50
    assert found.repeat_ratio == pytest.approx(1 - 50 / 6_001)


def test_arrivals_by_chance_have_a_burstiness_of_one(tmp_path: Path) -> None:
    gaps = np.random.default_rng(1).exponential(0.2, 20_000)
    log = tmp_path / "log.csv"
    log.write_text("ts\n" + "\n".join(f"{at:.3f}" for at in np.cumsum(gaps)))
    assert read_arrivals(log).burstiness == pytest.approx(1.0, abs=0.1)


def test_a_busy_minute_is_the_peak_and_quiet_ones_are_told(tmp_path: Path) -> None:
    lines = ["time,key", *(f"2026-11-27T06:00:{i % 60:02d}Z,{i}" for i in range(600))]
    lines += ["2026-11-27T06:09:00+00:00,1", "not a time,2", "a,b,c"]
    log = tmp_path / "log.csv"
    log.write_text("\n".join(lines))
    found = read_arrivals(log)
    assert (found.rows, found.unreadable) == (601, 2)
    assert found.peak_rate == pytest.approx(10.0)
    assert found.quiet_ratio == pytest.approx(0.8)


@pytest.mark.parametrize("scale", [1, 1_000, 1_000_000, 1_000_000_000])
def test_unix_times_of_any_unit(tmp_path: Path, scale: int) -> None:
    log = tmp_path / "log.jsonl"
    log.write_text("".join(json.dumps({"at": (1_764_230_400 + i) * scale}) + "\n" for i in (0, 99)))
    assert read_arrivals(log).seconds == pytest.approx(99.0)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "has no row with a time"),
        ("\n\n", "has no row with a time"),
        ("a,b\n1,2\n", "--time-column"),
        ('{"at": true}\n{"at": null}\n{"at": "NaN"}\n[1]\n', "has no row with a time"),
        ("\x00\xff\xfe", "neither JSON lines nor CSV"),
    ],
)
def test_a_log_that_says_nothing_is_refused(tmp_path: Path, text: str, told: str) -> None:
    log = tmp_path / "log"
    log.write_bytes(text.encode("latin-1"))
    with pytest.raises(InvalidArgumentError, match=told):
        read_arrivals(log)


def test_a_key_that_is_no_column_is_refused_with_those_that_are(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    log.write_text('{"at": 1, "customer": 3}\n')
    with pytest.raises(InvalidArgumentError, match="its columns are: at, customer"):
        read_arrivals(log, key_column="user")


def test_a_line_without_an_end_costs_itself(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    log.write_bytes(b'{"at": 1}\n{"at": 2, "x": "' + b"y" * (9 << 20) + b'"}\n{"at": 3}\n')
    found = read_arrivals(log)
    assert (found.rows, found.unreadable) == (2, 1)


def test_a_line_nested_without_end_costs_itself(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    log.write_bytes(b'{"at": 1}\n{"at": 2, "x": ' + b"[" * 100_000 + b'\n{"at": 3}\n')

    found = read_arrivals(log)

    assert (found.rows, found.unreadable) == (2, 1)
