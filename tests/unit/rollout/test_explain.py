import pytest

from headrace.rollout.explain import confidence, count, percent, points, seconds


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (percent(0.0512), "5.1 %"),
        (percent(0.0012), "0.12 %"),
        (percent(0.000012), "0.0012 %"),
        (percent(0.0), "0 %"),
        (points(0.032), "+3.2"),
        (points(-0.004), "-0.40"),
        (points(0.005, signed=False), "0.50"),
        (seconds(0.0621), "62.1 ms"),
        (seconds(1.234), "1.23 s"),
        (seconds(None), "unknown"),
        (count(18110.0), "18,110"),
        (confidence(0.0125), "98.8 % confidence at any time"),
    ],
)
def test_numbers_are_written_for_people(text: str, wanted: str) -> None:
    assert text == wanted
