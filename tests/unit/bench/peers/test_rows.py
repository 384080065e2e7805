import math

from bench import cpu
from bench.peers.rows import Row, find, merged, ratios, rows_of
from bench.windows import Window


def window(*, foreign: float = 0.0, **figures: float) -> Window:
    return Window(figures=figures, usage=cpu.Usage(by_part={}, foreign=foreign, stolen=0.0))


def row(server: str, **figures: list[float]) -> Row:
    return Row(suite="s", model="m", load="l", server=server, figures=figures)


def test_a_round_with_a_noisy_window_counts_for_nobody() -> None:
    rounds = {"a": [window(rps=1), window(rps=2)], "b": [window(rps=3, foreign=1), window(rps=4)]}

    a, b = rows_of("s", "m", "l", rounds)

    assert (a.figures, b.figures) == ({"rps": [2.0]}, {"rps": [4.0]})
    assert (a.noisy, b.noisy) == (0, 1)


def test_if_every_round_is_noisy_all_count() -> None:
    (only,) = rows_of("s", "m", "l", {"a": [window(rps=1, foreign=1), window(rps=2, foreign=1)]})

    assert only.figures["rps"] == [1, 2]


def test_processor_seconds_are_told_for_a_thousand_answers() -> None:
    (only,) = rows_of("s", "m", "l", {"a": [window(cpu_s=2.0, requests=4000)]})

    assert only.figures["cpu_s_per_1000"] == [0.5]


def test_a_figure_that_a_window_lacks_is_left_out() -> None:
    (only,) = rows_of("s", "m", "l", {"a": [window(rps=1, status_429=3), window(rps=2)]})

    assert set(only.figures) == {"rps"}


def test_ratios_are_taken_within_a_round() -> None:
    assert ratios(row("a", rps=[2.0, 20.0]), row("b", rps=[1.0, 5.0]), "rps") == [2, 4]


def test_a_ratio_to_nothing_is_none() -> None:
    assert ratios(row("a", rps=[2.0, 6.0]), row("b", rps=[0.0, 3.0]), "rps") == [2]


def test_the_median_of_what_was_not_taken_is_no_number() -> None:
    assert math.isnan(row("a").median("rps"))


def test_a_newer_row_replaces_the_one_of_the_same_load() -> None:
    old, other, new = row("a", rps=[1.0]), row("b", rps=[2.0]), row("a", rps=[3.0])

    both = merged([old, other], [new])

    assert len(both) == 2
    assert find(both, suite="s", model="m", load="l", server="a") == new


def test_what_was_not_measured_is_not_found() -> None:
    assert find([row("a")], suite="s", model="m", load="other", server="a") is None
