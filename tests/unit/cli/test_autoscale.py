import json
from pathlib import Path

import pytest

from tests.unit.cli.conftest import Command

pytestmark = pytest.mark.slow


def test_a_load_is_tried_as_a_table(headrace: Command) -> None:
    outcome = headrace("autoscale", "simulate", "--trace", "steady")

    assert outcome.status == 0
    head, *rows = outcome.out.splitlines()
    assert head.split() == [
        *("trace", "policy", "violations", "refused", "p99"),
        *("hours", "most", "changes", "turns"),
    ]
    assert [row.split()[1] for row in rows] == [
        *("oracle", "headrace", "cpu-target", "fixed-mean", "fixed-peak")
    ]


def test_programs_get_the_count_of_every_second(headrace: Command) -> None:
    outcome = headrace(
        *("autoscale", "simulate", "--trace", "steady", "--min-replicas", "7", "--seed", "2"),
        "--json",
    )

    document = json.loads(outcome.out)
    ours = next(o for o in document["outcomes"] if o["policy"] == "headrace")
    assert document["settings"]["min_replicas"] == 7
    assert document["seed"] == 2
    assert len(ours["replicas"]) == 1800
    assert min(ours["replicas"][5:]) >= 7
    assert 0 <= ours["violation_ratio"] <= 1


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_a_plot_is_drawn(headrace: Command, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"scaling.{suffix}"

    outcome = headrace("autoscale", "simulate", "--trace", "lost-metrics", "--plot", path)

    assert outcome.status == 0
    assert path.stat().st_size > 10_000


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--plot", "x.gif"), "neither .png, .svg nor .pdf"),
        (("--panic-window-s", "90"), "is above the stable window of 60 s"),
        (("--trace", "nothing"), "nothing"),
    ],
)
def test_options_that_make_no_sense_are_refused(
    headrace: Command, options: tuple[str, str], said: str
) -> None:
    outcome = headrace("autoscale", "simulate", *options)

    assert outcome.status != 0
    assert said in " ".join(outcome.err.replace("│", " ").split())
