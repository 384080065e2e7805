"""Figures read the same everywhere: three digits that count, and a unit that suits."""

import pytest

from headrace.optimize.report import CandidateReport, Evidence, text

LABELLED = Evidence(n=2693)


def test_an_interval_is_in_the_unit_of_its_figure() -> None:
    assert text.seconds(1.01e-3, (0.99e-3, 1.2e-3)) == "1.01 ms [0.99, 1.2]"
    assert text.percent(0.678, (0.675, 0.681)) == "67.8 % [67.5, 68.1]"


@pytest.mark.parametrize(
    ("n", "expected"), [(50, "88.5 %"), (500, "88.5 %"), (2693, "88.49 %"), (50_000, "88.490 %")]
)
def test_accuracy_has_the_decimals_that_one_example_changes(n: int, expected: str) -> None:
    candidate = CandidateReport(name="a", accuracy=0.8849, n=n)

    assert text.quality(candidate, LABELLED) == expected


def test_without_labels_agreement_stands_for_accuracy() -> None:
    candidate = CandidateReport(name="a", agreement_ratio=0.991)

    assert text.quality(candidate, Evidence()) == "99.1 %"
    assert text.quality_head(Evidence()) == "agreement"


def test_another_metric_is_no_percentage() -> None:
    data = Evidence(n=1379, metric="Spearman correlation")
    candidate = CandidateReport(
        name="a", accuracy=0.82061, accuracy_loss=0.0018, accuracy_loss_ci=(-0.0006, 0.004)
    )

    assert text.quality(candidate, data) == "0.8206"
    assert text.loss(candidate, data) == "0.0018 [-0.0006, 0.0040]"


def test_a_loss_is_in_points_and_none_has_no_sign() -> None:
    candidate = CandidateReport(
        name="a", accuracy_loss=-0.00001, accuracy_loss_ci=(-0.0041, 0.0033), n=2693
    )

    assert text.loss(candidate, LABELLED) == "0.00 [-0.41, 0.33]"


@pytest.mark.parametrize(
    ("value", "expected"), [(None, ""), (1e-9, "p < 0.001"), (0.0312, "p = 0.031"), (1.0, "p = 1")]
)
def test_chances_are_not_told_more_exactly_than_they_are_known(
    value: float | None, expected: str
) -> None:
    assert text.p_value(value) == expected


def test_nothing_that_a_terminal_obeys_is_printed() -> None:
    assert text.printable("a\x1b[2Jb\nc\ud800") == "a\\x1b[2Jb c?"
