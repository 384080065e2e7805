from collections.abc import Mapping, Sequence

import pytest

from bench import cpu
from bench.results import SuiteResult, Target
from bench.windows import Arm, Window, difference, figure, interleave, ratio


def window(rps: float, *, foreign: float = 0.0) -> Window:
    usage = cpu.Usage(by_part={}, foreign=foreign, stolen=0.0)
    return Window(figures={"rps": rps}, usage=usage)


def rounds(**arms: Sequence[float]) -> Mapping[str, list[Window]]:
    return {name: [window(value) for value in values] for name, values in arms.items()}


def test_arms_take_turns_and_every_other_round_runs_backwards() -> None:
    order: list[str] = []

    def take(arm: Arm) -> Window:
        order.append(arm.name)
        return window(1.0)

    arms = [Arm(name=name, measure=dict) for name in "abc"]
    interleave(arms, rounds=3, take=take)

    assert "".join(order) == "abccbaabc"


def test_a_ratio_is_taken_within_each_round() -> None:
    measured = rounds(base=[100, 10, 1], ours=[200, 20, 3])

    both = ratio(measured, "ours", "base", "rps")

    assert (both.median, both.low, both.high) == (2.0, 2.0, 3.0)


def test_a_difference_is_taken_within_each_round() -> None:
    assert difference(rounds(base=[1, 5], ours=[2, 9]), "ours", "base", "rps").median == 2.5


def test_a_window_with_a_busy_stranger_is_noisy() -> None:
    assert window(1.0, foreign=0.1).is_quiet
    assert not window(1.0, foreign=0.5).is_quiet


def test_a_round_with_a_noisy_window_does_not_count_while_others_do() -> None:
    measured = {"base": [window(1), window(100)], "ours": [window(7, foreign=1), window(300)]}

    assert ratio(measured, "ours", "base", "rps").median == 3
    assert figure(measured, "ours", "rps").count == 1


def test_if_every_round_is_noisy_all_count() -> None:
    measured = {"ours": [window(1, foreign=1), window(3, foreign=1)]}

    assert figure(measured, "ours", "rps").median == 2


def test_a_floor_and_a_ceiling_hold_at_their_limit() -> None:
    assert Target(text="x", value=5, limit=5).is_met
    assert Target(text="x", value=5, limit=5, is_ceiling=True).is_met
    assert not Target(text="x", value=4.9, limit=5).is_met
    assert not Target(text="x", value=5.1, limit=5, is_ceiling=True).is_met


def test_noisy_windows_are_counted_in_the_result() -> None:
    result = SuiteResult(name="x", rounds={"a": [window(1), window(1, foreign=1)]})

    assert result.noisy == 1
    assert "NOISY 1 of 2" in str(result)
    assert result.document()["noisy_windows"] == 1


@pytest.mark.parametrize("missing", ["base", "ours"])
def test_a_ratio_of_an_arm_that_was_not_measured_is_an_error(missing: str) -> None:
    measured = rounds(**{name: [1.0] for name in ("base", "ours") if name != missing})

    with pytest.raises(KeyError):
        ratio(measured, "ours", "base", "rps")
