"""What is walked is larger than the largest cache, within reason."""

from pathlib import Path

import pytest

from headrace.optimize.timing import Eviction, eviction

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
