import pytest

from headrace.rollout.outcomes import confidence, points


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (points(0.032), "+3.2"),
        (points(-0.004), "-0.4"),
        (points(0.005, signed=False), "0.5"),
        (confidence(0.0125), "98.8 % confidence at any time"),
    ],
)
def test_numbers_are_written_for_people(text: str, wanted: str) -> None:
    assert text == wanted
