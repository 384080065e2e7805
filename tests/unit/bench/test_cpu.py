import os

import pytest

from bench import cpu


def reading(
    now: float, busy: float, *, server: float = 0.0, load: float = 0.0, stolen: float = 0.0
) -> cpu.Reading:
    return cpu.Reading(
        now=now,
        busy_s=busy,
        stolen_s=stolen,
        by_process={(7, "server"): server},
        children_s=load,
    )


def test_what_none_of_ours_used_is_foreign() -> None:
    used = cpu.usage(reading(0, 10), reading(2, 14, server=1.0, load=0.5))

    assert used.by_part == {"server": 0.5, cpu.LOAD: 0.25}
    assert used.foreign == pytest.approx(1.25)


def test_rounding_never_makes_foreign_use_negative() -> None:
    assert cpu.usage(reading(0, 10), reading(1, 10.5, server=0.51)).foreign == 0


def test_time_stolen_by_the_host_is_told_apart() -> None:
    assert cpu.usage(reading(0, 0), reading(2, 0, stolen=1)).stolen == 0.5


def test_a_process_that_started_meanwhile_counts_from_zero() -> None:
    before = cpu.Reading(now=0, busy_s=0, stolen_s=0, by_process={}, children_s=0)

    assert cpu.usage(before, reading(1, 1, server=0.75)).by_part["server"] == 0.75


def test_interrupts_and_waiting_are_not_work() -> None:
    line = "cpu  100 20 30 5000 600 70 80 9 0 0\ncpu0 1 1 1 1 1 1 1 1 1 1\n"

    assert cpu.parse_stat(line) == (150 / cpu.TICKS_PER_S, 9 / cpu.TICKS_PER_S)


def test_our_own_process_is_always_among_ours() -> None:
    assert (os.getpid(), cpu.BENCH) in cpu.ours()


def test_a_process_that_is_gone_has_used_nothing() -> None:
    assert cpu.process_s(2**22 + 1) == 0.0


def test_pinning_ends_with_its_block() -> None:
    before = os.sched_getaffinity(0)

    with cpu.pinned({min(before)}):
        inside = os.sched_getaffinity(0)

    assert (inside, os.sched_getaffinity(0)) == ({min(before)}, before)


TREE = {1: 0, 10: 1, 11: 10, 12: 11, 20: 1}


def test_a_process_has_the_part_that_it_is_marked_with() -> None:
    assert cpu.inherited(11, {10: "replica", 11: "gateway"}, TREE) == "gateway"


def test_a_process_without_a_mark_has_its_nearest_ancestors() -> None:
    assert cpu.inherited(12, {10: "replica"}, TREE) == "replica"
    assert cpu.inherited(12, {10: "replica", 12: cpu.OTHER}, TREE) == "replica"


def test_a_stranger_has_no_part() -> None:
    assert cpu.inherited(20, {10: "replica"}, TREE) == ""


def test_what_nobody_marked_but_as_ours_stays_other() -> None:
    assert cpu.inherited(20, {20: cpu.OTHER}, TREE) == cpu.OTHER
