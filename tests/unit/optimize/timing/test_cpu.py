"""Processor use by others, and the eviction of caches."""

import os
from pathlib import Path

import pytest

from headrace.optimize.timing import Eviction, ProcStat, eviction
from headrace.optimize.timing.cpu import TICK_S, cpu_seconds, descendants, idle_seconds

STAT = """\
cpu  300 0 100 1000 50 0 3 7 0 0
cpu0 100 0 50 600 30 0 1 3 0 0
cpu1 200 0 50 400 20 0 2 4 0 0
intr 123 4 5
btime 1700000000
"""


def stat_line(pid: int, parent: int, *, name: str = "python", ticks: int = 0) -> str:
    return f"{pid} ({name}) S {parent} 0 0 0 0 0 0 0 0 0 {ticks} 0 0 0 20 0 1 0 0"


def proc(folder: Path, stat: str) -> Path:
    (folder / "stat").write_text(stat)
    return folder


def test_idle_time_is_that_of_our_cores_with_what_waits_for_disks() -> None:
    assert idle_seconds(STAT, {0}) == pytest.approx(630 * TICK_S)
    assert idle_seconds(STAT, {0, 1}) == pytest.approx(1050 * TICK_S)


@pytest.mark.parametrize(
    "stat", ["", "cpu0 0 0 0 0 0 0 0 0 0 0\n", "cpu0 a b c d e\n", "cpu0 1 2\n"]
)
def test_a_stat_that_tells_nothing_makes_the_watch_blind(tmp_path: Path, stat: str) -> None:
    assert ProcStat(cores={0}, proc=proc(tmp_path, stat)).foreign_s() is None


def test_a_stat_that_is_not_there_makes_the_watch_blind(tmp_path: Path) -> None:
    assert ProcStat(proc=tmp_path).foreign_s() is None


def test_time_that_is_neither_idle_nor_ours_is_that_of_others(tmp_path: Path) -> None:
    times = iter([50.0, 60.0])
    child = tmp_path / "77"
    child.mkdir()
    (child / "stat").write_text(stat_line(77, os.getpid(), ticks=100))
    watch = ProcStat(cores={0, 1}, proc=proc(tmp_path, STAT), monotonic=lambda: next(times))
    ours_before = os.times()
    before = watch.foreign_s()
    # In 10 s both cores were idle for 12 s, and our child computed for 5 of the other 8.
    (tmp_path / "stat").write_text(STAT.replace("600", "1200").replace("400", "1000"))
    (child / "stat").write_text(stat_line(77, os.getpid(), ticks=600))

    after = watch.foreign_s()

    assert before is not None
    assert after is not None
    ours = sum(os.times()[:4]) - sum(ours_before[:4])
    assert after - before == pytest.approx(3.0, abs=ours + 0.05)


def test_children_of_children_are_ours_and_their_siblings_are_not() -> None:
    stats = {
        pid: stat_line(pid, parent) for pid, parent in [(2, 1), (3, 2), (4, 3), (5, 1), (6, 5)]
    }

    assert descendants(stats, 2) == {3, 4}
    assert descendants(stats, 9) == set()


def test_a_program_that_is_named_to_deceive_is_read_all_the_same() -> None:
    text = stat_line(3, 2, name="a) S 99 (b", ticks=50)

    assert descendants({3: text}, 2) == {3}
    assert cpu_seconds([text, "", "4 (cut) S"]) == pytest.approx(50 * TICK_S)


def test_here_others_take_no_less_than_nothing() -> None:
    watch = ProcStat()

    before, after = watch.foreign_s(), watch.foreign_s()

    if before is None or after is None:
        pytest.skip("/proc/stat does not tell how busy the cores are")
    assert after - before > -0.1
    assert watch.cpus == len(os.sched_getaffinity(0))


MIB = 1024**2


def caches(folder: Path, *sizes: str) -> Path:
    for number, size in enumerate(sizes):
        index = folder / f"index{number}"
        index.mkdir()
        (index / "size").write_text(size + "\n")
    return folder


@pytest.mark.parametrize(
    ("sizes", "least", "most"),
    [
        (("48K", "2048K", "8192K"), 9 * MIB, 11 * MIB),
        (("1M",), 1.2 * MIB, 1.3 * MIB),
        (("48K", "", "what"), 60_000, 62_000),
    ],
)
def test_a_buffer_is_larger_than_the_largest_cache(
    tmp_path: Path, sizes: tuple[str, ...], least: float, most: float
) -> None:
    made = eviction(caches(tmp_path, *sizes))

    assert least <= made.size_bytes <= most


def test_a_cache_shared_with_a_whole_host_does_not_take_all_memory(tmp_path: Path) -> None:
    assert eviction(caches(tmp_path, "2G")).size_bytes == 512 * MIB


def test_where_caches_are_not_told_something_usual_is_walked(tmp_path: Path) -> None:
    assert eviction(tmp_path).size_bytes == 64 * MIB


def test_every_line_of_the_buffer_is_written() -> None:
    made = Eviction(64 * 100)

    made()
    made()

    assert made._lines.tolist() == [2] * 100
