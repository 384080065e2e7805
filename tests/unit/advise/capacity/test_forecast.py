"""Forecasts: files of rates over time, good and bad, and what becomes of them."""

from pathlib import Path

import pytest

from headrace.advise.capacity.forecast import Curve, Forecast, checked, constant, read_curve
from headrace.core import InvalidArgumentError


def file(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "rates"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    "text",
    [
        "time,rate\n2026-01-01T00:00:00Z,10\n2026-01-01T01:00:00Z,30.5\n",
        "ts,rps,other\n1767229200,30.5,x\n1767225600,10,y\n",
        '{"timestamp": 1767225600, "rate": 10}\n\n{"timestamp": 1767229200, "rate": 30.5}\n',
        """[{"time": "2026-01-01T01:00+01:00", "value": 10},
            {"time": "2026-01-01T02:00+01:00", "value": 30.5}]""",
    ],
)
def test_a_curve_is_read_from_csv_and_json_in_any_order(tmp_path: Path, text: str) -> None:
    curve = read_curve(file(tmp_path, text))

    assert curve.at_s == (1767225600.0, 1767229200.0)
    assert curve.rates == (10.0, 30.5)
    assert (curve.peak, curve.mean, curve.step_s) == (30.5, 20.25, 3600.0)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "holds no rates"),
        ("time,rate\n", "holds no rates"),
        ("[]", "holds no rates"),
        ("time,rate\n2026-01-01,-1\n", "line 2: '-1' is no rate"),
        ("time,rate\n2026-01-01,nan\n", "line 2: 'nan' is no rate"),
        ("time,rate\n2026-01-01,inf\n", "line 2: 'inf' is no rate"),
        ("time,rate\n2026-01-01,1e12\n", "line 2: '1e12' is no rate"),
        ("time,rate\n2026-01-01,\n", "line 2: '' is no rate"),
        ("time,rate\nyesterday,5\n", "line 2: 'yesterday' is no time"),
        ("when,rate\n1,5\n", "no time; name its column"),
        ("time,load\n1,5\n", "no rate; name its column"),
        ("[1]", "entry 1: not an object"),
        ('[{"time": 1, "rate": true}]', "entry 1: 'True' is no rate"),
        ('{"time": 1', "neither CSV nor JSON"),
        ("time,rate\n2026-01-01,5\n2026-01-02T00:00Z,5\n", "with and without a time zone"),
        ("time,rate\n2026-10-25T02:30,5\n2026-10-25T02:30,7\n", "two rates for 2026-10-25T02:30"),
    ],
)
def test_a_bad_file_names_the_place_and_the_way_out(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(InvalidArgumentError, match=told):
        read_curve(file(tmp_path, text))


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "rates"
    path.write_bytes(b"\xff\xfe\x00")

    with pytest.raises(InvalidArgumentError, match="cannot be read"):
        read_curve(path)


def test_the_hour_that_comes_twice_is_told_apart_by_its_offset(tmp_path: Path) -> None:
    text = "time,rate\n2026-10-25T02:30+02:00,5\n2026-10-25T02:30+01:00,7\n"

    assert read_curve(file(tmp_path, text)).step_s == 3600.0


def test_gaps_and_times_without_a_zone_are_noted(tmp_path: Path) -> None:
    rows = "".join(f"2026-01-01T{hour:02}:00,5\n" for hour in (0, 1, 2, 9, 10, 11))

    notes = " ".join(read_curve(file(tmp_path, "time,rate\n" + rows)).notes)

    assert "taken as UTC" in notes
    assert "1 gap in the rates, the longest 25,200 s" in notes
    assert "--peak-factor" in notes


@pytest.mark.parametrize("rate", [0.0, -1.0, float("nan"), float("inf"), 1e10])
def test_a_constant_rate_is_a_rate(rate: float) -> None:
    with pytest.raises(InvalidArgumentError, match="a rate is above 0"):
        constant(rate)


@pytest.mark.parametrize(
    ("forecast", "told"),
    [
        (Forecast(curve=constant(1.0), months=121), "0 to 120 months"),
        (Forecast(curve=constant(1.0), growth_ratio=float("nan")), "growth"),
        (Forecast(curve=constant(1.0), growth_ratio=-1.0), "growth"),
        (Forecast(curve=constant(1.0), peak_factor=0.5), "peak factor"),
        (Forecast(curve=constant(1.0), times=0.0), "--at"),
        (
            Forecast(curve=constant(1e6), growth_ratio=1.0, months=120),
            "at most 1,000,000,000 requests",
        ),
        (Forecast(curve=Curve(at_s=(0.0,), rates=(0.0,))), "no traffic"),
    ],
)
def test_a_forecast_that_makes_no_sense_is_refused(forecast: Forecast, told: str) -> None:
    with pytest.raises(InvalidArgumentError, match=told):
        checked(forecast)
